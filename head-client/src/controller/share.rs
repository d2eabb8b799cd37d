//! How much of a way to take that others may use as well.

use std::time::Duration;

use isthmus_proto::Timestamp;

/// The share of a way's time that one allows oneself.
///
/// It rises steadily, and falls by a factor when frames meet a queue or are late: additive increase,
/// multiplicative decrease, which leads those who share a way to equal parts of it (Chiu and Jain
/// 1989). Radios stall by themselves, too, and no share prevents that: only where it happens again
/// soon are others taken for the cause.
#[derive(Clone, Debug)]
pub(super) struct Share {
    share: f64,
    raised: Timestamp,
    /// When a frame last met a queue or was late, other than together with one before.
    crowded: Option<Timestamp>,
}

/// The most and the least of the way's time, and how much more every second.
const MOST: f64 = 0.8;
const LEAST: f64 = 0.01;
const A_SECOND: f64 = 0.03;

/// What is left of it after frames met a queue or were late.
const LEFT: f64 = 0.6;

/// Within how many times as long as what is sent together may be late it has to happen again.
const SOON: u32 = 6;

impl Share {
    /// All of a way that nobody else is known to use.
    pub(super) fn new(now: Timestamp) -> Self {
        Share { share: MOST, raised: now, crowded: None }
    }

    /// The share at `now`.
    pub(super) fn raise(&mut self, now: Timestamp) -> f64 {
        let seconds = now.saturating_since(self.raised).as_secs_f64();
        self.raised = now;
        self.share = (self.share + A_SECOND * seconds).min(MOST);
        self.share
    }

    /// The share as it was last raised or lowered.
    pub(super) fn get(&self) -> f64 {
        self.share
    }

    /// A frame met a queue, or was late; for `together` what was sent with it may, too.
    pub(super) fn on_crowded(&mut self, now: Timestamp, together: Duration) {
        let since = self.crowded.map(|before| now.saturating_since(before));
        match since {
            Some(since) if since < together => return,
            Some(since) if since <= together * SOON => {
                self.share = (self.share * LEFT).max(LEAST);
            }
            _ => {}
        }
        self.crowded = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_share_a_way_come_to_equal_parts() {
        let at = |ms: u64| Timestamp::from_micros(ms * 1_000);
        let pause = Duration::from_millis(100);
        let mut shares = [Share::new(at(0)), Share::new(at(0))];
        shares[1].share = 0.05;
        for step in 1..2_000 {
            let now = at(step * 100);
            let sum: f64 = shares.iter_mut().map(|share| share.raise(now)).sum();
            if sum > 1.0 {
                shares.iter_mut().for_each(|share| share.on_crowded(now, pause));
            }
        }
        let [a, b] = shares.map(|share| share.get());
        assert!((a - b).abs() < 0.02 && a > 0.2, "{a} {b}");
    }

    #[test]
    fn what_was_late_together_counts_once_and_once_alone_not_at_all() {
        let at = |ms: u64| Timestamp::from_micros(ms * 1_000);
        let mut share = Share::new(at(0));
        let together = Duration::from_millis(100);
        share.on_crowded(at(200), together);
        share.on_crowded(at(250), together);
        assert_eq!(share.get(), MOST, "a stall of the radio");
        share.on_crowded(at(300), together);
        assert_eq!(share.get(), MOST * LEFT, "again, and soon");
        share.on_crowded(at(1_000), together);
        assert_eq!(share.get(), MOST * LEFT, "long after");
    }
}
