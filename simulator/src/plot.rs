//! Plots as SVG: lines, steps, dots and bars over axes with round ticks, light and dark.
//!
//! A [`Plot`] is drawn either into a page that holds [`STYLE`], or as a file of its own.

use std::fmt::Write;

/// Colours and type, for a page's `<style>`: series are told apart by hue and by lightness, and both
/// follow the reader's preference for light or dark.
pub const STYLE: &str = "\
:root{--paper:#fff;--ink:#1d2327;--faint:#5d666d;--grid:#e3e6e8;--blue:#0b6fb0;--orange:#cf5b00;\
--green:#00875f;--violet:#7a4fa3;--yellow:#c08a00;--sky:#4aa5dc;--red:#c62f2f;--grey:#9aa3a9;\
--pink:#c2588f;--brown:#8a6a3a}\
@media(prefers-color-scheme:dark){:root{--paper:#15191c;--ink:#e8ecee;--faint:#a3adb3;\
--grid:#2d3439;--blue:#58b0ec;--orange:#ff9a52;--green:#43c99b;--violet:#b99ae0;--yellow:#e8bd4a;\
--sky:#9ad6f7;--red:#ff7a72;--grey:#7d878d;--pink:#ea9cc6;--brown:#c9a876}}\
svg.plot{display:block;width:100%;height:auto;font:12px system-ui,sans-serif}\
svg.plot text{fill:var(--faint)}";

/// A colour of [`STYLE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour(&'static str);

#[allow(missing_docs)]
impl Colour {
    pub const INK: Colour = Colour("--ink");
    pub const BLUE: Colour = Colour("--blue");
    pub const ORANGE: Colour = Colour("--orange");
    pub const GREEN: Colour = Colour("--green");
    pub const VIOLET: Colour = Colour("--violet");
    pub const YELLOW: Colour = Colour("--yellow");
    pub const SKY: Colour = Colour("--sky");
    pub const RED: Colour = Colour("--red");
    pub const GREY: Colour = Colour("--grey");
    pub const PINK: Colour = Colour("--pink");
    pub const BROWN: Colour = Colour("--brown");

