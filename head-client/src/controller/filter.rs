//! The filter: frames of which the exit says that nothing is in them are answered by it, at no byte.

use std::collections::BTreeMap;
use std::time::Duration;

use isthmus_models::{Bundle, Outcome, Outcomes, RecordedPoint};
use isthmus_proto::Timestamp;

use super::decision::{
    Choice, Controller, HeadDecision, HeadView, LinkEstimate, NetworkSample, NetworkTimeout,
    SendDecision, SendView, Sending,
};
use super::run::Run;

/// Why a filter cannot be made.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FilterError {
    /// A bundle whose exits do not say whether something is there.
    #[error("the bundle has no detector with an exit; a filter needs one")]
    NoDetector,
    /// A bundle without measured outcomes.
    #[error("the bundle has no record of outcomes, from which the filter's threshold comes")]
    NoRecord,
    /// No fraction.
    #[error("a recall is above 0 and below 1, not {0}")]
    Recall(f64),
    /// Too few pictures with objects to promise the recall.
    #[error(
        "the record has {found} pictures with objects; a recall of {recall} needs at least {needed}"
    )]
    Few {
        /// The recall asked for.
        recall: f64,
        /// Pictures in the record with objects.
        found: usize,
        /// Pictures that are needed.
        needed: usize,
    },
}

/// From which confidence an exit is believed that nothing is in a picture.
///
/// Each head's threshold comes from the bundle's record: the lowest one at which, of n pictures with
/// objects, k pass for empty and `(k + 1) / (n + 1) ≤ 1 − recall`. Over pictures that are drawn like the
/// record's, the expected fraction of those with objects that reach the network is then at least the
/// recall (Angelopoulos, Bates, Fisch, Lei and Schuster, *Conformal Risk Control*, arXiv 2208.02814).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// By split and width.
    thresholds: BTreeMap<(u8, u8), f32>,
}

impl Filter {
    /// The filter of a bundle whose exits are those of a detector, for a recall above 0 and below 1.
    pub fn of_outcomes(
        bundle: &Bundle,
        outcomes: Option<&Outcomes>,
        recall: f64,
    ) -> Result<Filter, FilterError> {
        if !(recall > 0.0 && recall < 1.0) {
            return Err(FilterError::Recall(recall));
        }
        let detects = bundle.manifest().decoders.first().is_some_and(|it| it.boxes.is_some());
        let outcomes = outcomes.ok_or(FilterError::NoRecord)?;
        let mut thresholds = BTreeMap::new();
        for recorded in outcomes.points() {
            let RecordedPoint::Exit { split, width } = &recorded.point else { continue };
            if let Some(head) = bundle.find_head(split, width).filter(|_| detects) {
                thresholds.insert(head, threshold(&recorded.frames, recall)?);
            }
        }
        match thresholds.is_empty() {
            true => Err(FilterError::NoDetector),
            false => Ok(Filter { thresholds }),
        }
    }

    /// From which confidence the exit of a head is believed; `None` if it never is.
    pub fn threshold(&self, head: (u8, u8)) -> Option<f32> {
        self.thresholds.get(&head).copied()
    }

    /// Whether a frame passes for empty.
    fn holds_nothing(&self, run: Run, confidence: Option<f32>) -> bool {
        let threshold = run.head().and_then(|head| self.threshold(head));
        threshold.zip(confidence).is_some_and(|(threshold, confidence)| confidence >= threshold)
    }
}

/// The lowest threshold that keeps the recall. An exit finds nothing, so that its quality is 1 where
/// nothing is there.
fn threshold(frames: &[Outcome], recall: f64) -> Result<f32, FilterError> {
    let objects = frames.iter().filter(|outcome| outcome.quality < 1.0);
    let mut confidences: Vec<f32> = objects.map(|outcome| outcome.confidence).collect();
    confidences.sort_by(|a, b| b.total_cmp(a));
    let (found, loss) = (confidences.len(), 1.0 - recall);
    // (k + 1) / (n + 1) ≤ 1 − recall; a hair more, as 1 − 0.99 is a hair less than 0.01.
    let passed = (loss * (found as f64 + 1.0) + 1e-9).floor() as usize;
    let Some(passed) = passed.checked_sub(1) else {
        let needed = (1.0 / loss - 1e-9).ceil() as usize - 1;
        return Err(FilterError::Few { recall, found, needed });
    };
    // Above the surest of those that must not pass.
    Ok(confidences.get(passed).map_or(0.0, |first| first.next_up()))
}

