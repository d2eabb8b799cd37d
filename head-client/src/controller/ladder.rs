//! The ladder: the ways to answer a frame that a controller chooses from, each with its size and its
//! quality.

use std::collections::{BTreeMap, BTreeSet};

use isthmus_proto::ImageFormat;

use super::calibration::Calibration;
use super::filter::Filter;
use super::run::{HeadRun, Run};

/// One way to answer a frame, with its size and its quality.
#[derive(Clone, Debug, PartialEq)]
pub struct LadderRung {
    /// What is run. All of it is sent: of a head, these layers.
    pub run: Run,
    /// Mean size of a frame (bytes); 0 where nothing is sent.
    pub bytes: f64,
    /// Fraction of frames that are right, for each band of the exit's confidence, or one for all.
    pub quality: Vec<f64>,
    /// Multiply-accumulates of the networks that the device runs for it; 0 if unknown.
    pub macs: u64,
}

/// Why rungs and exits do not make a ladder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LadderError {
    /// There are no rungs.
    #[error("no operating point was measured: there is nothing to choose from")]
    Empty,
    /// A rung that sends something, without a fallback exit of its head.
    #[error("{0} has no exit in the ladder")]
    NoExit(Run),
    /// Bands of confidence that differ between a rung and its exit, or do not cover 0 to 1 in order.
    #[error(
        "{0} and its exit have different bands of confidence, or bands that do not cover 0 to 1"
    )]
    Bands(Run),
    /// A mean size that is not a positive number.
    #[error("the mean size of {0} is not a positive number of bytes")]
    Size(Run),
}

/// The rungs that a controller chooses from, and the fallback exits behind them.
///
/// ```
/// use isthmus_head_client::{Calibration, Ladder, LadderRung};
/// use isthmus_proto::OperatingPoint;
///
/// let exit =
///     Calibration { upper: vec![0.5, 1.0], fraction: vec![0.3, 0.7], quality: vec![0.4, 0.9] };
/// let run = OperatingPoint { split: 0, width: 0, layers: 1, bits: 6 }.into();
/// let rung = LadderRung { run, bytes: 500.0, quality: vec![0.8, 0.95], macs: 0 };
/// let ladder = Ladder::new(vec![rung], [((0, 0), exit)].into())?;
/// // Where the exit is unsure, the network gains most.
/// let gain = |confidence| ladder.quality(0, confidence) - ladder.exit_quality(0, confidence);
/// assert!(gain(Some(0.2)) > gain(Some(0.8)));
/// # Ok::<(), isthmus_head_client::LadderError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Ladder {
    rungs: Vec<LadderRung>,
    exits: BTreeMap<(u8, u8), Calibration>,
    /// Mean quality of each rung, and of the fallback where nothing of the rung is sent in time.
    means: Vec<f64>,
    exit_means: Vec<f64>,
    /// For each rung the run that codes all layers which may be sent of its head and depth.
    runs: Vec<Run>,
    /// Positions of the rungs that are planned with.
    planned: Vec<usize>,
}

/// Least expected gain in quality for which a frame is sent.
const WORTH: f64 = 0.002;

/// Most rungs that a controller plans with: more add noise and time to every decision.
const MOST_RUNGS: usize = 12;

/// Quality that a rung must add, in the mean over devices and links, to be kept. Less is within the
/// error of qualities that were measured on some hundred frames.
const LEAST_WORTH: f64 = 0.0005;

/// Links for which a ladder is thinned: so many, evenly spaced on a logarithmic scale, from one that
/// carries a sixteenth of the smallest rung in the time of a frame to one that carries four times the
/// largest.
const LINKS: u32 = 32;
const SLOWEST_LINK: f64 = 1.0 / 16.0;
const FASTEST_LINK: f64 = 4.0;

