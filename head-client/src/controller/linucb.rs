//! A contextual bandit that corrects the prediction by how wrong it was.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::{FrameId, Timestamp};

use super::decision::{
    Choice, Controller, HeadDecision, HeadView, LinkEstimate, NetworkSample, NetworkTimeout,
    SendDecision, SendView, Sending,
};
use super::ladder::Ladder;
use super::path::{Delivery, PathModel, Probe, Sent};
use super::run::{Load, Run};
use super::statistics::{Smoothed, ms, normal_cdf};
use super::transfer::{Prediction, TransferTime};

/// Features of a choice: a constant, the time to spare and the wait behind one's own frames.
const FEATURES: usize = 3;
type Features = [f64; FEATURES];

/// α: width of the confidence bound (standard deviations).
const OPTIMISM: f64 = 0.3;

/// γ: weight of the past with every frame, because links change.
const MEMORY: f64 = 0.98;

/// Cost of a late frame beyond its lost gain, as a fraction of that gain.
const MISS_PENALTY: f64 = 0.3;

/// After so long without sending, a probe finds out whether the link has changed.
const RETRY: Duration = Duration::from_millis(500);

/// LinUCB with a linear model for each rung (Li, Chu, Langford and Schapire 2010, algorithm 1). It
/// models a residual: how much likelier a frame is in time than predicted.
///
/// The prediction is `p = Φ(spare / σ)`, where `spare` is the time left less wait and mean transfer
/// time ([`TransferTime`]). The features are `φ = (1, spare / D, wait / D)` with the deadline D. A ridge
/// regression `A = γ · A + φφᵀ`, `s = γ · s + φ · (in time − p)` gives the upper confidence bound
///
/// `u = clamp(p + φᵀA⁻¹s + α · √(φᵀA⁻¹φ), 0, 1)`,
///
/// and the rung with the greatest gain `u · g − (1 − u) · 0.3 · g` over the exit's quality wins, where
/// g is what its answer gains in time.
///
/// It plans for no frame but this one, and learns about a rung only by sending it: the comparison for a
/// model-predictive controller.
#[derive(Debug)]
pub struct LinUcb {
    ladder: Arc<Ladder>,
    transfer: TransferTime,
    path: PathModel,
    server: Smoothed,
    device: BTreeMap<Load, Smoothed>,
    /// The models, by rung.
    residuals: Vec<Residual>,
    /// Frames in flight: the rung, its features and the predicted probability to be in time.
    sent: BTreeMap<FrameId, (usize, Features, f64)>,
    /// D: the most time left that a frame had.
    deadline: Duration,
    /// When a frame or a probe was last sent.
    sent_at: Timestamp,
}

/// A ridge regression that forgets: A⁻¹, and the weighted sum s of the observations.
#[derive(Clone, Copy, Debug)]
struct Residual {
    inverse: [Features; FEATURES],
    sum: Features,
}

impl Residual {
    fn new() -> Self {
        let mut inverse = [[0.0; FEATURES]; FEATURES];
        (0..FEATURES).for_each(|at| inverse[at][at] = 1.0);
        Residual { inverse, sum: [0.0; FEATURES] }
    }

    /// The mean at `features`, and its standard deviation for noise of 1.
    fn predict(&self, features: &Features) -> (f64, f64) {
        let by = self.times(features);
        (dot(&by, &self.sum), dot(&by, features).max(0.0).sqrt())
    }

    /// Takes in the observation `observed` at `features`: the past counts for less, and A⁻¹ has a rank-one
    /// update (Sherman and Morrison 1950). In directions that are never observed it forgets no further
    /// than to where it began.
    fn learn(&mut self, features: &Features, observed: f64) {
        for row in 0..FEATURES {
            for column in 0..FEATURES {
                self.inverse[row][column] /= MEMORY;
            }
            self.inverse[row][row] = self.inverse[row][row].min(1.0);
            self.sum[row] *= MEMORY;
        }
        let by = self.times(features);
        let scale = 1.0 + dot(&by, features);
        for row in 0..FEATURES {
            for column in 0..FEATURES {
                self.inverse[row][column] -= by[row] * by[column] / scale;
            }
            self.sum[row] += observed * features[row];
        }
    }

