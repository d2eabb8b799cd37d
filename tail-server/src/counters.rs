//! Counts of frames by their final outcome.

use std::collections::BTreeMap;

use isthmus_proto::wire::Reason;

/// Why an accepted frame was not answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Cause {
    /// Its time left ran out before a worker was free.
    Expired,
    /// The device no longer wanted the answer, or is gone.
    Cancelled,
    /// The queue was full, and a frame of a device that had fewer in it took its place.
    Displaced,
    /// The server failed; its log says how.
    Failed,
}

impl Cause {
    /// The cause as the reply to the device names it.
    pub fn reason(self) -> Reason {
        match self {
            Cause::Expired => Reason::Expired,
            Cause::Cancelled => Reason::Cancelled,
            Cause::Displaced => Reason::Overloaded,
            Cause::Failed => Reason::Internal,
        }
    }
}

/// The end of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// The network's answer was sent.
    Answered {
        /// Whether it was ready only after the deadline.
        late: bool,
    },
    /// The frame was not accepted, or its compressed picture could not be decoded.
    Refused(Reason),
    /// The frame was accepted, yet not answered.
    Dropped(Cause),
    /// It was a probe, and was echoed.
    Echoed,
}

/// Frames by their final outcome. Every frame that arrived ends in exactly one of the others:
/// `arrived = answered + echoed + refused + dropped + unfinished`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames and probes of which anything was seen.
    pub arrived: u64,
    /// Frames whose answer was sent.
    pub answered: u64,
    /// Those of the answered ones whose answer was ready only after the deadline.
    pub late: u64,
    /// Probes that came whole.
    pub echoed: u64,
    /// Frames that were refused, by the reason in the reply.
    pub refused: BTreeMap<Reason, u64>,
    /// Frames that were accepted, yet not answered, by cause.
    pub dropped: BTreeMap<Cause, u64>,
}

impl Counters {
    /// A frame was seen.
    pub fn on_arrival(&mut self) {
        self.arrived += 1;
    }

    /// A frame ended.
    pub fn on_verdict(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Answered { late } => {
                self.answered += 1;
                self.late += u64::from(late);
            }
            Verdict::Echoed => self.echoed += 1,
            Verdict::Refused(reason) => *self.refused.entry(reason).or_default() += 1,
            Verdict::Dropped(cause) => *self.dropped.entry(cause).or_default() += 1,
        }
    }

    /// Frames that are being received, waiting or running.
    pub fn unfinished(&self) -> u64 {
        let refused: u64 = self.refused.values().sum();
        let dropped: u64 = self.dropped.values().sum();
        self.arrived - self.answered - self.echoed - refused - dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_frame_ends_once() {
        let mut counters = Counters::default();
        (0..5).for_each(|_| counters.on_arrival());
        counters.on_verdict(Verdict::Answered { late: true });
        counters.on_verdict(Verdict::Refused(Reason::Malformed));
        counters.on_verdict(Verdict::Refused(Reason::Malformed));
        counters.on_verdict(Verdict::Dropped(Cause::Expired));
        assert_eq!(counters.refused, BTreeMap::from([(Reason::Malformed, 2)]));
        assert_eq!((counters.answered, counters.late, counters.unfinished()), (1, 1, 1));
    }
}
