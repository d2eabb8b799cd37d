//! Whether frames without a reply tell of a slow network, or of none.

use std::time::Duration;

use isthmus_proto::Timestamp;

use super::{Conformal, Prediction, TransferTime, ms};

/// What to make of frames that went without a reply.
///
/// Several in a row are taken for an outage. The first reply then tells: if it is as quick as before,
/// the network was away, and what was learnt of it since is to be forgotten.
#[derive(Clone, Debug, Default)]
pub(super) struct Doubt {
    /// Since a frame went without a reply, until the next reply.
    silence: Option<Silence>,
    /// Size (bytes) of the frames that an outage is thought to have kept from coming through, until
    /// one about as large has; else 0.
    unproven: usize,
}

#[derive(Clone, Debug)]
struct Silence {
    /// What was known before.
    transfer: TransferTime,
    margin: Conformal,
    /// How many frames, and the size of the largest (bytes).
    frames: u32,
    lost: usize,
    /// Whether something passed that had been held up: there was an outage.
    held_up: bool,
}

/// What was known before an outage, and holds again: the margin too, if it was one for certain.
#[derive(Debug)]
pub(super) struct Restored {
    pub(super) transfer: TransferTime,
    pub(super) margin: Option<Conformal>,
}

/// So many frames in a row without a reply are taken for an outage until one comes.
const OUTAGE: u32 = 3;

/// Deviations above what was expected up to which a reply is as quick as before.
const AS_BEFORE: f64 = 3.0;

impl Doubt {
    /// Whether a frame went without a reply since the last one.
    pub(super) fn is_open(&self) -> bool {
        self.silence.is_some()
    }

    /// Whether the network is taken to be away.
    pub(super) fn is_outage(&self) -> bool {
        self.silence.as_ref().is_some_and(|silence| silence.frames >= OUTAGE)
    }

    /// A frame of so many bytes went without a reply, on a network of which so much is known.
    pub(super) fn on_lost(&mut self, bytes: usize, transfer: &TransferTime, margin: &Conformal) {
        match &mut self.silence {
            Some(silence) => {
                silence.frames += 1;
                silence.lost = silence.lost.max(bytes);
            }
            // An outage was suspected already, and that did not hold: it is the rate.
            None if self.unproven > 0 => {}
            None => {
                let (transfer, margin) = (transfer.clone(), margin.clone());
                self.silence =
                    Some(Silence { transfer, margin, frames: 1, lost: bytes, held_up: false });
            }
        }
    }

    /// A reply came to so many bytes, which took `own` by themselves, or `at_most` that.
    ///
    /// One as quick as before says that there was an outage, which tells nothing about the network as
    /// it is now. One that perhaps waited for what was given up says nothing unless it was.
    pub(super) fn on_reply(
        &mut self,
        now: Timestamp,
        bytes: usize,
        own: Duration,
        at_most: bool,
    ) -> Option<Restored> {
        if 2 * bytes >= self.unproven {
            self.unproven = 0;
        }
        let silence = self.silence.as_mut()?;
        let Prediction { mean, deviation } = silence.transfer.predict(now, bytes);
        let as_before = ms(own) <= ms(mean) + AS_BEFORE * ms(deviation);
        if at_most && !as_before {
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

    /// A network of 20 ms, about which `lost` frames of so many bytes leave a doubt.
    fn doubt(lost: &[usize]) -> Doubt {
        let mut doubt = Doubt::default();
        for &bytes in lost {
            let transfer = TransferTime::new(Some(Duration::from_millis(20)));
            doubt.on_lost(bytes, &transfer, &Conformal::new(0.01));
        }
        doubt
    }

    /// What a reply restores that took 20 ms, or so long that it cannot be as before.
    fn reply(doubt: &mut Doubt, bytes: usize, quick: bool, at_most: bool) -> Option<Restored> {
        let own = Duration::from_millis(if quick { 20 } else { 60_000 });
        doubt.on_reply(NOW, bytes, own, at_most)
    }

    #[test]
    fn a_quick_reply_restores_what_was_known_and_the_margin_after_an_outage() {
        for (lost, outage) in [(1, false), (2, false), (3, true)] {
            let mut doubt = doubt(&vec![500; lost]);
            assert_eq!((doubt.is_open(), doubt.is_outage()), (true, outage), "{lost}");
            let restored = reply(&mut doubt, 500, true, false).expect("as before");
            assert_eq!(restored.margin.is_some(), outage, "{lost}");
            assert!(!doubt.is_open());
        }
    }

    #[test]
    fn a_slow_reply_says_that_it_is_the_rate() {
        let mut doubt = doubt(&[500; 3]);
        assert!(reply(&mut doubt, 500, false, false).is_none());
        assert!(!doubt.is_open());
    }

    #[test]
    fn what_was_held_up_proves_an_outage_to_the_next_reply() {
        let mut doubt = doubt(&[500]);
        assert!(reply(&mut doubt, 500, false, true).is_none());
        assert!(doubt.is_open(), "it may have waited for what was given up");
        let restored = reply(&mut doubt, 500, true, false).expect("as before");
        assert!(restored.margin.is_some());
    }

    #[test]
    fn large_frames_lost_again_before_one_has_come_through_are_no_outage() {
        let mut doubt = doubt(&[5_000]);
        assert!(reply(&mut doubt, 100, true, false).is_some());
        let transfer = TransferTime::new(Some(Duration::from_millis(20)));
        doubt.on_lost(5_000, &transfer, &Conformal::new(0.01));
        assert!(!doubt.is_open(), "it is the rate");
        assert!(reply(&mut doubt, 2_500, true, false).is_none());
        doubt.on_lost(5_000, &transfer, &Conformal::new(0.01));
        assert!(doubt.is_open(), "one half as large came through between");
    }
}
