//! What is read off the measured schemes: the Pareto front, sizes at a loss, BD-rate.

use rand::RngExt as _;
use rand_pcg::Pcg32;
use serde::Serialize;

use super::judged::{Judged, together};
use super::{Family, Scheme, Sent};

/// Resamples of a bootstrap.
const RESAMPLES: usize = 2000;
/// The same where every one sorts the boxes of all pictures.
const BOX_RESAMPLES: usize = 400;
/// Steps of the integral of a BD-rate.
const STEPS: usize = 400;

/// The smallest scheme within a loss of quality.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Choice {
    /// The scheme.
    pub name: String,
    /// Its mean size (bytes) on the pictures that did not choose it; of a detector on all.
    pub bytes: f64,
    /// What it loses on them (points).
    pub drop: f64,
    /// 95% interval of `drop`, by a bootstrap over pictures with both answers of each.
    pub interval: (f64, f64),
}

/// Marks the schemes of a family that none of it beats; `schemes` are in order of size.
pub(super) fn pareto(schemes: &mut [Scheme], family: Family) {
    let mut best = f64::MIN;
    for scheme in schemes.iter_mut().filter(|scheme| scheme.family == family) {
        scheme.pareto = scheme.quality > best;
        best = best.max(scheme.quality);
    }
}

/// The smallest scheme of `family` that on every other picture, from the first, loses at most `points`
/// against the full network, as it does on the rest. Of a detector, whose precision is one of many
/// pictures, all choose and judge.
pub(super) fn choose(
    schemes: &[Scheme],
    family: Family,
    full: &[Judged],
    points: f64,
) -> Option<Choice> {
    let of_family = schemes.iter().filter(|scheme| scheme.family == family);
    if matches!(full, [Judged::Boxes { .. }, ..]) {
        let whole = together(full.iter()).0;
        let lost = |scheme: &Scheme| 100.0 * (whole - scheme.quality);
        let fits = of_family.filter(|scheme| lost(scheme) <= points + 1e-9);
        let best = fits.min_by(|a, b| a.bytes.total_cmp(&b.bytes))?;
        let interval = box_interval(&best.pictures, full);
        return Some(Choice {
            name: best.name.clone(),
            bytes: best.bytes,
            drop: lost(best),
            interval,
        });
    }
    let half = |scheme: &Scheme, odd: usize| -> (Vec<Sent>, Vec<Judged>) {
        let pairs = scheme.pictures.iter().cloned().zip(full.iter().cloned());
        pairs.skip(odd).step_by(2).unzip()
    };
    let of_half = |scheme: &Scheme, odd: usize| {
        let (sent, full) = half(scheme, odd);
        let half = Scheme::new(scheme.family, String::new(), sent);
        (half.bytes, 100.0 * (together(full.iter()).0 - half.quality))
    };
    let fits = of_family.filter(|scheme| of_half(scheme, 0).1 <= points + 1e-9);
    let best = fits.min_by(|a, b| of_half(a, 0).0.total_cmp(&of_half(b, 0).0))?;
    let (bytes, drop) = of_half(best, 1);
    let (sent, full) = half(best, 1);
    let right = |judged: &Judged| f64::from(u8::from(matches!(judged, Judged::Class(true))));
    let losses: Vec<f64> =
        sent.iter().zip(&full).map(|(sent, full)| right(full) - right(&sent.judged)).collect();
    Some(Choice { name: best.name.clone(), bytes, drop, interval: interval(&losses) })
}

/// 95% interval of what boxes lose against the full network's (points), over pictures with both answers
/// of each.
fn box_interval(sent: &[Sent], full: &[Judged]) -> (f64, f64) {
    let mut rng = Pcg32::new(1, 1);
    let count = sent.len().min(full.len());
    let mut lost = || {
        let drawn: Vec<usize> = (0..count).map(|_| rng.random_range(0..count)).collect();
        let whole = together(drawn.iter().map(|&at| &full[at])).0;
        100.0 * (whole - together(drawn.iter().map(|&at| &sent[at].judged)).0)
    };
    let mut losses: Vec<f64> = (0..BOX_RESAMPLES).map(|_| lost()).collect();
    losses.sort_by(f64::total_cmp);
    (losses[BOX_RESAMPLES / 40], losses[BOX_RESAMPLES - 1 - BOX_RESAMPLES / 40])
}

/// 95% interval of 100 times the mean.
fn interval(losses: &[f64]) -> (f64, f64) {
    if losses.is_empty() {
        return (0.0, 0.0);
    }
    let mut rng = Pcg32::new(1, 1);
    let mut mean = || {
        let drawn = (0..losses.len()).map(|_| losses[rng.random_range(0..losses.len())]);
        100.0 * drawn.sum::<f64>() / losses.len() as f64
    };
    let mut means: Vec<f64> = (0..RESAMPLES).map(|_| mean()).collect();
    means.sort_by(f64::total_cmp);
    (means[RESAMPLES / 40], means[RESAMPLES - 1 - RESAMPLES / 40])
}

