//! What could have been reached by whoever knew the link.
//!
//! A dynamic programme over backlog × frame. It knows the whole schedule of the uplink and how long
//! the device will take, and about a picture no more than a controller does after the head: the
//! exit's confidence and what the record says to that, and the coded sizes. Everything else is
//! taken at its best: no jitter, no loss, a server that is free. Of a compressed picture without a head
//! nothing is known, nor of what the uncut network will say on the device: they are worth what they
//! are on average.
//!
//! A controller chooses the head before it knows any of that, a search sees it beforehand. What it
//! could gain by choosing heads to suit the pictures is taken off: every head that is run is charged
//! its luck with the picture ([`super::Luck`]), for the plan as for the controllers, for whom
//! that is zero in the mean (an information relaxation with a penalty: Brown, Smith and Sun 2010).
//! So no controller that keeps to the runs that the plan was told of can do better: the sum of what its answers are worth,
//! without luck ([`super::RunResult::without_luck`]), is at most the plan's ([`Plan::value`]), in every
//! single run.
//!
//! With one camera the backlogs are those of its device and of the link. With several they would be
//! too many, and the plan is the less of two bounds: each camera by itself, with the whole link; and
//! all of them on the link, where the devices' time is not rationed frame by frame but only in sum,
//! by a price (a Lagrangian relaxation; whatever the price, the bound holds, and the best of some is
//! taken).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use isthmus_head_client::{Load, Run};
use isthmus_proto::Timestamp;
use serde::{Deserialize, Serialize};

use super::{GUARD, Luck, Record, WorldConfig, capture_time, luck, on_the_wire, picture};
use crate::link::Schedule;

/// What a plan's choices are worth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knowledge {
    /// What the record expects at the exit's confidence: what a controller knows.
    Expected,
    /// Whether the answer will be right: what nobody knows.
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
    /// Frames of this plan that are right and in time.
    pub right_in_time: u64,
    /// Frames sent.
    pub sent: u64,
    /// Bytes sent.
    pub bytes: u64,
    /// At which of its prices luck was charged. The bound holds for any; for about what a byte is worth
    /// on the link it is tight.
    pub luck_level: usize,
}

impl Plan {
    /// Share of frames that are right and in time.
    pub fn on_time_accuracy(&self) -> f64 {
        super::share(self.right_in_time, self.frames)
    }

    /// The same as it could be expected.
    pub fn expected_accuracy(&self) -> f64 {
        self.value / self.frames.max(1) as f64
    }

    /// Both plans together.
    #[must_use]
    pub fn plus(self, other: Plan) -> Plan {
        Plan {
            frames: self.frames + other.frames,
            value: self.value + other.value,
            right_in_time: self.right_in_time + other.right_in_time,
            sent: self.sent + other.sent,
            bytes: self.bytes + other.bytes,
            luck_level: other.luck_level,
        }
    }
}

/// The best plan for `config` by what is known, for whoever may run and send what is among `runs`.
pub fn plan(config: &WorldConfig, record: &Record, runs: &[Run], knowledge: Knowledge) -> Plan {
    let mut problem = Problem::new(config, record, runs, knowledge);
    let frames = problem.frames(0..config.cameras);
    // Who knows the outcomes is charged no luck.
    if knowledge == Knowledge::Expected {
        let some = &frames[..frames.len().div_ceil(TRIED)];
        let mut bound = |level| {
            problem.luck_level = level;
            problem.search(some, Device::Priced(0.0)).value
        };
        let bounds: Vec<f64> = (0..Luck::LEVELS).map(&mut bound).collect();
        let tightest = (0..Luck::LEVELS).min_by(|&a, &b| bounds[a].total_cmp(&bounds[b]));
        problem.luck_level = tightest.unwrap_or(0);
    }
    if config.cameras == 1 {
        return problem.search(&frames, Device::Alone);
    }
    let alone = (0..config.cameras)
        .map(|camera| problem.search(&problem.frames(camera..camera + 1), Device::Alone))
        .fold(Plan::default(), Plan::plus);
    // What a millisecond of a device can be worth, if it is worth anything.
    let interval = config.interval.as_secs_f64() * 1e3;
    let prices = [0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8].map(|price| price / interval);
    let mut best = alone;
    for price in prices {
        let priced = problem.search(&frames, Device::Priced(price));
        if priced.value < best.value {
            best = priced;
        }
    }
    best
}

/// How a search accounts for the devices' time.
#[derive(Clone, Copy)]
enum Device {
    /// Head after head, and a frame whose turn does not come is dropped.
    Alone,
    /// Heads cost so much a millisecond, and the time there is counts for as much.
    Priced(f64),
}

/// One way to answer a frame once something has run for it: `bytes` sent, or what the device says.
struct Answer {
    bytes: Option<u32>,
    value: f64,
    right: bool,
}

