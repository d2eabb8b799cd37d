//! Adds compressed pictures to a bundle's record of outcomes, and measures a detector's.
//!
//! The kit that trains a network records operating points and exits, without naming the pictures. What
//! image codecs make of the same pictures is measured here, with the encoder of the client and the
//! decoder and network of the server. The recorded frames are found again among the pictures by their
//! class and by what the exits say to them. A detector's have no class: they come in the order of their
//! files.

mod boxes;

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, anyhow, bail, ensure};
use isthmus_models::{
    Bundle, Engine, Full, Head, ImageEncoder, ImageSpec, OUTCOMES, Outcome, Outcomes, Photo,
    Preprocessor, RecordedPoint, Task, decode_image, find_photos, max_image_pixels, on_all_cores,
    top_k,
};

use super::rate_accuracy::image_settings;
use super::{TruthFile, sent};

/// Schemes of one codec that are recorded unless they are named: the most accurate of its convex hull.
const MOST_OF_A_CODEC: usize = 5;

/// By how much the confidences of one picture may differ in sum, between two decoders of JPEG and two
/// engines. Those of different pictures differ by more.
const SAME: f64 = 0.25;

/// What recognises a frame: its class, and the answers of what the record and the device both run.
#[derive(Clone, Debug, PartialEq)]
struct Mark {
    label: u32,
    /// Right or not, and confidence.
    answers: Vec<(bool, f32)>,
}

/// One scheme to send pictures, as it was recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordedScheme {
    /// The scheme: format, longer side and quality.
    pub image: ImageSpec,
    /// Mean of envelope and packet (bytes).
    pub bytes: f64,
    /// Mean quality of the answers, 0 to 1: of classes the fraction that are right.
    pub quality: f64,
}

/// Records what the full network makes of the record's frames when they are sent by each scheme of
/// `images`, or, if there is none, in those on each codec's hull of quality over size. The record's
/// pictures have to be among those below `folder`, in the order of their paths. The bundle gets
/// `version`, as its digest changes.
///
/// Of a detector, `truth` says what is really in the pictures. What the record lacks of its points and
/// exits is measured, too, and all of them where the record is of other pictures or was held against
/// another truth.
pub fn record_images(
    bundle: &Arc<Bundle>,
    engine: &dyn Engine,
    folder: &Path,
    truth: Option<&TruthFile>,
    images: &[ImageSpec],
    version: &str,
) -> anyhow::Result<Vec<RecordedScheme>> {
    let first = bundle.manifest().decoders.first().context("the bundle has no decoder")?;
    match (truth, first.task) {
        (Some(truth), Task::Detection) => {
            return boxes::record(bundle, engine, (folder, truth), images, version);
        }
        (None, Task::Classification) => {}
        (None, Task::Detection) => bail!("what is really in the pictures? --truth FILE says it"),
        (Some(_), _) => {
            bail!("the bundle's network finds no boxes, so that --truth judges nothing")
        }
        (None, task) => bail!("the truth of a {} cannot be told", task.name()),
    }
    let mut outcomes = Outcomes::unpack(&bundle.read(OUTCOMES)?).context(OUTCOMES)?;
    let mut photos = find_photos(folder, bundle.labels())?;
    photos.retain(|photo| photo.class.is_some());
    let bench = Bench {
        head: Head::load(Arc::clone(bundle), engine)?,
        full: Full::load(Arc::clone(bundle), engine)?,
        preprocessor: Preprocessor::new(&bundle.manifest().input),
        bundle,
    };
    let (recorded, asked) = bench.recorded(&outcomes)?;
    let marks = on_all_cores(photos.iter(), |photo| bench.mark(photo, &asked))?;
    let places = align(&recorded, &marks).with_context(|| {
        format!("the record's frames are not among the pictures in {}", folder.display())
    })?;

    let input = &bundle.manifest().input;
    let settings = match images {
        [] => image_settings(input),
        named => named.to_vec(),
    };
    let encoders: Vec<_> = settings.iter().map(|&it| ImageEncoder::new(it, input)).collect();
    let frames = places.iter().map(|&place| &photos[place]);
    let rows = on_all_cores(frames, |photo| bench.send(photo, &encoders))?;
    let columns = columns(&rows, settings.len());
    let schemes = keep_images(&mut outcomes, &settings, &columns, !images.is_empty())?;
    bundle.replace(OUTCOMES, &outcomes.pack()?, version)?;
    Ok(schemes)
}

