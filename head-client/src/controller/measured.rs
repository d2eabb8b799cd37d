//! The ladder of a bundle: from outcomes that were measured frame by frame to the quality that can be expected of
//! a frame.

use std::collections::BTreeMap;

use isthmus_models::{
    Bundle, ImageSpec, OUTCOMES, Outcome, Outcomes, RecordedPoint, Rung, has_image_format,
};

use super::calibration::Calibration;
use super::ladder::{Ladder, LadderError, LadderRung};
use super::run::{ImageRun, Run};

/// Most bands of confidence of a calibration, and least frames in each; all bands have equally many.
const MOST_BANDS: usize = 8;
const BAND_FRAMES: usize = 40;

/// Weight of the mean quality in a band's, in frames: a band of few frames proves little.
const PRIOR: f64 = 8.0;

/// Outcomes that were measured on the same frames, in the same order, for every run and exit.
#[derive(Clone, Debug, Default)]
pub struct Measured {
    /// By run; a head's layers are those that were sent.
    pub runs: BTreeMap<Run, Vec<Outcome>>,
    /// Of the heads' exits, by split and width.
    pub exits: BTreeMap<(u8, u8), Vec<Outcome>>,
}

/// Ways to answer that a bundle's ladder has beside the split network's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arms {
    /// Compressed pictures for the full network on the server.
    pub image: bool,
    /// The full network on the device.
    pub local: bool,
}

/// Why a bundle's outcomes give no ladder.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutcomesLadderError {
    /// An outcome of a point that the manifest does not have.
    #[error("{OUTCOMES}: the bundle has no {0}")]
    Unknown(String),
    /// Rungs and exits that do not make a ladder.
    #[error(transparent)]
    Ladder(#[from] LadderError),
}

impl Ladder {
    /// The ladder of all runs that were measured: sizes, and qualities by the exit's confidence.
    /// `macs` gives the multiply-accumulates of a run on the device, 0 if unknown.
    pub fn measured(measured: &Measured, macs: impl Fn(Run) -> u64) -> Result<Ladder, LadderError> {
        let (mut calibrations, mut bands) = (BTreeMap::new(), BTreeMap::new());
        for (&head, frames) in &measured.exits {
            let (upper, quality) = (upper_ends(frames), Vec::new());
            let mut calibration = Calibration { upper, fraction: Vec::new(), quality };
            let band: Vec<usize> =
                frames.iter().map(|outcome| calibration.band(outcome.confidence)).collect();
            let count = calibration.upper.len();
            let counts = (0..count).map(|at| band.iter().filter(|&&b| b == at).count());
            calibration.fraction = counts.map(|it| it as f64 / frames.len() as f64).collect();
            calibration.quality = by_band(frames, &band, count);
            calibrations.insert(head, calibration);
            bands.insert(head, band);
        }
        let rung = |(&run, frames): (&Run, &Vec<Outcome>)| {
            let count = frames.len().max(1) as f64;
            let bytes = frames.iter().map(|outcome| f64::from(outcome.bytes)).sum::<f64>() / count;
            let quality = match run.head() {
                Some(head) => {
                    let band = bands.get(&head).ok_or(LadderError::NoExit(run))?;
                    by_band(frames, band, calibrations[&head].upper.len())
                }
                None => vec![frames.iter().map(|it| f64::from(it.quality)).sum::<f64>() / count],
            };
            Ok(LadderRung { run, bytes, quality, macs: macs(run) })
        };
        let rungs = measured.runs.iter().map(rung).collect::<Result<_, LadderError>>()?;
        Ladder::new(rungs, calibrations)
    }

    /// The ladder of a bundle by the outcomes that were measured with it, [thinned](Ladder::thinned).
    ///
    /// A bundle without outcomes has a ladder of its points by the manifest's mean sizes and
    /// qualities; then the exit's confidence says nothing about a frame, and `arms` adds nothing.
    pub fn of_outcomes(
        bundle: &Bundle,
        outcomes: Option<&Outcomes>,
        arms: Arms,
    ) -> Result<Ladder, OutcomesLadderError> {
        let macs = |run: Run| match (run, run.head()) {
            (Run::Local, _) => bundle.manifest().full.macs,
            (_, Some((split, width))) => {
                let split = bundle.split(split);
                let width = split.and_then(|split| split.widths.get(usize::from(width)));
                width.map_or(0, |width| width.head_macs)
            }
            _ => 0,
        };
        let ladder = match outcomes {
            Some(outcomes) => {
                Ladder::measured(&Measured::of_outcomes(bundle, outcomes, arms)?, macs)?
            }
            None => Ladder::of_manifest(bundle, macs)?,
        };
        Ok(ladder.thinned())
    }

    fn of_manifest(bundle: &Bundle, macs: impl Fn(Run) -> u64) -> Result<Ladder, LadderError> {
        let mut exits = BTreeMap::new();
        for (s, split) in (0..).zip(&bundle.manifest().splits) {
            for (w, width) in (0..).zip(&split.widths) {
                exits.insert((s, w), Calibration::flat(width.exit_quality));
            }
        }
        let rung = |rung: &Rung| {
            let run = rung.point.into();
            let (bytes, quality) = (rung.bytes_mean, vec![rung.quality]);
            LadderRung { run, bytes, quality, macs: macs(run) }
        };
        Ladder::new(bundle.points().iter().map(rung).collect(), exits)
    }
}

