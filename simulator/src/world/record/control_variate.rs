//! A control variate: by how much each frame is easier than frames are on average.
//!
//! Which frames a run meets is chance, and the same chance for every controller. What it adds to the
//! run's value can be computed, because a head is chosen before anything is known of the frame; taken
//! off, it leaves the same mean with less variance.

use std::collections::{BTreeMap, BTreeSet};

use isthmus_head_client::{Ladder, Load, Run};
use serde::{Deserialize, Serialize};

/// Prices of a byte (in fractions of a frame that is right), from nothing to more than any answer is
/// worth: the control variate is computed for each.
const PRICES: [f64; 8] = [0.0, 2e-5, 6e-5, 2e-4, 6e-4, 2e-3, 6e-3, 1.0];

/// By how much a frame is better for a head than frames are on average, at each of some prices of a byte:
/// how much its best answer is worth less its bytes, of all that may be sent of that head and its
/// exit. The mean over all frames that can be drawn is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ControlVariate([f64; PRICES.len()]);

impl ControlVariate {
    /// How many prices there are.
    pub const LEVELS: usize = PRICES.len();

    /// The sum of both.
    #[must_use]
    pub fn plus(self, other: ControlVariate) -> ControlVariate {
        let mut sum = self;
        sum.0.iter_mut().zip(other.0).for_each(|(sum, other)| *sum += other);
        sum
    }

    /// Its value at the `level`-th price, from 0 for bytes that cost nothing; beyond the last one it is
    /// 0.
    pub fn of(self, level: usize) -> f64 {
        self.0.get(level).copied().unwrap_or(0.0)
    }
}

/// The control variate of everything that runs a head, for every frame that can be drawn; `sizes` gives
/// the bytes that a run sends of a frame.
pub(super) fn control_variates(
    ladder: &Ladder,
    expected: &BTreeMap<Run, Vec<f64>>,
    exits: &BTreeMap<(u8, u8), Vec<f64>>,
    sizes: impl Fn(Run, usize) -> u32,
) -> BTreeMap<Load, Vec<ControlVariate>> {
    let on_ladder: BTreeSet<Run> = ladder.rungs().iter().map(|rung| rung.run).collect();
    let mut worths: BTreeMap<Load, Vec<ControlVariate>> = BTreeMap::new();
    let runs = expected.iter().filter_map(|(run, frames)| Some((*run, run.head()?, frames)));
    for (run, head, frames) in runs {
        let of_exit = |&worth: &f64| ControlVariate([worth; PRICES.len()]);
        let alone = || exits[&head].iter().map(of_exit).collect();
        let worths = worths.entry(run.load()).or_insert_with(alone);
        // A picture is a load of its own, on the ladder or not.
        if !matches!(run, Run::Image(_)) && !on_ladder.contains(&run) {
            continue;
        }
        for (at, (worth, sent)) in worths.iter_mut().zip(frames).enumerate() {
            let bytes = f64::from(sizes(run, at));
            let best = worth.0.iter_mut().zip(PRICES);
            best.for_each(|(best, price)| *best = best.max(sent - price * bytes));
        }
    }
    for worths in worths.values_mut() {
        let sum = worths.iter().copied().fold(ControlVariate::default(), ControlVariate::plus);
        let count = worths.len().max(1) as f64;
        for worth in worths {
            worth.0.iter_mut().zip(sum.0).for_each(|(worth, sum)| *worth -= sum / count);
        }
    }
    worths
}
