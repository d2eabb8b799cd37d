//! Accuracy against bytes: every operating point through the real codec and networks, and image
//! codecs through the same full network, on the same pictures.

mod curve;
mod images;
mod plot;

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use isthmus_models::{
    Bundle, Full, Head, ImageEncoder, Picture, Preprocessor, TailItem, decode_image,
    max_image_pixels,
};
use isthmus_proto::{Envelope, ImageFormat, OperatingPoint, write_packet};
use isthmus_tail_server::model::{BundleModel, Model};
use serde::Serialize;

use self::curve::{Choice, bd_rate, choose, pareto};
use super::accuracy::is_right;
use super::lab::Lab;

pub(crate) use self::images::settings as image_settings;
pub use self::plot::plot;

/// Losses of accuracy, in points, at which sizes are compared.
const DROPS: [f64; 4] = [0.6, 1.0, 2.0, 3.0];
/// Operating points of the ladder that is tried unless all are asked for.
const RUNGS: usize = 12;
/// Time left in the envelopes, the default deadline.
const TIME_LEFT: Duration = Duration::from_millis(300);

/// What the command measured.
#[derive(Clone, Debug, Serialize)]
pub struct RateAccuracy {
    /// Name and version of the bundle.
    pub bundle: String,
    /// Pictures measured on.
    pub pictures: usize,
    /// Fraction that the full network gets right.
    pub full: f64,
    /// Every scheme that was tried, in order of size.
    pub schemes: Vec<Scheme>,
    /// Bytes at losses of accuracy.
    pub drops: Vec<Drop>,
    /// Bytes saved at equal accuracy (percent; negative is less), against each image codec whose
    /// curve overlaps (Bjøntegaard, 2001, piecewise cubic).
    pub bd_rate: Vec<(Family, f64)>,
}

/// Kinds of schemes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// The split network.
    Split,
    /// JPEG, progressive, with Huffman tables made for each picture.
    Jpeg,
    /// WebP, lossy.
    Webp,
    /// AVIF's frame of AV1.
    Avif,
}

/// A scheme to send pictures: an operating point, or an image codec with its settings.
#[derive(Clone, Debug, Serialize)]
pub struct Scheme {
    /// Its kind.
    pub family: Family,
    /// The operating point, or the codec's picture size (pixels) and quality.
    pub name: String,
    /// Mean size (bytes): of a packet and its envelope, or of the file.
    pub bytes: f64,
    /// Fraction of pictures that are right.
    pub accuracy: f64,
    /// Whether no scheme of its family is both smaller and at least as accurate.
    pub pareto: bool,
    #[serde(skip)]
    pictures: Vec<Sent>,
}

/// How one picture went.
#[derive(Clone, Copy, Debug, Default)]
struct Sent {
    bytes: u32,
    right: bool,
}

/// What accuracy within a loss costs.
#[derive(Clone, Debug, Serialize)]
pub struct Drop {
    /// The loss (points).
    pub points: f64,
    /// Of each family the smallest scheme within it, if any is.
    pub smallest: Vec<(Family, Choice)>,
    /// The split network's bytes over the best image codec's, if both have a scheme.
    pub ratio: Option<f64>,
}

/// Sends every labelled picture of `lab` by every scheme; of operating points the ladder's, or all.
pub fn measure(lab: &Lab, all_points: bool) -> anyhow::Result<RateAccuracy> {
    let bench = Bench::new(lab, all_points)?;
    let rows = lab.each_labelled(|picture, truth| bench.row(picture, truth))?;
    let (full, rows): (Vec<bool>, Vec<Vec<Sent>>) = rows.into_iter().unzip();
    let scheme = |(at, Candidate { family, name, .. }): (usize, &Candidate)| {
        Scheme::new(*family, name.clone(), rows.iter().map(|row| row[at]).collect())
    };
    let mut schemes: Vec<Scheme> = bench.candidates.iter().enumerate().map(scheme).collect();
    schemes.sort_by(|a, b| a.bytes.total_cmp(&b.bytes).then_with(|| a.name.cmp(&b.name)));
    let (mut drops, mut rates) = (Vec::new(), Vec::new());
    let families = [Family::Split, Family::Jpeg, Family::Webp, Family::Avif];
    for family in families {
        pareto(&mut schemes, family);
    }
    for points in DROPS {
        let smallest: Vec<(Family, Choice)> = families
            .iter()
            .filter_map(|&family| Some((family, choose(&schemes, family, &full, points)?)))
            .collect();
        let bytes = |split: bool| {
            let those = smallest.iter().filter(|it| (it.0 == Family::Split) == split);
            those.map(|(_, choice)| choice.bytes).min_by(f64::total_cmp)
        };
        let ratio = bytes(true).zip(bytes(false)).map(|(ours, theirs)| ours / theirs);
        drops.push(Drop { points, smallest, ratio });
    }
    for family in &families[1..] {
        rates.extend(bd_rate(&schemes, *family).map(|rate| (*family, rate)));
    }
    Ok(RateAccuracy {
        bundle: format!("{} {}", lab.bundle().name(), lab.bundle().manifest().version),
        pictures: full.len(),
        full: fraction(&full),
        schemes,
        drops,
        bd_rate: rates,
    })
}