    /// The `at`th of a row of colours that are easily told apart; it begins again after its end.
    pub fn nth(at: usize) -> Colour {
        const ROW: [Colour; 8] = [
            Colour::BLUE,
            Colour::ORANGE,
            Colour::GREEN,
            Colour::VIOLET,
            Colour::YELLOW,
            Colour::PINK,
            Colour::SKY,
            Colour::BROWN,
        ];
        ROW[at % ROW.len()]
    }
}

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
    /// What a pointer is told at each point; none, or one for each.
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

    fn draw(&self, style: &str) -> String {
        let (width, height) = self.size;
        let all = || self.series.iter().flat_map(|series| &series.points);
        let bars = self.series.iter().any(|series| series.mark == Mark::Bar);
        let xs: Vec<f64> = match bars {
            false => all().map(|point| point.0).collect(),
            true => self.bars().map(|bar| bar.end).chain([0.0]).collect(),
        };
        let rules = self.rules.iter().map(|rule| rule.0);
        let ys = all().map(|point| point.1).chain(rules).collect::<Vec<_>>();
        let legend = self.legend(width);
        let top = 22.0 + 19.0 * legend.rows as f64;
        let y = Placed::new(&self.y, &ys, (height - 38.0, top));
        let longest = y.ticks.iter().map(|tick| tick.1.chars().count()).max().unwrap_or(0);
        let left = self.margin.max(14.0 + 6.6 * longest as f64);
        let x = Placed::new(&self.x, &xs, (left, width - 14.0));

        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plot\" role=\"img\" \
             viewBox=\"0 0 {width} {height}\" aria-label=\"{}\">{style}",
            escape(&format!("{} over {}", self.y.label, self.x.label))
        );
        let ((left, right), (bottom, top)) = (x.ends, y.ends);
        for (at, text) in &y.ticks {
            let at = y.place(*at);
            path(&mut svg, &format!("M{left:.1} {at:.1}H{right:.1}"), "--grid", "");
            label(&mut svg, (left - 6.0, at + 4.0), "end", text);
        }
        for (at, text) in &x.ticks {
            let at = x.place(*at);
            path(&mut svg, &format!("M{at:.1} {bottom:.1}V{top:.1}"), "--grid", "");
            label(&mut svg, (at, bottom + 16.0), "middle", text);
        }
        label(&mut svg, (0.0, 12.0), "start", &self.y.label);
        label(&mut svg, (right, height - 6.0), "end", &self.x.label);
        svg += &legend.svg;
        for series in &self.series {
            series.draw(&mut svg, &x, &y);
        }
        for bar in self.bars() {
            let (from, to) = (x.place(bar.start), x.place(bar.end));
            let thick = (y.step() * 0.62).min(26.0);
            let _ = write!(
                svg,
                "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{thick:.1}\" \
                 style=\"fill:var({})\">{}</rect>",
                y.place(bar.row) - thick / 2.0,
                (to - from).max(0.0),
                bar.colour.0,
                title(bar.title)
            );
        }
        for (value, name) in &self.rules {
            let at = y.place(*value);
            path(
                &mut svg,
                &format!("M{left:.1} {at:.1}H{right:.1}"),
                "--red",
                " stroke-dasharray=\"5 4\"",
            );
            label(&mut svg, (right, at - 5.0), "end", name);
        }
        for (value, name) in &self.uprights {
            let at = x.place(*value);
            path(
                &mut svg,
                &format!("M{at:.1} {bottom:.1}V{top:.1}"),
                "--red",
                " stroke-dasharray=\"5 4\"",
            );
            label(&mut svg, (at - 5.0, bottom - 6.0), "end", name);
        }
        svg + "</svg>"
    }

    /// Bars of all series, each behind those before it in its row.
    fn bars(&self) -> impl Iterator<Item = Bar<'_>> {
        let mut ends: Vec<(f64, f64)> = Vec::new();
        let bars = self.series.iter().filter(|series| series.mark == Mark::Bar);
        let each = bars.flat_map(|series| {
            let titles = series.titles.iter().map(Some).chain(std::iter::repeat(None));
            series.points.iter().zip(titles).map(|(point, title)| (series.colour, point, title))
        });
        each.map(move |(colour, &(length, row), title)| {
            let start = ends.iter().find(|end| end.0 == row).map_or(0.0, |end| end.1);
            ends.retain(|end| end.0 != row);
            ends.push((row, start + length));
            Bar { colour, row, start, end: start + length, title: title.map(String::as_str) }
        })
    }

    fn legend(&self, width: f64) -> Legend {
        let mut legend = Legend { svg: String::new(), rows: 0 };
        let mut at = width;
        for series in self.series.iter().filter(|series| !series.name.is_empty()) {
            let wide = 26.0 + 6.6 * series.name.chars().count() as f64;
            if at + wide > width {
                legend.rows += 1;
                at = 0.0;
            }
            let (x, y) = (at, 12.0 + 18.0 * legend.rows as f64);
            let style = match series.mark {
                Mark::Ring => format!("fill:none;stroke:var({})", series.colour.0),
                _ => format!("fill:var({})", series.colour.0),
            };
            let _ = match series.mark {
                Mark::Dot | Mark::Ring => write!(
                    legend.svg,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" style=\"{style}\"/>",
                    x + 5.0,
                    y - 4.0
                ),
                Mark::Line | Mark::Step => write!(
                    legend.svg,
                    "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"12\" height=\"3\" style=\"{style}\"/>",
                    y - 5.5
                ),
                Mark::Area | Mark::Bar => write!(
                    legend.svg,
                    "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"11\" height=\"11\" style=\"{style}\"/>",
                    y - 10.0
                ),
            };
            label(&mut legend.svg, (x + 16.0, y), "start", &series.name);
            at += wide;
        }
        legend
    }
}

struct Legend {
    svg: String,
    rows: usize,
}

struct Bar<'a> {
    colour: Colour,
    row: f64,
    start: f64,
    end: f64,
    title: Option<&'a str>,
}

impl Series {
    fn draw(&self, svg: &mut String, x: &Placed<'_>, y: &Placed<'_>) {
        let Series { mark, colour: Colour(colour), .. } = self;
        let place = |&(a, b): &(f64, f64)| (x.place(a), y.place(b));
        match mark {
            Mark::Line | Mark::Step => {
                let mut line = String::new();
                for run in self.runs() {
                    line += &outline(run.iter().map(place), *mark);
                }
                path(svg, &line, colour, " stroke-width=\"2\" stroke-linejoin=\"round\"");
            }
            Mark::Area => {
                for run in self.runs() {
                    let ends = (run.first().map(place), run.last().map(place));
                    let (Some((first, _)), Some((last, _))) = ends else { continue };
                    let line = outline(run.iter().map(place), Mark::Step);
                    let bottom = y.ends.0;
                    let _ = write!(
                        svg,
                        "<path d=\"{line}L{last:.1} {bottom:.1}H{first:.1}Z\" \
                         style=\"fill:var({colour});fill-opacity:.28\"/>"
                    );
                }
            }
            Mark::Dot | Mark::Ring => {
                let style = match mark {
                    Mark::Dot => format!("fill:var({colour})"),
                    _ => format!("fill:none;stroke:var({colour});stroke-width:1.3"),
                };
                let _ = write!(svg, "<g style=\"{style}\">");
                let titles = self.titles.iter().map(Some).chain(std::iter::repeat(None));
                for (point, text) in self.points.iter().zip(titles) {
                    if point.0.is_finite() && point.1.is_finite() {
                        let (x, y) = place(point);
                        let text = title(text.map(String::as_str));
                        let _ = write!(
                            svg,
                            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.6\">{text}</circle>"
                        );
                    }
                }
                *svg += "</g>";
            }
            Mark::Bar => {}
        }
    }

