//! Controllers on recorded links: the cells of which the controllers' figures are means.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use isthmus_models::on_all_cores;

use crate::link::chance::scattered;
use crate::profile::RateSpec;
use crate::scenario::{Line, Scenario};

/// The grid. What a trace's rates are divided by, deadlines (ms), frames a second of a camera, and
/// cameras behind the link.
const DIVISORS: [u32; 3] = [1, 8, 64];
const DEADLINES: [f64; 3] = [100.0, 150.0, 300.0];
const FRAME_RATES: [f64; 2] = [10.0, 30.0];
const CAMERAS: [u32; 2] = [1, 8];

/// Decides which traces are run, where in one a window begins, and all else that is random.
const SEED: u64 = 7;

/// What all cells have in common. The trace gives the rate, and with it the waits of a radio's
/// scheduler; the rest of the way, 10 ms in each direction, is short and steady: a server near by. The
/// server is not what is measured: two workers would be full of eight cameras' pictures at 30 a second
/// (11 ms each), eight are not.
const CELL: &str = "
description = 'one window of a recorded link'
device = 'pi4'
link = 'lte-driving'
frames_per_second = 10
deadline_ms = 300
seconds = 60
seeds = []
uplink = { rate = {}, delay_ms = 10, queue = { bytes = 262144 } }
downlink = { rate = { kbits = 10000 }, delay_ms = 10, queue = { bytes = 262144 } }
server = { workers = 8 }
controllers = [{ kind = 'fixed' }, { kind = 'greedy' }, { kind = 'mpc' }]
";

/// The link of Slimmable Encoders: rates, deadline and device as published.
const BLUETOOTH: &str = "
description = 'Bluetooth from 1 to 9 m'
device = 'pi4'
link = 'bluetooth'
frames_per_second = 10
deadline_ms = 300
seconds = 60
seeds = [1, 2, 3, 4, 5]
controllers = [{ kind = 'fixed' }, { kind = 'greedy' }, { kind = 'mpc' }]
";

/// One camera on a mobile link for ten minutes.
const ONE_CAMERA: &str = "
description = 'one camera on a mobile link'
device = 'pi4'
link = 'lte-driving'
frames_per_second = 10
deadline_ms = 300
seconds = 600
seeds = [1]
controllers = [{ kind = 'mpc' }]
";

/// A trace as the index tells it. Traces of a downlink are taken as an uplink.
#[derive(Clone, Debug, PartialEq)]
struct Recorded {
    /// The folder that its path begins with.
    group: String,
    file: PathBuf,
    seconds: f64,
}

/// What is run: one window of one trace, or a link of its own.
#[derive(Clone, Debug)]
pub(crate) struct Trial {
    /// The traces' group and what their rates are divided by, such as `nyc/8`.
    pub(crate) family: String,
    pub(crate) scenario: Scenario,
}

/// What the controllers made of a trial.
#[derive(Clone, Debug)]
pub(crate) struct Cell {
    pub(crate) family: String,
    pub(crate) lines: Vec<Line>,
}

impl Cell {
    /// What a controller came to, `oracle` included.
    pub(crate) fn of(&self, controller: &str) -> anyhow::Result<&Line> {
        let line = self.lines.iter().find(|line| line.controller == controller);
        line.with_context(|| format!("{controller} did not run"))
    }

    /// The fixed points.
    pub(crate) fn fixed(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().filter(|line| line.controller.starts_with("fixed "))
    }
}

impl Trial {
    /// The whole grid over the traces that `index.csv` in `folder` lists: in every cell one trace of
    /// each group, drawn by lot, or all of them if `full`.
    pub(crate) fn of_traces(
        bundle: &Path,
        folder: &Path,
        full: bool,
    ) -> anyhow::Result<Vec<Trial>> {
        let mut groups: BTreeMap<String, Vec<Recorded>> = BTreeMap::new();
        for recorded in index(folder)? {
            groups.entry(recorded.group.clone()).or_default().push(recorded);
        }
        let mut trials = Vec::new();
        for traces in groups.values() {
            let mut number = 0;
            for divisor in DIVISORS {
                for deadline_ms in DEADLINES {
                    for frames_per_second in FRAME_RATES {
                        for cameras in CAMERAS {
                            number += 1;
                            let drawn = scattered(SEED ^ scattered(number)) as usize % traces.len();
                            let chosen = if full { &traces[..] } else { &traces[drawn..=drawn] };
                            for trace in chosen {
                                let mut trial = trace.trial(bundle, divisor, number)?;
                                trial.scenario.deadline_ms = deadline_ms;
                                trial.scenario.frames_per_second = frames_per_second;
                                trial.scenario.cameras = cameras;
                                trials.push(trial);
                            }
                        }
                    }
                }
            }
        }
        Ok(trials)
    }

    /// The published Bluetooth case.
    pub(crate) fn of_bluetooth(bundle: &Path) -> anyhow::Result<Trial> {
        Ok(Trial { family: "bluetooth".into(), scenario: scenario(BLUETOOTH, bundle)? })
    }

    /// One camera at 10 frames a second and 300 ms, for ten minutes.
    pub(crate) fn of_one_camera(bundle: &Path) -> anyhow::Result<Trial> {
        Ok(Trial { family: "one camera".into(), scenario: scenario(ONE_CAMERA, bundle)? })
    }

    /// Ten thousand cameras and one server.
    pub(crate) fn of_fleet(bundle: &Path) -> anyhow::Result<Trial> {
        let text = include_str!("../../configs/scenarios/fleet.toml");
        Ok(Trial { family: "fleet".into(), scenario: scenario(text, bundle)? })
    }