impl Measured {
    /// A bundle's outcomes, with the bundle's positions in place of names. Every exit is a fallback for
    /// every picture.
    fn of_outcomes(
        bundle: &Bundle,
        outcomes: &Outcomes,
        arms: Arms,
    ) -> Result<Measured, OutcomesLadderError> {
        let mut measured = Measured::default();
        let mut images = Vec::new();
        for outcomes in outcomes.points() {
            let unknown = || OutcomesLadderError::Unknown(outcomes.point.to_string());
            let frames = outcomes.frames.clone();
            match &outcomes.point {
                RecordedPoint::Split(name) => {
                    let point = bundle.parse_point(&name.to_string()).map_err(|_| unknown())?;
                    measured.runs.insert(point.into(), frames);
                }
                RecordedPoint::Exit { split, width } => {
                    let head = bundle.find_head(split, width).ok_or_else(unknown)?;
                    measured.exits.insert(head, frames);
                }
                RecordedPoint::Image(image) if arms.image && has_image_format(image.format) => {
                    images.push((*image, frames));
                }
                RecordedPoint::Full if arms.local => {
                    measured.runs.insert(Run::Local, frames);
                }
                RecordedPoint::Image(_) | RecordedPoint::Full => {}
            }
        }
        for (image, frames) in images {
            measured.add_image(image, &frames);
        }
        // A head without an exit, as cut networks have, has no quality.
        let silent = Outcome { bytes: 0, quality: 0.0, confidence: 0.0, reply: 0 };
        for head in measured.runs.keys().filter_map(|run| run.head()) {
            measured.exits.entry(head).or_insert_with(|| vec![silent; outcomes.frames()]);
        }
        Ok(measured)
    }

    /// Adds the outcomes of pictures that were compressed in some way, with every exit as a fallback.
    pub fn add_image(&mut self, image: ImageSpec, frames: &[Outcome]) {
        for &head in self.exits.keys() {
            let run = Run::Image(ImageRun { image, exit: Some(head) });
            self.runs.insert(run, frames.to_vec());
        }
    }
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

/// Quality in each band, shrunk a little to the mean, and never falling with confidence: where a few
/// dozen frames say otherwise, they are too few. Before the isotonic regression a band with k of n
/// frames right has `(k + 8 · mean) / (n + 8)`.
fn by_band(frames: &[Outcome], band: &[usize], bands: usize) -> Vec<f64> {
    let quality = |outcome: &Outcome| f64::from(outcome.quality);
    let mean = frames.iter().map(quality).sum::<f64>() / frames.len().max(1) as f64;
    let mut sums = vec![(PRIOR * mean, PRIOR); bands];
    for (outcome, &band) in frames.iter().zip(band) {
        sums[band].0 += quality(outcome);
        sums[band].1 += 1.0;
    }
    isotonic(&sums)
}

/// Isotonic regression: the non-decreasing sequence nearest to the means of `sums`, each with its sum
/// and weight, by pooling adjacent violators (Ayer, Brunk, Ewing, Reid and Silverman 1955).
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

    #[test]
    fn quality_never_falls_with_confidence() {
        assert_eq!(isotonic(&[(1.0, 4.0), (2.0, 4.0)]), [0.25, 0.5]);
        assert_eq!(isotonic(&[(3.0, 4.0), (1.0, 4.0), (4.0, 4.0)]), [0.5, 0.5, 1.0]);
        assert_eq!(isotonic(&[(3.0, 4.0), (3.0, 4.0), (0.0, 8.0)]), [0.375; 3]);
    }

    #[test]
    fn a_picture_is_worth_more_where_the_exit_is_unsure() {
        // Every other frame the exit is unsure and wrong; pictures are right but for a few of those.
        let outcome = |bytes, quality, confidence| Outcome { bytes, quality, confidence, reply: 0 };
        let exit = |at: usize| match at % 2 {
            0 => outcome(0, 0.0, 0.2),
            _ => outcome(0, 1.0, 0.9),
        };
        let mut measured = Measured::default();
        measured.exits.insert((0, 1), (0..400).map(exit).collect());
        let image = "webp/160/q35".parse().expect("a picture");
        let frames = (0..400).map(|at: usize| match at % 20 {
            0 => outcome(2_000, 0.0, 0.9),
            _ => outcome(2_000, 1.0, 0.9),
        });
        let frames: Vec<_> = frames.collect();
        measured.add_image(image, &frames);
        measured.runs.insert(Run::Local, vec![outcome(0, 1.0, 0.9); 400]);
        let ladder = Ladder::measured(&measured, |run| u64::from(run == Run::Local)).expect("one");
        let [local, picture] = ladder.rungs() else { panic!("{ladder:?}") };
        assert_eq!((local.run, local.macs, local.quality[0]), (Run::Local, 1, 1.0));
        assert_eq!(picture.run, Run::Image(ImageRun { image, exit: Some((0, 1)) }));
        assert_eq!((picture.bytes, picture.macs), (2_000.0, 0));
        assert!(ladder.quality(1, Some(0.2)) < 0.92 && ladder.quality(1, Some(0.9)) > 0.98);
        assert!(ladder.exit_quality(1, Some(0.2)) < 0.1);
    }
}
