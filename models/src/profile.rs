//! A profile: measured times of the device's part on this machine.

use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_proto::CodecError;
use serde::{Deserialize, Serialize};

use crate::bundle::Bundle;
use crate::engine::Engine;
use crate::head::Head;
use crate::picture::{Picture, PictureError};
use crate::prepared::{LoadError, RunError};
use crate::preprocess::Preprocessor;

/// Runs before each measurement whose time does not count.
const WARM_UP: u32 = 3;

/// Why a profile could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The heads do not load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A head does not run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// A codec refuses what its head gives.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The test picture could not be made.
    #[error(transparent)]
    Picture(#[from] PictureError),
}

/// Measured times of a bundle's heads on one machine. It serialises to TOML and back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// The bundle's name.
    pub bundle: String,
    /// The bundle's digest, in hexadecimal: a profile says nothing about other weights.
    pub digest: String,
    /// The engine's name.
    pub engine: String,
    /// Architecture and operating system of the machine, such as `aarch64-linux`.
    pub platform: String,
    /// Runs behind each timing.
    pub runs: u32,
    /// From a decoded picture of 640 × 480 to the network's input.
    pub preprocess: Timing,
    /// One entry for each split and width, in the manifest's order.
    pub heads: Vec<HeadTiming>,
}

/// Times of one split and width.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeadTiming {
    /// The split's name.
    pub split: String,
    /// The width's name.
    pub width: String,
    /// The head's graph, from the network's input to latents and exit logits: the exit is part of
    /// it and costs no second run.
    pub head: Timing,
    /// One entry for each bit depth.
    pub encode: Vec<EncodeTiming>,
}

/// Time of one codec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncodeTiming {
    /// Bit depth.
    pub bits: u8,
    /// From latents to the stream of all layers.
    pub time: Timing,
}

/// What many runs took.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Timing {
    /// Median (ms).
    pub p50_ms: f64,
    /// 95th percentile (ms).
    pub p95_ms: f64,
}

impl Profile {
    /// Measures every head of `bundle` on the calling thread, each timing over `runs` runs (at
    /// least 1) after a few that do not count.
    pub fn measure(
        bundle: &Arc<Bundle>,
        engine: &dyn Engine,
        runs: u32,
    ) -> Result<Profile, ProfileError> {
        let runs = runs.max(1);
        let head = Head::load(Arc::clone(bundle), engine)?;
        let (preprocessor, picture) =
            (Preprocessor::new(&bundle.manifest().input), test_picture(640, 480)?);
        let mut input = Vec::new();
        let preprocess = Timing::measure(runs, || -> Result<(), ProfileError> {
            preprocessor.run(&picture, &mut input);
            Ok(())
        })?;
        let mut heads = Vec::new();
        for (s, split) in bundle.manifest().splits.iter().enumerate() {
            for (w, width) in split.widths.iter().enumerate() {
                let (s, w) = (s as u8, w as u8);
                let head_time = Timing::measure(runs, || head.run(s, w, &input))?;
                let latents = head.run(s, w, &input)?.latents;
                let mut encode = Vec::new();
                for bits in width.quantisers.iter().map(|quantiser| quantiser.bits) {
                    let codec = bundle.codec(s, w, bits);
                    let codec = codec.ok_or(RunError::Point { split: s, width: w })?;
                    let time = Timing::measure(runs, || {
                        codec.encode(&codec.quantise(&latents, split.channels.len())?)
                    })?;
                    encode.push(EncodeTiming { bits, time });
                }
                heads.push(HeadTiming {
                    split: split.name.clone(),
                    width: width.name.clone(),
                    head: head_time,
                    encode,
                });
            }
        }
        Ok(Profile {
            bundle: bundle.name().to_owned(),
            digest: bundle.digest().to_string(),
            engine: engine.name().to_owned(),
            platform: format!("{}-{}", std::env::consts::ARCH, std::env::consts::OS),
            runs,
            preprocess,
            heads,
        })
    }

    /// The times of a split and width, by name.
    pub fn head(&self, split: &str, width: &str) -> Option<&HeadTiming> {
        self.heads.iter().find(|head| head.split == split && head.width == width)
    }
}

impl Timing {
    /// Percentiles of `samples` by nearest rank; zero of none.
    ///
    /// ```
    /// use std::time::Duration;
    /// let timing = isthmus_models::Timing::of((1..=100).map(Duration::from_millis).collect());
    /// assert_eq!((timing.p50_ms, timing.p95_ms), (50.0, 95.0));
    /// ```
    pub fn of(mut samples: Vec<Duration>) -> Timing {
        samples.sort();
        let percentile = |percent: usize| {
            let rank = (samples.len() * percent).div_ceil(100).max(1);
            samples.get(rank - 1).map_or(0.0, |sample| sample.as_secs_f64() * 1e3)
        };
        Timing { p50_ms: percentile(50), p95_ms: percentile(95) }
    }

    /// Times `runs` runs of `work`, after a few that do not count; the first error ends it.
    pub fn measure<T, E>(runs: u32, mut work: impl FnMut() -> Result<T, E>) -> Result<Timing, E> {
        let mut samples = Vec::new();
        for run in 0..WARM_UP + runs {
            let start = Instant::now();
            work()?;
            if run >= WARM_UP {
                samples.push(start.elapsed());
            }
        }
        Ok(Timing::of(samples))
    }
}

/// Smooth shading under a fine pattern: neither flat, which would code to nothing, nor noise.
/// Sides are in pixels.
pub(crate) fn test_picture(width: u32, height: u32) -> Result<Picture, PictureError> {
    let rgb = (0..height).flat_map(|y: u32| {
        (0..width).flat_map(move |x: u32| {
            let pattern = ((x * 7) ^ (y * 13)) & 63;
            [x * 190 / width + pattern, y * 190 / height + pattern, (x + y) / 6 + pattern]
        })
    });
    Picture::new(width, height, rgb.map(|v| v.min(255) as u8).collect())
}
