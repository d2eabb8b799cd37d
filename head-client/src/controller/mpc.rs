//! The best plan for this frame and the next few, by a prediction that knows its uncertainty.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::{FrameId, Timestamp};

use super::{
    Conformal, Controller, HeadDecision, HeadRun, HeadView, Ladder, NetworkSample, NetworkTimeout,
    SendDecision, SendView, Sending, TransferTime, Work,
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
}

impl Default for MpcConfig {
    fn default() -> Self {
        MpcConfig { target_miss: 0.01, horizon: 4, interval: None }
    }
}

/// Model-predictive control over a short horizon, robust by a conformal margin.
///
/// A choice is feasible if waiting behind one's own earlier frames, the predicted time in the
/// network ([`TransferTime`]) with the margin that experience asks for ([`Conformal`]), and the
/// server's time fit into the time left. Among the feasible, the plan for this frame and the next
/// few with the greatest expected accuracy wins, where what an answer is worth depends on how
/// unsure the exit is about this very frame ([`Ladder`]), and bytes sent now delay the frames to
/// come. If nothing is feasible the exit answers, and once in a while a small frame asks whether
/// things have changed.
#[derive(Debug)]
pub struct Mpc {
    config: MpcConfig,
    ladder: Arc<Ladder>,
    transfer: TransferTime,
    conformal: Conformal,
    server: Smoothed,
    /// From the decision before the head to the one after it, by split, width and bits.
    device: BTreeMap<(u8, u8, u8), Smoothed>,
    started: Option<(Timestamp, HeadRun)>,
    interval: Smoothed,
    /// The most time left that a frame had: what the frames to come will have.
    full: Duration,
    sent: VecDeque<Sent>,
    /// When the way will be free of what was sent.
    clear_at: Timestamp,
    sent_at: Timestamp,
    retry: Duration,
    last: Option<usize>,
}

/// A frame that was sent, and what was expected of it.
#[derive(Clone, Copy, Debug)]
struct Sent {
    frame: FrameId,
    /// Behind one's own earlier frames (ms).
    wait: f64,
    mean: f64,
    deviation: f64,
    /// Whether it was expected in time: a question's end says nothing about the margin.
    in_time: bool,
}

/// What one rung costs, in ms.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    /// Network with margin, and server.
    safe: f64,
    /// The way is busy with it.
    busy: f64,
    /// Device, seldom exceeded, and in the mean.
    device: f64,
    pace: f64,
}

/// A change of operating point must gain so much accuracy: what it costs to be wrong twice.
const SWITCH: f64 = 0.002;

/// First and longest pause between questions whether the network has become faster.
const FIRST_RETRY: Duration = Duration::from_millis(250);
const LONGEST_RETRY: Duration = Duration::from_secs(1);

/// Frames remembered while they are on their way.
const REMEMBERED: usize = 64;

impl Mpc {
    /// A controller that knows nothing of the network yet. Values of `config` outside their ranges
    /// count as the nearest one inside.
    pub fn new(config: MpcConfig, ladder: Arc<Ladder>) -> Self {
        let MpcConfig { target_miss, horizon, interval } = config;
        let (target_miss, horizon) = (target_miss.clamp(0.001, 0.5), horizon.clamp(1, 16));
        Mpc {
            config: MpcConfig { target_miss, horizon, interval },
            ladder,
            transfer: TransferTime::new(None),
            conformal: Conformal::new(target_miss),
            server: Smoothed::default(),
            device: BTreeMap::new(),
            started: None,
            interval: Smoothed::default(),
            full: Duration::ZERO,
            sent: VecDeque::with_capacity(REMEMBERED),
            clear_at: Timestamp::ZERO,
            sent_at: Timestamp::ZERO,
            retry: FIRST_RETRY,
            last: None,
        }
    }

    /// What each rung costs now.
    fn costs(&self, now: Timestamp) -> Vec<Cost> {
        let cost = |(rung, bytes): (usize, usize)| {
            let HeadRun { split, width, bits, .. } = self.ladder.run_of(rung);
            let device = self.device.get(&(split, width, bits)).copied().unwrap_or_default();
            Cost {
                safe: self.safe(now, bytes),
                busy: ms(self.transfer.serialisation(bytes)),
                device: device.upper(),
                pace: device.mean.unwrap_or(0.0).max(1e-3),
            }
        };
        let sizes = self.ladder.rungs().iter().map(|rung| rung.bytes.ceil() as usize);
        sizes.enumerate().map(cost).collect()
    }

