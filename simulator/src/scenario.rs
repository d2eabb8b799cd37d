//! Scenarios: what to simulate, as a file.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use isthmus_head_client::config::ObjectiveKind;
use isthmus_head_client::{Controller, Fixed, Greedy, ImageRun, LinUcb, Mpc, MpcConfig, Run};
use isthmus_models::{
    Bundle, BundleError, ImageSpec, InputSpec, OUTCOMES, Outcomes, OutcomesError,
};
use isthmus_proto::Timestamp;
use isthmus_tail_server::batcher::BatcherConfig;
use serde::{Deserialize, Serialize};

use crate::profile::{LinkSpec, PathSpec, ProfileError, RebindingSpec};
use crate::results::digest;
use crate::world::oracle::{self, Knowledge, Plan};
use crate::world::{
    self, Device, DeviceError, DeviceSpec, Macs, Observer, Record, RecordError, RunResult,
    ServerConfig, TransportKind, WorldConfig,
};

/// The name of the oracle among the controllers.
pub const ORACLE: &str = "oracle";

/// Why a scenario cannot be run. Every message names the file or the key.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// A file cannot be read.
    #[error("{}: {cause}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// No TOML, or a key that is missing, unknown or of the wrong type.
    #[error("{}: {cause}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Where and what.
        cause: Box<toml::de::Error>,
    },
    /// A value that cannot be meant.
    #[error("{}: {key}: {problem}", file.display())]
    Value {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// What was found and what is expected.
        problem: String,
    },
    /// The link.
    #[error("link: {0}")]
    Link(ProfileError),
    /// The device.
    #[error("device: {0}")]
    Device(DeviceError),
    /// The bundle.
    #[error("bundle: {0}")]
    Bundle(Box<BundleError>),
    /// The record of outcomes.
    #[error("{}: {cause}", file.display())]
    Outcomes {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        cause: OutcomesError,
    },
    /// The record does not suit.
    #[error("{}: {cause}", file.display())]
    Record {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        cause: RecordError,
    },
}

/// A scenario, as its file says it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// For people.
    pub description: String,
    /// A bundle's folder, or its name in `models/bundles`; its `outcomes.csv.zst` is played.
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
    /// From capture to output (ms).
    pub deadline_ms: f64,
    /// Frames of a device that may be sent and unanswered; 4 by default.
    #[serde(default = "four")]
    pub in_flight: usize,
    /// For how long frames are captured (s).
    pub seconds: f64,
    /// Each decides everything random in one run.
    pub seeds: Vec<u64>,
    /// Whether to tell what could have been reached; true by default. It takes long for many
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
    pub controllers: Vec<ControllerSpec>,
}

/// A change of the device's speed.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SlowdownSpec {
    /// From when on (s).
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
    /// Entropy decoding of a frame (ms).
    pub decode_ms: f64,
    /// A run of the tail, whatever its batch (ms).
    pub tail_ms: f64,
    /// What each frame of a batch adds (ms).
    pub tail_per_frame_ms: f64,
    /// Decompressing a picture and preparing it (ms).
    pub decompress_ms: f64,
    /// A run of the uncut network on pictures, whatever its batch (ms).
    pub full_ms: f64,
    /// What each picture of a batch adds (ms).
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

/// A controller to compare.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum ControllerSpec {
    /// Always the same.
    Fixed {
        /// An operating point such as `s16/w100/c16/b6`, a compressed picture such as
        /// `image/webp/160/q35`, or `local`, the uncut network on the device; without one, every rung
        /// of the ladder and every exit of its heads, each by itself.
        point: Option<String>,
        /// The head, such as `s16/w25`, whose exit stands by while a picture is sent.
        exit: Option<String>,
    },
    /// The most accurate that fits the smoothed throughput.
    Greedy {},
    /// A contextual bandit that corrects what is predicted.
    LinUcb {},
    /// Model-predictive control.
    Mpc {
        /// Share of frames that may miss their deadline; 0.01 by default.
        target_miss: Option<f64>,
        /// Frames a plan looks ahead; 4 by default.
        horizon: Option<usize>,
        /// `accuracy`, the default, `bytes` or `energy`, which are spared at `accuracy_floor`.
        #[serde(default)]
        objective: ObjectiveKind,
        /// Share of frames expected right and in time that is kept.
        accuracy_floor: Option<f64>,
        /// For energy: what the device needs while it computes (W).
        watts: Option<f64>,
        /// For energy: what it needs to send a megabyte (J).
        joules_per_megabyte: Option<f64>,
    },
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