    /// Runs all controllers of one trial.
    pub(crate) fn run(self) -> anyhow::Result<Cell> {
        let Trial { family, scenario } = self;
        let trace = scenario.uplink.as_ref().and_then(|uplink| uplink.rate.trace.clone());
        let of = || trace.map_or_else(|| family.clone(), |trace| trace.display().to_string());
        // Every path in it is absolute.
        let lines = scenario
            .prepare(Path::new("trial"))
            .and_then(|prepared| prepared.run(|_| {}))
            .with_context(of)?;
        Ok(Cell { family, lines })
    }

    /// Runs `trials` on all cores; cells are in their order.
    pub(crate) fn run_all(trials: &[Trial]) -> anyhow::Result<Vec<Cell>> {
        on_all_cores(trials.iter(), |trial| trial.clone().run())
    }
}

impl Recorded {
    fn trial(&self, bundle: &Path, divisor: u32, number: u64) -> anyhow::Result<Trial> {
        let Recorded { group, file, seconds } = self;
        let mut scenario = scenario(CELL, bundle)?;
        let seed = scattered(SEED ^ scattered(number)) >> 1;
        scenario.seeds = vec![seed];
        // Windows begin at whole seconds; a trace that is shorter than one repeats.
        let places = (seconds - scenario.seconds).max(0.0) as u64 + 1;
        let is_csv = file.extension().is_some_and(|extension| extension == "csv");
        let uplink = scenario.uplink.as_mut().context("an uplink is named")?;
        uplink.rate = RateSpec {
            trace: Some(file.clone()),
            scale: Some(1.0 / f64::from(divisor)),
            offset_s: Some((scattered(seed) % places) as f64),
            rate_column: is_csv.then(|| "DL_bitrate_kbps".to_owned()),
            ..RateSpec::default()
        };
        Ok(Trial { family: format!("{group}/{divisor}"), scenario })
    }
}

fn scenario(text: &str, bundle: &Path) -> anyhow::Result<Scenario> {
    let mut scenario: Scenario = toml::from_str(text)?;
    scenario.bundle = Some(fs::canonicalize(bundle).with_context(|| bundle.display().to_string())?);
    Ok(scenario)
}

/// The traces that `index.csv` in `folder` lists, in its order, by absolute paths.
fn index(folder: &Path) -> anyhow::Result<Vec<Recorded>> {
    let folder = fs::canonicalize(folder).with_context(|| folder.display().to_string())?;
    let file = folder.join("index.csv");
    let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
    parse_index(&text, &folder).with_context(|| file.display().to_string())
}

fn parse_index(text: &str, folder: &Path) -> anyhow::Result<Vec<Recorded>> {
    let mut lines = (1..).zip(text.lines());
    let (_, head) = lines.next().context("is empty")?;
    let columns: Vec<&str> = head.split(',').collect();
    let column = |name: &str| {
        let at = columns.iter().position(|column| *column == name);
        at.with_context(|| format!("line 1: has no column {name}"))
    };
    let (name, duration) = (column("file")?, column("duration_s")?);
    let mut traces = Vec::new();
    for (number, line) in lines {
        let cells: Vec<&str> = line.split(',').collect();
        let cell = |column: usize| {
            cells.get(column).copied().with_context(|| format!("line {number}: is too short"))
        };
        let (name, seconds) = (cell(name)?, cell(duration)?);
        let seconds: f64 = seconds
            .parse()
            .ok()
            .filter(|seconds: &f64| seconds.is_finite() && *seconds > 0.0)
            .with_context(|| format!("line {number}: {seconds:?} is no duration"))?;
        let (group, _) = name
            .split_once('/')
            .with_context(|| format!("line {number}: {name:?} is in no group's folder"))?;
        traces.push(Recorded { group: group.to_owned(), file: folder.join(name), seconds });
    }
    ensure!(!traces.is_empty(), "lists no trace");
    Ok(traces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_gives_groups_and_what_is_wrong_is_named() {
        let traces = parse_index("file,x,duration_s\na/b,1,70.5\na/c/d,2,9\n", Path::new("t"));
        let traces = traces.expect("an index");
        assert_eq!((traces[0].group.as_str(), traces[0].seconds), ("a", 70.5));
        assert_eq!(traces[1].file, Path::new("t/a/c/d"));
        for (text, expected) in [
            ("", "is empty"),
            ("file,duration_s\n", "lists no trace"),
            ("file\na/b\n", "line 1: has no column duration_s"),
            ("file,duration_s\na/b\n", "line 2: is too short"),
            ("file,duration_s\na/b,-1\n", "line 2: \"-1\" is no duration"),
            ("file,duration_s\na/b,inf\n", "line 2: \"inf\" is no duration"),
            ("file,duration_s\nb,1\n", "line 2: \"b\" is in no group's folder"),
        ] {
            let error = parse_index(text, Path::new("")).expect_err(text).to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_window_lies_within_its_trace_and_every_cell_has_its_own() {
        let folder = tempfile::tempdir().expect("a folder");
        let index = "file,duration_s\na/long,62\na/short,9\nb/c.csv,200\n";
        fs::write(folder.path().join("index.csv"), index).expect("written");
        let trials = Trial::of_traces(folder.path(), folder.path(), true).expect("an index");
        assert_eq!(trials.len(), 3 * 36);
        let mut offsets = BTreeMap::new();
        for Trial { family, scenario } in &trials {
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
        let drawn = Trial::of_traces(folder.path(), folder.path(), false).expect("an index");
        assert_eq!(drawn.len(), 2 * 36);
    }
}
