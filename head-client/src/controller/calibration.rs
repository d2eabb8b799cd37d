//! How often an exit is right, by its confidence.

/// How often an exit is right, by bands of its confidence. Bands are in order of confidence and
/// together cover it.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// Upper end of each band, increasing; the last one is 1 or more.
    pub upper: Vec<f32>,
    /// Fraction of frames in each band; they add up to 1.
    pub fraction: Vec<f64>,
    /// Fraction of each band's frames that the exit gets right.
    pub quality: Vec<f64>,
}

impl Calibration {
    /// One band for all frames.
    pub(super) fn flat(quality: f64) -> Calibration {
        Calibration { upper: vec![1.0], fraction: vec![1.0], quality: vec![quality] }
    }

    /// Whether the bands are in order, cover every confidence, and have a fraction and a quality each.
    pub(super) fn is_whole(&self) -> bool {
        let count = self.upper.len();
        self.upper.last().is_some_and(|&last| last >= 1.0)
            && self.upper.windows(2).all(|two| two[0] < two[1])
            && self.fraction.len() == count
            && self.quality.len() == count
    }

    /// The band of a confidence.
    pub(super) fn band(&self, confidence: f32) -> usize {
        let band = self.upper.partition_point(|&upper| upper < confidence);
        band.min(self.upper.len() - 1)
    }

    /// The mean over all frames of a `quality` that is given for each band, or once for all.
    pub(super) fn mean(&self, quality: &[f64]) -> f64 {
        let by_band = self.fraction.iter().enumerate();
        by_band.map(|(band, fraction)| fraction * quality[band.min(quality.len() - 1)]).sum()
    }
}
