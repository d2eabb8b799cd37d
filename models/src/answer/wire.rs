//! Answers on the wire.

use std::io::Read;

use isthmus_proto::boxes::{PackedBox, read_boxes, write_boxes};
use isthmus_proto::wire::{self, Score};

use super::{Answer, ClassMap, Decoders, Scores, TOP_CLASSES, ValueMap};
use crate::detect::Detection;
use crate::engine::Tensor;
use crate::manifest::{DecoderSpec, OutputSpec, Task};

/// Compression of maps and tensors: fast, as a worker waits for it.
const LEVEL: i32 = 1;

/// How much of an answer a device wants.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Wanted {
    /// Of classifications every class's logit.
    pub logits: bool,
    /// Boxes of at least this confidence; `None` for the bundle's own threshold.
    pub min_confidence: Option<f32>,
}

/// Why what came over the wire is no answer of these decoders.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum UnusableAnswer {
    /// Fewer or more answers than decoders.
    #[error("{actual} answers; expected {expected}, one a decoder")]
    Count {
        /// Decoders of the bundle.
        expected: usize,
        /// Answers that came.
        actual: usize,
    },
    /// An answer that names no class.
    #[error("answer without a class")]
    NoClass,
    /// A class that the decoder does not have.
    #[error("class {class}, but {decoder} has {labels} labels")]
    Class {
        /// The decoder's name.
        decoder: String,
        /// The position in the decoder's labels.
        class: u32,
        /// How many there are.
        labels: usize,
    },
    /// A probability outside 0 to 1.
    #[error("confidence {0} is not in 0..=1")]
    Confidence(f32),
    /// A map or tensors that are not there, or of another shape than the bundle's.
    #[error("{decoder}: {problem}")]
    Shape {
        /// The decoder's name.
        decoder: String,
        /// What was found and what was expected.
        problem: String,
    },
}

impl Decoders {
    /// The answers as they travel: of the first decoder, then of the others. Who counts layers adds them to
    /// the first.
    pub fn to_wire(&self, answers: Vec<Answer>, wanted: Wanted) -> Vec<wire::Answer> {
        answers.into_iter().map(|answer| answer.into_wire(self.input, wanted)).collect()
    }

    /// The answers of each decoder, of what came over the wire: classes are ones that the bundle has,
    /// confidences lie in 0..=1, and maps and tensors have the bundle's shapes. No more memory is taken
    /// than these shapes need.
    pub fn from_wire(
        &self,
        first: wire::Answer,
        further: Vec<wire::Answer>,
    ) -> Result<Vec<Answer>, UnusableAnswer> {
        let (expected, actual) = (self.decoders.len(), 1 + further.len());
        if expected != actual {
            return Err(UnusableAnswer::Count { expected, actual });
        }
        let answers = std::iter::once(first).chain(further);
        let specs = self.specs().zip(answers);
        specs.map(|(spec, answer)| from_wire(spec, self.input, answer)).collect()
    }
}

impl Answer {
    /// The answer as it travels; `input` is the width and height of the network's input (pixels).
    pub fn into_wire(self, (width, height): (u32, u32), wanted: Wanted) -> wire::Answer {
        let mut sent = wire::Answer::default();
        match self {
            Answer::Scores(Scores { top, logits }) => {
                let score = |(class, probability)| Score { class: number(class), probability };
                sent.top = top.into_iter().map(score).collect();
                sent.logits = if wanted.logits { logits } else { Vec::new() };
            }
            Answer::Boxes(boxes) => {
                let [w, h] = [width, height].map(|side| side as f32);
                let packed =
                    boxes.iter().map(|&Detection { class, confidence, x0, y0, x1, y1 }| {
                        PackedBox { class, confidence, edges: [x0 / w, y0 / h, x1 / w, y1 / h] }
                    });
                sent.boxes = write_boxes(packed);
            }
            Answer::Classes(ClassMap { width, height, classes, confidence }) => {
                let (width, height) = (number(width), number(height));
                let places = pack(&classes);
                let map =
                    wire::DenseMap { width, height, places, confidence, ..Default::default() };
                sent.map = Some(map);
            }
            Answer::Values(map) => sent.map = Some(steps(&map)),
            Answer::Tensors(tensors) => {
                let tensor = |tensor: Tensor| wire::TensorValues {
                    shape: tensor.shape.iter().map(|&side| number(side)).collect(),
                    values: pack(&planes(tensor.data.iter().map(|value| value.to_le_bytes()))),
                };
                sent.tensors = tensors.into_iter().map(tensor).collect();
            }
        }
        sent
    }
}