impl Ladder {
    /// Checks that every rung that sends something has a fallback exit with the same bands. Rungs are
    /// kept in order of size.
    pub fn new(
        mut rungs: Vec<LadderRung>,
        exits: BTreeMap<(u8, u8), Calibration>,
    ) -> Result<Ladder, LadderError> {
        if rungs.is_empty() {
            return Err(LadderError::Empty);
        }
        rungs.sort_by(|a, b| a.bytes.total_cmp(&b.bytes).then(a.run.cmp(&b.run)));
        let (mut means, mut exit_means) = (Vec::new(), Vec::new());
        for LadderRung { run, bytes, quality, .. } in &rungs {
            let run = *run;
            if run == Run::Local {
                let &[mean] = quality.as_slice() else { return Err(LadderError::Bands(run)) };
                means.push(mean);
                exit_means.push(mean);
                continue;
            }
            let exit = run.head().and_then(|head| exits.get(&head));
            let exit = exit.ok_or(LadderError::NoExit(run))?;
            let count = exit.upper.len();
            if !exit.is_whole() || (quality.len() != count && quality.len() != 1) {
                return Err(LadderError::Bands(run));
            }
            if !(bytes.is_finite() && *bytes > 0.0) {
                return Err(LadderError::Size(run));
            }
            means.push(exit.mean(quality));
            exit_means.push(exit.mean(&exit.quality));
        }
        let runs = rungs.iter().map(|rung| widest_run(&rungs, rung.run)).collect();
        let planned = (0..rungs.len()).collect();
        Ok(Ladder { rungs, exits, means, exit_means, runs, planned })
    }

    /// The same ladder for frames that go through a filter first: those that pass for empty are never
    /// sent, so that there a rung is worth what its exit is.
    #[must_use]
    pub fn filtered(mut self, filter: &Filter) -> Ladder {
        for (at, rung) in self.rungs.iter_mut().enumerate() {
            let Some(head) = rung.run.head() else { continue };
            let (Some(exit), Some(threshold)) = (self.exits.get(&head), filter.threshold(head))
            else {
                continue;
            };
            let network = rung.quality.clone();
            let lower = |band: usize| band.checked_sub(1).map_or(0.0, |below| exit.upper[below]);
            rung.quality = (0..exit.upper.len())
                .map(|band| match lower(band) >= threshold {
                    true => exit.quality[band],
                    false => network[band.min(network.len() - 1)],
                })
                .collect();
            self.means[at] = exit.mean(&rung.quality);
        }
        self
    }

    /// The same ladder with at most twelve rungs to plan with: those of the greatest worth. Rungs with
    /// fewer layers of the same run stay, because they may be all that can be sent in time.
    ///
    /// The worth of a rung is the quality that would be lost without it, in the mean over devices, each
    /// of which can run the heads of a split up to some width and one image codec, and over links, every
    /// order of magnitude as likely as another. On a link that cannot carry a rung for every frame it
    /// answers as many as it can, and the exit the others. The full network on the device is always
    /// kept.
    #[must_use]
    pub fn thinned(&self) -> Ladder {
        let devices = self.devices();
        let mut kept: Vec<usize> = (0..self.rungs.len()).collect();
        let is_sent = |&&rung: &&usize| self.rungs[rung].bytes > 0.0;
        while kept.iter().filter(is_sent).count() > 1 {
            let mut worth = vec![0.0; self.rungs.len()];
            devices.iter().for_each(|device| self.add_worth(device, &kept, &mut worth));
            let sent = kept.iter().enumerate().filter(|(_, rung)| is_sent(rung));
            let Some((at, &least)) = sent.min_by(|a, b| worth[*a.1].total_cmp(&worth[*b.1])) else {
                break;
            };
            if worth[least] / devices.len() as f64 >= LEAST_WORTH && kept.len() <= MOST_RUNGS {
                break;
            }
            kept.remove(at);
        }
        let runs: Vec<Run> = kept.iter().map(|&rung| self.rungs[rung].run).collect();
        let stays = |rung: &&LadderRung| runs.iter().any(|&run| is_part(rung.run, run));
        let rungs = self.rungs.iter().filter(stays).cloned().collect();
        // Rungs of a ladder are a ladder.
        let Ok(thinned) = Ladder::new(rungs, self.exits.clone()) else { return self.clone() };
        let planned = runs.iter().filter_map(|&run| thinned.position(run)).collect();
        Ladder { planned, ..thinned }
    }

