//! `simulator rate-accuracy`: quality against bytes.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use isthmus_simulator::figures::{Format, rate_accuracy};

use super::subject::Subject;

/// The options of `rate-accuracy`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    subject: Subject,
    /// Measure every operating point, not only those of the bundle's ladder.
    #[arg(long)]
    all_points: bool,
    /// Write the curve as an SVG picture.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// How to print the results.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// Measures, draws and prints the curve.
pub fn run(args: &Args) -> anyhow::Result<()> {
    ensure!(
        args.subject.images.is_some(),
        "needs pictures of which the truth is known: --images DIR"
    );
    let lab = args.subject.lab()?;
    lab.check_truth()?;
    let measured = rate_accuracy::measure(&lab, args.all_points)?;
    if let Some(file) = &args.plot {
        fs::write(file, rate_accuracy::plot(&measured))
            .with_context(|| file.display().to_string())?;
    }
    match args.format {
        Format::Text => print!("{}", measured.text()),
        Format::Json => println!("{}", serde_json::to_string(&measured)?),
    }
    Ok(())
}
