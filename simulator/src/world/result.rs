//! What a run comes to, and what can be seen of it on the way.

use std::collections::BTreeMap;

use isthmus_head_client::{FrameOutcome, Histogram, LinkEstimate};
use isthmus_proto::{Bitrate, DataSize};
use serde::{Deserialize, Serialize};

use super::record::ControlVariate;
use crate::link::LinkCounters;

/// The totals of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunResult {
    /// Frames captured.
    pub frames: u64,
    /// Frames whose answer was right and in time.
    #[serde(alias = "right_in_time")]
    pub quality_in_time: f64,
    /// How many of them could be expected, by what a record says of each answer in time.
    pub expected: f64,
    /// The control variate of every head that was run with its frame, which no controller can know
    /// before.
    #[serde(alias = "luck")]
    pub control_variate: ControlVariate,
    /// Frames sent.
    pub sent: u64,
    /// Frames sent whose network answer did not arrive by the deadline.
    pub missed: u64,
    /// Envelopes and packets sent, and probes (bytes).
    pub bytes: u64,
    /// Probes sent.
    pub probes: u64,
    /// Changes of what is sent, from one sent frame of a device to its next.
    pub switches: u64,
    /// From capture to output (µs), of frames with an answer.
    pub latency: Histogram,
    /// Frames by how they ended: the controller's reason, the fallback's, or the cause of a drop.
    pub reasons: BTreeMap<String, u64>,
    /// Packets on the way to the server, by their outcome.
    pub uplink: LinkCounters,
    /// Changes of the devices' addresses, as the server sees them.
    pub rebindings: u64,
    /// Packets that the server sent to an address which was no longer the device's.
    pub misdirected: u64,
}

impl RunResult {
    /// Mean quality of all frames, where one without an answer in time has none: of classes the fraction
    /// that were right and in time.
    pub fn on_time_quality(&self) -> f64 {
        mean(self.quality_in_time, self.frames)
    }

    /// The same run less its control variate, at the `level`-th price of a byte. Heads are chosen before
    /// anything is known about the frame, so what is subtracted is zero in the mean, whoever chooses and
    /// whatever the price.
    #[must_use]
    pub fn less_control_variate(mut self, level: usize) -> RunResult {
        self.expected -= std::mem::take(&mut self.control_variate).of(level);
        self
    }

    /// The fraction of all frames that could be expected to be right and in time.
    pub fn expected_quality(&self) -> f64 {
        self.expected / self.frames.max(1) as f64
    }

    /// Fraction of the frames sent that missed their deadline.
    pub fn miss_rate(&self) -> f64 {
        share(self.missed, self.sent)
    }

    /// Adds another run.
    pub fn merge(&mut self, other: &RunResult) {
        self.frames += other.frames;
        self.quality_in_time += other.quality_in_time;
        self.expected += other.expected;
        self.control_variate = self.control_variate.plus(other.control_variate);
        self.sent += other.sent;
        self.missed += other.missed;
        self.bytes += other.bytes;
        self.probes += other.probes;
        self.switches += other.switches;
        self.latency.merge(&other.latency);
        for (reason, count) in &other.reasons {
            *self.reasons.entry(reason.clone()).or_default() += count;
        }
        self.uplink = self.uplink.plus(&other.uplink);
        self.rebindings += other.rebindings;
        self.misdirected += other.misdirected;
    }
}

/// Sum over all of them, each between 0 and 1.
pub(super) fn mean(sum: f64, count: u64) -> f64 {
    if count == 0 { 0.0 } else { sum / count as f64 }
}

/// Part of a whole.
fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// What an observer sees as a frame ends.
#[derive(Debug)]
pub struct FrameEnd<'a> {
    /// The device.
    pub camera: u32,
    /// The frame's final outcome.
    pub outcome: &'a FrameOutcome,
    /// How it ended: the controller's reason, the fallback's, or the cause of a drop.
    pub reason: &'a str,
    /// How good the answer is, 0 to 1; 0 without one in time.
    pub quality: f32,
    /// Whether it was sent and no network answer arrived by the deadline.
    pub missed: bool,
    /// Bytes that it put on the way to the server, headers apart; 0 if it was not sent.
    pub bytes: u32,
    /// The uplink's rate now.
    pub capacity: Bitrate,
    /// What waits before the uplink or is being sent.
    pub backlog: DataSize,
    /// The estimate of the link by the device's controller.
    pub estimate: Option<LinkEstimate>,
}

/// Sees every frame of a run end, in order of time, and changes nothing.
pub type Observer<'a> = &'a mut dyn FnMut(&FrameEnd<'_>);