    fn times(&self, features: &Features) -> Features {
        self.inverse.map(|row| dot(&row, features))
    }
}

fn dot(a: &Features, b: &Features) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The probability that a frame is in time.
struct InTime {
    features: Features,
    /// p.
    predicted: f64,
    /// u.
    upper: f64,
}

impl LinUcb {
    /// A controller that knows nothing of the network yet.
    pub fn new(ladder: Arc<Ladder>) -> Self {
        LinUcb {
            residuals: vec![Residual::new(); ladder.rungs().len()],
            ladder,
            transfer: TransferTime::new(None),
            path: PathModel::new(Timestamp::ZERO, None),
            server: Smoothed::default(),
            device: BTreeMap::new(),
            sent: BTreeMap::new(),
            deadline: Duration::ZERO,
            sent_at: Timestamp::ZERO,
        }
    }

    /// For `bytes` of a rung that leave the device with `budget` (ms) left.
    fn in_time(&self, now: Timestamp, rung: usize, bytes: usize, budget: f64) -> InTime {
        let (mean, deviation) = self.predict(now, bytes);
        let wait = self.path.wait(now, &self.transfer, self.server.mean.unwrap_or(0.0));
        let (spare, deadline) = (budget - wait - mean, ms(self.deadline).max(1.0));
        let features = [1.0, (spare / deadline).clamp(-1.0, 1.0), (wait / deadline).min(1.0)];
        let predicted = normal_cdf(spare / deviation);
        let (residual, deviation) = self.residuals[rung].predict(&features);
        let upper = (predicted + residual + OPTIMISM * deviation).clamp(0.0, 1.0);
        InTime { features, predicted, upper }
    }

    /// Mean and standard deviation of the time in the network and on the server (ms).
    fn predict(&self, now: Timestamp, bytes: usize) -> (f64, f64) {
        let Prediction { mean, deviation } = self.transfer.predict(now, bytes);
        let mean = ms(mean) + self.server.mean.unwrap_or(0.0);
        (mean, ms(deviation).hypot(self.server.standard_deviation()).max(1.0))
    }

    /// Gain of a rung over the exit if it is in time with this probability.
    fn gain(quality: f64, exit: f64, in_time: f64) -> f64 {
        in_time * (quality - exit) - (1.0 - in_time) * MISS_PENALTY * (quality - exit).max(0.0)
    }

    fn note(&mut self, now: Timestamp, frame: FrameId, bytes: usize, probe: Option<Probe>) {
        let wait = self.path.wait(now, &self.transfer, self.server.mean.unwrap_or(0.0));
        let (mean, deviation) = self.predict(now, bytes);
        self.path.send(Sent { frame, at: now, bytes, wait, mean, deviation, probe });
    }

    fn learn(&mut self, frame: FrameId, in_time: bool) {
        if let Some((rung, features, predicted)) = self.sent.remove(&frame) {
            self.residuals[rung].learn(&features, f64::from(u8::from(in_time)) - predicted);
        }
    }
}

impl Controller for LinUcb {
    fn on_link_up(&mut self, now: Timestamp, round_trip: Option<Duration>) {
        *self = LinUcb {
            transfer: TransferTime::new(round_trip),
            path: PathModel::new(now, round_trip),
            device: std::mem::take(&mut self.device),
            deadline: self.deadline,
            sent_at: now,
            ..LinUcb::new(Arc::clone(&self.ladder))
        };
    }

