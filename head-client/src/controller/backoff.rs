//! Pauses between probes that fail one after another.

use std::time::Duration;

use isthmus_proto::Timestamp;

/// Truncated exponential backoff: every pause is twice the one before, up to a longest.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
    over_at: Timestamp,
}

impl Backoff {
    /// No pause yet; they begin with `first`.
    pub(super) fn new(now: Timestamp, first: Duration, longest: Duration) -> Self {
        Backoff { first, longest, next: first, over_at: now }
    }

    /// Whether no pause is on at `now`.
    pub(super) fn is_over(&self, now: Timestamp) -> bool {
        now >= self.over_at
    }

    /// Begins a pause.
    pub(super) fn pause(&mut self, now: Timestamp) {
        self.over_at = now + self.next;
        self.next = (self.next * 2).min(self.longest);
    }

    /// Ends the pause that is on, if any; the next one is as long as it would have been.
    pub(super) fn end(&mut self, now: Timestamp) {
        self.over_at = now;
    }

    /// Makes the next pause the first one.
    pub(super) fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew_after_a_reset() {
        let ms = Duration::from_millis;
        let at = |ms: u64| Timestamp::from_micros(ms * 1_000);
        let mut backoff = Backoff::new(at(0), ms(250), ms(1_000));
        assert!(backoff.is_over(at(0)));
        for (now, over) in [(0, 250), (250, 750), (750, 1_750), (1_750, 2_750)] {
            backoff.pause(at(now));
            assert!(!backoff.is_over(at(over - 1)) && backoff.is_over(at(over)), "{now}");
        }
        backoff.end(at(2_000));
        assert!(backoff.is_over(at(2_000)));
        backoff.reset();
        backoff.pause(at(2_000));
        assert!(!backoff.is_over(at(2_249)) && backoff.is_over(at(2_250)));
    }
}
