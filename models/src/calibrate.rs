//! A quantiser and its tables from the latents of a few pictures.

mod contexts;

use isthmus_proto::{Quantiser, QuantiserError};

pub(crate) use self::contexts::{ContextTables, context_tables};
use crate::cut::Linear;
use crate::eigen::{Symmetric, dot};

/// Most values of one channel that are kept.
const SAMPLES: usize = 1 << 15;

/// Fractions of a channel's values that may lie outside its range; the one with the least squared
/// error is taken. A narrow range rounds finely, a wide one clips little.
const CLIPPED: [f64; 5] = [0.0, 1e-4, 1e-3, 5e-3, 2e-2];

/// Sum of a table's frequencies.
const TOTAL: u64 = 1 << 16;

/// Values of every channel, spread evenly over the pictures and their places.
#[derive(Clone)]
pub(crate) struct Calibration {
    plane: usize,
    /// One value in this many is kept.
    stride: usize,
    /// By channel, in the model's order.
    channels: Vec<Vec<f32>>,
    pictures: usize,
}

/// The quantiser of one bit depth, one value for each channel, and its file of frequencies.
pub(crate) struct Calibrated {
    pub(crate) scale: Vec<f32>,
    pub(crate) zero_point: Vec<i32>,
    pub(crate) prior_mean: Vec<f32>,
    pub(crate) tables: Vec<u8>,
}

impl Calibration {
    /// For latents of `channels` channels of `plane` places, of about `pictures` pictures.
    pub(crate) fn new(channels: usize, plane: usize, pictures: usize) -> Calibration {
        // Odd, so that on a grid of even width no column is left out.
        let stride = (plane * pictures).div_ceil(SAMPLES) | 1;
        Calibration { plane, stride, channels: vec![Vec::new(); channels], pictures: 0 }
    }

    /// Takes one picture's latents, f32 `[C, h, w]`.
    pub(crate) fn add(&mut self, latents: &[f32]) {
        let phase = (self.stride - self.pictures * self.plane % self.stride) % self.stride;
        for (samples, values) in self.channels.iter_mut().zip(latents.chunks_exact(self.plane)) {
            let kept = values.iter().skip(phase).step_by(self.stride);
            // What is no number is sent as zero.
            samples.extend(kept.map(|&value| if value.is_finite() { value } else { 0.0 }));
        }
        self.pictures += 1;
    }

    /// Mean of each channel.
    pub(crate) fn means(&self) -> Vec<f64> {
        self.channels.iter().map(|samples| mean(samples)).collect()
    }

    /// Variance of each channel.
    pub(crate) fn variances(&self) -> Vec<f64> {
        self.channels.iter().map(|samples| variance(samples)).collect()
    }

    /// How channels vary together, each times its weight.
    pub(crate) fn covariance(&self, weights: &[f64]) -> Symmetric {
        let size = self.channels.len();
        let deviations = |(samples, weight): (&Vec<f32>, &f64)| -> Vec<f64> {
            let mean = mean(samples);
            samples.iter().map(|&value| (f64::from(value) - mean) * weight).collect()
        };
        let rows: Vec<Vec<f64>> = self.channels.iter().zip(weights).map(deviations).collect();
        let count = rows.first().map_or(0, Vec::len).max(1) as f64;
        let mut values = vec![0.0; size * size];
        for (at, row) in rows.iter().enumerate() {
            for (before, other) in rows[..=at].iter().enumerate() {
                let both = dot(row, other) / count;
                values[at * size + before] = both;
                values[before * size + at] = both;
            }
        }
        Symmetric { size, values }
    }

