//! The best plan for this frame and the next few, by a prediction that knows its uncertainty.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::{FrameId, Timestamp};

use super::backoff::Backoff;
use super::doubt::{Doubt, Restored};
use super::objective::{Objective, Thrift};
use super::reach::Reach;
use super::statistics::{Smoothed, normal_cdf};
use super::way::{Passage, Question, Sent, Way};
use super::{
    Conformal, Controller, HeadDecision, HeadView, Ladder, LadderRung, LinkEstimate, Load,
    NetworkSample, NetworkTimeout, Prediction, Run, SendDecision, SendView, Sending, TransferTime,
    ms,
};
use crate::outcome::Choice;

/// What an [`Mpc`] is held to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MpcConfig {
    /// Share of frames that may miss their deadline after they were sent, 0.001 to 0.5.
    pub target_miss: f64,
    /// Frames that a plan looks ahead, this one included; 1 to 16.
    pub horizon: usize,
    /// Time between frames, where it is known; else it is measured, which cannot tell a camera's
    /// pace from a slow device's.
    pub interval: Option<Duration>,
    /// What it strives for.
    pub objective: Objective,
}

impl Default for MpcConfig {
    fn default() -> Self {
        MpcConfig { target_miss: 0.01, horizon: 4, interval: None, objective: Objective::Accuracy }
    }
}

/// Model-predictive control over a short horizon, robust by a conformal margin.
///
/// How likely a frame is late follows from what waiting behind one's own earlier frames, the
/// predicted time in the network ([`TransferTime`]) and on the server leave of the time left, and
/// from how much of that experience says is needed ([`Conformal`]). The plan for this frame and the
/// next few with the greatest expected accuracy wins, where what an answer is worth depends on how
/// unsure the exit is about this very frame ([`Ladder`]), being late costs a little, and bytes sent
/// now delay the frames to come. If nothing is likely enough to be in time the exit answers, and a
/// probe as large as the smallest frame asks whether that still holds: one at a time, so that its
/// echo comes with the network's return.
///
/// Several frames in a row without a reply are taken for an outage. Then only probes are sent, and if
/// the first reply is as quick as before, what was learnt since is forgotten.
///
/// Nor is a frame sent that is much larger than any which came through of late: a probe as large goes
/// first, with a frame that has nothing to send if one comes soon.
///
/// What to run is a wager on how long the head will take: it counts for as much as it is likely to
/// leave time to send. A head that outlasts the frames' interval delays the next one or costs a
/// frame, so a plan follows the device's backlog as it follows the link's. What it leaves over at
/// the end costs what the device's time is worth when heads are mixed at their best.
///
/// Others may use the same way. Its time has a price, at which the frames go that gain most for their
/// bytes. It keeps all of them together within a part of that time, a smaller one where the way is
/// unsteady, and where round trips are longer than they have been, a queue stands on the way, and the
/// price rises with it: all who wait in the same queue see it, and take less, as by TCP Vegas (Brakmo
/// and Peterson 1995). Where nothing large was sent for long, nothing says that the way is as slow as
/// it was: what is charged is the time that it takes if it is faster by one standard deviation. So
/// what would be in time in any case is tried.
///
/// Where something else than accuracy is to be spared ([`Objective`]), it has a price as well.
#[derive(Debug)]
pub struct Mpc {
    config: MpcConfig,
    ladder: Arc<Ladder>,
    transfer: TransferTime,
    doubt: Doubt,
    /// The shortest round trip of a frame without bytes (ms), slowly forgotten.
    shortest: f64,
    conformal: Conformal,
    server: Smoothed,
    /// Time of what was run.
    device: BTreeMap<Load, Smoothed>,
    started: Option<(Timestamp, Run)>,
    interval: Smoothed,
    /// The most time left that a frame had: what the frames to come will have.
    full: Duration,
    way: Way,
    reach: Reach,
    prices: Prices,
    thrift: Thrift,
    /// Between probes that ask whether anything comes through.
    backoff: Backoff,
    last: Option<usize>,
}

/// What one rung costs, in ms, and what it is worth.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    /// Which it is.
    rung: usize,
    bytes: f64,
    /// Network and server, in the mean, and the standard deviation.
    mean: f64,
    deviation: f64,
    /// The way is busy with it, in the mean, and if it is as fast as one may hope: what is charged.
    busy: f64,
    charged: f64,
    /// Device, in the mean, and its standard deviation.
    device: f64,
    spread: f64,
    /// Whether the device's time is known, and no guess.
    tried: bool,
    /// Probability that a frame which has all its time is late.
    usually_late: f64,
    /// Accuracy if sending is feasible, share of frames that are then sent, and accuracy if not.
    accuracy: f64,
    sent: f64,
    exit: f64,
}

/// What things are worth, as accuracy: a millisecond of the device or of the way, and a byte.
#[derive(Clone, Copy, Debug, Default)]
struct Prices {
    /// Of the device, to the frames to come, and to whoever is to spare energy.
    device: f64,
    compute: f64,
    /// Of the way.
    link: f64,
    /// Of the way, beside that, beyond the `least` (ms) that any rung takes of it.
    more: f64,
    least: f64,
    byte: f64,
}

impl Prices {
    /// What it costs to keep the way busy for so long (ms) with so many bytes.
    fn toll(&self, busy: f64, bytes: f64) -> f64 {
        self.link * busy + self.more * (busy - self.least).max(0.0) + self.byte * bytes
    }
}