    fn decide_head(&mut self, now: Timestamp, view: &HeadView) -> HeadDecision {
        self.deadline = self.deadline.max(view.time_left);
        let time_left = ms(view.time_left);
        // An untried run counts as taking no time, so that it is tried; but not the full network,
        // which would keep the device for long.
        let device = |run: Run| match self.device.get(&run.load()).and_then(|known| known.mean) {
            Some(mean) => mean,
            None if run == Run::Local => f64::INFINITY,
            None => 0.0,
        };
        let value = |&rung: &usize| {
            let known = &self.ladder.rungs()[rung];
            let budget = time_left - device(known.run);
            if budget <= 0.0 {
                return 0.0;
            }
            let exit = self.ladder.exit_quality(rung, None);
            if known.bytes == 0.0 {
                return exit;
            }
            let in_time = self.in_time(now, rung, known.bytes.ceil() as usize, budget);
            exit + Self::gain(self.ladder.policy(rung, 0.0).0, exit, in_time.upper).max(0.0)
        };
        let planned = self.ladder.planned();
        let values: Vec<f64> = planned.iter().map(value).collect();
        let best = (0..planned.len()).max_by(|&a, &b| values[a].total_cmp(&values[b]));
        let rung = planned[best.unwrap_or(0)];
        HeadDecision { run: Some(self.ladder.run_of(rung)), reason: Choice::InTime }
    }

    fn on_run(&mut self, _now: Timestamp, run: Run, took: Duration) {
        self.device.entry(run.load()).or_default().update(ms(took));
    }

    fn decide_send(&mut self, now: Timestamp, view: &SendView<'_>) -> SendDecision {
        let budget = ms(view.time_left);
        let (mut best, mut best_gain, mut is_worth) = (None, 0.0, false);
        let mut smallest: Option<usize> = None;
        for (rung, layers, bytes) in self.ladder.sendable(view.run, view.layer_ends) {
            smallest = Some(smallest.map_or(bytes, |least| least.min(bytes)));
            let quality = self.ladder.quality(rung, view.exit_confidence);
            let exit = match view.exit_confidence {
                Some(_) => self.ladder.exit_quality(rung, view.exit_confidence),
                None => 0.0,
            };
            if !Ladder::is_worth(quality - exit) {
                continue;
            }
            is_worth = true;
            let in_time = self.in_time(now, rung, bytes, budget);
            let gain = Self::gain(quality, exit, in_time.upper);
            if gain > best_gain {
                (best, best_gain) = (Some((rung, layers, bytes, in_time)), gain);
            }
        }
        let Some((rung, layers, bytes, in_time)) = best else {
            let is_due = now.saturating_since(self.sent_at) >= RETRY && !self.path.is_probed();
            let (sending, reason) = match smallest {
                Some(bytes) if is_worth && is_due => {
                    self.sent_at = now;
                    self.note(now, view.frame, bytes, Some(Probe::Liveness));
                    (Sending::Probe(bytes), Choice::Probe)
                }
                _ if is_worth => (Sending::Exit, Choice::TooSlow),
                _ => (Sending::Exit, Choice::ExitSuffices),
            };
            return SendDecision { sending, reason };
        };
        self.note(now, view.frame, bytes, None);
        self.sent.insert(view.frame, (rung, in_time.features, in_time.predicted));
        self.sent_at = now;
        SendDecision { sending: Sending::Layers(layers), reason: Choice::InTime }
    }

    fn on_reply(&mut self, now: Timestamp, sample: &NetworkSample) {
        let NetworkSample { frame, bytes, network, receive_span, server, refused } = *sample;
        self.learn(frame, !refused);
        let Some(Delivery { sent, own, is_upper_bound }) = self.path.on_reply(frame, network)
        else {
            return;
        };
        if sent.probe.is_none() {
            self.server.update(ms(server));
        }
        if !is_upper_bound || own < self.transfer.predict(now, bytes).mean {
            self.transfer.on_sample(now, bytes, own);
        }
        self.transfer.on_dispersion(now, bytes, receive_span);
    }

    fn on_timeout(&mut self, now: Timestamp, timeout: &NetworkTimeout) {
        self.learn(timeout.frame, false);
        let Some(sent) = self.path.give_up(timeout.frame) else { return };
        if sent.probe.is_some() {
            return;
        }
        if let Some((bytes, waited)) = self.path.next(now) {
            self.transfer.on_timeout(now, bytes, waited);
        }
    }

    fn estimate(&self) -> Option<LinkEstimate> {
        Some(self.transfer.estimate())
    }
}

#[cfg(test)]
mod tests {
    use super::super::ladder::tests::ladder;
    use super::*;
    use crate::controller::LinkView;

