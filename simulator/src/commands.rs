//! Commands about links, traces and scenarios.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use isthmus_simulator::profile::BUILT_IN;
use isthmus_simulator::scenario::{self, Scenario};
use isthmus_simulator::{Columns, Direction, Format, PathSpec, Trace};
use serde_json::json;

/// What `list` is told.
#[derive(Args)]
pub struct ListArgs {
    /// How to write the list.
    #[arg(long, value_enum, default_value_t = ListFormat::Text)]
    format: ListFormat,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ListFormat {
    Text,
    Json,
}

/// What `convert` is told.
#[derive(Args)]
pub struct ConvertArgs {
    /// Trace to read: mahimahi, Pensieve, CSV or JSON.
    input: PathBuf,
    /// Format to write.
    #[arg(long, value_enum)]
    to: Format,
    /// File to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Multiply every rate.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    scale: f64,
    /// Column of a CSV file with the time.
    #[arg(long, value_name = "NAME")]
    time_column: Option<String>,
    /// Column of a CSV file with the rate, ending in bps, kbps, mbps or gbps.
    #[arg(long, value_name = "NAME")]
    rate_column: Option<String>,
    /// Which way to take of a JSON file.
    #[arg(long, value_enum, default_value_t)]
    direction: Direction,
}

/// What `run` is told.
#[derive(Args)]
pub struct RunArgs {
    /// Scenario to play (TOML), such as one of configs/scenarios.
    scenario: PathBuf,
    /// How to write the results to standard output.
    #[arg(long, value_enum, default_value_t = RunFormat::Text)]
    format: RunFormat,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum RunFormat {
    Text,
    Json,
    Csv,
}

/// Plays a scenario.
pub fn run(args: &RunArgs) -> anyhow::Result<()> {
    let prepared = Scenario::read(&args.scenario)?.prepare(&args.scenario)?;
    let bar = ProgressBar::new(prepared.runs() as u64);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len}  {wide_msg}")?);
    let lines = prepared.run(|done| {
        bar.set_message(done.to_owned());
        bar.inc(1);
    });
    bar.finish_and_clear();
    let lines = lines?;
    let mut out = io::stdout().lock();
    match args.format {
        RunFormat::Text => {
            writeln!(out, "{}\n\n{}", prepared.description(), scenario::table(&lines))?;
        }
        RunFormat::Csv => write!(out, "{}", scenario::csv(&lines))?,
        RunFormat::Json => {
            for line in &lines {
                writeln!(out, "{}", serde_json::to_string(line)?)?;
            }
        }
    }
    Ok(())
}

/// Lists the built-in links.
pub fn list(args: &ListArgs) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    for (name, _) in BUILT_IN {
        let (spec, folder) = PathSpec::find(name)?;
        let config = spec.to_config(&folder, 1)?;
        let (up, down) = (config.uplink.to_string(), config.downlink.to_string());
        match args.format {
            ListFormat::Text => {
                writeln!(out, "{name}\n    {}\n    up {up}; down {down}", spec.description)?;
                writeln!(out, "    {}", spec.source)?;
            }
            ListFormat::Json => {
                let PathSpec { description, source, .. } = &spec;
                let line = json!({
                    "link": name, "description": description, "source": source,
                    "uplink": up, "downlink": down,
                });
                writeln!(out, "{line}")?;
            }
        }
    }
    Ok(())
}

/// Converts a trace.
pub fn convert(args: &ConvertArgs) -> anyhow::Result<()> {
    ensure!(
        args.scale.is_finite() && args.scale > 0.0,
        "--scale must be a number greater than 0, not {}",
        args.scale
    );
    let columns = Columns {
        time: args.time_column.clone(),
        rate: args.rate_column.clone(),
        direction: args.direction,
    };
    let trace = Trace::read(&args.input, &columns)?;
    let trace = if args.scale == 1.0 { trace } else { trace.scaled(args.scale) };
    let mut out: Box<dyn Write> = match &args.out {
        Some(path) => Box::new(File::create(path).with_context(|| path.display().to_string())?),
        None => Box::new(io::stdout().lock()),
    };
    let mut buffered = BufWriter::new(&mut out);
    trace.write(args.to, &mut buffered).and_then(|()| buffered.flush())?;
    eprintln!("{:.3} s, {} in the mean", trace.duration().as_secs_f64(), trace.mean_rate());
    Ok(())
}
