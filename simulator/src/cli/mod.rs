//! The program's commands: one file for each, with its options and a `run` that carries them out.

mod bar;
mod camera;
mod codec_comparison;
mod convert;
mod demo;
mod duration;
mod figures;
mod link;
mod list;
mod measure_path;
mod rate_accuracy;
mod record_outcomes;
mod report;
mod run;
mod selection;
mod shell;
mod subject;
mod sweep;
mod truth;
mod view;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Isthmus without boards: a camera, links, scenarios in virtual time, a demonstration over real
/// sockets, and the figures that the project claims.
///
/// An operating point such as s16/w100/c16/b6 says how a network is split: at stride 16 (s), with an
/// encoder of 100% width (w), sending 16 latent channels (c) of 6 bits a symbol (b).
#[derive(Parser)]
#[command(name = "simulator", version)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run camera, client, emulated link and server in one process, and compare controllers.
    Demo(demo::Args),
    /// Write labelled frames of the built-in street camera, as pictures or as a stream.
    Camera(camera::Args),
    /// Measure the figures that the project claims.
    Figures(figures::Args),
    /// Compare the range coder with other coders on a bundle's symbols.
    CodecComparison(codec_comparison::Args),
    /// Measure quality against bytes: operating points, JPEG, WebP and AVIF on the same pictures.
    RateAccuracy(rate_accuracy::Args),
    /// Add compressed pictures to a bundle's record of outcomes; measure a detector's.
    RecordOutcomes(record_outcomes::Args),
    /// Simulate a scenario in virtual time and compare its controllers with the oracle.
    Run(run::Args),
    /// Simulate scenarios on all cores and keep the results; an interrupted sweep resumes.
    Sweep(sweep::Args),
    /// Turn results into a self-contained HTML page, and into CSV tables.
    Report(report::Args),
    /// Emulate a link between real programs, in real time.
    Link(link::Args),
    /// List the built-in links, devices and scenarios.
    List(list::Args),
    /// Measure a real path to a server and write it as a link for simulations.
    #[command(alias = "record")]
    MeasurePath(measure_path::Args),
    /// Convert a trace of a link's rate to another format.
    Convert(convert::Args),
}

impl Cli {
    /// Whether the command takes over the terminal, so that log lines are shown without colours.
    pub fn takes_terminal(&self) -> bool {
        matches!(&self.command, Command::Run(args) if args.takes_terminal())
    }

    /// Carries out the command; the exit code of a success.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let done = match &self.command {
            Command::Demo(args) => demo::run(args),
            Command::Camera(args) => camera::run(args),
            Command::Figures(args) => figures::run(args),
            Command::CodecComparison(args) => codec_comparison::run(args),
            Command::RateAccuracy(args) => rate_accuracy::run(args),
            Command::RecordOutcomes(args) => record_outcomes::run(args),
            Command::Run(args) => run::run(args),
            Command::Sweep(args) => sweep::run(args),
            Command::Report(args) => report::run(args),
            Command::Link(args) => return link::run(args),
            Command::List(args) => list::run(args),
            Command::MeasurePath(args) => measure_path::run(args),
            Command::Convert(args) => convert::run(args),
        };
        done.map(|()| ExitCode::SUCCESS)
    }
}

/// Text for people, or JSON for programs.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}
