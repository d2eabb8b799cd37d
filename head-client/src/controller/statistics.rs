//! Statistics that controllers share: a smoothed mean with its deviation, and the normal
//! distribution.

use std::time::Duration;

/// A mean m and a mean absolute deviation v of samples x, smoothed as RFC 6298 (2) smooths round
/// trips:
///
/// `v ← 3/4 · v + 1/4 · |x − m|`, then `m ← 7/8 · m + 1/8 · x`.
///
/// The first sample sets `m = x` and `v = x / 8`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Smoothed {
    pub(super) mean: Option<f64>,
    deviation: f64,
}

impl Smoothed {
    pub(super) fn update(&mut self, sample: f64) {
        let (mean, deviation) = match self.mean {
            None => (sample, sample / 8.0),
            Some(mean) => (
                mean + (sample - mean) / 8.0,
                self.deviation + ((sample - mean).abs() - self.deviation) / 4.0,
            ),
        };
        (self.mean, self.deviation) = (Some(mean), deviation);
    }

    /// The standard deviation of a normal distribution with this mean absolute deviation:
    /// `σ = √(π/2) · v ≈ 1.25 · v`.
    pub(super) fn standard_deviation(&self) -> f64 {
        1.25 * self.deviation
    }
}

/// The cumulative distribution function Φ(z) of a standard normal distribution, to about 0.01, by
/// the logistic function `1 / (1 + exp(−1.702 · z))` (Bowling, Khasawneh, Kaewkuekool and Cho 2009).
pub(super) fn normal_cdf(z: f64) -> f64 {
    if z.abs() > 4.0 {
        return f64::from(u8::from(z > 0.0));
    }
    1.0 / (1.0 + (-1.702 * z).exp())
}

/// A duration in milliseconds, the unit that controllers reckon in.
pub(super) fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
