//! `simulator sweep`: scenarios × controllers × seeds on all cores.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::thread;

use isthmus_simulator::results::ResultsError;
use isthmus_simulator::sweep::{self, Shard, Subject, Tally};

use super::bar;
use super::selection::Overrides;

/// The options of `sweep`.
#[derive(clap::Args)]
pub struct Args {
    /// Scenarios: TOML files, or names of built-in ones (`simulator list scenarios`).
    #[arg(required = true, value_name = "NAME|FILE")]
    scenarios: Vec<PathBuf>,
    #[command(flatten)]
    overrides: Overrides,
    /// Folder for the results: a file for each scenario, controller and seed. Results that are there
    /// already are kept and not computed again.
    #[arg(short, long, value_name = "DIR")]
    out: PathBuf,
    /// Number of threads [default: as many as there are cores]
    #[arg(long, value_name = "N")]
    jobs: Option<NonZeroUsize>,
    /// Run one part of several, such as 2/8, so that several machines divide the work.
    #[arg(long, value_name = "PART/PARTS", default_value = "1/1")]
    shard: Shard,
}

/// Simulates the scenarios and leaves their results in a folder.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let selection = args.overrides.selection();
    let subject = |file: &PathBuf| {
        let command = args.overrides.command("sweep", &file.to_string_lossy());
        Subject::read(file, &selection, command)
    };
    let subjects: Vec<Subject> =
        args.scenarios.iter().map(subject).collect::<anyhow::Result<_>>()?;
    let bar = bar::progress(sweep::size(&subjects, args.shard))?;
    let threads = match args.jobs {
        Some(jobs) => jobs.get(),
        None => thread::available_parallelism().map_or(1, usize::from),
    };
    let progress = |file: &Path, _| {
        bar.set_message(file.file_name().unwrap_or_default().to_string_lossy().into_owned());
        bar.inc(1);
    };
    let complain = |error: &ResultsError| {
        bar.suspend(|| eprintln!("simulator: {error}; it is run again"));
    };
    let done = sweep::run(&subjects, args.shard, threads, &args.out, progress, complain);
    bar.finish_and_clear();
    let Tally { run, kept } = done?;
    let folder = args.out.display();
    writeln!(io::stdout(), "{run} runs, {kept} were there; results in {folder}")?;
    Ok(())
}