    /// Time in the network and on the server that a frame of `bytes` exceeds as seldom as asked.
    fn safe(&self, now: Timestamp, bytes: usize) -> f64 {
        let prediction = self.transfer.predict(now, bytes);
        let network = ms(prediction.mean) + self.conformal.margin() * ms(prediction.deviation);
        network + self.server.upper()
    }

    fn interval(&self) -> f64 {
        self.config.interval.map_or_else(|| self.interval.mean.unwrap_or(100.0), ms)
    }

    /// Expected accuracy of `frames` frames that all follow `rung`, the first of which finds the
    /// way busy for `wait` and has `budget` for network and server.
    fn plan(&self, rung: usize, cost: Cost, mut wait: f64, budget: f64, frames: usize) -> f64 {
        let (accuracy, sent) = self.ladder.policy(rung);
        let exit = self.ladder.exit_accuracy(rung, None);
        let interval = self.interval();
        let later = ms(self.full) - cost.device;
        // A device that takes longer than the frames' interval skips frames.
        let kept = (interval / cost.pace).min(1.0);
        let mut value = 0.0;
        for frame in 0..frames {
            let budget = if frame == 0 { budget } else { later };
            let in_time = wait + cost.safe <= budget;
            value += kept * if in_time { accuracy } else { exit };
            let busy = if in_time { sent * cost.busy } else { 0.0 };
            wait = (wait + busy - interval).max(0.0);
        }
        value
    }

    /// What the frames after this one can expect if the next one finds the way busy for `wait`.
    fn future(&self, costs: &[Cost], wait: f64) -> f64 {
        let frames = self.config.horizon - 1;
        let later = |cost: &Cost| ms(self.full) - cost.device;
        let plans = costs.iter().enumerate();
        plans.map(|(at, cost)| self.plan(at, *cost, wait, later(cost), frames)).fold(0.0, f64::max)
    }

    fn wait(&self, at: Timestamp) -> f64 {
        ms(self.clear_at.saturating_since(at))
    }

    fn take_sent(&mut self, frame: FrameId) -> Option<Sent> {
        let at = self.sent.iter().position(|sent| sent.frame == frame)?;
        let sent = self.sent.remove(at);
        // Frames leave in order: those before it have left the way too, answered or not.
        self.sent.drain(..at);
        sent
    }

    fn note_send(&mut self, now: Timestamp, frame: FrameId, bytes: usize, in_time: bool) {
        let wait = self.wait(now);
        let prediction = self.transfer.predict(now, bytes);
        if self.sent.len() == REMEMBERED {
            self.sent.pop_front();
        }
        let (mean, deviation) = (ms(prediction.mean), ms(prediction.deviation).max(0.1));
        self.sent.push_back(Sent { frame, wait, mean, deviation, in_time });
        self.clear_at = self.clear_at.max(now) + self.transfer.serialisation(bytes);
        self.sent_at = now;
    }
}

impl Controller for Mpc {
    fn on_link_up(&mut self, now: Timestamp, round_trip: Option<Duration>) {
        self.transfer = TransferTime::new(round_trip);
        self.conformal = Conformal::new(self.config.target_miss);
        self.sent.clear();
        self.clear_at = now;
        self.retry = FIRST_RETRY;
    }

    fn decide_head(&mut self, now: Timestamp, view: &HeadView) -> HeadDecision {
        if let Some((before, _)) = self.started {
            self.interval.update(ms(now.saturating_since(before)));
        }
        self.full = self.full.max(view.time_left);
        let costs = self.costs(now);
        let value = |rung: usize| {
            let cost = costs[rung];
            let budget = ms(view.time_left) - cost.device;
            let wait = (self.wait(now) - cost.device).max(0.0);
            let value = self.plan(rung, cost, wait, budget, self.config.horizon);
            let run = self.ladder.run_of(rung);
            let same = self.started.is_none_or(|(_, before)| before == run);
            // Of plans of equal worth the one that asks least of the device.
            value - if same { 0.0 } else { SWITCH } - cost.device * 1e-9
        };
        let rungs = 0..self.ladder.rungs().len();
        let best = rungs.max_by(|&a, &b| value(a).total_cmp(&value(b))).unwrap_or(0);
        let run = self.ladder.run_of(best);
        let in_time = self.wait(now) + costs[best].safe <= ms(view.time_left);
        let reason = if in_time && view.link.up { Choice::InTime } else { Choice::TooSlow };
        self.started = Some((now, run));
        HeadDecision { work: Work::Head(run), reason }
    }

