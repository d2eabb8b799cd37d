//! How large a frame the way is known to carry, and when to ask about more.

use std::time::Duration;

use isthmus_proto::Timestamp;

use super::backoff::Backoff;

/// The largest of late that came through in time.
///
/// What is more than a step beyond it is no frame's to try, which would be lost if the rate was taken
/// for too high: a probe as large goes first, padding alone. It goes with a frame that has nothing
/// to send, or after a while with any.
#[derive(Clone, Debug)]
pub(super) struct Reach {
    bytes: usize,
    wanted: Option<Wanted>,
    /// Between questions.
    backoff: Backoff,
}

/// A size (bytes) that would be sent if it were known to come through, and since when.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    bytes: usize,
    since: Timestamp,
}

/// A packet that fills a datagram has come through wherever there is a connection: QUIC pads its first
/// ones to it (RFC 9000, 14.1).
const FIRST: usize = 1_200;

/// How many times what came through may be tried unasked.
const STEP: usize = 2;

/// For how long to wait for a frame that has nothing to send.
const PATIENCE: Duration = Duration::from_secs(1);

/// First and longest pause after a probe that came late.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(16);

impl Reach {
    /// Of a way that one has just connected over.
    pub(super) fn new(now: Timestamp) -> Self {
        let backoff = Backoff::new(now, FIRST_PAUSE, LONGEST_PAUSE);
        Reach { bytes: FIRST, wanted: None, backoff }
    }

    /// Whether so many bytes may be sent unasked.
    pub(super) fn covers(&self, bytes: usize) -> bool {
        bytes <= STEP * self.bytes
    }

    /// Notes what would be sent if it were covered; `None` where nothing larger would.
    pub(super) fn want(&mut self, now: Timestamp, bytes: Option<usize>) {
        let since = self.wanted.map_or(now, |wanted| wanted.since);
        self.wanted = bytes.map(|bytes| Wanted { bytes, since });
    }

    /// How large a probe to send at `now` instead of a frame, which `is_spare` if nothing of it would
    /// be sent anyway.
    pub(super) fn question(&self, now: Timestamp, is_spare: bool) -> Option<usize> {
        let Wanted { bytes, since } = self.wanted?;
        let is_due = is_spare || now >= since + PATIENCE;
        (is_due && self.backoff.is_over(now)).then_some(bytes)
    }

    /// So many bytes came through in time.
    pub(super) fn on_passed(&mut self, bytes: usize) {
        self.bytes = self.bytes.max(bytes);
        self.backoff.reset();
    }

    /// A frame was late: what came through before says no more.
    pub(super) fn on_late(&mut self) {
        self.bytes = FIRST;
    }

    /// What a question asked about did not.
    pub(super) fn on_refuted(&mut self, now: Timestamp) {
        self.wanted = None;
        self.backoff.pause(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_micros(ms * 1_000)
    }

    #[test]
    fn a_step_up_is_asked_for_with_a_spare_frame_or_after_a_while_with_any() {
        let mut reach = Reach::new(at(0));
        assert!(reach.covers(2_400) && !reach.covers(5_000));
        assert_eq!(reach.question(at(0), true), None, "nothing is wanted");
        reach.want(at(100), Some(5_000));
        assert_eq!(reach.question(at(100), true), Some(5_000));
        assert_eq!(reach.question(at(1_099), false), None);
        reach.want(at(1_100), Some(4_000));
        assert_eq!(reach.question(at(1_100), false), Some(4_000));
        reach.on_passed(4_000);
        assert!(reach.covers(8_000));
    }

    #[test]
    fn what_was_refuted_is_asked_again_after_ever_longer_pauses() {
        let mut reach = Reach::new(at(0));
        for (now, next) in [(0, 1_000), (1_000, 3_000), (3_000, 7_000)] {
            reach.want(at(now), Some(5_000));
            assert_eq!(reach.question(at(now), true), Some(5_000));
            reach.on_refuted(at(now));
            reach.want(at(now), Some(5_000));
            assert_eq!(reach.question(at(next - 1), true), None);
        }
    }

    #[test]
    fn after_a_late_frame_one_knows_what_connecting_showed() {
        let mut reach = Reach::new(at(0));
        reach.on_passed(6_000);
        assert!(reach.covers(STEP * 6_000) && !reach.covers(STEP * 6_000 + 1));
        reach.on_late();
        assert!(reach.covers(STEP * FIRST) && !reach.covers(STEP * FIRST + 1));
    }
}
