//! The weights with which pixels along one axis are resized, as Pillow's `BILINEAR` has them.

/// Fractional bits of a weight: a byte and two bits less than an i32 has.
pub(crate) const PRECISION: u32 = 22;

/// The source pixels of one target pixel along one axis, with their weights as fractions of
/// 2^[`PRECISION`].
pub(crate) struct Taps {
    pub(crate) first: usize,
    pub(crate) weights: Vec<i32>,
}

impl Taps {
    /// For each of `to` pixels made of `from`: a triangle as wide as the scale, cut off at the
    /// edges.
    pub(crate) fn all(from: usize, to: usize) -> Vec<Taps> {
        let scale = from as f64 / to as f64;
        let support = scale.max(1.0);
        let taps = |at: usize| {
            let centre = (at as f64 + 0.5) * scale;
            let first = (centre - support + 0.5).max(0.0) as usize;
            let end = ((centre + support + 0.5) as usize).min(from);
            let triangle =
                |x: usize| (1.0 - ((x as f64 - centre + 0.5) * (1.0 / support)).abs()).max(0.0);
            let sum: f64 = (first..end).map(triangle).sum();
            let one = f64::from(1 << PRECISION);
            let weights = (first..end).map(|x| (0.5 + triangle(x) / sum * one) as i32).collect();
            Taps { first, weights }
        };
        (0..to).map(taps).collect()
    }

    /// The weighted sum of the pixels that `pixel` gives by position.
    pub(crate) fn sum(&self, pixel: impl Fn(usize) -> [u8; 3]) -> [u8; 3] {
        let mut sums = [1 << (PRECISION - 1); 3];
        for (at, &weight) in (self.first..).zip(&self.weights) {
            for (sum, value) in sums.iter_mut().zip(pixel(at)) {
                *sum += i32::from(value) * weight;
            }
        }
        sums.map(|sum| (sum >> PRECISION).clamp(0, 255) as u8)
    }
}
