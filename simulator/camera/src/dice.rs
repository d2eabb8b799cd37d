//! Seeded chance: every random choice of the camera comes from one of these.

use rand::RngExt as _;
use rand_pcg::Pcg32;

/// A small deterministic source of random choices.
#[derive(Clone, Debug)]
pub(super) struct Dice(Pcg32);

impl Dice {
    /// Dice for one purpose: equal `seed` and `stream` give equal throws.
    pub(super) fn new(seed: u64, stream: u64) -> Self {
        let stream = scattered(stream);
        Self(Pcg32::new(scattered(seed ^ stream), stream))
    }

    /// Independent dice, so that what one part of the world throws does not shift another part.
    pub(super) fn split(&mut self) -> Self {
        Self::new(self.0.random(), self.0.random())
    }

    /// A uniform number in `low..high`.
    pub(super) fn between(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.0.random::<f32>()
    }

    /// A whole number in `low..high`; `low` where the range is empty.
    pub(super) fn below(&mut self, low: usize, high: usize) -> usize {
        if low < high { self.0.random_range(low..high) } else { low }
    }

    /// True with the given probability.
    pub(super) fn chance(&mut self, probability: f32) -> bool {
        self.0.random::<f32>() < probability
    }

    /// One of two values, -1 or 1.
    pub(super) fn side(&mut self) -> f32 {
        if self.chance(0.5) { 1.0 } else { -1.0 }
    }

    /// One of the given choices.
    pub(super) fn pick<T: Copy, const N: usize>(&mut self, choices: [T; N]) -> T {
        choices[self.below(0, N)]
    }

    /// Puts the items in random order.
    pub(super) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            let other = self.below(0, last + 1);
            items.swap(last, other);
        }
    }

    /// A normal number with mean 0 and deviation 1, near enough: the sum of twelve uniform ones.
    /// Sums are the same on every machine, logarithms and cosines need not be.
    pub(super) fn normal(&mut self) -> f32 {
        (0..12).map(|_| self.0.random::<f32>()).sum::<f32>() - 6.0
    }
}

/// Makes neighbouring numbers unlike each other, as SplitMix64 does: dice of neighbouring seeds
/// would otherwise begin alike.
fn scattered(number: u64) -> u64 {
    let number = number.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    number ^ (number >> 31)
}
