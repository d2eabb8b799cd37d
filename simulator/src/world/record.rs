//! What every operating point makes of every frame, and what a controller may know of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use isthmus_head_client::{Calibration, HeadRun, Ladder, LadderError, LadderRung};
use isthmus_models::{Outcome, Outcomes, PointName, PointOutcomes, RecordedPoint};
use isthmus_proto::OperatingPoint;
use serde::{Deserialize, Serialize};

/// Most bands of confidence of a calibration, each with as many frames, and the least of those.
const MOST_BANDS: usize = 8;
const BAND_FRAMES: usize = 40;

/// Frames that a band's accuracy is drawn to the mean by: a band of few frames proves little.
const PRIOR: f64 = 8.0;

/// Most bytes of a frame: 128 packets.
const MAX_FRAME: u32 = 128 * 1_200;

/// Why a record cannot be simulated.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// There is nothing to send.
    #[error("the record has no operating point; at least one like s16/w100/c16/b6 is needed")]
    NoPoint,
    /// A head whose exit was not recorded.
    #[error("the record has no {0}/{1}/exit, though points of that head")]
    NoExit(String, String),
    /// A frame too large for a simulated one.
    #[error("{point}: frame {frame} has {bytes} bytes; a simulated one has 1 to {MAX_FRAME}")]
    Size {
        /// The point.
        point: String,
        /// The frame.
        frame: usize,
        /// Its size (bytes).
        bytes: u32,
    },
    /// Too little to tell knowledge from truth.
    #[error("the record has {0} frames; at least 64 are needed: half to calibrate, half to play")]
    Few(usize),
    /// More names than an operating point can number.
    #[error("the record has more than 16 splits, widths or channel counts")]
    Many,
    /// No ladder can be made.
    #[error(transparent)]
    Ladder(#[from] LadderError),
}

/// By how much a picture is better for a head than pictures are on average. The mean over all that
/// can be played is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Luck {
    /// Expected accuracy of the best of the ladder's points of that head, or of its exit, less the
    /// mean.
    pub sent: f64,
    /// Expected accuracy of its exit, less the mean.
    pub kept: f64,
}

impl Luck {
    /// Both luck's sums.
    #[must_use]
    pub fn plus(self, other: Luck) -> Luck {
        Luck { sent: self.sent + other.sent, kept: self.kept + other.kept }
    }

    /// The luck where the share `sent` of frames is sent.
    pub fn of(self, sent: f64) -> f64 {
        sent * self.sent + (1.0 - sent) * self.kept
    }
}

/// A record by operating point.
///
/// Its frames are divided: controllers know what the even ones say on average ([`Record::ladder`]),
/// the odd ones are played ([`Record::played`]), so that nobody is judged by what it learnt from.
/// What the even ones say of an odd one, at its exit's confidence, is what can be expected of it.
#[derive(Clone, Debug)]
pub struct Record {
    labels: Vec<u32>,
    points: BTreeMap<OperatingPoint, Vec<Outcome>>,
    exits: BTreeMap<(u8, u8), Vec<Outcome>>,
    /// Expected accuracy of every point and exit for each frame that can be played.
    expected_points: BTreeMap<OperatingPoint, Vec<f64>>,
    expected_exits: BTreeMap<(u8, u8), Vec<f64>>,
    luck: BTreeMap<(u8, u8), Vec<Luck>>,
    ladder: Arc<Ladder>,
    names: BTreeMap<OperatingPoint, PointName>,
    heads: BTreeMap<(u8, u8), String>,
}