/// What the device may run, and the answers it allows.
struct Work {
    load: Load,
    luck: Luck,
    /// From the last byte's departure to the answer, at best.
    back: Duration,
    answers: Vec<Answer>,
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
    right: bool,
}

impl Choice {
    /// Whether whoever may choose this needs no `other`.
    fn dominates(&self, other: &Choice) -> bool {
        let on_the_link = self.bytes.is_none()
            || self.ready <= other.ready && self.back <= other.back && self.bytes <= other.bytes;
        self.gain >= other.gain && self.device <= other.device && on_the_link
    }
}

/// A captured frame.
struct Frame {
    captured: Timestamp,
    /// The next one of the same camera, which takes its place.
    next: Timestamp,
    camera: u32,
    number: u64,
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

/// The first of so many parts of a run tells at which price luck is best charged.
const TRIED: usize = 12;

/// States that are kept from frame to frame. Of more, neighbours are merged to the plan's
/// advantage, so that it remains a bound.
const MOST_STATES: usize = 192;

/// Instants at which a device becomes free are told apart to this (µs), rounded down: to the plan's
/// advantage. Of a head's time it is little.
const DEVICE_STEP: u64 = 2_000;

struct Problem<'a> {
    config: &'a WorldConfig,
    record: &'a Record,
    schedule: Schedule,
    /// What may be run for each picture.
    works: Vec<Vec<Work>>,
    /// At which of its prices luck is charged.
    luck_level: usize,
}

impl<'a> Problem<'a> {
    fn new(
        config: &'a WorldConfig,
        record: &'a Record,
        runs: &[Run],
        knowledge: Knowledge,
    ) -> Self {
        let uplink = &config.path.uplink;
        let schedule = Schedule::new(uplink.rate.clone(), &uplink.outages);
        let mut loads: BTreeMap<Load, BTreeSet<Run>> = BTreeMap::new();
        for run in runs {
            loads.entry(run.load()).or_default().insert(*run);
        }
        let [features, image] = least_way_back(config);
        let work = |picture, (&load, runs): (&Load, &BTreeSet<Run>)| Work {
            load,
            luck: match knowledge {
                Knowledge::Expected => record.luck(load, picture),
                // Who knows the outcomes is not measured against anybody.
                Knowledge::Clairvoyant => Luck::default(),
            },
            back: if matches!(load, Load::Image(_)) { image } else { features },
            answers: answers(record, runs, picture, knowledge),
        };
        let works = |picture| loads.iter().map(|of_load| work(picture, of_load)).collect();
        let works = (0..record.played()).map(works).collect();
        Problem { config, record, schedule, works, luck_level: 0 }
    }

    /// The frames of `cameras`, in order of capture.
    fn frames(&self, cameras: std::ops::Range<u32>) -> Vec<Frame> {
        let mut frames: Vec<Frame> = Vec::new();
        let end = Timestamp::ZERO + self.config.duration;
        for camera in cameras {
            let at = |number| capture_time(self.config, camera, number);
            let never = Timestamp::from_micros(u64::MAX);
            let next = |number| Some(at(number + 1)).filter(|next| *next < end).unwrap_or(never);
            let all = (0..).map(|number| Frame {
                captured: at(number),
                next: next(number),
                camera,
                number,
            });
            frames.extend(all.take_while(|frame| frame.captured < end));
        }
        frames.sort_by_key(|frame| (frame.captured, frame.camera));
        frames
    }

