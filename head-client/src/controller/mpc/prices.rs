//! Prices: what a millisecond of the path, a millisecond of the device and a byte are worth, in
//! quality.
//!
//! A frame that takes more of a resource leaves less for later frames and for other users of the path.
//! Prices put that into the decision about one frame, as the multipliers of a Lagrangian relaxation do.

use super::costs::{Conditions, RungCost};
use crate::controller::ladder::Ladder;

/// The least that occupying an unsteady path all the time beyond the smallest rungs must gain
/// (quality): to send more is to risk a queue, which costs whole answers.
const UPGRADE: f64 = 0.1;

/// Price of the whole path (quality per interval) if a queue as long as the deadline stands on it.
const QUEUE_PRICE: f64 = 16.0;

/// Greatest fraction of the path's time to occupy, on a steady path and on an unsteady one.
const STEADY_FRACTION: f64 = 0.8;
const UNSTEADY_FRACTION: f64 = 0.4;

/// Halvings of the interval in which a price is searched.
const BISECTIONS: usize = 12;

/// The prices of a decision (quality).
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Prices {
    /// λ_d: a millisecond of the device, which later frames need too.
    pub(super) device: f64,
    /// μ_d: a millisecond of the device, for its energy.
    pub(super) compute: f64,
    /// λ: a millisecond of the path.
    pub(super) link: f64,
    /// λ₊: the surcharge on a millisecond of the path beyond `least`.
    pub(super) surcharge: f64,
    /// s₀: the serialisation time of the smallest rung (ms).
    pub(super) least: f64,
    /// μ_x: a byte.
    pub(super) byte: f64,
}

impl Prices {
    /// The cost of occupying the path for s (ms) with x bytes:
    /// `c(s, x) = λ · s + λ₊ · max(s − s₀, 0) + μ_x · x`.
    pub(super) fn send_cost(&self, serialisation: f64, bytes: f64) -> f64 {
        self.link * serialisation
            + self.surcharge * (serialisation - self.least).max(0.0)
            + self.byte * bytes
    }

    /// A rung at these prices: frames are only sent where their gain exceeds the send cost.
    fn charge(&self, ladder: &Ladder, cost: &RungCost) -> RungCost {
        let send_cost = self.send_cost(cost.charged, cost.bytes);
        let (quality, sent) = ladder.policy(cost.rung, send_cost);
        RungCost { quality, sent, ..*cost }
    }

    /// All rungs at these prices.
    pub(super) fn charge_all(&self, ladder: &Ladder, costs: &[RungCost]) -> Vec<RungCost> {
        costs.iter().map(|cost| self.charge(ladder, cost)).collect()
    }

    /// The prices at which the demand of the best rungs meets what path and device offer, and the rungs
    /// at these prices. `device` is the device's price at the last decision; `compute` and `byte` are
    /// given by the objective.
    pub(super) fn find(
        ladder: &Ladder,
        costs: &[RungCost],
        conditions: &Conditions,
        device: f64,
        (compute, byte): (f64, f64),
    ) -> (Prices, Vec<RungCost>) {
        let charged = costs.iter().map(|cost| cost.charged).filter(|&charged| charged > 0.0);
        let least = charged.fold(f64::INFINITY, f64::min);
        let surcharge = conditions.unsteadiness * UPGRADE / conditions.interval;
        let first = Prices { device, compute, link: 0.0, surcharge, least, byte };
        let prices = Prices { link: first.link_price(ladder, costs, conditions), ..first };
        let costs = prices.charge_all(ladder, costs);
        let device = prices.device_price(&costs, conditions.interval);
        (Prices { device, ..prices }, costs)
    }

    /// λ: the least price at which the best rung occupies no more of the path than its fraction
    /// `f = 0.8 − 0.4 · u`, but at least `16 · q / Δ`, where the queue q takes of the deadline.
    ///
    /// Everybody who waits in the same queue sees it and takes less, as with TCP Vegas (Brakmo and
    /// Peterson 1995). Rungs whose device time is a guess set no price: they may take too long.
    fn link_price(&self, ladder: &Ladder, costs: &[RungCost], conditions: &Conditions) -> f64 {
        let &Conditions { interval, unsteadiness, queue, .. } = conditions;
        let least = QUEUE_PRICE * queue / interval;
        let fraction = STEADY_FRACTION + unsteadiness * (UNSTEADY_FRACTION - STEADY_FRACTION);
        let is_within_fraction = |link: f64| {
            let prices = Prices { link, ..*self };
            let (mut best, mut occupied) = (f64::MIN, 0.0);
            for cost in costs.iter().filter(|cost| cost.is_measured) {
                let cost = prices.charge(ladder, cost);
                let send_cost = cost.sent * prices.send_cost(cost.charged, cost.bytes);
                let gain = (cost.usual_gain() - send_cost).max(0.0);
                let value = cost.exit + gain - (prices.device + prices.compute) * cost.device;
                if value > best {
                    let charged = if gain > 0.0 { cost.sent * cost.charged } else { 0.0 };
                    (best, occupied) = (value, charged);
                }
            }
            occupied <= fraction * interval
        };
        least_price(1.0, is_within_fraction).max(least)
    }

    /// λ_d: the multiplier of the best mixture of rungs that keeps pace with the frames in the mean,
    /// which minimises the dual `λ_d · Δ + max(0, maxᵢ (wᵢ − λ_d · dᵢ))` over rungs of worth wᵢ and
    /// device time dᵢ. The dual is convex: it rises where the best rung takes less than the interval Δ.
    /// Rungs whose device time is a guess are left out.
    pub(super) fn device_price(&self, costs: &[RungCost], interval: f64) -> f64 {
        let worth = |cost: &RungCost| {
            let gain = cost.usual_gain() - cost.sent * self.byte * cost.bytes;
            (cost.device, cost.exit + gain.max(0.0) - self.compute * cost.device)
        };
        let worths: Vec<(f64, f64)> =
            costs.iter().filter(|cost| cost.is_measured).map(worth).collect();
        let keeps_pace = |price: f64| {
            let value = |(device, worth): (f64, f64)| worth - price * device;
            // To drop the frame takes nothing and is worth nothing.
            let dropped = (0.0, 0.0);
            let best = worths
                .iter()
                .copied()
                .fold(dropped, |best, it| if value(it) > value(best) { it } else { best });
            best.0 <= interval
        };
        least_price(1.0 / interval, keeps_pace)
    }
}

/// The least price up to `most` that `suffices`, by bisection: every price above one that suffices does
/// as well.
fn least_price(most: f64, suffices: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, most);
    if suffices(low) {
        return low;
    }
    for _ in 0..BISECTIONS {
        let middle = f64::midpoint(low, high);
        if suffices(middle) { high = middle } else { low = middle }
    }
    high
}
