//! What compressing a picture costs a device, beside its head.

use std::time::Instant;

use anyhow::Context;
use isthmus_models::{ImageEncoder, ImageSpec, Preprocessor, has_image_format};
use isthmus_proto::ImageFormat;

use super::Measurement;
use super::lab::Lab;

/// Pictures compressed, each so often, turn by turn with the head.
const PICTURES: usize = 40;
const RUNS: usize = 5;
/// In the middle of what is worth sending.
const QUALITY: u8 = 35;

pub(super) fn jpeg_ms_per_megapixel(lab: &Lab) -> anyhow::Result<Measurement> {
    ms_per_megapixel(lab, ImageFormat::Jpeg)
}

pub(super) fn webp_ms_per_megapixel(lab: &Lab) -> anyhow::Result<Measurement> {
    ms_per_megapixel(lab, ImageFormat::Webp)
}

pub(super) fn avif_ms_per_megapixel(lab: &Lab) -> anyhow::Result<Measurement> {
    ms_per_megapixel(lab, ImageFormat::Avif)
}

/// Machines differ; how many of the head's multiply-accumulates it takes as long as is told, too, so
/// that a device whose head's time is known can be given a time for pictures.
fn ms_per_megapixel(lab: &Lab, format: ImageFormat) -> anyhow::Result<Measurement> {
    if !has_image_format(format) {
        return Ok(Measurement::skipped("needs the feature `avif`"));
    }
    let (head, pictures) = (lab.head()?, lab.pictures()?);
    let manifest = lab.bundle().manifest();
    let input = &manifest.input;
    let side = input.width.max(input.height);
    let encoder = ImageEncoder::new(ImageSpec { format, side, quality: QUALITY }, input);
    let widths = &manifest.splits.first().context("the bundle has no split")?.widths;
    let (at, width) = widths.iter().enumerate().next_back().context("a split without widths")?;
    let mut prepared = Vec::new();
    Preprocessor::new(input).run(&pictures[0], &mut prepared);
    // Of each picture the quickest of some runs: whatever else a machine does only slows one down.
    let (mut compress, mut run) = (0.0, f64::INFINITY);
    for picture in pictures.iter().take(PICTURES) {
        let mut quickest = f64::INFINITY;
        for _ in 0..RUNS {
            let start = Instant::now();
            encoder.encode(picture)?;
            quickest = quickest.min(start.elapsed().as_secs_f64() * 1e3);
            let start = Instant::now();
            head.run(0, at as u8, &prepared)?;
            run = run.min(start.elapsed().as_secs_f64() * 1e3);
        }
        compress += quickest;
    }
    let compress = compress / pictures.len().min(PICTURES) as f64;
    let value = compress / (f64::from(input.width) * f64::from(input.height) / 1e6);
    let per_mmac = run / (width.head_macs as f64 / 1e6);
    let detail = format!(
        "crop, resize and {} at quality {QUALITY}, {} x {}: {compress:.2} ms, mean over {} \
         pictures of the quickest of {RUNS}; a megapixel takes as long as {:.0} million \
         multiply-accumulates of {}, {per_mmac:.4} ms each",
        format.name(),
        input.width,
        input.height,
        pictures.len().min(PICTURES),
        value / per_mmac,
        width.name,
    );
    Ok(Measurement::of(value, detail))
}
