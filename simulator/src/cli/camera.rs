//! `simulator camera`: frames of the built-in camera, as pictures or as a stream.

use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use isthmus_simulator::camera::{
    Camera, CameraConfig, LabelledFrame, Stream, StreamFormat, dataset,
};

/// The options of `camera`.
#[derive(clap::Args)]
pub struct Args {
    /// New or empty folder for pictures by class and a COCO-style JSON file.
    #[arg(long, value_name = "DIR", required_unless_present = "stream")]
    out: Option<PathBuf>,
    /// Write a stream to standard output instead, for `head-client run --input -`.
    #[arg(long, value_name = "FORMAT", conflicts_with = "out")]
    stream: Option<StreamFormat>,
    /// Number of frames [default for a stream: until the reader closes it]
    #[arg(long, value_name = "N", required_unless_present = "stream")]
    count: Option<usize>,
    /// Seed of the scene.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Write only every Nth frame, so that neighbours differ.
    #[arg(long, value_name = "N", default_value = "1")]
    stride: NonZeroUsize,
    /// Frames per second of the stream, of scene time and of real time alike [default: 10 of scene
    /// time, as fast as they are read]
    #[arg(long, value_name = "FPS", requires = "stream")]
    rate: Option<f32>,
}

/// Writes the frames.
pub fn run(args: &Args) -> anyhow::Result<()> {
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
