//! Results as files: each says what it is, how it was made, and whether it is whole.
//!
//! A file holds the [`Cell`]s of one scenario: a controller, or the oracle, with one seed each.
//! Files of the same scenario are read together as [`Comparison`]s, wherever their cells were run.

pub mod csv;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use isthmus_head_client::{FrameOutcome, Run, Verdict};
use isthmus_proto::{Arm, Content};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::scenario::{Contestant, Line, ORACLE, Prepared, Scenario, ScenarioError};
use crate::whole_file::WholeFile;
use crate::world::oracle::Plan;
use crate::world::{FrameEnd, RunResult};

/// Version of the files that are written and read.
pub const VERSION: u32 = 1;

/// The commit that this program was built from: with `+` if the sources differed from it, `unknown`
/// if there was no repository.
pub const COMMIT: &str = env!("ISTHMUS_COMMIT");

/// Most frames of a run that its time line has.
const MOST_FRAMES: u64 = 1_000;

/// How every file begins: the digest of what follows it is next.
const START: &str = "{\"isthmus_results\":1,\"sha256\":\"";
const MIDDLE: &str = "\",\"content\":";
const END: &str = "}\n";

/// Why a file holds no results.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// It cannot be read or written.
    #[error("{}: {cause}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// It is something else, or of another version.
    #[error(
        "{}: no results of version {VERSION}; a file that `simulator run -o` or `simulator sweep` \
         wrote is expected",
        file.display()
    )]
    Format {
        /// The file.
        file: PathBuf,
    },
    /// It was cut short or changed: its digest is another.
    #[error("{}: damaged, its digest is not that of its content", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
    },
    /// Its content is whole, and makes no sense.
    #[error("{}: {problem}", file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// What was found and what is expected.
        problem: String,
    },
}

/// The content of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Results {
    /// Version of the simulator.
    pub simulator: String,
    /// Commit that it was built from ([`COMMIT`]).
    pub commit: String,
    /// A command that makes these cells again.
    pub command: String,
    /// What was played.
    pub scenario: Origin,
    /// What came of it.
    pub cells: Vec<Cell>,
}

/// The scenario of results.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The file's name without its extension.
    pub name: String,
    /// The file's text.
    pub text: String,
    /// Frames of all cameras that a run captures.
    pub frames: u64,
    /// From capture to output (µs).
    pub deadline_us: u64,
}

/// One run, or the oracle's plan for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// The controller, or `oracle`.
    pub controller: String,
    /// Decided everything random.
    pub seed: u64,
    /// SHA-256 of all that the run follows from: record, world and controller.
    pub inputs: String,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Of a controller.
    Run(Box<Played>),
    /// Of the oracle.
    Plan(Plan),
}

/// A run of a controller.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Played {
    /// What was counted.
    pub result: RunResult,
    /// Frames sent without a network answer in time, by how they ended; late answers are `late`.
    pub misses: BTreeMap<String, u64>,
    /// How it went.
    pub timeline: Timeline,
}

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
    /// What the controller takes that for (kbit/s).
    pub estimate_kbits: Vec<Option<f64>>,
    /// The round trip that it reckons with (ms).
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
    /// Whether the answer is right and in time.
    pub right: Vec<bool>,
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
    /// The uncut network on the device.
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

impl Cell {
    /// Runs a controller of `prepared` with a seed; without one the oracle plans.
    pub fn compute(
        prepared: &Prepared,
        contestant: Option<&Contestant>,
        seed: u64,
    ) -> Result<Cell, ScenarioError> {
        let outcome = match contestant {
            None => Outcome::Plan(prepared.plan(seed)?),
            Some(contestant) => {
                let mut watch = Watch::new(prepared);
                let result = prepared.play(contestant, seed, Some(&mut |end| watch.on_end(end)))?;
                let Watch { misses, timeline, .. } = watch;
                Outcome::Run(Box::new(Played { result, misses, timeline }))
            }
        };
        let inputs = prepared.digest(contestant, seed)?;
        let controller = contestant.map_or(ORACLE, Contestant::name).to_owned();
        Ok(Cell { controller, seed, inputs, outcome })
    }
}

