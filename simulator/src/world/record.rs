//! What every way to answer makes of every frame, and what a controller may know of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use isthmus_head_client::{HeadRun, ImageRun, Ladder, LadderError, Load, Measured, Run};
use isthmus_models::{ImageSpec, Outcome, Outcomes, PointName, PointOutcomes, RecordedPoint};
use isthmus_proto::OperatingPoint;
use serde::{Deserialize, Serialize};

/// Most bytes of a frame: 128 packets.
const MAX_FRAME: u32 = 128 * 1_200;

/// How large networks are, where it is known: what a record does not tell.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Macs {
    /// Multiply-accumulates of heads by name, such as `s16/w100`.
    pub heads: BTreeMap<String, u64>,
    /// Of the uncut network; 0 keeps it off the device.
    pub full: u64,
}

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

/// What a byte may cost (share of frames right), from nothing to more than any answer is worth: the
/// prices for which luck is told.
const PRICES: [f64; 8] = [0.0, 2e-5, 6e-5, 2e-4, 6e-4, 2e-3, 6e-3, 1.0];

/// By how much a frame is better for a head than frames are on average, at each of some prices of a byte:
/// how much its best answer is worth less its bytes, of all that may be sent of that head and its
/// exit. The mean over all that can be played is zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Luck([f64; PRICES.len()]);

impl Luck {
    /// How many prices there are.
    pub const LEVELS: usize = PRICES.len();

    /// Both luck's sums.
    #[must_use]
    pub fn plus(self, other: Luck) -> Luck {
        let mut sum = self;
        sum.0.iter_mut().zip(other.0).for_each(|(sum, other)| *sum += other);
        sum
    }

    /// The luck at the `level`-th price, from 0 for bytes that cost nothing; beyond the last one there
    /// is none.
    pub fn of(self, level: usize) -> f64 {
        self.0.get(level).copied().unwrap_or(0.0)
    }
}

/// A record by what is run.
///
/// Its frames are divided: controllers know what the even ones say on average ([`Record::ladder`]),
/// the odd ones are played ([`Record::played`]), so that nobody is judged by what it learnt from.
/// What the even ones say of an odd one, at its exit's confidence, is what can be expected of it.
#[derive(Clone, Debug)]
pub struct Record {
    labels: Vec<u32>,
    points: BTreeMap<OperatingPoint, Vec<Outcome>>,
    images: BTreeMap<ImageSpec, Vec<Outcome>>,
    /// Of the uncut network, where the device may run it.
    full: Option<Vec<Outcome>>,
    exits: BTreeMap<(u8, u8), Vec<Outcome>>,
    /// Expected accuracy of every run and exit for each frame that can be played.
    expected: BTreeMap<Run, Vec<f64>>,
    expected_exits: BTreeMap<(u8, u8), Vec<f64>>,
    luck: BTreeMap<Load, Vec<Luck>>,
    ladder: Arc<Ladder>,
    names: BTreeMap<OperatingPoint, PointName>,
    heads: BTreeMap<(u8, u8), String>,
}

