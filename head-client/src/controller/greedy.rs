//! The baseline of rate adaptation: the most accurate point that fits the smoothed throughput.

use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::{Bitrate, Timestamp};

use super::decision::{
    Choice, Controller, HeadDecision, HeadView, LinkEstimate, NetworkSample, NetworkTimeout,
    SendDecision, SendView, Sending,
};
use super::ladder::Ladder;
use super::run::Run;

/// Chooses the most accurate operating point whose bytes fit into the time left at the smoothed
/// throughput B: `x ≤ B · (time left − R₀)`.
///
/// A reply to `x` bytes after a time t in the network is the sample `x / max(t − R₀, 1 ms)`, with the
/// round trip R₀ that connecting showed, and `B ← 3/4 · B + 1/4 · sample`. (Over the whole time, small
/// frames would look slow and be all that fits.) A frame that was given up counts with the time it was
/// waited for.
///
/// This is the usual rate adaptation and the baseline: it knows no uncertainty, no next frame and
/// nothing about the picture, and never runs the full network on the device.
#[derive(Debug)]
pub struct Greedy {
    ladder: Arc<Ladder>,
    /// Bytes a second.
    throughput: Option<f64>,
    round_trip: Duration,
    device: Duration,
    sent_at: Timestamp,
}

/// Weight of the latest sample.
const GAIN: f64 = 0.25;

/// Less cannot be distinguished from jitter.
const LEAST_TIME: Duration = Duration::from_millis(1);

/// After so long without sending, a frame of the smallest point probes the link.
const RETRY: Duration = Duration::from_secs(1);

impl Greedy {
    /// A controller that knows nothing of the network yet, and starts with the smallest point.
    pub fn new(ladder: Arc<Ladder>) -> Self {
        let sent_at = Timestamp::ZERO;
        let (round_trip, device) = (Duration::ZERO, Duration::ZERO);
        Greedy { ladder, throughput: None, round_trip, device, sent_at }
    }

    fn fits(&self, bytes: f64, time: Duration) -> bool {
        let time = time.saturating_sub(self.round_trip).as_secs_f64();
        self.throughput.is_some_and(|throughput| bytes <= throughput * time)
    }

    /// The most accurate rung that fits `time`, or the smallest one.
    fn best(&self, time: Duration) -> usize {
        let rungs = self.ladder.planned().iter().map(|&at| (at, &self.ladder.rungs()[at]));
        let fitting = rungs.filter(|(_, rung)| rung.bytes > 0.0 && self.fits(rung.bytes, time));
        let quality = |rung: usize| self.ladder.quality(rung, None);
        let best = fitting.max_by(|a, b| quality(a.0).total_cmp(&quality(b.0)));
        let smallest = || self.ladder.rungs().iter().position(|rung| rung.bytes > 0.0).unwrap_or(0);
        best.map_or_else(smallest, |(at, _)| at)
    }

    fn learn(&mut self, bytes: usize, time: Duration) {
        let time = time.saturating_sub(self.round_trip).max(LEAST_TIME);
        let sample = bytes as f64 / time.as_secs_f64();
        self.throughput = Some(match self.throughput {
            None => sample,
            Some(before) => before + GAIN * (sample - before),
        });
    }
}

impl Controller for Greedy {
    fn on_link_up(&mut self, _now: Timestamp, round_trip: Option<Duration>) {
        self.throughput = None;
        self.round_trip = round_trip.unwrap_or_default();
    }

    fn decide_head(&mut self, _now: Timestamp, view: &HeadView) -> HeadDecision {
        let rung = self.best(view.time_left.saturating_sub(self.device));
        // Layers that will not be sent need not be coded.
        let run = self.ladder.rungs()[rung].run;
        HeadDecision { run: Some(run), reason: Choice::InTime }
    }

    fn on_run(&mut self, _now: Timestamp, _run: Run, took: Duration) {
        self.device = took;
    }

    fn decide_send(&mut self, now: Timestamp, view: &SendView<'_>) -> SendDecision {
        let probe = now.saturating_since(self.sent_at) >= RETRY || self.throughput.is_none();
        let coded = view.layer_ends.len();
        let known = self.ladder.sendable(view.run, view.layer_ends);
        let known = known.map(|(_, layers, bytes)| (layers, bytes));
        let mut known: Vec<_> = known.filter(|it| usize::from(it.0) <= coded).collect();
        known.sort_unstable();
        let smallest = known.first().map_or(1, |&(layers, _)| layers);
        let fitting =
            known.into_iter().rfind(|&(_, bytes)| self.fits(bytes as f64, view.time_left));
        let (sending, reason) = match fitting {
            Some((layers, _)) => (Sending::Layers(layers), Choice::InTime),
            None if probe => (Sending::Layers(smallest), Choice::Probe),
            None => (Sending::Exit, Choice::TooSlow),
        };
        if sending != Sending::Exit {
            self.sent_at = now;
        }
        SendDecision { sending, reason }
    }

    fn on_reply(&mut self, _now: Timestamp, sample: &NetworkSample) {
        self.learn(sample.bytes, sample.network);
    }

    fn on_timeout(&mut self, _now: Timestamp, timeout: &NetworkTimeout) {
        self.learn(timeout.bytes, timeout.waited);
    }

    fn estimate(&self) -> Option<LinkEstimate> {
        let rate = Bitrate::from_bps((8.0 * self.throughput?) as u64);
        Some(LinkEstimate { rate, round_trip: self.round_trip })
    }
}

#[cfg(test)]
mod tests {
    use isthmus_proto::FrameId;

    use super::super::ladder::tests::ladder;
    use super::*;
    use crate::controller::LinkView;

    #[test]
    fn small_frames_do_not_look_slow() {
        let ms = Duration::from_millis;
        let mut greedy = Greedy::new(Arc::new(ladder()));
        greedy.on_link_up(Timestamp::ZERO, Some(ms(40)));
        let (time_left, link) = (ms(65), LinkView { up: true, ..LinkView::default() });
        let mut sent = Vec::new();
        for frame in 0..12 {
            let now = Timestamp::from_micros(frame * 100_000);
            let head = greedy.decide_head(now, &HeadView { time_left, link });
            let run = head.run.expect("something is always run");
            let frame = FrameId(frame);
            let layer_ends = &[300, 600, 1_200, 2_400];
            let exit_confidence = None;
            let view = SendView { frame, run, exit_confidence, layer_ends, time_left, link };
            let Sending::Layers(layers) = greedy.decide_send(now, &view).sending else { continue };
            let bytes = layer_ends[usize::from(layers) - 1];
            // 1 Mbit/s and 2 ms of jitter behind a round trip of 40 ms.
            let network = ms(42) + Duration::from_micros(8 * bytes as u64);
            let (receive_span, server, refused) = (Duration::ZERO, Duration::ZERO, false);
            let sample = NetworkSample { frame, bytes, network, receive_span, server, refused };
            greedy.on_reply(now + network, &sample);
            sent.push(layers);
        }
        assert_eq!((sent[0], sent[11]), (1, 4), "{sent:?}");
    }
}
