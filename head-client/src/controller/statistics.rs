//! What controllers know of a quantity that varies.

/// A mean and a deviation, smoothed as RFC 6298 smooths round trips.
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

    /// That of a normal distribution whose mean absolute deviation this is.
    pub(super) fn standard_deviation(&self) -> f64 {
        1.25 * self.deviation
    }
}

/// Share of a standard normal distribution below `z`, to about 0.01: a logistic function.
pub(super) fn normal_cdf(z: f64) -> f64 {
    if z.abs() > 4.0 {
        return f64::from(u8::from(z > 0.0));
    }
    1.0 / (1.0 + (-1.702 * z).exp())
}
