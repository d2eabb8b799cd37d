//! Path data: a little language, like that of SVG, in which the sign faces are drawn.

use tiny_skia::{LineCap, LineJoin, Path, PathBuilder, Stroke, Transform};

/// Red, green and blue, each 0..=1.
pub(super) type Colour = [f32; 3];

/// One filled area of a drawing, in the units of the drawing.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    pub(super) colour: Colour,
    pub(super) path: Path,
}

/// The area that the path data encloses.
pub(super) fn fill(colour: Colour, data: &str) -> Option<Mark> {
    Some(Mark { colour, path: parse(data)? })
}

/// A line of the given width along the path data.
pub(super) fn line(colour: Colour, width: f32, data: &str) -> Option<Mark> {
    let stroke =
        Stroke { width, line_cap: LineCap::Butt, line_join: LineJoin::Round, ..Stroke::default() };
    // Drawings are a few units across and seen some hundred pixels large.
    Some(Mark { colour, path: parse(data)?.stroke(&stroke, 100.0)? })
}

/// The marks moved, turned or scaled.
pub(super) fn placed(marks: Vec<Option<Mark>>, transform: Transform) -> Vec<Option<Mark>> {
    marks
        .into_iter()
        .map(|mark| {
            mark.and_then(|Mark { colour, path }| {
                Some(Mark { colour, path: path.transform(transform)? })
            })
        })
        .collect()
}

/// Reads commands, each followed by its numbers, all separated by spaces: `M x y` move, `L x y`
/// line, `Q` and `C` curves with one and two control points, `Z` close, `O x y r` circle.
/// Nothing where the data is not of this form.
fn parse(data: &str) -> Option<Path> {
    let mut words = data.split_ascii_whitespace();
    let mut path = PathBuilder::new();
    while let Some(command) = words.next() {
        let mut number = || words.next()?.parse::<f32>().ok();
        match command {
            "M" => path.move_to(number()?, number()?),
            "L" => path.line_to(number()?, number()?),
            "Q" => path.quad_to(number()?, number()?, number()?, number()?),
            "C" => path.cubic_to(number()?, number()?, number()?, number()?, number()?, number()?),
            "O" => path.push_circle(number()?, number()?, number()?),
            "Z" => path.close(),
            _ => return None,
        }
    }
    path.finish()
}
