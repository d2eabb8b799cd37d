//! A scenario with everything that it names, ready to be simulated.

use std::path::{Path, PathBuf};
use std::time::Duration;

use isthmus_head_client::Run;
use isthmus_models::ImageSpec;
use isthmus_tail_server::batcher::BatcherConfig;

use super::check::Checker;
use super::controllers::{Controllers, NamedController, ORACLE};
use super::source::Source;
use super::{Line, Scenario, ScenarioError};
use crate::digest::digest;
use crate::profile::PathSpec;
use crate::world::oracle::{self, Knowledge, Plan};
use crate::world::{
    self, Device, DeviceSpec, Observer, Record, RunResult, ServerConfig, WorldConfig,
};

/// A name that no controller of a scenario has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown controller {name}; the scenario compares {known}")]
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
    controllers: Vec<NamedController>,
    /// What the controllers may run, and the oracle.
    runs: Vec<Run>,
}

impl Scenario {
    /// Checks every value and reads what the scenario names; paths count from `file`'s folder.
    pub fn prepare(self, file: &Path) -> Result<Prepared, ScenarioError> {
        let check = Checker { file };
        let folder = file.parent().unwrap_or(Path::new("")).to_owned();
        check.scenario(&self)?;
        let slowdowns = check.slowdowns(&self.slowdowns)?;
        let device = DeviceSpec::find(&named(&self.device, &folder));
        let device = device.map_err(ScenarioError::Device)?;
        let source = Source::read(&self, &folder, &device, check)?;
        let device = charged(&device, &source, slowdowns)?;
        let (path, path_folder) = self.path(&folder)?;
        let Controllers { list, runs } = Controllers::new(&self, &source.record, check)?;
        let prepared = Prepared {
            scenario: self,
            folder,
            device,
            path,
            path_folder,
            record: source.record,
            record_digest: source.digest,
            controllers: list,
            runs,
        };
        // The first seed's link is built once, so that what is wrong shows before anything is run.
        prepared.world(prepared.scenario.seeds[0])?;
        Ok(prepared)
    }

    /// The link with what the scenario replaces, and the folder that its traces count from.
    fn path(&self, folder: &Path) -> Result<(PathSpec, PathBuf), ScenarioError> {
        let found = PathSpec::find(&named(&self.link, folder));
        let (mut path, mut path_folder) = found.map_err(ScenarioError::Link)?;
        if let Some(uplink) = &self.uplink {
            path.uplink = uplink.clone();
            path_folder = folder.to_owned();
        }
        if let Some(downlink) = &self.downlink {
            path.downlink = downlink.clone();
        }
        if let Some(rebindings) = &self.rebindings {
            path.rebindings = rebindings.clone();
        }
        Ok((path, path_folder))
    }
}

/// The name of something built in, or the path of a TOML file that counts from `folder`.
fn named(name: &str, folder: &Path) -> String {
    match name.ends_with(".toml") {
        true => folder.join(name).to_string_lossy().into_owned(),
        false => name.to_owned(),
    }
}

/// How long a device takes for what a record knows.
fn charged(
    device: &DeviceSpec,
    source: &Source,
    slowdowns: Vec<(isthmus_proto::Timestamp, f64)>,
) -> Result<Device, ScenarioError> {
    let Source { record, macs, input, .. } = source;
    let head =
        |(at, name): (&(u8, u8), &String)| (*at, (name.clone(), macs.heads.get(name).copied()));
    let heads = record.heads().iter().map(head).collect();
    let pixels = |image: ImageSpec| {
        let size = input.as_ref().map(|input| image.size(input));
        let (width, height) = size.unwrap_or((image.side, image.side));
        (image, u64::from(width) * u64::from(height))
    };
    let pixels = record.images().map(pixels).collect();
    device.to_device(&heads, macs.full, &pixels, slowdowns).map_err(ScenarioError::Device)
}

impl Prepared {
    /// Runs to come: controllers and, where it is wanted, oracle, each with every seed.
    pub fn runs(&self) -> usize {
        let oracle = usize::from(self.scenario.oracle);
        (self.controllers.len() + oracle) * self.scenario.seeds.len()
    }

    /// The controllers that are compared.
    pub fn controllers(&self) -> &[NamedController] {
        &self.controllers
    }

    /// Leaves only those controllers whose name, or its first word, is among `names`.
    pub fn keep(&mut self, names: &[String]) -> Result<(), UnknownController> {
        for name in names {
            if !self.controllers.iter().any(|it| it.answers_to(name)) {
                let known: Vec<_> = self.controllers.iter().map(NamedController::name).collect();
                return Err(UnknownController { name: name.clone(), known: known.join(", ") });
            }
        }
        self.controllers.retain(|it| names.iter().any(|name| it.answers_to(name)));
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

    /// SHA-256 of all that a run, or without a controller the oracle's plan, follows from, but for
    /// the program.
    pub fn digest(
        &self,
        controller: Option<&NamedController>,
        seed: u64,
    ) -> Result<String, ScenarioError> {
        let spec = controller.map(|controller| controller.spec);
        let text = format!("{} {spec:?} {:?}", self.record_digest, self.world(seed)?);
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

    /// Simulates everything; `progress` gets the controller of each run that is done. Equal scenarios
    /// give equal lines.
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
        for controller in &self.controllers {
            let mut total = RunResult::default();
            for (&seed, plan) in self.scenario.seeds.iter().zip(&plans) {
                let run = self.simulate(controller, seed, None)?;
                // At the oracle's price of a byte the control variate removes most variance; without
                // an oracle bytes cost nothing.
                total.merge(&run.less_control_variate(plan.map_or(0, |plan| plan.price_level)));
                progress(controller.name());
            }
            lines.push(Line::of_run(controller.name(), controller.role(), &total));
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

    /// One run of a controller, seen by an observer.
    pub fn simulate(
        &self,
        controller: &NamedController,
        seed: u64,
        observer: Option<Observer<'_>>,
    ) -> Result<RunResult, ScenarioError> {
        let build = |_| controller.build(self.record.ladder());
        Ok(world::run_observed(&self.world(seed)?, &self.record, build, observer))
    }
}