/// Where a plan begins: times in ms from now on.
#[derive(Clone, Copy, Debug)]
struct Backlog {
    /// Until the device is free.
    device: f64,
    /// Until the way is free of what was sent.
    link: f64,
}

/// A change of operating point must gain so much accuracy: what it costs to be wrong twice.
const SWITCH: f64 = 0.002;

/// First and longest pause after an echo that told of a network which is there and too slow.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// What a frame that is late costs beside its answer, and from which probability of that on none is
/// sent. The first is a fraction of what an answer gains: misses are held to the target by the
/// margin, which widens with them.
const MISS: f64 = 0.3;
const MOST_LATE: f64 = 0.3;

/// The share of frames that is taken to need more than the margin.
const BEYOND: f64 = 0.01;

/// What keeping an unsteady way busy all the time beyond the smallest rungs must gain at least (share
/// of frames right): to send more is to risk a queue, which costs whole answers.
const UPGRADE: f64 = 0.1;

/// So many deviations, or margins, away nothing is uncertain any more.
const SURELY: f64 = 4.0;

/// By what share the shortest round trip is forgotten with every reply.
const FORGOTTEN: f64 = 1e-3;

/// Halvings of the interval in which a price is sought.
const PRICE_STEPS: usize = 12;

/// Longer than any deadline (ms).
const TOO_LONG: f64 = 1e7;

/// What all of a way costs (share of frames right) on which a queue stands as long as the deadline.
const QUEUE_PRICE: f64 = 16.0;

/// The part of the way's time that is taken at most, of a steady one and an unsteady one.
const STEADY_SHARE: f64 = 0.8;
const UNSTEADY_SHARE: f64 = 0.4;

/// A way is unsteady where replies differ from what is predicted by so much of the time that a frame
/// has.
const UNSTEADY: f64 = 0.01;

impl Mpc {
    /// A controller that knows nothing of the network yet. Values of `config` outside their ranges
    /// count as the nearest one inside.
    pub fn new(config: MpcConfig, ladder: Arc<Ladder>) -> Self {
        let MpcConfig { target_miss, horizon, interval, objective } = config;
        let (target_miss, horizon) = (target_miss.clamp(0.001, 0.5), horizon.clamp(1, 16));
        Mpc {
            config: MpcConfig { target_miss, horizon, interval, objective },
            ladder,
            transfer: TransferTime::new(None),
            doubt: Doubt::default(),
            shortest: f64::INFINITY,
            conformal: Conformal::new(target_miss),
            server: Smoothed::default(),
            device: BTreeMap::new(),
            started: None,
            interval: Smoothed::default(),
            full: Duration::ZERO,
            way: Way::new(Timestamp::ZERO, None),
            reach: Reach::new(Timestamp::ZERO),
            prices: Prices::default(),
            thrift: Thrift::new(objective),
            backoff: Backoff::new(Timestamp::ZERO, FIRST_PAUSE, LONGEST_PAUSE),
            last: None,
        }
    }

    /// What each rung costs now, and what it is worth where the way costs nothing.
    fn costs(&self, now: Timestamp) -> Vec<Cost> {
        let cost = |&at: &usize| {
            let rung = &self.ladder.rungs()[at];
            let bytes = rung.bytes.ceil() as usize;
            let device = self.device.get(&rung.run.load()).copied().unwrap_or_default();
            let (mean, deviation) = self.predict(now, bytes);
            let device_mean = device.mean.unwrap_or_else(|| self.untried(rung));
            let spread = device.standard_deviation().max(1e-3);
            let slack = ms(self.full) - device_mean - mean;
            let (accuracy, sent) = self.ladder.policy(at, 0.0);
            Cost {
                rung: at,
                bytes: rung.bytes,
                mean,
                deviation,
                busy: ms(self.transfer.serialisation(bytes)),
                charged: ms(self.transfer.hoped_serialisation(now, bytes)),
                device: device_mean,
                spread,
                tried: device.mean.is_some(),
                usually_late: self.late_behind(slack, deviation, spread),
                accuracy,
                sent,
                exit: self.ladder.exit_accuracy(at, None),
            }
        };
        self.ladder.planned().iter().map(cost).collect()
    }

    /// How long the device is taken to need for what it has not run yet (ms): nothing, so that it is
    /// tried; but the uncut network as long as the heads' work lets expect.
    fn untried(&self, rung: &LadderRung) -> f64 {
        if rung.run != Run::Local {
            return 0.0;
        }
        let per_mac = |other: &LadderRung| {
            let took = self.device.get(&other.run.load())?.mean?;
            (other.macs > 0).then(|| took / other.macs as f64)
        };
        let least = self.ladder.rungs().iter().filter_map(per_mac).reduce(f64::min);
        least.map_or(TOO_LONG, |least| (least * rung.macs as f64).min(TOO_LONG))
    }

    /// The same with accuracy and share of frames sent as they are at these prices.
    fn at_price(&self, cost: &Cost, prices: Prices) -> Cost {
        let (accuracy, sent) = self.ladder.policy(cost.rung, prices.toll(cost.charged, cost.bytes));
        Cost { accuracy, sent, ..*cost }
    }

    /// All rungs at these prices.
    fn at_prices(&self, costs: &[Cost], prices: Prices) -> Vec<Cost> {
        costs.iter().map(|cost| self.at_price(cost, prices)).collect()
    }

