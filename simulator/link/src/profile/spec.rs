//! The form of a link's file.
//!
//! Durations are written as `"20ms"` or `"1.5s"`; a key with its unit in the name, such as `delay_ms`,
//! takes a plain number as well.

use std::path::PathBuf;

use serde::Deserialize;

use crate::AtEnd;
use crate::duration::{
    list_of_seconds, milliseconds, optional_milliseconds, optional_seconds, seconds,
};
use crate::trace::Direction;

/// A path in both directions, as its file says it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PathSpec {
    /// For people.
    pub description: String,
    /// Where the numbers come from, or that they are assumed.
    pub source: String,
    /// From the device to the server.
    pub uplink: LinkSpec,
    /// From the server to the device.
    pub downlink: LinkSpec,
    /// When the device's address changes, as the server sees it; never by default.
    #[serde(default)]
    pub rebindings: RebindingSpec,
}

/// When a device's address changes, as the server sees it: a NAT on the path gives it another port.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RebindingSpec {
    /// `at`: at these times (s).
    #[serde(rename = "at", alias = "at_s", deserialize_with = "list_of_seconds")]
    pub at_s: Vec<f64>,
    /// `every`: and so often (s), for the first time after as long.
    #[serde(rename = "every", alias = "every_s", deserialize_with = "optional_seconds")]
    pub every_s: Option<f64>,
}

/// One direction of a path, as its file says it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LinkSpec {
    /// `{ kbits = … }`, `{ trace = "FILE", … }` or `{ markov = [{ kbits = …, seconds = … }, …] }`.
    pub rate: RateSpec,
    /// `delay`: time from leaving the queue to arriving (ms).
    #[serde(default, rename = "delay", alias = "delay_ms", deserialize_with = "milliseconds")]
    pub delay_ms: f64,
    /// How that varies.
    #[serde(default)]
    pub jitter: JitterSpec,
    /// Packets that leave and never arrive.
    #[serde(default)]
    pub loss: LossSpec,
    /// What waits.
    #[serde(default)]
    pub queue: QueueSpec,
    /// Probability that a packet arrives twice.
    #[serde(default)]
    pub duplication: f64,
    /// Probability that a packet arrives damaged.
    #[serde(default)]
    pub corruption: f64,
    /// When nothing is sent.
    #[serde(default)]
    pub outages: Vec<OutageSpec>,
}

/// A rate; exactly one of `kbits`, `trace` and `markov` is given.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateSpec {
    /// Constant (kbit/s).
    pub kbits: Option<f64>,
    /// A trace file, by its path from the file that names it.
    pub trace: Option<PathBuf>,
    /// States of a Markov-modulated rate, the first one first.
    pub markov: Option<Vec<StateSpec>>,
    /// Multiplies a trace's rates; 1 by default.
    pub scale: Option<f64>,
    /// `offset`: where in a trace to start (s); 0 by default.
    #[serde(default, rename = "offset", alias = "offset_s", deserialize_with = "optional_seconds")]
    pub offset_s: Option<f64>,
    /// After a trace's end, `loop` (the default) or `once`: its last rate for ever.
    pub at_end: Option<AtEnd>,
    /// Column of a CSV trace's time.
    pub time_column: Option<String>,
    /// Column of a CSV trace's rate.
    pub rate_column: Option<String>,
    /// Which direction of a JSON trace; `uplink` by default.
    pub direction: Option<Direction>,
    /// `drawn`: after how long a drawn rate repeats (s); an hour by default.
    #[serde(default, rename = "drawn", alias = "drawn_s", deserialize_with = "optional_seconds")]
    pub drawn_s: Option<f64>,
}

/// A state of a Markov-modulated rate.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StateSpec {
    /// Its rate (kbit/s).
    pub kbits: f64,
    /// `dwell`: mean time in it (s).
    #[serde(rename = "dwell", alias = "seconds", deserialize_with = "seconds")]
    pub seconds: f64,
    /// Weights with which each state follows; by default all others alike.
    pub moves: Option<Vec<f64>>,
}

/// How a delay varies; at most one of the three distributions is given.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JitterSpec {
    /// `uniform`: evenly, by so much less or more (ms).
    #[serde(rename = "uniform", alias = "uniform_ms", deserialize_with = "optional_milliseconds")]
    pub uniform_ms: Option<f64>,
    /// `normal`: normally, with this standard deviation (ms).
    #[serde(rename = "normal", alias = "normal_ms", deserialize_with = "optional_milliseconds")]
    pub normal_ms: Option<f64>,
    /// `exponential`: exponentially on top of the delay, with this mean (ms).
    #[serde(
        rename = "exponential",
        alias = "exponential_ms",
        deserialize_with = "optional_milliseconds"
    )]
    pub exponential_ms: Option<f64>,
    /// Correlation with the packet before, −1 to 1.
    pub correlation: f64,
    /// Whether packets may overtake each other.
    pub reordering: bool,
}

/// Loss: `{ uniform = p }`, or bursts by Gilbert and Elliott.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LossSpec {
    /// Probability of each packet.
    pub uniform: Option<f64>,
    /// Probability of moving from good to bad.
    pub to_bad: Option<f64>,
    /// Probability of moving from bad to good.
    pub to_good: Option<f64>,
    /// Probability of loss while good; 0 by default.
    pub good_loss: Option<f64>,
    /// Probability of loss while bad; 1 by default.
    pub bad_loss: Option<f64>,
}

/// A queue; at most one of `bytes` and `packets` is given, by default 65,536 bytes.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueueSpec {
    /// Most bytes.
    pub bytes: Option<u64>,
    /// Most packets.
    pub packets: Option<usize>,
    /// `drop-tail` (the default), `drop-head`, `codel` or `pie`.
    pub discipline: DisciplineSpec,
    /// `target`: CoDel's or PIE's target (ms); 5 and 15 by default.
    #[serde(rename = "target", alias = "target_ms", deserialize_with = "optional_milliseconds")]
    pub target_ms: Option<f64>,
    /// `interval`: CoDel's interval (ms); 100 by default.
    #[serde(
        rename = "interval",
        alias = "interval_ms",
        deserialize_with = "optional_milliseconds"
    )]
    pub interval_ms: Option<f64>,
}

/// A queue's discipline by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum DisciplineSpec {
    #[default]
    DropTail,
    DropHead,
    #[serde(rename = "codel")]
    CoDel,
    Pie,
}

/// A time without sending.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutageSpec {
    /// `start`: from when (s).
    #[serde(rename = "start", alias = "start_s", deserialize_with = "seconds")]
    pub start_s: f64,
    /// `length`: for how long (s).
    #[serde(rename = "length", alias = "length_s", deserialize_with = "seconds")]
    pub length_s: f64,
}