    /// The rungs that each kind of device can use, smallest first.
    fn devices(&self) -> Vec<Vec<usize>> {
        let heads: BTreeSet<(u8, u8)> =
            self.rungs.iter().filter_map(|rung| rung.run.head()).collect();
        let codec = |rung: &LadderRung| match rung.run {
            Run::Image(run) => Some(run.image.format),
            Run::Head(_) | Run::Local => None,
        };
        let codecs: BTreeSet<Option<ImageFormat>> = self.rungs.iter().map(codec).collect();
        let mut devices = Vec::new();
        for (split, width) in heads {
            for &other in &codecs {
                let usable = |rung: &LadderRung| {
                    let head = rung.run.head();
                    head.is_some_and(|head| head.0 == split && head.1 <= width)
                        && codec(rung).is_none_or(|codec| Some(codec) == other)
                };
                let rungs = (0..self.rungs.len()).filter(|&rung| usable(&self.rungs[rung]));
                devices.push(rungs.collect());
            }
        }
        devices
    }

    /// Adds to each rung's worth the quality that a device would lose without it, given those that are
    /// `kept`.
    fn add_worth(&self, device: &[usize], kept: &[usize], worth: &mut [f64]) {
        let exit = device.iter().map(|&rung| self.exit_means[rung]).fold(0.0, f64::max);
        let smallest = self.rungs.iter().map(|rung| rung.bytes).find(|&bytes| bytes > 0.0);
        let least = smallest.unwrap_or(1.0) * SLOWEST_LINK;
        let most = self.rungs[self.rungs.len() - 1].bytes * FASTEST_LINK;
        for link in 0..LINKS {
            let carries = least * (most / least).powf(f64::from(link) / f64::from(LINKS - 1));
            let (mut best, mut quality, mut without) = (None, exit, exit);
            for &rung in device.iter().filter(|rung| kept.contains(rung)) {
                let sent = (carries / self.rungs[rung].bytes).min(1.0);
                let value =
                    self.exit_means[rung] + sent * (self.means[rung] - self.exit_means[rung]);
                if value > quality {
                    (best, quality, without) = (Some(rung), value, quality);
                } else {
                    without = without.max(value);
                }
            }
            if let Some(best) = best {
                worth[best] += (quality - without) / f64::from(LINKS);
            }
        }
    }

    /// The rungs, in order of size.
    pub fn rungs(&self) -> &[LadderRung] {
        &self.rungs
    }

    /// The positions of the rungs to plan with, in order of size.
    pub fn planned(&self) -> &[usize] {
        &self.planned
    }

    /// Position of the rung of this run.
    pub fn position(&self, run: impl Into<Run>) -> Option<usize> {
        let run = run.into();
        self.rungs.iter().position(|rung| rung.run == run)
    }

    /// Expected quality of a rung for a frame of this exit confidence, or of any frame.
    pub fn quality(&self, rung: usize, confidence: Option<f32>) -> f64 {
        let quality = &self.rungs[rung].quality;
        match self.band(rung, confidence) {
            Some(band) => quality[band.min(quality.len() - 1)],
            None => self.means[rung],
        }
    }

    /// Expected quality for a frame of this exit confidence, or of any frame, where nothing of a rung is
    /// sent: of its head's exit, or of the full network if that is the run.
    pub fn exit_quality(&self, rung: usize, confidence: Option<f32>) -> f64 {
        let exit = self.rungs[rung].run.head().and_then(|head| self.exits.get(&head));
        match (exit, self.band(rung, confidence)) {
            (Some(exit), Some(band)) => exit.quality[band],
            _ => self.exit_means[rung],
        }
    }

    /// Mean quality of a rung if frames are sent only where that gains more than it `costs` (quality)
    /// and the exit answers the others, and the fraction of frames that are sent:
    ///
    /// `a = Σ wᵢ · (gᵢ > cost + 0.002 ? nᵢ : eᵢ)`, over bands i with the fraction wᵢ of frames, the
    /// network's quality nᵢ, the exit's eᵢ and the gain `gᵢ = nᵢ − eᵢ`.
    pub(super) fn policy(&self, rung: usize, costs: f64) -> (f64, f64) {
        let LadderRung { run, quality, .. } = &self.rungs[rung];
        let Some(exit) = run.head().and_then(|head| self.exits.get(&head)) else {
            return (self.means[rung], 0.0);
        };
        let (mut mean, mut sent) = (0.0, 0.0);
        for (band, (fraction, exit)) in exit.fraction.iter().zip(&exit.quality).enumerate() {
            let network = quality[band.min(quality.len() - 1)];
            let worth = Ladder::is_worth(network - exit - costs);
            mean += fraction * if worth { network } else { *exit };
            sent += if worth { *fraction } else { 0.0 };
        }
        (mean, sent)
    }