/// A name that no controller of a scenario has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: the scenario compares no such controller; there is {known}")]
pub struct UnknownController {
    name: String,
    known: String,
}

/// A scenario that was checked, with all it needs.
pub struct Prepared {
    scenario: Scenario,
    folder: PathBuf,
    device: Device,
    path: PathSpec,
    path_folder: PathBuf,
    record: Record,
    /// SHA-256 of the record's file.
    record_digest: String,
    contestants: Vec<Contestant>,
    /// What the contestants may run, and the oracle.
    runs: Vec<Run>,
}

/// A controller that is compared.
#[derive(Clone, Debug)]
pub struct Contestant {
    name: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Fixed(Fixed),
    Greedy,
    LinUcb,
    Mpc(MpcConfig),
}

impl Contestant {
    /// Its name, such as `mpc` or `fixed s16/w100/c16/b6`; no two of a scenario have the same.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// What one controller came to, over all seeds.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Line {
    /// The controller, or `oracle`.
    pub controller: String,
    /// Frames captured.
    pub frames: u64,
    /// Share of them that were right and in time.
    pub on_time_accuracy: f64,
    /// The same as it could be expected, without luck; no controller's exceeds the oracle's.
    pub expected_accuracy: f64,
    /// Share of the frames sent whose network answer did not arrive by the deadline.
    pub miss_rate: f64,
    /// Share of all frames that were sent.
    pub sent: f64,
    /// Bytes a frame, over all frames.
    pub bytes: f64,
    /// Changes of operating point, per 100 frames sent.
    pub switches: f64,
    /// Capture to output, median and 95th percentile (ms); none for the oracle.
    pub p50_ms: Option<f64>,
    /// 95th percentile.
    pub p95_ms: Option<f64>,
    /// Frames by how they ended.
    pub reasons: BTreeMap<String, u64>,
}

impl Scenario {
    /// Reads a scenario file.
    pub fn read(file: &Path) -> Result<Scenario, ScenarioError> {
        let text = fs::read_to_string(file)
            .map_err(|cause| ScenarioError::Io { file: file.to_owned(), cause })?;
        Self::parse(&text, file)
    }

    /// The scenario that is the text of `file`.
    pub fn parse(text: &str, file: &Path) -> Result<Scenario, ScenarioError> {
        toml::from_str(text).map_err(|cause| ScenarioError::Syntax {
            file: file.to_owned(),
            cause: Box::new(cause),
        })
    }