    /// The calibration of what a linear map makes of the channels.
    pub(crate) fn mapped(&self, linear: &Linear) -> Calibration {
        let latent = |(weights, bias): (&[f32], &f32)| -> Vec<f32> {
            let count = self.channels.first().map_or(0, Vec::len);
            let mut values = vec![*bias; count];
            for (samples, weight) in self.channels.iter().zip(weights) {
                values.iter_mut().zip(samples).for_each(|(to, from)| *to += weight * from);
            }
            values
        };
        let rows = linear.forth.chunks_exact(linear.channels.max(1)).zip(&linear.forth_bias);
        let Calibration { plane, stride, pictures, .. } = *self;
        Calibration { plane, stride, pictures, channels: rows.map(latent).collect() }
    }

    /// The quantiser and tables of a depth (bits) with one step for all channels, in their order: the
    /// step of least squared error of all among those that clip few values of any.
    ///
    /// Where channels are weighted and do not vary together, one step for all costs the fewest bits at
    /// an error: a channel that varies less than a step then costs next to nothing.
    pub(crate) fn with_one_step(&self, bits: u8) -> Result<Calibrated, QuantiserError> {
        let sorted: Vec<Vec<f32>> = self
            .channels
            .iter()
            .map(|samples| {
                let mut sorted = samples.clone();
                sorted.sort_by(f32::total_cmp);
                sorted
            })
            .collect();
        let mut best: Option<(f64, Vec<Fit>)> = None;
        for clipped in CLIPPED {
            let ranges = sorted.iter().map(|sorted| range(bits, sorted, clipped).0);
            let wide = |sorted: &&Vec<f32>| sorted.iter().any(|&value| value != 0.0);
            let ranges = ranges.zip(&sorted).filter(|(_, sorted)| wide(sorted));
            let step = ranges.map(|(scale, _)| scale).fold(0.0, f32::max);
            let step = if step.is_normal() { step } else { 1.0 };
            let fits = sorted.iter().map(|sorted| with_step(bits, sorted, step));
            let fits = fits.collect::<Result<Vec<(f64, Fit)>, _>>()?;
            let error: f64 = fits.iter().map(|(error, _)| error).sum();
            if best.as_ref().is_none_or(|(least, _)| error < *least) {
                best = Some((error, fits.into_iter().map(|(_, fit)| fit).collect()));
            }
        }
        let fits = best.map(|(_, fits)| fits).unwrap_or_default();
        Ok(Calibrated {
            scale: fits.iter().map(|fit| fit.scale).collect(),
            zero_point: fits.iter().map(|fit| fit.zero_point).collect(),
            prior_mean: sorted.iter().map(|sorted| mean(sorted) as f32).collect(),
            tables: tables(&fits.into_iter().map(|fit| fit.counts).collect::<Vec<_>>()),
        })
    }

    /// Channels by falling variance, each times its weight, of equals the first one first: the more a
    /// channel varies, the more is lost without it.
    pub(crate) fn order(&self, weights: &[f64]) -> Vec<usize> {
        let weighted = |(samples, weight): (&Vec<f32>, &f64)| variance(samples) * weight * weight;
        let variances: Vec<f64> = self.channels.iter().zip(weights).map(weighted).collect();
        let mut order: Vec<usize> = (0..variances.len()).collect();
        order.sort_by(|&a, &b| variances[b].total_cmp(&variances[a]).then(a.cmp(&b)));
        order
    }

    /// The quantiser and tables of a depth (bits), for channels in this order.
    pub(crate) fn calibrate(
        &self,
        bits: u8,
        order: &[usize],
    ) -> Result<Calibrated, QuantiserError> {
        let (mut scale, mut zero_point, mut prior_mean) = (Vec::new(), Vec::new(), Vec::new());
        let mut counts = Vec::new();
        for &channel in order {
            let mut sorted = self.channels[channel].clone();
            sorted.sort_by(f32::total_cmp);
            let best = fit(bits, &sorted)?;
            counts.push(best.counts);
            scale.push(best.scale);
            zero_point.push(best.zero_point);
            prior_mean.push(mean(&sorted) as f32);
        }
        Ok(Calibrated { scale, zero_point, prior_mean, tables: tables(&counts) })
    }
}

