//! What one set of weights for all widths costs, against networks trained for one.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, ensure};
use isthmus_models::{Bundle, Head, Outputs, Picture, Preprocessor, Tail, TailItem};
use isthmus_proto::OperatingPoint;

use super::Measurement;
use super::accuracy::{is_right, not_of_classes};
use super::lab::Lab;

pub(super) fn penalty(lab: &Lab) -> anyhow::Result<Measurement> {
    let bundles = lab.dedicated();
    if bundles.is_empty() {
        return Ok(Measurement::skipped("needs bundles of single widths: --dedicated DIR"));
    }
    if let Some(reason) = not_of_classes(lab) {
        return Ok(reason);
    }
    let slimmable = Network::load(lab, Arc::clone(lab.bundle()))?;
    let (mut worst, mut parts) = (f64::NEG_INFINITY, Vec::new());
    for folder in bundles {
        let dedicated = Network::load(lab, Arc::new(Bundle::open(folder)?))?;
        let pairs = pairs(lab.bundle(), &dedicated.bundle, folder)?;
        let rows = lab.each_labelled(|picture, truth| {
            let inputs = [&slimmable, &dedicated].map(|network| network.input(picture));
            let right = |network: &Network, input: &[f32], point| {
                anyhow::Ok(is_right(&network.bundle, &network.run(input, point)?, truth))
            };
            let pair = |pair: &[OperatingPoint; 2]| {
                Ok([
                    right(&slimmable, &inputs[0], pair[0])?,
                    right(&dedicated, &inputs[1], pair[1])?,
                ])
            };
            pairs.iter().map(pair).collect::<anyhow::Result<Vec<_>>>()
        })?;
        let accuracy = |at: usize, of: usize| {
            rows.iter().filter(|row| row[at][of]).count() as f64 / rows.len() as f64
        };
        let lost: f64 = (0..pairs.len()).map(|at| accuracy(at, 1) - accuracy(at, 0)).sum();
        worst = f64::max(worst, lost / pairs.len() as f64 * 100.0);
        for (at, [point, _]) in pairs.iter().enumerate() {
            let name = lab.bundle().describe_point(*point);
            parts.push(format!("{name} {:.4}, dedicated {:.4}", accuracy(at, 0), accuracy(at, 1)));
        }
    }
    let detail = format!("the worst of the bundles' means over {}", parts.join("; "));
    Ok(Measurement::of(worst, detail))
}

/// For each width of `dedicated` its largest point and its middle one, before each the same of
/// `slimmable`.
fn pairs(
    slimmable: &Bundle,
    dedicated: &Bundle,
    folder: &Path,
) -> anyhow::Result<Vec<[OperatingPoint; 2]>> {
    let mut pairs = Vec::new();
    for (split, spec) in (0..).zip(&dedicated.manifest().splits) {
        for (width, entry) in (0..).zip(&spec.widths) {
            let mut bits: Vec<u8> = entry.quantisers.iter().map(|it| it.bits).collect();
            bits.sort_unstable();
            let most = spec.channels.len();
            for (layers, at) in
                [(most, bits.len().saturating_sub(1)), (most / 2 + 1, bits.len() / 2)]
            {
                let bits = *bits.get(at).context("a width without quantisers")?;
                let layers = layers.min(most) as u8;
                let point = OperatingPoint { split, width, layers, bits };
                let name = dedicated.describe_point(point).to_string();
                let same = slimmable.parse_point(&name);
                pairs.push([same.with_context(|| folder.display().to_string())?, point]);
            }
        }
    }
    ensure!(!pairs.is_empty(), "{}: a bundle without widths", folder.display());
    Ok(pairs)
}

/// A bundle's cut networks.
struct Network {
    bundle: Arc<Bundle>,
    head: Head,
    tail: Tail,
}

impl Network {
    fn load(lab: &Lab, bundle: Arc<Bundle>) -> anyhow::Result<Network> {
        let head = Head::load(Arc::clone(&bundle), lab.engine())?;
        let tail = Tail::load(Arc::clone(&bundle), lab.engine())?;
        Ok(Network { bundle, head, tail })
    }

    /// What its networks take of `picture`.
    fn input(&self, picture: &Picture) -> Vec<f32> {
        let mut input = Vec::new();
        Preprocessor::new(&self.bundle.manifest().input).run(picture, &mut input);
        input
    }

    /// The outputs at `point`.
    fn run(&self, input: &[f32], point: OperatingPoint) -> anyhow::Result<Outputs> {
        let OperatingPoint { split, width, layers, bits } = point;
        let codec = self.bundle.codec(split, width, bits).context("a point without quantiser")?;
        let symbols =
            codec.quantise(&self.head.run(split, width, input)?.latents, layers.into())?;
        let mut latents = Vec::new();
        codec.dequantise(&symbols, &mut latents)?;
        let outputs = self.tail.run(&[TailItem { split, width, latents: &latents }])?;
        outputs.into_iter().next().context("the tail gave nothing")
    }
}
