//! The search: for every frame in turn, all states worth following and all choices worth trying.

use std::time::Duration;

use isthmus_proto::Timestamp;

use super::Plan;
use super::problem::{Frame, Problem, Work};
use crate::world::{GUARD, device_noise, on_the_wire, picture};

/// States that are kept from frame to frame. Of more, neighbours are merged to the plan's
/// advantage, so that it remains a bound.
const MOST_STATES: usize = 192;

/// Instants at which a device becomes free are distinguished to this (µs), rounded down: to the plan's
/// advantage. Of a head's time it is little.
const DEVICE_STEP: u64 = 2_000;

/// How a search accounts for the devices' time.
#[derive(Clone, Copy)]
pub(super) enum DeviceTime {
    /// Head after head, and a frame whose turn does not come is dropped.
    Rationed,
    /// Heads cost so much a millisecond, and the time there is counts for as much.
    Priced(f64),
}

/// What may be done about a frame from where its device is.
#[derive(Clone, Copy)]
struct Choice {
    /// When there is something to send.
    ready: Timestamp,
    /// When the device is free again.
    device: Timestamp,
    back: Duration,
    bytes: Option<u32>,
    /// What it is worth, less what is charged.
    gain: f64,
    quality: f32,
}

impl Choice {
    /// The state after it, from where the link is free at `link`.
    fn after(&self, state: &State, link: Timestamp) -> State {
        State {
            device: self.device,
            link,
            plan: Plan {
                value: state.plan.value + self.gain,
                quality_in_time: state.plan.quality_in_time + f64::from(self.quality),
                sent: state.plan.sent + u64::from(self.bytes.is_some()),
                bytes: state.plan.bytes + u64::from(self.bytes.unwrap_or(0)),
                ..state.plan
            },
        }
    }

    /// Whether whoever may choose this needs no `other`.
    fn dominates(&self, other: &Choice) -> bool {
        let on_the_link = self.bytes.is_none()
            || self.ready <= other.ready && self.back <= other.back && self.bytes <= other.bytes;
        self.gain >= other.gain && self.device <= other.device && on_the_link
    }
}

/// One way to have come to a frame.
#[derive(Clone, Copy)]
struct State {
    /// When the device is free.
    device: Timestamp,
    /// When the link is free of what was sent.
    link: Timestamp,
    plan: Plan,
}

/// The best plan for `frames`.
pub(super) fn best_plan(problem: &Problem<'_>, frames: &[Frame], device: DeviceTime) -> Plan {
    let Problem { config, price_level, .. } = *problem;
    let plan = Plan { frames: frames.len() as u64, price_level, ..Plan::default() };
    let mut states = vec![State { device: Timestamp::ZERO, link: Timestamp::ZERO, plan }];
    for frame in frames {
        let step = Step::new(problem, frame, device);
        let mut next = Vec::with_capacity(states.len() * 4);
        // Of states in which the device is as free, those whose link is free later are worth more.
        for states in states.chunk_by(|a, b| a.device == b.device) {
            step.follow(states, &mut next);
        }
        states = undominated(next, frame.captured);
    }
    let best = states.into_iter().map(|state| state.plan);
    let mut best = best.max_by(|a, b| a.value.total_cmp(&b.value)).unwrap_or(plan);
    if let DeviceTime::Priced(price) = device {
        // A device has its frames' time, and that of a last head beyond the end.
        let interval = config.interval.as_secs_f64() * 1e3;
        let beyond = f64::from(config.cameras) * config.deadline.as_secs_f64() * 1e3;
        best.value += price * (interval * frames.len() as f64 + beyond);
    }
    best
}

/// One frame's step of the search.
struct Step<'a> {
    problem: &'a Problem<'a>,
    frame: &'a Frame,
    device: DeviceTime,
    /// The device's noise with this frame, standard normal.
    noise: f64,
    works: &'a [Work],
    answer_by: Timestamp,
}

