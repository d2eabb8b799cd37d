//! Fixed-scale quantisation of latents.

/// Why a quantiser was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum QuantiserError {
    /// The depth is not one a symbol can have.
    #[error("a quantiser has 1 to 8 bits, not {0}")]
    Bits(u8),
    /// The per-channel lists differ in length, or are empty.
    #[error(
        "scale, zero_point and prior_mean need one value per channel and at least one channel, \
         but have {scale}, {zero_point} and {prior_mean}"
    )]
    Channels {
        /// Values in `scale`.
        scale: usize,
        /// Values in `zero_point`.
        zero_point: usize,
        /// Values in `prior_mean`.
        prior_mean: usize,
    },
    /// A scale that cannot divide.
    #[error("channel {channel}: scale must be a positive normal number, not {scale}")]
    Scale {
        /// The channel.
        channel: usize,
        /// Its scale.
        scale: f32,
    },
    /// A zero point outside the alphabet.
    #[error("channel {channel}: zero_point must be 0 to {max}, not {zero_point}")]
    ZeroPoint {
        /// The channel.
        channel: usize,
        /// Its zero point.
        zero_point: i32,
        /// The largest symbol.
        max: i32,
    },
    /// A prior mean that is no number.
    #[error("channel {channel}: prior_mean must be finite, not {prior_mean}")]
    PriorMean {
        /// The channel.
        channel: usize,
        /// Its prior mean.
        prior_mean: f32,
    },
}

/// Turns latents into symbols and back, with a fixed scale and zero point per channel.
///
/// `q = clamp(round_ties_even(z / s) + zp, 0, 2^bits − 1)` and `ẑ = (q − zp) · s`. The scale is
/// learned and fixed, so a packet carries no parameters and a constant picture divides by nothing
/// special. A NaN becomes the zero point.
///
/// ```
/// use isthmus_proto::Quantiser;
/// let quantiser = Quantiser::new(4, vec![0.5], vec![8], vec![0.0])?;
/// let mut symbols = Vec::new();
/// quantiser.quantise(0, &[0.0, 0.75, 0.25, -100.0, f32::NAN], &mut symbols);
/// assert_eq!(symbols, [8, 10, 8, 0, 8]); // 1.5 and 0.5 round to the even neighbour
/// # Ok::<(), isthmus_proto::QuantiserError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Quantiser {
    bits: u8,
    scale: Vec<f32>,
    zero_point: Vec<i32>,
    prior_mean: Vec<f32>,
}

impl Quantiser {
    /// A quantiser of `bits` bits with one scale (> 0), zero point (a symbol) and prior mean per
    /// channel.
    pub fn new(
        bits: u8,
        scale: Vec<f32>,
        zero_point: Vec<i32>,
        prior_mean: Vec<f32>,
    ) -> Result<Self, QuantiserError> {
        if !(1..=8).contains(&bits) {
            return Err(QuantiserError::Bits(bits));
        }
        if scale.is_empty() || scale.len() != zero_point.len() || scale.len() != prior_mean.len() {
            return Err(QuantiserError::Channels {
                scale: scale.len(),
                zero_point: zero_point.len(),
                prior_mean: prior_mean.len(),
            });
        }
        let max = (1 << bits) - 1;
        for channel in 0..scale.len() {
            let (scale, zero_point, prior_mean) =
                (scale[channel], zero_point[channel], prior_mean[channel]);
            if !scale.is_normal() || scale < 0.0 {
                return Err(QuantiserError::Scale { channel, scale });
            }
            if !(0..=max).contains(&zero_point) {
                return Err(QuantiserError::ZeroPoint { channel, zero_point, max });
            }
            if !prior_mean.is_finite() {
                return Err(QuantiserError::PriorMean { channel, prior_mean });
            }
        }
        Ok(Quantiser { bits, scale, zero_point, prior_mean })
    }

    /// Appends the symbols of `latents`, all of one channel.
    ///
    /// # Panics
    ///
    /// If there is no such channel.
    pub fn quantise(&self, channel: usize, latents: &[f32], symbols: &mut Vec<u8>) {
        let (scale, zero_point) = (self.scale[channel], self.zero_point[channel]);
        let max = (1 << self.bits) - 1;
        symbols.extend(latents.iter().map(|z| {
            // The cast saturates and takes NaN to 0.
            let step = (z / scale).round_ties_even() as i32;
            step.saturating_add(zero_point).clamp(0, max) as u8
        }));
    }

    /// Appends the values that `symbols`, all of one channel, stand for.
    ///
    /// # Panics
    ///
    /// If there is no such channel.
    pub fn dequantise(&self, channel: usize, symbols: &[u8], latents: &mut Vec<f32>) {
        let (scale, zero_point) = (self.scale[channel], self.zero_point[channel]);
        latents.extend(symbols.iter().map(|&q| (i32::from(q) - zero_point) as f32 * scale));
    }

    /// Symbol depth (bits).
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Channels it has parameters for.
    pub fn channels(&self) -> usize {
        self.scale.len()
    }

    /// The symbol that stands for zero, of each channel.
    pub(crate) fn zero_points(&self) -> &[i32] {
        &self.zero_point
    }

    /// What a channel that was not sent is taken to be everywhere, one value per channel.
    pub fn prior_mean(&self) -> &[f32] {
        &self.prior_mean
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refusals_name_the_channel() {
        let new = |bits, scale: f32, zero| {
            Quantiser::new(bits, vec![1.0, scale], vec![0, zero], vec![0.0; 2])
        };
        assert_eq!(new(0, 1.0, 0).err(), Some(QuantiserError::Bits(0)));
        assert_eq!(new(9, 1.0, 0).err(), Some(QuantiserError::Bits(9)));
        assert_eq!(new(4, 0.0, 0).err(), Some(QuantiserError::Scale { channel: 1, scale: 0.0 }));
        assert!(new(4, f32::NAN, 0).is_err());
        assert_eq!(
            new(4, 1.0, 16).err(),
            Some(QuantiserError::ZeroPoint { channel: 1, zero_point: 16, max: 15 })
        );
        assert!(Quantiser::new(4, vec![1.0], vec![], vec![0.0]).is_err());
    }

    proptest! {
        #[test]
        fn symbols_survive_the_round_trip(bits in 1u8..=8, scale in 1e-3f32..1e3, zero in 0i32..256) {
            let zero = zero % (1 << bits);
            let quantiser = Quantiser::new(bits, vec![scale], vec![zero], vec![0.0]).expect("valid");
            let all: Vec<u8> = (0..1u16 << bits).map(|q| q as u8).collect();
            let (mut latents, mut symbols) = (Vec::new(), Vec::new());
            quantiser.dequantise(0, &all, &mut latents);
            quantiser.quantise(0, &latents, &mut symbols);
            prop_assert_eq!(symbols, all);
        }

        #[test]
        fn any_float_becomes_a_symbol(bits in 1u8..=8, z in proptest::num::f32::ANY) {
            let quantiser = Quantiser::new(bits, vec![0.1], vec![0], vec![0.0]).expect("valid");
            let mut symbols = Vec::new();
            quantiser.quantise(0, &[z], &mut symbols);
            prop_assert!(u16::from(symbols[0]) < 1 << bits);
        }
    }
}