    /// The points between those that are not numbers.
    fn runs(&self) -> impl Iterator<Item = &[(f64, f64)]> {
        let runs = self.points.split(|point| !(point.0.is_finite() && point.1.is_finite()));
        runs.filter(|run| !run.is_empty())
    }
}

/// An axis with its place on the drawing.
struct Placed<'a> {
    scale: &'a Scale,
    /// Least and greatest value, logarithms on a logarithmic scale.
    range: (f64, f64),
    /// Their places.
    ends: (f64, f64),
    ticks: Vec<(f64, String)>,
}

impl<'a> Placed<'a> {
    fn new(axis: &'a Axis, values: &[f64], ends: (f64, f64)) -> Placed<'a> {
        let values = values.iter().chain(&axis.covers).copied().filter(|value| value.is_finite());
        let length = (ends.1 - ends.0).abs();
        let (range, ticks) = match &axis.scale {
            Scale::Names(names) => {
                let ticks = (0..).map(f64::from).zip(names.iter().cloned()).collect();
                ((-0.5, names.len() as f64 - 0.5), ticks)
            }
            Scale::Linear => linear_ticks(ends_of(values), length / 60.0),
            Scale::Log => log_ticks(ends_of(values.filter(|value| *value > 0.0))),
        };
        Placed { scale: &axis.scale, range, ends, ticks }
    }

    fn place(&self, value: f64) -> f64 {
        let (least, most) = self.range;
        let value = match self.scale {
            Scale::Log if value > 0.0 => value.log10(),
            Scale::Log => least,
            _ => value,
        };
        let share = ((value - least) / (most - least)).clamp(0.0, 1.0);
        self.ends.0 + share * (self.ends.1 - self.ends.0)
    }

    /// Pixels between two names.
    fn step(&self) -> f64 {
        (self.ends.1 - self.ends.0).abs() / (self.range.1 - self.range.0)
    }
}

fn ends_of(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |ends: Option<(f64, f64)>, value| {
        let (least, most) = ends.unwrap_or((value, value));
        Some((least.min(value), most.max(value)))
    })
}

/// A range of round numbers around `ends`, and about `count` of them.
fn linear_ticks(ends: Option<(f64, f64)>, count: f64) -> ((f64, f64), Vec<(f64, String)>) {
    let (least, most) = ends.unwrap_or((0.0, 1.0));
    let span = if most > least { most - least } else { most.abs().max(1.0) };
    let rough = span / count.clamp(2.0, 12.0);
    let decade = 10f64.powf(rough.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|step| step * decade);
    let step = steps.into_iter().find(|&step| step >= rough * 0.999).unwrap_or(10.0 * decade);
    let (first, last) = ((least / step + 1e-9).floor(), (most / step - 1e-9).ceil());
    let last = last.max(first + 1.0);
    let decimals = (-step.log10()).ceil().clamp(0.0, 9.0) as usize;
    let ticks = (0..=(last - first) as usize).map(|at| {
        let value = (first + at as f64) * step;
        (value, number(value, decimals))
    });
    ((first * step, last * step), ticks.collect())
}

