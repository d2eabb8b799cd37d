//! Mean average precision as COCO defines it.

use std::collections::BTreeMap;

use super::{Match, Overlaps, TrueBox, best_of, classes};
use crate::detect::Detection;

/// Overlaps from which a detection is right: 0.5, 0.55, … 0.95.
const OVERLAPS: usize = 10;

/// Recalls at which precision is read: 0, 0.01, … 1.
const RECALLS: usize = 101;

/// Detections of a class that count in a picture.
const MOST: usize = 100;

/// Average precision over pictures as COCO's evaluation defines it for boxes of any area: at most
/// 100 detections of a class a picture, precision made monotone and read at 101 recalls, the mean
/// over classes that occur in truth (Lin et al., Microsoft COCO, arXiv 1405.0312, and its API).
///
/// ```
/// use isthmus_models::{Detection, MeanAveragePrecision, TrueBox};
/// let truth = TrueBox { class: 1, x0: 0.0, y0: 0.0, x1: 10.0, y1: 10.0, crowd: false };
/// let found = Detection { class: 1, confidence: 0.8, x0: 0.0, y0: 0.0, x1: 8.0, y1: 10.0 };
/// let mut precision = MeanAveragePrecision::default();
/// precision.add(&[found], &[truth]);
/// let precision = precision.summary().expect("an object");
/// assert_eq!((precision.at_50, precision.at_75), (1.0, 1.0));
/// assert!((precision.mean - 0.7).abs() < 1e-9, "0.8 is enough for 0.5 to 0.8");
/// ```
#[derive(Clone, Debug, Default)]
pub struct MeanAveragePrecision {
    classes: BTreeMap<u16, Class>,
}

/// All that was said of one class.
#[derive(Clone, Debug, Default)]
struct Class {
    /// Objects to be found.
    objects: usize,
    /// Confidence, and what became of it at each overlap; in the order of pictures.
    found: Vec<(f32, [Match; OVERLAPS])>,
}

/// Average precision, all 0..=1.
#[derive(Clone, Debug, PartialEq)]
pub struct AveragePrecision {
    /// Mean over overlaps of 0.5 to 0.95: COCO's mAP.
    pub mean: f64,
    /// Where an overlap of 0.5 is enough: AP50.
    pub at_50: f64,
    /// Where an overlap of 0.75 is enough: AP75.
    pub at_75: f64,
    /// [`mean`](AveragePrecision::mean) of each class that occurs in truth.
    pub classes: BTreeMap<u16, f64>,
}

impl MeanAveragePrecision {
    /// Adds a picture: what was found in it, and what is there. Boxes that score little belong to
    /// it, too: a recall that is not reached counts as precision 0.
    pub fn add(&mut self, found: &[Detection], truth: &[TrueBox]) {
        let all = found.iter().map(|it| it.class).chain(truth.iter().map(|it| it.class));
        for class in classes(all) {
            let overlaps = Overlaps::of(class, found, truth, MOST);
            let record = self.classes.entry(class).or_default();
            record.objects += overlaps.objects();
            let matches: [Vec<Match>; OVERLAPS] =
                std::array::from_fn(|at| overlaps.matches(overlap(at)));
            let found = best_of(class, found, MOST).enumerate();
            record.found.extend(found.map(|(at, found)| {
                (found.confidence, std::array::from_fn(|overlap| matches[overlap][at]))
            }));
        }
    }

    /// Adds all pictures of another, behind its own.
    pub fn merge(&mut self, other: &MeanAveragePrecision) {
        for (&class, record) in &other.classes {
            let own = self.classes.entry(class).or_default();
            own.objects += record.objects;
            own.found.extend_from_slice(&record.found);
        }
    }