impl Record {
    /// Numbers the record's names: splits, widths and bit depths in order of the number in their
    /// name, channel counts as layers.
    pub fn new(outcomes: &Outcomes) -> Result<Record, RecordError> {
        if outcomes.frames() < 64 {
            return Err(RecordError::Few(outcomes.frames()));
        }
        let number = |name: &str| -> (u32, String) {
            let digits: String = name.chars().filter(char::is_ascii_digit).collect();
            (digits.parse().unwrap_or(0), name.to_owned())
        };
        let (mut splits, mut widths) = (BTreeSet::new(), BTreeMap::new());
        let mut channels: BTreeMap<String, BTreeSet<u16>> = BTreeMap::new();
        for PointOutcomes { point, .. } in outcomes.points() {
            let (split, width) = match point {
                RecordedPoint::Full => continue,
                RecordedPoint::Exit { split, width } => (split, width),
                RecordedPoint::Split(name) => {
                    channels.entry(name.split.clone()).or_default().insert(name.channels);
                    (&name.split, &name.width)
                }
            };
            splits.insert(number(split));
            widths.entry(split.clone()).or_insert_with(BTreeSet::new).insert(number(width));
        }
        let position = |at: Option<usize>| {
            at.and_then(|at| u8::try_from(at).ok()).filter(|&at| at < 16).ok_or(RecordError::Many)
        };
        let split_of = |name: &str| position(splits.iter().position(|(_, split)| split == name));
        let width_of = |split: &str, name: &str| {
            position(widths[split].iter().position(|(_, width)| width == name))
        };
        let (mut points, mut exits) = (BTreeMap::new(), BTreeMap::new());
        let (mut names, mut heads) = (BTreeMap::new(), BTreeMap::new());
        for PointOutcomes { point, frames } in outcomes.points() {
            match point {
                RecordedPoint::Full => {}
                RecordedPoint::Exit { split, width } => {
                    let head = (split_of(split)?, width_of(split, width)?);
                    exits.insert(head, frames.clone());
                    heads.insert(head, format!("{split}/{width}"));
                }
                RecordedPoint::Split(name) => {
                    let layer = channels[&name.split].iter().position(|&c| c == name.channels);
                    let point = OperatingPoint {
                        split: split_of(&name.split)?,
                        width: width_of(&name.split, &name.width)?,
                        layers: position(layer)? + 1,
                        bits: name.bits,
                    };
                    let bad = frames.iter().position(|it| !(1..=MAX_FRAME).contains(&it.bytes));
                    if let Some(frame) = bad {
                        let (point, bytes) = (name.to_string(), frames[frame].bytes);
                        return Err(RecordError::Size { point, frame, bytes });
                    }
                    points.insert(point, frames.clone());
                    names.insert(point, name.clone());
                }
            }
        }
        if points.is_empty() {
            return Err(RecordError::NoPoint);
        }
        for (point, name) in &names {
            if !exits.contains_key(&(point.split, point.width)) {
                return Err(RecordError::NoExit(name.split.clone(), name.width.clone()));
            }
        }
        let known = known(&points, &exits)?;
        let (mut expected_points, mut expected_exits) = (BTreeMap::new(), BTreeMap::new());
        for (at, rung) in known.rungs().iter().enumerate() {
            let head = (rung.point.split, rung.point.width);
            let played =
                || exits[&head].iter().skip(1).step_by(2).map(|exit| Some(exit.confidence));
            let accuracy = played().map(|confidence| known.accuracy(at, confidence));
            expected_points.insert(rung.point, accuracy.collect());
            let accuracy = played().map(|confidence| known.exit_accuracy(at, confidence));
            expected_exits.insert(head, accuracy.collect());
        }
        let labels = outcomes.labels().to_vec();
        let ladder = Arc::new(known.thinned());
        let luck = luck(&ladder, &expected_points, &expected_exits);
        let record = Record {
            labels,
            points,
            exits,
            expected_points,
            expected_exits,
            luck,
            ladder,
            names,
            heads,
        };
        Ok(record)
    }

    /// What a controller may know and choose from: sizes and accuracies by confidence, over the
    /// even frames, of the points that are worth a place.
    pub fn ladder(&self) -> &Arc<Ladder> {
        &self.ladder
    }

    /// Frames that can be played: the odd ones.
    pub fn played(&self) -> usize {
        self.labels.len() / 2
    }

    /// True class of the `at`-th frame that can be played.
    pub fn label(&self, at: usize) -> usize {
        self.labels[2 * at + 1] as usize
    }

    /// What a point made of it.
    pub fn outcome(&self, point: OperatingPoint, at: usize) -> Option<Outcome> {
        self.points.get(&point).map(|frames| frames[2 * at + 1])
    }

