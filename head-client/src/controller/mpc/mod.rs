//! Model-predictive control: the best plan for this frame and the next few, by a prediction that knows
//! its uncertainty.
//!
//! [`estimates`] holds what was learnt, [`costs`] what a rung costs and gains by it, [`prices`] what the
//! path, the device and bytes are worth, and [`plan`] what a few frames are worth together. Here the two
//! decisions are made of them.

mod costs;
mod estimates;
mod plan;
mod prices;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::{FrameId, Timestamp};

use self::costs::{MISS_PENALTY, RungCost};
use self::estimates::Estimates;
use self::plan::{Backlog, Planner};
use self::prices::Prices;
use super::backoff::Backoff;
use super::decision::{
    Choice, Controller, HeadDecision, HeadView, LinkEstimate, NetworkSample, NetworkTimeout,
    SendDecision, SendView, Sending,
};
use super::ladder::Ladder;
use super::objective::{CostWeight, Objective};
use super::outage::{OutageDetector, Restored};
use super::path::{Delivery, PathModel, Probe, Sent};
use super::proven_size::ProvenSize;
use super::run::Run;
use super::statistics::ms;

/// The settings of an [`Mpc`].
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MpcConfig {
    /// Fraction of the frames sent that may miss their deadline, 0.001 to 0.5.
    pub target_miss: f64,
    /// Frames that a plan looks ahead, this one included; 1 to 16.
    pub horizon: usize,
    /// Time between frames, where it is known; else it is measured, which cannot tell a camera's
    /// pace from a slow device's.
    pub interval: Option<Duration>,
    /// What it optimises.
    pub objective: Objective,
}

impl Default for MpcConfig {
    fn default() -> Self {
        MpcConfig { target_miss: 0.01, horizon: 4, interval: None, objective: Objective::Quality }
    }
}

/// Model-predictive control over a short horizon, with a margin that follows the misses.
///
/// Before the head, it plans the next frames for every rung of the [`Ladder`] that this frame may take
/// and every rung that the frames after it may take, and runs the rung of the best plan. The value of a
/// plan is the expected quality of its frames less what they cost. It follows from the time that the
/// device is predicted to need, the wait behind this device's own earlier frames, the predicted time in
/// the network ([`TransferTime`](super::TransferTime)) and on the server, and the margin that experience
/// says is needed ([`Conformal`](super::Conformal)).
///
/// After the head, the exit's confidence says what the network's answer to this very frame would gain,
/// and the sizes are known. The layers with the best value go, or the exit answers.
///
/// Path and device have prices, because what one frame takes of them later frames lack, and so may
/// others on the same path. Bytes or energy have one where they are to be saved ([`Objective`]).
///
/// Several frames in a row without a reply are taken for an outage. Then, and whenever no frame would be
/// in time, one probe at a time finds out when frames are again. A frame much larger than any delivered
/// of late waits for a probe of its size.
///
/// `docs/controller.md` derives all of it.
#[derive(Debug)]
pub struct Mpc {
    config: MpcConfig,
    ladder: Arc<Ladder>,
    estimates: Estimates,
    path: PathModel,
    outage: OutageDetector,
    proven: ProvenSize,
    /// Between liveness probes.
    backoff: Backoff,
    weight: CostWeight,
    /// The prices of the last decision before a head.
    prices: Prices,
    /// The last run, and when its turn came.
    started: Option<(Timestamp, Run)>,
    /// The rung that was sent last.
    last_sent: Option<usize>,
}

/// A change of operating point must gain so much quality: the cost of being wrong twice.
const SWITCH_GAIN: f64 = 0.002;

/// The probability to be late from which a frame is not sent.
const MOST_LATE: f64 = 0.3;

/// First and longest pause after an echo that showed the network to be there, and too slow.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// Layers that may be sent of a run.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    rung: usize,
    layers: u8,
    bytes: usize,
}

/// The best of the candidates, and why there is none.
#[derive(Clone, Copy, Debug)]
struct Evaluation {
    best: Option<Candidate>,
    /// The exit's quality for this frame, and what can be expected of the best.
    exit: f64,
    expected: f64,
    /// Whether any candidate is likely enough to be in time, and whether one of those gains quality.
    is_feasible: bool,
    is_gainful: bool,
}