    fn decide_send(&mut self, now: Timestamp, view: &SendView<'_>) -> SendDecision {
        if let Some((started, run)) = self.started {
            let took = ms(now.saturating_since(started));
            self.device.entry((run.split, run.width, run.bits)).or_default().update(took);
        }
        if view.link.in_flight == 0 {
            self.clear_at = self.clear_at.min(now);
        }
        let costs = self.costs(now);
        let (wait, budget, interval) = (self.wait(now), ms(view.time_left), self.interval());
        let HeadRun { split, width, bits, .. } = view.run;
        let of_run = |rung: &usize| {
            let point = self.ladder.rungs()[*rung].point;
            (point.split, point.width, point.bits) == (split, width, bits)
        };
        let rungs: Vec<usize> = (0..costs.len()).filter(of_run).collect();
        let size = |rung: usize| {
            let layers = usize::from(self.ladder.rungs()[rung].point.layers);
            view.layer_ends.get(layers - 1).or(view.layer_ends.last()).copied().unwrap_or(0)
        };
        // Without an exit there is nothing to fall back to.
        let exit = match (view.exit_confidence, rungs.first()) {
            (None, _) | (_, None) => 0.0,
            (confidence, Some(&rung)) => self.ladder.exit_accuracy(rung, confidence),
        };
        let (mut best, mut feasible, mut worth) = (None, false, false);
        let mut best_value = exit + self.future(&costs, (wait - interval).max(0.0));
        for &rung in &rungs {
            let bytes = size(rung);
            if wait + self.safe(now, bytes) > budget {
                continue;
            }
            feasible = true;
            let accuracy = self.ladder.accuracy(rung, view.exit_confidence);
            if !Ladder::is_worth(accuracy - exit) {
                continue;
            }
            worth = true;
            let busy = ms(self.transfer.serialisation(bytes));
            let future = self.future(&costs, (wait + busy - interval).max(0.0));
            let switch = if self.last.is_none_or(|last| last == rung) { 0.0 } else { SWITCH };
            let value = accuracy + future - switch;
            if value > best_value {
                (best, best_value) = (Some(rung), value);
            }
        }
        let smallest = rungs.iter().copied().min_by_key(|&rung| size(rung));
        let ask = now.saturating_since(self.sent_at) >= self.retry && wait == 0.0;
        let (rung, reason) = match (best, smallest) {
            (Some(rung), _) => (Some(rung), Choice::InTime),
            (None, Some(smallest)) if !feasible && ask => {
                self.retry = (self.retry * 2).min(LONGEST_RETRY);
                (Some(smallest), Choice::Probe)
            }
            (None, _) if !feasible => (None, Choice::TooSlow),
            (None, _) if worth => (None, Choice::Spared),
            (None, _) => (None, Choice::ExitSuffices),
        };
        let Some(rung) = rung else { return SendDecision { sending: Sending::Exit, reason } };
        let in_time = reason == Choice::InTime;
        self.note_send(now, view.frame, size(rung), in_time);
        if in_time {
            self.last = Some(rung);
        }
        SendDecision { sending: Sending::Layers(self.ladder.rungs()[rung].point.layers), reason }
    }

    fn on_reply(&mut self, now: Timestamp, sample: &NetworkSample) {
        let Some(sent) = self.take_sent(sample.frame) else { return };
        let network = ms(sample.network);
        match sent.in_time {
            true => {
                let score = (network - sent.wait - sent.mean) / sent.deviation;
                self.conformal.on_score(score, false);
            }
            false => self.conformal.on_unexpected(),
        }
        let own = Duration::from_secs_f64((network - sent.wait).max(0.0) / 1e3);
        self.transfer.on_sample(now, sample.bytes, own);
        self.transfer.on_dispersion(now, sample.bytes, sample.receive_span);
        self.server.update(ms(sample.server));
        if self.sent.is_empty() {
            self.clear_at = self.clear_at.min(now);
        }
        self.retry = FIRST_RETRY;
    }