fn from_wire(
    spec: &DecoderSpec,
    input: (u32, u32),
    answer: wire::Answer,
) -> Result<Answer, UnusableAnswer> {
    match spec.task {
        Task::Classification => scores(spec, answer),
        Task::Detection => boxes(spec, input, &answer.boxes),
        Task::Segmentation => {
            let (map, width, height) = map_of(spec, answer.map)?;
            if !(0.0..=1.0).contains(&map.confidence) {
                return Err(UnusableAnswer::Confidence(map.confidence));
            }
            let classes = unpack(spec, &map.places, width * height)?;
            match classes.iter().find(|&&class| usize::from(class) >= spec.labels.len()) {
                Some(&class) => Err(unknown_class(spec, class.into())),
                None => {
                    let confidence = map.confidence;
                    Ok(Answer::Classes(ClassMap { width, height, classes, confidence }))
                }
            }
        }
        Task::Regression => {
            let (map, width, height) = map_of(spec, answer.map)?;
            let (low, high) = (map.low, map.high);
            if !(low.is_finite() && high.is_finite()) {
                return Err(shape(spec, format!("its values lie from {low} to {high}")));
            }
            let bytes = unpack(spec, &map.places, 2 * width * height)?;
            let value = |step: [u8; 2]| {
                let fraction = f64::from(u16::from_le_bytes(step)) / f64::from(u16::MAX);
                (f64::from(low) + fraction * (f64::from(high) - f64::from(low))) as f32
            };
            let values = words(&bytes).map(value).collect();
            Ok(Answer::Values(ValueMap { width, height, values }))
        }
        Task::Tensors => {
            let (expected, actual) = (spec.outputs.len(), answer.tensors.len());
            if expected != actual {
                return Err(shape(spec, format!("{actual} tensors; expected {expected}")));
            }
            let tensors = spec.outputs.iter().zip(answer.tensors);
            let tensors = tensors.map(|(output, tensor)| tensor_of(spec, output, tensor));
            Ok(Answer::Tensors(tensors.collect::<Result<_, _>>()?))
        }
    }
}

/// Boxes in pixels of the input, of fractions of it.
fn boxes(
    spec: &DecoderSpec,
    (width, height): (u32, u32),
    bytes: &[u8],
) -> Result<Answer, UnusableAnswer> {
    let [w, h] = [width, height].map(|side| side as f32);
    let found = |PackedBox { class, confidence, edges: [x0, y0, x1, y1] }| {
        if usize::from(class) >= spec.labels.len() {
            return Err(unknown_class(spec, class.into()));
        }
        Ok(Detection { class, confidence, x0: x0 * w, y0: y0 * h, x1: x1 * w, y1: y1 * h })
    };
    let packed = read_boxes(bytes).map_err(|error| shape(spec, error.to_string()))?;
    Ok(Answer::Boxes(packed.into_iter().map(found).collect::<Result<_, _>>()?))
}

fn scores(spec: &DecoderSpec, answer: wire::Answer) -> Result<Answer, UnusableAnswer> {
    if answer.top.is_empty() {
        return Err(UnusableAnswer::NoClass);
    }
    let mut top = Vec::new();
    for Score { class, probability } in answer.top.into_iter().take(TOP_CLASSES) {
        let known = usize::try_from(class).ok().filter(|&class| class < spec.labels.len());
        let class = known.ok_or_else(|| unknown_class(spec, class))?;
        if !(0.0..=1.0).contains(&probability) {
            return Err(UnusableAnswer::Confidence(probability));
        }
        top.push((class, probability));
    }
    Ok(Answer::Scores(Scores { top, logits: answer.logits }))
}

