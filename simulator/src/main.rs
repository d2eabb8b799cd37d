//! The program that shows what Isthmus does without a board.

#![forbid(unsafe_code)]

mod cli;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use isthmus_telemetry::log;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let cli = cli::Cli::parse();
    let colours = io::stderr().is_terminal() && !cli.takes_terminal();
    let logger = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours);
    logger.with_writer(log::writer).init();
    match cli.run() {
        Ok(code) => code,
        // Whoever reads has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("simulator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io_error = error.downcast_ref::<io::Error>();
    io_error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}
