//! How good an answer is, held against the truth: boxes, maps of classes, maps of values.

mod average_precision;
mod maps;

pub use self::average_precision::{AveragePrecision, MeanAveragePrecision};
pub use self::maps::{MeanIou, QualityError, within_ratio};

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::detect::Detection;

/// Overlap (intersection over union) from which a box is the one that it should be.
const ENOUGH_OVERLAP: f64 = 0.5;

/// A box that is there in truth, in the same pixels as the detections that are held against it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrueBox {
    /// Class, a place among the labels.
    pub class: u16,
    /// Left side.
    pub x0: f32,
    /// Upper side.
    pub y0: f32,
    /// Right side, above `x0`.
    pub x1: f32,
    /// Lower side, above `y0`.
    pub y1: f32,
    /// Whether it holds many objects or one that nobody must find: detections in it count neither
    /// as right nor as wrong, and it is not missed.
    pub crowd: bool,
}

/// What is true of a picture's objects.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrueBoxes {
    /// All objects of the classes that were looked for.
    pub boxes: Vec<TrueBox>,
    /// The classes that were looked for; `None` for all. Detections of others are neither right nor
    /// wrong.
    pub covered: Option<Arc<BTreeSet<u16>>>,
}

impl TrueBoxes {
    /// The detections that can be right or wrong.
    pub fn judged(&self, found: &[Detection]) -> Vec<Detection> {
        let counts =
            |it: &&Detection| self.covered.as_ref().is_none_or(|of| of.contains(&it.class));
        found.iter().filter(counts).copied().collect()
    }

    /// [`f1`] of the detections that can be right or wrong.
    pub fn f1(&self, found: &[Detection], confidence: f32) -> f64 {
        f1(&self.judged(found), &self.boxes, confidence)
    }
}

/// Intersection over union of a detection and a true box, 0..=1, whatever their classes. Of a
/// crowd: over the detection's area, as COCO has it.
///
/// ```
/// use isthmus_models::{Detection, TrueBox, iou};
/// let found = Detection { class: 0, confidence: 0.9, x0: 0.0, y0: 0.0, x1: 2.0, y1: 2.0 };
/// let truth = TrueBox { class: 0, x0: 1.0, y0: 0.0, x1: 3.0, y1: 2.0, crowd: false };
/// assert_eq!(iou(&found, &truth), 2.0 / 6.0);
/// assert_eq!(iou(&found, &TrueBox { crowd: true, ..truth }), 2.0 / 4.0);
/// ```
pub fn iou(found: &Detection, truth: &TrueBox) -> f64 {
    let [fx0, fy0, fx1, fy1] = [found.x0, found.y0, found.x1, found.y1].map(f64::from);
    let [tx0, ty0, tx1, ty1] = [truth.x0, truth.y0, truth.x1, truth.y1].map(f64::from);
    let width = fx1.min(tx1) - fx0.max(tx0);
    let height = fy1.min(ty1) - fy0.max(ty0);
    if width <= 0.0 || height <= 0.0 {
        return 0.0;
    }
    let both = width * height;
    let area = (fx1 - fx0) * (fy1 - fy0);
    match truth.crowd {
        true => both / area,
        false => both / (area + (tx1 - tx0) * (ty1 - ty0) - both),
    }
}

/// What became of a detection that was held against the true boxes of its class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Match {
    /// It is the first for an object.
    Right,
    /// There is no object, or it was found before.
    Wrong,
    /// It lies in a crowd.
    Ignored,
}

/// Overlaps of the detections of one class, best first, with the true boxes of that class.
struct Overlaps {
    /// Whether each true box is a crowd; crowds come last.
    crowd: Vec<bool>,
    /// By detection, then by true box.
    overlaps: Vec<Vec<f64>>,
}

impl Overlaps {
    /// Of at most `most` detections.
    fn of(class: u16, found: &[Detection], truth: &[TrueBox], most: usize) -> Overlaps {
        let mut truth: Vec<&TrueBox> = truth.iter().filter(|truth| truth.class == class).collect();
        truth.sort_by_key(|truth| truth.crowd);
        let overlaps = best_of(class, found, most)
            .map(|found| truth.iter().map(|truth| iou(found, truth)).collect())
            .collect();
        Overlaps { crowd: truth.iter().map(|truth| truth.crowd).collect(), overlaps }
    }

    /// How many objects there are to be found.
    fn objects(&self) -> usize {
        self.crowd.iter().filter(|crowd| !**crowd).count()
    }

    /// What becomes of each detection where `least` overlap is enough: each takes the object, not
    /// yet taken, that it overlaps most, else a crowd.
    fn matches(&self, least: f64) -> Vec<Match> {
        let mut taken = vec![false; self.crowd.len()];
        let take = |overlaps: &Vec<f64>| {
            let mut best: Option<usize> = None;
            let mut greatest = least;
            for (at, &overlap) in overlaps.iter().enumerate() {
                if taken[at] && !self.crowd[at] {
                    continue;
                }
                if best.is_some_and(|best| !self.crowd[best]) && self.crowd[at] {
                    break;
                }
                if overlap >= greatest {
                    (best, greatest) = (Some(at), overlap);
                }
            }
            let Some(best) = best else { return Match::Wrong };
            taken[best] = true;
            if self.crowd[best] { Match::Ignored } else { Match::Right }
        };
        self.overlaps.iter().map(take).collect()
    }
}

