//! What deciding costs, how fast virtual time passes, and how soon a change of the rate is met.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use isthmus_head_client::{
    Controller, Fixed, HeadDecision, HeadView, Ladder, Mpc, MpcConfig, NetworkSample,
    NetworkTimeout, Run, SendDecision, SendView, Sending,
};
use isthmus_models::{OUTCOMES, Outcomes};
use isthmus_proto::{Bitrate, DataSize, FrameId, Timestamp};

use super::Measurement;
use super::experiment::Experiment;
use super::lab::Lab;
use crate::Trace;
use crate::link::{AtEnd, Jitter, Playback, Rate, statistics};
use crate::world::{self, Macs, Record, RunResult, WorldConfig, on_the_wire};

/// Runs of which the quickest counts: whatever else a machine does only slows one down.
const RUNS: usize = 5;

/// Parts of the deadline that the ladder's largest frame takes on the link before the rate falls to
/// a tenth; after the fall it is late.
const PARTS: [u32; 3] = [20, 10, 5];

/// When the rate falls and when it is back, and for how long after a fall decisions are followed.
const FALL: Duration = Duration::from_secs(20);
const RISE: Duration = Duration::from_secs(40);
const FOLLOWED: Duration = Duration::from_secs(2);

/// How much less accurate than the usual point before the fall one may be that counts as as good.
const AS_ACCURATE: f64 = 0.005;

/// How soon after a rise a point as good as before the fall has to be back.
const SOON: Duration = Duration::from_secs(2);

pub(super) fn virtual_speed_fixed(lab: &Lab) -> anyhow::Result<Measurement> {
    let (config, record) = one_camera(lab)?;
    let point = record.largest_point().context("the ladder has no operating point")?;
    speed(&config, || world::run(&config, &record, |_| Box::new(Fixed::new(point))))
}

pub(super) fn virtual_speed_mpc(lab: &Lab) -> anyhow::Result<Measurement> {
    let (config, record) = one_camera(lab)?;
    speed(&config, || world::run(&config, &record, |_| Box::new(mpc(&config, &record))))
}

pub(super) fn decide_us(lab: &Lab) -> anyhow::Result<Measurement> {
    let (config, record) = one_camera(lab)?;
    let events = observed(&config, &record);
    let took = events.iter().filter_map(Event::took).map(|took| took.as_secs_f64() * 1e6);
    let took: Vec<f64> = took.collect();
    ensure!(!took.is_empty(), "nothing was decided");
    let (median, tail) = (statistics::median(&took), statistics::quantile(&took, 0.99));
    let detail = format!(
        "median of {} frames, both decisions, {} rungs; 99th percentile {tail:.1}",
        took.len(),
        record.ladder().planned().len()
    );
    Ok(Measurement::of(median, detail))
}

pub(super) fn recovery_frames(lab: &Lab) -> anyhow::Result<Measurement> {
    let (config, record) = one_camera(lab)?;
    let sizes = record.ladder().rungs().iter().map(|rung| rung.bytes.ceil() as u32);
    let largest = on_the_wire(sizes.max().context("a ladder has a rung")?).0;
    let (mut worst, mut slowest) = (0, Duration::ZERO);
    for part in PARTS {
        let config = falling(&config, largest, part)?;
        let events = observed(&config, &record);
        worst = worst.max(recovery(&events).context("nothing showed the fall")?);
        slowest = slowest.max(rise(&events).unwrap_or(FALL));
    }
    let detail = format!(
        "first decision after the fall to a tenth shows from which on all is in time, worst of {} \
         rates; back at the best quality {:.1} s after the rise, which may take {:.0} s",
        PARTS.len(),
        slowest.as_secs_f64(),
        SOON.as_secs_f64()
    );
    let measured = Measurement::of(worst as f64, detail);
    Ok(Measurement { broken: slowest > SOON, ..measured })
}

/// What the bundle's points make of recorded frames.
pub(super) fn record(lab: &Lab) -> anyhow::Result<Record> {
    let outcomes = Outcomes::unpack(&lab.bundle().read(OUTCOMES)?)?;
    Ok(Record::new(&outcomes, &Macs::default())?)
}

/// One camera at 10 frames a second on a mobile link, for ten minutes.
pub(super) fn one_camera(lab: &Lab) -> anyhow::Result<(WorldConfig, Record)> {
    let bundle = lab.bundle();
    let record = record(lab)?;
    let Experiment { scenario, .. } = Experiment::of_scenario("ten-minutes", bundle.dir())?;
    let seed = scenario.seeds.first().copied().unwrap_or_default();
    let config = scenario.prepare("ten-minutes".as_ref())?.world(seed)?;
    Ok((config, record))
}