    fn search(&self, frames: &[Frame], device: Device) -> Plan {
        let Problem { config, record, .. } = *self;
        let luck_level = self.luck_level;
        let nothing = Plan { frames: frames.len() as u64, luck_level, ..Plan::default() };
        let mut states =
            vec![State { device: Timestamp::ZERO, link: Timestamp::ZERO, plan: nothing }];
        for Frame { captured, next, camera, number } in frames {
            let picture = picture(config.seed, *camera, *number, record.played());
            let luck = luck(config.seed, *camera, *number);
            let answer_by = *captured + (config.deadline - GUARD.min(config.deadline / 4));
            let mut to = Vec::with_capacity(states.len() * 4);
            // Of states in which the device is as free, those whose link is free later are worth more.
            for states in states.chunk_by(|a, b| a.device == b.device) {
                let start = states[0].device.max(*captured);
                // Not to run anything.
                to.extend(states.iter().map(|state| State {
                    device: start,
                    link: state.link.max(*captured),
                    plan: state.plan,
                }));
                if start > *next {
                    continue;
                }
                let mut choices = Vec::new();
                for work in &self.works[picture] {
                    let (run, encode) = config.device.times(start, work.load, luck);
                    let ready = start + run + encode;
                    let (device, price) = match device {
                        Device::Alone => (ready, 0.0),
                        Device::Priced(price) => {
                            (start, price * (run + encode).as_secs_f64() * 1e3)
                        }
                    };
                    let in_vain = Choice {
                        ready,
                        device,
                        back: work.back,
                        bytes: None,
                        gain: -work.luck.of(luck_level) - price,
                        right: false,
                    };
                    if ready > answer_by {
                        // In vain, but a picture that is bad luck is refunded.
                        choices.push(in_vain);
                        continue;
                    }
                    choices.extend(work.answers.iter().map(|answer| Choice {
                        bytes: answer.bytes,
                        gain: answer.value + in_vain.gain,
                        right: answer.right,
                        ..in_vain
                    }));
                }
                for choice in worth_trying(choices) {
                    let Choice { ready, device, back, bytes, gain, right } = choice;
                    let after = |state: &State, link| State {
                        device,
                        link,
                        plan: Plan {
                            value: state.plan.value + gain,
                            right_in_time: state.plan.right_in_time + u64::from(right),
                            sent: state.plan.sent + u64::from(bytes.is_some()),
                            bytes: state.plan.bytes + u64::from(bytes.unwrap_or(0)),
                            ..state.plan
                        },
                    };
                    let Some(bytes) = bytes else {
                        to.extend(
                            states.iter().map(|state| after(state, state.link.max(*captured))),
                        );
                        continue;
                    };
                    let (size, _) = on_the_wire(bytes);
                    // Where the link is free before the device is done, it does not matter since when.
                    let waits = states.partition_point(|state| state.link <= ready);
                    for state in &states[waits.saturating_sub(1)..] {
                        let departs = self.schedule.departure(state.link.max(ready), size);
                        match departs {
                            Some(departs) if departs + back <= answer_by => {
                                to.push(after(state, departs));
                            }
                            // Nor does it from a link that is free later.
                            _ => break,
                        }
                    }
                }
            }
            states = undominated(to, *captured);
        }
        let best = states.into_iter().map(|state| state.plan);
        let mut best = best.max_by(|a, b| a.value.total_cmp(&b.value)).unwrap_or(nothing);
        if let Device::Priced(price) = device {
            // A device has its frames' time, and that of a last head beyond the end.
            let interval = config.interval.as_secs_f64() * 1e3;
            let beyond = f64::from(config.cameras) * config.deadline.as_secs_f64() * 1e3;
            best.value += price * (interval * frames.len() as f64 + beyond);
        }
        best
    }
}

/// The ways to answer a picture once the device has run what `runs` have in common: what it says itself,
/// and of what is worth more those for which nothing smaller is worth as much.
fn answers(
    record: &Record,
    runs: &BTreeSet<Run>,
    picture: usize,
    knowledge: Knowledge,
) -> Vec<Answer> {
    let worth = |expected: Option<f64>, right: bool| match knowledge {
        Knowledge::Expected => expected.unwrap_or(0.0),
        Knowledge::Clairvoyant => f64::from(u8::from(right)),
    };
    let mut answers = Vec::new();
    if let Some((split, width)) = runs.first().and_then(|run| run.head()) {
        let right = record.exit(split, width, picture).is_some_and(|exit| exit.right);
        let value = worth(record.expected_exit(split, width, picture), right);
        answers.push(Answer { bytes: None, value, right });
    }
    let outcomes = runs.iter().filter_map(|&run| Some((run, record.run_outcome(run, picture)?)));
    let mut sent: Vec<Answer> = outcomes
        .map(|(run, outcome)| Answer {
            bytes: (run != Run::Local).then_some(outcome.bytes),
            value: worth(record.expected(run, picture), outcome.right),
            right: outcome.right,
        })
        .collect();
    sent.sort_by(|a, b| a.bytes.cmp(&b.bytes).then(b.value.total_cmp(&a.value)));
    for answer in sent {
        if answers.iter().all(|cheaper| cheaper.value < answer.value) {
            answers.push(answer);
        }
    }
    answers
}

/// From the last byte's departure to the answer, at best: of features and of a picture.
fn least_way_back(config: &WorldConfig) -> [Duration; 2] {
    use crate::link::{Delay, Jitter};
    // What jitter can take off the base.
    let least = |delay: &Delay| match delay.jitter {
        Jitter::None | Jitter::Exponential(_) => delay.base,
        Jitter::Uniform(most) => delay.base.saturating_sub(most),
        Jitter::Normal(_) => Duration::ZERO,
    };
    let server = config.server;
    let way = least(&config.path.uplink.delay) + least(&config.path.downlink.delay);
    [
        way + server.decode + server.tail + server.tail_per_frame,
        way + server.decompress + server.full + server.full_per_frame,
    ]
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