    /// Prices before it is known what the way is worth to others, and the device.
    fn first_prices(&self, costs: &[Cost]) -> Prices {
        let charged = costs.iter().map(|cost| cost.charged).filter(|&charged| charged > 0.0);
        let least = charged.fold(f64::INFINITY, f64::min);
        let more = self.unsteadiness() * UPGRADE / self.interval();
        let (compute, byte) = self.thrift.prices();
        Prices { device: self.prices.device, compute, link: 0.0, more, least, byte }
    }

    /// Mean and standard deviation of the time in the network and on the server (ms).
    fn predict(&self, now: Timestamp, bytes: usize) -> (f64, f64) {
        let Prediction { mean, deviation } = self.transfer.predict(now, bytes);
        let mean = ms(mean) + self.server.mean.unwrap_or(0.0);
        (mean, ms(deviation).hypot(self.server.standard_deviation()).max(0.1))
    }

    /// Probability that what is predicted with this `deviation` takes longer than the prediction and
    /// `slack` (ms): at the margin [`BEYOND`], whatever the target, which the margin follows by
    /// itself; beyond and before it the tail is taken to be exponential.
    fn late(&self, slack: f64, deviation: f64) -> f64 {
        let margins = slack.max(0.0) / (self.conformal.margin() * deviation);
        BEYOND.powf(margins)
    }

    /// The same behind a device whose time has this `spread` (ms): the margin is learnt from what the
    /// network does, and says nothing about a head. By Gauss and Hermite's rule with three nodes.
    fn late_behind(&self, slack: f64, deviation: f64, spread: f64) -> f64 {
        let off = 3f64.sqrt() * spread;
        if slack - off > SURELY * self.conformal.margin() * deviation {
            return 0.0;
        }
        if slack + off <= 0.0 {
            return 1.0;
        }
        let late = |slack| self.late(slack, deviation);
        (4.0 * late(slack) + late(slack - off) + late(slack + off)) / 6.0
    }

    /// From 0, where every reply comes as predicted, to 1 where the way is [`UNSTEADY`].
    fn unsteadiness(&self) -> f64 {
        (ms(self.transfer.noise()) / (UNSTEADY * ms(self.full).max(1.0))).min(1.0)
    }

    fn interval(&self) -> f64 {
        self.config.interval.map_or_else(|| self.interval.mean.unwrap_or(100.0), ms)
    }

    /// Gain in accuracy of sending a frame that is late with this probability.
    fn gain(cost: &Cost, late: f64) -> f64 {
        (1.0 - late) * (cost.accuracy - cost.exit) - late * cost.sent * MISS
    }

    /// Gain of a rung for a frame that has all its time (share of frames right).
    fn usual_gain(cost: &Cost) -> f64 {
        Self::gain(cost, cost.usually_late).max(0.0)
    }

    /// The way's price: the one at which the best rung takes no more than one's share of its time,
    /// or with a queue on it at least that part of [`QUEUE_PRICE`] for all of it which the queue takes
    /// of the deadline. What was never tried, and may take the device too long, sets no price.
    fn link_price(&self, costs: &[Cost], first: Prices) -> f64 {
        let (interval, full) = (self.interval(), ms(self.full).max(1.0));
        let queue = (ms(self.transfer.round_trip()) - self.shortest).max(0.0);
        let least = QUEUE_PRICE * (queue / full).min(1.0) / interval;
        let unsteadiness = self.unsteadiness();
        let share = STEADY_SHARE + unsteadiness * (UNSTEADY_SHARE - STEADY_SHARE);
        let keeps_share = |link: f64| {
            let prices = Prices { link, ..first };
            let (mut best, mut used) = (f64::MIN, 0.0);
            for cost in costs.iter().filter(|cost| cost.tried) {
                let cost = self.at_price(cost, prices);
                let toll = cost.sent * prices.toll(cost.charged, cost.bytes);
                let gain = (Self::usual_gain(&cost) - toll).max(0.0);
                let value = cost.exit + gain - (prices.device + prices.compute) * cost.device;
                if value > best {
                    (best, used) = (value, if gain > 0.0 { cost.sent * cost.charged } else { 0.0 });
                }
            }
            used <= share * interval
        };
        least_price(1.0, keeps_share).max(least)
    }

    /// The device's price is the multiplier of the best mixture of rungs that keeps pace in the
    /// mean: it minimises the mixture's Lagrangian dual, which is convex. What was never tried would
    /// take no time of it, and is left out.
    fn device_price(&self, costs: &[Cost], prices: Prices) -> f64 {
        let interval = self.interval();
        let worth = |cost: &Cost| {
            let gain = Self::usual_gain(cost) - cost.sent * prices.byte * cost.bytes;
            (cost.device, cost.exit + gain.max(0.0) - prices.compute * cost.device)
        };
        let worths: Vec<(f64, f64)> = costs.iter().filter(|cost| cost.tried).map(worth).collect();
        // Above its minimum the dual rises: there the best rung takes less than the interval. To
        // drop the frame takes nothing.
        let keeps_pace = |price: f64| {
            let value = |(device, worth): (f64, f64)| worth - price * device;
            let dropped = (0.0, 0.0);
            let best = worths
                .iter()
                .copied()
                .fold(dropped, |best, it| if value(it) > value(best) { it } else { best });
            best.0 <= interval
        };
        least_price(1.0 / interval, keeps_pace)
    }