    #[test]
    fn a_regression_finds_a_line_and_forgets_it() {
        let mut residual = Residual::new();
        let features = |at: u32| [1.0, f64::from(at % 10) / 10.0, 0.0];
        let line = |features: &Features| 0.2 - 0.5 * features[1];
        for at in 0..400 {
            residual.learn(&features(at), line(&features(at)));
        }
        let (mean, deviation) = residual.predict(&[1.0, 0.4, 0.0]);
        assert!(mean.abs() < 0.02 && deviation < 0.3, "{mean} {deviation}");
        let (_, untried) = residual.predict(&[1.0, 0.4, 1.0]);
        assert!(
            (0.9..=1.1).contains(&untried),
            "a direction without data is as uncertain as ever: {untried}"
        );
        for at in 0..400 {
            residual.learn(&features(at), -line(&features(at)));
        }
        let (mean, _) = residual.predict(&[1.0, 0.0, 0.0]);
        assert!((mean + 0.2).abs() < 0.03, "{mean}");
    }

    /// Sixty frames, one every 100 ms with a deadline of 150 ms and a head of 10 ms, over a network of
    /// 40 ms and one rate on which the frames of `slow` bytes and more take 60 ms longer than that.
    fn sent(kbits: f64, slow: usize) -> Vec<u8> {
        let ms = Duration::from_millis;
        let mut controller = LinUcb::new(Arc::new(ladder()));
        controller.on_link_up(Timestamp::ZERO, Some(ms(40)));
        let link = LinkView { up: true, ..LinkView::default() };
        let mut sent = Vec::new();
        for frame in 0..60 {
            let start = Timestamp::from_micros(frame * 100_000);
            let head = controller.decide_head(start, &HeadView { time_left: ms(150), link });
            let run = head.run.expect("something is always run");
            let now = start + ms(10);
            controller.on_run(now, run, ms(10));
            let layer_ends = &[300, 600, 1_200, 2_400];
            let (frame, exit_confidence) = (FrameId(frame), Some(0.2));
            let time_left = ms(140);
            let view = SendView { frame, run, exit_confidence, layer_ends, time_left, link };
            let (bytes, layers) = match controller.decide_send(now, &view).sending {
                Sending::Layers(layers) => (layer_ends[usize::from(layers) - 1], layers),
                Sending::Probe(bytes) => (bytes, 0),
                Sending::Exit => {
                    sent.push(0);
                    continue;
                }
            };
            sent.push(layers);
            let late = if bytes >= slow { 60.0 } else { 0.0 };
            let took = 40.0 + late + bytes as f64 * 8.0 / kbits;
            let network = Duration::from_secs_f64(took / 1e3);
            if network <= time_left {
                let (receive_span, server, refused) = (Duration::ZERO, Duration::ZERO, false);
                let sample = NetworkSample { frame, bytes, network, receive_span, server, refused };
                controller.on_reply(now + network, &sample);
            } else {
                let timeout = NetworkTimeout { frame, bytes, waited: time_left };
                controller.on_timeout(now + time_left, &timeout);
            }
        }
        sent
    }

    #[test]
    fn it_sends_what_fits() {
        let fraction = |sent: &[u8], layers: &[u8]| {
            let late = &sent[30..];
            late.iter().filter(|it| layers.contains(it)).count() as f64 / late.len() as f64
        };
        let fast = sent(2_000.0, usize::MAX);
        assert!(fraction(&fast, &[4]) > 0.9, "{fast:?}");
        // 1,200 bytes take 136 ms of 140, and 2,400 far too long.
        let slow = sent(60.0, usize::MAX);
        assert!(fraction(&slow, &[1, 2]) > 0.7, "{slow:?}");
    }

    #[test]
    fn frames_that_are_late_against_all_prediction_are_learnt_from() {
        // 2,400 bytes would take 120 ms of 140, and take 180.
        let sent = sent(240.0, 2_000);
        let late = sent[30..].iter().filter(|&&layers| layers == 4).count();
        assert!(late <= 6, "{sent:?}");
    }
}
