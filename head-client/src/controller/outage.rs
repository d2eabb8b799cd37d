//! Outages: whether frames without a reply show that the network is slow, or that it is away.

use std::time::Duration;

use isthmus_proto::Timestamp;

use super::conformal::Conformal;
use super::statistics::ms;
use super::transfer::{Prediction, TransferTime};

/// Tells an outage from a fall of the rate.
///
/// Timeouts look alike in both, and teach the estimate a rate that is far too low if it was an outage.
/// Several frames in a row without a reply are therefore taken for an outage. The first reply then
/// decides: if it is as quick as replies were before, the network was away, and the estimate from
/// before the silence is restored.
#[derive(Clone, Debug, Default)]
pub(super) struct OutageDetector {
    /// From the first frame without a reply until the next reply.
    silence: Option<Silence>,
    /// Size of the frames (bytes) that were lost in what was taken for an outage, until one at least
    /// half as large is delivered; else 0. Lost again before that, they show a fall of the rate.
    unproven: usize,
}

#[derive(Clone, Debug)]
struct Silence {
    /// The estimate from before it.
    transfer: TransferTime,
    margin: Conformal,
    /// Frames lost, and the size of the largest (bytes).
    frames: u32,
    lost: usize,
    /// Whether a frame was delivered late that had been held up, which proves an outage.
    held_up: bool,
}

/// The estimate from before an outage, and the margin where the outage is certain.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) transfer: TransferTime,
    pub(super) margin: Option<Conformal>,
}

/// So many frames in a row without a reply are an outage until a reply comes.
const OUTAGE: u32 = 3;

/// A reply is as quick as before if it exceeds the old prediction by at most so many standard
/// deviations.
const AS_BEFORE: f64 = 3.0;

impl OutageDetector {
    /// Whether a frame went without a reply since the last reply.
    pub(super) fn is_silent(&self) -> bool {
        self.silence.is_some()
    }

    /// Whether the network is taken to be away.
    pub(super) fn is_outage(&self) -> bool {
        self.silence.as_ref().is_some_and(|silence| silence.frames >= OUTAGE)
    }

    /// A frame of so many bytes was given up, with these estimates.
    pub(super) fn on_lost(&mut self, bytes: usize, transfer: &TransferTime, margin: &Conformal) {
        match &mut self.silence {
            Some(silence) => {
                silence.frames += 1;
                silence.lost = silence.lost.max(bytes);
            }
            // An outage was suspected for frames of this size already: it is the rate.
            None if self.unproven > 0 => {}
            None => {
                let (transfer, margin) = (transfer.clone(), margin.clone());
                self.silence =
                    Some(Silence { transfer, margin, frames: 1, lost: bytes, held_up: false });
            }
        }
    }

    /// A reply to so many bytes came, whose transfer took `own`, or at most that if it
    /// `is_upper_bound`.
    ///
    /// If it is as quick as before the silence, there was an outage. A slow one that may have waited
    /// behind a lost frame decides nothing.
    pub(super) fn on_reply(
        &mut self,
        now: Timestamp,
        bytes: usize,
        own: Duration,
        is_upper_bound: bool,
    ) -> Option<Restored> {
        if 2 * bytes >= self.unproven {
            self.unproven = 0;
        }
        let silence = self.silence.as_mut()?;
        let Prediction { mean, deviation } = silence.transfer.predict(now, bytes);
        let as_before = ms(own) <= ms(mean) + AS_BEFORE * ms(deviation);
        if is_upper_bound && !as_before {
            silence.held_up = true;
            return None;
        }
        let Silence { transfer, margin, frames, lost, held_up } = self.silence.take()?;
        if !as_before {
            return None;
        }
        self.unproven = if 2 * bytes >= lost { 0 } else { lost };
        // No margin helps against an outage; against a late reply it does.
        let margin = (frames >= OUTAGE || held_up).then_some(margin);
        Some(Restored { transfer, margin })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::ZERO;

    /// A network of 20 ms that has lost frames of so many bytes.
    fn detector(lost: &[usize]) -> OutageDetector {
        let mut detector = OutageDetector::default();
        for &bytes in lost {
            let transfer = TransferTime::new(Some(Duration::from_millis(20)));
            detector.on_lost(bytes, &transfer, &Conformal::new(0.01));
        }
        detector
    }

    /// What a reply restores that took 20 ms, or so long that it cannot be as before.
    fn reply(
        detector: &mut OutageDetector,
        bytes: usize,
        quick: bool,
        is_upper_bound: bool,
    ) -> Option<Restored> {
        let own = Duration::from_millis(if quick { 20 } else { 60_000 });
        detector.on_reply(NOW, bytes, own, is_upper_bound)
    }

    #[test]
    fn a_quick_reply_restores_what_was_known_and_the_margin_after_an_outage() {
        for (lost, outage) in [(1, false), (2, false), (3, true)] {
            let mut detector = detector(&vec![500; lost]);
            assert_eq!((detector.is_silent(), detector.is_outage()), (true, outage), "{lost}");
            let restored = reply(&mut detector, 500, true, false).expect("as before");
            assert_eq!(restored.margin.is_some(), outage, "{lost}");
            assert!(!detector.is_silent());
        }
    }

    #[test]
    fn a_slow_reply_shows_that_it_is_the_rate() {
        let mut detector = detector(&[500; 3]);
        assert!(reply(&mut detector, 500, false, false).is_none());
        assert!(!detector.is_silent());
    }

    #[test]
    fn a_frame_that_was_held_up_proves_an_outage_to_the_next_reply() {
        let mut detector = detector(&[500]);
        assert!(reply(&mut detector, 500, false, true).is_none());
        assert!(detector.is_silent(), "it may have waited for what was given up");
        let restored = reply(&mut detector, 500, true, false).expect("as before");
        assert!(restored.margin.is_some());
    }

    #[test]
    fn large_frames_lost_again_before_one_has_come_through_are_no_outage() {
        let mut detector = detector(&[5_000]);
        assert!(reply(&mut detector, 100, true, false).is_some());
        let transfer = TransferTime::new(Some(Duration::from_millis(20)));
        detector.on_lost(5_000, &transfer, &Conformal::new(0.01));
        assert!(!detector.is_silent(), "it is the rate");
        assert!(reply(&mut detector, 2_500, true, false).is_none());
        detector.on_lost(5_000, &transfer, &Conformal::new(0.01));
        assert!(detector.is_silent(), "one half as large came through between");
    }
}