/// A map of the decoder's own size.
fn map_of(
    spec: &DecoderSpec,
    map: Option<wire::DenseMap>,
) -> Result<(wire::DenseMap, usize, usize), UnusableAnswer> {
    let map = map.ok_or_else(|| shape(spec, "answer without a map".into()))?;
    let (width, height) = super::grid(spec);
    if (map.width as usize, map.height as usize) != (width, height) {
        let problem =
            format!("a map of {} × {}; expected {width} × {height}", map.width, map.height);
        return Err(shape(spec, problem));
    }
    Ok((map, width, height))
}

fn tensor_of(
    spec: &DecoderSpec,
    output: &OutputSpec,
    tensor: wire::TensorValues,
) -> Result<Tensor, UnusableAnswer> {
    let sides = tensor.shape.iter().map(|&side| side as usize);
    if !sides.eq(output.shape.iter().copied()) {
        let OutputSpec { name, shape: expected, .. } = output;
        let problem = format!("{name} has shape {:?}; expected {expected:?}", tensor.shape);
        return Err(shape(spec, problem));
    }
    let bytes = unpack(spec, &tensor.values, 4 * output.len())?;
    let data = words(&bytes).map(f32::from_le_bytes).collect();
    Ok(Tensor { shape: output.shape.clone(), data })
}

/// Values between the least and the greatest in 65,536 steps.
fn steps(map: &ValueMap) -> wire::DenseMap {
    let low = map.values.iter().copied().fold(f32::INFINITY, f32::min);
    let high = map.values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let range = f64::from(high) - f64::from(low);
    let step = |&value: &f32| {
        let fraction = (f64::from(value) - f64::from(low)) / range;
        // Of a map of one value the fraction is NaN, and the step 0.
        ((fraction * f64::from(u16::MAX)).round() as u16).to_le_bytes()
    };
    wire::DenseMap {
        width: number(map.width),
        height: number(map.height),
        places: pack(&planes(map.values.iter().map(step))),
        low,
        high,
        ..Default::default()
    }
}

/// All first bytes, then all second ones, and so on: alike bytes side by side are fewer once packed.
fn planes<const N: usize>(words: impl Iterator<Item = [u8; N]> + Clone) -> Vec<u8> {
    (0..N).flat_map(|plane| words.clone().map(move |word| word[plane])).collect()
}

/// The words whose bytes lie in planes.
fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> {
    let count = bytes.len() / N;
    (0..count).map(move |at| std::array::from_fn(|plane| bytes[plane * count + at]))
}

fn pack(bytes: &[u8]) -> Vec<u8> {
    // In memory, at a level that there is, nothing can fail.
    zstd::bulk::compress(bytes, LEVEL).unwrap_or_default()
}

/// Exactly `expected` bytes, whatever the packed ones announce.
fn unpack(spec: &DecoderSpec, packed: &[u8], expected: usize) -> Result<Vec<u8>, UnusableAnswer> {
    let read = || {
        let mut bytes = Vec::new();
        let decoder = zstd::stream::read::Decoder::new(packed)?;
        decoder.take(expected as u64 + 1).read_to_end(&mut bytes)?;
        std::io::Result::Ok(bytes)
    };
    let bytes = read().map_err(|error| shape(spec, format!("zstd: {error}")))?;
    match bytes.len() == expected {
        true => Ok(bytes),
        false => Err(shape(spec, format!("other than {expected} bytes in zstd"))),
    }
}

fn unknown_class(spec: &DecoderSpec, class: u32) -> UnusableAnswer {
    let (decoder, labels) = (spec.name.clone(), spec.labels.len());
    UnusableAnswer::Class { decoder, class, labels }
}

fn shape(spec: &DecoderSpec, problem: String) -> UnusableAnswer {
    UnusableAnswer::Shape { decoder: spec.name.clone(), problem }
}

fn number(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}