    /// Checks every value and reads what the scenario names; paths count from `file`.
    pub fn prepare(self, file: &Path) -> Result<Prepared, ScenarioError> {
        let folder = file.parent().unwrap_or(Path::new("")).to_owned();
        let bad = |key: &str, problem: String| ScenarioError::Value {
            file: file.to_owned(),
            key: key.to_owned(),
            problem,
        };
        let within = |key: &str, value: f64, low: f64, high: f64| {
            let problem = || format!("{value} is not within {low} to {high}");
            if (low..=high).contains(&value) { Ok(()) } else { Err(bad(key, problem())) }
        };
        within("cameras", f64::from(self.cameras), 1.0, 100_000.0)?;
        within("frames_per_second", self.frames_per_second, 0.001, 1_000.0)?;
        within("deadline_ms", self.deadline_ms, 1.0, 3.6e6)?;
        within("seconds", self.seconds, 0.001, 1e6)?;
        within("in_flight", self.in_flight as f64, 1.0, 4_096.0)?;
        if self.seeds.is_empty() {
            return Err(bad("seeds", "at least one is needed".into()));
        }
        if self.own_links && self.oracle {
            return Err(bad("oracle", "with own_links it has to be false".into()));
        }
        if self.controllers.is_empty() {
            return Err(bad("controllers", "at least one is needed".into()));
        }
        let mut slowdowns = Vec::new();
        for (at, SlowdownSpec { from_s, factor }) in self.slowdowns.iter().enumerate() {
            within(&format!("slowdowns[{at}].from_s"), *from_s, 0.0, 1e6)?;
            within(&format!("slowdowns[{at}].factor"), *factor, 0.01, 100.0)?;
            slowdowns.push((Timestamp::from_micros((from_s * 1e6) as u64), *factor));
        }
        slowdowns.sort_by_key(|(from, _)| *from);
        within("server.workers", self.server.workers as f64, 1.0, 65_536.0)?;
        for (name, time) in self.server.times() {
            within(&format!("server.{name}"), time, 0.0, 1e6)?;
        }

        let device = if self.device.ends_with(".toml") {
            folder.join(&self.device).to_string_lossy().into_owned()
        } else {
            self.device.clone()
        };
        let device = DeviceSpec::find(&device).map_err(ScenarioError::Device)?;
        let (record, record_digest, Sizes { macs, input }) =
            self.read_record(&folder, &device, &bad)?;
        let head =
            |(at, name): (&(u8, u8), &String)| (*at, (name.clone(), macs.heads.get(name).copied()));
        let heads = record.heads().iter().map(head).collect();
        let pixels = |image: ImageSpec| {
            let size = input.as_ref().map(|input| image.size(input));
            let (width, height) = size.unwrap_or((image.side, image.side));
            (image, u64::from(width) * u64::from(height))
        };
        let pixels = record.images().map(pixels).collect();
        let device = device
            .to_device(&heads, macs.full, &pixels, slowdowns)
            .map_err(ScenarioError::Device)?;
        let link = if self.link.ends_with(".toml") {
            folder.join(&self.link).to_string_lossy().into_owned()
        } else {
            self.link.clone()
        };
        let (mut path, mut path_folder) = PathSpec::find(&link).map_err(ScenarioError::Link)?;
        if let Some(uplink) = &self.uplink {
            path.uplink = uplink.clone();
            path_folder.clone_from(&folder);
        }
        if let Some(downlink) = &self.downlink {
            path.downlink = downlink.clone();
        }
        if let Some(rebindings) = &self.rebindings {
            path.rebindings = rebindings.clone();
        }
        let mut contestants: Vec<Contestant> = Vec::new();
        let ladder: Vec<Run> = record.ladder().rungs().iter().map(|rung| rung.run).collect();
        let planned = record.ladder().planned().iter().map(|&rung| ladder[rung]);
        let mut runs = ladder.clone();
        let mut add = |name: String, kind: Kind| {
            let alike = contestants.iter().filter(|other| other.name.starts_with(&name)).count();
            let name = if alike == 0 { name } else { format!("{name} ({})", alike + 1) };
            contestants.push(Contestant { name, kind });
        };
        for (at, spec) in self.controllers.iter().enumerate() {
            let key = format!("controllers[{at}]");
            match spec {
                ControllerSpec::Fixed { point: None, exit: None } => {
                    let name = |run| format!("fixed {}", record.name(run));
                    planned.clone().for_each(|run| add(name(run), Kind::Fixed(Fixed::new(run))));
                    for (head, run) in record.ladder_heads() {
                        let name = format!("fixed {}/exit", record.heads()[&head]);
                        add(name, Kind::Fixed(Fixed::exit(run)));
                    }
                }
                ControllerSpec::Fixed { point: Some(name), exit } => {
                    let unknown = |part: &str, name: &str, known: Vec<String>| {
                        let known = known.join(", ");
                        let problem = format!("{name} was not recorded; there is {known}");
                        bad(&format!("{key}.{part}"), problem)
                    };
                    let run = record.run(name);
                    let run = run.ok_or_else(|| unknown("point", name, record.run_names()))?;
                    let run = match (run, exit) {
                        (run, None) => run,
                        (Run::Image(ImageRun { image, .. }), Some(exit)) => {
                            let heads = record.heads();
                            let head = heads.iter().find(|(_, known)| *known == exit);
                            let known = || heads.values().cloned().collect();
                            let head = head.ok_or_else(|| unknown("exit", exit, known()))?;
                            Run::Image(ImageRun { image, exit: Some(*head.0) })
                        }
                        (Run::Head(_) | Run::Local, Some(_)) => {
                            let problem = "is for a picture; only there a head may stand by";
                            return Err(bad(&format!("{key}.exit"), problem.into()));
                        }
                    };
                    add(format!("fixed {}", record.name(run)), Kind::Fixed(Fixed::new(run)));
                    runs.push(run);
                }
                ControllerSpec::Fixed { point: None, exit: Some(_) } => {
                    let problem = "needs the picture behind which it stands by as point";
                    return Err(bad(&format!("{key}.exit"), problem.into()));
                }
                ControllerSpec::Greedy {} => {
                    add("greedy".into(), Kind::Greedy);
                }
                ControllerSpec::LinUcb {} => {
                    add("linucb".into(), Kind::LinUcb);
                }
                ControllerSpec::Mpc {
                    target_miss,
                    horizon,
                    objective,
                    accuracy_floor,
                    watts,
                    joules_per_megabyte,
                } => {
                    let named = objective.with(*accuracy_floor, *watts, *joules_per_megabyte);
                    let default = MpcConfig::default();
                    let config = MpcConfig {
                        target_miss: target_miss.unwrap_or(default.target_miss),
                        horizon: horizon.unwrap_or(default.horizon),
                        interval: Some(Duration::from_secs_f64(1.0 / self.frames_per_second)),
                        objective: named.map_err(|error| bad(&key, error.to_string()))?,
                    };
                    within(&format!("{key}.target_miss"), config.target_miss, 0.001, 0.5)?;
                    within(&format!("{key}.horizon"), config.horizon as f64, 1.0, 16.0)?;
                    let name = match objective {
                        ObjectiveKind::Accuracy => "mpc".to_owned(),
                        spared => format!("mpc {}", spared.name()),
                    };
                    add(name, Kind::Mpc(config));
                }
            }
        }
        let prepared = Prepared {
            scenario: self,
            folder,
            device,
            path,
            path_folder,
            record,
            record_digest,
            contestants,
            runs,
        };
        // Every seed's link is built once, so that what is wrong shows before anything is run.
        prepared.world(prepared.scenario.seeds[0])?;
        Ok(prepared)
    }

