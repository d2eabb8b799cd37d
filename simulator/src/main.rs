//! The program that shows what Isthmus does without a board.

mod commands;
mod live;
mod show;

use std::env;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use isthmus_head_client::config::ControllerKind;
use isthmus_head_client::text;
use isthmus_models::{Bundle, ImageSpec, Tract};
use isthmus_proto::Bitrate;
use isthmus_simulator::camera::{
    Camera, CameraConfig, LabelledFrame, Stream, StreamFormat, dataset,
};
use isthmus_simulator::demo::{self, DemoConfig, DemoRun};
use isthmus_simulator::figures::rate_accuracy::{self, RateAccuracyArgs};
use isthmus_simulator::figures::{self, Lab};
use isthmus_simulator::recorder;
use isthmus_simulator::report;
use isthmus_telemetry::log;
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
    /// Write labelled frames of the built-in street camera: folders by class and a COCO-style JSON,
    /// or a stream to standard output.
    Camera(CameraArgs),
    /// Measure what the project claims: parity, overhead, coding, accuracy, footprint.
    Figures(figures::Options),
    /// Compare the range coder with other coders on a bundle's symbols, as a Markdown table.
    CodecComparison(figures::Subject),
    /// Measure accuracy against bytes on pictures sorted by class: operating points through the real
    /// codec, JPEG and WebP through the same uncut network.
    RateAccuracy(RateAccuracyArgs),
    /// Add compressed pictures to a bundle's record of outcomes: what JPEG and WebP make of the recorded
    /// frames, through the uncut network.
    RecordOutcomes(RecordArgs),
    /// Play a scenario in virtual time: devices, link and server, each controller against the oracle.
    Run(commands::RunArgs),
    /// Play scenarios in virtual time on all cores, and leave a file of results for each controller and
    /// seed; begun again, it goes on where it was.
    Sweep(commands::SweepArgs),
    /// Make a page of results that can be read on its own, and tables.
    Report(commands::ReportArgs),
    /// Put a link between real programs, in real time: relay UDP and TCP through it.
    Link(live::LinkArgs),
    /// List the built-in links.
    List(commands::ListArgs),
    /// Measure a real path to a server, lightly and heavily loaded, and write a trace of its rate.
    Record(commands::RecordArgs),
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
    /// What the one that does not adapt runs and sends, such as s16/w100/c16/b6 [default: the
    /// bundle's most accurate]
    #[arg(long)]
    point: Option<String>,
    /// What adapts; with fixed, nothing does.
    #[arg(long, value_enum, default_value_t = ControllerKind::Mpc)]
    controller: ControllerKind,
    /// How long each of them plays (seconds).
    #[arg(long, value_name = "SECONDS", default_value_t = 15.0)]
    duration: f64,
    /// Frames per second.
    #[arg(long, value_name = "FPS", default_value_t = 10.0)]
    rate: f64,
    /// Longest time from capture to output (milliseconds).
    #[arg(long, value_name = "MS", default_value_t = 300)]
    deadline_ms: u64,
    /// The uplink's rate where it is good, and the downlink's (kbit/s).
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
struct RecordArgs {
    /// Name of a bundle in models/bundles, or a bundle's folder; its record and manifest are replaced.
    #[arg(long, value_name = "NAME|DIR")]
    bundle: PathBuf,
    /// Folder of pictures by class, among which are those that were recorded.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// How to compress them, such as webp/160/q35; may be given several times [default: what lies on
    /// each codec's hull of accuracy over size]
    #[arg(long = "image", value_name = "FORMAT/SIDE/qQUALITY")]
    ways: Vec<ImageSpec>,
    /// The bundle's new version: client and server need the same one.
    #[arg(long, value_name = "VERSION")]
    new_version: String,
}

