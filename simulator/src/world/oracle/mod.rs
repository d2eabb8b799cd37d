//! The oracle: an upper bound on what any controller could have reached that knew the link.
//!
//! It is a dynamic programme over backlog × frame. It knows the whole schedule of the uplink and how
//! long the device will take, and about a picture no more than a controller does after the head: the
//! exit's confidence and what the record says to that, and the coded sizes. Everything else is
//! taken at its best: no jitter, no loss, a server that is free. Of a compressed picture without a head
//! nothing is known, nor of what the full network will say on the device: they are worth what they
//! are on average.
//!
//! A controller chooses the head before it knows any of that, a search sees it beforehand. What it
//! could gain by choosing heads to suit the pictures is taken off: every head that is run is charged
//! its control variate with the picture ([`super::record::ControlVariate`]), for the plan as for the
//! controllers, for whom that is zero in the mean (an information relaxation with a penalty: Brown,
//! Smith and Sun 2010). So no controller that keeps to the runs that the plan may use can do better: the
//! sum of what its answers are worth, less the control variate ([`super::RunResult::less_control_variate`]), is
//! at most the plan's ([`Plan::value`]), in every single run.
//!
//! With one camera the backlogs are those of its device and of the link. With several they would be
//! too many, and the plan is the less of two bounds: each camera by itself, with the whole link; and
//! all of them on the link, where the devices' time is not rationed frame by frame but only in sum,
//! by a price (a Lagrangian relaxation; whatever the price, the bound holds, and the best of some is
//! taken).

mod problem;
mod search;

use isthmus_head_client::Run;
use serde::{Deserialize, Serialize};

use super::record::ControlVariate;
use super::{Record, WorldConfig};
use problem::Problem;
use search::{DeviceTime, best_plan};

/// The price at which the control variate is charged is chosen on the first of so many parts of a run.
const TRIED: usize = 12;

/// What a plan's choices are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// What the record expects at the exit's confidence: what a controller knows.
    Expected,
    /// How good the answer will be: what nobody knows.
    Clairvoyant,
}

/// A best plan.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Frames.
    pub frames: u64,
    /// An upper bound on the sum over the frames of what was known of being right and in time.
    pub value: f64,
    /// Sum of the qualities of this plan's answers, all of which are in time.
    #[serde(alias = "right_in_time")]
    pub quality_in_time: f64,
    /// Frames sent.
    pub sent: u64,
    /// Bytes sent.
    pub bytes: u64,
    /// At which price of a byte the control variate was charged. The bound holds for any; for about what
    /// a byte is worth on the link it is tight.
    #[serde(alias = "luck_level")]
    pub price_level: usize,
}

impl Plan {
    /// Mean quality of all frames.
    pub fn on_time_quality(&self) -> f64 {
        super::mean(self.quality_in_time, self.frames)
    }

    /// The bound as a fraction of all frames.
    pub fn expected_quality(&self) -> f64 {
        self.value / self.frames.max(1) as f64
    }

    /// Both plans together.
    #[must_use]
    pub fn plus(self, other: Plan) -> Plan {
        Plan {
            frames: self.frames + other.frames,
            value: self.value + other.value,
            quality_in_time: self.quality_in_time + other.quality_in_time,
            sent: self.sent + other.sent,
            bytes: self.bytes + other.bytes,
            price_level: other.price_level,
        }
    }
}

/// The best plan for `config` by what is known, for whoever may run and send what is among `runs`.
pub fn plan(config: &WorldConfig, record: &Record, runs: &[Run], knowledge: Knowledge) -> Plan {
    let mut problem = Problem::new(config, record, runs, knowledge);
    let frames = problem.frames(0..config.cameras);
    // Who knows the outcomes is charged nothing.
    if knowledge == Knowledge::Expected {
        let some = &frames[..frames.len().div_ceil(TRIED)];
        let mut bound = |level| {
            problem.price_level = level;
            best_plan(&problem, some, DeviceTime::Priced(0.0)).value
        };
        let bounds: Vec<f64> = (0..ControlVariate::LEVELS).map(&mut bound).collect();
        let tightest = (0..ControlVariate::LEVELS).min_by(|&a, &b| bounds[a].total_cmp(&bounds[b]));
        problem.price_level = tightest.unwrap_or(0);
    }
    if config.cameras == 1 {
        return best_plan(&problem, &frames, DeviceTime::Rationed);
    }
    let alone = (0..config.cameras)
        .map(|camera| {
            best_plan(&problem, &problem.frames(camera..camera + 1), DeviceTime::Rationed)
        })
        .fold(Plan::default(), Plan::plus);
    // What a millisecond of a device can be worth, if it is worth anything.
    let interval = config.interval.as_secs_f64() * 1e3;
    let prices = [0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8].map(|price| price / interval);
    let mut best = alone;
    for price in prices {
        let priced = best_plan(&problem, &frames, DeviceTime::Priced(price));
        if priced.value < best.value {
            best = priced;
        }
    }
    best
}
