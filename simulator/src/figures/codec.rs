//! The entropy coder's speed and size on real latents.

use std::time::Instant;

use anyhow::{Context, ensure};
use isthmus_models::Preprocessor;
use isthmus_proto::{FeatureCodec, OperatingPoint};

use super::Measurement;
use super::lab::Lab;
use crate::link::statistics::median;

/// Times that each frame is coded.
const ROUNDS: usize = 8;
/// Pictures on which every operating point is tried.
const PICTURES_PER_POINT: usize = 32;

pub(super) fn symbols_per_second(lab: &Lab) -> anyhow::Result<Measurement> {
    let frames = lab.once(Symbols::collect)?;
    let codec = codec_of(lab, frames.point)?;
    let (mut encode, mut decode) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        for symbols in &frames.symbols {
            let start = Instant::now();
            let coded = codec.encode(symbols)?;
            encode.push(symbols.len() as f64 / start.elapsed().as_secs_f64());
            let start = Instant::now();
            let decoded = codec.decode(&coded.stream, frames.point.layers.into())?;
            decode.push(symbols.len() as f64 / start.elapsed().as_secs_f64());
            ensure!(decoded == *symbols, "the codec does not decode what it encodes");
        }
    }
    let (encode, decode) = (median(&encode), median(&decode));
    let detail = format!(
        "one core, median of {} frames of {} symbols at {}, layers marked; decoding {decode:.3e} \
         symbols/s",
        ROUNDS * frames.symbols.len(),
        frames.symbols[0].len(),
        frames.name(lab),
    );
    Ok(Measurement::of(encode, detail))
}

pub(super) fn over_entropy(lab: &Lab) -> anyhow::Result<Measurement> {
    let frames = lab.once(Symbols::collect)?;
    let (coded, ideal) = sizes(codec_of(lab, frames.point)?, &frames.symbols)?;
    let points = lab.once(coded_points)?;
    let (worst, ratio) = worst(lab, &points, |coded| coded.coded as f64 / coded.ideal);
    let detail = format!(
        "{coded} bytes over Σ −log₂ p = {ideal:.0} bytes, {} {} at {}; of all points \
         the worst is {worst} with {ratio:.4}",
        frames.symbols.len(),
        lab.origin(),
        frames.name(lab),
    );
    Ok(Measurement::of(coded as f64 / ideal, detail))
}

pub(super) fn over_conditional_entropy(lab: &Lab) -> anyhow::Result<Measurement> {
    let points = lab.once(coded_points)?;
    let coded = points.iter().map(|coded| coded.coded).sum::<usize>();
    let ideal = points.iter().map(|coded| coded.ideal).sum::<f64>();
    let detail = format!(
        "{coded} bytes over Σ −log₂ p = {ideal:.0} bytes under the tables that their contexts \
         choose, at all {} points of {PICTURES_PER_POINT} {}",
        points.len(),
        lab.origin(),
    );
    Ok(Measurement::of(coded as f64 / ideal, detail))
}

/// The best point's symbols of many pictures.
pub(super) struct Symbols {
    pub(super) point: OperatingPoint,
    /// `[c, h, w]` each; never empty.
    pub(super) symbols: Vec<Vec<u8>>,
}

impl Symbols {
    pub(super) fn collect(lab: &Lab) -> anyhow::Result<Symbols> {
        let point = lab.best_point();
        let codec = codec_of(lab, point)?;
        let mut symbols = Vec::new();
        for latents in latents(lab, point, usize::MAX)? {
            symbols.push(codec.quantise(&latents, point.layers.into())?);
        }
        Ok(Symbols { point, symbols })
    }

    /// The point in the bundle's words.
    pub(super) fn name(&self, lab: &Lab) -> String {
        lab.bundle().describe_point(self.point).to_string()
    }
}

pub(super) fn codec_of(lab: &Lab, point: OperatingPoint) -> anyhow::Result<&FeatureCodec> {
    let codec = lab.bundle().codec(point.split, point.width, point.bits);
    codec.with_context(|| format!("the bundle has no codec for {point}"))
}

