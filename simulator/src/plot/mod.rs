//! Plots as SVG: lines, steps, dots and bars over axes with round ticks, light and dark.
//!
//! A [`Plot`] is drawn either into a page that holds [`STYLE`], or as a file of its own. `axis` puts
//! values in their places, `draw` and `legend` draw, and `svg` writes elements.

mod axis;
mod draw;
mod legend;
mod style;
mod svg;
#[cfg(test)]
mod tests;

pub use style::{Colour, STYLE};
pub use svg::escape;

/// What is drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct Plot {
    /// Width and height (pixels at a scale of one).
    pub size: (f64, f64),
    /// Least room left of the vertical axis, so that plots one below the other have theirs in line.
    pub margin: f64,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// Drawn in this order, the last one on top; the named ones are in the legend.
    pub series: Vec<Series>,
    /// Horizontal lines across the plot, each with its name.
    pub rules: Vec<(f64, String)>,
    /// Vertical ones.
    pub uprights: Vec<(f64, String)>,
}

/// An axis.
#[derive(Clone, Debug, PartialEq)]
pub struct Axis {
    /// What it shows, with its unit.
    pub label: String,
    /// How values become places.
    pub scale: Scale,
    /// Values that have to be on it, whatever the series hold.
    pub covers: Vec<f64>,
}

/// How values become places.
#[derive(Clone, Debug, PartialEq)]
pub enum Scale {
    /// Evenly.
    Linear,
    /// By their logarithm; what is not more than 0 is put at the least place.
    Log,
    /// Value 0 is the first name, 1 the second.
    Names(Vec<String>),
}

/// Values that belong together.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// In the legend, unless it is empty.
    pub name: String,
    /// Its colour.
    pub colour: Colour,
    /// What stands for a value.
    pub mark: Mark,
    /// Horizontal and vertical values; one that is not a number breaks a line.
    pub points: Vec<(f64, f64)>,
    /// Text shown at each point; none, or one for each.
    pub titles: Vec<String>,
}

/// What stands for a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A line from point to point.
    Line,
    /// A line that keeps its height until the next point.
    Step,
    /// The area under such a line.
    Area,
    /// A disc.
    Dot,
    /// A circle.
    Ring,
    /// A bar as long as the horizontal value, at the vertical one; it begins where those of the
    /// series before end.
    Bar,
}

impl Axis {
    /// An even axis.
    pub fn linear(label: &str) -> Axis {
        Axis { label: label.to_owned(), scale: Scale::Linear, covers: Vec::new() }
    }

    /// A logarithmic axis.
    pub fn log(label: &str) -> Axis {
        Axis { scale: Scale::Log, ..Axis::linear(label) }
    }

    /// An axis of names.
    pub fn names(label: &str, names: Vec<String>) -> Axis {
        Axis { scale: Scale::Names(names), ..Axis::linear(label) }
    }

    /// The same, with `values` on it.
    #[must_use]
    pub fn covering(mut self, values: &[f64]) -> Axis {
        self.covers.extend(values);
        self
    }
}

impl Series {
    /// A series without titles.
    pub fn new(name: &str, colour: Colour, mark: Mark, points: Vec<(f64, f64)>) -> Series {
        Series { name: name.to_owned(), colour, mark, points, titles: Vec::new() }
    }
}

impl Plot {
    /// A plot without series.
    pub fn new(x: Axis, y: Axis) -> Plot {
        Plot {
            size: (860.0, 240.0),
            margin: 0.0,
            x,
            y,
            series: Vec::new(),
            rules: Vec::new(),
            uprights: Vec::new(),
        }
    }

    /// An `<svg>` for a page that holds [`STYLE`].
    pub fn svg(&self) -> String {
        self.draw("")
    }

    /// A file of its own.
    pub fn file(&self) -> String {
        let style =
            format!("<style>{STYLE}</style><rect width=\"100%\" height=\"100%\" class=\"paper\"/>");
        let style = style.replace("</style>", ".paper{fill:var(--paper)}</style>");
        self.draw(&style) + "\n"
    }
}
