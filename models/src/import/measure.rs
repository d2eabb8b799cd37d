//! Measurement of a bundle of one split and one width: what each operating point sends of pictures
//! whose class is known, and whether the answer is right.

use std::time::Duration;

use isthmus_proto::{Envelope, OperatingPoint, write_packet};

use super::error::ImportError;
use crate::classify::top_k;
use crate::network::Network;
use crate::outcomes::{Outcome, Outcomes, RecordedPoint};
use crate::photo::Photo;
use crate::preprocess::Preprocessor;
use crate::tail::TailItem;

/// Time left in the envelopes of measured packets: as many bytes as the default deadline's.
const TIME_LEFT: Duration = Duration::from_millis(100);

/// Answers every picture of known class at every point and by the full network; `None` if there is
/// none.
pub(super) fn outcomes(
    network: &Network,
    photos: &[Photo],
    log: &mut dyn FnMut(String),
) -> Result<Option<Outcomes>, ImportError> {
    let points = network.bundle.all_points();
    let preprocessor = Preprocessor::new(&network.bundle.manifest().input);
    let (mut labels, mut input) = (Vec::new(), Vec::new());
    let (mut split, mut full) = (vec![Vec::new(); points.len()], Vec::new());
    for photo in photos {
        let Some(label) = photo.class else { continue };
        match photo.read() {
            Ok(picture) => preprocessor.run(&picture, &mut input),
            Err(problem) => {
                log(format!("{}: {problem}", photo.path.display()));
                continue;
            }
        }
        let (sizes, latents) = send(network, &points, &input, labels.len())?;
        let item = |latents| TailItem { split: 0, width: 0, latents };
        let items: Vec<TailItem<'_>> = latents.iter().map(|it| item(it.as_slice())).collect();
        let answers = network.tail.run(&items)?;
        for ((frames, bytes), outputs) in split.iter_mut().zip(sizes).zip(&answers) {
            frames.push(outcome(bytes, outputs, label));
        }
        let outputs = network.full.run(&[&input])?;
        full.push(outcome(0, outputs.first().map_or(&[], Vec::as_slice), label));
        labels.push(label as u32);
    }
    log(format!("measured on {} pictures of known class", labels.len()));
    if labels.is_empty() {
        return Ok(None);
    }
    let mut outcomes = Outcomes::new(labels);
    for (point, frames) in points.into_iter().zip(split) {
        let name = network.bundle.describe_point(point);
        outcomes.record(RecordedPoint::Split(name), frames)?;
    }
    outcomes.record(RecordedPoint::Full, full)?;
    Ok(Some(outcomes))
}

/// The outcome of a frame whose true class is `label`.
fn outcome(bytes: usize, outputs: &[Vec<f32>], label: usize) -> Outcome {
    let logits = outputs.first().map_or(&[][..], Vec::as_slice);
    let (class, confidence) = top_k(logits, 1).first().copied().unwrap_or((0, 0.0));
    // A network that gives NaN is sure of nothing.
    let confidence = if confidence.is_finite() { confidence } else { 0.0 };
    let quality = if class == label { 1.0 } else { 0.0 };
    Outcome { bytes: bytes as u32, quality, confidence, reply: 0 }
}

/// Runs the head on a picture and codes it at every point: bytes sent, and the latents that the
/// server has then.
fn send(
    network: &Network,
    points: &[OperatingPoint],
    input: &[f32],
    frame: usize,
) -> Result<(Vec<usize>, Vec<Vec<f32>>), ImportError> {
    let latents = network.head.run(0, 0, input)?.latents;
    let mut envelope = Vec::new();
    Envelope { frame: frame as u16, time_left: TIME_LEFT, probe: false }.write(&mut envelope);
    let (mut sizes, mut arrived) = (Vec::new(), Vec::new());
    let mut packet = Vec::new();
    for &point in points {
        let codec = network.codec(point)?;
        let symbols = codec.quantise(&latents, point.layers.into())?;
        let coded = codec.encode(&symbols)?;
        packet.clone_from(&envelope);
        write_packet(&mut packet, 0, &network.bundle.digest(), point, &coded);
        sizes.push(packet.len());
        let mut decoded = Vec::new();
        codec.dequantise(&symbols, &mut decoded)?;
        arrived.push(decoded);
    }
    Ok((sizes, arrived))
}