/// A controller whose frames go through a filter first.
pub struct Filtered {
    filter: Filter,
    controller: Box<dyn Controller>,
}

impl Filtered {
    /// Puts `filter` before `controller`. What its ladder expects of a frame should know the filter, as
    /// [`Ladder::filtered`](super::Ladder::filtered) does.
    pub fn new(filter: Filter, controller: Box<dyn Controller>) -> Filtered {
        Filtered { filter, controller }
    }
}

impl Controller for Filtered {
    fn on_link_up(&mut self, now: Timestamp, round_trip: Option<Duration>) {
        self.controller.on_link_up(now, round_trip);
    }

    fn decide_head(&mut self, now: Timestamp, view: &HeadView) -> HeadDecision {
        self.controller.decide_head(now, view)
    }

    fn on_run(&mut self, now: Timestamp, run: Run, took: Duration) {
        self.controller.on_run(now, run, took);
    }

    fn decide_send(&mut self, now: Timestamp, view: &SendView<'_>) -> SendDecision {
        match self.filter.holds_nothing(view.run, view.exit_confidence) {
            true => SendDecision { sending: Sending::Exit, reason: Choice::Filtered },
            false => self.controller.decide_send(now, view),
        }
    }

    fn on_reply(&mut self, now: Timestamp, sample: &NetworkSample) {
        self.controller.on_reply(now, sample);
    }

    fn on_timeout(&mut self, now: Timestamp, timeout: &NetworkTimeout) {
        self.controller.on_timeout(now, timeout);
    }

    fn estimate(&self) -> Option<LinkEstimate> {
        self.controller.estimate()
    }
}

#[cfg(test)]
mod tests {
    use isthmus_proto::{FrameId, OperatingPoint};

    use super::*;
    use crate::controller::{Fixed, LinkView};

    fn frames(count: usize) -> Vec<Outcome> {
        // Pictures with objects, of which the exit is the less sure the later they come; then empty ones.
        let outcome = |quality, confidence| Outcome { bytes: 0, quality, confidence, reply: 0 };
        let objects = (0..count).map(|at| outcome(0.0, 0.9 - 0.8 * at as f32 / count as f32));
        objects.chain((0..50).map(|_| outcome(1.0, 0.95))).collect()
    }

    #[test]
    fn a_threshold_keeps_the_recall_and_no_picture_more() {
        for (count, recall, passed) in [(99, 0.99, 0), (199, 0.99, 1), (250, 0.9, 24)] {
            let frames = frames(count);
            let threshold = threshold(&frames, recall).expect("enough");
            let pass = |it: &&Outcome| it.quality < 1.0 && it.confidence >= threshold;
            assert_eq!(frames.iter().filter(pass).count(), passed, "{count} {recall}");
        }
        let few = threshold(&frames(98), 0.99).expect_err("too few").to_string();
        assert!(few.contains("98 pictures") && few.contains("at least 99"), "{few}");
    }

    #[test]
    fn a_frame_without_anything_in_it_costs_no_byte() {
        let point = OperatingPoint { split: 0, width: 0, layers: 1, bits: 4 };
        let filter = Filter { thresholds: [((0, 0), 0.8)].into() };
        let mut controller = Filtered::new(filter, Box::new(Fixed::new(point)));
        let mut decide = |exit_confidence| {
            let view = SendView {
                frame: FrameId(0),
                run: point.into(),
                exit_confidence,
                layer_ends: &[300],
                time_left: Duration::from_millis(100),
                link: LinkView { up: true, ..LinkView::default() },
            };
            let decision = controller.decide_send(Timestamp::ZERO, &view);
            (decision.sending, decision.reason.to_string())
        };
        assert_eq!(decide(Some(0.8)), (Sending::Exit, "filtered".into()));
        assert_eq!(decide(Some(0.79)), (Sending::Layers(1), "fixed".into()));
        assert_eq!(decide(None), (Sending::Layers(1), "fixed".into()));
    }
}
