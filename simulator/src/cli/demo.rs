//! `simulator demo`: the main job in one process, with a page of what happened.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use isthmus_head_client::config::ControllerKind;
use isthmus_head_client::text;
use isthmus_proto::Bitrate;
use isthmus_simulator::demo::{self, DemoConfig, DemoResult, DemoRun};
use isthmus_simulator::{bundles, report};
use serde_json::json;

use super::{Format, bar, duration, shell, truth};

/// The options of `demo`.
#[derive(clap::Args)]
pub struct Args {
    /// Bundle by name (models/bundles), or a bundle's folder.
    #[arg(long, value_name = "NAME|DIR", default_value = "street")]
    bundle: PathBuf,
    /// Pictures (a file, or a folder by class) instead of the built-in camera's frames.
    #[arg(long, value_name = "FILE|DIR")]
    input: Option<PathBuf>,
    #[command(flatten)]
    truth: truth::Args,
    /// Operating point of the run that does not adapt, such as s16/w100/c16/b6: stride of the split (s),
    /// encoder width in % (w), latent channels sent (c), bits per symbol (b) [default: the bundle's
    /// most accurate]
    #[arg(long)]
    point: Option<String>,
    /// Controller of the adaptive run; `fixed` leaves that run out.
    #[arg(long, value_enum, default_value_t = ControllerKind::Mpc)]
    controller: ControllerKind,
    /// Duration of each run.
    #[arg(long, value_name = "DURATION", default_value = "15s", value_parser = duration::seconds)]
    duration: Duration,
    /// Frames per second.
    #[arg(long, value_name = "FPS", default_value_t = 10.0)]
    rate: f64,
    /// Longest time from capture to output.
    #[arg(
        long,
        alias = "deadline-ms",
        value_name = "DURATION",
        default_value = "300ms",
        value_parser = duration::milliseconds
    )]
    deadline: Duration,
    /// Rate of the uplink at its best, and of the downlink (kbit/s).
    #[arg(long, value_name = "KBITS", default_value_t = 2_000)]
    link_kbits: u64,
    /// Delay of the link in each direction, half of the round trip.
    #[arg(
        long,
        alias = "link-delay-ms",
        value_name = "DURATION",
        default_value = "20ms",
        value_parser = duration::milliseconds_or_zero
    )]
    link_delay: Duration,
    /// Seed of camera and link.
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// HTML page to write.
    #[arg(long, value_name = "FILE", default_value = "report.html")]
    report: PathBuf,
    /// How to print the results.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

impl Args {
    fn config(&self) -> anyhow::Result<DemoConfig> {
        let is_rate = self.rate.is_finite() && self.rate > 0.0;
        ensure!(
            is_rate,
            "--rate must be a positive number of frames per second, not {}",
            self.rate
        );
        Ok(DemoConfig {
            bundle: bundles::find(&self.bundle)?,
            input: self.input.clone(),
            truth: self.truth.file()?,
            point: self.point.clone(),
            controller: self.controller,
            duration: self.duration,
            rate: self.rate,
            deadline: self.deadline,
            link: Bitrate::from_bps(self.link_kbits.saturating_mul(1_000)),
            delay: self.link_delay,
            seed: self.seed,
        })
    }
}

/// Runs the demonstration, writes its page and prints its results.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let config = args.config()?;
    let mut out = io::stdout();
    if args.format == Format::Text {
        writeln!(
            out,
            "bundle {}, {} frames/s, deadline {} ms; an uplink of {} that falls to 15% and 3% and is \
             gone for a moment",
            config.bundle.display(),
            config.rate,
            config.deadline.as_millis(),
            config.link
        )?;
    }
    let frames = (args.duration.as_secs_f64() * args.rate).round() as u64;
    let bar = bar::styled(frames, "{bar:30} {pos}/{len}  {wide_msg}")?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(demo::run(&config, |name, frame| {
        bar.set_position(frame.frame + 1);
        bar.set_message(format!("{name}  {}", text::frame(frame)));
    }));
    bar.finish_and_clear();
    let result = result?;

    fs::write(&args.report, report::demo(&config, &result, &shell::command_line()))
        .with_context(|| args.report.display().to_string())?;
    match args.format {
        Format::Json => write_json(&result, &mut out)?,
        Format::Text => {
            writeln!(out, "\n{}", demo::table(&result))?;
            writeln!(out, "report: {}", args.report.display())?;
        }
    }
    Ok(())
}

/// One line for each frame, and one for each run.
fn write_json(result: &DemoResult, out: &mut impl Write) -> anyhow::Result<()> {
    for DemoRun { name, frames, summary, .. } in &result.runs {
        for frame in frames {
            let mut line = serde_json::to_value(frame)?;
            line["run"] = json!(name);
            writeln!(out, "{line}")?;
        }
        writeln!(out, "{}", json!({ "run": name, "summary": summary }))?;
    }
    Ok(())
}
