//! The program that shows what Isthmus does without a board.

mod commands;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use isthmus_head_client::config::ControllerKind;
use isthmus_head_client::text;
use isthmus_proto::{Bitrate, DataSize};
use isthmus_simulator::LinkConfig;
use isthmus_simulator::camera::{CameraConfig, dataset};
use isthmus_simulator::demo::{self, DemoConfig};
use isthmus_simulator::report;
use serde_json::json;
use tracing_subscriber::EnvFilter;

/// Isthmus without boards: camera, emulated link and a demonstration over real sockets.
#[derive(Parser)]
#[command(name = "simulator", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Camera, client, emulated link and server in one process: the main job in one command.
    Demo(DemoArgs),
    /// Write labelled frames of the built-in street camera: folders by class, and a COCO-style JSON.
    Camera(CameraArgs),
    /// Play a scenario in virtual time: devices, link and server, each controller against the oracle.
    Run(commands::RunArgs),
    /// List the built-in links.
    List(commands::ListArgs),
    /// Read a trace of a link's rate, in any known format, and write it in another.
    Convert(commands::ConvertArgs),
}

#[derive(Args)]
struct DemoArgs {
    /// Name of a bundle in models/bundles, or a bundle's folder.
    #[arg(long, value_name = "NAME|DIR", default_value = "street")]
    bundle: PathBuf,
    /// Pictures (a file, or a folder by class) instead of the built-in camera's frames.
    #[arg(long, value_name = "FILE|DIR")]
    input: Option<PathBuf>,
    /// What to run and send, such as s16/w100/c16/b6 [default: the bundle's most accurate]
    #[arg(long)]
    point: Option<String>,
    /// What chooses, frame by frame.
    #[arg(long, value_enum, default_value_t)]
    controller: ControllerKind,
    /// How long to play (seconds).
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    duration: f64,
    /// Frames per second.
    #[arg(long, value_name = "FPS", default_value_t = 10.0)]
    rate: f64,
    /// Longest time from capture to output (milliseconds).
    #[arg(long, value_name = "MS", default_value_t = 300)]
    deadline_ms: u64,
    /// The link's rate in each direction (kbit/s).
    #[arg(long, value_name = "KBITS", default_value_t = 2_000)]
    link_kbits: u64,
    /// The link's delay in each direction (milliseconds); half of the round trip.
    #[arg(long, value_name = "MS", default_value_t = 20)]
    link_delay_ms: u64,
    /// Seed of camera and link.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Where to write the page.
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    report: PathBuf,
    /// How to write the results.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Args)]
struct CameraArgs {
    /// New or empty folder to write to.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Frames to write.
    #[arg(long, value_name = "N")]
    count: usize,
    /// Seed of the scene.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write one frame of so many, so that neighbours differ.
    #[arg(long, value_name = "N", default_value_t = 1)]
    stride: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let done = match Cli::parse().command {
        Command::Demo(args) => demo(&args),
        Command::Camera(args) => camera(&args),
        Command::Run(args) => commands::run(&args),
        Command::List(args) => commands::list(&args),
        Command::Convert(args) => commands::convert(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("simulator: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(args: &DemoArgs) -> anyhow::Result<()> {
    let positive = |value: f64| value.is_finite() && value > 0.0;
    ensure!(positive(args.duration), "--duration must be a positive number of seconds");
    ensure!(positive(args.rate), "--rate must be a positive number of frames per second");
    let config = DemoConfig {
        bundle: find_bundle(&args.bundle)?,
        input: args.input.clone(),
        point: args.point.clone(),
        controller: args.controller,
        duration: Duration::try_from_secs_f64(args.duration).context("--duration")?,
        rate: args.rate,
        deadline: Duration::from_millis(args.deadline_ms),
        link: LinkConfig::constant(
            Bitrate::from_bps(args.link_kbits.saturating_mul(1_000)),
            Duration::from_millis(args.link_delay_ms),
            DataSize::from_bytes(64 << 10),
        ),
        seed: args.seed,
    };
    if args.format == Format::Text {
        println!(
            "bundle {}, link {} each way, {} frames/s, deadline {} ms",
            config.bundle.display(),
            config.link,
            config.rate,
            args.deadline_ms
        );
    }
    let bar = ProgressBar::new((args.duration * args.rate).round() as u64);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len}  {wide_msg}")?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(demo::run(&config, |frame| {
        bar.set_position(frame.frame + 1);
        bar.set_message(text::frame(frame));
    }));
    bar.finish_and_clear();
    let result = result?;

    let command = env::args().collect::<Vec<_>>().join(" ");
    fs::write(&args.report, report::page(&config, &result, &command))
        .with_context(|| args.report.display().to_string())?;
    match args.format {
        Format::Json => {
            for frame in &result.frames {
                println!("{}", serde_json::to_string(frame)?);
            }
            println!("{}", json!({ "summary": result.summary }));
        }
        Format::Text => {
            println!("point {}\n{}", result.point, text::summary(&result.summary));
            println!("\nreport: {}", args.report.display());
        }
    }
    Ok(())
}

fn camera(args: &CameraArgs) -> anyhow::Result<()> {
    let config = CameraConfig { seed: args.seed, ..CameraConfig::default() };
    dataset::write_dataset(&args.out, config, args.count, args.stride)?;
    println!("{} frames in {}", args.count, args.out.display());
    Ok(())
}

/// A folder as given, or a bundle of that name in this repository.
fn find_bundle(name: &Path) -> anyhow::Result<PathBuf> {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/bundles");
    let places = [name.to_owned(), Path::new("models/bundles").join(name), repository.join(name)];
    let found = places.into_iter().find(|place| place.join(isthmus_models::MANIFEST).is_file());
    found.with_context(|| {
        format!(
            "no bundle {}: neither a bundle's folder nor a name in models/bundles",
            name.display()
        )
    })
}
