//! Experiments: controllers on recorded links and in shipped scenarios, of which the controllers'
//! figures are means.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Context;
use isthmus_models::on_all_cores;

use super::traces::{self, RecordedTrace};
use crate::link::chance::scattered;
use crate::profile::RateSpec;
use crate::scenario::{BUILT_IN, Line, Role, Scenario};

/// The grid of conditions: divisors of a trace's rates, deadlines (ms), frames a second of a camera,
/// and cameras behind the link.
const DIVISORS: [u32; 3] = [1, 8, 64];
const DEADLINES: [f64; 3] = [100.0, 150.0, 300.0];
const FRAME_RATES: [f64; 2] = [10.0, 30.0];
const CAMERAS: [u32; 2] = [1, 8];

/// Decides which traces are run, where in one a window begins, and all else that is random.
const SEED: u64 = 7;

/// What all experiments on traces have in common. The trace gives the rate, and with it the waits of a radio's
/// scheduler; the rest of the path, 10 ms in each direction, is short and steady: a server near by. The
/// server is not what is measured: two workers would be full of eight cameras' pictures at 30 a second
/// (11 ms each), eight are not.
const RECORDED_LINK: &str = "
description = 'one window of a recorded link'
device = 'pi4'
link = 'lte-driving'
frames_per_second = 10
deadline = '300ms'
duration = '60s'
seeds = []
uplink = { rate = {}, delay = '10ms', queue = { bytes = 262144 } }
downlink = { rate = { kbits = 10000 }, delay = '10ms', queue = { bytes = 262144 } }
server = { workers = 8 }
controllers = [{ kind = 'fixed' }, { kind = 'greedy' }, { kind = 'mpc' }]
";

/// One scenario to simulate: a window of a trace, or a shipped scenario.
#[derive(Clone, Debug)]
pub(crate) struct Experiment {
    /// The group of traces and the divisor of their rates, such as `nyc/8`; or the scenario's name.
    pub(crate) family: String,
    pub(crate) scenario: Scenario,
}

/// What the controllers made of an experiment.
#[derive(Clone, Debug)]
pub(crate) struct ExperimentResult {
    pub(crate) family: String,
    pub(crate) lines: Vec<Line>,
}

impl ExperimentResult {
    /// What a controller came to, `oracle` included.
    pub(crate) fn of(&self, controller: &str) -> anyhow::Result<&Line> {
        let line = self.lines.iter().find(|line| line.controller == controller);
        line.with_context(|| format!("{controller} did not run"))
    }

    /// The fixed points.
    pub(crate) fn fixed(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| line.role == Role::Fixed)
    }
}

/// One condition of the grid.
#[derive(Clone, Copy)]
struct Condition {
    /// From 1; it decides everything random.
    number: u64,
    divisor: u32,
    deadline_ms: f64,
    frames_per_second: f64,
    cameras: u32,
}

/// The whole grid, in order.
fn conditions() -> impl Iterator<Item = Condition> {
    let rates = DIVISORS.iter().flat_map(|&divisor| DEADLINES.map(|deadline| (divisor, deadline)));
    let paced = rates.flat_map(|(divisor, deadline)| {
        FRAME_RATES.map(|frames_per_second| (divisor, deadline, frames_per_second))
    });
    let all = paced.flat_map(|(divisor, deadline_ms, frames_per_second)| {
        CAMERAS.map(|cameras| (divisor, deadline_ms, frames_per_second, cameras))
    });
    (1..).zip(all).map(|(number, (divisor, deadline_ms, frames_per_second, cameras))| Condition {
        number,
        divisor,
        deadline_ms,
        frames_per_second,
        cameras,
    })
}

impl Experiment {
    /// The whole grid over the traces in `folder`: under every condition one trace of each group,
    /// drawn at random, or all of them if `full`.
    pub(crate) fn of_traces(
        bundle: &Path,
        folder: &Path,
        full: bool,
    ) -> anyhow::Result<Vec<Experiment>> {
        let mut groups: BTreeMap<String, Vec<RecordedTrace>> = BTreeMap::new();
        for trace in traces::find(folder)? {
            groups.entry(trace.group.clone()).or_default().push(trace);
        }
        let mut experiments = Vec::new();
        for traces in groups.values() {
            for condition in conditions() {
                let draw = scattered(SEED ^ scattered(condition.number));
                let drawn = draw as usize % traces.len();
                let chosen = if full { &traces[..] } else { &traces[drawn..=drawn] };
                for trace in chosen {
                    experiments.push(Experiment::of_trace(trace, bundle, condition)?);
                }
            }
        }
        Ok(experiments)
    }