impl Scheme {
    fn new(family: Family, name: String, pictures: Vec<Sent>) -> Scheme {
        let count = pictures.len().max(1) as f64;
        let bytes = pictures.iter().map(|sent| f64::from(sent.bytes)).sum::<f64>() / count;
        let accuracy = pictures.iter().filter(|sent| sent.right).count() as f64 / count;
        Scheme { family, name, bytes, accuracy, pareto: false, pictures }
    }
}

fn fraction(right: &[bool]) -> f64 {
    right.iter().filter(|&&right| right).count() as f64 / right.len().max(1) as f64
}

/// A scheme before it is tried.
struct Candidate {
    family: Family,
    name: String,
    how: How,
}

enum How {
    Point(OperatingPoint),
    Image(Box<ImageEncoder>),
}

/// The networks, and the schemes that each picture is sent by.
struct Bench {
    bundle: Arc<Bundle>,
    head: Arc<Head>,
    model: Arc<BundleModel>,
    full: Full,
    preprocessor: Preprocessor,
    candidates: Vec<Candidate>,
}

impl Bench {
    fn new(lab: &Lab, all_points: bool) -> anyhow::Result<Bench> {
        let bundle = Arc::clone(lab.bundle());
        let mut points = if all_points { lab.shuffled_points() } else { ladder(lab) };
        points.sort_unstable();
        let input = &bundle.manifest().input;
        let points = points.into_iter().map(|point| Candidate {
            family: Family::Split,
            name: bundle.describe_point(point).to_string(),
            how: How::Point(point),
        });
        let images = image_settings(input).into_iter().map(|spec| {
            let (width, height) = spec.size(input);
            Candidate {
                family: match spec.format {
                    ImageFormat::Jpeg => Family::Jpeg,
                    ImageFormat::Webp => Family::Webp,
                    ImageFormat::Avif => Family::Avif,
                },
                name: format!("{width}x{height} q{}", spec.quality),
                how: How::Image(Box::new(ImageEncoder::new(spec, input))),
            }
        });
        Ok(Bench {
            candidates: points.chain(images).collect(),
            head: lab.head()?,
            model: lab.model()?,
            full: lab.full()?,
            preprocessor: Preprocessor::new(input),
            bundle,
        })
    }

