//! Scenario × controller × seed on all cores, one file for each cell.
//!
//! What is in the folder already is not run again, so that a sweep that was interrupted goes on, and
//! shards may write to one folder or to several: `simulator report` reads any number of them.

use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, ensure};
use isthmus_models::{on_all_cores, on_threads};

use crate::results::{COMMIT, Cell, Origin, Results, ResultsError};
use crate::scenario::{Contestant, ORACLE, Prepared, Scenario};
use crate::world::TransportKind;

/// A scenario of a sweep.
pub struct Subject {
    prepared: Prepared,
    origin: Origin,
    command: String,
}

/// What to change about a scenario.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    /// Only these controllers, by name or by its first word; all if it is empty.
    pub controllers: Vec<String>,
    /// These seeds; the scenario's if it is empty.
    pub seeds: Vec<u64>,
    /// What carries frames; as the scenario says if it is none.
    pub transport: Option<TransportKind>,
}

/// One part of a sweep, such as `2/3`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    part: usize,
    of: usize,
}

/// What became of one cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was run, and is in its file.
    Run,
    /// It was there.
    Kept,
}

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Cells run.
    pub run: usize,
    /// Cells that were there.
    pub kept: usize,
}

impl Default for Shard {
    fn default() -> Self {
        Shard { part: 1, of: 1 }
    }
}

impl FromStr for Shard {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('/').map(|(part, of)| (part.parse().ok(), of.parse().ok()));
        match parts {
            Some((Some(part), Some(of))) if 1 <= part && part <= of => Ok(Shard { part, of }),
            _ => Err(format!("{text:?} is no shard such as 1/4: part 1 to 4 of 4")),
        }
    }
}

impl Subject {
    /// Reads a scenario and all it names; `command` makes its results again.
    pub fn read(file: &Path, selection: &Selection, command: String) -> anyhow::Result<Subject> {
        let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
        let mut scenario = Scenario::parse(&text, file)?;
        if !selection.seeds.is_empty() {
            scenario.seeds.clone_from(&selection.seeds);
        }
        scenario.transport = selection.transport.unwrap_or(scenario.transport);
        let mut prepared = scenario.prepare(file)?;
        if !selection.controllers.is_empty() {
            prepared.keep(&selection.controllers).context("--controllers")?;
        }
        let origin = Origin::new(file, &text, &prepared);
        Ok(Subject { prepared, origin, command })
    }

    /// The scenario.
    pub fn prepared(&self) -> &Prepared {
        &self.prepared
    }

    /// Every contestant, the oracle (`None`) first for it takes longest, with every seed.
    fn cells(&self) -> impl Iterator<Item = (Option<&Contestant>, u64)> {
        let Scenario { seeds, oracle, .. } = self.prepared.scenario();
        let contestants = self.prepared.contestants().iter().map(Some);
        let all = oracle.then_some(None).into_iter().chain(contestants);
        all.flat_map(move |contestant| seeds.iter().map(move |&seed| (contestant, seed)))
    }

    /// Runs all cells on all cores, and tells `progress` the controller of each that is done.
    pub fn run(&self, progress: impl Fn(&str) + Sync) -> anyhow::Result<Results> {
        let cells = on_all_cores(self.cells(), |(contestant, seed)| {
            let cell = Cell::compute(&self.prepared, contestant, seed)?;
            progress(&cell.controller);
            anyhow::Ok(cell)
        })?;
        Ok(self.results(cells))
    }

    fn results(&self, cells: Vec<Cell>) -> Results {
        Results::new(self.origin.clone(), self.command.clone(), cells)
    }
}

/// Runs one shard of the cells of all `subjects` on so many threads, and leaves a file for each in
/// `folder`. `progress` is told the file of each that is done; what is wrong with a file that is run
/// again goes to `complain`.
pub fn run(
    subjects: &[Subject],
    shard: Shard,
    threads: usize,
    folder: &Path,
    progress: impl Fn(&Path, Done) + Sync,
    complain: impl Fn(&ResultsError) + Sync,
) -> anyhow::Result<Tally> {
    fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    let jobs = jobs(subjects, folder)?;
    let part = jobs.into_iter().skip(shard.part - 1).step_by(shard.of);
    let done = on_threads(threads, part, |(file, subject, contestant, seed)| {
        let inputs = subject.prepared.digest(contestant, seed)?;
        let done = match Results::read(&file) {
            Ok(results) if is_same(&results, &subject.origin, &inputs) => Done::Kept,
            Err(error) if file.exists() => {
                complain(&error);
                Done::Run
            }
            _ => Done::Run,
        };
        if done == Done::Run {
            let cell = Cell::compute(&subject.prepared, contestant, seed)?;
            subject.results(vec![cell]).write(&file)?;
        }
        progress(&file, done);
        anyhow::Ok(done)
    })?;
    let kept = done.iter().filter(|done| **done == Done::Kept).count();
    Ok(Tally { run: done.len() - kept, kept })
}

/// Cells that a sweep has, all shards together.
pub fn size(subjects: &[Subject], shard: Shard) -> usize {
    let all: usize = subjects.iter().map(|subject| subject.cells().count()).sum();
    (all + shard.of - shard.part) / shard.of
}

