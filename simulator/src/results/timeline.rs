//! A run frame by frame, as plots and tables need it.

use std::collections::BTreeMap;

use isthmus_head_client::{FrameOutcome, Run, Verdict};
use isthmus_proto::{Arm, Content};
use serde::{Deserialize, Serialize};

use super::place;
use crate::scenario::Prepared;
use crate::world::FrameEnd;

/// Most frames of a run that its time line has.
const MOST_FRAMES: u64 = 1_000;

/// A run frame by frame, in order of their ends; one column for each thing that is known, all
/// equally long.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timeline {
    /// One frame of so many is here, in order of capture; 1 where all are.
    pub every: u64,
    /// Names that `point` counts from 0.
    pub points: Vec<String>,
    /// Names that `reason` counts from 0.
    pub reasons: Vec<String>,
    /// The device.
    pub camera: Vec<u32>,
    /// Its frame, from 0.
    pub frame: Vec<u64>,
    /// When it was captured (ms).
    pub captured_ms: Vec<f64>,
    /// When it ended, which is when link and estimate were looked at (ms).
    pub ended_ms: Vec<f64>,
    /// The uplink's rate (kbit/s).
    pub capacity_kbits: Vec<f64>,
    /// The controller's estimate of that (kbit/s).
    pub estimate_kbits: Vec<Option<f64>>,
    /// Its estimate of the round trip (ms).
    pub round_trip_ms: Vec<Option<f64>>,
    /// What waits before the uplink or is being sent (bytes, headers included).
    pub backlog_bytes: Vec<u64>,
    /// What was sent, or the head that was run: a place in `points`.
    pub point: Vec<Option<usize>>,
    /// Bytes sent, headers apart; 0 if none were.
    pub bytes: Vec<u32>,
    /// How it ended: a place in `reasons`.
    pub reason: Vec<usize>,
    /// Who answered: `split`, `exit`, or nobody.
    pub arm: Vec<Option<AnswerArm>>,
    /// How good the answer is, 0 to 1; 0 without one in time.
    pub quality: Vec<f32>,
    /// Whether it was sent and no network answer arrived by the deadline.
    pub missed: Vec<bool>,
}

/// Who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AnswerArm {
    /// The network, of a head's features.
    Split,
    /// The network, of a compressed picture.
    Image,
    /// The head's exit.
    Exit,
    /// The full network on the device.
    Local,
}

impl AnswerArm {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            AnswerArm::Split => "split",
            AnswerArm::Image => "image",
            AnswerArm::Exit => "exit",
            AnswerArm::Local => "local",
        }
    }

    /// Whether it answers from the server.
    pub fn is_remote(self) -> bool {
        matches!(self, AnswerArm::Split | AnswerArm::Image)
    }
}

impl Timeline {
    /// Frames that are here.
    pub fn len(&self) -> usize {
        self.frame.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.frame.is_empty()
    }

    /// From capture to output of the frame at `row` (ms); `None` without an answer.
    pub fn latency_ms(&self, row: usize) -> Option<f64> {
        self.arm[row].map(|_| self.ended_ms[row] - self.captured_ms[row])
    }

    pub(super) fn check(&self) -> Result<(), String> {
        let rows = self.len();
        let lengths = [
            self.camera.len(),
            self.captured_ms.len(),
            self.ended_ms.len(),
            self.capacity_kbits.len(),
            self.estimate_kbits.len(),
            self.round_trip_ms.len(),
            self.backlog_bytes.len(),
            self.point.len(),
            self.bytes.len(),
            self.reason.len(),
            self.arm.len(),
            self.quality.len(),
            self.missed.len(),
        ];
        let names = self.point.iter().flatten().all(|&at| at < self.points.len())
            && self.reason.iter().all(|&at| at < self.reasons.len());
        match lengths.iter().all(|&length| length == rows) && names && self.every > 0 {
            true => Ok(()),
            false => {
                Err("the time line's columns differ in length, or name what is not there".into())
            }
        }
    }
}

/// Writes down a run as its frames end.
pub(super) struct Recorder<'a> {
    prepared: &'a Prepared,
    pub(super) misses: BTreeMap<String, u64>,
    pub(super) timeline: Timeline,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(prepared: &'a Prepared) -> Self {
        let cameras = u64::from(prepared.scenario().cameras);
        // Coprime to the cameras, so that each has as many frames.
        let least = (prepared.frames()).div_ceil(MOST_FRAMES).max(1);
        let every = (least..).find(|every| gcd(*every, cameras) == 1).unwrap_or(least);
        let timeline = Timeline { every, ..Timeline::default() };
        Recorder { prepared, misses: BTreeMap::new(), timeline }
    }

    pub(super) fn on_end(&mut self, end: &FrameEnd<'_>) {
        let outcome = end.outcome;
        let arm = match outcome.verdict {
            Verdict::Answered { arm, .. } => Some(match arm {
                Arm::Split(_) => AnswerArm::Split,
                Arm::Image => AnswerArm::Image,
                Arm::Exit => AnswerArm::Exit,
                Arm::Local => AnswerArm::Local,
            }),
            Verdict::Dropped(_) => None,
        };
        if end.missed {
            let late = arm.is_some_and(AnswerArm::is_remote);
            let cause = if late { "late" } else { end.reason };
            *self.misses.entry(cause.to_owned()).or_default() += 1;
        }
        let cameras = u64::from(self.prepared.scenario().cameras);
        let line = &mut self.timeline;
        if !(outcome.frame.0 * cameras + u64::from(end.camera)).is_multiple_of(line.every) {
            return;
        }
        let point = point_name(self.prepared, outcome);
        line.point.push(point.map(|name| place(&mut line.points, &name)));
        line.reason.push(place(&mut line.reasons, end.reason));
        line.camera.push(end.camera);
        line.frame.push(outcome.frame.0);
        line.captured_ms.push(outcome.captured.as_micros() as f64 / 1e3);
        line.ended_ms.push(outcome.finished.as_micros() as f64 / 1e3);
        line.capacity_kbits.push(end.capacity.as_bps() as f64 / 1e3);
        line.estimate_kbits.push(end.estimate.map(|link| link.rate.as_bps() as f64 / 1e3));
        let round_trip = |ms: f64| (ms * 1e3).round() / 1e3;
        let round_trip = end.estimate.map(|link| round_trip(link.round_trip.as_secs_f64() * 1e3));
        line.round_trip_ms.push(round_trip);
        line.backlog_bytes.push(end.backlog.as_bytes());
        line.bytes.push(end.bytes);
        line.arm.push(arm);
        line.quality.push(end.quality);
        line.missed.push(end.missed);
    }
}

/// The name of what was sent of a frame, or else of what answered on the device.
pub fn point_name(prepared: &Prepared, outcome: &FrameOutcome) -> Option<String> {
    match (outcome.sent, outcome.run) {
        (Some(Content::Features(point)), _) => Some(prepared.run_name(point.into())),
        (Some(Content::Image(_)), Some(run)) | (None, Some(run @ Run::Local)) => {
            Some(prepared.run_name(run))
        }
        (_, Some(run)) => run.head().map(|head| prepared.exit_name(head)),
        (_, None) => None,
    }
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}