impl Mpc {
    /// A controller that knows nothing of the network yet. Values of `config` outside their ranges
    /// count as the nearest one inside.
    pub fn new(config: MpcConfig, ladder: Arc<Ladder>) -> Self {
        let MpcConfig { target_miss, horizon, interval, objective } = config;
        let (target_miss, horizon) = (target_miss.clamp(0.001, 0.5), horizon.clamp(1, 16));
        Mpc {
            config: MpcConfig { target_miss, horizon, interval, objective },
            ladder,
            estimates: Estimates::new(target_miss, interval),
            path: PathModel::new(Timestamp::ZERO, None),
            outage: OutageDetector::default(),
            proven: ProvenSize::new(Timestamp::ZERO),
            backoff: Backoff::new(Timestamp::ZERO, FIRST_PAUSE, LONGEST_PAUSE),
            weight: CostWeight::new(objective),
            prices: Prices::default(),
            started: None,
            last_sent: None,
        }
    }

    /// How long a frame sent now would wait behind this device's earlier ones (ms).
    fn wait(&self, now: Timestamp) -> f64 {
        let Estimates { transfer, server, .. } = &self.estimates;
        self.path.wait(now, transfer, server.mean.unwrap_or(0.0))
    }

    /// The value of running each rung now, of a frame captured `age` (ms) ago: the best plan that
    /// begins with it.
    fn values(&self, planner: &Planner<'_>, link: f64, age: f64) -> Vec<f64> {
        let free = Backlog { device: 0.0, link };
        let value = |first: &RungCost| {
            let plan = planner.best_after(first, free, age, self.config.horizon);
            let run = self.ladder.run_of(first.rung);
            let is_same = self.started.is_none_or(|(_, before)| before == run);
            // Of plans of equal value the one that takes least of the device.
            plan - if is_same { 0.0 } else { SWITCH_GAIN } - first.device * 1e-9
        };
        planner.costs.iter().map(value).collect()
    }

    /// The rung of the greatest value whose size is proven. If a larger one would be better, a probe of
    /// its size is requested.
    fn best_proven(&mut self, now: Timestamp, costs: &[RungCost], values: &[f64]) -> usize {
        let best_of = |rungs: &mut dyn Iterator<Item = usize>| {
            rungs.max_by(|&a, &b| values[a].total_cmp(&values[b]))
        };
        let bytes = |at: usize| costs[at].bytes.ceil() as usize;
        let best = best_of(&mut (0..costs.len())).unwrap_or(0);
        let unproven = Some(bytes(best)).filter(|&bytes| !self.proven.covers(bytes));
        self.proven.want(now, unproven);
        if unproven.is_none() {
            return best;
        }
        let mut covered = (0..costs.len()).filter(|&at| self.proven.covers(bytes(at)));
        best_of(&mut covered).unwrap_or(best)
    }

    /// Whether a frame that takes this rung should be in time, with the path free after `link` (ms).
    fn should_be_in_time(&self, cost: &RungCost, view: &HeadView, link: f64) -> bool {
        let time_left = ms(view.time_left);
        match self.ladder.run_of(cost.rung) {
            Run::Local => time_left > cost.device,
            Run::Head(_) | Run::Image(_) => {
                let slack = time_left - link.max(cost.device) - cost.mean;
                let lateness = self.estimates.lateness();
                let late = lateness.of_run(slack, cost.deviation, cost.device_deviation);
                view.link.up && late <= MOST_LATE
            }
        }
    }

    /// The best of the candidates at the prices of the decision before the head.
    fn evaluate(
        &self,
        now: Timestamp,
        view: &SendView<'_>,
        candidates: &[Candidate],
    ) -> Evaluation {
        let prices = self.prices;
        let costs = prices.charge_all(&self.ladder, &self.estimates.costs(&self.ladder, now));
        let conditions = self.estimates.conditions();
        let planner = Planner { costs: &costs, prices, conditions };
        let (wait, time_left) = (self.wait(now), ms(view.time_left));
        let age = ms(self.estimates.deadline.saturating_sub(view.time_left));
        // The value of the frames after this one, if the path is free after `link` (ms).
        let future =
            |link: f64| planner.future(Backlog { device: 0.0, link }, age, self.config.horizon - 1);
        // Without an exit there is nothing to fall back to.
        let exit = match (view.exit_confidence, candidates.first()) {
            (None, _) | (_, None) => 0.0,
            (confidence, Some(candidate)) => self.ladder.exit_quality(candidate.rung, confidence),
        };
        let mut evaluation =
            Evaluation { best: None, exit, expected: exit, is_feasible: false, is_gainful: false };
        let mut best_value = exit + future(wait);
        for &candidate in candidates {
            let Candidate { rung, bytes, .. } = candidate;
            let (mean, deviation) = self.estimates.predict(now, bytes);
            let late = conditions.lateness.of_transfer(time_left - wait - mean, deviation);
            // Too likely late, or lost.
            if self.outage.is_outage() || late > MOST_LATE {
                continue;
            }
            evaluation.is_feasible = true;
            // No better than the exit.
            let quality = self.ladder.quality(rung, view.exit_confidence);
            if !Ladder::is_worth(quality - exit) {
                continue;
            }
            evaluation.is_gainful = true;
            // This frame's own value, less what it takes from the frames after it.
            let serialisation = ms(self.estimates.transfer.serialisation(bytes));
            let charged = ms(self.estimates.transfer.optimistic_serialisation(now, bytes));
            let is_same = self.last_sent.is_none_or(|last| last == rung);
            let switch = if is_same { 0.0 } else { SWITCH_GAIN };
            let send_cost = prices.send_cost(charged, bytes as f64);
            let own = quality - late * (quality - exit + MISS_PENALTY) - send_cost;
            let value = own + future(wait + serialisation) - switch;
            if value > best_value {
                best_value = value;
                evaluation.best = Some(candidate);
                evaluation.expected = quality - late * (quality - exit);
            }
        }
        evaluation
    }