    /// What came of it where the first `layers` of a point arrived, and on how many it rests: what
    /// was not recorded is as good as the next less that was.
    pub fn outcome_of_layers(
        &self,
        point: OperatingPoint,
        layers: u8,
        at: usize,
    ) -> Option<(Outcome, u8)> {
        let known = |layers| Some((self.outcome(OperatingPoint { layers, ..point }, at)?, layers));
        (1..=layers).rev().find_map(known)
    }

    /// What a head's exit made of it.
    pub fn exit(&self, split: u8, width: u8, at: usize) -> Option<Outcome> {
        self.exits.get(&(split, width)).map(|frames| frames[2 * at + 1])
    }

    /// How likely a point is right about the `at`-th frame, as far as can be known.
    pub fn expected(&self, point: OperatingPoint, at: usize) -> Option<f64> {
        self.expected_points.get(&point).map(|frames| frames[at])
    }

    /// How likely a head's exit is right about it, as far as can be known.
    pub fn expected_exit(&self, split: u8, width: u8, at: usize) -> Option<f64> {
        self.expected_exits.get(&(split, width)).map(|frames| frames[at])
    }

    /// How lucky a head is with it.
    pub fn luck(&self, split: u8, width: u8, at: usize) -> Luck {
        self.luck.get(&(split, width)).map_or_else(Luck::default, |frames| frames[at])
    }

    /// Sizes up to and with each layer that `run` codes, envelope and header included. A layer at
    /// which nothing was recorded is as large as the next one that was.
    pub fn layer_ends(&self, run: HeadRun, at: usize) -> Vec<usize> {
        let mut ends = vec![0; usize::from(run.layers)];
        let mut next = 0;
        for layers in (1..=run.layers).rev() {
            if let Some(outcome) = self.outcome(run.point(layers), at) {
                next = outcome.bytes as usize;
            }
            ends[usize::from(layers) - 1] = next;
        }
        ends
    }

    /// The operating points, in order.
    pub fn points(&self) -> impl Iterator<Item = OperatingPoint> + '_ {
        self.points.keys().copied()
    }

    /// The point of this name.
    pub fn point(&self, name: &str) -> Option<OperatingPoint> {
        self.names.iter().find(|(_, known)| known.to_string() == name).map(|(point, _)| *point)
    }

    /// A point's name.
    pub fn name(&self, point: OperatingPoint) -> String {
        self.names.get(&point).map_or_else(|| point.to_string(), PointName::to_string)
    }

    /// The heads, by split and width, with their names such as `s16/w100`.
    pub fn heads(&self) -> &BTreeMap<(u8, u8), String> {
        &self.heads
    }
}

/// Luck of every head with every frame that can be played.
fn luck(
    ladder: &Ladder,
    points: &BTreeMap<OperatingPoint, Vec<f64>>,
    exits: &BTreeMap<(u8, u8), Vec<f64>>,
) -> BTreeMap<(u8, u8), Vec<Luck>> {
    let of_head = |(&head, kept): (&(u8, u8), &Vec<f64>)| {
        let rungs = ladder.rungs().iter().map(|rung| rung.point);
        let rungs: Vec<_> = rungs.filter(|point| (point.split, point.width) == head).collect();
        let best = |at: usize| rungs.iter().map(|point| points[point][at]).fold(kept[at], f64::max);
        let worth = (0..kept.len()).map(|at| Luck { sent: best(at), kept: kept[at] });
        let worth: Vec<Luck> = worth.collect();
        let sum = worth.iter().fold(Luck::default(), |sum, &it| sum.plus(it));
        let count = worth.len().max(1) as f64;
        let less =
            |it: &Luck| Luck { sent: it.sent - sum.sent / count, kept: it.kept - sum.kept / count };
        (head, worth.iter().map(less).collect())
    };
    exits.iter().map(of_head).collect()
}

