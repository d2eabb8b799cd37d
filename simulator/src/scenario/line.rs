//! What a controller came to: one line of a table.

use std::collections::BTreeMap;

use serde::Serialize;

use super::controllers::{ORACLE, Role};
use crate::world::RunResult;
use crate::world::oracle::Plan;

/// The columns of a line's numbers, in order, as [`Line::fields`] gives them.
pub(crate) const COLUMNS: [&str; 9] = [
    "frames",
    "on_time_quality",
    "expected_quality",
    "miss_rate",
    "sent",
    "bytes",
    "switches",
    "p50_ms",
    "p95_ms",
];

/// What one controller came to, over all seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// The controller, or `oracle`.
    pub controller: String,
    /// What it stands for.
    #[serde(skip)]
    pub role: Role,
    /// Frames captured.
    pub frames: u64,
    /// Fraction of them that were right and in time.
    pub on_time_quality: f64,
    /// Its expectation over what pictures may come, with less variance; no controller's exceeds the
    /// oracle's.
    pub expected_quality: f64,
    /// Fraction of the frames sent whose network answer did not arrive by the deadline.
    pub miss_rate: f64,
    /// Fraction of all frames that were sent.
    pub sent: f64,
    /// Bytes a frame, over all frames.
    pub bytes: f64,
    /// Changes of operating point, per 100 frames sent.
    pub switches: f64,
    /// Capture to output, median and 95th percentile (ms); none for the oracle.
    pub p50_ms: Option<f64>,
    /// 95th percentile.
    pub p95_ms: Option<f64>,
    /// Frames by their final outcome.
    pub reasons: BTreeMap<String, u64>,
}

impl Line {
    pub(crate) fn of_run(name: &str, role: Role, run: &RunResult) -> Line {
        let frames = run.frames.max(1) as f64;
        let ms = |q| run.latency.quantile(q).map(|micros| micros as f64 / 1e3);
        Line {
            controller: name.to_owned(),
            role,
            frames: run.frames,
            on_time_quality: run.on_time_quality(),
            expected_quality: run.expected_quality(),
            miss_rate: run.miss_rate(),
            sent: run.sent as f64 / frames,
            bytes: run.bytes as f64 / frames,
            switches: 100.0 * run.switches as f64 / run.sent.max(1) as f64,
            p50_ms: ms(0.5),
            p95_ms: ms(0.95),
            reasons: run.reasons.clone(),
        }
    }

    pub(crate) fn of_plan(plan: &Plan) -> Line {
        let frames = plan.frames.max(1) as f64;
        Line {
            controller: ORACLE.into(),
            role: Role::Oracle,
            frames: plan.frames,
            on_time_quality: plan.on_time_quality(),
            expected_quality: plan.expected_quality(),
            miss_rate: 0.0,
            sent: plan.sent as f64 / frames,
            bytes: plan.bytes as f64 / frames,
            switches: 0.0,
            p50_ms: None,
            p95_ms: None,
            reasons: BTreeMap::new(),
        }
    }

    /// Its numbers by [`COLUMNS`]; empty where there is none.
    pub(crate) fn fields(&self) -> [String; COLUMNS.len()] {
        let ms = |ms: Option<f64>| ms.map_or_else(String::new, |ms| ms.to_string());
        [
            self.frames.to_string(),
            self.on_time_quality.to_string(),
            self.expected_quality.to_string(),
            self.miss_rate.to_string(),
            self.sent.to_string(),
            self.bytes.to_string(),
            self.switches.to_string(),
            ms(self.p50_ms),
            ms(self.p95_ms),
        ]
    }
}

/// The lines as a table for people.
pub fn table(lines: &[Line]) -> String {
    let mut text = format!(
        "{:<26} {:>9} {:>10} {:>7} {:>6} {:>8} {:>9} {:>8} {:>8}\n",
        "controller",
        "on-time %",
        "expected %",
        "miss %",
        "sent %",
        "B/frame",
        "switch/%",
        "p50 ms",
        "p95 ms"
    );
    let ms = |ms: Option<f64>| ms.map_or_else(|| "-".into(), |ms| format!("{ms:.1}"));
    for line in lines {
        text += &format!(
            "{:<26} {:>9.2} {:>10.2} {:>7.2} {:>6.1} {:>8.0} {:>9.1} {:>8} {:>8}\n",
            line.controller,
            100.0 * line.on_time_quality,
            100.0 * line.expected_quality,
            100.0 * line.miss_rate,
            100.0 * line.sent,
            line.bytes,
            line.switches,
            ms(line.p50_ms),
            ms(line.p95_ms),
        );
    }
    text
}

/// The lines as CSV.
pub fn csv(lines: &[Line]) -> String {
    let mut table = crate::csv_table::CsvTable::new(&[&["controller"][..], &COLUMNS].concat());
    for line in lines {
        table.row([line.controller.clone()].into_iter().chain(line.fields()));
    }
    table.into_text()
}