    /// The size of the probe that is to go in place of this frame, because larger frames would be
    /// better if the path carried them.
    fn size_probe(
        &self,
        now: Timestamp,
        view: &SendView<'_>,
        evaluation: &Evaluation,
    ) -> Option<usize> {
        let is_idle = evaluation.best.is_none() && evaluation.is_feasible;
        let has_answer = is_idle || view.exit_confidence.is_some();
        let may_probe = has_answer && !self.outage.is_silent() && !self.path.is_probed();
        self.proven.probe_due(now, is_idle).filter(|_| may_probe)
    }

    fn note_sent(&mut self, now: Timestamp, frame: FrameId, bytes: usize, probe: Option<Probe>) {
        let wait = self.wait(now);
        let (mean, deviation) = self.estimates.predict(now, bytes);
        self.path.send(Sent { frame, at: now, bytes, wait, mean, deviation, probe });
    }

    fn send_probe(
        &mut self,
        now: Timestamp,
        frame: FrameId,
        bytes: usize,
        probe: Probe,
    ) -> SendDecision {
        self.note_sent(now, frame, bytes, Some(probe));
        SendDecision { sending: Sending::Probe(bytes), reason: Choice::Probe }
    }

    /// Learns from a reply what its frame or probe was sent to find out. `is_upper_bound` says that it
    /// may have waited behind a frame without a reply.
    fn on_answered(
        &mut self,
        now: Timestamp,
        sent: &Sent,
        sample: &NetworkSample,
        is_upper_bound: bool,
    ) {
        let NetworkSample { bytes, network, server, .. } = *sample;
        let expected = sent.wait + sent.mean;
        let took = ms(network) + ms(server);
        match sent.probe {
            None => {
                self.proven.on_delivered(bytes);
                let score = (took - expected) / sent.deviation;
                self.estimates.conformal.on_score(score, false);
                self.estimates.server.update(ms(server));
                self.backoff.end(now);
                self.backoff.reset();
            }
            Some(Probe::Size) => {
                let margin = self.estimates.conformal.margin();
                match took <= expected + margin * sent.deviation {
                    true => self.proven.on_delivered(bytes),
                    false => self.proven.on_failed_probe(now),
                }
            }
            // The network is back, or slow: the next reply will show which.
            Some(Probe::Liveness) if is_upper_bound => self.backoff.end(now),
            Some(Probe::Liveness) => {
                self.backoff.pause(now);
                // A frame would have been in time: it was the margin that ruled it out.
                if ms(network) + self.estimates.server.mean.unwrap_or(0.0) <= expected {
                    self.estimates.conformal.on_unexpected();
                }
            }
        }
    }
}

impl Controller for Mpc {
    fn on_link_up(&mut self, now: Timestamp, round_trip: Option<Duration>) {
        self.estimates.reset_network(round_trip, self.config.target_miss);
        self.path = PathModel::new(now, round_trip);
        self.outage = OutageDetector::default();
        self.proven = ProvenSize::new(now);
        self.backoff = Backoff::new(now, FIRST_PAUSE, LONGEST_PAUSE);
    }

