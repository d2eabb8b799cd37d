//! What is sent of a cut's channels: the channels themselves, by how much they vary, or sums of them
//! that do not vary together (principal components), the weightiest first.

use std::sync::Arc;

use isthmus_proto::{FeatureCodec, FrequencyTables, LatentShape, Quantiser};

use super::error::ImportError;
use crate::calibrate::{Calibrated, Calibration, ContextTables, context_tables};
use crate::cut::{Cut, Linear, Mix, WholeModel};
use crate::engine::{Engine, EngineError, Graph, Tensor, TensorView};

/// Sums that are kept, at most: the adapter multiplies by all of them in every place.
const MOST_SUMS: usize = 256;

/// Whether channels are sent or sums of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rotate {
    /// What takes fewer bytes for the same error in the network's outputs.
    #[default]
    Auto,
    /// Sums.
    Yes,
    /// Channels.
    No,
}

/// What a picture is on its way through the network, without a codec.
pub(super) struct Traced {
    /// Every channel of the cut, `[C, h, w]`.
    pub(super) latents: Vec<f32>,
    outputs: Vec<Tensor>,
}

/// What may be sent, and how it was found to do.
pub(super) struct Candidate {
    pub(super) mix: Mix,
    calibration: Calibration,
    /// What is sent of whole pictures, `[C, h, w]` each.
    pictures: Vec<Vec<f32>>,
    /// Mean bytes of a picture and error of the outputs, from shallow to deep.
    points: Vec<(f64, f64)>,
}

/// The network behind a cut, to try out what errors in front of it do.
pub(super) struct Behind<'a> {
    model: &'a WholeModel,
    cut: &'a Cut,
    engine: &'a dyn Engine,
    trunk: Arc<dyn Graph>,
}

impl Candidate {
    /// The quantiser and tables of a depth (bits).
    pub(super) fn calibrate(&self, bits: u8) -> Result<Calibrated, ImportError> {
        Ok(match &self.mix {
            Mix::Order(order) => self.calibration.calibrate(bits, order)?,
            Mix::Linear(_) => self.calibration.with_one_step(bits)?,
        })
    }

    /// The codec of a depth (bits), of one layer and with one table a channel.
    fn codec(
        &self,
        [height, width]: [usize; 2],
        bits: u8,
        calibrated: &Calibrated,
    ) -> Result<FeatureCodec, ImportError> {
        let latents = self.mix.latents();
        let Calibrated { scale, zero_point, prior_mean, tables } = calibrated;
        let [scale, prior_mean] = [scale, prior_mean].map(Vec::clone);
        let quantiser = Quantiser::new(bits, scale, zero_point.clone(), prior_mean)?;
        let tables = FrequencyTables::from_bytes(bits, latents, tables)
            .map_err(|error| ImportError::Value(error.to_string()))?;
        let [height, width] = [height, width].map(|side| side as u16);
        let shape = LatentShape { channels: vec![latents as u16], height, width };
        Ok(FeatureCodec::new(shape, quantiser, tables)?)
    }

    /// Takes pictures' channels `[C, h, w]`, to count contexts on.
    pub(super) fn count_on(&mut self, pictures: &[Vec<f32>]) {
        self.pictures = pictures.iter().map(|latents| mixed(&self.mix, latents)).collect();
    }

    /// The tables by context of a depth (bits), where they save bytes.
    pub(super) fn contexts(
        &self,
        grid: [usize; 2],
        bits: u8,
        calibrated: &Calibrated,
    ) -> Result<Option<ContextTables>, ImportError> {
        let codec = self.codec(grid, bits, calibrated)?;
        let symbols = self.pictures.iter().map(|latents| codec.quantise(latents, 1));
        context_tables(&codec, &symbols.collect::<Result<Vec<_>, _>>()?)
            .map_err(|error| ImportError::Value(error.to_string()))
    }
}

