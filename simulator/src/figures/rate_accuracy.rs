//! Accuracy against bytes: every operating point through the real codec and networks, and image
//! codecs through the same uncut network, on the same pictures.

mod curve;
mod images;
mod plot;

use std::fmt::Write as _;
use std::path::PathBuf;
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
use super::{Format, Subject};

pub(crate) use self::images::settings as image_settings;
pub use self::plot::plot;

/// Losses of accuracy, in points, at which sizes are compared.
const DROPS: [f64; 4] = [0.6, 1.0, 2.0, 3.0];
/// Operating points of the ladder that is tried unless all are asked for.
const RUNGS: usize = 12;
/// Time left in the envelopes, the default deadline.
const TIME_LEFT: Duration = Duration::from_millis(300);

/// What to measure, and how to tell it.
#[derive(Clone, Debug, clap::Args)]
pub struct RateAccuracyArgs {
    #[command(flatten)]
    subject: Subject,
    /// Every operating point; the bundle's ladder by default.
    #[arg(long)]
    pub all_points: bool,
    /// Write the curve as an SVG picture.
    #[arg(long, value_name = "FILE")]
    pub plot: Option<PathBuf>,
    /// How to write the results.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

impl RateAccuracyArgs {
    /// What to measure on.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }
}

/// What the command measured.
#[derive(Clone, Debug, Serialize)]
pub struct RateAccuracy {
    /// Name and version of the bundle.
    pub bundle: String,
    /// Pictures measured on.
    pub pictures: usize,
    /// Share that the uncut network gets right.
    pub full: f64,
    /// Every way that was tried, in order of size.
    pub ways: Vec<Way>,
    /// Bytes at losses of accuracy.
    pub drops: Vec<Drop>,
    /// Bytes saved at equal accuracy (percent; negative is less), against each image codec whose
    /// curve overlaps (Bjøntegaard, 2001, piecewise cubic).
    pub bd_rate: Vec<(Family, f64)>,
}

/// Kinds of ways to send a picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// The cut network.
    Split,
    /// JPEG, progressive, with Huffman tables made for each picture.
    Jpeg,
    /// WebP, lossy.
    Webp,
    /// AVIF's frame of AV1.
    Avif,
}

/// One way to send pictures.
#[derive(Clone, Debug, Serialize)]
pub struct Way {
    /// Its kind.
    pub family: Family,
    /// The operating point, or the codec's picture size (pixels) and quality.
    pub name: String,
    /// Mean size (bytes): of a packet and its envelope, or of the file.
    pub bytes: f64,
    /// Share of pictures that are right.
    pub accuracy: f64,
    /// Whether no way of its family is both smaller and at least as accurate.
    pub pareto: bool,
    #[serde(skip)]
    trials: Vec<Trial>,
}

/// How one picture went.
#[derive(Clone, Copy, Debug, Default)]
struct Trial {
    bytes: u32,
    right: bool,
}

/// What accuracy within a loss costs.
#[derive(Clone, Debug, Serialize)]
pub struct Drop {
    /// The loss (points).
    pub points: f64,
    /// Of each family the smallest way within it, if any is.
    pub smallest: Vec<(Family, Choice)>,
    /// The cut network's bytes over the best image codec's, if both have a way.
    pub ratio: Option<f64>,
}

/// Sends every labelled picture of `lab` in every way; of operating points the ladder's, or all.
pub fn measure(lab: &Lab, all_points: bool) -> anyhow::Result<RateAccuracy> {
    let bench = Bench::new(lab, all_points)?;
    let rows = lab.each_labelled(|picture, truth| bench.row(picture, truth))?;
    let (full, rows): (Vec<bool>, Vec<Vec<Trial>>) = rows.into_iter().unzip();
    let way = |(at, Candidate { family, name, .. }): (usize, &Candidate)| {
        Way::new(*family, name.clone(), rows.iter().map(|row| row[at]).collect())
    };
    let mut ways: Vec<Way> = bench.candidates.iter().enumerate().map(way).collect();
    ways.sort_by(|a, b| a.bytes.total_cmp(&b.bytes).then_with(|| a.name.cmp(&b.name)));
    let (mut drops, mut rates) = (Vec::new(), Vec::new());
    let families = [Family::Split, Family::Jpeg, Family::Webp, Family::Avif];
    for family in families {
        pareto(&mut ways, family);
    }
    for points in DROPS {
        let smallest: Vec<(Family, Choice)> = families
            .iter()
            .filter_map(|&family| Some((family, choose(&ways, family, &full, points)?)))
            .collect();
        let bytes = |split: bool| {
            let those = smallest.iter().filter(|it| (it.0 == Family::Split) == split);
            those.map(|(_, choice)| choice.bytes).min_by(f64::total_cmp)
        };
        let ratio = bytes(true).zip(bytes(false)).map(|(ours, theirs)| ours / theirs);
        drops.push(Drop { points, smallest, ratio });
    }
    for family in &families[1..] {
        rates.extend(bd_rate(&ways, *family).map(|rate| (*family, rate)));
    }
    Ok(RateAccuracy {
        bundle: format!("{} {}", lab.bundle().name(), lab.bundle().manifest().version),
        pictures: full.len(),
        full: share(&full),
        ways,
        drops,
        bd_rate: rates,
    })
}