    fn decide_head(&mut self, now: Timestamp, view: &HeadView) -> HeadDecision {
        let since_last = self.started.map(|(before, _)| now.saturating_since(before));
        self.estimates.on_turn(since_last, view.time_left);

        // 1. What the rungs cost, and the prices of path and device by that.
        let costs = self.estimates.costs(&self.ladder, now);
        let conditions = self.estimates.conditions();
        let (device, objective) = (self.prices.device, self.weight.prices());
        let (prices, costs) = Prices::find(&self.ladder, &costs, &conditions, device, objective);
        self.prices = prices;

        // 2. The best plan, among sizes that the path is known to carry.
        let planner = Planner { costs: &costs, prices, conditions };
        let age = ms(self.estimates.deadline - view.time_left);
        let link = self.wait(now);
        let values = self.values(&planner, link, age);
        let best = self.best_proven(now, &costs, &values);

        let run = self.ladder.run_of(costs[best].rung);
        let is_in_time = self.should_be_in_time(&costs[best], view, link);
        let reason = if is_in_time { Choice::InTime } else { Choice::TooSlow };
        // After it nothing is left to decide.
        if run == Run::Local {
            self.weight.on_frame(costs[best].quality);
        }
        self.started = Some((now, run));
        HeadDecision { run: Some(run), reason }
    }

    fn on_run(&mut self, _now: Timestamp, run: Run, took: Duration) {
        self.estimates.on_run(run.load(), ms(took));
    }

    fn decide_send(&mut self, now: Timestamp, view: &SendView<'_>) -> SendDecision {
        let sendable = self.ladder.sendable(view.run, view.layer_ends);
        let candidates: Vec<Candidate> =
            sendable.map(|(rung, layers, bytes)| Candidate { rung, layers, bytes }).collect();
        let evaluation = self.evaluate(now, view, &candidates);
        let Evaluation { best, exit, expected, is_feasible, is_gainful } = evaluation;

        // 1. Larger frames would be better: a probe finds out whether the path carries them.
        if let Some(bytes) = self.size_probe(now, view, &evaluation) {
            self.weight.on_frame(exit);
            return self.send_probe(now, view.frame, bytes, Probe::Size);
        }
        self.weight.on_frame(expected);

        // 2. The layers with the best value go.
        if let Some(Candidate { rung, layers, bytes }) = best {
            self.note_sent(now, view.frame, bytes, None);
            self.last_sent = Some(rung);
            return SendDecision { sending: Sending::Layers(layers), reason: Choice::InTime };
        }

        // 3. Nothing would be in time: a probe as large as the smallest frame finds out whether that
        //    still holds.
        let may_probe = self.backoff.is_over(now) && !self.path.is_probed();
        let smallest = candidates.iter().map(|candidate| candidate.bytes).min();
        if let Some(bytes) = smallest.filter(|_| !is_feasible && may_probe) {
            return self.send_probe(now, view.frame, bytes, Probe::Liveness);
        }

        // 4. The exit answers, because nothing would be in time, or gains enough, or is any better.
        let reason = match (is_feasible, is_gainful) {
            (false, _) => Choice::TooSlow,
            (true, true) => Choice::Spared,
            (true, false) => Choice::ExitSuffices,
        };
        SendDecision { sending: Sending::Exit, reason }
    }

    fn on_reply(&mut self, now: Timestamp, sample: &NetworkSample) {
        let NetworkSample { frame, bytes, network, receive_span, .. } = *sample;
        let Some(delivery) = self.path.on_reply(frame, network) else { return };
        let Delivery { sent, own, is_upper_bound } = delivery;
        let restored = self.outage.on_reply(now, bytes, own, is_upper_bound);
        if let Some(Restored { transfer, margin }) = restored {
            self.estimates.transfer = transfer;
            if let Some(margin) = margin {
                self.estimates.conformal = margin;
            }
        }
        self.on_answered(now, &sent, sample, is_upper_bound);
        self.estimates.on_transfer(now, bytes, own, is_upper_bound, receive_span);
    }

    fn on_timeout(&mut self, now: Timestamp, timeout: &NetworkTimeout) {
        let NetworkTimeout { frame, bytes, waited } = *timeout;
        let Some(sent) = self.path.give_up(frame) else { return };
        match sent.probe {
            Some(Probe::Size) => return self.proven.on_failed_probe(now),
            Some(Probe::Liveness) => return self.backoff.end(now),
            None => {}
        }
        self.proven.on_late();
        let Estimates { transfer, conformal, .. } = &mut self.estimates;
        self.outage.on_lost(bytes, transfer, conformal);
        conformal.on_score((ms(waited) - sent.wait - sent.mean) / sent.deviation, true);
        // The first in flight holds up all behind it.
        if let Some((bytes, waited)) = self.path.next(now) {
            transfer.on_timeout(now, bytes, waited);
        }
    }

    fn estimate(&self) -> Option<LinkEstimate> {
        Some(self.estimates.transfer.estimate())
    }
}