    /// Whether a gain in quality is worth sending anything.
    pub(super) fn is_worth(gain: f64) -> bool {
        gain > WORTH
    }

    /// The run that codes every layer which may be sent of this rung's head and depth.
    pub(super) fn run_of(&self, rung: usize) -> Run {
        self.runs[rung]
    }

    /// Positions of the rungs that may be sent of a run.
    pub(super) fn of_run(&self, run: Run) -> impl Iterator<Item = usize> + '_ {
        let bits = |run: Run| if let Run::Head(run) = run { Some(run.bits) } else { None };
        let same = move |other: Run| (other.load(), bits(other)) == (run.load(), bits(run));
        (0..self.rungs.len()).filter(move |&rung| same(self.rungs[rung].run))
    }

    /// The rungs that may be sent of a run, each with its layers and, by the coded stream's
    /// `layer_ends`, its size (bytes). A picture is one layer.
    pub(super) fn sendable<'a>(
        &'a self,
        run: Run,
        layer_ends: &'a [usize],
    ) -> impl Iterator<Item = (usize, u8, usize)> + 'a {
        self.of_run(run).map(move |rung| {
            let layers = match self.rungs[rung].run {
                Run::Head(run) => run.layers,
                Run::Image(_) | Run::Local => 1,
            };
            let last = usize::from(layers).saturating_sub(1);
            let bytes = layer_ends.get(last).or(layer_ends.last()).copied().unwrap_or(0);
            (rung, layers, bytes)
        })
    }

    fn band(&self, rung: usize, confidence: Option<f32>) -> Option<usize> {
        let exit = self.exits.get(&self.rungs[rung].run.head()?)?;
        Some(exit.band(confidence?))
    }
}

/// Whether a run is the same as `of`, or its first layers.
fn is_part(run: Run, of: Run) -> bool {
    match (run, of) {
        (Run::Head(run), Run::Head(of)) => {
            run.layers <= of.layers && run == HeadRun { layers: run.layers, ..of }
        }
        (run, of) => run == of,
    }
}

/// The run that codes every layer that `rungs` may send of the head and depth of `run`.
fn widest_run(rungs: &[LadderRung], run: Run) -> Run {
    let Run::Head(HeadRun { split, width, bits, layers }) = run else { return run };
    let of_head = rungs.iter().filter_map(|rung| match rung.run {
        Run::Head(it) if (it.split, it.width, it.bits) == (split, width, bits) => Some(it.layers),
        _ => None,
    });
    Run::Head(HeadRun { split, width, bits, layers: of_head.max().unwrap_or(layers) })
}

#[cfg(test)]
pub(super) mod tests {
    use isthmus_models::ImageSpec;
    use isthmus_proto::OperatingPoint;

    use super::*;
    use crate::controller::ImageRun;

    pub(in crate::controller) fn point(width: u8, layers: u8) -> OperatingPoint {
        OperatingPoint { split: 0, width, layers, bits: 6 }
    }

    pub(in crate::controller) fn exit() -> Calibration {
        Calibration {
            upper: vec![0.4, 0.8, 1.0],
            fraction: vec![0.2, 0.3, 0.5],
            quality: vec![0.3, 0.7, 0.99],
        }
    }

