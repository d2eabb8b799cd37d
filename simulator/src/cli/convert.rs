//! `simulator convert`: a trace in another format.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::PathBuf;

use anyhow::{Context, ensure};
use isthmus_simulator::{Columns, Direction, Format, Trace};

/// The options of `convert`.
#[derive(clap::Args)]
pub struct Args {
    /// Trace to read: mahimahi, Pensieve, CSV or JSON.
    input: PathBuf,
    /// Format to write.
    #[arg(long, value_enum)]
    to: Format,
    /// File to write [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Factor to multiply every rate by.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    scale: f64,
    /// CSV column of the time [default: time_s, time_ms, time_us, time or timestamp]
    #[arg(long, value_name = "NAME")]
    time_column: Option<String>,
    /// CSV column of the rate, ending in bps, kbps, mbps or gbps [default: the only such column]
    #[arg(long, value_name = "NAME")]
    rate_column: Option<String>,
    /// Direction to read from a JSON file.
    #[arg(long, value_enum, default_value_t)]
    direction: Direction,
}

/// Converts the trace.
pub fn run(args: &Args) -> anyhow::Result<()> {
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