/// A range of one, two and five times powers of ten around `ends`, of powers alone if it is wide;
/// the range in logarithms.
fn log_ticks(ends: Option<(f64, f64)>) -> ((f64, f64), Vec<(f64, String)>) {
    let (least, most) = ends.unwrap_or((1.0, 10.0));
    let wide = most / least > 2_000.0;
    let steps: &[f64] = if wide { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let first = least.log10().floor() as i32;
    let round = (first..=first + 40).flat_map(|power| {
        steps
            .iter()
            .map(move |step| (step * 10f64.powi(power), usize::try_from(-power).unwrap_or(0)))
    });
    let below = |value: &f64| *value <= least * 1.000_001;
    let from = round.clone().map(|tick| tick.0).rfind(below).unwrap_or(least);
    let mut ticks = Vec::new();
    for (value, decimals) in round.filter(|tick| tick.0 >= from) {
        ticks.push((value, number(value, decimals)));
        if value >= most * 0.999_999 && ticks.len() > 1 {
            break;
        }
    }
    let last = ticks.last().map_or(most, |tick| tick.0);
    ((from.log10(), last.log10()), ticks)
}

/// With a letter for thousands and millions.
fn number(value: f64, decimals: usize) -> String {
    let trimmed = |value: f64| {
        let text = format!("{value:.3}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match value.abs() {
        size if size >= 1e6 => trimmed(value / 1e6) + "M",
        size if size >= 1e4 => trimmed(value / 1e3) + "k",
        _ => format!("{:.decimals$}", value + 0.0),
    }
}

fn outline(places: impl Iterator<Item = (f64, f64)>, mark: Mark) -> String {
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

fn path(svg: &mut String, line: &str, colour: &str, more: &str) {
    let _ = write!(svg, "<path d=\"{line}\" style=\"fill:none;stroke:var({colour})\"{more}/>");
}

fn label(svg: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    let text = escape(text);
    let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
}

fn title(text: Option<&str>) -> String {
    text.map_or_else(String::new, |text| format!("<title>{}</title>", escape(text)))
}

/// Text that is no markup.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(ticks: ((f64, f64), Vec<(f64, String)>)) -> Vec<String> {
        ticks.1.into_iter().map(|tick| tick.1).collect()
    }

    #[test]
    fn ticks_are_round_numbers() {
        assert_eq!(
            labels(linear_ticks(Some((0.0, 315.0)), 4.0)),
            ["0", "100", "200", "300", "400"]
        );
        assert_eq!(
            labels(linear_ticks(Some((0.81, 0.87)), 3.0)),
            ["0.80", "0.82", "0.84", "0.86", "0.88"]
        );
        assert_eq!(labels(linear_ticks(Some((0.0, 23_000.0)), 3.0)), ["0", "10k", "20k", "30k"]);
        assert_eq!(labels(linear_ticks(None, 4.0)).first().map(String::as_str), Some("0.0"));
        assert_eq!(labels(log_ticks(Some((130.0, 900.0)))), ["100", "200", "500", "1000"]);
        assert_eq!(
            labels(log_ticks(Some((0.03, 2_000.0)))),
            ["0.01", "0.1", "1", "10", "100", "1000", "10k"]
        );
    }

    proptest! {
        #[test]
        fn every_value_is_within_its_axis(least in -1e6f64..1e6, span in 0f64..1e6, count in 1f64..20.0) {
            let ((from, to), ticks) = linear_ticks(Some((least, least + span)), count);
            let slack = 1e-6 * (to - from);
            prop_assert!(from <= least + slack && least + span <= to + slack && from < to);
            prop_assert!((2..=26).contains(&ticks.len()), "{ticks:?}");
        }
    }

    #[test]
    fn what_is_no_number_breaks_a_line() {
        let points = vec![(0.0, 1.0), (1.0, 1.0), (2.0, f64::NAN), (3.0, 1.0), (4.0, 1.0)];
        let mut plot = Plot::new(Axis::linear("s"), Axis::linear("v"));
        plot.series.push(Series::new("a", Colour::BLUE, Mark::Line, points));
        let svg = plot.svg();
        let line = svg
            .split("<path d=\"")
            .find(|line| line.contains("stroke:var(--blue)"))
            .expect("a line");
        let drawn = line.split('"').next().expect("a part");
        assert_eq!(drawn.matches('M').count(), 2, "{drawn}");
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn bars_of_a_row_follow_one_another() {
        let mut plot = Plot::new(Axis::linear("ms"), Axis::names("", vec!["a".into(), "b".into()]));
        let series = |points| Series::new("", Colour::BLUE, Mark::Bar, points);
        plot.series = vec![series(vec![(3.0, 0.0), (5.0, 1.0)]), series(vec![(4.0, 0.0)])];
        let spans: Vec<_> = plot.bars().map(|bar| (bar.row, bar.start, bar.end)).collect();
        assert_eq!(spans, [(0.0, 0.0, 3.0), (1.0, 0.0, 5.0), (0.0, 3.0, 7.0)]);
    }

    #[test]
    fn no_text_becomes_markup() {
        let mut plot = Plot::new(Axis::linear("<x>"), Axis::names("", vec!["<b>".into()]));
        let titles = vec!["<i>".to_owned()];
        let series = Series::new("<s>", Colour::RED, Mark::Dot, vec![(1.0, 0.0)]);
        plot.series.push(Series { titles, ..series });
        plot.rules.push((0.0, "<r>".into()));
        let file = plot.file();
        for text in ["<x>", "<b>", "<i>", "<s>", "<r>"] {
            assert!(!file.contains(text), "{text}");
        }
        assert!(file.contains("&lt;i&gt;"));
    }
}
