//! The curve as a picture.

use super::{Family, RateAccuracy, Scheme};
use crate::plot::{Axis, Colour, Mark, Plot, Series};

/// A self-contained SVG: quality (percent) over mean bytes on a logarithmic axis, a line through
/// each family's front, and the full network's quality. Of a detector the quality is its mAP.
pub fn plot(measured: &RateAccuracy) -> String {
    let fronts =
        measured.schemes.iter().filter(|scheme| scheme.pareto).map(|scheme| scheme.quality);
    let floor = fronts.fold(measured.full, f64::min);
    let measure = if measured.full_boxes.is_some() { "mAP (%)" } else { "right (%)" };
    let mut plot = Plot::new(Axis::log("bytes a picture"), Axis::linear(measure));
    plot.size = (720.0, 420.0);
    plot.rules.push((100.0 * measured.full, "full".into()));
    let families = [
        (Family::Split, Colour::BLUE),
        (Family::Jpeg, Colour::ORANGE),
        (Family::Webp, Colour::VIOLET),
        (Family::Avif, Colour::GREEN),
    ];
    for (family, colour) in families {
        let all = || measured.schemes.iter().filter(|scheme| scheme.family == family);
        let series = |name: &str, mark, schemes: Vec<&Scheme>| Series {
            titles: schemes
                .iter()
                .map(|scheme| {
                    format!(
                        "{}: {:.0} B, {:.2}%",
                        scheme.name,
                        scheme.bytes,
                        100.0 * scheme.quality
                    )
                })
                .collect(),
            ..Series::new(name, colour, mark, {
                schemes.iter().map(|scheme| (scheme.bytes, 100.0 * scheme.quality)).collect()
            })
        };
        let front: Vec<&Scheme> = all().filter(|scheme| scheme.pareto).collect();
        let beaten = all().filter(|scheme| !scheme.pareto && scheme.quality >= floor).collect();
        plot.series.push(series(family.name(), Mark::Line, front.clone()));
        plot.series.push(series("", Mark::Dot, front));
        plot.series.push(series("", Mark::Ring, beaten));
    }
    plot.file()
}