fn mpc(config: &WorldConfig, record: &Record) -> Mpc {
    let settings = MpcConfig { interval: Some(config.interval), ..MpcConfig::default() };
    Mpc::new(settings, Arc::clone(record.ladder()))
}

pub(super) fn speed(
    config: &WorldConfig,
    run: impl Fn() -> RunResult,
) -> anyhow::Result<Measurement> {
    let timed = |_| {
        let started = Instant::now();
        let frames = run().frames;
        (started.elapsed(), frames)
    };
    let (quickest, frames) = (0..RUNS).map(timed).min().context("nothing ran")?;
    let times = config.duration.as_secs_f64() / quickest.as_secs_f64();
    Ok(Measurement::of(times, format!("of real time on one core, {frames} frames")))
}

/// The rate falls to a tenth and comes back; nothing else varies.
fn falling(config: &WorldConfig, largest: DataSize, part: u32) -> anyhow::Result<WorldConfig> {
    let time = config.deadline / part;
    let before = Bitrate::from_bps((largest.as_bytes() as f64 * 8.0 / time.as_secs_f64()) as u64);
    let after = Bitrate::from_bps(before.as_bps() / 10);
    let pieces = [(FALL, before), (RISE - FALL, after), (FALL, before)];
    let trace = Arc::new(Trace::new(pieces)?);
    let mut config = config.clone();
    config.duration = RISE + FALL;
    config.path.uplink.delay.jitter = Jitter::None;
    config.path.downlink.delay.jitter = Jitter::None;
    config.path.uplink.rate =
        Rate::Trace(Playback { trace, offset: Duration::ZERO, at_end: AtEnd::Once });
    Ok(config)
}

/// The number of the decision, after the first reply or timeout of a frame sent after the fall, from
/// which on every frame that is sent is in time.
fn recovery(events: &[Event]) -> Option<usize> {
    let fall = Timestamp::ZERO + FALL;
    let sent_after = |frame: FrameId| {
        let of = |event: &&Event| matches!(event, Event::Decided { frame: it, .. } if *it == frame);
        events.iter().find(of).is_some_and(|event| event.at() >= fall)
    };
    let shows = |event: &&Event| matches!(event, Event::Heard { frame, .. } if sent_after(*frame));
    let shown = events.iter().find(shows)?.at();
    let decided = events.iter().filter_map(|event| match event {
        Event::Decided { at, frame, sent: Some(_), .. } => Some((*at, *frame, true)),
        Event::Decided { at, frame, .. } => Some((*at, *frame, false)),
        Event::Heard { .. } => None,
    });
    let followed = decided.filter(|(at, ..)| (shown..shown + FOLLOWED).contains(at));
    let in_time = |frame: FrameId| {
        let answer = |event: &Event| matches!(event, Event::Heard { frame: it, in_time: true, .. } if *it == frame);
        events.iter().any(answer)
    };
    let late = followed.enumerate().filter(|(_, (_, frame, sent))| *sent && !in_time(*frame));
    Some(late.map(|(number, _)| number + 2).max().unwrap_or(1))
}

/// From the rise to the first frame sent at a point as accurate as the usual one before the fall.
fn rise(events: &[Event]) -> Option<Duration> {
    let (fall, rise) = (Timestamp::ZERO + FALL, Timestamp::ZERO + RISE);
    let sent = || {
        events.iter().filter_map(|event| match event {
            Event::Decided { at, sent: Some(quality), .. } => Some((*at, *quality)),
            _ => None,
        })
    };
    let mut usual: Vec<f64> =
        sent().filter(|(at, _)| *at < fall).map(|(_, quality)| quality).collect();
    usual.drain(..usual.len() / 2);
    if usual.is_empty() {
        return None;
    }
    let median = statistics::median(&usual);
    let back = sent().find(|&(at, quality)| at >= rise && quality >= median - AS_ACCURATE);
    back.map(|(at, _)| at.saturating_since(rise))
}

/// What was decided, and what was heard of it.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// Both decisions about a frame, the mean quality of the point that was sent, and how long
    /// deciding took.
    Decided { at: Timestamp, frame: FrameId, sent: Option<f64>, took: Duration },
    /// A reply, or that none came in time.
    Heard { at: Timestamp, frame: FrameId, in_time: bool },
}

