//! What a controller may choose from, and what each choice is worth.

use std::collections::BTreeMap;

use isthmus_models::{Bundle, Rung};
use isthmus_proto::OperatingPoint;

use super::HeadRun;

/// How much an exit's confidence tells: for each band of confidence, how often the exit is right.
/// Bands are in order of confidence and together cover it.
#[derive(Clone, Debug, PartialEq)]
pub struct Calibration {
    /// Upper end of each band, increasing; the last one is 1 or more.
    pub upper: Vec<f32>,
    /// Share of frames in each band; they add up to 1.
    pub share: Vec<f64>,
    /// Share of each band's frames that the exit gets right.
    pub accuracy: Vec<f64>,
}

/// One operating point and what it is worth.
#[derive(Clone, Debug, PartialEq)]
pub struct LadderRung {
    /// The point.
    pub point: OperatingPoint,
    /// Mean size of a frame (bytes).
    pub bytes: f64,
    /// Share of frames that are right, for each band of the exit's confidence, or one for all.
    pub accuracy: Vec<f64>,
}

/// Why rungs and exits are no ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LadderError {
    /// There is nothing to choose from.
    #[error("there is no measured operating point to choose from")]
    Empty,
    /// A rung whose head has no exit listed.
    #[error("the head of operating point {0} has no exit in the ladder")]
    NoExit(OperatingPoint),
    /// Bands that differ between a rung and its exit, or that are no bands.
    #[error("the bands of confidence of operating point {0} do not fit its exit's")]
    Bands(OperatingPoint),
    /// A size that is none.
    #[error("operating point {0} has no size")]
    Size(OperatingPoint),
}

/// The operating points that a controller chooses from, and the exits of their heads.
///
/// ```
/// use isthmus_head_client::{Calibration, Ladder, LadderRung};
/// use isthmus_proto::OperatingPoint;
///
/// let exit = Calibration { upper: vec![0.5, 1.0], share: vec![0.3, 0.7], accuracy: vec![0.4, 0.9] };
/// let point = OperatingPoint { split: 0, width: 0, layers: 1, bits: 6 };
/// let rung = LadderRung { point, bytes: 500.0, accuracy: vec![0.8, 0.95] };
/// let ladder = Ladder::new(vec![rung], [((0, 0), exit)].into())?;
/// // Where the exit is unsure, the network gains most.
/// let gain = |confidence| ladder.accuracy(0, confidence) - ladder.exit_accuracy(0, confidence);
/// assert!(gain(Some(0.2)) > gain(Some(0.8)));
/// # Ok::<(), isthmus_head_client::LadderError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Ladder {
    rungs: Vec<LadderRung>,
    exits: BTreeMap<(u8, u8), Calibration>,
    /// Of each rung: mean accuracy of its head's exit.
    exit_means: Vec<f64>,
    /// Of each rung: the run that codes all that its head and depth may send.
    runs: Vec<HeadRun>,
}

/// Least expected gain in accuracy for which a frame is sent.
const WORTH: f64 = 0.002;

/// Rungs of a ladder that a controller climbs: more are not worth their noise, nor the time of
/// looking at each.
const MOST_RUNGS: usize = 12;

/// What a rung must gain on cheaper ones to be worth a place. Less is within the error of
/// accuracies that were measured on some hundred frames.
const LEAST_GAIN: f64 = 0.005;