    /// Expected accuracy of `frames` frames, the first of which was captured `age` (ms) ago and takes
    /// `first`, the others `rest`.
    fn plan(
        &self,
        [first, rest]: [&Cost; 2],
        mut free: Backlog,
        age: f64,
        frames: usize,
        prices: Prices,
    ) -> f64 {
        let (interval, full) = (self.interval(), ms(self.full));
        let mut value = 0.0;
        let mut cost = first;
        // Of when the device is free.
        let mut variance: f64 = 0.0;
        for frame in 0..frames {
            let captured = frame as f64 * interval - age;
            if free.device <= captured {
                variance = 0.0;
            }
            let start = free.device.max(captured);
            // The next one takes the place of a frame whose turn has not come.
            let turn = match (captured + interval - start, variance.sqrt()) {
                (room, spread) if room.abs() < SURELY * spread => normal_cdf(room / spread),
                (room, _) => f64::from(room >= 0.0),
            };
            if turn == 0.0 {
                continue;
            }
            variance += cost.spread.powi(2);
            let ready = start + cost.device;
            let leaves = free.link.max(ready);
            let head_in_time = normal_cdf((captured + full - ready) / cost.spread);
            value += turn * (head_in_time * cost.exit - prices.compute * cost.device);
            free.device = start + turn * cost.device;
            let slack = captured + full - leaves - cost.mean;
            let late = self.late_behind(slack, cost.deviation, cost.spread);
            let toll = cost.sent * prices.toll(cost.charged, cost.bytes);
            let gain = Self::gain(cost, late) - toll;
            if gain > 0.0 {
                value += turn * gain;
                free.link = leaves + turn * cost.sent * cost.busy;
            }
            cost = rest;
        }
        // What is left over at the end is time taken from the frames after.
        let end = frames as f64 * interval - age;
        let over = (free.device - end).max(0.0);
        value - (over * prices.device).min(rest.accuracy)
    }

    /// What the frames after one captured `age` (ms) ago can expect.
    fn future(&self, costs: &[Cost], free: Backlog, age: f64, prices: Prices) -> f64 {
        let frames = self.config.horizon - 1;
        let age = age - self.interval();
        let plan = |cost| self.plan([cost, cost], free, age, frames, prices);
        costs.iter().map(plan).fold(0.0, f64::max)
    }

    fn wait(&self, now: Timestamp) -> f64 {
        self.way.wait(now, &self.transfer, self.server.mean.unwrap_or(0.0))
    }

    /// What slows one thing slows all: the others are taken to be as much slower as this one.
    fn learn_device(&mut self, load: Load, took: f64) {
        let before = self.device.get(&load).and_then(|known| known.mean);
        let known = self.device.entry(load).or_default();
        known.update(took);
        let (Some(before), Some(after)) = (before, known.mean) else { return };
        for (_, other) in self.device.iter_mut().filter(|(other, _)| **other != load) {
            other.mean = other.mean.map(|mean| mean * after / before.max(1e-3));
        }
    }

    fn note_send(&mut self, now: Timestamp, frame: FrameId, bytes: usize, probe: Option<Question>) {
        let wait = self.wait(now);
        let (mean, deviation) = self.predict(now, bytes);
        self.way.send(Sent { frame, at: now, bytes, wait, mean, deviation, probe });
    }
}

impl Controller for Mpc {
    fn on_link_up(&mut self, now: Timestamp, round_trip: Option<Duration>) {
        self.transfer = TransferTime::new(round_trip);
        (self.doubt, self.shortest) = (Doubt::default(), f64::INFINITY);
        self.conformal = Conformal::new(self.config.target_miss);
        (self.way, self.reach) = (Way::new(now, round_trip), Reach::new(now));
        self.backoff = Backoff::new(now, FIRST_PAUSE, LONGEST_PAUSE);
    }

    fn decide_head(&mut self, now: Timestamp, view: &HeadView) -> HeadDecision {
        if let Some((before, _)) = self.started {
            self.interval.update(ms(now.saturating_since(before)));
        }
        self.full = self.full.max(view.time_left);
        let free_of_charge = self.costs(now);
        let first = self.first_prices(&free_of_charge);
        let prices = Prices { link: self.link_price(&free_of_charge, first), ..first };
        let costs = self.at_prices(&free_of_charge, prices);
        let prices = Prices { device: self.device_price(&costs, prices), ..prices };
        self.prices = prices;
        let age = ms(self.full - view.time_left);
        let free = Backlog { device: 0.0, link: self.wait(now) };
        let value = |first: &Cost| {
            let frames = self.config.horizon;
            let plans =
                costs.iter().map(|rest| self.plan([first, rest], free, age, frames, prices));
            let run = self.ladder.run_of(first.rung);
            let same = self.started.is_none_or(|(_, before)| before == run);
            // Of plans of equal worth the one that asks least of the device.
            plans.fold(0.0, f64::max) - if same { 0.0 } else { SWITCH } - first.device * 1e-9
        };
        let values: Vec<f64> = costs.iter().map(value).collect();
        let best_of = |rungs: &mut dyn Iterator<Item = usize>| {
            rungs.max_by(|&a, &b| values[a].total_cmp(&values[b]))
        };
        let bytes = |at: usize| costs[at].bytes.ceil() as usize;
        let mut best = best_of(&mut (0..costs.len())).unwrap_or(0);
        let beyond = Some(bytes(best)).filter(|&bytes| !self.reach.covers(bytes));
        self.reach.want(now, beyond);
        if beyond.is_some() {
            let mut covered = (0..costs.len()).filter(|&at| self.reach.covers(bytes(at)));
            best = best_of(&mut covered).unwrap_or(best);
        }
        let run = self.ladder.run_of(costs[best].rung);
        let Cost { mean, deviation, device, spread, .. } = costs[best];
        let time_left = ms(view.time_left);
        let in_time = match run {
            Run::Local => time_left > device,
            Run::Head(_) | Run::Image(_) => {
                let slack = time_left - free.link.max(device) - mean;
                view.link.up && self.late_behind(slack, deviation, spread) <= MOST_LATE
            }
        };
        let reason = if in_time { Choice::InTime } else { Choice::TooSlow };
        // Nothing is left to decide after it.
        if run == Run::Local {
            self.thrift.on_frame(costs[best].accuracy);
        }
        self.started = Some((now, run));
        HeadDecision { run: Some(run), reason }
    }