impl<'a> Behind<'a> {
    /// The network behind `cut`.
    pub(super) fn load(
        model: &'a WholeModel,
        cut: &'a Cut,
        engine: &'a dyn Engine,
    ) -> Result<Behind<'a>, ImportError> {
        let trunk = model.cut(cut, &as_it_is(cut)).trunk;
        let trunk = engine.load(&trunk, &format!("the trunk behind {}", cut.name()))?;
        Ok(Behind { model, cut, engine, trunk })
    }

    /// What follows from these latents of a picture.
    pub(super) fn trace(&self, latents: Vec<f32>) -> Result<Traced, ImportError> {
        let features = self.features(&as_it_is(self.cut), &latents)?;
        let outputs = self.outputs(&features)?;
        Ok(Traced { latents, outputs })
    }

    /// The trunk's inputs of what arrives.
    fn features(&self, mix: &Mix, latents: &[f32]) -> Result<Vec<Tensor>, EngineError> {
        let [_, height, width] = self.cut.shape;
        let shape = [1, mix.latents(), height, width];
        match self.model.cut(self.cut, mix).adapter {
            None => Ok(vec![Tensor { shape: shape.to_vec(), data: latents.to_vec() }]),
            Some(adapter) => {
                let adapter = self.engine.load(&adapter, "the adapter")?;
                adapter.run(&[TensorView { shape: &shape, data: latents }])
            }
        }
    }

    fn outputs(&self, features: &[Tensor]) -> Result<Vec<Tensor>, EngineError> {
        let views = features.iter().map(|Tensor { shape, data }| TensorView { shape, data });
        self.trunk.run(&views.collect::<Vec<_>>())
    }

    /// The channels by how much they vary, or the sums of them that do not vary together.
    pub(super) fn candidates(
        &self,
        calibration: &Calibration,
        most: Option<u16>,
    ) -> [Candidate; 2] {
        let weights = weights(self.cut, calibration);
        let order = calibration.order(&weights);
        let plain = Candidate {
            mix: Mix::Order(order),
            calibration: calibration.clone(),
            pictures: Vec::new(),
            points: Vec::new(),
        };
        let linear = sums(calibration, &weights, most.map_or(MOST_SUMS, usize::from));
        let calibration = calibration.mapped(&linear);
        let mix = Mix::Linear(linear);
        let rotated = Candidate { mix, calibration, pictures: Vec::new(), points: Vec::new() };
        [plain, rotated]
    }

    /// Measures what a candidate costs at every depth: bytes, and error of the outputs. Sums need other
    /// depths than channels for the same error.
    pub(super) fn measure(
        &self,
        candidate: &mut Candidate,
        traced: &[Traced],
    ) -> Result<(), ImportError> {
        let [_, height, width] = self.cut.shape;
        for bits in 1..=8 {
            let codec = candidate.codec([height, width], bits, &candidate.calibrate(bits)?)?;
            let (mut bytes, mut error) = (0.0, 0.0);
            for picture in traced {
                let symbols = codec.quantise(&mixed(&candidate.mix, &picture.latents), 1)?;
                bytes += codec.ideal_bits(&symbols) / 8.0;
                let mut arrived = Vec::new();
                codec.dequantise(&symbols, &mut arrived)?;
                let features = self.features(&candidate.mix, &arrived)?;
                error += difference(&picture.outputs, &self.outputs(&features)?);
            }
            let count = traced.len().max(1) as f64;
            candidate.points.push((bytes / count, error / count));
        }
        Ok(())
    }
}

/// Every channel where it is.
pub(super) fn as_it_is(cut: &Cut) -> Mix {
    Mix::Order((0..cut.shape[0]).collect())
}

/// What is sent of all channels of a picture.
fn mixed(mix: &Mix, latents: &[f32]) -> Vec<f32> {
    match mix {
        Mix::Order(order) => {
            let plane = latents.len() / order.len().max(1);
            order.iter().flat_map(|&at| &latents[at * plane..][..plane]).copied().collect()
        }
        Mix::Linear(linear) => {
            let plane = latents.len() / linear.channels.max(1);
            let rows = linear.forth.chunks_exact(linear.channels.max(1)).zip(&linear.forth_bias);
            let row = |(weights, &bias): (&[f32], &f32)| {
                let mut values = vec![bias; plane];
                for (weight, channel) in weights.iter().zip(latents.chunks_exact(plane.max(1))) {
                    values.iter_mut().zip(channel).for_each(|(to, from)| *to += weight * from);
                }
                values
            };
            rows.flat_map(row).collect()
        }
    }
}

/// The sums of weighted channels that vary the most and not together, at most so many; back they give
/// the channels with the least weighted error that as many can.
fn sums(calibration: &Calibration, weights: &[f64], most: usize) -> Linear {
    let channels = weights.len();
    let means = calibration.means();
    let eigen = calibration.covariance(weights).leading(most.min(channels));
    let latents = eigen.values.len();
    let rows = || eigen.vectors.chunks_exact(channels.max(1));
    let forth: Vec<f64> = rows()
        .flat_map(|row| row.iter().zip(weights).map(|(value, weight)| value * weight))
        .collect();
    let bias = |row: &[f64]| -row.iter().zip(&means).map(|(a, b)| a * b).sum::<f64>();
    let back = |channel: usize| rows().map(move |row| (row[channel] / weights[channel]) as f32);
    Linear {
        channels,
        latents,
        forth_bias: forth.chunks_exact(channels.max(1)).map(|row| bias(row) as f32).collect(),
        forth: forth.iter().map(|&value| value as f32).collect(),
        back: (0..channels).flat_map(back).collect(),
        back_bias: means.iter().map(|&mean| mean as f32).collect(),
    }
}