    fn on_timeout(&mut self, now: Timestamp, timeout: &NetworkTimeout) {
        let Some(sent) = self.take_sent(timeout.frame) else { return };
        let waited = ms(timeout.waited);
        if sent.in_time {
            let score = (waited - sent.wait - sent.mean) / sent.deviation;
            self.conformal.on_score(score, true);
        }
        let own = Duration::from_secs_f64((waited - sent.wait).max(0.0) / 1e3);
        self.transfer.on_timeout(now, timeout.bytes, own);
    }
}

/// A mean and a deviation, smoothed as RFC 6298 smooths round trips.
#[derive(Clone, Copy, Debug, Default)]
struct Smoothed {
    mean: Option<f64>,
    deviation: f64,
}

impl Smoothed {
    fn update(&mut self, sample: f64) {
        let (mean, deviation) = match self.mean {
            None => (sample, sample / 8.0),
            Some(mean) => (
                mean + (sample - mean) / 8.0,
                self.deviation + ((sample - mean).abs() - self.deviation) / 4.0,
            ),
        };
        (self.mean, self.deviation) = (Some(mean), deviation);
    }

    /// Seldom exceeded; 0 before the first sample.
    fn upper(&self) -> f64 {
        self.mean.map_or(0.0, |mean| mean + 3.0 * self.deviation)
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

#[cfg(test)]
mod tests {
    use super::super::ladder::tests::ladder;
    use super::*;
    use crate::controller::LinkView;

    const ENDS: [usize; 4] = [300, 600, 1_200, 2_400];
    const UNSURE: f32 = 0.2;
    const SURE: f32 = 0.95;

    /// A network of one rate without jitter in front of an [`Mpc`].
    struct Loop {
        mpc: Mpc,
        now: Timestamp,
        frame: u64,
        kbits: f64,
    }

    impl Loop {
        fn new(kbits: f64) -> Self {
            let mut mpc = Mpc::new(MpcConfig::default(), Arc::new(ladder()));
            mpc.on_link_up(Timestamp::ZERO, Some(Duration::from_millis(40)));
            Loop { mpc, now: Timestamp::ZERO, frame: 0, kbits }
        }

        /// One frame every 100 ms with a deadline of 150 ms and a head of 10 ms.
        fn step(&mut self, confidence: f32) -> SendDecision {
            let ms = Duration::from_millis;
            let frame = FrameId(self.frame);
            self.frame += 1;
            let start = Timestamp::from_micros(self.frame * 100_000);
            let link = LinkView { up: true, ..LinkView::default() };
            let head = self.mpc.decide_head(start, &HeadView { time_left: ms(150), link });
            let Work::Head(run) = head.work else { panic!("a head is always run") };
            let now = start + ms(10);
            let view = SendView {
                frame,
                run,
                exit_confidence: Some(confidence),
                layer_ends: &ENDS,
                time_left: ms(140),
                link,
            };
            let decision = self.mpc.decide_send(now, &view);
            if let Sending::Layers(layers) = decision.sending {
                let bytes = ENDS[usize::from(layers) - 1];
                let network =
                    Duration::from_secs_f64((40.0 + bytes as f64 * 8.0 / self.kbits) / 1e3);
                let server = ms(5);
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
            Sending::Exit => 0,
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
    fn after_a_fall_to_a_tenth_the_second_decision_is_in_time_again() {
        let mut network = Loop::new(1_000.0);
        assert_eq!(layers(network.steps(60)[59]), 4);
        network.kbits = 100.0;
        // The first frame after it pays; its timeout shows at least how slow the network is, and the
        // next one may find that it is slower still.
        network.steps(2);
        for _ in 0..30 {
            let sent = layers(network.step(UNSURE));
            assert!(sent <= 2, "1,200 bytes would take 141 ms: {sent} layers");
        }
    }

    #[test]
    fn after_a_rise_the_best_point_is_back_within_two_seconds() {
        let mut network = Loop::new(150.0);
        assert_eq!(layers(network.steps(60)[59]), 3);
        network.kbits = 2_000.0;
        assert_eq!(layers(network.steps(20)[19]), 4);
    }

    #[test]
    fn in_an_outage_it_asks_seldom_and_comes_back_within_two_seconds() {
        let mut network = Loop::new(1_000.0);
        network.steps(60);
        network.kbits = 0.001;
        let sent = network.steps(100).iter().filter(|decision| layers(**decision) > 0).count();
        assert!((8..=16).contains(&sent), "about one a second of ten: {sent}");
        network.kbits = 1_000.0;
        assert_eq!(layers(network.steps(20)[19]), 4);
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