    fn on_run(&mut self, _now: Timestamp, run: Run, took: Duration) {
        self.learn_device(run.load(), ms(took));
    }

    fn decide_send(&mut self, now: Timestamp, view: &SendView<'_>) -> SendDecision {
        let prices = self.prices;
        let costs = self.at_prices(&self.costs(now), prices);
        let (wait, budget) = (self.wait(now), ms(view.time_left));
        let age = ms(self.full.saturating_sub(view.time_left));
        let future = |link: f64| self.future(&costs, Backlog { device: 0.0, link }, age, prices);
        let rungs: Vec<_> = self.ladder.sendable(view.run, view.layer_ends).collect();
        // Without an exit there is nothing to fall back to.
        let exit = match (view.exit_confidence, rungs.first()) {
            (None, _) | (_, None) => 0.0,
            (confidence, Some(&(rung, ..))) => self.ladder.exit_accuracy(rung, confidence),
        };
        let outage = self.doubt.is_outage();
        let (mut best, mut feasible, mut worth) = (None, false, false);
        let mut best_value = exit + future(wait);
        let mut expected = exit;
        for &(rung, layers, bytes) in &rungs {
            let (mean, deviation) = self.predict(now, bytes);
            let late = self.late(budget - wait - mean, deviation);
            if outage || late > MOST_LATE {
                continue;
            }
            feasible = true;
            let accuracy = self.ladder.accuracy(rung, view.exit_confidence);
            if !Ladder::is_worth(accuracy - exit) {
                continue;
            }
            worth = true;
            let busy = ms(self.transfer.serialisation(bytes));
            let switch = if self.last.is_none_or(|last| last == rung) { 0.0 } else { SWITCH };
            let charged = ms(self.transfer.hoped_serialisation(now, bytes));
            let toll = prices.toll(charged, bytes as f64);
            let own = accuracy - late * (accuracy - exit + MISS) - toll;
            let value = own + future(wait + busy) - switch;
            if value > best_value {
                (best, best_value) = (Some((rung, layers, bytes)), value);
                expected = accuracy - late * (accuracy - exit);
            }
        }
        let is_spare = best.is_none() && feasible;
        let can_ask = !self.doubt.is_open() && !self.way.is_probed();
        let can_ask = can_ask && (is_spare || view.exit_confidence.is_some());
        if let Some(bytes) = self.reach.question(now, is_spare).filter(|_| can_ask) {
            self.thrift.on_frame(exit);
            self.note_send(now, view.frame, bytes, Some(Question::Larger));
            return SendDecision { sending: Sending::Probe(bytes), reason: Choice::Probe };
        }
        self.thrift.on_frame(expected);
        let smallest = rungs.iter().map(|&(_, _, bytes)| bytes).min();
        let ask = self.backoff.is_over(now) && !self.way.is_probed();
        let (sent, reason) = match (best, smallest) {
            (Some(sent), _) => (Some(sent), Choice::InTime),
            (None, Some(bytes)) if !feasible && ask => {
                self.note_send(now, view.frame, bytes, Some(Question::Any));
                let sending = Sending::Probe(bytes);
                return SendDecision { sending, reason: Choice::Probe };
            }
            (None, _) if !feasible => (None, Choice::TooSlow),
            (None, _) if worth => (None, Choice::Spared),
            (None, _) => (None, Choice::ExitSuffices),
        };
        let Some((rung, layers, bytes)) = sent else {
            return SendDecision { sending: Sending::Exit, reason };
        };
        self.note_send(now, view.frame, bytes, None);
        self.last = Some(rung);
        SendDecision { sending: Sending::Layers(layers), reason }
    }

