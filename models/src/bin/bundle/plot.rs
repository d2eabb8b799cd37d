//! The drawing of `bundle cuts`: bytes and multiply-accumulates along the depth.

use std::fmt::Write;

use crate::listed::Listed;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 420.0;
/// Space around the drawing, for axes and titles.
const MARGIN: f64 = 64.0;

/// Bars of bytes at 8 bits (logarithmic, left) and a line of the head's fraction of
/// the multiply-accumulates (right); a bar's title names its cut.
pub(crate) fn svg(cuts: &[Listed]) -> String {
    let [w, h] = [WIDTH - 2.0 * MARGIN, HEIGHT - 2.0 * MARGIN];
    let most = cuts.iter().map(|cut| cut.bytes).max().unwrap_or(1).max(10);
    let decades = (most as f64).log10().ceil();
    let step = w / cuts.len().max(1) as f64;
    let bottom = HEIGHT - MARGIN;
    let height = |bytes: f64| h * bytes.max(1.0).log10() / decades;

    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    let mut draw = |line: std::fmt::Arguments<'_>| {
        // A string takes everything.
        let _ = svg.write_fmt(line);
        svg.push('\n');
    };
    for decade in 0..=decades as i32 {
        let y = bottom - h * f64::from(decade) / decades;
        let (right, left) = (WIDTH - MARGIN, MARGIN - 6.0);
        draw(format_args!(
            "<path d=\"M{MARGIN} {y:.1}H{right}\" stroke=\"#ddd\"/>\
             <text x=\"{left}\" y=\"{y:.1}\" text-anchor=\"end\" dy=\"4\">{}</text>",
            10u64.pow(decade as u32)
        ));
    }
    for percent in [0, 25, 50, 75, 100] {
        let (x, y) = (WIDTH - MARGIN + 6.0, bottom - h * f64::from(percent) / 100.0);
        draw(format_args!("<text x=\"{x}\" y=\"{y:.1}\" dy=\"4\" fill=\"#c30\">{percent}%</text>"));
    }
    let mut line = String::new();
    for (at, cut) in cuts.iter().enumerate() {
        let (x, height) = (MARGIN + step * at as f64, height(cut.bytes as f64));
        let all = (cut.head_macs + cut.tail_macs).max(1) as f64;
        let fraction = cut.head_macs as f64 / all;
        let [c, rows, columns] = cut.shape;
        draw(format_args!(
            "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height:.1}\" fill=\"#48a\">\
             <title>{} ({}): {c} × {rows} × {columns}, {} bytes, head {:.1} MMAC</title></rect>",
            x + 0.1 * step,
            bottom - height,
            0.8 * step,
            escape(&cut.tensor),
            escape(&cut.op),
            cut.bytes,
            cut.head_macs as f64 / 1e6
        ));
        let _ = write!(line, "{:.1},{:.1} ", x + 0.5 * step, bottom - h * fraction);
    }
    draw(format_args!(
        "<polyline points=\"{line}\" fill=\"none\" stroke=\"#c30\" stroke-width=\"2\"/>"
    ));
    let (middle, below, above) = (WIDTH / 2.0, HEIGHT - MARGIN + 32.0, MARGIN - 24.0);
    draw(format_args!(
        "<text x=\"{middle}\" y=\"{below}\" text-anchor=\"middle\">cuts, from the picture to the answer</text>"
    ));
    let right = WIDTH - MARGIN;
    draw(format_args!(
        "<text x=\"{MARGIN}\" y=\"{above}\" fill=\"#48a\">bytes at 8 bits</text>\
         <text x=\"{right}\" y=\"{above}\" text-anchor=\"end\" fill=\"#c30\">MACs in the head (%)</text>"
    ));
    svg + "</svg>\n"
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
