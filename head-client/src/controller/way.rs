//! What was sent, in order, and when the way will be free of it.

use std::collections::VecDeque;
use std::time::Duration;

use isthmus_proto::{FrameId, Timestamp};

use super::{TransferTime, ms};

/// A frame or probe that was sent, and what was expected of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sent {
    pub(super) frame: FrameId,
    pub(super) at: Timestamp,
    pub(super) bytes: usize,
    /// Behind one's own earlier frames (ms).
    pub(super) wait: f64,
    /// In the network and on the server (ms), in the mean, and the standard deviation.
    pub(super) mean: f64,
    pub(super) deviation: f64,
    /// What it asks, if it is a probe.
    pub(super) probe: Option<Question>,
}

/// What a probe asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Question {
    /// Whether anything comes through in time.
    Any,
    /// Whether as much does.
    Larger,
}

/// What a reply tells of the way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Passage {
    pub(super) sent: Sent,
    /// From when the way was free of earlier frames until the reply, less the server's time.
    pub(super) own: Duration,
    /// Whether nothing is known of when the way was free; then `own` is the most that it can be.
    pub(super) at_most: bool,
}

/// A way that frames leave in the order in which they were sent, one after another.
///
/// A reply tells when its frame left, and that all before it have. What was given up may still lie in
/// a queue on the way, and is counted until a later frame has passed.
#[derive(Clone, Debug)]
pub(super) struct Way {
    /// The shortest time that a frame has spent outside the server (ms).
    shortest: f64,
    /// When the last frame of which one heard left.
    left: Timestamp,
    sent: VecDeque<Sent>,
}

/// Frames remembered while they are on their way.
const REMEMBERED: usize = 64;

/// How many times as long as a reply is overdue the frame is expected to stay on. Stalls are
/// heavy-tailed: the longer one has lasted, the longer it will.
const OVERDUE: f64 = 4.0;

impl Way {
    /// A free way, on which connecting took `round_trip`.
    pub(super) fn new(now: Timestamp, round_trip: Option<Duration>) -> Self {
        let shortest = round_trip.map_or(f64::INFINITY, ms);
        Way { shortest, left: now, sent: VecDeque::with_capacity(REMEMBERED) }
    }

    /// How long what is sent at `now` waits behind what was sent before (ms), at the rate that
    /// `transfer` knows and with a server that takes `server` (ms).
    pub(super) fn wait(&self, now: Timestamp, transfer: &TransferTime, server: f64) -> f64 {
        // Instants before now, as what is negative.
        let ago = |at: Timestamp| -ms(now.saturating_since(at));
        let mut free = ago(self.left);
        for (at, sent) in self.sent.iter().enumerate() {
            free = free.max(ago(sent.at)) + ms(transfer.serialisation(sent.bytes));
            // Had the next one left earlier than this, one would have heard of it.
            let heard_until = -(self.shortest + server);
            if at == 0 && heard_until > free {
                free = heard_until + OVERDUE * (heard_until - free);
            }
        }
        free.max(0.0)
    }

    /// Puts a frame or probe on the way.
    pub(super) fn send(&mut self, sent: Sent) {
        if self.sent.len() == REMEMBERED {
            self.sent.pop_front();
        }
        self.sent.push_back(sent);
    }

    /// Whether a probe is on the way.
    pub(super) fn is_probed(&self) -> bool {
        self.sent.iter().any(|sent| sent.probe.is_some())
    }

    /// Takes in that a frame spent `network` outside the server.
    pub(super) fn on_reply(&mut self, frame: FrameId, network: Duration) -> Option<Passage> {
        let at = self.position(frame)?;
        let sent = self.sent.drain(..=at).next_back()?;
        self.shortest = self.shortest.min(ms(network));
        let waited = if at == 0 { self.left.saturating_since(sent.at) } else { Duration::ZERO };
        let own = network.saturating_sub(waited);
        let left = sent.at + network.saturating_sub(from_ms(self.shortest));
        self.left = self.left.max(left);
        Some(Passage { sent, own, at_most: at > 0 })
    }

