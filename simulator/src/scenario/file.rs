//! The form of a scenario's file, and the scenarios that are built in.

use std::fs;
use std::path::{Path, PathBuf};

use isthmus_head_client::config::{ControllerKind, ObjectiveKind};
use serde::Deserialize;

use super::ScenarioError;
use crate::link::duration::{milliseconds, seconds};
use crate::profile::{LinkSpec, RebindingSpec};
use crate::world::TransportKind;

/// The built-in scenarios, by name.
pub const BUILT_IN: [(&str, &str); 11] = [
    ("one-camera", include_str!("../../../configs/scenarios/one-camera.toml")),
    ("ten-minutes", include_str!("../../../configs/scenarios/ten-minutes.toml")),
    ("gateway", include_str!("../../../configs/scenarios/gateway.toml")),
    ("outage", include_str!("../../../configs/scenarios/outage.toml")),
    ("bluetooth", include_str!("../../../configs/scenarios/bluetooth.toml")),
    ("heat", include_str!("../../../configs/scenarios/heat.toml")),
    ("busy-server", include_str!("../../../configs/scenarios/busy-server.toml")),
    ("metered", include_str!("../../../configs/scenarios/metered.toml")),
    ("nb-iot", include_str!("../../../configs/scenarios/nb-iot.toml")),
    ("lora", include_str!("../../../configs/scenarios/lora.toml")),
    ("fleet", include_str!("../../../configs/scenarios/fleet.toml")),
];

/// A scenario, as its file says it.
///
/// Durations are written as `"300ms"`, `"15s"` or `"2m"`. A key with its unit in the name, such as
/// `deadline_ms`, takes a plain number as well.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// For people.
    pub description: String,
    /// A bundle's folder, or its name in `models/bundles`; frames are drawn from its record of
    /// outcomes.
    pub bundle: Option<PathBuf>,
    /// A record of outcomes instead of a bundle's; the device's times must then be named.
    pub record: Option<PathBuf>,
    /// A built-in device or a TOML file.
    pub device: String,
    /// A built-in link or a TOML file.
    pub link: String,
    /// Replaces the link's uplink.
    pub uplink: Option<LinkSpec>,
    /// Replaces the link's downlink.
    pub downlink: Option<LinkSpec>,
    /// Replaces the link's rebindings.
    pub rebindings: Option<RebindingSpec>,
    /// Devices behind the link; 1 by default.
    #[serde(default = "one")]
    pub cameras: u32,
    /// Whether each device has such a link to itself; by default they share one.
    #[serde(default)]
    pub own_links: bool,
    /// What carries frames: `ideal` (the default) or `quic`.
    #[serde(default)]
    pub transport: TransportKind,
    /// Of each camera.
    pub frames_per_second: f64,
    /// `deadline`: longest time from capture to output (ms).
    #[serde(rename = "deadline", alias = "deadline_ms", deserialize_with = "milliseconds")]
    pub deadline_ms: f64,
    /// Frames of a device that may be sent and unanswered; 4 by default.
    #[serde(default = "four")]
    pub in_flight: usize,
    /// `duration`: for how long frames are captured (s).
    #[serde(rename = "duration", alias = "seconds", deserialize_with = "seconds")]
    pub seconds: f64,
    /// Each decides everything random in one run.
    pub seeds: Vec<u64>,
    /// Whether to compute what could have been reached; true by default. It takes long for many
    /// devices, and there is no bound for links of their own.
    #[serde(default = "yes")]
    pub oracle: bool,
    /// From some moment on the device takes longer.
    #[serde(default)]
    pub slowdowns: Vec<SlowdownSpec>,
    /// The server.
    #[serde(default)]
    pub server: ServerSpec,
    /// What to compare.
    pub controllers: Vec<ControllerTable>,
}

/// A change of the device's speed.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlowdownSpec {
    /// `from`: from when on (s).
    #[serde(rename = "from", alias = "from_s", deserialize_with = "seconds")]
    pub from_s: f64,
    /// How many times as long everything takes.
    pub factor: f64,
}

/// A server.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ServerSpec {
    /// Threads that run the tail.
    pub workers: usize,
    /// Most frames in one run of the tail.
    pub max_batch: usize,
    /// Most frames waiting.
    pub queue: usize,
    /// Most unanswered frames of a device.
    pub max_in_flight: usize,
    /// `decode`: entropy decoding of a frame (ms).
    #[serde(rename = "decode", alias = "decode_ms", deserialize_with = "milliseconds")]
    pub decode_ms: f64,
    /// `tail`: a run of the tail, whatever its batch (ms).
    #[serde(rename = "tail", alias = "tail_ms", deserialize_with = "milliseconds")]
    pub tail_ms: f64,
    /// `tail_per_frame`: what each frame of a batch adds (ms).
    #[serde(
        rename = "tail_per_frame",
        alias = "tail_per_frame_ms",
        deserialize_with = "milliseconds"
    )]
    pub tail_per_frame_ms: f64,
    /// `decompress`: decompressing a picture and preparing it (ms).
    #[serde(rename = "decompress", alias = "decompress_ms", deserialize_with = "milliseconds")]
    pub decompress_ms: f64,
    /// `full`: a run of the full network on pictures, whatever its batch (ms).
    #[serde(rename = "full", alias = "full_ms", deserialize_with = "milliseconds")]
    pub full_ms: f64,
    /// `full_per_frame`: what each picture of a batch adds (ms).
    #[serde(
        rename = "full_per_frame",
        alias = "full_per_frame_ms",
        deserialize_with = "milliseconds"
    )]
    pub full_per_frame_ms: f64,
}

