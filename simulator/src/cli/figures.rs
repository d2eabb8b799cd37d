//! `simulator figures`: what the project claims, measured.

use std::io;
use std::path::PathBuf;

use isthmus_simulator::figures::{self, Format};

use super::subject::Subject;

/// The options of `figures`.
#[derive(clap::Args)]
pub struct Args {
    /// Names of figures [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    #[command(flatten)]
    subject: Subject,
    /// Folder of recorded traces, searched with its subfolders, that most of the controllers' figures
    /// need. An index.csv in it with a column `file` selects among them.
    #[arg(long, value_name = "DIR")]
    traces: Option<PathBuf>,
    /// Run the controllers on all traces in every experiment, instead of on one of each group.
    #[arg(long, requires = "traces")]
    full: bool,
    /// Folder of a bundle whose networks were trained for one width, to compare shared weights with;
    /// repeatable.
    #[arg(long, value_name = "DIR")]
    dedicated: Vec<PathBuf>,
    /// Folder of pictures in which nothing is to be found, for the filter's figures, beside those of --truth
    /// without boxes.
    #[arg(long, value_name = "DIR")]
    empty: Option<PathBuf>,
    /// How to print the results.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

/// Measures the figures one after the other, and prints each as soon as it is known.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let selected = figures::select(&args.names)?;
    let mut lab = args.subject.lab()?.with_dedicated(args.dedicated.clone());
    if let Some(folder) = &args.traces {
        lab = lab.with_traces(folder.clone(), args.full);
    }
    if let Some(folder) = &args.empty {
        lab = lab.with_empty(folder.clone());
    }
    figures::print(&selected, &lab, args.format, &mut io::stdout().lock())
}
