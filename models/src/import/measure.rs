//! Measurement of a bundle of one split: what each operating point sends of pictures, and how good the
//! answer is: against the truth where it is known, else against what the whole network answers.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::time::Duration;

use isthmus_proto::{Envelope, OperatingPoint, write_packet};

use super::error::ImportError;
use crate::answer::{Answer, Decoders};
use crate::detect::Detection;
use crate::manifest::{DecoderSpec, InputSpec, Task};
use crate::network::Network;
use crate::outcomes::{Outcome, Outcomes, RecordedPoint};
use crate::photo::Photo;
use crate::picture::Picture;
use crate::placement::Placement;
use crate::preprocess::Preprocessor;
use crate::quality::{MeanIou, TrueBox, TrueBoxes, f1, within_ratio};
use crate::tail::{Outputs, TailItem};
use crate::truth::Truth;

/// Time left in the envelopes of measured packets: as many bytes as the default deadline's.
const TIME_LEFT: Duration = Duration::from_millis(100);
/// Greatest ratio of a value to the true one that counts as right (arXiv 1406.2283).
const RATIO: f32 = 1.25;

/// What an answer is held against.
enum Reference {
    Class(usize),
    Boxes(TrueBoxes),
    /// The whole network's answer.
    Whole(Answer),
}

