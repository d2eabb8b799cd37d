//! The curve as a picture.

use super::{Family, RateAccuracy, Way};
use crate::plot::{Axis, Colour, Mark, Plot, Series};

/// A self-contained SVG: accuracy (percent) over mean bytes on a logarithmic axis, a line through
/// each family's front, and the uncut network's accuracy.
pub fn plot(measured: &RateAccuracy) -> String {
    let fronts = measured.ways.iter().filter(|way| way.pareto).map(|way| way.accuracy);
    let floor = fronts.fold(measured.full, f64::min);
    let mut plot = Plot::new(Axis::log("bytes a picture"), Axis::linear("right (%)"));
    plot.size = (720.0, 420.0);
    plot.rules.push((100.0 * measured.full, "uncut".into()));
    let families = [
        (Family::Split, Colour::BLUE),
        (Family::Jpeg, Colour::ORANGE),
        (Family::Webp, Colour::VIOLET),
        (Family::Avif, Colour::GREEN),
    ];
    for (family, colour) in families {
        let all = || measured.ways.iter().filter(|way| way.family == family);
        let series = |name: &str, mark, ways: Vec<&Way>| Series {
            titles: ways
                .iter()
                .map(|way| {
                    format!("{}: {:.0} B, {:.2}%", way.name, way.bytes, 100.0 * way.accuracy)
                })
                .collect(),
            ..Series::new(name, colour, mark, {
                ways.iter().map(|way| (way.bytes, 100.0 * way.accuracy)).collect()
            })
        };
        let front: Vec<&Way> = all().filter(|way| way.pareto).collect();
        let beaten = all().filter(|way| !way.pareto && way.accuracy >= floor).collect();
        plot.series.push(series(family.name(), Mark::Line, front.clone()));
        plot.series.push(series("", Mark::Dot, front));
        plot.series.push(series("", Mark::Ring, beaten));
    }
    plot.file()
}
