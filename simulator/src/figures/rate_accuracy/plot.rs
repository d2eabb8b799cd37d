//! The curve as a picture.

use std::fmt::Write;

use super::{Family, RateAccuracy, Way};

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 16.0;
const TOP: f64 = 16.0;
const BOTTOM: f64 = 44.0;

/// A self-contained SVG: accuracy (percent) over mean bytes on a logarithmic axis, a line through
/// each family's front, and the uncut network's accuracy.
pub fn plot(measured: &RateAccuracy) -> String {
    let bytes = || measured.ways.iter().map(|way| way.bytes.max(1.0).log10());
    let (least, most) = (bytes().fold(f64::MAX, f64::min), bytes().fold(f64::MIN, f64::max));
    let (least, most) = (least - 0.05, most + 0.05);
    let fronts = measured.ways.iter().filter(|way| way.pareto).map(|way| way.accuracy);
    let floor = fronts.fold(measured.full, f64::min);
    let bottom = ((floor * 20.0).floor() / 20.0).max(0.0);
    let top = (measured.full * 100.0 + 1.0).ceil() / 100.0;
    let x = |bytes: f64| {
        LEFT + (bytes.max(1.0).log10() - least) / (most - least) * (WIDTH - LEFT - RIGHT)
    };
    let y = |share: f64| TOP + (top - share) / (top - bottom) * (HEIGHT - TOP - BOTTOM);

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\" fill=\"#444\">\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>"
    );
    let mut line = |x1: f64, y1: f64, x2: f64, y2: f64, style: &str| {
        let _ = write!(
            svg,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" {style}/>"
        );
    };
    let grid = "stroke=\"#e4e4e0\"";
    let ticks: Vec<f64> = (0..5)
        .flat_map(|power| [1.0, 2.0, 5.0].map(|step| step * 10f64.powi(power)))
        .filter(|bytes| (least..=most).contains(&bytes.log10()))
        .collect();
    let levels: Vec<f64> = (0..=20).map(|n| f64::from(n) / 20.0).collect();
    let levels = levels.into_iter().filter(|share| (bottom..=top).contains(share));
    let levels: Vec<f64> = levels.collect();
    for &bytes in &ticks {
        line(x(bytes), TOP, x(bytes), HEIGHT - BOTTOM, grid);
    }
    for &share in &levels {
        line(LEFT, y(share), WIDTH - RIGHT, y(share), grid);
    }
    let uncut = y(measured.full);
    line(LEFT, uncut, WIDTH - RIGHT, uncut, "stroke=\"#888\" stroke-dasharray=\"5 4\"");
    let mut text = |x: f64, y: f64, anchor: &str, text: &str| {
        let _ =
            write!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
    };
    for &bytes in &ticks {
        text(x(bytes), HEIGHT - BOTTOM + 16.0, "middle", &format!("{bytes:.0}"));
    }
    for &share in &levels {
        text(LEFT - 6.0, y(share) + 4.0, "end", &format!("{:.0}%", 100.0 * share));
    }
    text(WIDTH / 2.0, HEIGHT - 8.0, "middle", "bytes a picture");
    text(LEFT + 4.0, uncut - 5.0, "start", "uncut");
    let families =
        [(Family::Split, "#1f6f8b"), (Family::Jpeg, "#b5651d"), (Family::Webp, "#7a4fa3")];
    for (at, (family, colour)) in families.into_iter().enumerate() {
        let ways: Vec<&Way> = measured.ways.iter().filter(|way| way.family == family).collect();
        let shown = |way: &&&Way| way.accuracy >= bottom;
        let front = ways.iter().filter(|way| way.pareto);
        let path: Vec<String> =
            front.map(|way| format!("{:.1},{:.1}", x(way.bytes), y(way.accuracy))).collect();
        let _ = write!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            path.join(" ")
        );
        for way in ways.iter().filter(shown) {
            let fill = if way.pareto { colour } else { "none" };
            let _ = write!(
                svg,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" stroke=\"{colour}\" fill=\"{fill}\">\
                 <title>{}: {:.0} B, {:.2}%</title></circle>",
                x(way.bytes),
                y(way.accuracy),
                way.name,
                way.bytes,
                100.0 * way.accuracy
            );
        }
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"{colour}\">{}</text>",
            WIDTH - RIGHT - 8.0,
            HEIGHT - BOTTOM - 44.0 + 16.0 * at as f64,
            family.name()
        );
    }
    svg + "</svg>\n"
}
