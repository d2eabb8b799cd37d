//! What could have been reached by whoever knew the link.
//!
//! A dynamic programme over backlog × frame. It knows the whole schedule of the uplink, and about
//! a picture no more than a controller does after the head: the exit's confidence and what the
//! ladder says to that, and the coded sizes. It is an upper bound on what such a controller can
//! expect, because everything else is taken at its best: no jitter, no loss, a server that is free,
//! a device that is free for every frame and as fast as for this one. All cameras are one sequence
//! of frames, so that it plans for them jointly.

use isthmus_head_client::Ladder;
use isthmus_proto::{OperatingPoint, Timestamp};

use super::{GUARD, Record, WorldConfig, capture_time, luck, on_the_wire, picture};
use crate::link::Schedule;

/// What a plan's choices are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// What the ladder expects at the exit's confidence: what a controller knows.
    Expected,
    /// Whether the answer will be right: what nobody knows.
    Clairvoyant,
}

/// A best plan.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Plan {
    /// Frames.
    pub frames: u64,
    /// Sum over the frames of what was known of being right and in time.
    pub value: f64,
    /// Frames of this plan that are right and in time.
    pub right_in_time: u64,
    /// Frames sent.
    pub sent: u64,
    /// Bytes sent.
    pub bytes: u64,
}

impl Plan {
    /// Share of frames that are right and in time.
    pub fn on_time_accuracy(&self) -> f64 {
        super::share(self.right_in_time, self.frames)
    }
}

/// One way to have come to a frame.
#[derive(Clone, Copy)]
struct State {
    /// When the link is free of what was sent.
    free: Timestamp,
    plan: Plan,
}

/// Instants at which the link becomes free are told apart to this (µs), rounded down: to the
/// plan's advantage.
const STEP: u64 = 500;

/// The best plan for `config` by what is known.
pub fn plan(config: &WorldConfig, record: &Record, ladder: &Ladder, knowledge: Knowledge) -> Plan {
    let uplink = &config.path.uplink;
    let schedule = Schedule::new(uplink.rate.clone(), &uplink.outages);
    let back = least_way_back(config);
    let mut frames: Vec<(Timestamp, u32, u64)> = Vec::new();
    for camera in 0..config.cameras {
        let captures = (0..).map(|frame| (capture_time(config, camera, frame), camera, frame));
        let end = Timestamp::ZERO + config.duration;
        frames.extend(captures.take_while(|(at, ..)| *at < end));
    }
    frames.sort();
    let nothing = Plan { frames: frames.len() as u64, ..Plan::default() };
    let mut states = vec![State { free: Timestamp::ZERO, plan: nothing }];
    for (captured, camera, frame) in frames {
        let picture = picture(config.seed, camera, frame, record.played());
        let luck = luck(config.seed, camera, frame);
        let answer_by = captured + (config.deadline - GUARD.min(config.deadline / 4));
        // The best exit whose head is done in time, and every point that may be.
        let mut exit: Option<(f64, bool)> = None;
        let mut arms: Vec<(Timestamp, u32, f64, bool)> = Vec::new();
        for (rung, known) in ladder.rungs().iter().enumerate() {
            let OperatingPoint { split, width, .. } = known.point;
            let (head, encode) = config.device.times(captured, (split, width), luck);
            let ready = captured + head + encode;
            let confidence = record.exit(split, width, picture).map(|exit| exit.confidence);
            let worth = |expected: f64, right: bool| match knowledge {
                Knowledge::Expected => expected,
                Knowledge::Clairvoyant => f64::from(u8::from(right)),
            };
            if ready > answer_by {
                continue;
            }
            if let Some(outcome) = record.exit(split, width, picture) {
                let value = worth(ladder.exit_accuracy(rung, confidence), outcome.right);
                if exit.is_none_or(|(best, _)| value > best) {
                    exit = Some((value, outcome.right));
                }
            }
            if let Some(outcome) = record.outcome(known.point, picture) {
                let value = worth(ladder.accuracy(rung, confidence), outcome.right);
                arms.push((ready, outcome.bytes, value, outcome.right));
            }
        }
        let stay = exit.unwrap_or((0.0, false));
        arms.retain(|(.., value, _)| *value > stay.0);
        let mut next: Vec<State> = Vec::with_capacity(states.len() * 2);
        for State { free, plan } in states {
            let with = |value: f64, right: bool, bytes: Option<u32>| Plan {
                frames: plan.frames,
                value: plan.value + value,
                right_in_time: plan.right_in_time + u64::from(right),
                sent: plan.sent + u64::from(bytes.is_some()),
                bytes: plan.bytes + u64::from(bytes.unwrap_or(0)),
            };
            next.push(State { free: free.max(captured), plan: with(stay.0, stay.1, None) });
            for &(ready, bytes, value, right) in &arms {
                let (size, _) = on_the_wire(bytes);
                let Some(departs) = schedule.departure(free.max(ready), size) else { continue };
                if departs + back <= answer_by {
                    let free = Timestamp::from_micros(departs.as_micros() / STEP * STEP);
                    next.push(State { free, plan: with(value, right, Some(bytes)) });
                }
            }
        }
        states = undominated(next);
    }
    let best = states.into_iter().max_by(|a, b| a.plan.value.total_cmp(&b.plan.value));
    best.map_or(nothing, |state| state.plan)
}

/// From the last byte's departure to the answer, at best.
fn least_way_back(config: &WorldConfig) -> std::time::Duration {
    use crate::link::{Delay, Jitter};
    // What jitter can take off the base.
    let least = |delay: &Delay| match delay.jitter {
        Jitter::None | Jitter::Exponential(_) => delay.base,
        Jitter::Uniform(most) => delay.base.saturating_sub(most),
        Jitter::Normal(_) => std::time::Duration::ZERO,
    };
    let server = config.server;
    least(&config.path.uplink.delay)
        + server.decode
        + server.tail
        + server.tail_per_frame
        + least(&config.path.downlink.delay)
}

/// States of which no other is both as free and as good, in order of being free.
fn undominated(mut states: Vec<State>) -> Vec<State> {
    states.sort_by(|a, b| a.free.cmp(&b.free).then(b.plan.value.total_cmp(&a.plan.value)));
    let mut best = f64::NEG_INFINITY;
    states.retain(|state| {
        let better = state.plan.value > best + 1e-9;
        if better {
            best = state.plan.value;
        }
        better
    });
    states
}
