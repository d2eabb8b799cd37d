//! Elements of SVG.

use std::fmt::Write;

use super::Mark;

/// The path through `places`.
pub(super) fn outline(places: impl Iterator<Item = (f64, f64)>, mark: Mark) -> String {
    let mut line = String::new();
    for (at, (x, y)) in places.enumerate() {
        // Writing to a string cannot fail.
        let _ = match (at, mark) {
            (0, _) => write!(line, "M{x:.1} {y:.1}"),
            (_, Mark::Step) => write!(line, "H{x:.1}V{y:.1}"),
            _ => write!(line, "L{x:.1} {y:.1}"),
        };
    }
    line
}

/// A line without filling; `more` are further attributes.
pub(super) fn path(svg: &mut String, line: &str, colour: &str, more: &str) {
    let _ = write!(svg, "<path d=\"{line}\" style=\"fill:none;stroke:var({colour})\"{more}/>");
}

/// Text at a place.
pub(super) fn label(svg: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    let text = escape(text);
    let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
}

/// What a pointer is shown.
pub(super) fn title(text: Option<&str>) -> String {
    text.map_or_else(String::new, |text| format!("<title>{}</title>", escape(text)))
}

/// Text that is no markup.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
