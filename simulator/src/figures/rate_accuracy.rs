//! Quality against bytes: every operating point through the real codec and networks, and image
//! codecs through the same full network, on the same pictures. Of a detector the quality is its mean
//! average precision.

mod curve;
mod images;
mod judged;
mod plot;
mod text;

use std::sync::Arc;

use isthmus_models::{
    Bundle, Fit, Full, Head, ImageEncoder, ImageSpec, Outputs, Picture, Preprocessor, TailItem,
    View, decode_image, max_image_pixels,
};
use isthmus_proto::{ImageFormat, OperatingPoint};
use isthmus_tail_server::model::{BundleModel, Model};
use serde::Serialize;

use self::curve::{bd_rate, choose, pareto};
use self::judged::{Judged, Truth, together};
use super::lab::Lab;
use super::sent;

pub use self::curve::Choice;
pub(crate) use self::images::settings as image_settings;
pub use self::judged::BoxQuality;
pub use self::plot::plot;

/// Losses of quality, in points, at which sizes are compared.
const DROPS: [f64; 4] = [0.6, 1.0, 2.0, 3.0];
/// The same of a detector.
const MAP_DROPS: [f64; 2] = [1.0, 2.0];
/// Operating points of the ladder that is tried unless all are asked for.
const RUNGS: usize = 12;

/// What the command measured.
#[derive(Clone, Debug, Serialize)]
pub struct RateAccuracy {
    /// Name and version of the bundle.
    pub bundle: String,
    /// Pictures measured on.
    pub pictures: usize,
    /// Fraction that the full network gets right; of a detector its mean average precision.
    pub full: f64,
    /// What else is known of a detector's boxes.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub full_boxes: Option<BoxQuality>,
    /// Every scheme that was tried, in order of size.
    pub schemes: Vec<Scheme>,
    /// Bytes at losses of quality.
    pub drops: Vec<Drop>,
    /// Bytes saved at equal quality (percent; negative is less), against each image codec whose
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
    /// Fraction of pictures that are right; of a detector the mean average precision.
    pub quality: f64,
    /// What else is known of a detector's boxes.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub boxes: Option<BoxQuality>,
    /// Whether no scheme of its family is both smaller and at least as accurate.
    pub pareto: bool,
    #[serde(skip)]
    pictures: Vec<Sent>,
}

/// How one picture went.
#[derive(Clone, Debug, Default)]
struct Sent {
    bytes: u32,
    judged: Judged,
}

/// What quality within a loss costs.
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
    let rows = if lab.has_true_boxes() {
        lab.each_boxed(|picture, truth| bench.row(picture, Truth::Boxes(truth)))?
    } else {
        lab.each_labelled(|picture, truth| bench.row(picture, Truth::Class(truth)))?
    };
    let (full, rows): (Vec<Judged>, Vec<Vec<Sent>>) = rows.into_iter().unzip();
    let scheme = |(at, Candidate { family, name, .. }): (usize, &Candidate)| {
        Scheme::new(*family, name.clone(), rows.iter().map(|row| row[at].clone()).collect())
    };
    let mut schemes: Vec<Scheme> = bench.candidates.iter().enumerate().map(scheme).collect();
    schemes.sort_by(|a, b| a.bytes.total_cmp(&b.bytes).then_with(|| a.name.cmp(&b.name)));
    let (mut drops, mut rates) = (Vec::new(), Vec::new());
    let families = [Family::Split, Family::Jpeg, Family::Webp, Family::Avif];
    for family in families {
        pareto(&mut schemes, family);
    }
    let (quality, full_boxes) = together(full.iter());
    let losses = if full_boxes.is_some() { &MAP_DROPS[..] } else { &DROPS };
    for &points in losses {
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
        full: quality,
        full_boxes,
        schemes,
        drops,
        bd_rate: rates,
    })
}

impl Scheme {
    fn new(family: Family, name: String, pictures: Vec<Sent>) -> Scheme {
        let count = pictures.len().max(1) as f64;
        let bytes = pictures.iter().map(|sent| f64::from(sent.bytes)).sum::<f64>() / count;
        let (quality, boxes) = together(pictures.iter().map(|sent| &sent.judged));
        Scheme { family, name, bytes, quality, boxes, pareto: false, pictures }
    }
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
            // Without its bars a letterboxed picture fills one side alone.
            let within = if input.fit == Fit::Letterbox { "in " } else { "" };
            Candidate {
                family: match spec.format {
                    ImageFormat::Jpeg => Family::Jpeg,
                    ImageFormat::Webp => Family::Webp,
                    ImageFormat::Avif => Family::Avif,
                },
                name: format!("{within}{width}x{height} q{}", spec.quality),
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

    /// What the full network makes of a picture, and how each candidate goes.
    fn row(&self, picture: &Picture, truth: Truth<'_>) -> anyhow::Result<(Judged, Vec<Sent>)> {
        let mut input = Vec::new();
        self.preprocessor.run(picture, &mut input);
        let view = self.view(picture, None);
        let full = Judged::of(&self.bundle, self.full.run(&[&input])?.remove(0), &view, truth)?;
        let mut results = vec![Sent::default(); self.candidates.len()];
        self.send_points(&input, &mut results, |outputs| {
            Judged::of(&self.bundle, outputs, &view, truth)
        })?;
        for (at, candidate) in self.candidates.iter().enumerate() {
            let How::Image(encoder) = &candidate.how else { continue };
            let bytes = encoder.encode(picture)?;
            results[at].bytes = bytes.len() as u32;
            let most = max_image_pixels(&self.bundle.manifest().input);
            let sent = decode_image(encoder.spec().format, &bytes, most)?;
            self.preprocessor.run(&sent, &mut input);
            let view = self.view(picture, Some(encoder.spec()));
            let outputs = self.full.run(&[&input])?.remove(0);
            results[at].judged = Judged::of(&self.bundle, outputs, &view, truth)?;
        }
        Ok((full, results))
    }

    /// How a picture is seen, of which all or what was compressed is sent.
    fn view(&self, picture: &Picture, image: Option<ImageSpec>) -> View {
        let size = (picture.width(), picture.height());
        View::new(&self.bundle.manifest().input, image, size)
    }

    /// How the operating points among the candidates go.
    fn send_points(
        &self,
        input: &[f32],
        results: &mut [Sent],
        judge: impl Fn(Outputs) -> anyhow::Result<Judged>,
    ) -> anyhow::Result<()> {
        let (mut latents, mut sent) = (None, Vec::new());
        for (at, candidate) in self.candidates.iter().enumerate() {
            let How::Point(point) = candidate.how else { continue };
            let OperatingPoint { split, width, layers, .. } = point;
            // Points are in order of split and width: each head runs once.
            if latents.as_ref().is_none_or(|(of, _)| *of != (split, width)) {
                latents = Some(((split, width), self.head.run(split, width, input)?.latents));
            }
            let Some((_, latents)) = &latents else { continue };
            let (coded, bytes) = sent::features(&self.bundle, point, latents)?;
            results[at].bytes = bytes as u32;
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
                results[*at].judged = judge(outputs)?;
            }
        }
        Ok(())
    }
}

/// The bundle's measured points that no other beats in both size and quality; of many, some at
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