impl Ladder {
    /// Checks that every rung's head has an exit, by split and width, with the same bands. Rungs
    /// are kept in order of size.
    pub fn new(
        mut rungs: Vec<LadderRung>,
        exits: BTreeMap<(u8, u8), Calibration>,
    ) -> Result<Ladder, LadderError> {
        if rungs.is_empty() {
            return Err(LadderError::Empty);
        }
        rungs.sort_by(|a, b| a.bytes.total_cmp(&b.bytes).then(a.point.cmp(&b.point)));
        let mut exit_means = Vec::new();
        for LadderRung { point, bytes, accuracy } in &rungs {
            let exit = exits.get(&(point.split, point.width)).ok_or(LadderError::NoExit(*point))?;
            let Calibration { upper, share, accuracy: exit_accuracy } = exit;
            let count = upper.len();
            let whole = upper.last().is_some_and(|&last| last >= 1.0);
            let increasing = upper.windows(2).all(|two| two[0] < two[1]);
            let same = share.len() == count && exit_accuracy.len() == count;
            if !whole || !increasing || !same || (accuracy.len() != count && accuracy.len() != 1) {
                return Err(LadderError::Bands(*point));
            }
            if !(bytes.is_finite() && *bytes > 0.0) {
                return Err(LadderError::Size(*point));
            }
            exit_means.push(share.iter().zip(exit_accuracy).map(|(s, a)| s * a).sum());
        }
        let runs = rungs.iter().map(|rung| widest_run(&rungs, rung.point)).collect();
        Ok(Ladder { rungs, exits, exit_means, runs })
    }

    /// The measured points of a bundle that are worth a place, with what its manifest says of them
    /// and of the exits: one band for all frames.
    pub fn of_bundle(bundle: &Bundle) -> Result<Ladder, LadderError> {
        let mut exits = BTreeMap::new();
        for (s, split) in (0..).zip(&bundle.manifest().splits) {
            for (w, width) in (0..).zip(&split.widths) {
                let (upper, share) = (vec![1.0], vec![1.0]);
                let accuracy = vec![width.exit_accuracy];
                exits.insert((s, w), Calibration { upper, share, accuracy });
            }
        }
        let rung = |rung: &Rung| LadderRung {
            point: rung.point,
            bytes: rung.bytes_mean,
            accuracy: vec![rung.accuracy],
        };
        Ok(Ladder::new(bundle.points().iter().map(rung).collect(), exits)?.thinned())
    }

    /// The same without the rungs that gain next to nothing on cheaper ones, and with at most
    /// twelve. Cheaper is what takes no more bytes and, of the same split, no wider head; the exit
    /// is cheaper than every rung of its head.
    #[must_use]
    pub fn thinned(&self) -> Ladder {
        let mut rungs = self.rungs.clone();
        while rungs.len() > 1 {
            let gains = rungs.iter().map(|rung| self.gain(rung, &rungs)).enumerate();
            let Some((at, least)) = gains.min_by(|a, b| a.1.total_cmp(&b.1)) else { break };
            if least >= LEAST_GAIN && rungs.len() <= MOST_RUNGS {
                break;
            }
            rungs.remove(at);
        }
        // Rungs of a ladder are a ladder.
        Ladder::new(rungs, self.exits.clone()).unwrap_or_else(|_| self.clone())
    }

    /// Mean accuracy that `rung` adds to the best of the cheaper ones among `rungs`.
    fn gain(&self, rung: &LadderRung, rungs: &[LadderRung]) -> f64 {
        let exit = &self.exits[&(rung.point.split, rung.point.width)].accuracy;
        let cheaper = rungs.iter().filter(|other| {
            let (it, other_point) = (rung.point, other.point);
            let narrower = other_point.split == it.split && other_point.width <= it.width;
            other_point != it && narrower && other.bytes <= rung.bytes
        });
        let cheaper = cheaper.map(|other| self.mean(other.point, &other.accuracy));
        let best = cheaper.fold(self.mean(rung.point, exit), f64::max);
        self.mean(rung.point, &rung.accuracy) - best
    }

    /// The rungs, in order of size.
    pub fn rungs(&self) -> &[LadderRung] {
        &self.rungs
    }

