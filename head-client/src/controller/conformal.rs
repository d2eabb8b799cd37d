//! The safety margin of predictions, which follows the misses themselves.

use std::collections::VecDeque;

/// Scores remembered.
const WINDOW: usize = 64;

/// With fewer scores the worst tenth is only the very worst.
const ENOUGH: usize = 20;

/// The margin κ: the multiple of a prediction's standard deviation that is exceeded as seldom as asked.
///
/// A frame's score is `(observed − predicted) / deviation`. The margin tracks the misses (quantile
/// tracking, Angelopoulos, Candès and Tibshirani 2023, "Conformal PID control for time series
/// prediction"):
///
/// `κ ← clamp(κ + η · (miss − ε*), 0.5, 6)`, with η = 1 and `miss` 0 or 1,
///
/// so that in the long run the fraction ε* misses, whatever the distribution. It is never less than
/// the quantile of order `min(1 − ε*, 0.9)` of the last 64 scores, so that it widens before misses
/// teach it.
#[derive(Clone, Debug)]
pub struct Conformal {
    target: f64,
    tracked: f64,
    scores: VecDeque<f64>,
    margin: f64,
}

/// Greatest fraction of the scores remembered that the margin has to cover.
const COVERED: f64 = 0.9;

/// η: a miss widens the margin by so many deviations.
const GAIN: f64 = 1.0;

/// By how many deviations a reply narrows the margin that the margin had ruled out.
const TOO_WIDE: f64 = 0.25;

/// The margin before any score, and the least and greatest.
const FIRST_MARGIN: f64 = 2.0;
const LEAST_MARGIN: f64 = 0.5;
const GREATEST_MARGIN: f64 = 6.0;

impl Conformal {
    /// A margin that the fraction `target` of frames is to exceed, 0.001 to 0.5.
    pub fn new(target: f64) -> Self {
        let target = target.clamp(0.001, 0.5);
        let scores = VecDeque::with_capacity(WINDOW + 1);
        Conformal { target, tracked: FIRST_MARGIN, scores, margin: FIRST_MARGIN }
    }

    /// Learns from a frame that was sent because it was expected in time: its score, and whether
    /// it missed its deadline.
    pub fn on_score(&mut self, score: f64, missed: bool) {
        let miss = if missed { 1.0 } else { 0.0 };
        self.track(GAIN * (miss - self.target));
        self.scores.push_back(score);
        if self.scores.len() > WINDOW {
            self.scores.pop_front();
        }
        self.settle();
    }

    /// Learns that a frame was in time which the margin had ruled out.
    pub fn on_unexpected(&mut self) {
        self.track(-TOO_WIDE);
        self.settle();
    }

    /// The margin, in deviations.
    pub fn margin(&self) -> f64 {
        self.margin
    }

    fn track(&mut self, step: f64) {
        self.tracked = (self.tracked + step).clamp(LEAST_MARGIN, GREATEST_MARGIN);
    }

    fn settle(&mut self) {
        let mut sorted: Vec<f64> = self.scores.iter().copied().collect();
        sorted.sort_by(f64::total_cmp);
        // The ⌈covered · (n + 1)⌉-th smallest, or none while there are too few.
        let covered = (1.0 - self.target).min(COVERED);
        let rank = ((sorted.len() + 1) as f64 * covered).ceil() as usize;
        let enough = sorted.len() >= ENOUGH;
        let seen = sorted.get(rank - 1).filter(|_| enough).copied().unwrap_or(LEAST_MARGIN);
        self.margin = self.tracked.max(seen.min(GREATEST_MARGIN));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn in_the_long_run_the_target_misses() {
        for target in [0.01, 0.05] {
            let mut conformal = Conformal::new(target);
            let mut misses = 0;
            for frame in 0..40_000u32 {
                // Heavy-tailed: 1 / √u − 1, with a low-discrepancy u.
                let u = (f64::from(frame) * 0.618_033_988_75).fract().max(1e-6);
                let score = 1.0 / u.sqrt() - 1.0;
                let missed = score > conformal.margin() * 3.0;
                misses += u32::from(missed);
                conformal.on_score(score.min(1.0), missed);
            }
            let rate = f64::from(misses) / 40_000.0;
            assert!((rate / target - 1.0).abs() < 0.1, "{rate} against {target}");
        }
    }

    #[test]
    fn the_margin_covers_most_of_what_was_seen_before_anything_misses() {
        let mut conformal = Conformal::new(0.01);
        for frame in 0..64 {
            conformal.on_score(f64::from(frame * 37 % 64) / 12.0, false);
        }
        assert!((4.6..5.2).contains(&conformal.margin()), "{}", conformal.margin());
    }

    #[test]
    fn a_margin_that_was_too_wide_shrinks() {
        let mut conformal = Conformal::new(0.01);
        (0..12).for_each(|_| conformal.on_score(0.1, true));
        assert_eq!(conformal.margin(), GREATEST_MARGIN);
        (0..8).for_each(|_| conformal.on_unexpected());
        assert!(conformal.margin() <= 4.0);
    }
}