impl Record {
    /// Numbers the record's names: splits, widths and bit depths in order of the number in their
    /// name, channel counts as layers.
    pub fn new(outcomes: &Outcomes, macs: &Macs) -> Result<Record, RecordError> {
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
                RecordedPoint::Full | RecordedPoint::Image(_) => continue,
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
        let (mut points, mut images, mut full) = (BTreeMap::new(), BTreeMap::new(), None);
        let (mut exits, mut names, mut heads) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        for PointOutcomes { point: recorded, frames } in outcomes.points() {
            let sendable =
                || match frames.iter().position(|it| !(1..=MAX_FRAME).contains(&it.bytes)) {
                    None => Ok(()),
                    Some(frame) => {
                        let (point, bytes) = (recorded.to_string(), frames[frame].bytes);
                        Err(RecordError::Size { point, frame, bytes })
                    }
                };
            match recorded {
                RecordedPoint::Full => full = (macs.full > 0).then(|| frames.clone()),
                RecordedPoint::Image(image) => {
                    sendable()?;
                    images.insert(*image, frames.clone());
                }
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
                    sendable()?;
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
        let known = known(&points, &images, full.as_ref(), &exits);
        let macs = |run: Run| match run.head().and_then(|head| heads.get(&head)) {
            Some(head) => macs.heads.get(head).copied().unwrap_or(0),
            None => macs.full,
        };
        let ladder = Ladder::measured(&known, macs)?;
        let (mut expected, mut expected_exits) = (BTreeMap::new(), BTreeMap::new());
        let played = outcomes.frames() / 2;
        for (at, rung) in ladder.rungs().iter().enumerate() {
            let Some(head) = rung.run.head() else {
                expected.insert(rung.run, vec![ladder.accuracy(at, None); played]);
                continue;
            };
            let confidences =
                || exits[&head].iter().skip(1).step_by(2).map(|exit| Some(exit.confidence));
            let accuracy = confidences().map(|confidence| ladder.accuracy(at, confidence));
            expected.insert(rung.run, accuracy.collect());
            let accuracy = confidences().map(|confidence| ladder.exit_accuracy(at, confidence));
            expected_exits.insert(head, accuracy.collect());
        }
        // Without a head nothing is known of a picture when it is sent.
        for (&image, frames) in &images {
            let right = frames.iter().step_by(2).filter(|outcome| outcome.right).count();
            let share = right as f64 / frames.len().div_ceil(2) as f64;
            expected.insert(Run::Image(ImageRun { image, exit: None }), vec![share; played]);
        }
        let labels = outcomes.labels().to_vec();
        let ladder = Arc::new(ladder.thinned());
        let mut record = Record {
            labels,
            points,
            images,
            full,
            exits,
            expected,
            expected_exits,
            luck: BTreeMap::new(),
            ladder,
            names,
            heads,
        };
        let size = |run, at| record.run_outcome(run, at).map_or(0, |outcome| outcome.bytes);
        record.luck = luck(&record.ladder, &record.expected, &record.expected_exits, size);
        Ok(record)
    }

    /// What a controller may know and choose from: sizes and accuracies by confidence, over the
    /// even frames, of what is worth a place.
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

    /// What the uncut network made of it, compressed in this way.
    pub fn image_outcome(&self, image: ImageSpec, at: usize) -> Option<Outcome> {
        self.images.get(&image).map(|frames| frames[2 * at + 1])
    }

    /// What came of it where all of a run was sent, or the uncut network ran on the device.
    pub fn run_outcome(&self, run: Run, at: usize) -> Option<Outcome> {
        match run {
            Run::Head(run) => self.outcome(run.point(run.layers), at),
            Run::Image(run) => self.image_outcome(run.image, at),
            Run::Local => self.full.as_ref().map(|frames| frames[2 * at + 1]),
        }
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

    /// How likely it is right about the `at`-th frame where all of a run is sent, as far as can be
    /// known.
    pub fn expected(&self, run: impl Into<Run>, at: usize) -> Option<f64> {
        self.expected.get(&run.into()).map(|frames| frames[at])
    }

    /// How likely a head's exit is right about it, as far as can be known.
    pub fn expected_exit(&self, split: u8, width: u8, at: usize) -> Option<f64> {
        self.expected_exits.get(&(split, width)).map(|frames| frames[at])
    }

    /// How lucky whoever runs `load` is with it.
    pub fn luck(&self, load: Load, at: usize) -> Luck {
        self.luck.get(&load).map_or_else(Luck::default, |frames| frames[at])
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

    /// The ways to compress pictures that were recorded, in order.
    pub fn images(&self) -> impl Iterator<Item = ImageSpec> + '_ {
        self.images.keys().copied()
    }

    /// The run of this name: an operating point such as `s16/w100/c16/b6`, a picture without a head
    /// such as `image/webp/160/q35`, or `local`.
    pub fn run(&self, name: &str) -> Option<Run> {
        if name == "local" {
            return self.full.as_ref().map(|_| Run::Local);
        }
        if let Some(image) = name.strip_prefix("image/") {
            let image = self.images().find(|it| it.to_string() == image)?;
            return Some(Run::Image(ImageRun { image, exit: None }));
        }
        let point = self.names.iter().find(|(_, known)| known.to_string() == name);
        point.map(|(point, _)| (*point).into())
    }

    /// The names of all that can be run.
    pub fn run_names(&self) -> Vec<String> {
        let points = self.names.values().map(PointName::to_string);
        let images = self.images().map(|image| format!("image/{image}"));
        let full = self.full.iter().map(|_| "local".to_owned());
        points.chain(images).chain(full).collect()
    }

    /// A run's name; that of a picture tells the exit behind which it is.
    pub fn name(&self, run: impl Into<Run>) -> String {
        match run.into() {
            Run::Head(run) => {
                let point = run.point(run.layers);
                self.names.get(&point).map_or_else(|| point.to_string(), PointName::to_string)
            }
            Run::Image(ImageRun { image, exit }) => {
                let head = exit.and_then(|head| self.heads.get(&head));
                let behind = head.map(|head| format!(" or {head}/exit")).unwrap_or_default();
                format!("image/{image}{behind}")
            }
            Run::Local => "local".into(),
        }
    }

    /// The largest of the ladder's points.
    pub fn largest_point(&self) -> Option<OperatingPoint> {
        let point = |run| match run {
            Run::Head(run) => Some(run.point(run.layers)),
            Run::Image(_) | Run::Local => None,
        };
        self.ladder.rungs().iter().rev().find_map(|rung| point(rung.run))
    }

    /// The heads of the ladder, each with the run of its smallest point.
    pub fn ladder_heads(&self) -> BTreeMap<(u8, u8), HeadRun> {
        let heads: BTreeSet<_> =
            self.ladder.rungs().iter().filter_map(|rung| rung.run.head()).collect();
        let first = |head: (u8, u8)| {
            let point = self.points.keys().find(|point| (point.split, point.width) == head);
            point.map(|&point| (head, point.into()))
        };
        heads.into_iter().filter_map(first).collect()
    }

    /// The heads, by split and width, with their names such as `s16/w100`.
    pub fn heads(&self) -> &BTreeMap<(u8, u8), String> {
        &self.heads
    }
}

/// Luck of everything that runs a head, with every frame that can be played. `sizes` tells how many
/// bytes a run sends of a frame.
fn luck(
    ladder: &Ladder,
    expected: &BTreeMap<Run, Vec<f64>>,
    exits: &BTreeMap<(u8, u8), Vec<f64>>,
    sizes: impl Fn(Run, usize) -> u32,
) -> BTreeMap<Load, Vec<Luck>> {
    let on_ladder: BTreeSet<Run> = ladder.rungs().iter().map(|rung| rung.run).collect();
    let mut worths: BTreeMap<Load, Vec<Luck>> = BTreeMap::new();
    let runs = expected.iter().filter_map(|(run, frames)| Some((*run, run.head()?, frames)));
    for (run, head, frames) in runs {
        let kept = || exits[&head].iter().map(|&kept| Luck([kept; PRICES.len()])).collect();
        let worths = worths.entry(run.load()).or_insert_with(kept);
        // A picture is a load of its own, on the ladder or not.
        if matches!(run, Run::Image(_)) || on_ladder.contains(&run) {
            for (at, (worth, sent)) in worths.iter_mut().zip(frames).enumerate() {
                let bytes = f64::from(sizes(run, at));
                let best = worth.0.iter_mut().zip(PRICES);
                best.for_each(|(best, price)| *best = best.max(sent - price * bytes));
            }
        }
    }
    for worths in worths.values_mut() {
        let sum = worths.iter().copied().fold(Luck::default(), Luck::plus);
        let count = worths.len().max(1) as f64;
        for worth in worths {
            worth.0.iter_mut().zip(sum.0).for_each(|(worth, sum)| *worth -= sum / count);
        }
    }
    worths
}

/// What the even frames say: what a controller may know.
fn known(
    points: &BTreeMap<OperatingPoint, Vec<Outcome>>,
    images: &BTreeMap<ImageSpec, Vec<Outcome>>,
    full: Option<&Vec<Outcome>>,
    exits: &BTreeMap<(u8, u8), Vec<Outcome>>,
) -> Measured {
    let even = |frames: &[Outcome]| -> Vec<Outcome> { frames.iter().step_by(2).copied().collect() };
    let mut known = Measured::default();
    known.exits.extend(exits.iter().map(|(&head, frames)| (head, even(frames))));
    known.runs.extend(points.iter().map(|(&point, frames)| (point.into(), even(frames))));
    known.runs.extend(full.map(|frames| (Run::Local, even(frames))));
    images.iter().for_each(|(&image, frames)| known.add_image(image, &even(frames)));
    known
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::synthetic;

    #[test]
    fn names_become_points_and_back() {
        let record = Record::new(&synthetic::outcomes(400, 1), &Macs::default()).expect("a record");
        let run = record.run("s16/w100/c16/b6").expect("recorded");
        assert_eq!(run, OperatingPoint { split: 0, width: 1, layers: 3, bits: 6 }.into());
        assert_eq!(record.name(run), "s16/w100/c16/b6");
        assert_eq!(record.heads()[&(0, 0)], "s16/w50");
        let image = record.run("image/webp/160/q35").expect("recorded");
        assert_eq!(record.name(image), "image/webp/160/q35");
        let Run::Image(alone) = image else { panic!("{image}") };
        let behind = Run::Image(ImageRun { exit: Some((0, 0)), ..alone });
        assert_eq!(record.name(behind), "image/webp/160/q35 or s16/w50/exit");
        for unknown in ["s16/w100/c99/b6", "image/webp/160/q36", "local"] {
            assert_eq!(record.run(unknown), None, "{unknown}");
        }
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
        let record = Record::new(&Outcomes::parse(&text).expect("rows"), &Macs::default())
            .expect("a record");
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
        let record = Record::new(&Outcomes::parse(&text).expect("rows"), &Macs::default())
            .expect("a record");
        let ladder = record.ladder();
        assert!(ladder.exit_accuracy(0, Some(0.9)) > 0.9);
        assert!(ladder.accuracy(0, Some(0.1)) < 0.1);
        let run = record.run("s/w1/c4/b6").expect("recorded");
        assert!(record.expected(run, 0).is_some_and(|share| share < 0.1), "as even ones at 0.1");
        assert_eq!(record.expected_exit(0, 0, 0), Some(ladder.exit_accuracy(0, Some(0.1))));
        assert!((0..record.played()).all(|at| !record.exit(0, 0, at).expect("recorded").right));
    }

    #[test]
    fn luck_is_zero_in_the_mean_and_good_for_sure_exits() {
        let record = Record::new(&synthetic::outcomes(800, 1), &Macs::default()).expect("a record");
        for &(split, width) in record.heads().keys() {
            let image = record.images().next().expect("a picture");
            let behind = ImageRun { image, exit: Some((split, width)) };
            let confidence =
                |at: &usize| record.exit(split, width, *at).map_or(0.0, |exit| exit.confidence);
            let sure = (0..record.played()).max_by(|a, b| confidence(a).total_cmp(&confidence(b)));
            for load in [Load::Head(split, width), Load::Image(behind)] {
                let lucks = (0..record.played()).map(|at| record.luck(load, at));
                let sum = lucks.fold(Luck::default(), Luck::plus);
                assert!((0..Luck::LEVELS).all(|level| sum.of(level).abs() < 1e-9), "{sum:?}");
                let sure = record.luck(load, sure.expect("a frame"));
                assert!(sure.of(Luck::LEVELS - 1) > 0.0, "{sure:?}");
            }
        }
    }

    #[test]
    fn a_picture_without_a_head_is_worth_what_the_even_frames_say_of_it() {
        let row = |frame: usize| {
            // Even frames have 100 bytes and are right every other time, odd ones 900 and never.
            let (bytes, right) = match frame % 4 {
                0 => (100, 1),
                2 => (100, 0),
                _ => (900, 0),
            };
            format!(
                "{frame},0,s/w1/exit,0,1,0.5\n{frame},0,s/w1/c4/b6,9,1,0.9\n\
                 {frame},0,image/webp/160/q35,{bytes},{right},0.9\n{frame},0,full,0,1,0.9\n"
            )
        };
        let text = "frame,label,point,bytes,right,confidence\n".to_owned()
            + &(0..64).map(row).collect::<String>();
        let macs = Macs { full: 1_000, ..Macs::default() };
        let record = Record::new(&Outcomes::parse(&text).expect("rows"), &macs).expect("a record");
        let image = record.run("image/webp/160/q35").expect("recorded");
        assert_eq!(record.expected(image, 0), Some(0.5));
        assert_eq!(record.luck(image.load(), 0), Luck::default());
        let played = record.run_outcome(image, 0).expect("recorded");
        assert_eq!((played.bytes, played.right), (900, false));
        assert_eq!(record.expected(Run::Local, 0), Some(1.0));
        assert!(record.ladder().position(Run::Local).is_some());
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
            ("#,0,image/jpeg/9/q9,0,1,1\n", "image/jpeg/9/q9: frame 0 has 0 bytes"),
            ("#,0,s/w1/exit,0,1,1\n#,0,s/w1/c4/b6,200000,1,1\n", "frame 0 has 200000 bytes"),
        ] {
            let error = Record::new(&text(rows), &Macs::default()).expect_err(rows).to_string();
            assert!(error.contains(expected), "{error}");
        }
        let few = Outcomes::parse("frame,label,point,bytes,right,confidence\n0,0,full,0,1,1\n");
        assert!(matches!(
            Record::new(&few.expect("a row"), &Macs::default()),
            Err(RecordError::Few(1))
        ));
    }
}