/// Bytes that the split network needs more (percent) than `family` at equal quality, in the mean of
/// log size over the qualities that both reach; `None` where their fronts do not overlap.
pub(super) fn bd_rate(schemes: &[Scheme], family: Family) -> Option<f64> {
    let front = |family: Family| -> Vec<(f64, f64)> {
        let front = schemes.iter().filter(|scheme| scheme.family == family && scheme.pareto);
        front.map(|scheme| (scheme.quality, scheme.bytes.max(1.0).ln())).collect()
    };
    let (ours, theirs) = (front(Family::Split), front(family));
    let low = ours.first()?.0.max(theirs.first()?.0);
    let high = ours.last()?.0.min(theirs.last()?.0);
    if ours.len() < 2 || theirs.len() < 2 || high <= low {
        return None;
    }
    let (ours, theirs) = (Cubic::through(ours), Cubic::through(theirs));
    let gap = |step: usize| {
        let quality = low + (high - low) * (step as f64 + 0.5) / STEPS as f64;
        ours.at(quality) - theirs.at(quality)
    };
    let mean = (0..STEPS).map(gap).sum::<f64>() / STEPS as f64;
    Some(100.0 * mean.exp_m1())
}

/// A monotone piecewise cubic (Fritsch and Carlson, 1980, with the harmonic mean of slopes).
struct Cubic {
    knots: Vec<(f64, f64)>,
    slopes: Vec<f64>,
}

impl Cubic {
    /// At least two knots with increasing x.
    fn through(knots: Vec<(f64, f64)>) -> Cubic {
        let rise: Vec<f64> =
            knots.windows(2).map(|k| (k[1].1 - k[0].1) / (k[1].0 - k[0].0)).collect();
        let slope = |at: usize| {
            let (before, after) = (rise[at.saturating_sub(1)], rise[at.min(rise.len() - 1)]);
            let same_sign = before * after > 0.0;
            if same_sign { 2.0 * before * after / (before + after) } else { 0.0 }
        };
        let slopes = (0..knots.len()).map(slope).collect();
        Cubic { knots, slopes }
    }

    fn at(&self, x: f64) -> f64 {
        let after = self.knots.partition_point(|knot| knot.0 <= x).clamp(1, self.knots.len() - 1);
        let ((x0, y0), (x1, y1)) = (self.knots[after - 1], self.knots[after]);
        let (width, t) = (x1 - x0, (x - x0) / (x1 - x0));
        let (m0, m1) = (self.slopes[after - 1] * width, self.slopes[after] * width);
        let (t2, t3) = (t * t, t * t * t);
        (2.0 * t3 - 3.0 * t2 + 1.0) * y0
            + (t3 - 2.0 * t2 + t) * m0
            + (3.0 * t2 - 2.0 * t3) * y1
            + (t3 - t2) * m1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A scheme of 100 pictures of `bytes` each, the first `right` of them right.
    fn scheme(family: Family, bytes: u32, right: usize) -> Scheme {
        let trials = (0..100).map(|at| Sent { bytes, judged: Judged::Class(at < right) }).collect();
        Scheme::new(family, format!("{bytes}"), trials)
    }

    fn schemes(sizes: &[(u32, usize)], family: Family) -> Vec<Scheme> {
        let mut schemes: Vec<Scheme> =
            sizes.iter().map(|&(bytes, right)| scheme(family, bytes, right)).collect();
        pareto(&mut schemes, family);
        schemes
    }

    #[test]
    fn what_is_larger_and_no_better_is_off_the_front() {
        let schemes = schemes(&[(100, 50), (200, 45), (300, 50), (400, 60)], Family::Split);
        assert_eq!(
            schemes.iter().map(|scheme| scheme.pareto).collect::<Vec<_>>(),
            [true, false, false, true]
        );
    }

    #[test]
    fn a_tenth_of_the_bytes_at_every_quality_is_a_rate_of_minus_ninety() {
        let points = [(1000, 50), (2000, 70), (4000, 80), (9000, 84)];
        let tenth: Vec<_> = points.iter().map(|&(bytes, right)| (bytes / 10, right)).collect();
        let mut both = schemes(&points, Family::Webp);
        both.extend(schemes(&tenth, Family::Split));
        let rate = bd_rate(&both, Family::Webp).expect("they overlap");
        assert!((rate + 90.0).abs() < 1e-9, "{rate}");
        assert_eq!(bd_rate(&both, Family::Jpeg), None);
    }

    #[test]
    fn the_smallest_scheme_within_a_loss_is_chosen_on_one_half_and_judged_on_the_other() {
        let full = vec![Judged::Class(true); 100];
        let schemes = schemes(&[(100, 90), (200, 98), (300, 100)], Family::Split);
        let chosen =
            |points| choose(&schemes, Family::Split, &full, points).map(|choice| choice.name);
        assert_eq!(chosen(0.0), Some("300".into()));
        assert_eq!(chosen(2.0), Some("200".into()));
        assert_eq!(chosen(50.0), Some("100".into()));
        let choice = choose(&schemes, Family::Split, &full, 2.0).expect("one");
        assert!((choice.bytes - 200.0).abs() < 1e-9 && (choice.drop - 2.0).abs() < 1e-9);
        assert!(choice.interval.0 <= 2.0 && choice.interval.1 >= 2.0, "{choice:?}");
        assert_eq!(choose(&schemes, Family::Jpeg, &full, 3.0), None);
    }

    #[test]
    fn the_cubic_passes_its_knots_and_does_not_overshoot() {
        let cubic = Cubic::through(vec![(0.0, 0.0), (1.0, 1.0), (2.0, 1.1), (3.0, 5.0)]);
        for (x, y) in [(0.0, 0.0), (1.0, 1.0), (2.0, 1.1), (3.0, 5.0)] {
            assert!((cubic.at(x) - y).abs() < 1e-12);
        }
        let values: Vec<f64> = (0..=300).map(|at| cubic.at(f64::from(at) / 100.0)).collect();
        assert!(values.is_sorted(), "{values:?}");
    }
}