/// How much an error in each channel weighs: of several tensors so much that all of them vary alike. A
/// network takes them in through layers that have learned how large each is.
fn weights(cut: &Cut, calibration: &Calibration) -> Vec<f64> {
    let variances = calibration.variances();
    let (mut weights, mut first) = (Vec::new(), 0);
    for (channels, share) in cut.shares() {
        let own = channels * share;
        let variance = variances[first..first + own].iter().sum::<f64>() / own.max(1) as f64;
        let weight = variance.sqrt().recip();
        weights.extend(std::iter::repeat_n(if weight.is_normal() { weight } else { 1.0 }, own));
        first += own;
    }
    weights
}

/// How far outputs are from what they should be: squared, in parts of each one's own square, so that
/// scores and pixels count alike.
fn difference(expected: &[Tensor], found: &[Tensor]) -> f64 {
    let one = |(expected, found): (&Tensor, &Tensor)| {
        let energy: f64 = expected.data.iter().map(|&value| f64::from(value).powi(2)).sum();
        let pairs = expected.data.iter().zip(&found.data);
        let error = pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        if energy > 0.0 { error / energy } else { 0.0 }
    };
    expected.iter().zip(found).map(one).sum::<f64>() / expected.len().max(1) as f64
}

/// How many times the bytes of `one` those of `other` are at the same error: the mean over the points of
/// `one`, between those of the other along straight lines of logarithms. What has errors that the
/// other does not come down to is the cheaper.
pub(super) fn ratio(one: &Candidate, other: &Candidate) -> f64 {
    let log = |&(bytes, error): &(f64, f64)| (error.max(1e-12).ln(), bytes.max(1.0).ln());
    let mut line: Vec<(f64, f64)> = other.points.iter().map(log).collect();
    line.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut sum, mut count, mut lower, mut higher) = (0.0, 0, 0, 0);
    for (error, bytes) in one.points.iter().map(log) {
        let above = line.partition_point(|point| point.0 < error);
        match (above.checked_sub(1).and_then(|at| line.get(at)), line.get(above)) {
            (Some(a), Some(b)) => {
                let along = (error - a.0) / (b.0 - a.0);
                sum += a.1 + (b.1 - a.1) * along - bytes;
                count += 1;
            }
            (None, Some(b)) if b.0 == error => {
                sum += b.1 - bytes;
                count += 1;
            }
            (None, Some(_)) => lower += 1,
            _ => higher += 1,
        }
    }
    match count {
        0 if line.is_empty() => 1.0,
        0 if lower > higher => f64::INFINITY,
        0 if higher > lower => 0.0,
        0 => 1.0,
        _ => (sum / f64::from(count)).exp(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_two_channels_that_vary_together_are_one() {
        let mut calibration = Calibration::new(2, 4, 1);
        calibration.add(&[1.0, 2.0, 3.0, 4.0, 2.0, 4.0, 6.0, 8.0]);
        let linear = sums(&calibration, &[1.0, 1.0], 8);
        assert_eq!((linear.channels, linear.latents), (2, 2));
        let latents =
            mixed(&Mix::Linear(linear.clone()), &[1.0, 2.0, 3.0, 4.0, 2.0, 4.0, 6.0, 8.0]);
        // The distance from the mean, 2.5 and 5, along (1, 2); nothing across.
        let along = |step: f32| step * 5f32.sqrt();
        let sign = latents[3].signum();
        for (at, expected) in [-1.5, -0.5, 0.5, 1.5].into_iter().enumerate() {
            assert!((latents[at] * sign - along(expected)).abs() < 1e-4, "{latents:?}");
            assert!(latents[4 + at].abs() < 1e-4, "{latents:?}");
        }
        let back = |channel: usize, at: usize| {
            linear.back[2 * channel] * latents[at]
                + linear.back[2 * channel + 1] * latents[4 + at]
                + linear.back_bias[channel]
        };
        assert!((back(0, 0) - 1.0).abs() < 1e-4 && (back(1, 3) - 8.0).abs() < 1e-4);
    }

    #[test]
    fn bytes_are_compared_at_the_same_error() {
        let candidate = |points: &[(f64, f64)]| Candidate {
            mix: Mix::Order(vec![]),
            calibration: Calibration::new(1, 1, 1),
            pictures: Vec::new(),
            points: points.to_vec(),
        };
        let cheap = candidate(&[(100.0, 0.1), (200.0, 0.01)]);
        let dear = candidate(&[(200.0, 0.1), (400.0, 0.01)]);
        assert!((ratio(&cheap, &dear) - 2.0).abs() < 1e-9);
        assert!((ratio(&dear, &cheap) - 0.5).abs() < 1e-9);
        // On the line between the two, and with errors that the other has not.
        let between = candidate(&[(2f64.sqrt() * 200.0, 0.1 / 10f64.sqrt()), (999.0, 1e-9)]);
        assert!((ratio(&between, &dear) - 1.0).abs() < 1e-9);
        assert_eq!(ratio(&candidate(&[(9.0, 1e-6)]), &dear), f64::INFINITY);
        assert_eq!(ratio(&candidate(&[(9.0, 1.0)]), &dear), 0.0);
        assert!((ratio(&cheap, &candidate(&[])) - 1.0).abs() < 1e-9);
    }
}
