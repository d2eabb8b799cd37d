//! `simulator report`: results as a page and as tables.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use isthmus_simulator::results::{self, Comparison, Results};
use isthmus_simulator::{report, scenario};

use super::shell;

/// The options of `report`.
#[derive(clap::Args)]
pub struct Args {
    /// Results: files of `simulator run -o`, or folders of `simulator sweep`.
    #[arg(required = true, value_name = "FILE|DIR")]
    results: Vec<PathBuf>,
    /// HTML page to write.
    #[arg(short, long, value_name = "FILE", default_value = "report.html")]
    out: PathBuf,
    /// Folder for tables as well: runs.csv, ends.csv and timelines.csv.
    #[arg(long, value_name = "DIR")]
    csv: Option<PathBuf>,
}

/// Writes the page and the tables, and prints the numbers.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut read = Vec::new();
    for place in &args.results {
        for file in result_files(place)? {
            match Results::read(&file) {
                Ok(results) => read.push((file, results)),
                Err(error) => eprintln!("simulator: {error}; it is left out"),
            }
        }
    }
    ensure!(!read.is_empty(), "no results to report");
    let (comparisons, conflicts) = Comparison::gather(read);
    for conflict in conflicts {
        eprintln!("simulator: {conflict}");
    }
    fs::write(&args.out, report::comparisons(&comparisons, &shell::command_line()))
        .with_context(|| args.out.display().to_string())?;
    if let Some(folder) = &args.csv {
        results::csv::write(&comparisons, folder)?;
    }
    let mut out = io::stdout().lock();
    for comparison in &comparisons {
        let lines = comparison.lines();
        writeln!(out, "{}\n\n{}", comparison.scenario.description(), scenario::table(&lines))?;
    }
    writeln!(out, "report: {}", args.out.display())?;
    Ok(())
}

/// A file, or the files of a folder that could hold results, in order of their names.
fn result_files(place: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let named = || place.display().to_string();
    if !fs::metadata(place).with_context(named)?.is_dir() {
        return Ok(vec![place.to_owned()]);
    }
    let entries = fs::read_dir(place).with_context(named)?;
    let files = entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>();
    let mut files = files.with_context(named)?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "json"));
    files.sort();
    ensure!(!files.is_empty(), "{}: the folder has no results (*.json)", named());
    Ok(files)
}