    /// The precision over all pictures that were added; `None` where there was nothing to be found.
    pub fn summary(&self) -> Option<AveragePrecision> {
        let classes = self.classes.iter().filter(|(_, record)| record.objects > 0);
        let classes: Vec<(u16, [f64; OVERLAPS])> =
            classes.map(|(class, record)| (*class, record.precisions())).collect();
        let mean = |values: &mut dyn Iterator<Item = f64>| {
            let (sum, count) =
                values.fold((0.0, 0), |(sum, count), value| (sum + value, count + 1));
            sum / f64::from(count)
        };
        let at = |overlap: usize| mean(&mut classes.iter().map(|(_, values)| values[overlap]));
        if classes.is_empty() {
            return None;
        }
        Some(AveragePrecision {
            mean: mean(&mut (0..OVERLAPS).map(at)),
            at_50: at(0),
            at_75: at(5),
            classes: classes
                .iter()
                .map(|(class, values)| (*class, mean(&mut values.iter().copied())))
                .collect(),
        })
    }
}

/// The overlap at a place, by the same arithmetic as COCO's, of which a last digit can decide.
fn overlap(at: usize) -> f64 {
    match at + 1 {
        OVERLAPS => 0.95,
        _ => 0.5 + at as f64 * ((0.95 - 0.5) / (OVERLAPS - 1) as f64),
    }
}

impl Class {
    /// Average precision at each overlap.
    fn precisions(&self) -> [f64; OVERLAPS] {
        let mut found: Vec<&(f32, [Match; OVERLAPS])> = self.found.iter().collect();
        found.sort_by(|a, b| b.0.total_cmp(&a.0));
        std::array::from_fn(|overlap| {
            self.precision(found.iter().map(|(_, matches)| matches[overlap]))
        })
    }

    /// Average precision of what was found, best first.
    fn precision(&self, found: impl Iterator<Item = Match>) -> f64 {
        let (mut right, mut said) = (0usize, 0usize);
        // Recall and precision after each detection.
        let mut curve: Vec<(f64, f64)> = Vec::new();
        for found in found {
            right += usize::from(found == Match::Right);
            said += usize::from(found != Match::Ignored);
            let precision = right as f64 / said.max(1) as f64;
            curve.push((right as f64 / self.objects as f64, precision));
        }
        // Each precision is the best at its recall or above.
        let mut best = 0.0f64;
        for (_, precision) in curve.iter_mut().rev() {
            best = best.max(*precision);
            *precision = best;
        }
        let read = |at: usize| {
            let recall = match at + 1 {
                RECALLS => 1.0,
                _ => at as f64 * 0.01,
            };
            let reached = curve.partition_point(|(reached, _)| *reached < recall);
            curve.get(reached).map_or(0.0, |(_, precision)| *precision)
        };
        (0..RECALLS).map(read).sum::<f64>() / RECALLS as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(confidence: f32, x0: f32) -> Detection {
        Detection { class: 0, confidence, x0, y0: 0.0, x1: x0 + 10.0, y1: 10.0 }
    }

    fn truth(x0: f32) -> TrueBox {
        TrueBox { class: 0, x0, y0: 0.0, x1: x0 + 10.0, y1: 10.0, crowd: false }
    }

    #[test]
    fn precision_is_read_at_101_recalls() {
        // Right, wrong, right of two: precision 1 to a recall of 0.5, then 2 / 3.
        let mut precision = MeanAveragePrecision::default();
        precision.add(&[found(0.9, 0.0), found(0.8, 50.0)], &[truth(0.0)]);
        precision.add(&[found(0.7, 0.0)], &[truth(0.0)]);
        let summary = precision.summary().expect("two objects");
        let expected = (51.0 + 50.0 * 2.0 / 3.0) / 101.0;
        assert!((summary.mean - expected).abs() < 1e-12, "{summary:?}");
        // Pictures without anything, and classes that are nowhere in truth, change nothing.
        precision.add(&[], &[]);
        precision.add(&[Detection { class: 4, ..found(0.9, 0.0) }], &[]);
        assert_eq!(precision.summary(), Some(summary));
    }

    #[test]
    fn nothing_to_be_found_has_no_precision() {
        let mut precision = MeanAveragePrecision::default();
        assert_eq!(precision.summary(), None);
        precision.add(&[found(0.9, 0.0)], &[TrueBox { crowd: true, ..truth(0.0) }]);
        assert_eq!(precision.summary(), None);
        precision.add(&[], &[truth(0.0)]);
        assert_eq!(precision.summary().expect("an object").at_50, 0.0);
    }
}
