//! What the answer to one picture is worth, and those to many pictures together.

use isthmus_models::{Bundle, MeanAveragePrecision, Outputs, TrueBoxes, View};
use serde::Serialize;

use super::super::accuracy::is_right;
use super::super::found::{Found, threshold};

/// What is true of a picture.
#[derive(Clone, Copy, Debug)]
pub(super) enum Truth<'a> {
    /// Its class.
    Class(&'a str),
    /// Its objects.
    Boxes(&'a TrueBoxes),
}

/// How good the answer to one picture is.
#[derive(Clone, Debug)]
pub(super) enum Judged {
    /// Whether the class is right.
    Class(bool),
    /// What became of the boxes that were found.
    Boxes {
        /// Precision is one of many pictures: this is a part of it.
        precision: MeanAveragePrecision,
        /// F1 of the boxes that an answer has by default.
        f1: f64,
        /// Answers in the reply (bytes).
        reply: u32,
    },
}

impl Default for Judged {
    fn default() -> Self {
        Judged::Class(false)
    }
}

impl Judged {
    /// Of a network's outputs for a picture that it saw so.
    pub(super) fn of(
        bundle: &Bundle,
        outputs: Outputs,
        view: &View,
        truth: Truth<'_>,
    ) -> anyhow::Result<Judged> {
        let truth = match truth {
            Truth::Class(class) => return Ok(Judged::Class(is_right(bundle, &outputs, class))),
            Truth::Boxes(truth) => truth,
        };
        let Found { boxes, reply, .. } = Found::of(bundle, outputs, view)?;
        let mut precision = MeanAveragePrecision::default();
        precision.add(&truth.judged(&boxes), &truth.boxes);
        Ok(Judged::Boxes { precision, f1: truth.f1(&boxes, threshold(bundle)), reply })
    }
}

/// How good a detector's answers are, beside their mean average precision.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BoxQuality {
    /// Average precision where an overlap of 0.5 is enough, 0 to 1.
    pub ap50: f64,
    /// Mean over pictures of the F1 at IoU 0.5 of the boxes that an answer has by default, 0 to 1.
    pub f1: f64,
    /// Mean of the answers in a reply (bytes).
    pub reply_bytes: f64,
}

/// How good answers are together: the fraction of classes that are right, or the boxes' mean average
/// precision.
pub(super) fn together<'a>(answers: impl Iterator<Item = &'a Judged>) -> (f64, Option<BoxQuality>) {
    let (mut count, mut right) = (0usize, 0usize);
    let mut all: Option<MeanAveragePrecision> = None;
    let (mut f1_sum, mut bytes) = (0.0, 0.0);
    for answer in answers {
        count += 1;
        match answer {
            Judged::Class(is_right) => right += usize::from(*is_right),
            Judged::Boxes { precision, f1, reply } => {
                all.get_or_insert_default().merge(precision);
                f1_sum += f1;
                bytes += f64::from(*reply);
            }
        }
    }
    let count = count.max(1) as f64;
    let Some(all) = all else { return (right as f64 / count, None) };
    let (map, ap50) = all.summary().map_or((0.0, 0.0), |it| (it.mean, it.at_50));
    (map, Some(BoxQuality { ap50, f1: f1_sum / count, reply_bytes: bytes / count }))
}