/// Latents of at most `count` pictures at the split and width of `point`.
fn latents(lab: &Lab, point: OperatingPoint, count: usize) -> anyhow::Result<Vec<Vec<f32>>> {
    let (head, pictures) = (lab.head()?, lab.pictures()?);
    let preprocessor = Preprocessor::new(&lab.bundle().manifest().input);
    let mut input = Vec::new();
    let run = |picture| {
        preprocessor.run(picture, &mut input);
        Ok(head.run(point.split, point.width, &input)?.latents)
    };
    pictures.iter().take(count).map(run).collect()
}

/// Coded and ideal bytes of `frames` together.
fn sizes(codec: &FeatureCodec, frames: &[Vec<u8>]) -> anyhow::Result<(usize, f64)> {
    let (mut coded, mut ideal) = (0, 0.0);
    for symbols in frames {
        coded += codec.encode(symbols)?.stream.len();
        ideal += codec.ideal_bits(symbols) / 8.0;
    }
    Ok((coded, ideal))
}

/// Sizes of some pictures, coded at one operating point.
struct CodedPoint {
    point: OperatingPoint,
    /// Bytes of the streams.
    coded: usize,
    /// Σ −log₂ p under the tables that code (bytes).
    ideal: f64,
    /// Bytes of the streams with one table a channel.
    by_channel: usize,
}

/// Codes pictures at every operating point.
fn coded_points(lab: &Lab) -> anyhow::Result<Vec<CodedPoint>> {
    let (mut all, mut run) = (Vec::new(), None);
    let mut points = lab.shuffled_points();
    points.sort_unstable();
    for point in points {
        let head = (point.split, point.width);
        let latents = match run.take() {
            Some((same, latents)) if same == head => latents,
            _ => latents(lab, point, PICTURES_PER_POINT)?,
        };
        let codec = codec_of(lab, point)?;
        let plain = lab.bundle().codec_by_channel(point.split, point.width, point.bits)?;
        let plain = plain.with_context(|| format!("the bundle has no codec for {point}"))?;
        let symbols = latents.iter().map(|latents| codec.quantise(latents, point.layers.into()));
        let symbols = symbols.collect::<Result<Vec<_>, _>>()?;
        let (coded, ideal) = sizes(codec, &symbols)?;
        all.push(CodedPoint { point, coded, ideal, by_channel: sizes(&plain, &symbols)?.0 });
        run = Some((head, latents));
    }
    Ok(all)
}

/// The point with the highest `ratio`, by name.
fn worst(lab: &Lab, points: &[CodedPoint], ratio: impl Fn(&CodedPoint) -> f64) -> (String, f64) {
    let ratios = points.iter().map(|coded| (coded.point, ratio(coded)));
    let worst = ratios.max_by(|a, b| a.1.total_cmp(&b.1));
    let name = |(point, ratio)| (lab.bundle().describe_point(point).to_string(), ratio);
    worst.map_or_else(Default::default, name)
}

pub(super) fn context_gain(lab: &Lab) -> anyhow::Result<Measurement> {
    let points = lab.once(coded_points)?;
    let sum = |of: fn(&CodedPoint) -> usize| points.iter().map(of).sum::<usize>();
    let (coded, by_channel) = (sum(|coded| coded.coded), sum(|coded| coded.by_channel));
    let left = |coded: &CodedPoint| coded.coded as f64 / coded.by_channel as f64;
    let (worst, most) = worst(lab, &points, left);
    let detail = format!(
        "{coded} bytes of streams with contexts, {by_channel} with one table a channel, at all {} \
         points of {PICTURES_PER_POINT} {}; least at {worst}, {:.4}",
        points.len(),
        lab.origin(),
        1.0 - most,
    );
    Ok(Measurement::of(1.0 - coded as f64 / by_channel as f64, detail))
}
