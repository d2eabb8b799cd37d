//! What is sent of a cut's channels: the channels themselves, by how much they vary, or sums of them
//! that do not vary together (principal components), the weightiest first.

use std::sync::Arc;

use isthmus_proto::{FeatureCodec, FrequencyTables, LatentShape, Quantiser};

use super::error::ImportError;
use crate::calibrate::{Calibrated, Calibration};
use crate::cut::{Cut, Linear, Mix, WholeModel};
use crate::engine::{Engine, EngineError, Graph, Tensor, TensorView};

/// Sums that are kept, at most: the adapter multiplies by all of them in every place.
const MOST_SUMS: usize = 256;
/// Tensors are told apart by an error this large in parts of what their values vary by.
const ERROR: f32 = 0.1;

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
    /// The trunk's inputs.
    features: Vec<Tensor>,
    outputs: Vec<Tensor>,
}

/// What may be sent, and how it was found to do.
pub(super) struct Candidate {
    pub(super) mix: Mix,
    calibration: Calibration,
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
        Ok(Traced { latents, features, outputs })
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
        traced: &[Traced],
        most: Option<u16>,
    ) -> Result<[Candidate; 2], ImportError> {
        let weights = self.weights(traced)?;
        let order = calibration.order(&weights);
        let plain = Candidate {
            mix: Mix::Order(order),
            calibration: calibration.clone(),
            points: Vec::new(),
        };
        let linear = sums(calibration, &weights, most.map_or(MOST_SUMS, usize::from));
        let calibration = calibration.mapped(&linear);
        let rotated = Candidate { mix: Mix::Linear(linear), calibration, points: Vec::new() };
        Ok([plain, rotated])
    }

    /// How much an error in each channel weighs: of one tensor all alike, of several by what an error
    /// in the tensor does to the outputs.
    fn weights(&self, traced: &[Traced]) -> Result<Vec<f64>, ImportError> {
        let shares = self.cut.shares();
        let mut weights = Vec::new();
        for (at, &(channels, share)) in shares.iter().enumerate() {
            let mut weight = 1.0;
            if shares.len() > 1 {
                let (mut harm, mut error) = (0.0, 0.0);
                for picture in traced {
                    let mut features = picture.features.clone();
                    error += disturb(&mut features[at].data, at);
                    harm += difference(&picture.outputs, &self.outputs(&features)?);
                }
                weight = (harm / error).sqrt();
                // An output that does not depend on it, or no error to be seen.
                weight = if weight.is_normal() { weight } else { 1e-6 };
            }
            weights.extend(std::iter::repeat_n(weight, channels * share));
        }
        Ok(weights)
    }

    /// Measures what a candidate costs at these depths: bytes, and error of the outputs.
    pub(super) fn measure(
        &self,
        candidate: &mut Candidate,
        depths: &[u8],
        traced: &[Traced],
    ) -> Result<(), ImportError> {
        let [_, height, width] = self.cut.shape;
        let latents = candidate.mix.latents();
        for &bits in depths {
            let Calibrated { scale, zero_point, prior_mean, tables } = candidate.calibrate(bits)?;
            let quantiser = Quantiser::new(bits, scale, zero_point, prior_mean)?;
            let tables = FrequencyTables::from_bytes(bits, latents, &tables)
                .map_err(|error| ImportError::Value(error.to_string()))?;
            let [height, width] = [height, width].map(|side| side as u16);
            let shape = LatentShape { channels: vec![latents as u16], height, width };
            let codec = FeatureCodec::new(shape, quantiser, tables)?;
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

/// Adds noise to a tensor; gives its energy.
fn disturb(values: &mut [f32], seed: usize) -> f64 {
    let count = values.len().max(1) as f64;
    let mean = values.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
    let variance =
        values.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>() / count;
    let size = variance.sqrt() as f32 * ERROR;
    let mut state = seed as u64 + 1;
    let mut energy = 0.0;
    for value in values {
        // Knuth's generator; its high bits have no pattern that a network would see.
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let noise = ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * size;
        energy += f64::from(noise).powi(2);
        *value += noise;
    }
    energy
}

/// How far outputs are from what they should be: squared, in parts of what each varies by.
fn difference(expected: &[Tensor], found: &[Tensor]) -> f64 {
    let one = |(expected, found): (&Tensor, &Tensor)| {
        let count = expected.data.len().max(1) as f64;
        let mean = expected.data.iter().map(|&value| f64::from(value)).sum::<f64>() / count;
        let varies =
            expected.data.iter().map(|&value| (f64::from(value) - mean).powi(2)).sum::<f64>();
        let pairs = expected.data.iter().zip(&found.data);
        let error = pairs.map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
        if varies > 0.0 { error / varies } else { 0.0 }
    };
    expected.iter().zip(found).map(one).sum::<f64>() / expected.len().max(1) as f64
}

/// How many times the bytes of `one` those of `other` are at the same error: between their points as
/// straight lines of logarithms.
pub(super) fn ratio(one: &Candidate, other: &Candidate) -> f64 {
    let line = |candidate: &Candidate| -> Vec<(f64, f64)> {
        let log = |&(bytes, error): &(f64, f64)| (error.max(1e-12).ln(), bytes.max(1.0).ln());
        let mut line: Vec<(f64, f64)> = candidate.points.iter().map(log).collect();
        line.sort_by(|a, b| a.0.total_cmp(&b.0));
        line
    };
    let (one, other) = (line(one), line(other));
    let at = |line: &[(f64, f64)], error: f64| -> f64 {
        let above = line.partition_point(|point| point.0 < error).clamp(1, line.len().max(2) - 1);
        match (line.get(above - 1), line.get(above)) {
            (Some(a), Some(b)) if b.0 > a.0 => a.1 + (b.1 - a.1) * (error - a.0) / (b.0 - a.0),
            (Some(a), _) => a.1,
            _ => 0.0,
        }
    };
    let (Some(first), Some(last)) = (one.first(), one.last()) else { return 1.0 };
    let (Some(other_first), Some(other_last)) = (other.first(), other.last()) else { return 1.0 };
    // The middle of the errors that both have, or between those of one and those of the other.
    let error = (first.0.max(other_first.0) + last.0.min(other_last.0)) / 2.0;
    (at(&other, error) - at(&one, error)).exp()
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
            points: points.to_vec(),
        };
        let cheap = candidate(&[(100.0, 0.1), (200.0, 0.01)]);
        let dear = candidate(&[(200.0, 0.1), (400.0, 0.01)]);
        assert!((ratio(&cheap, &dear) - 2.0).abs() < 1e-9);
        // As cheap, but with other errors: on the same line.
        let finer = candidate(&[(200.0, 0.01), (400.0, 0.001)]);
        assert!((ratio(&cheap, &finer) - 1.0).abs() < 1e-9);
        assert!((ratio(&cheap, &candidate(&[])) - 1.0).abs() < 1e-9);
    }
}
