//! Random draws that hang from a seed alone, so that equal seeds give equal runs.

use rand::RngExt as _;
use rand_pcg::Pcg32;

/// Draws for one purpose, so that what one part of a model draws does not shift another part.
#[derive(Clone, Debug)]
pub struct Chance {
    source: Pcg32,
    /// State of [`Chance::correlated_normal`].
    normal: Option<f64>,
}

impl Chance {
    /// Equal `seed` and `purpose` give equal draws.
    pub fn new(seed: u64, purpose: u64) -> Self {
        // PCG's streams of neighbouring numbers are related (O'Neill 2014, 4.3.2): scatter them.
        let purpose = scattered(purpose);
        let source = Pcg32::new(scattered(seed ^ purpose), purpose);
        Chance { source, normal: None }
    }

    /// Uniform in 0..1.
    pub fn uniform(&mut self) -> f64 {
        self.source.random()
    }

    /// True with `probability`; draws nothing when that is 0, so that what is switched off is free.
    pub fn happens(&mut self, probability: f64) -> bool {
        probability > 0.0 && self.uniform() < probability
    }

    /// A position drawn by `weights`, the last one if they do not add up.
    pub fn weighted(&mut self, weights: &[f64]) -> usize {
        let mut rest = self.uniform() * weights.iter().sum::<f64>();
        let beyond = |weight: &f64| {
            rest -= weight;
            rest < 0.0
        };
        weights.iter().position(beyond).unwrap_or(weights.len().saturating_sub(1))
    }

    /// Exponential of mean 1.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.uniform()).ln()
    }

    /// Standard normal (Box and Muller 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (2.0 * self.exponential()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Standard normal whose correlation with the draw before is `correlation`: a first-order
    /// autoregressive process.
    pub fn correlated_normal(&mut self, correlation: f64) -> f64 {
        let fresh = self.normal();
        let next = match self.normal {
            Some(before) if correlation != 0.0 => {
                correlation * before + (1.0 - correlation * correlation).sqrt() * fresh
            }
            _ => fresh,
        };
        self.normal = Some(next);
        next
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
pub fn scattered(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn purposes_and_seeds_draw_differently() {
        let first = |seed, purpose| Chance::new(seed, purpose).uniform();
        assert_eq!(first(1, 1), first(1, 1));
        assert_ne!(first(1, 1), first(2, 1));
        assert_ne!(first(1, 1), first(1, 2));
    }

    #[test]
    fn draws_have_their_moments() {
        let mut chance = Chance::new(3, 0);
        let count = 40_000;
        let mean = |draw: &mut dyn FnMut() -> f64| {
            (0..count).map(|_| draw()).sum::<f64>() / f64::from(count)
        };
        assert!((mean(&mut || chance.exponential()) - 1.0).abs() < 0.03);
        assert!(mean(&mut || chance.normal()).abs() < 0.03);
        let square = mean(&mut || chance.correlated_normal(0.9).powi(2));
        assert!((square - 1.0).abs() < 0.1, "{square}");
        let mut before = chance.correlated_normal(0.9);
        let lag = mean(&mut || {
            let now = chance.correlated_normal(0.9);
            std::mem::replace(&mut before, now) * now
        });
        assert!(lag > 0.8, "{lag}");
        let picks = (0..count).filter(|_| chance.weighted(&[1.0, 3.0]) == 1).count();
        assert!((29_000..31_000).contains(&picks), "{picks}");
    }
}