    /// What was given up; a frame remains on the way, a probe does not.
    pub(super) fn give_up(&mut self, frame: FrameId) -> Option<Sent> {
        let at = self.position(frame)?;
        let sent = self.sent[at];
        if sent.probe.is_some() {
            self.sent.remove(at);
        }
        Some(sent)
    }

    /// What is next to leave the way: its size (bytes), and for how long the way has been its own.
    pub(super) fn next(&self, now: Timestamp) -> Option<(usize, Duration)> {
        let next = self.sent.front()?;
        Some((next.bytes, now.saturating_since(next.at.max(self.left))))
    }

    fn position(&self, frame: FrameId) -> Option<usize> {
        self.sent.iter().position(|sent| sent.frame == frame)
    }
}

fn from_ms(ms: f64) -> Duration {
    Duration::from_secs_f64(ms / 1e3)
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

    fn way(sent: &[(u64, usize)]) -> Way {
        let mut way = Way::new(at(0), Some(Duration::from_millis(20)));
        for (frame, &(ms, bytes)) in (0..).zip(sent) {
            let (frame, at) = (FrameId(frame), at(ms));
            let (wait, mean, deviation, probe) = (0.0, 0.0, 1.0, None);
            way.send(Sent { frame, at, bytes, wait, mean, deviation, probe });
        }
        way
    }

    fn wait(way: &Way, now: u64) -> f64 {
        way.wait(at(now), &transfer(), 0.0)
    }

    #[test]
    fn frames_wait_for_each_other_and_not_for_those_long_gone() {
        let each = ms(transfer().serialisation(5_000));
        let way = way(&[(100, 5_000), (105, 5_000)]);
        assert!((wait(&way, 105) - (2.0 * each - 5.0)).abs() < 1e-6);
        assert!((wait(&way, 110) - (2.0 * each - 10.0)).abs() < 1e-6);
    }

    #[test]
    fn a_reply_tells_when_its_frame_left_and_what_the_next_one_took_by_itself() {
        let mut way = way(&[(100, 5_000), (105, 5_000)]);
        let first = way.on_reply(FrameId(0), Duration::from_millis(60)).expect("sent");
        assert_eq!((first.own, first.at_most), (Duration::from_millis(60), false));
        // It left at 140, and 5,000 bytes more leave a transfer's time later.
        let each = ms(transfer().serialisation(5_000));
        assert!((wait(&way, 150) - (each - 10.0)).abs() < 1e-6);
        let second = way.on_reply(FrameId(1), Duration::from_millis(95)).expect("sent");
        assert_eq!((second.own, second.at_most), (Duration::from_millis(60), false));
        assert!(way.on_reply(FrameId(1), Duration::from_millis(99)).is_none());
    }

    #[test]
    fn what_was_given_up_is_on_the_way_until_a_later_one_has_passed() {
        let mut way = way(&[(100, 5_000), (110, 5_000)]);
        assert!(way.give_up(FrameId(0)).is_some());
        assert_eq!(way.next(at(200)), Some((5_000, Duration::from_millis(100))));
        let passage = way.on_reply(FrameId(1), Duration::from_millis(300)).expect("sent");
        assert_eq!((passage.own, passage.at_most), (Duration::from_millis(300), true));
        assert_eq!((wait(&way, 410), way.next(at(410))), (0.0, None));
    }

    #[test]
    fn what_is_overdue_will_be_for_longer_still() {
        let way = way(&[(100, 100)]);
        assert_eq!(wait(&way, 120), 0.0);
        let (early, late) = (wait(&way, 150), wait(&way, 200));
        assert!(early > 50.0 && late - early > 150.0, "{early} {late}");
    }

    #[test]
    fn a_probe_is_on_the_way_until_it_is_given_up() {
        let mut way = way(&[]);
        let (frame, at) = (FrameId(7), at(5));
        let (wait, mean, deviation, probe) = (0.0, 0.0, 1.0, Some(Question::Any));
        way.send(Sent { frame, at, bytes: 100, wait, mean, deviation, probe });
        assert!(way.is_probed());
        assert!(way.give_up(frame).is_some_and(|sent| sent.probe.is_some()) && !way.is_probed());
    }
}