/// The outcomes of each of `count` points, of those of each frame.
fn columns(rows: &[Vec<Outcome>], count: usize) -> Vec<Vec<Outcome>> {
    (0..count).map(|at| rows.iter().map(|row| row[at]).collect()).collect()
}

/// Records these settings' outcomes, or, of ones that nobody named, those on each codec's hull of quality
/// over size, in place of all compressed pictures that were recorded before.
fn keep_images(
    outcomes: &mut Outcomes,
    settings: &[ImageSpec],
    columns: &[Vec<Outcome>],
    named: bool,
) -> anyhow::Result<Vec<RecordedScheme>> {
    let chosen = match named {
        // Chosen by the frames that controllers may know.
        false => hulls(&settings.iter().zip(columns).map(even).collect::<Vec<_>>()),
        true => (0..settings.len()).collect(),
    };
    outcomes.retain(|point| !matches!(point, RecordedPoint::Image(_)));
    for &at in &chosen {
        outcomes.record(RecordedPoint::Image(settings[at]), columns[at].clone())?;
    }
    Ok(chosen.into_iter().map(|at| scheme(settings[at], columns[at].iter())).collect())
}

/// The schemes as a table for people.
pub fn table(schemes: &[RecordedScheme]) -> String {
    let mut text = format!("{:<22} {:>9} {:>9}\n", "picture", "bytes", "quality %");
    for RecordedScheme { image, bytes, quality } in schemes {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{:<22} {bytes:>9.1} {:>9.2}", image.to_string(), 100.0 * quality);
    }
    text
}

/// The networks, and what prepares pictures for them.
struct Bench<'a> {
    bundle: &'a Bundle,
    head: Head,
    full: Full,
    preprocessor: Preprocessor,
}

/// What is run to recognise a frame.
enum Asked {
    Exit(u8, u8),
    Full,
}

