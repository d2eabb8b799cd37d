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
    not_of_classes(lab).map_or_else(|| bd_rate(lab, Some(Family::Webp)), Ok)
}

pub(super) fn map_bytes_at(lab: &Lab, points: f64) -> anyhow::Result<Measurement> {
    not_of_boxes(lab).map_or_else(|| bytes_within(lab, points), Ok)
}

pub(super) fn map_ratio_at(lab: &Lab, points: f64) -> anyhow::Result<Measurement> {
    not_of_boxes(lab).map_or_else(|| ratio_within(lab, points), Ok)
}

pub(super) fn bd_rate_map(lab: &Lab) -> anyhow::Result<Measurement> {
    not_of_boxes(lab).map_or_else(|| bd_rate(lab, None), Ok)
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

/// Against a family of image codecs, or the one that comes nearest to the split network.
fn bd_rate(lab: &Lab, against: Option<Family>) -> anyhow::Result<Measurement> {
    let curve = lab.once(measure)?;
    let quality = if curve.full_boxes.is_some() { "mAP" } else { "accuracy" };
    let of_family = |it: &&(Family, f64)| against.is_none_or(|family| it.0 == family);
    let rates = curve.bd_rate.iter().filter(of_family);
    let Some(&(family, rate)) = rates.max_by(|one, other| one.1.total_cmp(&other.1)) else {
        return Ok(Measurement::skipped(format!("the fronts reach no common {quality}")));
    };
    let each = curve.bd_rate.iter().map(|(family, rate)| format!("{} {rate:.1}%", family.name()));
    let detail = format!(
        "bytes more than {} at equal {quality}, over what both fronts reach; {}",
        family.name(),
        each.collect::<Vec<_>>().join(", ")
    );
    Ok(Measurement::of(rate, detail))
}

fn measure(lab: &Lab) -> anyhow::Result<RateAccuracy> {
    rate_accuracy::measure(lab, false)
}

fn drop(curve: &RateAccuracy, points: f64) -> Option<&Drop> {
    curve.drops.iter().find(|drop| drop.points == points)
}
