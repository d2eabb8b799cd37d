//! What may be done about every frame, and what that is worth.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use isthmus_head_client::{Load, Run};
use isthmus_proto::Timestamp;

use super::Knowledge;
use crate::link::{Delay, Jitter, Schedule};
use crate::world::record::ControlVariate;
use crate::world::{Record, WorldConfig, capture_time};

/// One way to answer a frame once something has run for it: `bytes` sent, or what the device says.
pub(super) struct Answer {
    pub(super) bytes: Option<u32>,
    pub(super) value: f64,
    pub(super) quality: f32,
}

/// What the device may run, and the answers it allows.
pub(super) struct Work {
    pub(super) load: Load,
    pub(super) control_variate: ControlVariate,
    /// From the last byte's departure to the answer, at best.
    pub(super) back: Duration,
    pub(super) answers: Vec<Answer>,
}

/// A captured frame.
pub(super) struct Frame {
    pub(super) captured: Timestamp,
    /// The next one of the same camera, which takes its place.
    pub(super) next: Timestamp,
    pub(super) camera: u32,
    pub(super) number: u64,
}

/// A world as the search sees it.
pub(super) struct Problem<'a> {
    pub(super) config: &'a WorldConfig,
    pub(super) record: &'a Record,
    pub(super) schedule: Schedule,
    /// What may be run for each picture.
    pub(super) works: Vec<Vec<Work>>,
    /// At which price of a byte the control variate is charged.
    pub(super) price_level: usize,
}

impl<'a> Problem<'a> {
    pub(super) fn new(
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
        let [features, image] = least_return(config);
        let work = |picture, (&load, runs): (&Load, &BTreeSet<Run>)| Work {
            load,
            control_variate: match knowledge {
                Knowledge::Expected => record.control_variate(load, picture),
                // Who knows the outcomes is not measured against anybody.
                Knowledge::Clairvoyant => ControlVariate::default(),
            },
            back: if matches!(load, Load::Image(_)) { image } else { features },
            answers: answers(record, runs, picture, knowledge),
        };
        let works = |picture| loads.iter().map(|of_load| work(picture, of_load)).collect();
        let works = (0..record.played()).map(works).collect();
        Problem { config, record, schedule, works, price_level: 0 }
    }

    /// The frames of `cameras`, in order of capture.
    pub(super) fn frames(&self, cameras: std::ops::Range<u32>) -> Vec<Frame> {
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
}

/// The answers to a picture once the device has run what `runs` have in common: what it says itself,
/// and of what is worth more those for which nothing smaller is worth as much.
fn answers(
    record: &Record,
    runs: &BTreeSet<Run>,
    picture: usize,
    knowledge: Knowledge,
) -> Vec<Answer> {
    let worth = |expected: Option<f64>, quality: f32| match knowledge {
        Knowledge::Expected => expected.unwrap_or(0.0),
        Knowledge::Clairvoyant => f64::from(quality),
    };
    let mut answers = Vec::new();
    if let Some((split, width)) = runs.first().and_then(|run| run.head()) {
        let quality = record.exit(split, width, picture).map_or(0.0, |exit| exit.quality);
        let value = worth(record.expected_exit(split, width, picture), quality);
        answers.push(Answer { bytes: None, value, quality });
    }
    let outcomes = runs.iter().filter_map(|&run| Some((run, record.run_outcome(run, picture)?)));
    let mut sent: Vec<Answer> = outcomes
        .map(|(run, outcome)| Answer {
            bytes: (run != Run::Local).then_some(outcome.bytes),
            value: worth(record.expected(run, picture), outcome.quality),
            quality: outcome.quality,
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
fn least_return(config: &WorldConfig) -> [Duration; 2] {
    // What jitter can take off the base.
    let least = |delay: &Delay| match delay.jitter {
        Jitter::None | Jitter::Exponential(_) => delay.base,
        Jitter::Uniform(most) => delay.base.saturating_sub(most),
        Jitter::Normal(_) => Duration::ZERO,
    };
    let server = config.server;
    let delays = least(&config.path.uplink.delay) + least(&config.path.downlink.delay);
    [
        delays + server.decode + server.tail + server.tail_per_frame,
        delays + server.decompress + server.full + server.full_per_frame,
    ]
}