impl Way {
    fn new(family: Family, name: String, trials: Vec<Trial>) -> Way {
        let count = trials.len().max(1) as f64;
        let bytes = trials.iter().map(|trial| f64::from(trial.bytes)).sum::<f64>() / count;
        let accuracy = trials.iter().filter(|trial| trial.right).count() as f64 / count;
        Way { family, name, bytes, accuracy, pareto: false, trials }
    }
}

fn share(right: &[bool]) -> f64 {
    right.iter().filter(|&&right| right).count() as f64 / right.len().max(1) as f64
}

/// A way before it is tried.
struct Candidate {
    family: Family,
    name: String,
    how: How,
}

enum How {
    Point(OperatingPoint),
    Image(Box<ImageEncoder>),
}

/// The networks, and the ways that each picture is sent in.
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

    /// Whether the uncut network is right about a picture, and how each candidate goes.
    fn row(&self, picture: &Picture, truth: &str) -> anyhow::Result<(bool, Vec<Trial>)> {
        let is_right = |logits: &[f32]| is_right(&self.bundle, logits, truth);
        let mut input = Vec::new();
        self.preprocessor.run(picture, &mut input);
        let right = is_right(&self.full.run(&[&input])?[0]);
        let mut trials = vec![Trial::default(); self.candidates.len()];

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
            trials[at].bytes = frame.len() as u32;
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
            for ((at, ..), logits) in sent.iter().zip(self.model.infer(&items)?) {
                trials[*at].right = is_right(&logits);
            }
        }

        for (at, candidate) in self.candidates.iter().enumerate() {
            let How::Image(encoder) = &candidate.how else { continue };
            let bytes = encoder.encode(picture)?;
            trials[at].bytes = bytes.len() as u32;
            let most = max_image_pixels(&self.bundle.manifest().input);
            let picture = decode_image(encoder.spec().format, &bytes, most)?;
            self.preprocessor.run(&picture, &mut input);
            trials[at].right = is_right(&self.full.run(&[&input])?[0]);
        }
        Ok((right, trials))
    }
}

/// The bundle's measured points that no other beats in both size and accuracy; of many, some at
/// even distances, the largest among them.
fn ladder(lab: &Lab) -> Vec<OperatingPoint> {
    let mut rungs = lab.bundle().points().to_vec();
    rungs.sort_by(|a, b| {
        a.bytes_mean.total_cmp(&b.bytes_mean).then(b.accuracy.total_cmp(&a.accuracy))
    });
    let mut best = f64::MIN;
    rungs.retain(|rung| {
        let better = rung.accuracy > best;
        best = best.max(rung.accuracy);
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
            "{}, {} pictures; the uncut network is right about {:.2}%\n\n\
             {:<6} {:<22} {:>9} {:>9} {:>7}\n",
            self.bundle,
            self.pictures,
            100.0 * self.full,
            "",
            "way",
            "bytes",
            "right %",
            "drop"
        );
        for way in self.ways.iter().filter(|way| way.pareto) {
            let _ = writeln!(
                text,
                "{:<6} {:<22} {:>9.1} {:>9.2} {:>7.2}",
                way.family.name(),
                way.name,
                way.bytes,
                100.0 * way.accuracy,
                100.0 * (self.full - way.accuracy),
            );
        }
        text += "\nOnly ways that none of their kind beats are shown. Smallest way within a loss, \
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
