//! Scenario × controller × seed on all cores, one file for each cell.
//!
//! What is in the folder already is not run again, so that a sweep that was interrupted goes on, and
//! shards may write to one folder or to several: `simulator report` reads any number of them.

mod shard;
mod subject;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use isthmus_models::on_threads;

use crate::results::{COMMIT, Cell, Origin, Results, ResultsError};
use crate::scenario::{NamedController, ORACLE};

pub use shard::Shard;
pub use subject::{Selection, Subject};

/// Whether a cell had to be run.
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

/// Runs one shard of the cells of all `subjects` on so many threads, and leaves a file for each in
/// `folder`. `progress` gets the file of each that is done; what is wrong with a file that is run
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
    let done = on_threads(threads, part, |(file, subject, controller, seed)| {
        let inputs = subject.prepared().digest(controller, seed)?;
        let known = Results::read(&file);
        let done = match &known {
            Ok(results) if is_same(results, subject.origin(), &inputs) => Done::Kept,
            _ => Done::Run,
        };
        if let Err(error) = known
            && file.exists()
        {
            complain(&error);
        }
        if done == Done::Run {
            let cell = Cell::compute(subject.prepared(), controller, seed)?;
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

type Job<'a> = (PathBuf, &'a Subject, Option<&'a NamedController>, u64);

/// Every cell with its file.
fn jobs<'a>(subjects: &'a [Subject], folder: &Path) -> anyhow::Result<Vec<Job<'a>>> {
    let mut jobs: Vec<Job<'a>> = Vec::new();
    for subject in subjects {
        for (controller, seed) in subject.cells() {
            let named = controller.map_or(ORACLE, NamedController::name);
            let plain = |text: &str| {
                text.replace(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-', "-")
            };
            let name = [plain(&subject.origin().name), plain(named), seed.to_string()];
            let file = folder.join(name.join(".") + ".json");
            jobs.push((file, subject, controller, seed));
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