type Job<'a> = (PathBuf, &'a Subject, Option<&'a Contestant>, u64);

/// Every cell with its file.
fn jobs<'a>(subjects: &'a [Subject], folder: &Path) -> anyhow::Result<Vec<Job<'a>>> {
    let mut jobs: Vec<Job<'a>> = Vec::new();
    for subject in subjects {
        for (contestant, seed) in subject.cells() {
            let controller = contestant.map_or(ORACLE, Contestant::name);
            let plain = |text: &str| {
                text.replace(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-', "-")
            };
            let name = [plain(&subject.origin.name), plain(controller), seed.to_string()];
            let file = folder.join(name.join(".") + ".json");
            jobs.push((file, subject, contestant, seed));
        }
    }
    let mut files: Vec<&PathBuf> = jobs.iter().map(|job| &job.0).collect();
    files.sort();
    let twice = files.windows(2).find(|pair| pair[0] == pair[1]);
    let twice = twice.map(|pair| pair[0].display().to_string());
    ensure!(
        twice.is_none(),
        "two results would be {}: scenarios need different names",
        twice.unwrap_or_default()
    );
    Ok(jobs)
}

fn is_same(results: &Results, origin: &Origin, inputs: &str) -> bool {
    let this = results.scenario == *origin
        && env!("CARGO_PKG_VERSION") == results.simulator
        && COMMIT == results.commit;
    this && results.cells.len() == 1 && results.cells[0].inputs == inputs
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::Mutex;

    use super::*;
    use crate::scenario::tests::{SMALL, folder};

    fn subjects(folder: &Path, text: &str) -> Vec<Subject> {
        let file = folder.join("small.toml");
        fs::write(&file, text).expect("written");
        vec![Subject::read(&file, &Selection::default(), "it".into()).expect("valid")]
    }

    fn sweep(
        subjects: &[Subject],
        shard: &str,
        threads: usize,
        out: &Path,
    ) -> (Tally, Vec<String>) {
        let complaints = Mutex::new(Vec::new());
        let complain = |error: &ResultsError| {
            complaints.lock().expect("whole").push(error.to_string());
        };
        let shard = shard.parse().expect("a shard");
        let tally = run(subjects, shard, threads, out, |_, _| {}, complain).expect("runs");
        (tally, complaints.into_inner().expect("whole"))
    }

    fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
        let entries = fs::read_dir(folder).expect("the folder");
        let files = entries.map(|entry| entry.expect("an entry").path());
        let content = |file: PathBuf| {
            let name = file.file_name().map(PathBuf::from).expect("a name");
            (name, fs::read(&file).expect("read"))
        };
        files.map(content).collect()
    }

    #[test]
    fn shards_and_threads_change_no_byte_and_nothing_is_run_twice() {
        let folder = folder();
        let subjects = subjects(folder.path(), SMALL);
        let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
        assert_eq!(sweep(&subjects, "1/1", 1, &whole).0, Tally { run: 8, kept: 0 });
        for (shard, cells) in [("1/3", 3), ("3/3", 2), ("2/3", 3)] {
            assert_eq!(size(&subjects, shard.parse().expect("a shard")), cells);
            assert_eq!(sweep(&subjects, shard, 2, &parts).0, Tally { run: cells, kept: 0 });
        }
        assert_eq!(contents(&parts), contents(&whole));
        assert_eq!(sweep(&subjects, "1/1", 2, &parts).0, Tally { run: 0, kept: 8 });
    }

    #[test]
    fn a_file_that_is_damaged_or_of_another_scenario_is_run_again() {
        let folder = folder();
        let out = folder.path().join("out");
        let first = subjects(folder.path(), SMALL);
        sweep(&first, "1/1", 2, &out);
        let before = contents(&out);
        let [cut, changed] = ["small.mpc.1.json", "small.greedy.2.json"].map(|name| out.join(name));
        let text = fs::read_to_string(&cut).expect("read");
        fs::write(&cut, &text[..text.len() / 2]).expect("written");
        let text = fs::read_to_string(&changed).expect("read");
        fs::write(&changed, text.replacen("\"missed\":", "\"missed\":1", 1)).expect("written");
        let (tally, mut complaints) = sweep(&first, "1/1", 1, &out);
        complaints.sort();
        assert_eq!(tally, Tally { run: 2, kept: 6 });
        assert_eq!(complaints.len(), 2);
        for (complaint, file) in complaints.iter().zip([&changed, &cut]) {
            assert!(complaint.starts_with(&format!("{}: damaged", file.display())), "{complaint}");
        }
        assert_eq!(contents(&out), before);

        let other = subjects(folder.path(), &SMALL.replace("seconds = 20", "seconds = 21"));
        assert_eq!(sweep(&other, "1/1", 2, &out).0, Tally { run: 8, kept: 0 });
    }

    #[test]
    fn a_shard_is_a_part_of_a_whole() {
        for text in ["", "1", "0/2", "3/2", "a/b", "1/0", "-1/2"] {
            assert!(text.parse::<Shard>().is_err(), "{text}");
        }
        assert_eq!("2/3".parse(), Ok(Shard { part: 2, of: 3 }));
    }
}