impl<'a> Step<'a> {
    fn new(problem: &'a Problem<'a>, frame: &'a Frame, device: DeviceTime) -> Step<'a> {
        let Problem { config, record, .. } = *problem;
        let Frame { captured, camera, number, .. } = *frame;
        let picture = picture(config.seed, camera, number, record.played());
        Step {
            problem,
            frame,
            device,
            noise: device_noise(config.seed, camera, number),
            works: &problem.works[picture],
            answer_by: captured + (config.deadline - GUARD.min(config.deadline / 4)),
        }
    }

    /// Adds to `next` every state that follows one of `states`, in all of which the device is free at
    /// the same instant.
    fn follow(&self, states: &[State], next: &mut Vec<State>) {
        let Frame { captured, next: replaced, .. } = *self.frame;
        let start = states[0].device.max(captured);
        // Not to run anything.
        next.extend(states.iter().map(|state| State {
            device: start,
            link: state.link.max(captured),
            plan: state.plan,
        }));
        if start > replaced {
            return;
        }
        for choice in worth_trying(self.choices(start)) {
            self.take(choice, states, next);
        }
    }

    /// Everything that a device which is free at `start` may do.
    fn choices(&self, start: Timestamp) -> Vec<Choice> {
        let Problem { config, price_level, .. } = *self.problem;
        let mut choices = Vec::new();
        for work in self.works {
            let (run, encode) = config.device.times(start, work.load, self.noise);
            let ready = start + run + encode;
            let (device, price) = match self.device {
                DeviceTime::Rationed => (ready, 0.0),
                DeviceTime::Priced(price) => (start, price * (run + encode).as_secs_f64() * 1e3),
            };
            let in_vain = Choice {
                ready,
                device,
                back: work.back,
                bytes: None,
                gain: -work.control_variate.of(price_level) - price,
                quality: 0.0,
            };
            if ready > self.answer_by {
                // In vain, but a picture that is harder than most is refunded.
                choices.push(in_vain);
                continue;
            }
            choices.extend(work.answers.iter().map(|answer| Choice {
                bytes: answer.bytes,
                gain: answer.value + in_vain.gain,
                quality: answer.quality,
                ..in_vain
            }));
        }
        choices
    }

    /// Adds to `next` the states in which `choice` was made, where its answer is in time.
    fn take(&self, choice: Choice, states: &[State], next: &mut Vec<State>) {
        let Choice { ready, back, bytes, .. } = choice;
        let Some(bytes) = bytes else {
            let captured = self.frame.captured;
            next.extend(states.iter().map(|state| choice.after(state, state.link.max(captured))));
            return;
        };
        let (size, _) = on_the_wire(bytes);
        // Where the link is free before the device is done, it does not matter since when.
        let waits = states.partition_point(|state| state.link <= ready);
        for state in &states[waits.saturating_sub(1)..] {
            match self.problem.schedule.departure(state.link.max(ready), size) {
                Some(departs) if departs + back <= self.answer_by => {
                    next.push(choice.after(state, departs));
                }
                // Nor does it from a link that is free later.
                _ => break,
            }
        }
    }
}

/// The choices of which no other needs as little and is worth as much, and none that is worse than to
/// do nothing.
fn worth_trying(mut choices: Vec<Choice>) -> Vec<Choice> {
    choices.retain(|choice| choice.gain > 0.0);
    // Whatever dominates comes first.
    choices.sort_by(|a, b| {
        (b.gain.total_cmp(&a.gain)).then(a.bytes.cmp(&b.bytes)).then(a.ready.cmp(&b.ready))
    });
    let mut worth: Vec<Choice> = Vec::with_capacity(choices.len());
    for choice in choices {
        if worth.iter().all(|better| !better.dominates(&choice)) {
            worth.push(choice);
        }
    }
    worth
}

/// The states worth following: those of which no other is as free and as good; and where they are
/// many, neighbours merged to the better of both.
fn undominated(mut states: Vec<State>, now: Timestamp) -> Vec<State> {
    for state in &mut states {
        let step = state.device.as_micros() / DEVICE_STEP * DEVICE_STEP;
        state.device = Timestamp::from_micros(step).max(now);
    }
    let value = |a: &State, b: &State| b.plan.value.total_cmp(&a.plan.value);
    states.sort_by(|a, b| a.device.cmp(&b.device).then(a.link.cmp(&b.link)).then(value(a, b)));
    // For each instant at which the link may be free, the best value so far of a device as free:
    // link and value both increase.
    let mut front: Vec<(Timestamp, f64)> = Vec::new();
    states.retain(|state| {
        let (link, value) = (state.link, state.plan.value);
        let at = front.partition_point(|&(other, _)| other <= link);
        if at > 0 && front[at - 1].1 >= value - 1e-9 {
            return false;
        }
        let beaten = front[at..].iter().take_while(|&&(_, other)| other <= value).count();
        front.splice(at..at + beaten, [(link, value)]);
        true
    });
    if states.len() <= MOST_STATES {
        return states;
    }
    let links = states.iter().map(|state| state.link.as_micros());
    let (first, last) = links.fold((u64::MAX, 0), |(a, b), at| (a.min(at), b.max(at)));
    let devices = states.chunk_by(|a, b| a.device == b.device).count() as u64;
    let cells = (MOST_STATES as u64 / devices).max(4);
    let step = ((last - first) / cells).max(1);
    let mut merged: Vec<State> = Vec::with_capacity(MOST_STATES);
    for state in states {
        let cell = |state: &State| (state.device, (state.link.as_micros() - first) / step);
        match merged.last_mut() {
            Some(before) if cell(before) == cell(&state) => {
                if state.plan.value > before.plan.value {
                    before.plan = state.plan;
                }
            }
            _ => merged.push(state),
        }
    }
    merged
}
