//! Axes: ranges of round numbers, and where a value lies on the drawing.

use super::{Axis, Scale};

/// An axis with its place on the drawing.
pub(super) struct Placed<'a> {
    scale: &'a Scale,
    /// Least and greatest value, logarithms on a logarithmic scale.
    range: (f64, f64),
    /// Their places.
    pub(super) ends: (f64, f64),
    pub(super) ticks: Vec<(f64, String)>,
}

impl<'a> Placed<'a> {
    pub(super) fn new(axis: &'a Axis, values: &[f64], ends: (f64, f64)) -> Placed<'a> {
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

    pub(super) fn place(&self, value: f64) -> f64 {
        let (least, most) = self.range;
        let value = match self.scale {
            Scale::Log if value > 0.0 => value.log10(),
            Scale::Log => least,
            _ => value,
        };
        let fraction = ((value - least) / (most - least)).clamp(0.0, 1.0);
        self.ends.0 + fraction * (self.ends.1 - self.ends.0)
    }

    /// Pixels between two names.
    pub(super) fn step(&self) -> f64 {
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
pub(super) fn linear_ticks(
    ends: Option<(f64, f64)>,
    count: f64,
) -> ((f64, f64), Vec<(f64, String)>) {
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
pub(super) fn log_ticks(ends: Option<(f64, f64)>) -> ((f64, f64), Vec<(f64, String)>) {
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