/// Sizes, and accuracies by the exit's confidence, of all points over the even frames.
fn known(
    points: &BTreeMap<OperatingPoint, Vec<Outcome>>,
    exits: &BTreeMap<(u8, u8), Vec<Outcome>>,
) -> Result<Ladder, LadderError> {
    let even = |frames: &[Outcome]| -> Vec<Outcome> { frames.iter().step_by(2).copied().collect() };
    let (mut calibrations, mut bands) = (BTreeMap::new(), BTreeMap::new());
    for (&head, frames) in exits {
        let frames = even(frames);
        let upper = upper_ends(&frames);
        let band_of = |outcome: &Outcome| {
            let band = upper.partition_point(|&upper| upper < outcome.confidence);
            band.min(upper.len() - 1)
        };
        let band: Vec<usize> = frames.iter().map(band_of).collect();
        let counts = (0..upper.len()).map(|at| band.iter().filter(|&&b| b == at).count());
        let share = counts.map(|count| count as f64 / frames.len() as f64).collect();
        let accuracy = by_band(&frames, &band, upper.len());
        calibrations.insert(head, Calibration { upper, share, accuracy });
        bands.insert(head, band);
    }
    let rung = |(point, frames): (&OperatingPoint, &Vec<Outcome>)| {
        let frames = even(frames);
        let head = (point.split, point.width);
        let bytes = frames.iter().map(|outcome| f64::from(outcome.bytes)).sum::<f64>();
        let accuracy = by_band(&frames, &bands[&head], calibrations[&head].upper.len());
        LadderRung { point: *point, bytes: bytes / frames.len() as f64, accuracy }
    };
    let rungs = points.iter().map(rung).collect();
    Ladder::new(rungs, calibrations)
}

/// Upper ends of bands with equally many frames; the last one is 1.
fn upper_ends(frames: &[Outcome]) -> Vec<f32> {
    let mut sorted: Vec<f32> = frames.iter().map(|outcome| outcome.confidence).collect();
    sorted.sort_by(f32::total_cmp);
    let bands = (frames.len() / BAND_FRAMES).clamp(1, MOST_BANDS);
    let mut upper: Vec<f32> =
        (1..bands).map(|band| sorted[(sorted.len() * band / bands).max(1) - 1]).collect();
    upper.push(1.0);
    upper.dedup();
    upper
}

/// Accuracy in each band, drawn a little to the mean, and never falling with confidence: where a
/// few dozen frames say otherwise, they are too few.
fn by_band(frames: &[Outcome], band: &[usize], bands: usize) -> Vec<f64> {
    let right = |outcome: &Outcome| if outcome.right { 1.0 } else { 0.0 };
    let mean = frames.iter().map(right).sum::<f64>() / frames.len().max(1) as f64;
    let mut sums = vec![(PRIOR * mean, PRIOR); bands];
    for (outcome, &band) in frames.iter().zip(band) {
        sums[band].0 += right(outcome);
        sums[band].1 += 1.0;
    }
    isotonic(&sums)
}