/// Takes notes of a run.
struct Watch<'a> {
    prepared: &'a Prepared,
    misses: BTreeMap<String, u64>,
    timeline: Timeline,
}

impl<'a> Watch<'a> {
    fn new(prepared: &'a Prepared) -> Self {
        let cameras = u64::from(prepared.scenario().cameras);
        // Coprime to the cameras, so that each has its share.
        let least = (prepared.frames()).div_ceil(MOST_FRAMES).max(1);
        let every = (least..).find(|every| gcd(*every, cameras) == 1).unwrap_or(least);
        let timeline = Timeline { every, ..Timeline::default() };
        Watch { prepared, misses: BTreeMap::new(), timeline }
    }

    fn on_end(&mut self, end: &FrameEnd<'_>) {
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
        line.right.push(end.right);
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

/// Where `name` is among `names`, to which it is added if it is new.
fn place(names: &mut Vec<String>, name: &str) -> usize {
    names.iter().position(|known| known == name).unwrap_or_else(|| {
        names.push(name.to_owned());
        names.len() - 1
    })
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
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

    fn check(&self) -> Result<(), String> {
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
            self.right.len(),
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

impl Origin {
    /// The scenario in `file`, whose text is `text`.
    pub fn new(file: &Path, text: &str, prepared: &Prepared) -> Origin {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let deadline_us = (prepared.scenario().deadline_ms * 1e3).round() as u64;
        Origin { name, text: text.to_owned(), frames: prepared.frames(), deadline_us }
    }

    /// What the scenario says it is; its name where its text is none.
    pub fn description(&self) -> String {
        let scenario = toml::from_str::<Scenario>(&self.text);
        scenario.map_or_else(|_| self.name.clone(), |scenario| scenario.description)
    }
}

impl Results {
    /// `cells` of a scenario, which `command` makes again.
    pub fn new(scenario: Origin, command: String, cells: Vec<Cell>) -> Results {
        let simulator = env!("CARGO_PKG_VERSION").to_owned();
        Results { simulator, commit: COMMIT.to_owned(), command, scenario, cells }
    }

    /// The file's text; equal results have equal texts.
    fn to_text(&self) -> serde_json::Result<String> {
        let content = serde_json::to_string(self)?;
        Ok(format!("{START}{}{MIDDLE}{content}{END}", digest(content.as_bytes())))
    }

    /// Writes a file, whole or not at all: it takes its name only when all of it is on the disk.
    pub fn write(&self, file: &Path) -> Result<(), ResultsError> {
        let failed = |cause| ResultsError::Io { file: file.to_owned(), cause };
        let text = self.to_text().map_err(|error| failed(error.into()))?;
        let mut whole = WholeFile::create(file).map_err(failed)?;
        whole.write_all(text.as_bytes()).map_err(failed)?;
        whole.finish().map_err(failed)?;
        Ok(())
    }

    /// Reads a file, and checks that it is whole.
    pub fn read(file: &Path) -> Result<Results, ResultsError> {
        let text = fs::read_to_string(file)
            .map_err(|cause| ResultsError::Io { file: file.to_owned(), cause })?;
        Self::parse(&text, file)
    }

    fn parse(text: &str, file: &Path) -> Result<Results, ResultsError> {
        let file = || file.to_owned();
        let start = text.strip_prefix(START);
        let rest = start.ok_or_else(|| match text.is_empty() || START.starts_with(text) {
            // As much as there is of it may be its beginning.
            true => ResultsError::Damaged { file: file() },
            false => ResultsError::Format { file: file() },
        })?;
        let parts = rest.split_once(MIDDLE);
        let parts = parts.and_then(|(digest, rest)| Some((digest, rest.strip_suffix(END)?)));
        let whole = parts.filter(|(expected, content)| digest(content.as_bytes()) == *expected);
        let (_, content) = whole.ok_or_else(|| ResultsError::Damaged { file: file() })?;
        let problem = |problem: String| ResultsError::Content { file: file(), problem };
        let results: Results =
            serde_json::from_str(content).map_err(|error| problem(error.to_string()))?;
        for cell in &results.cells {
            if let Outcome::Run(played) = &cell.outcome {
                played.timeline.check().map_err(problem)?;
            }
        }
        Ok(results)
    }
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// All that is known of one scenario.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The scenario.
    pub scenario: Origin,
    /// Commits of the programs that made it, and commands that make it again, each once.
    pub commits: Vec<String>,
    /// See `commits`.
    pub commands: Vec<String>,
    cells: BTreeMap<(String, u64), (Cell, PathBuf)>,
    /// Controllers in the order in which they were first met.
    order: Vec<String>,
}

/// What one controller came to.
#[derive(Clone, Debug)]
pub struct Standing {
    /// Its numbers, over all seeds.
    pub line: Line,
    /// Seeds it was played with.
    pub seeds: Vec<u64>,
    /// Its runs together; `None` for the oracle.
    pub played: Option<Played>,
}

/// Why a file that was read is not counted.
#[derive(Debug, thiserror::Error)]
#[error(
    "{}: {controller} with seed {seed} of {scenario} differs from that in {}, which counts", 
    file.display(), counted.display()
)]
pub struct Conflict {
    file: PathBuf,
    counted: PathBuf,
    scenario: String,
    controller: String,
    seed: u64,
}

impl Comparison {
    /// Brings together what belongs together, scenarios in the order in which they are met. A cell
    /// that is there twice counts once; if the second is another, it is told.
    pub fn gather(files: Vec<(PathBuf, Results)>) -> (Vec<Comparison>, Vec<Conflict>) {
        let (mut all, mut conflicts) = (Vec::<Comparison>::new(), Vec::new());
        for (file, results) in files {
            let Results { commit, command, scenario, cells, .. } = results;
            let known = all.iter().position(|known| known.scenario == scenario);
            let at = known.unwrap_or_else(|| {
                all.push(Comparison {
                    scenario,
                    commits: Vec::new(),
                    commands: Vec::new(),
                    cells: BTreeMap::new(),
                    order: Vec::new(),
                });
                all.len() - 1
            });
            let comparison = &mut all[at];
            place(&mut comparison.commits, &commit);
            place(&mut comparison.commands, &command);
            for cell in cells {
                place(&mut comparison.order, &cell.controller);
                let key = (cell.controller.clone(), cell.seed);
                match comparison.cells.get(&key) {
                    None => _ = comparison.cells.insert(key, (cell, file.clone())),
                    Some((known, _)) if *known == cell => {}
                    Some((_, counted)) => conflicts.push(Conflict {
                        file: file.clone(),
                        counted: counted.clone(),
                        scenario: comparison.scenario.name.clone(),
                        controller: cell.controller,
                        seed: cell.seed,
                    }),
                }
            }
        }
        (all, conflicts)
    }

    /// Every cell, by controller and seed.
    pub fn cells(&self) -> impl Iterator<Item = &Cell> {
        let of = |name: &String| {
            let cells = self.cells.iter().filter(move |((controller, _), _)| controller == name);
            cells.map(|(_, (cell, _))| cell).collect::<Vec<_>>()
        };
        self.order.iter().flat_map(of).collect::<Vec<_>>().into_iter()
    }

    /// A run of `controller`, the one with the least seed.
    pub fn first_run(&self, controller: &str) -> Option<(u64, &Played)> {
        self.cells().filter(|cell| cell.controller == controller).find_map(|cell| {
            match &cell.outcome {
                Outcome::Run(played) => Some((cell.seed, &**played)),
                Outcome::Plan(_) => None,
            }
        })
    }

    /// Every controller with all its seeds together, the oracle last.
    pub fn standings(&self) -> Vec<Standing> {
        let names = self.order.iter().filter(|name| *name != ORACLE);
        let oracle = self.order.iter().filter(|name| *name == ORACLE);
        names.chain(oracle).map(|name| self.standing(name)).collect()
    }

    fn standing(&self, controller: &str) -> Standing {
        let (mut seeds, mut plan) = (Vec::new(), Plan::default());
        let mut all: Option<Played> = None;
        for cell in self.cells().filter(|cell| cell.controller == controller) {
            seeds.push(cell.seed);
            match &cell.outcome {
                Outcome::Plan(other) => plan = plan.plus(*other),
                Outcome::Run(played) => {
                    let all = all.get_or_insert_default();
                    all.result.merge(&self.without_luck(cell.seed, &played.result));
                    for (cause, count) in &played.misses {
                        *all.misses.entry(cause.clone()).or_default() += count;
                    }
                }
            }
        }
        let line = match &all {
            Some(all) => Line::of_run(controller, &all.result),
            None => Line::of_plan(&plan),
        };
        Standing { line, seeds, played: all }
    }

    /// One cell's numbers.
    pub fn line(&self, cell: &Cell) -> Line {
        match &cell.outcome {
            Outcome::Plan(plan) => Line::of_plan(plan),
            Outcome::Run(played) => {
                let result = self.without_luck(cell.seed, &played.result);
                Line::of_run(&cell.controller, &result)
            }
        }
    }

    fn without_luck(&self, seed: u64, result: &RunResult) -> RunResult {
        // Where there is no plan, any price is as good in the mean.
        result.clone().without_luck(self.plan(seed).map_or(0, |plan| plan.luck_level))
    }

    fn plan(&self, seed: u64) -> Option<&Plan> {
        match &self.cells.get(&(ORACLE.to_owned(), seed))?.0.outcome {
            Outcome::Plan(plan) => Some(plan),
            Outcome::Run(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::tests::{SMALL, folder, prepare};

    /// The results of `text`, a cell for each controller and seed.
    fn results(folder: &Path, text: &str) -> (Prepared, Results) {
        let prepared = prepare(folder, text).expect("valid");
        let contestants = [None].into_iter().chain(prepared.contestants().iter().map(Some));
        let cells = contestants.flat_map(|contestant| {
            [1, 2].map(|seed| Cell::compute(&prepared, contestant, seed).expect("runs"))
        });
        let cells = cells.collect();
        let origin = Origin::new(Path::new("small.toml"), text, &prepared);
        let results = Results::new(origin, "it".into(), cells);
        (prepared, results)
    }

    #[test]
    fn what_is_read_is_what_was_written_and_says_what_the_run_said() {
        let folder = folder();
        let (prepared, results) = results(folder.path(), SMALL);
        let file = folder.path().join("results.json");
        results.write(&file).expect("written");
        let read = Results::read(&file).expect("whole");
        assert_eq!(read.scenario, results.scenario);
        let json: serde_json::Value =
            serde_json::from_str(&fs::read_to_string(&file).expect("read")).expect("JSON");
        assert_eq!(json["isthmus_results"], 1);

        let (comparisons, conflicts) = Comparison::gather(vec![(file, read)]);
        assert!(conflicts.is_empty());
        let standings = comparisons[0].standings();
        let lines = prepared.run(|_| {}).expect("runs");
        assert_eq!(standings.len(), lines.len());
        for (standing, line) in standings.iter().zip(&lines) {
            let Standing { line: ours, seeds, played } = standing;
            assert_eq!((&ours.controller, ours.frames), (&line.controller, line.frames));
            assert_eq!((ours.bytes, ours.p95_ms), (line.bytes, line.p95_ms));
            assert!((ours.expected_accuracy - line.expected_accuracy).abs() < 1e-9);
            assert_eq!(seeds, &[1, 2]);
            if let Some(played) = played {
                assert_eq!(played.misses.values().sum::<u64>(), played.result.missed);
            }
        }
    }

    #[test]
    fn a_time_line_has_every_frame_or_an_equal_share_of_each_camera() {
        let folder = folder();
        for (seconds, every) in [(20, 1), (200, 5)] {
            let text = SMALL.replace("seconds = 20", &format!("seconds = {seconds}"));
            let prepared = prepare(folder.path(), &text).expect("valid");
            let contestant = &prepared.contestants()[1];
            let cell = Cell::compute(&prepared, Some(contestant), 1).expect("runs");
            let Outcome::Run(played) = cell.outcome else { panic!("a run") };
            let line = &played.timeline;
            line.check().expect("columns of a length");
            assert_eq!(line.every, every);
            assert_eq!(line.len() as u64, (20u64 * seconds).div_ceil(every));
            let of = |camera| line.camera.iter().filter(|&&it| it == camera).count();
            assert!(of(0).abs_diff(of(1)) <= 1, "{} and {}", of(0), of(1));
            if every == 1 {
                let right = line.right.iter().filter(|&&right| right).count() as u64;
                let missed = line.missed.iter().filter(|&&missed| missed).count() as u64;
                let RunResult { right_in_time, missed: of, bytes, .. } = played.result;
                assert_eq!((right, missed), (right_in_time, of));
                assert_eq!(line.bytes.iter().map(|&it| u64::from(it)).sum::<u64>(), bytes);
            }
        }
    }

    #[test]
    fn a_cell_counts_once_and_one_that_differs_is_told() {
        let folder = folder();
        let (_, first) = results(folder.path(), SMALL);
        let mut other = first.clone();
        for cell in &mut other.cells {
            if let Outcome::Run(played) = &mut cell.outcome
                && (cell.controller.as_str(), cell.seed) == ("mpc", 2)
            {
                played.result.missed += 1;
            }
        }
        let files = |second: &Results| {
            vec![
                (PathBuf::from("a.json"), first.clone()),
                (PathBuf::from("b.json"), second.clone()),
            ]
        };
        let (alone, _) = Comparison::gather(vec![(PathBuf::from("a.json"), first.clone())]);
        let (twice, conflicts) = Comparison::gather(files(&first));
        assert_eq!((twice.len(), conflicts.len()), (1, 0));
        let lines = |of: &[Comparison]| -> Vec<Line> {
            of[0].standings().into_iter().map(|standing| standing.line).collect()
        };
        assert_eq!(lines(&twice), lines(&alone));
        let (differing, conflicts) = Comparison::gather(files(&other));
        assert_eq!(lines(&differing), lines(&alone));
        let told = conflicts.iter().map(Conflict::to_string).collect::<Vec<_>>();
        assert_eq!(
            told,
            ["b.json: mpc with seed 2 of small differs from that in a.json, which counts"]
        );
    }

    #[test]
    fn what_is_no_file_of_results_is_named() {
        let folder = folder();
        let (_, results) = results(folder.path(), SMALL);
        let text = results.to_text().expect("plain");
        let parse = |text: &str| Results::parse(text, Path::new("x.json")).expect_err("unusable");
        for end in [0, 10, START.len(), 100, text.len() / 2, text.len() - 1] {
            assert!(matches!(parse(&text[..end]), ResultsError::Damaged { .. }), "{end}");
        }
        for other in ["[]", "{\"isthmus_results\":2", "nothing"] {
            assert!(matches!(parse(other), ResultsError::Format { .. }), "{other}");
        }
        let content = "{\"cells\":[]}";
        let whole = format!("{START}{}{MIDDLE}{content}{END}", digest(content.as_bytes()));
        let error = parse(&whole).to_string();
        assert!(error.starts_with("x.json: missing field"), "{error}");
    }
}