    /// One window of a trace under one condition.
    fn of_trace(
        trace: &RecordedTrace,
        bundle: &Path,
        condition: Condition,
    ) -> anyhow::Result<Experiment> {
        let Condition { number, divisor, deadline_ms, frames_per_second, cameras } = condition;
        let mut scenario = scenario(RECORDED_LINK, bundle)?;
        let seed = scattered(SEED ^ scattered(number)) >> 1;
        scenario.seeds = vec![seed];
        scenario.deadline_ms = deadline_ms;
        scenario.frames_per_second = frames_per_second;
        scenario.cameras = cameras;
        // Windows begin at whole seconds; a trace that is shorter than one repeats.
        let places = (trace.seconds - scenario.seconds).max(0.0) as u64 + 1;
        let uplink = scenario.uplink.as_mut().context("an uplink is named")?;
        uplink.rate = RateSpec {
            trace: Some(trace.file.clone()),
            scale: Some(1.0 / f64::from(divisor)),
            offset_s: Some((scattered(seed) % places) as f64),
            rate_column: trace.rate_column.clone(),
            ..RateSpec::default()
        };
        Ok(Experiment { family: format!("{}/{divisor}", trace.group), scenario })
    }

    /// A shipped scenario with another bundle, as `simulator run NAME --bundle DIR` simulates it.
    pub(crate) fn of_scenario(name: &str, bundle: &Path) -> anyhow::Result<Experiment> {
        let built_in = BUILT_IN.iter().find(|(built_in, _)| *built_in == name);
        let (_, text) = built_in.with_context(|| format!("no scenario {name} is built in"))?;
        Ok(Experiment { family: name.to_owned(), scenario: scenario(text, bundle)? })
    }

    /// Simulates all controllers of one experiment.
    pub(crate) fn run(self) -> anyhow::Result<ExperimentResult> {
        let Experiment { family, scenario } = self;
        let trace = scenario.uplink.as_ref().and_then(|uplink| uplink.rate.trace.clone());
        let of = || trace.map_or_else(|| family.clone(), |trace| trace.display().to_string());
        // Every path in it is absolute.
        let lines = scenario
            .prepare(Path::new("experiment"))
            .and_then(|prepared| prepared.run(|_| {}))
            .with_context(of)?;
        Ok(ExperimentResult { family, lines })
    }

    /// Runs `experiments` on all cores; results are in their order.
    pub(crate) fn run_all(experiments: &[Experiment]) -> anyhow::Result<Vec<ExperimentResult>> {
        on_all_cores(experiments.iter(), |experiment| experiment.clone().run())
    }
}

fn scenario(text: &str, bundle: &Path) -> anyhow::Result<Scenario> {
    let mut scenario: Scenario = toml::from_str(text)?;
    scenario.bundle = Some(fs::canonicalize(bundle).with_context(|| bundle.display().to_string())?);
    Ok(scenario)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_lies_within_its_trace_and_every_condition_has_its_own() {
        let folder = tempfile::tempdir().expect("a folder");
        let write = |name: &str, text: String| {
            let file = folder.path().join(name);
            fs::create_dir_all(file.parent().expect("a folder")).expect("made");
            fs::write(file, text).expect("written");
        };
        write("a/long", "0 1\n62 1\n".into());
        write("a/short", "0 1\n9 1\n".into());
        write("b/c.csv", "time_s,UL_bitrate_kbps,DL_bitrate_kbps\n0,1,1\n200,1,1\n".into());
        let experiments =
            Experiment::of_traces(folder.path(), folder.path(), true).expect("traces");
        assert_eq!(experiments.len(), 3 * 36);
        let mut offsets = BTreeMap::new();
        for Experiment { family, scenario } in &experiments {
            let rate = &scenario.uplink.as_ref().expect("an uplink").rate;
            let (trace, offset) = (rate.trace.clone().expect("a trace"), rate.offset_s);
            let name = trace.file_name().and_then(|name| name.to_str()).expect("a name").to_owned();
            assert_eq!(rate.rate_column.is_some(), name == "c.csv");
            assert!(family.starts_with(if name == "c.csv" { "b/" } else { "a/" }), "{family}");
            offsets.entry(name).or_insert_with(Vec::new).push(offset.expect("an offset"));
        }
        assert!(offsets["long"].iter().all(|&offset| (0.0..=2.0).contains(&offset)));
        assert!(offsets["short"].iter().all(|&offset| offset == 0.0));
        assert!(offsets["c.csv"].iter().any(|&offset| offset > 70.0));
        let drawn = Experiment::of_traces(folder.path(), folder.path(), false).expect("traces");
        assert_eq!(drawn.len(), 2 * 36);
    }

    #[test]
    fn a_figure_s_scenario_is_the_shipped_file_but_for_the_bundle() {
        let bundle = tempfile::tempdir().expect("a folder");
        for (name, text) in BUILT_IN {
            let mut shipped = Scenario::parse(text, Path::new(name)).expect("valid");
            let experiment = Experiment::of_scenario(name, bundle.path()).expect("built in");
            shipped.bundle.clone_from(&experiment.scenario.bundle);
            assert_eq!(experiment.scenario, shipped);
        }
    }
}