    fn on_reply(&mut self, now: Timestamp, sample: &NetworkSample) {
        let NetworkSample { frame, bytes, network, receive_span, server, .. } = *sample;
        let Some(Passage { sent, own, at_most }) = self.way.on_reply(frame, network) else {
            return;
        };
        if let Some(Restored { transfer, margin }) = self.doubt.on_reply(now, bytes, own, at_most) {
            self.transfer = transfer;
            if let Some(margin) = margin {
                self.conformal = margin;
            }
        }
        let expected = sent.wait + sent.mean;
        let took = ms(network) + ms(server);
        match sent.probe {
            Some(Question::Larger) => {
                match took <= expected + self.conformal.margin() * sent.deviation {
                    true => self.reach.on_passed(bytes),
                    false => self.reach.on_refuted(now),
                }
            }
            None => {
                self.reach.on_passed(bytes);
                self.conformal.on_score((took - expected) / sent.deviation, false);
                self.server.update(ms(server));
                self.backoff.end(now);
                self.backoff.reset();
            }
            // The network is back, or slow: the next one tells.
            Some(Question::Any) if at_most => self.backoff.end(now),
            Some(Question::Any) => {
                self.backoff.pause(now);
                // It was the margin that spoke against a frame.
                if ms(network) + self.server.mean.unwrap_or(0.0) <= expected {
                    self.conformal.on_unexpected();
                }
            }
        }
        if !at_most || own < self.transfer.predict(now, bytes).mean {
            self.transfer.on_sample(now, bytes, own);
        }
        let round_trip = ms(self.transfer.round_trip());
        self.shortest = (self.shortest * (1.0 + FORGOTTEN)).min(round_trip);
        self.transfer.on_dispersion(now, bytes, receive_span);
    }

    fn on_timeout(&mut self, now: Timestamp, timeout: &NetworkTimeout) {
        let NetworkTimeout { frame, bytes, waited } = *timeout;
        let Some(sent) = self.way.give_up(frame) else { return };
        match sent.probe {
            Some(Question::Larger) => return self.reach.on_refuted(now),
            Some(Question::Any) => return self.backoff.end(now),
            None => {}
        }
        self.reach.on_late();
        self.doubt.on_lost(bytes, &self.transfer, &self.conformal);
        self.conformal.on_score((ms(waited) - sent.wait - sent.mean) / sent.deviation, true);
        // What is next to leave keeps all behind it waiting.
        if let Some((bytes, waited)) = self.way.next(now) {
            self.transfer.on_timeout(now, bytes, waited);
        }
    }

    fn estimate(&self) -> Option<LinkEstimate> {
        Some(self.transfer.estimate())
    }
}

/// The least price, up to `most`, at which `is_kept` what is to be kept. It is kept at every price
/// above one at which it is.
fn least_price(most: f64, is_kept: impl Fn(f64) -> bool) -> f64 {
    let (mut low, mut high) = (0.0, most);
    if is_kept(low) {
        return low;
    }
    for _ in 0..PRICE_STEPS {
        let middle = f64::midpoint(low, high);
        if is_kept(middle) { high = middle } else { low = middle }
    }
    high
}

#[cfg(test)]
mod tests {
    use super::super::ladder::tests::{exit, ladder, rung};
    use super::*;
    use crate::controller::LinkView;

    const ENDS: [usize; 4] = [300, 600, 1_200, 2_400];
    const LARGE: [usize; 1] = [6_000];
    const UNSURE: f32 = 0.2;
    const SURE: f32 = 0.95;

    /// A network of one rate without jitter in front of an [`Mpc`].
    struct Loop {
        mpc: Mpc,
        now: Timestamp,
        frame: u64,
        kbits: f64,
        /// A probe, its padding, when it was sent and when its echo will come.
        probe: Option<(FrameId, usize, Timestamp, Timestamp)>,
    }

    impl Loop {
        fn new(kbits: f64) -> Self {
            Loop::with(kbits, ladder())
        }

        fn with(kbits: f64, ladder: Ladder) -> Self {
            let mut mpc = Mpc::new(MpcConfig::default(), Arc::new(ladder));
            mpc.on_link_up(Timestamp::ZERO, Some(Duration::from_millis(40)));
            Loop { mpc, now: Timestamp::ZERO, frame: 0, kbits, probe: None }
        }

        fn network(&self, bytes: usize) -> Duration {
            Duration::from_secs_f64((40.0 + bytes as f64 * 8.0 / self.kbits) / 1e3)
        }

        /// An echo that has come by `now`, or comes with a rise of the rate.
        fn echo(&mut self, now: Timestamp) {
            let Some((frame, bytes, sent, due)) = self.probe else { return };
            let at = if sent + self.network(bytes) < due { due.min(now) } else { due };
            if at <= now {
                self.probe = None;
                let network = at.saturating_since(sent);
                let (receive_span, server, refused) = (Duration::ZERO, Duration::ZERO, false);
                let sample = NetworkSample { frame, bytes, network, receive_span, server, refused };
                self.mpc.on_reply(at, &sample);
            }
        }