impl Event {
    fn at(&self) -> Timestamp {
        match self {
            Event::Decided { at, .. } | Event::Heard { at, .. } => *at,
        }
    }

    fn took(&self) -> Option<Duration> {
        match self {
            Event::Decided { took, .. } => Some(*took),
            Event::Heard { .. } => None,
        }
    }
}

/// What an [`Mpc`] decides and hears in this world.
fn observed(config: &WorldConfig, record: &Record) -> Vec<Event> {
    let events = Arc::new(Mutex::new(Vec::new()));
    world::run(config, record, |_| {
        let (mpc, events) = (mpc(config, record), Arc::clone(&events));
        let ladder = Arc::clone(record.ladder());
        Box::new(Observed { mpc, ladder, head_took: Duration::ZERO, events })
    });
    std::mem::take(&mut *events.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Passes everything on and writes down what it sees.
struct Observed {
    mpc: Mpc,
    ladder: Arc<Ladder>,
    head_took: Duration,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Observed {
    fn note(&self, event: Event) {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }
}

impl Controller for Observed {
    fn on_link_up(&mut self, now: Timestamp, round_trip: Option<Duration>) {
        self.mpc.on_link_up(now, round_trip);
    }

    fn decide_head(&mut self, now: Timestamp, view: &HeadView) -> HeadDecision {
        let started = Instant::now();
        let decision = self.mpc.decide_head(now, view);
        self.head_took = started.elapsed();
        decision
    }

    fn on_run(&mut self, now: Timestamp, run: Run, took: Duration) {
        self.mpc.on_run(now, run, took);
    }

    fn decide_send(&mut self, now: Timestamp, view: &SendView<'_>) -> SendDecision {
        let started = Instant::now();
        let decision = self.mpc.decide_send(now, view);
        let took = self.head_took + started.elapsed();
        let sent = match decision.sending {
            Sending::Exit | Sending::Probe(_) => None,
            Sending::Layers(layers) => {
                let sent = match view.run {
                    Run::Head(run) => run.point(layers).into(),
                    run => run,
                };
                let rung = self.ladder.position(sent);
                rung.map(|rung| self.ladder.quality(rung, None))
            }
        };
        self.note(Event::Decided { at: now, frame: view.frame, sent, took });
        decision
    }

    fn on_reply(&mut self, now: Timestamp, sample: &NetworkSample) {
        self.mpc.on_reply(now, sample);
        self.note(Event::Heard { at: now, frame: sample.frame, in_time: !sample.refused });
    }

    fn on_timeout(&mut self, now: Timestamp, timeout: &NetworkTimeout) {
        self.mpc.on_timeout(now, timeout);
        self.note(Event::Heard { at: now, frame: timeout.frame, in_time: false });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_micros(ms * 1_000)
    }

    fn decided(ms: u64, sent: Option<f64>) -> Event {
        Event::Decided { at: at(ms), frame: FrameId(ms), sent, took: Duration::ZERO }
    }

    fn heard(ms: u64, frame: u64, in_time: bool) -> Event {
        Event::Heard { at: at(ms), frame: FrameId(frame), in_time }
    }

    #[test]
    fn decisions_are_counted_from_the_news_to_the_last_late_one() {
        let before =
            [decided(19_900, Some(0.9)), decided(20_000, Some(0.9)), heard(20_050, 19_900, true)];
        let late = [heard(20_200, 20_000, false)];
        let quiet =
            [decided(20_300, None), decided(20_400, Some(0.1)), heard(20_450, 20_400, true)];
        let events = [&before[..], &late, &quiet].concat();
        assert_eq!(recovery(&events), Some(1));
        let again = [decided(20_500, Some(0.1)), heard(20_700, 20_500, false)];
        assert_eq!(recovery(&[&events[..], &again].concat()), Some(4));
        assert_eq!(recovery(&before), None, "what left before the fall shows nothing");
    }

    #[test]
    fn a_rise_is_met_by_a_point_as_accurate_as_before() {
        let mut events: Vec<Event> = (0..10).map(|at| decided(100 * at, Some(0.9))).collect();
        events.extend([
            decided(40_100, Some(0.7)),
            decided(40_200, None),
            decided(40_300, Some(0.896)),
        ]);
        assert_eq!(rise(&events), Some(Duration::from_millis(300)));
        events.pop();
        assert_eq!(rise(&events), None);
    }
}
