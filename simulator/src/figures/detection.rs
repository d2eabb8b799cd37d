//! How well the networks find real objects.

use anyhow::{Context, ensure};
use isthmus_head_client::Fixed;
use isthmus_head_client::config::{MEASURED_CONFIDENCE, Transport};
use isthmus_models::{MeanAveragePrecision, Preprocessor, View};
use isthmus_proto::wire::Detail;

use super::Measurement;
use super::found::Found;
use super::lab::{Lab, Talk};

/// What the best point may lose of the full network's mean average precision.
const LOSS: f64 = 0.02;
/// Frames unanswered at a time, so that head and tails are busy at once.
const IN_FLIGHT: usize = 8;

/// Why a figure of boxes cannot be measured; `None` if it can.
pub(super) fn not_of_boxes(lab: &Lab) -> Option<Measurement> {
    if !lab.detects() {
        return Some(Measurement::skipped("the bundle's network finds no boxes"));
    }
    let needed = "needs pictures and their true boxes: --images DIR --truth FILE";
    (!lab.has_true_boxes()).then(|| Measurement::skipped(needed))
}

pub(super) fn map_full(lab: &Lab) -> anyhow::Result<Measurement> {
    if let Some(reason) = not_of_boxes(lab) {
        return Ok(reason);
    }
    let FullNetwork { map, ap50, pictures } = *lab.once(FullNetwork::measure)?;
    let detail = format!("the full network, {pictures} pictures; AP50 {ap50:.4}");
    Ok(Measurement::of(map, detail))
}

pub(super) fn map_best_point(lab: &Lab) -> anyhow::Result<Measurement> {
    if let Some(reason) = not_of_boxes(lab) {
        return Ok(reason);
    }
    let full = lab.once(FullNetwork::measure)?.map;
    let point = lab.bundle().default_point();
    let talk = Talk {
        transport: Transport::Quic,
        detail: Detail::Top,
        min_confidence: Some(MEASURED_CONFIDENCE),
        in_flight: IN_FLIGHT,
        controller: Box::new(Fixed::new(point)),
    };
    let summary = lab.serve()?.answer(lab.head()?, talk, lab.labelled()?, |_| Ok(()))?;
    ensure!(summary.bad_pictures == 0, "{} pictures cannot be used", summary.bad_pictures);
    let none = "no picture has an object";
    let detail = format!(
        "{}, split and sent over QUIC, {} pictures, {:.0} bytes in the mean; AP50 {:.4}; {full:.4} full",
        lab.bundle().describe_point(point),
        summary.with_truth,
        summary.bytes.mean.context(none)?,
        summary.ap50.context(none)?,
    );
    Ok(Measurement::of(summary.map.context(none)?, detail).against(full - LOSS))
}

/// The full network's answers.
struct FullNetwork {
    map: f64,
    ap50: f64,
    pictures: usize,
}

impl FullNetwork {
    fn measure(lab: &Lab) -> anyhow::Result<FullNetwork> {
        let full = lab.full()?;
        let bundle = full.bundle();
        let input = &bundle.manifest().input;
        let preprocessor = Preprocessor::new(input);
        let parts = lab.each_boxed(|picture, truth| {
            let mut prepared = Vec::new();
            preprocessor.run(picture, &mut prepared);
            let view = View::new(input, None, (picture.width(), picture.height()));
            let outputs = full.run(&[&prepared])?.pop().context("the network gave nothing")?;
            let found = Found::of(bundle, outputs, &view)?;
            let mut precision = MeanAveragePrecision::default();
            precision.add(&found.boxes, &truth.boxes);
            Ok(precision)
        })?;
        let mut all = MeanAveragePrecision::default();
        parts.iter().for_each(|part| all.merge(part));
        let summary = all.summary().context("no picture has an object")?;
        Ok(FullNetwork { map: summary.mean, ap50: summary.at_50, pictures: parts.len() })
    }
}