    /// The heads of the rungs, by split and width, each with the run of its smallest rung.
    pub fn exits(&self) -> impl Iterator<Item = ((u8, u8), HeadRun)> + '_ {
        fn head(point: &OperatingPoint) -> (u8, u8) {
            (point.split, point.width)
        }
        let first = move |(at, rung): (usize, &LadderRung)| {
            let before = self.rungs[..at].iter().any(|it| head(&it.point) == head(&rung.point));
            (!before).then(|| (head(&rung.point), rung.point.into()))
        };
        self.rungs.iter().enumerate().filter_map(first)
    }

    /// Position of the rung of this point.
    pub fn position(&self, point: OperatingPoint) -> Option<usize> {
        self.rungs.iter().position(|rung| rung.point == point)
    }

    /// Expected accuracy of a rung for a frame of this exit confidence, or of any frame.
    pub fn accuracy(&self, rung: usize, confidence: Option<f32>) -> f64 {
        let LadderRung { point, accuracy, .. } = &self.rungs[rung];
        match self.band(*point, confidence) {
            Some(band) => accuracy[band.min(accuracy.len() - 1)],
            None => self.mean(*point, accuracy),
        }
    }

    /// Expected accuracy of the exit of a rung's head for a frame of this confidence, or of any.
    pub fn exit_accuracy(&self, rung: usize, confidence: Option<f32>) -> f64 {
        let point = self.rungs[rung].point;
        match self.band(point, confidence) {
            Some(band) => self.exits[&(point.split, point.width)].accuracy[band],
            None => self.exit_means[rung],
        }
    }

    /// Mean accuracy of a rung where the exit answers the frames for which sending gains no more than
    /// it `costs` (accuracy), and the share of frames that are sent.
    pub(super) fn policy(&self, rung: usize, costs: f64) -> (f64, f64) {
        let LadderRung { point, accuracy, .. } = &self.rungs[rung];
        let exit = &self.exits[&(point.split, point.width)];
        let (mut mean, mut sent) = (0.0, 0.0);
        for (band, (share, exit)) in exit.share.iter().zip(&exit.accuracy).enumerate() {
            let network = accuracy[band.min(accuracy.len() - 1)];
            let worth = Ladder::is_worth(network - exit - costs);
            mean += share * if worth { network } else { *exit };
            sent += if worth { *share } else { 0.0 };
        }
        (mean, sent)
    }

    /// Whether a gain in accuracy is worth sending anything.
    pub(super) fn is_worth(gain: f64) -> bool {
        gain > WORTH
    }

    /// The run that codes every layer that a rung of its head and depth may send.
    pub(super) fn run_of(&self, rung: usize) -> HeadRun {
        self.runs[rung]
    }

    fn band(&self, point: OperatingPoint, confidence: Option<f32>) -> Option<usize> {
        let upper = &self.exits[&(point.split, point.width)].upper;
        let band = upper.partition_point(|&upper| upper < confidence.unwrap_or(0.0));
        confidence.map(|_| band.min(upper.len() - 1))
    }

    fn mean(&self, point: OperatingPoint, accuracy: &[f64]) -> f64 {
        let share = &self.exits[&(point.split, point.width)].share;
        let by_band = share.iter().enumerate();
        by_band.map(|(band, share)| share * accuracy[band.min(accuracy.len() - 1)]).sum()
    }
}