    /// Whether the full network is right about a picture, and how each candidate goes.
    fn row(&self, picture: &Picture, truth: &str) -> anyhow::Result<(bool, Vec<Sent>)> {
        let is_right = |outputs: &[Vec<f32>]| is_right(&self.bundle, outputs, truth);
        let mut input = Vec::new();
        self.preprocessor.run(picture, &mut input);
        let right = is_right(&self.full.run(&[&input])?[0]);
        let mut results = vec![Sent::default(); self.candidates.len()];

        let (mut latents, mut sent) = (None, Vec::new());
        for (at, candidate) in self.candidates.iter().enumerate() {
            let How::Point(point) = candidate.how else { continue };
            let OperatingPoint { split, width, layers, bits } = point;
            // Points are in order of split and width: each head runs once.
            if latents.as_ref().is_none_or(|(of, _)| *of != (split, width)) {
                latents = Some(((split, width), self.head.run(split, width, &input)?.latents));
            }
            let Some((_, latents)) = &latents else { continue };
            let codec = self.bundle.codec(split, width, bits).context("a point without codec")?;
            let coded = codec.encode(&codec.quantise(latents, layers.into())?)?;
            let mut frame = Vec::new();
            Envelope { frame: 0, time_left: TIME_LEFT, probe: false }.write(&mut frame);
            write_packet(&mut frame, 0, &self.bundle.digest(), point, &coded);
            results[at].bytes = frame.len() as u32;
            sent.push((at, point, self.model.decode(point, &coded.stream, layers.into())?));
        }
        // Of one split, so that its trunk runs once.
        for sent in sent.chunk_by(|a, b| a.1.split == b.1.split) {
            let items: Vec<TailItem<'_>> = sent
                .iter()
                .map(|&(_, OperatingPoint { split, width, .. }, ref latents)| TailItem {
                    split,
                    width,
                    latents,
                })
                .collect();
            for ((at, ..), outputs) in sent.iter().zip(self.model.infer(&items)?) {
                results[*at].right = is_right(&outputs);
            }
        }

        for (at, candidate) in self.candidates.iter().enumerate() {
            let How::Image(encoder) = &candidate.how else { continue };
            let bytes = encoder.encode(picture)?;
            results[at].bytes = bytes.len() as u32;
            let most = max_image_pixels(&self.bundle.manifest().input);
            let picture = decode_image(encoder.spec().format, &bytes, most)?;
            self.preprocessor.run(&picture, &mut input);
            results[at].right = is_right(&self.full.run(&[&input])?[0]);
        }
        Ok((right, results))
    }
}

/// The bundle's measured points that no other beats in both size and accuracy; of many, some at
/// even distances, the largest among them.
fn ladder(lab: &Lab) -> Vec<OperatingPoint> {
    let mut rungs = lab.bundle().points().to_vec();
    rungs.sort_by(|a, b| {
        a.bytes_mean.total_cmp(&b.bytes_mean).then(b.quality.total_cmp(&a.quality))
    });
    let mut best = f64::MIN;
    rungs.retain(|rung| {
        let better = rung.quality > best;
        best = best.max(rung.quality);
        better
    });
    let last = rungs.len().saturating_sub(1);
    let count = rungs.len().min(RUNGS);
    let chosen = (0..count).map(|n| rungs[last - n * last / count.saturating_sub(1).max(1)].point);
    chosen.collect()
}

impl RateAccuracy {
    /// The results as a person reads them.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{}, {} pictures; the full network is right about {:.2}%\n\n\
             {:<6} {:<22} {:>9} {:>9} {:>7}\n",
            self.bundle,
            self.pictures,
            100.0 * self.full,
            "",
            "scheme",
            "bytes",
            "right %",
            "drop"
        );
        for scheme in self.schemes.iter().filter(|scheme| scheme.pareto) {
            let _ = writeln!(
                text,
                "{:<6} {:<22} {:>9.1} {:>9.2} {:>7.2}",
                scheme.family.name(),
                scheme.name,
                scheme.bytes,
                100.0 * scheme.accuracy,
                100.0 * (self.full - scheme.accuracy),
            );
        }
        text += "\nOnly schemes that none of their kind beats are shown. Smallest scheme within a loss, \
                 chosen on every other picture and measured on the rest (95% interval of the loss, \
                 paired bootstrap):\n";
        for Drop { points, smallest, ratio } in &self.drops {
            let _ = write!(text, "  {points} points:");
            for (family, choice) in smallest {
                let Choice { name, bytes, drop, interval: (low, high) } = choice;
                let _ = write!(
                    text,
                    "  {} {name} {bytes:.0} B ({drop:.2}, {low:.2} to {high:.2});",
                    family.name()
                );
            }
            match ratio {
                Some(ratio) => _ = writeln!(text, "  {ratio:.3} of the best image codec's bytes"),
                None => text += "  nothing to compare\n",
            }
        }
        for (family, rate) in &self.bd_rate {
            let _ = writeln!(text, "BD-rate against {}: {rate:.1}%", family.name());
        }
        text
    }
}

impl Family {
    pub(super) fn name(self) -> &'static str {
        match self {
            Family::Split => "split",
            Family::Jpeg => "jpeg",
            Family::Webp => "webp",
            Family::Avif => "avif",
        }
    }
}