        /// One frame every 100 ms with a deadline of 150 ms and a head of 10 ms.
        fn step(&mut self, confidence: f32) -> SendDecision {
            let ms = Duration::from_millis;
            let frame = FrameId(self.frame);
            self.frame += 1;
            let start = Timestamp::from_micros(self.frame * 100_000);
            self.echo(start);
            let link = LinkView { up: true, ..LinkView::default() };
            let head = self.mpc.decide_head(start, &HeadView { time_left: ms(150), link });
            let run = head.run.expect("something is always run");
            let now = start + ms(10);
            self.mpc.on_run(now, run, ms(10));
            let layer_ends = if run.head() == Some((0, 1)) { &LARGE[..] } else { &ENDS };
            let view = SendView {
                frame,
                run,
                exit_confidence: Some(confidence),
                layer_ends,
                time_left: ms(140),
                link,
            };
            let decision = self.mpc.decide_send(now, &view);
            if let Sending::Probe(padding) = decision.sending {
                self.probe = Some((frame, padding, now, now + self.network(padding)));
            }
            if let Sending::Layers(layers) = decision.sending {
                let bytes = layer_ends[usize::from(layers) - 1];
                let (network, server) = (self.network(bytes), ms(5));
                if network + server <= ms(140) {
                    let receive_span = Duration::ZERO;
                    let sample = NetworkSample {
                        frame,
                        bytes,
                        network,
                        receive_span,
                        server,
                        refused: false,
                    };
                    self.mpc.on_reply(now + network + server, &sample);
                } else {
                    let timeout = NetworkTimeout { frame, bytes, waited: ms(140) };
                    self.mpc.on_timeout(now + ms(140), &timeout);
                }
            }
            self.now = now;
            decision
        }

        fn steps(&mut self, count: usize) -> Vec<SendDecision> {
            (0..count).map(|_| self.step(UNSURE)).collect()
        }
    }

    fn layers(decision: SendDecision) -> u8 {
        match decision.sending {
            Sending::Exit | Sending::Probe(_) => 0,
            Sending::Layers(layers) => layers,
        }
    }

    #[test]
    fn a_fast_network_gets_all_layers_and_a_slow_one_what_it_carries() {
        // 140 ms less 45 ms are 23,750, 1,780 and 475 bytes.
        for (kbits, expected) in [(2_000.0, 4), (150.0, 3), (40.0, 1)] {
            let mut network = Loop::new(kbits);
            let last = network.steps(60)[59];
            assert_eq!((layers(last), last.reason), (expected, Choice::InTime), "{kbits} kbit/s");
        }
    }

    #[test]
    fn sure_exits_answer_and_unsure_ones_ask() {
        let mut network = Loop::new(2_000.0);
        network.steps(20);
        let sure = network.step(SURE);
        assert_eq!((sure.sending, sure.reason), (Sending::Exit, Choice::ExitSuffices));
        assert_eq!(layers(network.step(UNSURE)), 4);
    }

    #[test]
    fn after_a_fall_to_a_tenth_two_frames_pay_at_most() {
        let mut network = Loop::new(1_000.0);
        assert_eq!(layers(network.steps(60)[59]), 4);
        network.kbits = 100.0;
        // The timeout of the first shows at least how slow the network is, and another may find that
        // it is slower still: 1,200 bytes would take 141 ms.
        let sent: Vec<u8> = network.steps(60).into_iter().map(layers).collect();
        let late = sent.iter().filter(|&&layers| layers > 2).count();
        assert!(
            late <= 2 && sent[10..].iter().all(|&layers| (1..=2).contains(&layers)),
            "{sent:?}"
        );
    }

    #[test]
    fn after_a_rise_the_best_point_is_back_within_two_seconds() {
        let mut network = Loop::new(150.0);
        assert_eq!(layers(network.steps(60)[59]), 3);
        network.kbits = 2_000.0;
        assert_eq!(layers(network.steps(20)[19]), 4);
    }

    #[test]
    fn in_an_outage_it_asks_once_and_the_echo_brings_all_back() {
        let mut network = Loop::new(1_000.0);
        network.steps(60);
        let margin = network.mpc.conformal.margin();
        network.kbits = 0.001;
        let dead = network.steps(100);
        let sent = dead.iter().filter(|decision| layers(**decision) > 0).count();
        let asked = dead.iter().filter(|it| it.reason == Choice::Probe).count();
        assert!(sent <= 3 && asked == 1, "{sent} frames in vain, {asked} probes");
        network.kbits = 1_000.0;
        let back: Vec<u8> = network.steps(8).into_iter().map(layers).collect();
        assert!(back[2..].iter().all(|&layers| layers == 4), "{back:?}");
        assert!((network.mpc.conformal.margin() - margin).abs() < 0.6);
    }

    #[test]
    fn a_network_that_answers_small_frames_alone_is_slow_and_not_away() {
        let mut network = Loop::new(1_000.0);
        network.steps(60);
        // 300 bytes take 40 ms more than the 40 ms of the way, 600 already 120 ms in all.
        network.kbits = 60.0;
        let sent: Vec<u8> = network.steps(60).into_iter().map(layers).collect();
        let late = sent.iter().filter(|&&layers| layers > 2).count();
        assert!(late <= 3, "{sent:?}");
    }

    #[test]
    fn whoever_may_miss_more_takes_more_risk() {
        let late = |target_miss| {
            let config = MpcConfig { target_miss, ..MpcConfig::default() };
            let mut mpc = Mpc::new(config, Arc::new(ladder()));
            // One in twenty misses.
            for frame in 0..400 {
                let place = frame % 20;
                mpc.conformal.on_score(f64::from(place) / 10.0, place == 19);
            }
            mpc.late(1.0, 1.0)
        };
        let [little, some, much] = [0.01, 0.05, 0.2].map(late);
        assert!(little > some && some > much, "{little} {some} {much}");
    }

    /// The layers of one head, and a wide head whose only layer is large.
    fn steep() -> Ladder {
        let layers = (0..4).zip(ENDS).map(|(at, end)| rung(0, at + 1, end as f64, 0.0));
        let rungs = layers.chain([rung(1, 1, LARGE[0] as f64, 0.19)]).collect();
        Ladder::new(rungs, [((0, 0), exit()), ((0, 1), exit())].into()).expect("a ladder")
    }

