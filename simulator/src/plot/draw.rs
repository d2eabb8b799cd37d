//! A plot drawn: grid and ticks, series, bars, and lines across.

use std::fmt::Write;

use super::axis::Placed;
use super::legend::Legend;
use super::svg::{escape, label, outline, path, title};
use super::{Colour, Mark, Plot, Series};

impl Plot {
    pub(super) fn draw(&self, style: &str) -> String {
        let (width, height) = self.size;
        let legend = self.legend(width);
        let (x, y) = self.axes(&legend);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"plot\" role=\"img\" \
             viewBox=\"0 0 {width} {height}\" aria-label=\"{}\">{style}",
            escape(&format!("{} over {}", self.y.label, self.x.label))
        );
        self.draw_grid(&mut svg, &x, &y);
        svg += &legend.svg;
        for series in &self.series {
            series.draw(&mut svg, &x, &y);
        }
        for bar in self.bars() {
            bar.draw(&mut svg, &x, &y);
        }
        self.draw_rules(&mut svg, &x, &y);
        svg + "</svg>"
    }

    /// Both axes on the drawing, below the legend.
    fn axes(&self, legend: &Legend) -> (Placed<'_>, Placed<'_>) {
        let (width, height) = self.size;
        let all = || self.series.iter().flat_map(|series| &series.points);
        let bars = self.series.iter().any(|series| series.mark == Mark::Bar);
        let xs: Vec<f64> = match bars {
            false => all().map(|point| point.0).collect(),
            true => self.bars().map(|bar| bar.end).chain([0.0]).collect(),
        };
        let rules = self.rules.iter().map(|rule| rule.0);
        let ys = all().map(|point| point.1).chain(rules).collect::<Vec<_>>();
        let top = 22.0 + 19.0 * legend.rows as f64;
        let y = Placed::new(&self.y, &ys, (height - 38.0, top));
        let longest = y.ticks.iter().map(|tick| tick.1.chars().count()).max().unwrap_or(0);
        let left = self.margin.max(14.0 + 6.6 * longest as f64);
        (Placed::new(&self.x, &xs, (left, width - 14.0)), y)
    }

    /// Lines and labels at the ticks, and the axes' names.
    fn draw_grid(&self, svg: &mut String, x: &Placed<'_>, y: &Placed<'_>) {
        let ((left, right), (bottom, top)) = (x.ends, y.ends);
        for (at, text) in &y.ticks {
            let at = y.place(*at);
            path(svg, &format!("M{left:.1} {at:.1}H{right:.1}"), "--grid", "");
            label(svg, (left - 6.0, at + 4.0), "end", text);
        }
        for (at, text) in &x.ticks {
            let at = x.place(*at);
            path(svg, &format!("M{at:.1} {bottom:.1}V{top:.1}"), "--grid", "");
            label(svg, (at, bottom + 16.0), "middle", text);
        }
        label(svg, (0.0, 12.0), "start", &self.y.label);
        label(svg, (right, self.size.1 - 6.0), "end", &self.x.label);
    }

    /// Horizontal and vertical lines across the plot, with their names.
    fn draw_rules(&self, svg: &mut String, x: &Placed<'_>, y: &Placed<'_>) {
        const DASHED: &str = " stroke-dasharray=\"5 4\"";
        let ((left, right), (bottom, top)) = (x.ends, y.ends);
        for (value, name) in &self.rules {
            let at = y.place(*value);
            path(svg, &format!("M{left:.1} {at:.1}H{right:.1}"), "--red", DASHED);
            label(svg, (right, at - 5.0), "end", name);
        }
        for (value, name) in &self.uprights {
            let at = x.place(*value);
            path(svg, &format!("M{at:.1} {bottom:.1}V{top:.1}"), "--red", DASHED);
            label(svg, (at - 5.0, bottom - 6.0), "end", name);
        }
    }

    /// Bars of all series, each behind those before it in its row.
    pub(super) fn bars(&self) -> impl Iterator<Item = Bar<'_>> {
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
}

pub(super) struct Bar<'a> {
    colour: Colour,
    pub(super) row: f64,
    pub(super) start: f64,
    pub(super) end: f64,
    title: Option<&'a str>,
}

impl Bar<'_> {
    fn draw(&self, svg: &mut String, x: &Placed<'_>, y: &Placed<'_>) {
        let (from, to) = (x.place(self.start), x.place(self.end));
        let thick = (y.step() * 0.62).min(26.0);
        let _ = write!(
            svg,
            "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{thick:.1}\" \
             style=\"fill:var({})\">{}</rect>",
            y.place(self.row) - thick / 2.0,
            (to - from).max(0.0),
            self.colour.0,
            title(self.title)
        );
    }
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
            Mark::Dot | Mark::Ring => self.draw_dots(svg, place),
            Mark::Bar => {}
        }
    }

    fn draw_dots(&self, svg: &mut String, place: impl Fn(&(f64, f64)) -> (f64, f64)) {
        let Colour(colour) = self.colour;
        let style = match self.mark {
            Mark::Dot => format!("fill:var({colour})"),
            _ => format!("fill:none;stroke:var({colour});stroke-width:1.3"),
        };
        let _ = write!(svg, "<g style=\"{style}\">");
        let titles = self.titles.iter().map(Some).chain(std::iter::repeat(None));
        let finite = |point: &(f64, f64)| point.0.is_finite() && point.1.is_finite();
        for (point, text) in self.points.iter().zip(titles).filter(|(point, _)| finite(point)) {
            let (x, y) = place(point);
            let text = title(text.map(String::as_str));
            let _ = write!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.6\">{text}</circle>");
        }
        *svg += "</g>";
    }

    /// The points between those that are not numbers.
    fn runs(&self) -> impl Iterator<Item = &[(f64, f64)]> {
        let runs = self.points.split(|point| !(point.0.is_finite() && point.1.is_finite()));
        runs.filter(|run| !run.is_empty())
    }
}