struct Fit {
    scale: f32,
    zero_point: i32,
    /// Of each symbol.
    counts: Vec<u64>,
}

/// The scale and zero point of least squared error for one channel's sorted values.
fn fit(bits: u8, sorted: &[f32]) -> Result<Fit, QuantiserError> {
    let mut best: Option<(f64, Fit)> = None;
    for clipped in CLIPPED {
        let (scale, zero_point) = range(bits, sorted, clipped);
        let (error, fit) = measured(bits, sorted, scale, zero_point)?;
        if best.as_ref().is_none_or(|(least, _)| error < *least) {
            best = Some((error, fit));
        }
    }
    let nothing = || Fit { scale: 1.0, zero_point: 0, counts: vec![0; 1 << bits] };
    Ok(best.map_or_else(nothing, |(_, fit)| fit))
}

/// Squared error and counts with a given step, with the alphabet's middle where the values have
/// theirs.
fn with_step(bits: u8, sorted: &[f32], step: f32) -> Result<(f64, Fit), QuantiserError> {
    let last = (1i32 << bits) - 1;
    let end = |at: Option<&f32>| f64::from(at.copied().unwrap_or(0.0));
    let middle = (end(sorted.first()) + end(sorted.last())) / 2.0 / f64::from(step);
    // The cast saturates.
    let zero_point = (last / 2).saturating_sub(middle.round() as i32);
    measured(bits, sorted, step, zero_point.clamp(0, last))
}

/// Squared error and counts of a channel's values with this quantiser.
fn measured(
    bits: u8,
    values: &[f32],
    scale: f32,
    zero_point: i32,
) -> Result<(f64, Fit), QuantiserError> {
    let quantiser = Quantiser::new(bits, vec![scale], vec![zero_point], vec![0.0])?;
    let (mut symbols, mut back) = (Vec::new(), Vec::new());
    quantiser.quantise(0, values, &mut symbols);
    quantiser.dequantise(0, &symbols, &mut back);
    let error = values.iter().zip(&back).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let mut counts = vec![0; 1 << bits];
    symbols.iter().for_each(|&symbol| counts[usize::from(symbol)] += 1);
    Ok((error, Fit { scale, zero_point, counts }))
}

/// Scale and zero point of the range that leaves out this fraction of the values, half at each end.
/// Zero lies within it: it is what padding and rectifiers make, and has a symbol of its own.
fn range(bits: u8, sorted: &[f32], clipped: f64) -> (f32, i32) {
    let outside = (sorted.len() as f64 * clipped / 2.0) as usize;
    let value = |at: Option<usize>| at.and_then(|at| sorted.get(at)).copied().unwrap_or(0.0);
    let low = value(Some(outside)).min(0.0);
    let high = value(sorted.len().checked_sub(1 + outside)).max(0.0);
    let last = (1i32 << bits) - 1;
    let scale = (high - low) / last as f32;
    // A channel that is zero everywhere needs no step.
    let scale = if scale.is_normal() { scale } else { 1.0 };
    let zero_point = (-low / scale).round() as i32;
    (scale, zero_point.clamp(0, last))
}

/// The bundle's file of frequencies for these counts, `[C][2^bits]`.
fn tables(counts: &[Vec<u64>]) -> Vec<u8> {
    let frequencies = counts.iter().flat_map(|counts| frequencies(counts));
    frequencies.flat_map(u16::to_le_bytes).collect()
}