#[derive(Args)]
struct CameraArgs {
    /// New or empty folder to write to.
    #[arg(long, value_name = "DIR", required_unless_present = "stream")]
    out: Option<PathBuf>,
    /// Write a stream to standard output instead, for `head-client run --input -`.
    #[arg(long, value_name = "FORMAT", conflicts_with = "out")]
    stream: Option<StreamFormat>,
    /// Frames to write [default for a stream: until nobody reads any more]
    #[arg(long, value_name = "N", required_unless_present = "stream")]
    count: Option<usize>,
    /// Seed of the scene.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write one frame of so many, so that neighbours differ.
    #[arg(long, value_name = "N", default_value = "1")]
    stride: NonZeroUsize,
    /// Stream so many frames per second, in the street as on the clock [default: 10 in the street,
    /// and as fast as they are read]
    #[arg(long, value_name = "FPS", requires = "stream")]
    rate: Option<f32>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    Text,
    Json,
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let Cli { command } = Cli::parse();
    // A view shows lines as they are, without colours.
    let views = matches!(&command, Command::Run(args) if args.is_shown());
    let colours = io::stderr().is_terminal() && !views;
    let logger = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colours);
    logger.with_writer(log::writer).init();
    let mut exit = ExitCode::SUCCESS;
    let done = match command {
        Command::Demo(args) => demo(&args),
        Command::Camera(args) => camera(&args),
        Command::Figures(options) => figures(&options),
        Command::CodecComparison(subject) => codec_comparison(&subject),
        Command::RateAccuracy(args) => rate_accuracy(&args),
        Command::RecordOutcomes(args) => record_outcomes(&args),
        Command::Run(args) => commands::run(&args),
        Command::Sweep(args) => commands::sweep(&args),
        Command::Report(args) => commands::report(&args),
        Command::Link(args) => live::run(&args).map(|code| exit = code),
        Command::List(args) => commands::list(&args),
        Command::Record(args) => commands::record(&args),
        Command::Convert(args) => commands::convert(&args),
    };
    match done {
        Ok(()) => exit,
        // Whoever reads has seen enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
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
        link: Bitrate::from_bps(args.link_kbits.saturating_mul(1_000)),
        delay: Duration::from_millis(args.link_delay_ms),
        seed: args.seed,
    };
    let mut out = io::stdout();
    if args.format == Format::Text {
        writeln!(
            out,
            "bundle {}, {} frames/s, deadline {} ms; an uplink of {} that falls to 15% and 3% and is \
             gone for a moment",
            config.bundle.display(),
            config.rate,
            args.deadline_ms,
            config.link
        )?;
    }
    let bar = ProgressBar::new((args.duration * args.rate).round() as u64);
    bar.set_style(ProgressStyle::with_template("{bar:30} {pos}/{len}  {wide_msg}")?);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(demo::run(&config, |name, frame| {
        bar.set_position(frame.frame + 1);
        bar.set_message(format!("{name}  {}", text::frame(frame)));
    }));
    bar.finish_and_clear();
    let result = result?;

    let command = env::args().collect::<Vec<_>>().join(" ");
    fs::write(&args.report, report::demo(&config, &result, &command))
        .with_context(|| args.report.display().to_string())?;
    match args.format {
        Format::Json => {
            for DemoRun { name, frames, summary, .. } in &result.runs {
                for frame in frames {
                    let mut line = serde_json::to_value(frame)?;
                    line["run"] = json!(name);
                    writeln!(out, "{line}")?;
                }
                writeln!(out, "{}", json!({ "run": name, "summary": summary }))?;
            }
        }
        Format::Text => {
            writeln!(out, "\n{}", demo::table(&result))?;
            writeln!(out, "report: {}", args.report.display())?;
        }
    }
    Ok(())
}

fn camera(args: &CameraArgs) -> anyhow::Result<()> {
    let mut config = CameraConfig { seed: args.seed, ..CameraConfig::default() };
    let stride = args.stride.get();
    if let (Some(out), Some(count)) = (&args.out, args.count) {
        dataset::write_dataset(out, config, count, stride)?;
        writeln!(io::stdout(), "{count} frames in {}", out.display())?;
        return Ok(());
    }
    let format = args.stream.context("--out DIR or --stream FORMAT is needed")?;
    config.frames_per_second = args.rate.unwrap_or(config.frames_per_second);
    let frames = Camera::new(config)?.step_by(stride).take(args.count.unwrap_or(usize::MAX));
    stream(frames, format, config, args.rate).context("standard output")
}

fn stream(
    frames: impl Iterator<Item = LabelledFrame>,
    format: StreamFormat,
    config: CameraConfig,
    rate: Option<f32>,
) -> io::Result<()> {
    let mut stream = Stream::new(io::BufWriter::new(io::stdout().lock()), format, config)?;
    let start = Instant::now();
    for (number, frame) in frames.enumerate() {
        if let Some(rate) = rate {
            let due = start + Duration::from_secs_f64(number as f64 / f64::from(rate));
            thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        stream.write(&frame)?;
    }
    Ok(())
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io_error = error.downcast_ref::<io::Error>();
    io_error.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn figures(options: &figures::Options) -> anyhow::Result<()> {
    let selected = options.select()?;
    let mut lab = lab(options.subject())?.with_dedicated(options.dedicated.clone());
    if let Some(folder) = &options.traces {
        lab = lab.with_traces(folder.clone(), options.full);
    }
    figures::print(&selected, &lab, options.format, &mut io::stdout().lock())
}

fn codec_comparison(subject: &figures::Subject) -> anyhow::Result<()> {
    print!("{}", figures::comparison::table(&lab(subject)?)?);
    Ok(())
}

fn rate_accuracy(args: &RateAccuracyArgs) -> anyhow::Result<()> {
    let subject = args.subject();
    ensure!(subject.images.is_some(), "needs pictures of the bundle's classes: --images DIR");
    let measured = rate_accuracy::measure(&lab(subject)?, args.all_points)?;
    if let Some(file) = &args.plot {
        fs::write(file, rate_accuracy::plot(&measured))
            .with_context(|| file.display().to_string())?;
    }
    match args.format {
        figures::Format::Text => print!("{}", measured.text()),
        figures::Format::Json => println!("{}", serde_json::to_string(&measured)?),
    }
    Ok(())
}

fn record_outcomes(args: &RecordArgs) -> anyhow::Result<()> {
    let bundle = Arc::new(Bundle::open(&find_bundle(&args.bundle)?)?);
    let (images, version) = (&args.images, &args.new_version);
    let ways = recorder::record_images(&bundle, &Tract, images, &args.ways, version)?;
    print!("{}", recorder::table(&ways));
    Ok(())
}

fn lab(subject: &figures::Subject) -> anyhow::Result<Lab> {
    let bundle = Arc::new(Bundle::open(&find_bundle(&subject.bundle)?)?);
    Ok(Lab::new(bundle, Arc::new(Tract), subject.images.clone(), subject.limit))
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