    pub(in crate::controller) fn rung(width: u8, layers: u8, bytes: f64, lift: f64) -> LadderRung {
        let quality = vec![0.6 + lift, 0.8 + lift, 0.99];
        LadderRung { run: point(width, layers).into(), bytes, quality, macs: 0 }
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
            assert_eq!(ladder.exit_quality(0, Some(confidence)), exit, "{confidence}");
        }
        let mean = 0.2 * 0.3 + 0.3 * 0.7 + 0.5 * 0.99;
        assert!((ladder.exit_quality(2, None) - mean).abs() < 1e-12);
    }

    #[test]
    fn a_policy_sends_only_where_that_gains() {
        let (quality, sent) = ladder().policy(1, 0.0);
        assert!((sent - 0.5).abs() < 1e-12);
        assert!((quality - (0.2 * 0.65 + 0.3 * 0.85 + 0.5 * 0.99)).abs() < 1e-12);
        let (quality, sent) = ladder().policy(1, 0.2);
        assert!((sent - 0.2).abs() < 1e-12);
        assert!((quality - (0.2 * 0.65 + 0.3 * 0.7 + 0.5 * 0.99)).abs() < 1e-12);
    }

    #[test]
    fn rungs_that_gain_nothing_on_cheaper_ones_are_left_out() {
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
        let runs: Vec<Run> = thin.planned().iter().map(|&at| thin.rungs()[at].run).collect();
        assert_eq!(runs, [point(0, 1), point(1, 2), point(0, 3)].map(Run::from));
    }

    pub(in crate::controller) fn picture(width: u8, bytes: f64, lift: f64) -> LadderRung {
        let image = ImageSpec { format: ImageFormat::Webp, side: 160, quality: 35 };
        let run = Run::Image(ImageRun { image, exit: Some((0, width)) });
        LadderRung { run, ..rung(width, 1, bytes, lift) }
    }

    pub(in crate::controller) fn local(quality: f64, macs: u64) -> LadderRung {
        LadderRung { run: Run::Local, bytes: 0.0, quality: vec![quality], macs }
    }

    #[test]
    fn a_picture_is_kept_behind_the_narrowest_head_that_needs_it() {
        let rungs = vec![
            rung(0, 1, 300.0, 0.0),
            rung(1, 2, 500.0, 0.06),
            picture(0, 3_000.0, 0.08),
            picture(1, 3_000.0, 0.08),
            local(0.5, 1_000),
        ];
        let exits: BTreeMap<_, _> = [((0, 0), exit()), ((0, 1), exit())].into();
        let thin = Ladder::new(rungs, exits).expect("a ladder").thinned();
        let runs: Vec<Run> = thin.planned().iter().map(|&at| thin.rungs()[at].run).collect();
        let [first, second] = [point(0, 1), point(1, 2)].map(Run::from);
        assert_eq!(runs, [Run::Local, first, second, picture(0, 0.0, 0.0).run]);
        // A picture and the device's own answer are all that their runs can give.
        assert_eq!(thin.of_run(runs[3]).collect::<Vec<_>>(), [3]);
        assert_eq!(thin.of_run(Run::Local).collect::<Vec<_>>(), [0]);
        assert_eq!((thin.policy(0, 0.0), thin.exit_quality(0, Some(0.9))), ((0.5, 0.0), 0.5));
    }

    #[test]
    fn a_long_ladder_keeps_twelve_rungs_and_its_top() {
        let rungs = (0..13u8).map(|at| LadderRung {
            run: point(0, at + 1).into(),
            bytes: 100.0 * 3f64.powi(at.into()),
            quality: vec![0.78 + 0.0165 * f64::from(at); 3],
            macs: 0,
        });
        let long = Ladder::new(rungs.collect(), [((0, 0), exit())].into()).expect("a ladder");
        let thin = long.thinned();
        assert_eq!((thin.planned().len(), thin.rungs().len()), (12, 13));
        assert_eq!(thin.planned().last(), Some(&12));
        assert_eq!(thin.thinned(), thin);
    }

    #[test]
    fn impossible_ladders_are_refused() {
        let exits: BTreeMap<_, _> = [((0, 0), exit())].into();
        assert_eq!(Ladder::new(vec![], exits.clone()), Err(LadderError::Empty));
        let other = vec![rung(1, 1, 100.0, 0.0)];
        assert_eq!(Ladder::new(other, exits.clone()), Err(LadderError::NoExit(point(1, 1).into())));
        let two = LadderRung { quality: vec![0.5; 2], ..rung(0, 1, 100.0, 0.0) };
        assert_eq!(
            Ladder::new(vec![two], exits.clone()),
            Err(LadderError::Bands(point(0, 1).into()))
        );
        let nothing = vec![rung(0, 1, f64::NAN, 0.0)];
        assert_eq!(Ladder::new(nothing, exits), Err(LadderError::Size(point(0, 1).into())));
        let short = Calibration { upper: vec![0.4, 0.8, 0.9], ..exit() };
        let refused = Ladder::new(vec![rung(0, 1, 1.0, 0.0)], [((0, 0), short)].into());
        assert_eq!(refused, Err(LadderError::Bands(point(0, 1).into())));
    }
}