/// Counts of 2 to 256 symbols to frequencies: each at least 1, the sum exactly 65,536. One is set
/// aside for every symbol, the rest is divided in proportion, and what rounding down leaves goes to
/// the largest remainders, of equals to the lower symbol. Without counts all are alike.
fn frequencies(counts: &[u64]) -> Vec<u16> {
    let uniform = vec![1; counts.len()];
    let counts = if counts.iter().any(|&count| count > 0) { counts } else { &uniform };
    let sum: u64 = counts.iter().sum();
    let portions: Vec<u64> =
        counts.iter().map(|count| count * (TOTAL - counts.len() as u64)).collect();
    let mut frequencies: Vec<u16> =
        portions.iter().map(|portion| 1 + (portion / sum) as u16).collect();
    let given: u64 = frequencies.iter().map(|&frequency| u64::from(frequency)).sum();
    let mut by_remainder: Vec<usize> = (0..portions.len()).collect();
    by_remainder.sort_by_key(|&symbol| (std::cmp::Reverse(portions[symbol] % sum), symbol));
    for symbol in by_remainder.into_iter().take((TOTAL - given) as usize) {
        frequencies[symbol] += 1;
    }
    frequencies
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len().max(1) as f64
}

fn variance(values: &[f32]) -> f64 {
    let mean = mean(values);
    let squares = values.iter().map(|&value| (f64::from(value) - mean).powi(2));
    squares.sum::<f64>() / values.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use isthmus_proto::FrequencyTables;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_counts_become_a_table(bits in 1u8..=8, seed in prop::collection::vec(0u64..1 << 40, 256)) {
            let counts = seed[..1 << bits].to_vec();
            let bytes = tables(&[counts, vec![0; 1 << bits]]);
            prop_assert!(FrequencyTables::from_bytes(bits, 2, &bytes).is_ok());
        }
    }

    #[test]
    fn frequencies_follow_the_counts() {
        assert_eq!(frequencies(&[0, 0]), [32768, 32768]);
        assert_eq!(frequencies(&[3, 0]), [65535, 1]);
        assert_eq!(frequencies(&[1, 1, 1, 0]), [21845, 21845, 21845, 1]);
    }

    #[test]
    fn the_range_holds_the_values_and_zero() {
        // One channel of values 0 to 6, one that is constant, one that is zero.
        let mut calibration = Calibration::new(3, 7, 1);
        let latents = [(0..7).map(|v| v as f32).collect(), vec![-2.0; 7], vec![0.0; 7]].concat();
        calibration.add(&latents);
        assert_eq!(calibration.order(&[1.0; 3]), [0, 1, 2]);
        assert_eq!(calibration.order(&[1.0, 2.0, 0.0]), [0, 1, 2]);
        let Calibrated { scale, zero_point, prior_mean, .. } =
            calibration.calibrate(8, &[2, 0, 1]).expect("valid");
        assert_eq!(scale, [1.0, 6.0 / 255.0, 2.0 / 255.0]);
        assert_eq!(zero_point, [0, 0, 255]);
        assert_eq!(prior_mean, [0.0, 3.0, -2.0]);
    }

    #[test]
    fn a_lone_outlier_does_not_widen_a_shallow_range() {
        let mut calibration = Calibration::new(1, 1001, 1);
        let mut latents: Vec<f32> = (0..1000).map(|v| v as f32 / 1000.0).collect();
        latents.push(5.0);
        calibration.add(&latents);
        let shallow = calibration.calibrate(3, &[0]).expect("valid");
        assert!(shallow.scale[0] < 0.2, "{}", shallow.scale[0]);
    }

    #[test]
    fn samples_are_few_and_from_everywhere() {
        let (plane, pictures) = (96 * 96, 40);
        let mut calibration = Calibration::new(1, plane, pictures);
        let columns: Vec<f32> = (0..plane).map(|at| (at % 96) as f32).collect();
        (0..pictures).for_each(|_| calibration.add(&columns));
        let samples = &calibration.channels[0];
        assert!(samples.len() <= SAMPLES && samples.len() > SAMPLES / 2, "{}", samples.len());
        let mut seen: Vec<f32> = samples.clone();
        seen.sort_by(f32::total_cmp);
        seen.dedup();
        assert_eq!(seen.len(), 96);
    }
}