/// The non-decreasing sequence nearest to the means of `sums`, each with its sum and weight, by
/// pooling adjacent violators.
fn isotonic(sums: &[(f64, f64)]) -> Vec<f64> {
    // Sum, weight and length of each pool; means increase.
    let mut pools: Vec<(f64, f64, usize)> = Vec::new();
    for &(sum, weight) in sums {
        let mut pool = (sum, weight, 1);
        while let Some(&(sum, weight, length)) = pools.last()
            && sum / weight >= pool.0 / pool.1
        {
            pool = (pool.0 + sum, pool.1 + weight, pool.2 + length);
            pools.pop();
        }
        pools.push(pool);
    }
    pools.iter().flat_map(|&(sum, weight, length)| vec![sum / weight; length]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::synthetic;

    #[test]
    fn names_become_points_and_back() {
        let record = Record::new(&synthetic::outcomes(400, 1)).expect("a record");
        let point = record.point("s16/w100/c16/b6").expect("recorded");
        assert_eq!(point, OperatingPoint { split: 0, width: 1, layers: 3, bits: 6 });
        assert_eq!(record.name(point), "s16/w100/c16/b6");
        assert_eq!(record.heads()[&(0, 0)], "s16/w50");
        assert_eq!(record.point("s16/w100/c99/b6"), None);
    }

    #[test]
    fn layers_that_were_not_recorded_are_as_large_as_the_next() {
        let text = "frame,label,point,bytes,right,confidence\n".to_owned()
            + &(0..64)
                .map(|frame| {
                    format!(
                        "{frame},0,s/w1/exit,0,1,0.5\n{frame},0,s/w1/c4/b6,100,1,0.9\n\
                         {frame},0,s/w1/c8/b5,300,1,0.9\n{frame},0,s/w1/c16/b6,500,1,0.9\n"
                    )
                })
                .collect::<String>();
        let record = Record::new(&Outcomes::parse(&text).expect("rows")).expect("a record");
        let run = HeadRun { split: 0, width: 0, bits: 6, layers: 3 };
        assert_eq!(record.layer_ends(run, 0), [100, 500, 500]);
    }

    #[test]
    fn the_ladder_knows_the_even_frames_and_not_the_odd_ones() {
        // Even frames are right exactly where the exit is sure; odd ones never.
        let row = |frame: usize| {
            let sure = frame.is_multiple_of(4);
            let right = u8::from(sure);
            let confidence = if sure { 0.9 } else { 0.1 };
            format!(
                "{frame},0,s/w1/exit,0,{right},{confidence}\n{frame},0,s/w1/c4/b6,100,{right},0.9\n"
            )
        };
        let text = "frame,label,point,bytes,right,confidence\n".to_owned()
            + &(0..800).map(row).collect::<String>();
        let record = Record::new(&Outcomes::parse(&text).expect("rows")).expect("a record");
        let ladder = record.ladder();
        assert!(ladder.exit_accuracy(0, Some(0.9)) > 0.9);
        assert!(ladder.accuracy(0, Some(0.1)) < 0.1);
        let point = record.point("s/w1/c4/b6").expect("recorded");
        assert!(record.expected(point, 0).is_some_and(|share| share < 0.1), "as even ones at 0.1");
        assert_eq!(record.expected_exit(0, 0, 0), Some(ladder.exit_accuracy(0, Some(0.1))));
        assert!((0..record.played()).all(|at| !record.exit(0, 0, at).expect("recorded").right));
    }

    #[test]
    fn luck_is_zero_in_the_mean_and_good_for_sure_exits() {
        let record = Record::new(&synthetic::outcomes(800, 1)).expect("a record");
        for &(split, width) in record.heads().keys() {
            let lucks = (0..record.played()).map(|at| record.luck(split, width, at));
            let sum = lucks.fold(Luck::default(), Luck::plus);
            assert!(sum.of(0.0).abs() < 1e-9 && sum.of(1.0).abs() < 1e-9, "{sum:?}");
            let confidence =
                |at: &usize| record.exit(split, width, *at).map_or(0.0, |exit| exit.confidence);
            let sure = (0..record.played()).max_by(|a, b| confidence(a).total_cmp(&confidence(b)));
            assert!(record.luck(split, width, sure.expect("a frame")).kept > 0.0);
        }
    }

    #[test]
    fn accuracy_never_falls_with_confidence() {
        assert_eq!(isotonic(&[(1.0, 4.0), (2.0, 4.0)]), [0.25, 0.5]);
        assert_eq!(isotonic(&[(3.0, 4.0), (1.0, 4.0), (4.0, 4.0)]), [0.5, 0.5, 1.0]);
        assert_eq!(isotonic(&[(3.0, 4.0), (3.0, 4.0), (0.0, 8.0)]), [0.375; 3]);
    }

    #[test]
    fn records_that_cannot_be_played_are_refused() {
        let text = |rows: &str| {
            let rows: String = (0..64).map(|frame| rows.replace('#', &frame.to_string())).collect();
            Outcomes::parse(&format!("frame,label,point,bytes,right,confidence\n{rows}"))
                .expect("rows")
        };
        for (rows, expected) in [
            ("#,0,full,0,1,1\n", "no operating point"),
            ("#,0,s/w1/c4/b6,9,1,1\n", "no s/w1/exit"),
            ("#,0,s/w1/exit,0,1,1\n#,0,s/w1/c4/b6,0,1,1\n", "frame 0 has 0 bytes"),
            ("#,0,s/w1/exit,0,1,1\n#,0,s/w1/c4/b6,200000,1,1\n", "frame 0 has 200000 bytes"),
        ] {
            let error = Record::new(&text(rows)).expect_err(rows).to_string();
            assert!(error.contains(expected), "{error}");
        }
        let few = Outcomes::parse("frame,label,point,bytes,right,confidence\n0,0,full,0,1,1\n");
        assert!(matches!(Record::new(&few.expect("a row")), Err(RecordError::Few(1))));
    }
}