impl Bench<'_> {
    /// The marks of the record's frames, and what gives the same ones: its exits or, without any, the
    /// full network.
    fn recorded(&self, outcomes: &Outcomes) -> anyhow::Result<(Vec<Mark>, Vec<Asked>)> {
        let splits = &self.bundle.manifest().splits;
        let exit = |split: &str, width: &str| {
            let s = splits.iter().position(|it| it.name == split)?;
            let w = splits[s].widths.iter().position(|it| it.name == width && it.exit)?;
            Some(Asked::Exit(s as u8, w as u8))
        };
        let points = outcomes.points().iter();
        let exits = points.clone().filter_map(|point| match &point.point {
            RecordedPoint::Exit { split, width } => Some((exit(split, width)?, &point.frames)),
            _ => None,
        });
        let full = points.filter(|point| point.point == RecordedPoint::Full);
        let (mut asked, mut columns): (Vec<_>, Vec<_>) = exits.unzip();
        if asked.is_empty() {
            (asked, columns) = full.map(|point| (Asked::Full, &point.frames)).unzip();
        }
        ensure!(!asked.is_empty(), "the record has no exit, and no full network either");
        let mark = |(frame, &label): (usize, &u32)| {
            let answer = |frames: &&Vec<Outcome>| {
                let Outcome { quality, confidence, .. } = frames[frame];
                (quality == 1.0, confidence)
            };
            Mark { label, answers: columns.iter().map(answer).collect() }
        };
        Ok((outcomes.labels().iter().enumerate().map(mark).collect(), asked))
    }

    /// A picture's mark, or none if it cannot be read, as the kit leaves such pictures out.
    fn mark(&self, photo: &Photo, asked: &[Asked]) -> anyhow::Result<Option<Mark>> {
        let class = photo.class.context("a picture without a class")?;
        let Ok(picture) = photo.read() else { return Ok(None) };
        let mut input = Vec::new();
        self.preprocessor.run(&picture, &mut input);
        let answer = |asked: &Asked| {
            let logits = match *asked {
                Asked::Exit(split, width) => self.head.run(split, width, &input)?.exit,
                Asked::Full => self.full.run(&[&input])?.pop().map(|outputs| outputs.concat()),
            };
            Ok(answer(&logits.unwrap_or_default(), class))
        };
        let answers = asked.iter().map(answer).collect::<anyhow::Result<_>>()?;
        Ok(Some(Mark { label: class as u32, answers }))
    }

    /// What comes of a picture by each scheme.
    fn send(&self, photo: &Photo, encoders: &[ImageEncoder]) -> anyhow::Result<Vec<Outcome>> {
        let class = photo.class.context("a picture without a class")?;
        let named = |problem| anyhow!("{}: {problem}", photo.path.display());
        let picture = photo.read().map_err(named)?;
        let most = max_image_pixels(&self.bundle.manifest().input);
        let mut input = Vec::new();
        let outcome = |encoder: &ImageEncoder| {
            let format = encoder.spec().format;
            let file = encoder.encode(&picture)?;
            let bytes = sent::image_bytes(self.bundle, format, &file) as u32;
            self.preprocessor.run(&decode_image(format, &file, most)?, &mut input);
            let outputs = self.full.run(&[&input])?.pop().unwrap_or_default();
            let (right, confidence) = answer(&outputs.concat(), class);
            let quality = if right { 1.0 } else { 0.0 };
            Ok(Outcome { bytes, quality, confidence, reply: 0 })
        };
        encoders.iter().map(outcome).collect()
    }
}

/// Whether logits are right, and how sure they are. What gives NaN is sure of nothing.
fn answer(logits: &[f32], class: usize) -> (bool, f32) {
    let (best, confidence) = top_k(logits, 1).first().copied().unwrap_or((usize::MAX, 0.0));
    (best == class, if confidence.is_finite() { confidence } else { 0.0 })
}

/// The place among `marks` of each of `recorded`, which come in the same order: those that differ
/// least in sum. An error if one has no place, or is unlike what is there.
fn align(recorded: &[Mark], marks: &[Option<Mark>]) -> anyhow::Result<Vec<usize>> {
    let count = marks.len();
    // least[r][m]: of the first r recorded among the first m marks.
    let mut least = vec![vec![f64::INFINITY; count + 1]; recorded.len() + 1];
    least[0].fill(0.0);
    for (r, mark) in recorded.iter().enumerate() {
        for (m, other) in marks.iter().enumerate() {
            let taken = least[r][m] + distance(mark, other.as_ref());
            least[r + 1][m + 1] = taken.min(least[r + 1][m]);
        }
    }
    ensure!(least[recorded.len()][count].is_finite(), "there are too few of some class");
    let (mut places, mut m) = (vec![0; recorded.len()], count);
    for r in (0..recorded.len()).rev() {
        while least[r + 1][m] == least[r + 1][m - 1] {
            m -= 1;
        }
        m -= 1;
        let apart = distance(&recorded[r], marks[m].as_ref());
        ensure!(apart <= SAME, "frame {r}: confidences are {apart:.2} apart in sum at the nearest");
        places[r] = m;
    }
    Ok(places)
}

fn distance(recorded: &Mark, mark: Option<&Mark>) -> f64 {
    match mark {
        Some(mark) if mark.label == recorded.label => {
            let pairs = recorded.answers.iter().zip(&mark.answers);
            let apart = |((right, a), (other, b)): (&(bool, f32), &(bool, f32))| {
                // An answer that tips over has about the same confidence on both sides.
                f64::from((a - b).abs()) + if right == other { 0.0 } else { SAME / 4.0 }
            };
            pairs.map(apart).sum()
        }
        _ => f64::INFINITY,
    }
}