    /// The record, its file's digest, and what only a bundle knows. The uncut network may run on a
    /// `device` that is known to be done with it before the deadline.
    fn read_record(
        &self,
        folder: &Path,
        device: &DeviceSpec,
        bad: &impl Fn(&str, String) -> ScenarioError,
    ) -> Result<(Record, String, Sizes), ScenarioError> {
        let (packed, mut sizes, file) = match (&self.bundle, &self.record) {
            (Some(bundle), None) => {
                let near = folder.join(bundle);
                let named = Path::new("models/bundles").join(bundle);
                let dir = if near.is_dir() { near } else { named };
                let unusable = |error| ScenarioError::Bundle(Box::new(error));
                let bundle = Bundle::open(&dir).map_err(unusable)?;
                let packed = bundle.read(OUTCOMES).map_err(unusable)?;
                (packed, Sizes::of_bundle(&bundle), dir.join(OUTCOMES))
            }
            (None, Some(record)) => {
                let file = folder.join(record);
                let packed = fs::read(&file)
                    .map_err(|cause| ScenarioError::Io { file: file.clone(), cause })?;
                (packed, Sizes::default(), file)
            }
            _ => return Err(bad("bundle", "exactly one of bundle and record is needed".into())),
        };
        let local = device.full_time(sizes.macs.full);
        match local.is_some_and(|time| time < self.deadline_ms) {
            true => sizes.macs.full = sizes.macs.full.max(1),
            false => sizes.macs.full = 0,
        }
        let outcomes = Outcomes::unpack(&packed)
            .map_err(|cause| ScenarioError::Outcomes { file: file.clone(), cause })?;
        let record = Record::new(&outcomes, &sizes.macs)
            .map_err(|cause| ScenarioError::Record { file: file.clone(), cause })?;
        Ok((record, digest(&packed), sizes))
    }
}

