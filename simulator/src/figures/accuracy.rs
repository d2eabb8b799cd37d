//! How often the networks are right about real pictures, and at what cost in bytes.

use anyhow::{Context, ensure};
use isthmus_head_client::Fixed;
use isthmus_head_client::config::Transport;
use isthmus_models::{Bundle, Preprocessor, likeliest};
use isthmus_proto::wire::Detail;

use super::Measurement;
use super::lab::{Lab, Talk};

/// What the best point may lose against the full network.
const LOSS: f64 = 0.02;
/// Why figures of classes are not measured of other networks.
pub(super) const NO_CLASSES: &str = "the bundle's network names no class; figures with `map` in their \
                                     name are a detector's";
/// Frames unanswered at a time, so that head and tails are busy at once.
const IN_FLIGHT: usize = 8;

pub(super) fn full_top1(lab: &Lab) -> anyhow::Result<Measurement> {
    if let Some(reason) = not_of_classes(lab) {
        return Ok(reason);
    }
    let measured = lab.once(FullNetwork::measure)?;
    let FullNetwork { right, pictures } = *measured;
    let detail = format!("the full network is right about {right} of {pictures} pictures");
    Ok(Measurement::of(measured.accuracy(), detail))
}

pub(super) fn best_point_top1(lab: &Lab) -> anyhow::Result<Measurement> {
    if let Some(reason) = not_of_classes(lab) {
        return Ok(reason);
    }
    let (full, best) = (lab.once(FullNetwork::measure)?.accuracy(), lab.once(BestPoint::measure)?);
    let detail = format!(
        "{}, split and sent over QUIC, {} pictures; {full:.4} full",
        best.name, best.pictures
    );
    Ok(Measurement::of(best.accuracy, detail).against(full - LOSS))
}

pub(super) fn best_point_bytes(lab: &Lab) -> anyhow::Result<Measurement> {
    if let Some(reason) = not_of_classes(lab) {
        return Ok(reason);
    }
    let best = lab.once(BestPoint::measure)?;
    let detail = format!(
        "mean of envelope and packet at {}, {} pictures; 99th percentile {}",
        best.name, best.pictures, best.bytes_p99
    );
    Ok(Measurement::of(best.bytes, detail))
}

/// Why a figure of classes cannot be measured; `None` if it can.
pub(super) fn not_of_classes(lab: &Lab) -> Option<Measurement> {
    if !lab.classifies() {
        return Some(Measurement::skipped(NO_CLASSES));
    }
    let needed = "needs pictures of the bundle's classes: --images DIR";
    lab.images().is_none().then(|| Measurement::skipped(needed))
}

/// The full network's answers.
struct FullNetwork {
    right: usize,
    pictures: usize,
}

impl FullNetwork {
    fn measure(lab: &Lab) -> anyhow::Result<FullNetwork> {
        let full = lab.full()?;
        let bundle = full.bundle();
        let preprocessor = Preprocessor::new(&bundle.manifest().input);
        let right = lab.each_labelled(|picture, truth| {
            let mut input = Vec::new();
            preprocessor.run(picture, &mut input);
            Ok(is_right(bundle, &full.run(&[&input])?[0], truth))
        })?;
        let pictures = right.len();
        Ok(FullNetwork { right: right.into_iter().filter(|&right| right).count(), pictures })
    }

    fn accuracy(&self) -> f64 {
        self.right as f64 / self.pictures as f64
    }
}

/// Whether the likeliest class is the one named `truth`.
pub(super) fn is_right(bundle: &Bundle, outputs: &[Vec<f32>], truth: &str) -> bool {
    let best = outputs.first().and_then(|logits| likeliest(logits));
    let best = best.and_then(|class| bundle.labels().get(class));
    best.is_some_and(|label| label == truth)
}

/// The best point's answers through client, wire and server.
struct BestPoint {
    name: String,
    accuracy: f64,
    pictures: u64,
    /// Mean of envelope and packet.
    bytes: f64,
    bytes_p99: u64,
}

impl BestPoint {
    fn measure(lab: &Lab) -> anyhow::Result<BestPoint> {
        let point = lab.best_point();
        let talk = Talk {
            transport: Transport::Quic,
            detail: Detail::Top,
            min_confidence: None,
            in_flight: IN_FLIGHT,
            controller: Box::new(Fixed::new(point)),
        };
        let summary = lab.serve()?.answer(lab.head()?, talk, lab.labelled()?, |_| Ok(()))?;
        ensure!(summary.bad_pictures == 0, "{} pictures are unreadable", summary.bad_pictures);
        let none = "no picture lies in a folder that is named like a class";
        Ok(BestPoint {
            name: lab.bundle().describe_point(point).to_string(),
            accuracy: summary.quality.context(none)?,
            pictures: summary.with_truth,
            bytes: summary.bytes.mean.context(none)?,
            bytes_p99: summary.bytes.p99.context(none)?,
        })
    }
}
