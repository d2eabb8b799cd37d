//! The log, to standard error.

use std::io::{self, IsTerminal};

use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt};

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people, coloured on a terminal.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts the log: `filter` is a level, or modules with a level each (`warn,isthmus_proto=debug`).
/// To be called once in a program's life; a second call panics.
pub fn start(filter: &str, format: LogFormat) -> Result<(), ParseError> {
    // Not by span or field: that takes regular expressions, 200 kB of the device's program.
    let filter: Targets = filter.parse()?;
    let lines =
        fmt::layer::<Registry>().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry().with(lines).with(filter).init();
    Ok(())
}
