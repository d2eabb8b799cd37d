//! The plan: what this frame and the next few are worth together, given the backlog that each leaves to
//! the next.

use super::costs::{CERTAIN, Conditions, RungCost};
use super::prices::Prices;
use crate::controller::statistics::normal_cdf;

/// The backlog at the start of a plan: times in ms from now on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backlog {
    /// Until the device is free.
    pub(super) device: f64,
    /// Until the path is free.
    pub(super) link: f64,
}

/// Plans over the next frames with the costs of a decision.
pub(super) struct Planner<'a> {
    pub(super) costs: &'a [RungCost],
    pub(super) prices: Prices,
    pub(super) conditions: Conditions,
}

impl Planner<'_> {
    /// The expected quality of `frames` frames less what they cost, if the first, captured `age` (ms)
    /// ago, takes the rung `first` and the others take `rest`.
    ///
    /// Frame k is captured at `cₖ = k · Δ − age`. With the device free at F and the path free at L,
    ///
    /// - it starts at `max(F, cₖ)`, unless the next frame has taken its place by then, at `cₖ + Δ`; its
    ///   turn comes with the probability `t = Φ((cₖ + Δ − start) / √V)`, with the variance V of F;
    /// - it is ready at `r = start + d` and leaves at `l = max(L, r)`;
    /// - its exit is in time with the probability `Φ((cₖ + D − r) / s)`;
    /// - its network answer has the slack `cₖ + D − l − m`, and is late with the probability P of
    ///   [`Lateness::of_run`](super::costs::Lateness::of_run);
    /// - so it is worth `t · (Φ · e − μ_d · d + max(0, gain(P) − sent · c(s, x)))`.
    ///
    /// What is left of the backlog of the device at the end is charged at λ_d.
    pub(super) fn value(
        &self,
        [first, rest]: [&RungCost; 2],
        mut free: Backlog,
        age: f64,
        frames: usize,
    ) -> f64 {
        let Conditions { interval, deadline, lateness, .. } = self.conditions;
        let prices = self.prices;
        let mut value = 0.0;
        let mut cost = first;
        // V: of the instant at which the device is free.
        let mut variance: f64 = 0.0;
        for frame in 0..frames {
            let captured = frame as f64 * interval - age;
            if free.device <= captured {
                variance = 0.0;
            }
            let start = free.device.max(captured);
            let turn = match (captured + interval - start, variance.sqrt()) {
                (room, spread) if room.abs() < CERTAIN * spread => normal_cdf(room / spread),
                (room, _) => f64::from(room >= 0.0),
            };
            if turn == 0.0 {
                continue;
            }
            variance += cost.device_deviation.powi(2);
            let ready = start + cost.device;
            let leaves = free.link.max(ready);
            let exit_in_time = normal_cdf((captured + deadline - ready) / cost.device_deviation);
            value += turn * (exit_in_time * cost.exit - prices.compute * cost.device);
            free.device = start + turn * cost.device;
            let slack = captured + deadline - leaves - cost.mean;
            let late = lateness.of_run(slack, cost.deviation, cost.device_deviation);
            let send_cost = cost.sent * prices.send_cost(cost.charged, cost.bytes);
            let gain = cost.gain(late) - send_cost;
            if gain > 0.0 {
                value += turn * gain;
                free.link = leaves + turn * cost.sent * cost.serialisation;
            }
            cost = rest;
        }
        // What is left over at the end is time taken from later frames.
        let end = frames as f64 * interval - age;
        let over = (free.device - end).max(0.0);
        value - (over * prices.device).min(rest.quality)
    }

    /// The best value of `frames` frames of which the first takes the rung `first` and the others all
    /// take the same one.
    pub(super) fn best_after(
        &self,
        first: &RungCost,
        free: Backlog,
        age: f64,
        frames: usize,
    ) -> f64 {
        let values = self.costs.iter().map(|rest| self.value([first, rest], free, age, frames));
        values.fold(0.0, f64::max)
    }

    /// The best value of the `frames` frames after one captured `age` (ms) ago, if they all take the
    /// same rung.
    pub(super) fn future(&self, free: Backlog, age: f64, frames: usize) -> f64 {
        let age = age - self.conditions.interval;
        let value = |cost| self.value([cost, cost], free, age, frames);
        self.costs.iter().map(value).fold(0.0, f64::max)
    }
}
