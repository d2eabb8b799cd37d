//! The path to the server as a queue: the frames in flight, and when the bottleneck has drained.

use std::collections::VecDeque;
use std::time::Duration;

use isthmus_proto::{FrameId, Timestamp};

use super::statistics::ms;
use super::transfer::TransferTime;

/// A frame or probe in flight, with the prediction that was made when it was sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) frame: FrameId,
    pub(super) at: Timestamp,
    pub(super) bytes: usize,
    /// Predicted wait behind earlier frames of this device (ms).
    pub(super) wait: f64,
    /// Predicted time in the network and on the server (ms), and its standard deviation.
    pub(super) mean: f64,
    pub(super) deviation: f64,
    /// `None` for a frame.
    pub(super) probe: Option<Probe>,
}

/// What a probe is sent to find out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Probe {
    /// Whether anything comes through in time: the network may be away, or too slow.
    Liveness,
    /// Whether a frame as large as this would: larger than any delivered of late.
    Size,
}

/// What a reply shows of the path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Delivery {
    pub(super) sent: Sent,
    /// The transfer's own time: from when the path was free of earlier frames until the reply, less
    /// the server's time.
    pub(super) own: Duration,
    /// Whether `own` is only an upper bound: when the path became free is not known, because an
    /// earlier frame had no reply.
    pub(super) is_upper_bound: bool,
}

/// A model of the path: frames pass its bottleneck one after another, in the order in which they were
/// sent.
///
/// A reply shows when its frame had passed, and that all before it have. A frame that was given up may
/// still lie in a queue, and counts as in flight until the reply to a later one. With the
/// serialisation time s(x) of `x` bytes ([`TransferTime`]), frame i sent at tᵢ has passed at
///
/// `fᵢ = max(fᵢ₋₁, tᵢ) + s(xᵢ)`,
///
/// as in Lindley's recursion for a queue with one server (1952), and what is sent now waits for
/// `max(0, fₙ − now)`.
#[derive(Clone, Debug)]
pub(super) struct PathModel {
    /// The shortest time that a frame has spent outside the server.
    base: Option<Duration>,
    /// When the last frame with a reply had passed the bottleneck.
    free_at: Timestamp,
    in_flight: VecDeque<Sent>,
}

/// Frames remembered at most while they are in flight.
const REMEMBERED: usize = 64;

/// How many times as long as a reply is overdue its frame is expected to stay for. Stalls are
/// heavy-tailed: the longer one has lasted, the longer it will.
const OVERDUE: f64 = 4.0;

impl PathModel {
    /// A free path, over which connecting took `round_trip`.
    pub(super) fn new(now: Timestamp, round_trip: Option<Duration>) -> Self {
        let in_flight = VecDeque::with_capacity(REMEMBERED);
        PathModel { base: round_trip, free_at: now, in_flight }
    }

    /// How long a frame sent at `now` waits behind those in flight (ms), at the rate of `transfer` and
    /// with a server that takes `server` (ms).
    pub(super) fn wait(&self, now: Timestamp, transfer: &TransferTime, server: f64) -> f64 {
        // Instants before now are negative.
        let since = |at: Timestamp| -ms(now.saturating_since(at));
        let mut free = since(self.free_at);
        for (at, sent) in self.in_flight.iter().enumerate() {
            free = free.max(since(sent.at)) + ms(transfer.serialisation(sent.bytes));
            // The reply to the first in flight takes the path's base time and the server's. Since none
            // has come, it has not passed before this.
            let not_before = -(self.base.map_or(f64::INFINITY, ms) + server);
            if at == 0 && not_before > free {
                free = not_before + OVERDUE * (not_before - free);
            }
        }
        free.max(0.0)
    }

    /// Takes in that a frame or probe was sent.
    pub(super) fn send(&mut self, sent: Sent) {
        if self.in_flight.len() == REMEMBERED {
            self.in_flight.pop_front();
        }
        self.in_flight.push_back(sent);
    }

    /// Whether a probe is in flight.
    pub(super) fn is_probed(&self) -> bool {
        self.in_flight.iter().any(|sent| sent.probe.is_some())
    }

    /// Takes in a reply to a frame that spent `network` outside the server; `None` if it is not in
    /// flight.
    pub(super) fn on_reply(&mut self, frame: FrameId, network: Duration) -> Option<Delivery> {
        let at = self.position(frame)?;
        let sent = self.in_flight.drain(..=at).next_back()?;
        let base = self.base.map_or(network, |base| base.min(network));
        self.base = Some(base);
        let is_first = at == 0;
        let waited = if is_first { self.free_at.saturating_since(sent.at) } else { Duration::ZERO };
        let own = network.saturating_sub(waited);
        self.free_at = self.free_at.max(sent.at + (network - base));
        Some(Delivery { sent, own, is_upper_bound: !is_first })
    }