/// What a record does not tell, and its bundle does.
#[derive(Default)]
struct Sizes {
    macs: Macs,
    /// The networks' input; without it, pictures are taken to be square.
    input: Option<InputSpec>,
}

impl Sizes {
    fn of_bundle(bundle: &Bundle) -> Sizes {
        let manifest = bundle.manifest();
        let heads = manifest.splits.iter().flat_map(|split| {
            let name = |width: &str| format!("{}/{width}", split.name);
            split.widths.iter().map(move |width| (name(&width.name), width.head_macs))
        });
        let macs = Macs { heads: heads.collect(), full: manifest.full.macs };
        Sizes { macs, input: Some(manifest.input.clone()) }
    }
}

impl ServerSpec {
    /// Its times by name (ms).
    fn times(&self) -> [(&'static str, f64); 6] {
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

impl Prepared {
    /// Runs to come: controllers and, where it is wanted, oracle, each with every seed.
    pub fn runs(&self) -> usize {
        let oracle = usize::from(self.scenario.oracle);
        (self.contestants.len() + oracle) * self.scenario.seeds.len()
    }

    /// The controllers that are compared.
    pub fn contestants(&self) -> &[Contestant] {
        &self.contestants
    }

    /// Leaves only those controllers whose name, or its first word, is among `names`.
    pub fn keep(&mut self, names: &[String]) -> Result<(), UnknownController> {
        let is = |it: &Contestant, name: &str| {
            it.name == name || it.name.split(' ').next() == Some(name)
        };
        for name in names {
            if !self.contestants.iter().any(|it| is(it, name)) {
                let known: Vec<_> = self.contestants.iter().map(|it| it.name.as_str()).collect();
                return Err(UnknownController { name: name.clone(), known: known.join(", ") });
            }
        }
        self.contestants.retain(|it| names.iter().any(|name| is(it, name)));
        Ok(())
    }

    /// The scenario.
    pub fn scenario(&self) -> &Scenario {
        &self.scenario
    }

    /// Frames of all cameras that a run captures.
    pub fn frames(&self) -> u64 {
        let Scenario { seconds, frames_per_second, cameras, .. } = self.scenario;
        (seconds * frames_per_second).ceil() as u64 * u64::from(cameras)
    }

    /// The name of what was run.
    pub fn run_name(&self, run: Run) -> String {
        self.record.name(run)
    }

    /// The name of the exit of a head, by split and width.
    pub fn exit_name(&self, head: (u8, u8)) -> String {
        self.record.heads().get(&head).map_or_else(String::new, |name| format!("{name}/exit"))
    }

    /// SHA-256 of all that a run, or without a contestant the oracle's plan, follows from, but for
    /// the program.
    pub fn digest(
        &self,
        contestant: Option<&Contestant>,
        seed: u64,
    ) -> Result<String, ScenarioError> {
        let kind = contestant.map(|contestant| contestant.kind);
        let text = format!("{} {kind:?} {:?}", self.record_digest, self.world(seed)?);
        Ok(digest(text.as_bytes()))
    }

    /// What the scenario is about.
    pub fn description(&self) -> &str {
        &self.scenario.description
    }

    /// The world of one seed.
    pub fn world(&self, seed: u64) -> Result<WorldConfig, ScenarioError> {
        let Scenario { server, .. } = &self.scenario;
        let ms = |ms: f64| Duration::from_micros((ms * 1e3).round() as u64);
        let mut path = self.path.to_config(&self.path_folder, seed).map_err(ScenarioError::Link)?;
        if let Some(downlink) = &self.scenario.downlink {
            path.downlink =
                downlink.to_config("downlink", &self.folder, !seed).map_err(ScenarioError::Link)?;
        }
        Ok(WorldConfig {
            cameras: self.scenario.cameras,
            interval: Duration::from_micros((1e6 / self.scenario.frames_per_second).round() as u64),
            duration: Duration::from_secs_f64(self.scenario.seconds),
            deadline: ms(self.scenario.deadline_ms),
            in_flight: self.scenario.in_flight,
            path,
            own_paths: self.scenario.own_links,
            transport: self.scenario.transport,
            device: self.device.clone(),
            server: ServerConfig {
                batcher: BatcherConfig {
                    workers: server.workers,
                    max_batch: server.max_batch,
                    queue: server.queue,
                },
                max_in_flight: server.max_in_flight,
                decode: ms(server.decode_ms),
                tail: ms(server.tail_ms),
                tail_per_frame: ms(server.tail_per_frame_ms),
                decompress: ms(server.decompress_ms),
                full: ms(server.full_ms),
                full_per_frame: ms(server.full_per_frame_ms),
            },
            seed,
        })
    }

    /// Runs everything; `progress` is told after each run. Equal scenarios give equal lines.
    pub fn run(&self, mut progress: impl FnMut(&str)) -> Result<Vec<Line>, ScenarioError> {
        let mut plans = Vec::new();
        for &seed in &self.scenario.seeds {
            let plan = self.scenario.oracle.then(|| self.plan(seed)).transpose()?;
            if plan.is_some() {
                progress(ORACLE);
            }
            plans.push(plan);
        }
        let mut lines = Vec::new();
        for contestant in &self.contestants {
            let mut total = RunResult::default();
            for (&seed, plan) in self.scenario.seeds.iter().zip(&plans) {
                let run = self.play(contestant, seed, None)?;
                // At the oracle's price for bytes luck says most; without one they cost nothing.
                total.merge(&run.without_luck(plan.map_or(0, |plan| plan.luck_level)));
                progress(&contestant.name);
            }
            lines.push(Line::of_run(&contestant.name, &total));
        }
        if self.scenario.oracle {
            let plans = plans.into_iter().flatten();
            lines.push(Line::of_plan(&plans.fold(Plan::default(), Plan::plus)));
        }
        Ok(lines)
    }

    /// The oracle's plan for one seed.
    pub fn plan(&self, seed: u64) -> Result<Plan, ScenarioError> {
        let world = self.world(seed)?;
        Ok(oracle::plan(&world, &self.record, &self.runs, Knowledge::Expected))
    }

    /// One run, seen by an observer.
    pub fn play(
        &self,
        contestant: &Contestant,
        seed: u64,
        observer: Option<Observer<'_>>,
    ) -> Result<RunResult, ScenarioError> {
        let ladder = || Arc::clone(self.record.ladder());
        let controller = |_| -> Box<dyn Controller> {
            match contestant.kind {
                Kind::Fixed(fixed) => Box::new(fixed),
                Kind::Greedy => Box::new(Greedy::new(ladder())),
                Kind::LinUcb => Box::new(LinUcb::new(ladder())),
                Kind::Mpc(config) => Box::new(Mpc::new(config, ladder())),
            }
        };
        Ok(world::run_observed(&self.world(seed)?, &self.record, controller, observer))
    }
}

impl Line {
    pub(crate) fn of_run(name: &str, run: &RunResult) -> Line {
        let frames = run.frames.max(1) as f64;
        let ms = |q| run.latency.quantile(q).map(|micros| micros as f64 / 1e3);
        Line {
            controller: name.to_owned(),
            frames: run.frames,
            on_time_accuracy: run.on_time_accuracy(),
            expected_accuracy: run.expected_accuracy(),
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
            frames: plan.frames,
            on_time_accuracy: plan.on_time_accuracy(),
            expected_accuracy: plan.expected_accuracy(),
            miss_rate: 0.0,
            sent: plan.sent as f64 / frames,
            bytes: plan.bytes as f64 / frames,
            switches: 0.0,
            p50_ms: None,
            p95_ms: None,
            reasons: BTreeMap::new(),
        }
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
            100.0 * line.on_time_accuracy,
            100.0 * line.expected_accuracy,
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
    let mut text = String::from(
        "controller,frames,on_time_accuracy,expected_accuracy,miss_rate,sent,bytes,switches,p50_ms,p95_ms\n",
    );
    let ms = |ms: Option<f64>| ms.map_or_else(String::new, |ms| ms.to_string());
    for line in lines {
        let Line { controller, frames, on_time_accuracy, miss_rate, sent, bytes, .. } = line;
        text += &format!(
            "{controller},{frames},{on_time_accuracy},{},{miss_rate},{sent},{bytes},{},{},{}\n",
            line.expected_accuracy,
            line.switches,
            ms(line.p50_ms),
            ms(line.p95_ms)
        );
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::world::synthetic;

    pub(crate) const SMALL: &str = "description = 'x'\nrecord = 'record.csv.zst'\ndevice = 'device.toml'\n\
        link = 'lte-driving'\ncameras = 2\nframes_per_second = 10\ndeadline_ms = 150\nseconds = 20\n\
        seeds = [1, 2]\n[[controllers]]\nkind = 'fixed'\npoint = 's16/w100/c16/b6'\n\
        [[controllers]]\nkind = 'greedy'\n[[controllers]]\nkind = 'mpc'\n";

    const DEVICE: &str = "description = 'x'\nsource = 'made up'\n\
        heads = { 's16/w50' = 10, 's16/w100' = 20 }\npreprocess_ms = 1\nencode_ms = 1\n\
        image_ms_per_megapixel = { jpeg = 100, webp = 400 }\np95_over_p50 = 1.1\n";

    pub(crate) fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let packed = zstd::encode_all(synthetic::csv(600, 1).as_bytes(), 3).expect("memory");
        fs::write(folder.path().join("record.csv.zst"), packed).expect("written");
        fs::write(folder.path().join("device.toml"), DEVICE).expect("written");
        folder
    }

    pub(crate) fn prepare(folder: &Path, text: &str) -> Result<Prepared, ScenarioError> {
        let file = folder.join("scenario.toml");
        fs::write(&file, text).expect("written");
        Scenario::read(&file)?.prepare(&file)
    }

    #[test]
    fn every_shipped_scenario_is_valid_but_for_its_bundle() {
        let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/scenarios");
        let folder = folder();
        let mut count = 0;
        for entry in fs::read_dir(scenarios).expect("the folder") {
            let file = entry.expect("an entry").path();
            let mut scenario = Scenario::read(&file).expect("valid");
            // The bundle is trained elsewhere; a record and a device with named times stand in.
            (scenario.bundle, scenario.record) = (None, Some("record.csv.zst".into()));
            DeviceSpec::find(&scenario.device).expect("built in");
            scenario.device = "device.toml".into();
            let prepared = scenario.prepare(&folder.path().join("x.toml"));
            prepared.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            count += 1;
        }
        assert!(count >= 8);
    }

    #[test]
    fn the_same_scenario_gives_the_same_bytes_twenty_times() {
        let folder = folder();
        let run = || {
            let prepared = prepare(folder.path(), SMALL).expect("valid");
            let mut runs = 0;
            let lines = prepared.run(|_| runs += 1).expect("runs");
            assert_eq!(runs, prepared.runs());
            let json: Vec<String> =
                lines.iter().map(|line| serde_json::to_string(line).expect("plain")).collect();
            (table(&lines), csv(&lines), json)
        };
        let first = run();
        assert_eq!(first.1.lines().count(), 5, "four lines under a head: {}", first.1);
        (1..20).for_each(|_| assert_eq!(run(), first));
        let other = SMALL.replace("seeds = [1, 2]", "seeds = [1, 3]");
        let other = prepare(folder.path(), &other).expect("valid").run(|_| {}).expect("runs");
        assert_ne!(csv(&other), first.1);
    }

    #[test]
    fn controllers_are_chosen_by_name_and_none_is_called_like_another() {
        let folder = folder();
        let twice = format!("{SMALL}[[controllers]]\nkind = 'mpc'\nhorizon = 2\n");
        let mut prepared = prepare(folder.path(), &twice).expect("valid");
        let names = |prepared: &Prepared| -> Vec<String> {
            prepared.contestants().iter().map(|it| it.name().to_owned()).collect()
        };
        let fixed = "fixed s16/w100/c16/b6";
        assert_eq!(names(&prepared), [fixed, "greedy", "mpc", "mpc (2)"]);
        let error = prepared.keep(&["best".into()]).expect_err("unknown").to_string();
        assert!(error.starts_with("best: the scenario compares no such"), "{error}");
        prepared.keep(&["fixed".into(), "mpc (2)".into()]).expect("known");
        assert_eq!(names(&prepared), [fixed, "mpc (2)"]);
    }

    #[test]
    fn pictures_are_played_alone_or_behind_an_exit() {
        let folder = folder();
        let point = "point = 's16/w100/c16/b6'";
        let names = |to: &str| -> Vec<String> {
            let prepared = prepare(folder.path(), &SMALL.replace(point, to)).expect("valid");
            prepared.contestants.into_iter().map(|contestant| contestant.name).collect()
        };
        assert_eq!(names("point = 'image/webp/160/q35'")[0], "fixed image/webp/160/q35");
        let guarded = names("point = 'image/webp/160/q35'\nexit = 's16/w50'");
        assert_eq!(guarded[0], "fixed image/webp/160/q35 or s16/w50/exit");
        let all = names("");
        assert!(all.iter().any(|name| name == "fixed s16/w50/exit"), "{all:?}");
        assert!(all.iter().any(|name| name.starts_with("fixed image/")), "{all:?}");
    }

    #[test]
    fn what_cannot_be_meant_is_named_with_its_file() {
        let folder = folder();
        for (from, to, expected) in [
            ("cameras = 2", "cameras = 0", "scenario.toml: cameras: 0 is not within"),
            ("cameras = 2", "camera = 2", "unknown field `camera`"),
            ("seconds = 20", "seconds = nan", "scenario.toml: seconds: NaN"),
            ("seconds = 20", "seconds = -1", "scenario.toml: seconds: -1"),
            ("deadline_ms = 150", "deadline_ms = 0", "scenario.toml: deadline_ms: 0"),
            ("frames_per_second = 10", "frames_per_second = 0", "frames_per_second: 0"),
            ("seeds = [1, 2]", "seeds = []", "scenario.toml: seeds: at least one"),
            ("c16/b6", "c17/b6", "controllers[0].point: s16/w100/c17/b6 was not recorded"),
            ("c16/b6'", "c16/b6'\nexit = 's16/w50'", "controllers[0].exit: is for a picture"),
            ("s16/w100/c16/b6", "local", "controllers[0].point: local was not recorded"),
            (
                "s16/w100/c16/b6'",
                "image/webp/160/q35'\nexit = 's16/w1'",
                "controllers[0].exit: s16/w1 was not recorded; there is s16/w50, s16/w100",
            ),
            ("kind = 'mpc'", "kind = 'mpc'\ntarget_miss = 2", "controllers[2].target_miss: 2"),
            ("kind = 'mpc'", "kind = 'mpc'\nspeed = 2", "unknown field `speed`"),
            ("kind = 'mpc'", "kind = 'best'", "unknown variant `best`"),
            (
                "cameras = 2",
                "cameras = 2\nown_links = true",
                "scenario.toml: oracle: with own_links",
            ),
            ("cameras = 2", "cameras = 2\ntransport = 'tcp'", "unknown variant `tcp`"),
            ("lte-driving", "lte-diving", "link: lte-diving: no such link"),
            ("device.toml", "pi4", "device: the device says nothing about head s16/w"),
            ("device.toml", "pi7", "device: pi7: no such device"),
            ("record.csv.zst", "none.csv.zst", "none.csv.zst: "),
            ("record.csv.zst", "device.toml", "device.toml: cannot be unpacked"),
            ("record = 'record.csv.zst'\n", "", "bundle: exactly one of bundle and record"),
            (
                "record = 'record.csv.zst'",
                "bundle = 'none'",
                "bundle: models/bundles/none/manifest.toml",
            ),
        ] {
            assert!(SMALL.contains(from), "{from}");
            let error =
                prepare(folder.path(), &SMALL.replace(from, to)).err().expect(to).to_string();
            assert!(error.contains(expected), "{to}: {error}");
        }
    }
}