    #[test]
    fn a_step_up_is_asked_for_before_it_is_taken() {
        let mut network = Loop::with(4_000.0, steep());
        let sizes: Vec<Option<usize>> = (0..20)
            .map(|_| {
                let decision = network.step(UNSURE);
                match (decision.sending, network.mpc.started) {
                    (Sending::Probe(bytes), _) => Some(bytes),
                    (Sending::Layers(_), Some((_, run))) if run.head() == Some((0, 1)) => None,
                    _ => Some(0),
                }
            })
            .collect();
        let first = sizes.iter().position(Option::is_none).expect("it steps up");
        let probes: Vec<_> = sizes[..first].iter().flatten().filter(|&&bytes| bytes > 0).collect();
        assert_eq!(probes, [&LARGE[0]], "{sizes:?}");
        assert!(first <= 12 && sizes[first..].iter().all(Option::is_none), "{sizes:?}");
        // What the exit answers by itself leaves room for the question at once.
        let mut network = Loop::with(4_000.0, steep());
        network.steps(1);
        let spare = network.step(SURE);
        assert_eq!(spare.sending, Sending::Probe(LARGE[0]));
    }

    #[test]
    fn bytes_that_would_hold_up_the_next_frames_are_spared() {
        // 1,200 bytes every 100 ms are more than 80 kbit/s carries, though one alone is in time.
        let mut network = Loop::new(80.0);
        let steady: Vec<u8> = network.steps(80)[40..].iter().map(|&it| layers(it)).collect();
        let bytes: usize =
            steady.iter().filter(|&&l| l > 0).map(|&l| ENDS[usize::from(l) - 1]).sum();
        assert!(bytes <= steady.len() * 1_000, "{steady:?}");
        assert!(steady.iter().all(|&layers| layers > 0), "{steady:?}");
    }

    #[test]
    fn time_costs_what_it_is_worth_where_heads_are_mixed() {
        let mut mpc = Mpc::new(MpcConfig::default(), Arc::new(ladder()));
        mpc.full = Duration::from_millis(150);
        mpc.config.interval = Some(Duration::from_millis(33));
        let tried = true;
        let cost = |device, exit| Cost { device, exit, accuracy: exit, tried, ..Cost::default() };
        // The second keeps pace, but of 13 ms and 38 ms in turn more comes.
        let costs = [cost(13.0, 0.5), cost(31.0, 0.6), cost(38.0, 0.75)];
        let price = mpc.device_price(&costs, Prices::default());
        assert!((price - 0.25 / 25.0).abs() < 1e-4, "{price}");
        assert_eq!(mpc.device_price(&costs[..2], Prices::default()), 0.0, "time to spare");
        // Beside the head nothing but dropping a frame takes less.
        let price = mpc.device_price(&costs[2..], Prices::default());
        assert!((price - 0.75 / 38.0).abs() < 1e-4, "{price}");
        // What was never tried is no way to keep pace.
        let untried = Cost { tried: false, ..cost(0.0, 0.9) };
        assert_eq!(mpc.device_price(&[costs[2], untried], Prices::default()), price);
    }

    #[test]
    fn a_frame_whose_turn_may_not_come_counts_for_as_much() {
        let mut mpc = Mpc::new(MpcConfig::default(), Arc::new(ladder()));
        mpc.full = Duration::from_millis(150);
        mpc.config.interval = Some(Duration::from_millis(33));
        let cost = |spread| Cost { device: 33.0, spread, exit: 0.8, ..Cost::default() };
        let plan = |spread: f64, age: f64| {
            let free = Backlog { device: 0.0, link: 0.0 };
            mpc.plan([&cost(spread), &cost(spread)], free, age, 2, Prices::default())
        };
        // The second frame's turn comes when the first is done, 33 ms less its age before it is lost.
        assert!((plan(0.001, 32.0) - 1.6).abs() < 1e-6);
        assert!((plan(5.0, 33.0) - 1.2).abs() < 1e-6, "as likely as not");
        assert!(plan(5.0, 10.0) > 1.599, "time enough");
    }

    #[test]
    fn the_margin_of_the_network_is_not_that_of_the_device() {
        let mpc = Mpc::new(MpcConfig::default(), Arc::new(ladder()));
        let margin = mpc.conformal.margin();
        // A head that takes all the time as often as not, and a network without doubt behind it.
        let late = mpc.late_behind(0.0, 1e-6, 5.0);
        assert!((late - 5.0 / 6.0).abs() < 1e-6, "no time is left by the mean, either: {late}");
        assert_eq!(
            mpc.late_behind(3.0 * 5.0, 0.01, 5.0),
            0.0,
            "a margin of {margin} would be more"
        );
        assert_eq!(mpc.late_behind(-10.0, 1.0, 5.0), 1.0);
        assert_eq!(mpc.late_behind(7.0, 2.0, 0.0), mpc.late(7.0, 2.0));
    }

    #[test]
    fn deciding_is_cheap_and_pure() {
        let run = || {
            let mut network = Loop::new(700.0);
            (0..200)
                .map(|at| network.step(if at % 3 == 0 { SURE } else { UNSURE }))
                .collect::<Vec<_>>()
        };
        assert_eq!(run(), run());
    }
}