/// Answers pictures at every point and by the full network: those of known class, of known boxes if
/// there is a `truth`, or all. `None` if there is none.
pub(super) fn outcomes(
    network: &Network,
    photos: &[Photo],
    truth: Option<&Truth>,
    log: &mut dyn FnMut(String),
) -> Result<Option<Outcomes>, ImportError> {
    let points = network.bundle.all_points();
    let input_spec = &network.bundle.manifest().input;
    let preprocessor = Preprocessor::new(input_spec);
    let (mut labels, mut input) = (Vec::new(), Vec::new());
    let (mut split, mut full) = (vec![Vec::new(); points.len()], Vec::new());
    for photo in photos {
        let class = classifies(network);
        if class && photo.class.is_none() {
            continue;
        }
        let read = photo.read().map_err(|problem| problem.to_string()).and_then(|picture| {
            let boxes = truth.map(|truth| true_boxes(truth, photo, &picture, input_spec));
            boxes.transpose().map(|boxes| (picture, boxes))
        });
        let (picture, boxes) = match read {
            Ok(read) => read,
            Err(problem) => {
                log(format!("{}: {problem}", photo.path.display()));
                continue;
            }
        };
        preprocessor.run(&picture, &mut input);
        let whole = network.full.run(&[&input])?.pop().unwrap_or_default();
        let whole = answer(network, whole)?;
        let reference = match (photo.class.filter(|_| class), boxes) {
            (Some(class), _) => Reference::Class(class),
            (None, Some(boxes)) => Reference::Boxes(boxes),
            (None, None) => Reference::Whole(whole.clone()),
        };
        let (sizes, latents) = send(network, &points, &input, labels.len())?;
        let items = points.iter().zip(&latents).map(|(point, latents)| TailItem {
            split: point.split,
            width: point.width,
            latents,
        });
        let answers = network.tail.run(&items.collect::<Vec<_>>())?;
        for ((frames, bytes), outputs) in split.iter_mut().zip(sizes).zip(answers) {
            let found = answer(network, outputs)?;
            frames.push(outcome(network, bytes, &found, &reference));
        }
        full.push(outcome(network, 0, &whole, &reference));
        labels.push(photo.class.unwrap_or(0) as u32);
    }
    let known = match (classifies(network), truth) {
        (true, _) => "of known class",
        (false, Some(_)) => "with known boxes",
        (false, None) => "against the whole network's answers",
    };
    log(format!("measured on {} pictures {known}", labels.len()));
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

fn classifies(network: &Network) -> bool {
    let first = network.bundle.manifest().decoders.first();
    first.is_some_and(|decoder| decoder.task == Task::Classification)
}

/// The boxes that are in a picture, in pixels of the network's input.
fn true_boxes(
    truth: &Truth,
    photo: &Photo,
    picture: &Picture,
    input: &InputSpec,
) -> Result<TrueBoxes, String> {
    let (width, height) = (picture.width(), picture.height());
    let placement = Placement::new(input, width, height);
    let truth = truth.true_boxes(&photo.path, width, height);
    let TrueBoxes { boxes, covered } = truth.map_err(|problem| problem.to_string())?;
    let in_input = |it: TrueBox| {
        let [x0, y0, x1, y1] = placement.to_input([it.x0, it.y0, it.x1, it.y1]);
        TrueBox { x0, y0, x1, y1, ..it }
    };
    Ok(TrueBoxes { boxes: boxes.into_iter().map(in_input).collect(), covered })
}

/// What the first decoder makes of outputs.
fn answer(network: &Network, outputs: Outputs) -> Result<Answer, ImportError> {
    let decoders: &Decoders = network.bundle.decoders();
    let answers = decoders.answers(outputs, None)?;
    Ok(answers.into_iter().next().unwrap_or(Answer::Tensors(Vec::new())))
}

/// The outcome of a frame that was answered so.
fn outcome(network: &Network, bytes: usize, found: &Answer, reference: &Reference) -> Outcome {
    let decoders = network.bundle.decoders();
    let least = decoders.specs().next().map_or(0.0, DecoderSpec::confidence);
    let quality = match reference {
        Reference::Class(class) => f64::from(u8::from(found.class() == Some(*class))),
        Reference::Boxes(truth) => match found {
            Answer::Boxes(found) => truth.f1(found, least),
            _ => 0.0,
        },
        Reference::Whole(whole) => agreement(found, whole, least),
    };
    let confidence = decoders.confidence(0, found);
    Outcome { bytes: bytes as u32, quality: quality as f32, confidence, reply: 0 }
}

/// How far an answer is the whole network's, 0..=1.
fn agreement(found: &Answer, whole: &Answer, least: f32) -> f64 {
    match (found, whole) {
        (Answer::Boxes(found), Answer::Boxes(whole)) => {
            let truth = |&Detection { class, x0, y0, x1, y1, .. }: &Detection| TrueBox {
                class,
                x0,
                y0,
                x1,
                y1,
                crowd: false,
            };
            let sure = whole.iter().filter(|found| found.confidence >= least);
            f1(found, &sure.map(truth).collect::<Vec<_>>(), least)
        }
        (Answer::Classes(found), Answer::Classes(whole)) => {
            let mut overlap = MeanIou::default();
            let added = overlap.add(&found.classes, &whole.classes, None);
            added.ok().and_then(|()| overlap.mean()).unwrap_or(0.0)
        }
        (Answer::Values(found), Answer::Values(whole)) => {
            let within = within_ratio(&found.values, &whole.values, RATIO);
            within.ok().flatten().unwrap_or(0.0)
        }
        (Answer::Tensors(found), Answer::Tensors(whole)) => {
            let (mut error, mut energy) = (0.0, 0.0);
            let values = |tensors: &[crate::engine::Tensor]| -> Vec<f32> {
                tensors.iter().flat_map(|tensor| tensor.data.clone()).collect()
            };
            for (found, whole) in values(found).into_iter().zip(values(whole)) {
                error += f64::from(found - whole).powi(2);
                energy += f64::from(whole).powi(2);
            }
            let agreement = 1.0 / (1.0 + error / energy.max(f64::MIN_POSITIVE));
            if agreement.is_finite() { agreement } else { 0.0 }
        }
        _ => 0.0,
    }
}

/// Runs the heads on a picture and codes it at every point: bytes sent, and the latents that the
/// server has then.
fn send(
    network: &Network,
    points: &[OperatingPoint],
    input: &[f32],
    frame: usize,
) -> Result<(Vec<usize>, Vec<Vec<f32>>), ImportError> {
    let mut heads: BTreeMap<u8, Vec<f32>> = BTreeMap::new();
    let mut envelope = Vec::new();
    Envelope { frame: frame as u16, time_left: TIME_LEFT, probe: false }.write(&mut envelope);
    let (mut sizes, mut arrived) = (Vec::new(), Vec::new());
    let mut packet = Vec::new();
    for &point in points {
        let latents = match heads.entry(point.width) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(first) => {
                first.insert(network.head.run(point.split, point.width, input)?.latents)
            }
        };
        let codec = network.codec(point)?;
        let symbols = codec.quantise(latents, point.layers.into())?;
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