fn widest_run(rungs: &[LadderRung], point: OperatingPoint) -> HeadRun {
    let OperatingPoint { split, width, bits, .. } = point;
    let same = |it: &OperatingPoint| (it.split, it.width, it.bits) == (split, width, bits);
    let points = rungs.iter().map(|rung| &rung.point).filter(|it| same(it));
    let layers = points.map(|it| it.layers).max().unwrap_or(point.layers);
    HeadRun { layers, ..point.into() }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::controller) fn point(width: u8, layers: u8) -> OperatingPoint {
        OperatingPoint { split: 0, width, layers, bits: 6 }
    }

    pub(in crate::controller) fn exit() -> Calibration {
        Calibration {
            upper: vec![0.4, 0.8, 1.0],
            share: vec![0.2, 0.3, 0.5],
            accuracy: vec![0.3, 0.7, 0.99],
        }
    }

    pub(in crate::controller) fn rung(width: u8, layers: u8, bytes: f64, lift: f64) -> LadderRung {
        let accuracy = vec![0.6 + lift, 0.8 + lift, 0.99];
        LadderRung { point: point(width, layers), bytes, accuracy }
    }

    /// Four layers of one head: 300, 600, 1,200 and 2,400 bytes.
    pub(in crate::controller) fn ladder() -> Ladder {
        let rungs =
            (0..4).map(|at| rung(0, at + 1, 300.0 * f64::from(1 << at), 0.05 * f64::from(at)));
        Ladder::new(rungs.collect(), [((0, 0), exit())].into()).expect("a ladder")
    }

    #[test]
    fn confidence_picks_the_band() {
        let ladder = ladder();
        for (confidence, exit) in [(0.0, 0.3), (0.4, 0.3), (0.41, 0.7), (1.0, 0.99), (7.0, 0.99)] {
            assert_eq!(ladder.exit_accuracy(0, Some(confidence)), exit, "{confidence}");
        }
        let mean = 0.2 * 0.3 + 0.3 * 0.7 + 0.5 * 0.99;
        assert!((ladder.exit_accuracy(2, None) - mean).abs() < 1e-12);
    }

    #[test]
    fn a_policy_sends_only_where_that_gains() {
        let (accuracy, sent) = ladder().policy(1, 0.0);
        assert!((sent - 0.5).abs() < 1e-12);
        assert!((accuracy - (0.2 * 0.65 + 0.3 * 0.85 + 0.5 * 0.99)).abs() < 1e-12);
        let (accuracy, sent) = ladder().policy(1, 0.2);
        assert!((sent - 0.2).abs() < 1e-12);
        assert!((accuracy - (0.2 * 0.65 + 0.3 * 0.7 + 0.5 * 0.99)).abs() < 1e-12);
    }

    #[test]
    fn what_gains_nothing_on_cheaper_rungs_has_no_place() {
        let rungs = vec![
            rung(0, 1, 300.0, 0.0),
            rung(0, 2, 600.0, 0.003), // gains less than the error
            rung(0, 3, 1_200.0, 0.05),
            rung(1, 1, 500.0, -0.02), // a wider head, more bytes, less accurate
            rung(1, 2, 500.0, 0.06),
            rung(1, 3, 900.0, 0.06), // the same for more bytes
        ];
        let exits: BTreeMap<_, _> = [((0, 0), exit()), ((0, 1), exit())].into();
        let thin = Ladder::new(rungs, exits).expect("a ladder").thinned();
        let points: Vec<_> = thin.rungs().iter().map(|rung| rung.point).collect();
        assert_eq!(points, [point(0, 1), point(1, 2), point(0, 3)]);
    }

    #[test]
    fn a_long_ladder_keeps_the_twelve_rungs_that_gain_most() {
        let rungs = (0..15u8).map(|at| LadderRung {
            point: point(0, at + 1),
            bytes: 100.0 * f64::from(at + 1),
            accuracy: vec![0.77 + 0.001 * f64::from(at).powi(2); 3],
        });
        let long = Ladder::new(rungs.collect(), [((0, 0), exit())].into()).expect("a ladder");
        let thin = long.thinned();
        assert_eq!(thin.rungs().len(), 12);
        assert_eq!(thin.rungs().last(), long.rungs().last());
        assert_eq!(thin.thinned(), thin);
    }

    #[test]
    fn what_is_no_ladder_is_refused() {
        let exits: BTreeMap<_, _> = [((0, 0), exit())].into();
        assert_eq!(Ladder::new(vec![], exits.clone()), Err(LadderError::Empty));
        let other = vec![rung(1, 1, 100.0, 0.0)];
        assert_eq!(Ladder::new(other, exits.clone()), Err(LadderError::NoExit(point(1, 1))));
        let two = LadderRung { accuracy: vec![0.5; 2], ..rung(0, 1, 100.0, 0.0) };
        assert_eq!(Ladder::new(vec![two], exits.clone()), Err(LadderError::Bands(point(0, 1))));
        let nothing = vec![rung(0, 1, f64::NAN, 0.0)];
        assert_eq!(Ladder::new(nothing, exits), Err(LadderError::Size(point(0, 1))));
        let short = Calibration { upper: vec![0.4, 0.8, 0.9], ..exit() };
        let refused = Ladder::new(vec![rung(0, 1, 1.0, 0.0)], [((0, 0), short)].into());
        assert_eq!(refused, Err(LadderError::Bands(point(0, 1))));
    }
}
