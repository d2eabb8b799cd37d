//! The record of a detector, measured on pictures whose true boxes are known.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow, ensure};
use isthmus_head_client::source::photos_with_boxes;
use isthmus_models::{
    Bundle, Engine, Full, Head, ImageEncoder, ImageSpec, OUTCOMES, Outcome, Outcomes, Outputs,
    Photo, Picture, Preprocessor, RecordedPoint, Tail, TailItem, TrueBoxes, Truth, View,
    decode_image, max_image_pixels, on_all_cores,
};
use isthmus_proto::OperatingPoint;

use super::super::found::{Found, threshold};
use super::super::rate_accuracy::image_settings;
use super::super::{TruthFile, sent};
use super::{RecordedScheme, columns, keep_images};

/// By how much the qualities and confidences of a point may differ in the mean, between a record and what
/// is measured now, so that they are of the same pictures and the same truth.
const SAME: f64 = 0.02;

pub(super) fn record(
    bundle: &Arc<Bundle>,
    engine: &dyn Engine,
    (folder, truth): (&Path, &TruthFile),
    images: &[ImageSpec],
    version: &str,
) -> anyhow::Result<Vec<RecordedScheme>> {
    let TruthFile { file, renamed } = truth;
    let (photos, truth) = photos_with_boxes(folder, bundle.labels(), file, renamed)?;
    let bench = Bench::load(bundle, engine, truth)?;
    let rows = on_all_cores(photos.iter(), |photo| bench.unsent(photo))?;
    let known = photos.iter().zip(rows).filter_map(|(photo, row)| Some((photo, row?)));
    let (frames, rows): (Vec<&Photo>, Vec<Vec<Outcome>>) = known.unzip();
    ensure!(!frames.is_empty(), "{}: no picture of known truth", folder.display());

    let unsent = bench.unsent_points();
    let measured = columns(&rows, unsent.len());
    let measured: Vec<(RecordedPoint, Vec<Outcome>)> = unsent.into_iter().zip(measured).collect();
    let mut outcomes = match recorded(bundle)?.filter(|old| is_of(old, &measured)) {
        Some(old) => old,
        None => Outcomes::new(vec![0; frames.len()]),
    };
    for (point, frames) in measured {
        outcomes.record(point, frames)?;
    }
    let is_split = |point: &RecordedPoint| matches!(point, RecordedPoint::Split(_));
    let points = match outcomes.points().iter().any(|it| is_split(&it.point)) {
        true => Vec::new(),
        false => bundle.all_points(),
    };
    let settings = match images {
        [] => image_settings(&bundle.manifest().input),
        named => named.to_vec(),
    };
    let input = &bundle.manifest().input;
    let encoders: Vec<_> = settings.iter().map(|&it| ImageEncoder::new(it, input)).collect();
    let rows = on_all_cores(frames.into_iter(), |photo| bench.send(photo, &points, &encoders))?;
    let mut all = columns(&rows, points.len() + settings.len());
    let of_images = all.split_off(points.len());
    for (point, frames) in points.into_iter().zip(all) {
        outcomes.record(RecordedPoint::Split(bundle.describe_point(point)), frames)?;
    }
    let schemes = keep_images(&mut outcomes, &settings, &of_images, !images.is_empty())?;
    bundle.replace_record(&outcomes, version)?;
    Ok(schemes)
}

/// The bundle's record, if it has one.
fn recorded(bundle: &Bundle) -> anyhow::Result<Option<Outcomes>> {
    if !bundle.manifest().files.contains_key(OUTCOMES) {
        return Ok(None);
    }
    Ok(Some(Outcomes::unpack(&bundle.read(OUTCOMES)?).context(OUTCOMES)?))
}

/// Whether a record is of the frames that were measured, in their order, and held against their truth.
fn is_of(old: &Outcomes, measured: &[(RecordedPoint, Vec<Outcome>)]) -> bool {
    let same = |(point, frames): &(RecordedPoint, Vec<Outcome>)| {
        let Some(known) = old.points().iter().find(|it| it.point == *point) else { return true };
        let pairs = known.frames.iter().zip(frames);
        let (quality, confidence) = pairs.fold((0.0, 0.0), |(quality, confidence), (a, b)| {
            let apart = |a: f32, b: f32| f64::from((a - b).abs());
            (quality + apart(a.quality, b.quality), confidence + apart(a.confidence, b.confidence))
        });
        f64::max(quality, confidence) <= SAME * frames.len() as f64
    };
    let frames = measured.first().map_or(0, |(_, frames)| frames.len());
    old.frames() == frames && measured.iter().all(same)
}

/// The networks, and what is true of the pictures.
struct Bench<'a> {
    bundle: &'a Bundle,
    head: Head,
    tail: Tail,
    full: Full,
    preprocessor: Preprocessor,
    truth: Truth,
}

/// A picture and its objects, as the networks take it.
struct Prepared {
    picture: Picture,
    truth: TrueBoxes,
    input: Vec<f32>,
}

