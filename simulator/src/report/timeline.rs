//! One simulated run over time: the link, what was sent, how long answers took, and the backlog.

use std::fmt::Write;

use crate::plot::{Axis, Colour, Mark, Plot, Series, escape};
use crate::results::{AnswerArm, SimulatedRun, Timeline};

/// Link, choices and latencies of one run over time.
pub(super) fn timeline(controller: &str, seed: u64, run: &SimulatedRun, deadline: f64) -> String {
    let line = &run.timeline;
    if line.is_empty() {
        return String::new();
    }
    let course = Course::new(line);
    let (points, latencies) = course.frames(deadline);
    let mut plots = vec![course.rates(), points, latencies];
    plots.extend(course.backlog());
    let thinned = match line.every {
        1 => String::new(),
        every => format!(", one frame of {every}"),
    };
    let mut html = format!("<h3>{} over time (seed {seed}{thinned})</h3>", escape(controller));
    let longest = course.names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    for mut plot in plots {
        plot.margin = 14.0 + 6.6 * longest as f64;
        let _ = write!(html, "<figure>{}</figure>", plot.svg());
    }
    html
}

/// A time line with what its plots have in common.
struct Course<'a> {
    line: &'a Timeline,
    /// When the last frame was captured, in whole seconds.
    end: f64,
    /// Names of the points, the one whose frames are smallest first.
    names: Vec<String>,
}

impl<'a> Course<'a> {
    fn new(line: &'a Timeline) -> Course<'a> {
        let captured = line.captured_ms.iter().map(|ms| ms / 1e3);
        let last = captured.max_by(f64::total_cmp);
        Course { line, end: last.unwrap_or(1.0).ceil(), names: by_size(line) }
    }

    fn rows(&self) -> std::ops::Range<usize> {
        0..self.line.len()
    }

    fn over_time(&self) -> Axis {
        Axis::linear("s").covering(&[0.0, self.end])
    }

    /// When the frame of a row ended (s).
    fn ended(&self, row: usize) -> f64 {
        (self.line.ended_ms[row] / 1e3).min(self.end)
    }

    /// What the link could carry, and the controller's estimate of it.
    fn rates(&self) -> Plot {
        let line = self.line;
        let mut rates = Plot::new(self.over_time(), Axis::linear("kbit/s").covering(&[0.0]));
        let capacity = self.rows().map(|row| (self.ended(row), line.capacity_kbits[row])).collect();
        rates.series.push(Series::new("the link can carry", Colour::SKY, Mark::Area, capacity));
        // An estimate may be far off; the link itself has to be seen.
        let most = 1.5 * line.capacity_kbits.iter().copied().fold(0.0, f64::max);
        let estimates = || line.estimate_kbits.iter().flatten();
        if estimates().next().is_some() {
            let name = match estimates().any(|kbits| *kbits > most) {
                true => format!("the controller’s estimate, up to {most:.0}"),
                false => "the controller’s estimate".to_owned(),
            };
            let points = self.rows().map(|row| {
                (
                    self.ended(row),
                    line.estimate_kbits[row].map_or(f64::NAN, |kbits| kbits.min(most)),
                )
            });
            rates.series.push(Series::new(&name, Colour::ORANGE, Mark::Step, points.collect()));
        }
        rates
    }

    /// What was sent of each frame, and how long its answer took.
    fn frames(&self, deadline: f64) -> (Plot, Plot) {
        let line = self.line;
        let mut points =
            Plot::new(self.over_time(), Axis::names("sent, or run", self.names.clone()));
        points.size.1 = 96.0 + 17.0 * self.names.len() as f64;
        let latest = Axis::linear("ms from capture to output").covering(&[0.0, deadline]);
        let mut latencies = Plot::new(self.over_time(), latest);
        latencies.rules.push((deadline, "deadline".into()));
        for (name, colour, is) in ENDS {
            let rows: Vec<usize> = self.rows().filter(|&row| is(line, row)).collect();
            let at = |row: usize| line.captured_ms[row] / 1e3;
            let series = |rows: Vec<usize>, value: &dyn Fn(usize) -> f64| Series {
                titles: rows.iter().map(|&row| title(line, row)).collect(),
                ..Series::new(
                    name,
                    colour,
                    Mark::Dot,
                    rows.iter().map(|&row| (at(row), value(row))).collect(),
                )
            };
            let of_points = rows.iter().copied().filter(|&row| line.point[row].is_some());
            points.series.push(series(of_points.collect(), &|row| self.place(row)));
            let answered = rows.iter().copied().filter(|&row| line.arm[row].is_some());
            let latency = |row: usize| line.latency_ms(row).unwrap_or(f64::NAN);
            latencies.series.push(series(answered.collect(), &latency));
        }
        for plot in [&mut points, &mut latencies] {
            plot.series.retain(|series| !series.points.is_empty());
        }
        (points, latencies)
    }

    /// Where the point of a row is among the names.
    fn place(&self, row: usize) -> f64 {
        let name = self.line.point[row].map(|point| &self.line.points[point]);
        let place = self.names.iter().position(|known| Some(known) == name);
        place.map_or(f64::NAN, |place| place as f64)
    }

    /// What waited before the link, if anything ever did.
    fn backlog(&self) -> Option<Plot> {
        let bytes = |row: usize| self.line.backlog_bytes[row];
        self.rows().any(|row| bytes(row) > 0).then(|| {
            let axis = Axis::linear("bytes waiting before the link").covering(&[0.0]);
            let mut backlog = Plot::new(self.over_time(), axis);
            backlog.size.1 = 150.0;
            let waiting = self.rows().map(|row| (self.ended(row), bytes(row) as f64)).collect();
            backlog.series.push(Series::new("", Colour::VIOLET, Mark::Area, waiting));
            backlog
        })
    }
}

/// Final outcomes that are drawn apart, each with its colour.
type End = (&'static str, Colour, fn(&Timeline, usize) -> bool);
const ENDS: [End; 4] = [
    ("network in time", Colour::BLUE, |line, row| {
        line.arm[row].is_some_and(AnswerArm::is_remote) && !line.missed[row]
    }),
    ("on the device", Colour::GREY, |line, row| {
        line.arm[row].is_some_and(|arm| !arm.is_remote()) && !line.missed[row]
    }),
    ("missed", Colour::RED, |line, row| line.missed[row]),
    ("no answer", Colour::INK, |line, row| line.arm[row].is_none() && !line.missed[row]),
];

/// Names of the points, the one whose frames are smallest first.
fn by_size(line: &Timeline) -> Vec<String> {
    let mut sizes = vec![(0u64, 0u64); line.points.len()];
    for (point, &bytes) in line.point.iter().zip(&line.bytes) {
        if let Some(point) = *point {
            sizes[point].0 += u64::from(bytes);
            sizes[point].1 += 1;
        }
    }
    let mean = |at: &usize| sizes[*at].0 as f64 / sizes[*at].1.max(1) as f64;
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by(|a, b| mean(a).total_cmp(&mean(b)));
    order.into_iter().map(|at| line.points[at].clone()).collect()
}

fn title(line: &Timeline, row: usize) -> String {
    let point = line.point[row].map_or("nothing", |point| &line.points[point]);
    let mut text = format!("frame {}", line.frame[row]);
    if line.camera.iter().any(|&camera| camera > 0) {
        let _ = write!(text, " of camera {}", line.camera[row]);
    }
    let _ = write!(text, ": {point}, {} B, {}", line.bytes[row], line.reasons[line.reason[row]]);
    if let Some(ms) = line.latency_ms(row) {
        let _ = write!(text, ", {ms:.1} ms");
    }
    text
}