/// The `most` best detections of a class, best first, equals in their order.
fn best_of(class: u16, found: &[Detection], most: usize) -> impl Iterator<Item = &Detection> {
    let mut found: Vec<&Detection> = found.iter().filter(|found| found.class == class).collect();
    found.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    found.into_iter().take(most)
}

/// Classes that occur, each once.
fn classes(all: impl Iterator<Item = u16>) -> Vec<u16> {
    let mut classes: Vec<u16> = all.collect();
    classes.sort_unstable();
    classes.dedup();
    classes
}

/// F1 (0..=1) of the detections of one picture that score at least `confidence`: the harmonic mean
/// of precision and recall, where a detection is right that overlaps an object of its class by an
/// intersection over union of 0.5, each object for one detection, best first. 1 where nothing was
/// found and nothing is there.
///
/// ```
/// use isthmus_models::{Detection, TrueBox, f1};
/// let truth = TrueBox { class: 1, x0: 0.0, y0: 0.0, x1: 9.0, y1: 9.0, crowd: false };
/// let found = Detection { class: 1, confidence: 0.8, x0: 0.0, y0: 1.0, x1: 9.0, y1: 9.0 };
/// assert_eq!(f1(&[found, found], &[truth], 0.5), 2.0 / 3.0);
/// assert_eq!(f1(&[found], &[truth], 0.9), 0.0);
/// assert_eq!(f1(&[found], &[], 0.9), 1.0);
/// ```
pub fn f1(found: &[Detection], truth: &[TrueBox], confidence: f32) -> f64 {
    let found: Vec<Detection> =
        found.iter().filter(|found| found.confidence >= confidence).copied().collect();
    let (mut right, mut said) = (0, 0);
    for class in classes(found.iter().map(|found| found.class)) {
        let matches = Overlaps::of(class, &found, truth, usize::MAX).matches(ENOUGH_OVERLAP);
        right += matches.iter().filter(|it| **it == Match::Right).count();
        said += matches.iter().filter(|it| **it != Match::Ignored).count();
    }
    let there = truth.iter().filter(|truth| !truth.crowd).count();
    match said + there {
        0 => 1.0,
        all => 2.0 * right as f64 / all as f64,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(class: u16, confidence: f32, x0: f32, x1: f32) -> Detection {
        Detection { class, confidence, x0, y0: 0.0, x1, y1: 10.0 }
    }

    fn truth(class: u16, x0: f32, x1: f32) -> TrueBox {
        TrueBox { class, x0, y0: 0.0, x1, y1: 10.0, crowd: false }
    }

    #[test]
    fn each_object_is_found_once_and_only_by_its_class() {
        let there = [truth(0, 0.0, 10.0), truth(0, 20.0, 30.0), truth(1, 40.0, 50.0)];
        let exact =
            [found(0, 0.9, 0.0, 10.0), found(0, 0.8, 20.0, 30.0), found(1, 0.7, 40.0, 50.0)];
        assert_eq!(f1(&exact, &there, 0.0), 1.0);
        assert_eq!(f1(&exact[..1], &there, 0.0), 2.0 / 4.0);
        assert_eq!(f1(&[], &there, 0.0), 0.0);
        let wrong = [found(1, 0.9, 0.0, 10.0), found(1, 0.8, 40.0, 50.0)];
        assert_eq!(f1(&wrong, &there, 0.0), 2.0 / 5.0);
        // The better detection takes the object though the other fits better.
        let twice = [found(0, 0.8, 0.0, 10.0), found(0, 0.9, 2.0, 10.0)];
        assert_eq!(f1(&twice, &there[..1], 0.0), 2.0 / 3.0);
        assert_eq!(f1(&[found(0, 0.9, 0.0, 4.0)], &there[..1], 0.0), 0.0);
    }

    #[test]
    fn what_nobody_looked_for_is_neither_right_nor_wrong() {
        let all = [found(0, 0.9, 0.0, 10.0), found(7, 0.9, 40.0, 50.0)];
        let boxes = vec![truth(0, 0.0, 10.0)];
        let anything = TrueBoxes { boxes, covered: None };
        assert_eq!(anything.f1(&all, 0.5), 2.0 / 3.0);
        let some = TrueBoxes { covered: Some(Arc::new([0, 1].into())), ..anything };
        assert_eq!(some.f1(&all, 0.5), 1.0);
    }

    #[test]
    fn detections_in_a_crowd_count_for_nothing() {
        let crowd = TrueBox { crowd: true, ..truth(0, 0.0, 100.0) };
        let there = [crowd, truth(0, 20.0, 30.0)];
        let all = [found(0, 0.9, 1.0, 9.0), found(0, 0.8, 50.0, 60.0), found(0, 0.7, 20.0, 30.0)];
        assert_eq!(f1(&all, &there, 0.0), 1.0);
        assert_eq!(f1(&[], &[crowd], 0.0), 1.0);
        assert_eq!(f1(&[found(0, 0.9, 200.0, 210.0)], &[crowd], 0.0), 0.0);
    }
}