impl Default for ServerSpec {
    fn default() -> Self {
        ServerSpec {
            workers: 1,
            max_batch: 8,
            queue: 256,
            max_in_flight: 32,
            decode_ms: 0.3,
            tail_ms: 3.0,
            tail_per_frame_ms: 4.0,
            decompress_ms: 1.0,
            full_ms: 3.0,
            full_per_frame_ms: 8.0,
        }
    }
}

impl ServerSpec {
    /// Its times by name (ms).
    pub(super) fn times(&self) -> [(&'static str, f64); 6] {
        [
            ("decode_ms", self.decode_ms),
            ("tail_ms", self.tail_ms),
            ("tail_per_frame_ms", self.tail_per_frame_ms),
            ("decompress_ms", self.decompress_ms),
            ("full_ms", self.full_ms),
            ("full_per_frame_ms", self.full_per_frame_ms),
        ]
    }
}

/// A controller to compare.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerTable {
    /// Which one.
    pub kind: ControllerKind,
    /// Of `fixed`: an operating point such as `s16/w100/c16/b6` (stride at the split, width of the
    /// encoder in percent, latent channels sent, bits per symbol), a compressed picture such as
    /// `image/webp/160/q35`, or `local`, the full network on the device; without one, every rung of the
    /// ladder and every exit of its heads, each by itself.
    pub point: Option<String>,
    /// Of `fixed`: the head, such as `s16/w25`, whose exit is the fallback while a picture is sent.
    pub exit: Option<String>,
    /// Of `mpc`: fraction of frames that may miss their deadline; 0.01 by default.
    pub target_miss: Option<f64>,
    /// Of `mpc`: frames a plan looks ahead; 4 by default.
    pub horizon: Option<usize>,
    /// Of `mpc`: `quality`, the default, `bytes` or `energy`, which are spared at `quality_floor`.
    pub objective: Option<ObjectiveKind>,
    /// Of `mpc`: fraction of frames expected right and in time that is kept.
    #[serde(alias = "accuracy_floor")]
    pub quality_floor: Option<f64>,
    /// Of `mpc`, for energy: what the device needs while it computes (W).
    pub watts: Option<f64>,
    /// Of `mpc`, for energy: what it needs to send a megabyte (J).
    pub joules_per_megabyte: Option<f64>,
}

impl ControllerTable {
    /// A key that is there and says nothing to a controller of this kind.
    pub(super) fn idle_key(&self) -> Option<&'static str> {
        let (fixed, mpc) = (ControllerKind::Fixed, ControllerKind::Mpc);
        let keys = [
            ("point", fixed, self.point.is_some()),
            ("exit", fixed, self.exit.is_some()),
            ("target_miss", mpc, self.target_miss.is_some()),
            ("horizon", mpc, self.horizon.is_some()),
            ("objective", mpc, self.objective.is_some()),
            ("quality_floor", mpc, self.quality_floor.is_some()),
            ("watts", mpc, self.watts.is_some()),
            ("joules_per_megabyte", mpc, self.joules_per_megabyte.is_some()),
        ];
        let idle = keys.into_iter().find(|&(_, of, given)| given && of != self.kind);
        idle.map(|(key, ..)| key)
    }
}

fn one() -> u32 {
    1
}

fn yes() -> bool {
    true
}

fn four() -> usize {
    4
}

/// The names of the built-in scenarios.
pub(super) fn names() -> String {
    BUILT_IN.map(|(name, _)| name).join(", ")
}

impl Scenario {
    /// The text of the scenario file at this path, or of the built-in scenario of this name.
    pub fn text(name: &Path) -> Result<String, ScenarioError> {
        let built_in = || BUILT_IN.iter().find(|(built_in, _)| Path::new(built_in) == name);
        match fs::read_to_string(name) {
            Ok(text) => Ok(text),
            Err(_) if built_in().is_some() => {
                Ok(built_in().map_or_else(String::new, |(_, text)| (*text).to_owned()))
            }
            Err(_) if name.extension().is_none() && !name.exists() => {
                Err(ScenarioError::Unknown { name: name.display().to_string() })
            }
            Err(cause) => Err(ScenarioError::Io { file: name.to_owned(), cause }),
        }
    }

    /// Reads the scenario file at this path, or the built-in scenario of this name.
    pub fn read(name: &Path) -> Result<Scenario, ScenarioError> {
        Self::parse(&Self::text(name)?, name)
    }

    /// The scenario that is the text of `file`.
    pub fn parse(text: &str, file: &Path) -> Result<Scenario, ScenarioError> {
        toml::from_str(text).map_err(|cause| ScenarioError::Syntax {
            file: file.to_owned(),
            cause: Box::new(cause),
        })
    }
}
