//! A plot's legend: the names of its series, each with its mark, in as many rows as they need.

use std::fmt::Write;

use super::svg::label;
use super::{Mark, Plot, Series};

/// A legend as drawn, and its rows.
pub(super) struct Legend {
    pub(super) svg: String,
    pub(super) rows: usize,
}

impl Plot {
    pub(super) fn legend(&self, width: f64) -> Legend {
        let mut legend = Legend { svg: String::new(), rows: 0 };
        let mut at = width;
        for series in self.series.iter().filter(|series| !series.name.is_empty()) {
            let wide = 26.0 + 6.6 * series.name.chars().count() as f64;
            if at + wide > width {
                legend.rows += 1;
                at = 0.0;
            }
            let place = (at, 12.0 + 18.0 * legend.rows as f64);
            mark(&mut legend.svg, series, place);
            label(&mut legend.svg, (place.0 + 16.0, place.1), "start", &series.name);
            at += wide;
        }
        legend
    }
}

/// The mark of a series before its name.
fn mark(svg: &mut String, series: &Series, (x, y): (f64, f64)) {
    let style = match series.mark {
        Mark::Ring => format!("fill:none;stroke:var({})", series.colour.0),
        _ => format!("fill:var({})", series.colour.0),
    };
    // Writing to a string cannot fail.
    let _ = match series.mark {
        Mark::Dot | Mark::Ring => write!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" style=\"{style}\"/>",
            x + 5.0,
            y - 4.0
        ),
        Mark::Line | Mark::Step => write!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"12\" height=\"3\" style=\"{style}\"/>",
            y - 5.5
        ),
        Mark::Area | Mark::Bar => write!(
            svg,
            "<rect x=\"{x:.1}\" y=\"{:.1}\" width=\"11\" height=\"11\" style=\"{style}\"/>",
            y - 10.0
        ),
    };
}