    /// Takes in that a frame or probe was given up. A frame stays in the model, because its bytes may
    /// still be queued; a probe does not.
    pub(super) fn give_up(&mut self, frame: FrameId) -> Option<Sent> {
        let at = self.position(frame)?;
        let sent = self.in_flight[at];
        if sent.probe.is_some() {
            self.in_flight.remove(at);
        }
        Some(sent)
    }

    /// The first in flight: its size (bytes), and for how long it has had the path to itself.
    pub(super) fn next(&self, now: Timestamp) -> Option<(usize, Duration)> {
        let next = self.in_flight.front()?;
        Some((next.bytes, now.saturating_since(next.at.max(self.free_at))))
    }

    fn position(&self, frame: FrameId) -> Option<usize> {
        self.in_flight.iter().position(|sent| sent.frame == frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 8 ms for each 1,000 bytes.
    fn transfer() -> TransferTime {
        TransferTime::new(Some(Duration::from_millis(20)))
    }

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_micros(ms * 1_000)
    }

    fn path(sent: &[(u64, usize)]) -> PathModel {
        let mut path = PathModel::new(at(0), Some(Duration::from_millis(20)));
        for (frame, &(ms, bytes)) in (0..).zip(sent) {
            let (frame, at) = (FrameId(frame), at(ms));
            let (wait, mean, deviation, probe) = (0.0, 0.0, 1.0, None);
            path.send(Sent { frame, at, bytes, wait, mean, deviation, probe });
        }
        path
    }

    fn wait(path: &PathModel, now: u64) -> f64 {
        path.wait(at(now), &transfer(), 0.0)
    }

    #[test]
    fn frames_wait_for_each_other_and_not_for_those_long_passed() {
        let each = ms(transfer().serialisation(5_000));
        let path = path(&[(100, 5_000), (105, 5_000)]);
        assert!((wait(&path, 105) - (2.0 * each - 5.0)).abs() < 1e-6);
        assert!((wait(&path, 110) - (2.0 * each - 10.0)).abs() < 1e-6);
    }

    #[test]
    fn a_reply_shows_when_its_frame_had_passed_and_what_the_next_one_took_by_itself() {
        let mut path = path(&[(100, 5_000), (105, 5_000)]);
        let first = path.on_reply(FrameId(0), Duration::from_millis(60)).expect("sent");
        assert_eq!((first.own, first.is_upper_bound), (Duration::from_millis(60), false));
        // It had passed at 140, and 5,000 bytes more pass a serialisation time later.
        let each = ms(transfer().serialisation(5_000));
        assert!((wait(&path, 150) - (each - 10.0)).abs() < 1e-6);
        let second = path.on_reply(FrameId(1), Duration::from_millis(95)).expect("sent");
        assert_eq!((second.own, second.is_upper_bound), (Duration::from_millis(60), false));
        assert!(path.on_reply(FrameId(1), Duration::from_millis(99)).is_none());
    }

    #[test]
    fn a_frame_that_was_given_up_is_in_flight_until_a_later_one_has_passed() {
        let mut path = path(&[(100, 5_000), (110, 5_000)]);
        assert!(path.give_up(FrameId(0)).is_some());
        assert_eq!(path.next(at(200)), Some((5_000, Duration::from_millis(100))));
        let delivery = path.on_reply(FrameId(1), Duration::from_millis(300)).expect("sent");
        assert_eq!((delivery.own, delivery.is_upper_bound), (Duration::from_millis(300), true));
        assert_eq!((wait(&path, 410), path.next(at(410))), (0.0, None));
    }

    #[test]
    fn a_frame_that_is_overdue_will_be_for_longer_still() {
        let path = path(&[(100, 100)]);
        assert_eq!(wait(&path, 120), 0.0);
        let (early, late) = (wait(&path, 150), wait(&path, 200));
        assert!(early > 50.0 && late - early > 150.0, "{early} {late}");
    }

    #[test]
    fn a_probe_is_in_flight_until_it_is_given_up() {
        let mut path = path(&[]);
        let (frame, at) = (FrameId(7), at(5));
        let (wait, mean, deviation, probe) = (0.0, 0.0, 1.0, Some(Probe::Liveness));
        path.send(Sent { frame, at, bytes: 100, wait, mean, deviation, probe });
        assert!(path.is_probed());
        assert!(path.give_up(frame).is_some_and(|sent| sent.probe.is_some()) && !path.is_probed());
    }
}
