//! The frame size that the path is known to carry in time, and when to probe a larger one.

use std::time::Duration;

use isthmus_proto::Timestamp;

use super::backoff::Backoff;

/// The largest size that was lately delivered in time.
///
/// A frame of more than twice that size is not sent: if the rate was overestimated, the answer would
/// be lost. A probe of its size, padding alone, goes first. It takes the place of a frame of which
/// nothing would be sent, or after a while of any frame.
#[derive(Clone, Debug)]
pub(super) struct ProvenSize {
    bytes: usize,
    wanted: Option<Wanted>,
    /// Between probes.
    backoff: Backoff,
}

/// A size (bytes) that frames would have if it were proven, and since when.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    bytes: usize,
    since: Timestamp,
}

/// Proven by the connection itself: QUIC pads its first datagrams to this size (RFC 9000, 14.1).
const FIRST: usize = 1_200;

/// How many times the proven size may be sent without a probe.
const STEP: usize = 2;

/// How long to wait for an idle frame before a probe takes the place of any frame.
const LONGEST_WAIT: Duration = Duration::from_secs(1);

/// First and longest pause after a probe that came late.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(16);

impl ProvenSize {
    /// What is proven by a connection made at `now`.
    pub(super) fn new(now: Timestamp) -> Self {
        let backoff = Backoff::new(now, FIRST_PAUSE, LONGEST_PAUSE);
        ProvenSize { bytes: FIRST, wanted: None, backoff }
    }

    /// Whether so many bytes may be sent without a probe.
    pub(super) fn covers(&self, bytes: usize) -> bool {
        bytes <= STEP * self.bytes
    }

    /// Notes the size that frames would have if it were covered; `None` where that is no larger one.
    pub(super) fn want(&mut self, now: Timestamp, bytes: Option<usize>) {
        let since = self.wanted.map_or(now, |wanted| wanted.since);
        self.wanted = bytes.map(|bytes| Wanted { bytes, since });
    }

    /// The size of the probe to send at `now` in place of a frame. A frame `is_idle` if nothing of it
    /// would be sent anyway.
    pub(super) fn probe_due(&self, now: Timestamp, is_idle: bool) -> Option<usize> {
        let Wanted { bytes, since } = self.wanted?;
        let is_due = is_idle || now >= since + LONGEST_WAIT;
        (is_due && self.backoff.is_over(now)).then_some(bytes)
    }

    /// So many bytes were delivered in time.
    pub(super) fn on_delivered(&mut self, bytes: usize) {
        self.bytes = self.bytes.max(bytes);
        self.backoff.reset();
    }

    /// A frame was late: earlier deliveries prove nothing any more.
    pub(super) fn on_late(&mut self) {
        self.bytes = FIRST;
    }

    /// The probe came late, or not at all.
    pub(super) fn on_failed_probe(&mut self, now: Timestamp) {
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
    fn a_larger_size_is_probed_with_an_idle_frame_or_after_a_while_with_any() {
        let mut proven = ProvenSize::new(at(0));
        assert!(proven.covers(2_400) && !proven.covers(5_000));
        assert_eq!(proven.probe_due(at(0), true), None, "nothing is wanted");
        proven.want(at(100), Some(5_000));
        assert_eq!(proven.probe_due(at(100), true), Some(5_000));
        assert_eq!(proven.probe_due(at(1_099), false), None);
        proven.want(at(1_100), Some(4_000));
        assert_eq!(proven.probe_due(at(1_100), false), Some(4_000));
        proven.on_delivered(4_000);
        assert!(proven.covers(8_000));
    }

    #[test]
    fn a_size_that_failed_is_probed_again_after_ever_longer_pauses() {
        let mut proven = ProvenSize::new(at(0));
        for (now, next) in [(0, 1_000), (1_000, 3_000), (3_000, 7_000)] {
            proven.want(at(now), Some(5_000));
            assert_eq!(proven.probe_due(at(now), true), Some(5_000));
            proven.on_failed_probe(at(now));
            proven.want(at(now), Some(5_000));
            assert_eq!(proven.probe_due(at(next - 1), true), None);
        }
    }

    #[test]
    fn after_a_late_frame_only_what_connecting_showed_is_proven() {
        let mut proven = ProvenSize::new(at(0));
        proven.on_delivered(6_000);
        assert!(proven.covers(STEP * 6_000) && !proven.covers(STEP * 6_000 + 1));
        proven.on_late();
        assert!(proven.covers(STEP * FIRST) && !proven.covers(STEP * FIRST + 1));
    }
}