fn scheme<'a>(image: ImageSpec, frames: impl Iterator<Item = &'a Outcome>) -> RecordedScheme {
    let (mut count, mut bytes, mut quality) = (0.0, 0.0, 0.0);
    for outcome in frames {
        count += 1.0;
        bytes += f64::from(outcome.bytes);
        quality += f64::from(outcome.quality);
    }
    RecordedScheme { image, bytes: bytes / count, quality: quality / count }
}

fn even((image, frames): (&ImageSpec, &Vec<Outcome>)) -> RecordedScheme {
    scheme(*image, frames.iter().step_by(2))
}

/// Positions of the schemes on each codec's upper hull of quality over size, the most accurate ones,
/// in order of codec and size.
fn hulls(schemes: &[RecordedScheme]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..schemes.len()).collect();
    let key = |at: usize| (schemes[at].image.format, schemes[at].bytes);
    order.sort_by(|&a, &b| {
        let ((format, bytes), (other, others)) = (key(a), key(b));
        format.cmp(&other).then(bytes.total_cmp(&others))
    });
    let mut chosen = Vec::new();
    for codec in order.chunk_by(|&a, &b| key(a).0 == key(b).0) {
        let mut hull: Vec<usize> = Vec::new();
        let rise = |from: usize, to: usize| {
            (schemes[to].quality - schemes[from].quality)
                / (schemes[to].bytes - schemes[from].bytes)
        };
        for &at in codec {
            if hull.last().is_some_and(|&last| schemes[at].quality <= schemes[last].quality) {
                continue;
            }
            while let &[.., before, last] = hull.as_slice()
                && rise(before, last) <= rise(last, at)
            {
                hull.pop();
            }
            hull.push(at);
        }
        chosen.extend(&hull[hull.len().saturating_sub(MOST_OF_A_CODEC)..]);
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_proto::ImageFormat;

    fn mark(label: u32, confidence: f32) -> Mark {
        Mark { label, answers: vec![(true, confidence)] }
    }

    #[test]
    fn frames_are_found_in_order_although_confidences_differ_a_little() {
        let marks = [
            Some(mark(0, 0.20)),
            None,
            Some(mark(0, 0.50)),
            Some(mark(0, 0.52)),
            Some(mark(1, 0.50)),
            Some(mark(1, 0.91)),
        ];
        let recorded = [mark(0, 0.51), mark(0, 0.53), mark(1, 0.9)];
        assert_eq!(align(&recorded, &marks).expect("all are there"), [2, 3, 5]);
        let too_many = [mark(1, 0.5), mark(1, 0.5), mark(1, 0.5)];
        let error = align(&too_many, &marks).expect_err("two of class 1").to_string();
        assert!(error.contains("too few"), "{error}");
        let strange = [mark(0, 0.2), mark(1, 0.1)];
        let error = align(&strange, &marks).expect_err("unlike").to_string();
        assert!(error.contains("frame 1: confidences are 0.40 apart"), "{error}");
    }

    #[test]
    fn of_each_codec_the_hull_is_kept() {
        let scheme = |format, bytes, quality| RecordedScheme {
            image: ImageSpec { format, side: 160, quality: 30 },
            bytes,
            quality,
        };
        let (jpeg, webp) = (ImageFormat::Jpeg, ImageFormat::Webp);
        let schemes = [
            scheme(webp, 900.0, 0.9),
            scheme(jpeg, 1_000.0, 0.5),
            scheme(jpeg, 3_000.0, 0.6), // below the line between its neighbours
            scheme(jpeg, 2_000.0, 0.7),
            scheme(jpeg, 4_000.0, 0.8),
            scheme(jpeg, 5_000.0, 0.8),
            scheme(webp, 500.0, 0.8),
        ];
        assert_eq!(hulls(&schemes), [1, 3, 4, 6, 0]);
    }
}