impl<'a> Bench<'a> {
    fn load(
        bundle: &'a Arc<Bundle>,
        engine: &dyn Engine,
        truth: Truth,
    ) -> anyhow::Result<Bench<'a>> {
        Ok(Bench {
            head: Head::load(Arc::clone(bundle), engine)?,
            tail: Tail::load(Arc::clone(bundle), engine)?,
            full: Full::load(Arc::clone(bundle), engine)?,
            preprocessor: Preprocessor::new(&bundle.manifest().input),
            bundle,
            truth,
        })
    }

    /// The heads with an exit.
    fn exits(&self) -> impl Iterator<Item = (u8, u8)> {
        let splits = (0..).zip(&self.bundle.manifest().splits);
        splits.flat_map(|(s, split)| {
            let widths = (0..).zip(&split.widths).filter(|(_, width)| width.exit);
            widths.map(move |(w, _)| (s, w))
        })
    }

    /// What is recorded although nothing is sent: every exit, and the full network.
    fn unsent_points(&self) -> Vec<RecordedPoint> {
        let exit = |(split, width)| {
            let name =
                self.bundle.describe_point(OperatingPoint { split, width, layers: 1, bits: 1 });
            RecordedPoint::Exit { split: name.split, width: name.width }
        };
        self.exits().map(exit).chain([RecordedPoint::Full]).collect()
    }

    /// What these make of a picture; nothing of one that cannot be read or of which nothing is known.
    fn unsent(&self, photo: &Photo) -> anyhow::Result<Option<Vec<Outcome>>> {
        let Ok(seen) = self.read(photo) else { return Ok(None) };
        let mut outcomes = Vec::new();
        for (split, width) in self.exits() {
            let logits = self.head.run(split, width, &seen.input)?.exit.unwrap_or_default();
            let answer = self.bundle.decoders().exit_answer(logits, None);
            let confidence = answer.map_or(0.0, |answer| answer.1);
            // An exit finds nothing.
            let quality = seen.truth.f1(&[], threshold(self.bundle)) as f32;
            outcomes.push(Outcome { bytes: 0, quality, confidence, reply: 0 });
        }
        let outputs = self.full.run(&[&seen.input])?.pop().context("the network gave nothing")?;
        let full = self.outcome(outputs, &seen, None, 0)?;
        outcomes.push(Outcome { reply: 0, ..full });
        Ok(Some(outcomes))
    }

    /// What comes of a picture by each point, then by each compression.
    fn send(
        &self,
        photo: &Photo,
        points: &[OperatingPoint],
        encoders: &[ImageEncoder],
    ) -> anyhow::Result<Vec<Outcome>> {
        let mut seen = self.read(photo)?;
        let mut outcomes = Vec::with_capacity(points.len() + encoders.len());
        let mut latents = None;
        for &point in points {
            let OperatingPoint { split, width, .. } = point;
            // Points are in order of split and width: each head runs once.
            if latents.as_ref().is_none_or(|(of, _)| *of != (split, width)) {
                latents = Some(((split, width), self.head.run(split, width, &seen.input)?.latents));
            }
            let Some((_, latents)) = &latents else { continue };
            let (_, bytes) = sent::features(self.bundle, point, latents)?;
            let latents = sent::arrived(self.bundle, point, latents)?;
            let outputs = self.tail.run(&[TailItem { split, width, latents: &latents }])?;
            let outputs = outputs.into_iter().next().context("the tail gave nothing")?;
            outcomes.push(self.outcome(outputs, &seen, None, bytes)?);
        }
        let most = max_image_pixels(&self.bundle.manifest().input);
        for encoder in encoders {
            let image = encoder.spec();
            let file = encoder.encode(&seen.picture)?;
            let bytes = sent::image_bytes(self.bundle, image.format, &file);
            self.preprocessor.run(&decode_image(image.format, &file, most)?, &mut seen.input);
            let outputs =
                self.full.run(&[&seen.input])?.pop().context("the network gave nothing")?;
            outcomes.push(self.outcome(outputs, &seen, Some(image), bytes)?);
        }
        Ok(outcomes)
    }

    fn read(&self, photo: &Photo) -> anyhow::Result<Prepared> {
        let named = |problem| anyhow!("{}: {problem}", photo.path.display());
        let picture = photo.read().map_err(named)?;
        let truth = self.truth.true_boxes(&photo.path, picture.width(), picture.height())?;
        let mut input = Vec::new();
        self.preprocessor.run(&picture, &mut input);
        Ok(Prepared { picture, truth, input })
    }

    /// What was found in a picture of which all or what was compressed was sent.
    fn outcome(
        &self,
        outputs: Outputs,
        seen: &Prepared,
        image: Option<ImageSpec>,
        bytes: usize,
    ) -> anyhow::Result<Outcome> {
        let size = (seen.picture.width(), seen.picture.height());
        let view = View::new(&self.bundle.manifest().input, image, size);
        let Found { boxes, confidence, reply } = Found::of(self.bundle, outputs, &view)?;
        let quality = seen.truth.f1(&boxes, threshold(self.bundle)) as f32;
        Ok(Outcome { bytes: bytes as u32, quality, confidence, reply })
    }
}
