//! What accuracy within a loss costs in bytes, beside image codecs.

use super::Measurement;
use super::accuracy::not_of_classes;
use super::detection::not_of_boxes;
use super::lab::Lab;
use super::rate_accuracy::{self, Drop, Family, RateAccuracy};

/// What a sum's last digits may add to a loss (points).
const LAST_DIGIT: f64 = 1e-9;

pub(super) fn bytes_at(lab: &Lab, points: f64) -> anyhow::Result<Measurement> {
    not_of_classes(lab).map_or_else(|| bytes_within(lab, points), Ok)
}

pub(super) fn ratio_at(lab: &Lab, points: f64) -> anyhow::Result<Measurement> {
    not_of_classes(lab).map_or_else(|| ratio_within(lab, points), Ok)
}

pub(super) fn bd_rate_webp(lab: &Lab) -> anyhow::Result<Measurement> {
    not_of_classes(lab).map_or_else(|| bd_rate(lab), Ok)
}

pub(super) fn map_bytes_at(lab: &Lab, points: f64) -> anyhow::Result<Measurement> {
    not_of_boxes(lab).map_or_else(|| bytes_within(lab, points), Ok)
}

pub(super) fn map_ratio_at(lab: &Lab, points: f64) -> anyhow::Result<Measurement> {
    not_of_boxes(lab).map_or_else(|| ratio_within(lab, points), Ok)
}

pub(super) fn bd_rate_map(lab: &Lab) -> anyhow::Result<Measurement> {
    not_of_boxes(lab).map_or_else(|| bd_rate_of_nearest(lab), Ok)
}

fn bytes_within(lab: &Lab, points: f64) -> anyhow::Result<Measurement> {
    let curve = lab.once(measure)?;
    let drop = drop(&curve, points);
    let choice =
        drop.and_then(|drop| drop.smallest.iter().find(|(family, _)| *family == Family::Split));
    let Some((_, choice)) = choice else {
        let best = curve.schemes.iter().filter(|scheme| scheme.family == Family::Split);
        let best = best.map(|scheme| scheme.quality).fold(0.0, f64::max);
        let full = curve.full;
        let reason = format!("no point within {points} points of {full:.4}; the best is {best:.4}");
        return Ok(Measurement::skipped(reason));
    };
    let (low, high) = choice.interval;
    let measured = match curve.full_boxes {
        None => {
            format!("chosen on every other of {} pictures, on the rest it loses", curve.pictures)
        }
        Some(_) => format!("over {} pictures it loses", curve.pictures),
    };
    let mut detail = format!(
        "{}, mean of envelope and packet; {measured} {:.2} points ({low:.2} to {high:.2}) of {:.4}",
        choice.name, choice.drop, curve.full
    );
    if let (Some(_), Some(ratio)) = (curve.full_boxes, drop.and_then(|drop| drop.ratio)) {
        detail += &format!("; {ratio:.3} of the best image codec's bytes");
    }
    let broken = choice.drop > points + LAST_DIGIT;
    Ok(Measurement { broken, ..Measurement::of(choice.bytes, detail) })
}

fn ratio_within(lab: &Lab, points: f64) -> anyhow::Result<Measurement> {
    let curve = lab.once(measure)?;
    let drop = drop(&curve, points);
    let choices = drop.into_iter().flat_map(|drop| &drop.smallest);
    let choices: Vec<String> = choices
        .map(|(family, choice)| format!("{} {} {:.0} B", family.name(), choice.name, choice.bytes))
        .collect();
    let detail = format!("within {points} points: {}", choices.join(", "));
    Ok(match drop.and_then(|drop| drop.ratio) {
        Some(ratio) => Measurement::of(ratio, detail),
        None => Measurement::skipped(format!("nothing to compare {detail}")),
    })
}

fn bd_rate(lab: &Lab) -> anyhow::Result<Measurement> {
    let curve = lab.once(measure)?;
    Ok(match curve.bd_rate.iter().find(|(family, _)| *family == Family::Webp) {
        Some(&(_, rate)) => {
            let detail = "bytes more than WebP at equal accuracy, over what both fronts reach";
            Measurement::of(rate, detail)
        }
        None => Measurement::skipped("the fronts reach no common accuracy"),
    })
}

/// Against the image codec that comes nearest to the split network.
fn bd_rate_of_nearest(lab: &Lab) -> anyhow::Result<Measurement> {
    let curve = lab.once(measure)?;
    let nearest = curve.bd_rate.iter().max_by(|one, other| one.1.total_cmp(&other.1));
    Ok(match nearest {
        Some(&(nearest, rate)) => {
            let each =
                curve.bd_rate.iter().map(|(family, rate)| format!("{} {rate:.1}%", family.name()));
            let detail = format!(
                "bytes more than {} at equal mAP, over what both fronts reach; {}",
                nearest.name(),
                each.collect::<Vec<_>>().join(", ")
            );
            Measurement::of(rate, detail)
        }
        None => Measurement::skipped("the fronts reach no common mAP"),
    })
}

fn measure(lab: &Lab) -> anyhow::Result<RateAccuracy> {
    rate_accuracy::measure(lab, false)
}

fn drop(curve: &RateAccuracy, points: f64) -> Option<&Drop> {
    curve.drops.iter().find(|drop| drop.points == points)
}
