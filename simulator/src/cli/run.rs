//! `simulator run`: one scenario in virtual time.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::ValueEnum;
use isthmus_head_client::live;
use isthmus_simulator::results::Comparison;
use isthmus_simulator::scenario::{self, Line};
use isthmus_simulator::sweep::Subject;

use super::selection::Overrides;
use super::{bar, view};

/// The options of `run`.
#[derive(clap::Args)]
pub struct Args {
    /// Scenario: a TOML file, or the name of a built-in one (`simulator list scenarios`).
    #[arg(value_name = "NAME|FILE")]
    scenario: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
    /// Write all measurements to a file, for `simulator report`.
    #[arg(short, long, value_name = "RESULTS.json")]
    out: Option<PathBuf>,
    /// How to print the results.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
    /// First show each controller's run with the first seed on the terminal; Ctrl-C skips to the
    /// results.
    #[arg(long)]
    tui: bool,
    /// Speed of that view, as a multiple of real time.
    #[arg(long, value_name = "FACTOR", default_value_t = 10.0, requires = "tui")]
    speed: f64,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
    Csv,
}

impl Args {
    /// Whether runs are shown on the terminal.
    pub fn takes_terminal(&self) -> bool {
        self.tui
    }
}

/// Simulates the scenario and prints its results.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let command = args.overrides.command("run", &args.scenario.to_string_lossy());
    let subject = Subject::read(&args.scenario, &args.overrides.selection(), command)?;
    if args.tui {
        let speed = args.speed;
        let is_factor = speed.is_finite() && speed > 0.0;
        ensure!(is_factor, "--speed must be a number greater than 0, not {speed}");
        live::check_terminal().context("--tui")?;
    }
    let bar = bar::progress(subject.prepared().runs())?;
    let results = subject.run(|done| {
        bar.set_message(done.to_owned());
        bar.inc(1);
    });
    bar.finish_and_clear();
    let results = results?;
    if let Some(file) = &args.out {
        results.write(file)?;
    }
    // After the results are written: a signal that ends the view must not take them away.
    if args.tui {
        view::show(subject.prepared(), args.speed)?;
    }
    let (comparisons, _) = Comparison::gather(vec![(PathBuf::new(), results)]);
    let lines: Vec<Line> = comparisons.iter().flat_map(Comparison::lines).collect();
    let mut out = io::stdout().lock();
    match args.format {
        Format::Text => {
            let description = subject.prepared().description();
            writeln!(out, "{description}\n\n{}", scenario::table(&lines))?;
        }
        Format::Csv => write!(out, "{}", scenario::csv(&lines))?,
        Format::Json => {
            for line in &lines {
                writeln!(out, "{}", serde_json::to_string(line)?)?;
            }
        }
    }
    Ok(())
}
