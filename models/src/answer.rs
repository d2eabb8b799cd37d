//! A network's answers, from its outputs.

mod wire;

use crate::classify::top_k;
use crate::detect::{BoxesDecodeError, BoxesDecoder, BoxesError, Detection};
use crate::engine::Tensor;
use crate::image_codec::View;
use crate::manifest::{DecoderSpec, OutputSpec, Task};
use crate::tail::Outputs;

pub use wire::{UnusableAnswer, Wanted};

/// Classes of a classification that are named in an answer.
pub const TOP_CLASSES: usize = 5;

/// What one decoder says of a picture.
#[derive(Clone, Debug, PartialEq)]
pub enum Answer {
    /// Classification.
    Scores(Scores),
    /// Detection: boxes in pixels of the network's input, the most confident first.
    Boxes(Vec<Detection>),
    /// Segmentation.
    Classes(ClassMap),
    /// Regression.
    Values(ValueMap),
    /// The outputs as they come, in the manifest's order and without the batch's dimension.
    Tensors(Vec<Tensor>),
}

/// The classes of a picture.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scores {
    /// The most probable classes with their probabilities (0..=1), at most [`TOP_CLASSES`], best first.
    pub top: Vec<(usize, f32)>,
    /// Logits, f32 `[K]`; empty where nobody asked for them.
    pub logits: Vec<f32>,
}

/// A class for every place of a grid over the network's input.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ClassMap {
    /// Places in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// The most probable class of each place, row by row.
    pub classes: Vec<u8>,
    /// Mean softmax probability of the places' classes, 0..=1.
    pub confidence: f32,
}

/// A value for every place of a grid over the network's input.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ValueMap {
    /// Places in a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Row by row.
    pub values: Vec<f32>,
}

/// Why outputs are no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AnswerError {
    /// Another number of outputs or of values than the manifest says.
    #[error("{decoder}: the network gave other outputs than the manifest says")]
    Outputs {
        /// The decoder's name.
        decoder: String,
    },
    /// Outputs that are no boxes.
    #[error("{decoder}: {source}")]
    Boxes {
        /// The decoder's name.
        decoder: String,
        /// Which output and place.
        source: BoxesDecodeError,
    },
    /// A value that is not finite.
    #[error("{decoder}.{output}: value {at} is {value}; expected a finite number")]
    NotFinite {
        /// The decoder's name.
        decoder: String,
        /// The output's name.
        output: String,
        /// Which value.
        at: usize,
        /// What it is.
        value: f32,
    },
}

/// Why decoders cannot be made of what a manifest says.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("decoders[{decoder}].boxes: {source}")]
pub struct DecodersError {
    /// Position of the decoder.
    pub decoder: usize,
    /// Which parameter or output, and why.
    pub source: BoxesError,
}

/// The decoders of a bundle: what makes answers of outputs, and of what came over the wire.
#[derive(Clone, Debug)]
pub struct Decoders {
    decoders: Vec<Decoder>,
    /// Width and height of the network's input (pixels).
    input: (u32, u32),
}

#[derive(Clone, Debug)]
struct Decoder {
    spec: DecoderSpec,
    boxes: Option<BoxesDecoder>,
}

impl PartialEq for Decoders {
    /// What makes boxes follows from the rest.
    fn eq(&self, other: &Decoders) -> bool {
        self.input == other.input && self.specs().eq(other.specs())
    }
}

impl Decoders {
    /// The decoders that a parsed manifest lists, of a network with an input of this width and height
    /// (pixels).
    pub fn new(specs: &[DecoderSpec], input: (u32, u32)) -> Result<Decoders, DecodersError> {
        let decoder = |(at, spec): (usize, &DecoderSpec)| {
            let outputs: Vec<(&str, &[usize])> =
                spec.outputs.iter().map(|it| (it.name.as_str(), it.shape.as_slice())).collect();
            let classes = u16::try_from(spec.labels.len()).unwrap_or(u16::MAX);
            let boxes = spec.boxes.as_ref();
            let boxes = boxes.map(|boxes| BoxesDecoder::new(boxes, &outputs, input, classes));
            let boxes = boxes.transpose();
            let boxes = boxes.map_err(|source| DecodersError { decoder: at, source })?;
            Ok(Decoder { spec: spec.clone(), boxes })
        };
        let decoders = specs.iter().enumerate().map(decoder).collect::<Result<_, _>>()?;
        Ok(Decoders { decoders, input })
    }

    /// Of a network that does nothing but classify.
    pub fn classifier(labels: impl IntoIterator<Item = String>) -> Decoders {
        let decoder = Decoder { spec: DecoderSpec::classification(labels), boxes: None };
        Decoders { decoders: vec![decoder], input: (1, 1) }
    }

    /// What the manifest says of each.
    pub fn specs(&self) -> impl ExactSizeIterator<Item = &DecoderSpec> {
        self.decoders.iter().map(|decoder| &decoder.spec)
    }

    /// The answer of each decoder to one picture, of the network's outputs for it. Boxes are those that
    /// have at least `min_confidence`, or the bundle's own threshold.
    pub fn answers(
        &self,
        outputs: Outputs,
        min_confidence: Option<f32>,
    ) -> Result<Vec<Answer>, AnswerError> {
        let mut outputs = outputs.into_iter();
        let answer = |decoder: &Decoder| {
            let spec = &decoder.spec;
            let own: Vec<Vec<f32>> = outputs.by_ref().take(spec.outputs.len()).collect();
            let lengths = own.iter().map(Vec::len);
            if !lengths.eq(spec.outputs.iter().map(OutputSpec::len)) {
                return Err(AnswerError::Outputs { decoder: spec.name.clone() });
            }
            decoder.answer(own, min_confidence)
        };
        self.decoders.iter().map(answer).collect()
    }

    /// The answer of an early exit, f32 `[K]`, to the first decoder's question, and how sure it is (0..=1);
    /// `None` where that is not a number.
    ///
    /// A classifier's exit names a class. A detector's says of each label how likely one of its objects is
    /// in the picture (the logit of a sigmoid); it finds nothing, and is as sure of that as the likeliest of
    /// the labels `of` interest, or of all, is unlikely.
    pub fn exit_answer(&self, logits: Vec<f32>, of: Option<&[usize]>) -> Option<(Answer, f32)> {
        let first = self.decoders.first()?;
        let (answer, confidence) = match first.spec.task {
            Task::Detection => {
                let counts = |at: &usize| of.is_none_or(|of| of.contains(at));
                let logits_of = logits.iter().enumerate().filter(|(at, _)| counts(at));
                let likeliest = logits_of.map(|it| *it.1).fold(f32::NEG_INFINITY, f32::max);
                let none = 1.0 / (1.0 + likeliest.exp());
                let sane = logits.iter().all(|logit| !logit.is_nan());
                (Answer::Boxes(Vec::new()), if sane { none } else { f32::NAN })
            }
            _ => {
                let scores = Scores::of(logits);
                let confidence = scores.top.first()?.1;
                (Answer::Scores(scores), confidence)
            }
        };
        confidence.is_finite().then_some((answer, confidence))
    }

    /// How sure an answer of the decoder at a position is, 0..=1: of boxes the mean over those of at least
    /// the bundle's confidence, or, without one, how far the best falls short of a certain one; of others
    /// as [`Answer::confidence`] says.
    pub fn confidence(&self, at: usize, answer: &Answer) -> f32 {
        let threshold = self.decoders.get(at).and_then(|it| it.spec.boxes.as_ref());
        let (Some(spec), Answer::Boxes(boxes)) = (threshold, answer) else {
            return answer.confidence();
        };
        let counted = boxes.iter().map(|it| it.confidence).filter(|&it| it >= spec.confidence);
        let (count, sum) = counted.fold((0, 0.0), |(count, sum), it| (count + 1, sum + it));
        match count {
            0 => 1.0 - boxes.first().map_or(0.0, |best| best.confidence),
            count => sum / count as f32,
        }
    }
}

impl Answer {
    /// How sure the answer is, 0..=1: of a class its softmax probability, of boxes the best one's
    /// confidence, of a map of classes the mean of its places' probabilities; 1 where the network does not
    /// say.
    pub fn confidence(&self) -> f32 {
        let confidence = match self {
            Answer::Scores(scores) => scores.top.first().map_or(0.0, |best| best.1),
            Answer::Classes(map) => map.confidence,
            Answer::Boxes(boxes) => boxes.first().map_or(1.0, |best| best.confidence),
            Answer::Values(_) | Answer::Tensors(_) => 1.0,
        };
        // What gives NaN is sure of nothing.
        if confidence.is_finite() { confidence.clamp(0.0, 1.0) } else { 0.0 }
    }

    /// Boxes of the network's input as ones of the picture that was seen so; those outside of what is seen
    /// of it are left out. Other answers stay as they are.
    #[must_use]
    pub fn in_picture(self, view: &View) -> Answer {
        let Answer::Boxes(boxes) = self else { return self };
        let seen = boxes.into_iter().map(|it| {
            let [x0, y0, x1, y1] = view.to_picture([it.x0, it.y0, it.x1, it.y1]);
            Detection { x0, y0, x1, y1, ..it }
        });
        Answer::Boxes(seen.filter(|it| it.x0 < it.x1 && it.y0 < it.y1).collect())
    }

    /// The most probable class of a classification.
    pub fn class(&self) -> Option<usize> {
        match self {
            Answer::Scores(scores) => scores.top.first().map(|best| best.0),
            _ => None,
        }
    }
}

impl Scores {
    /// Of logits, f32 `[K]`.
    pub fn of(logits: Vec<f32>) -> Scores {
        Scores { top: top_k(&logits, TOP_CLASSES), logits }
    }
}

impl Decoder {
    fn answer(
        &self,
        outputs: Vec<Vec<f32>>,
        min_confidence: Option<f32>,
    ) -> Result<Answer, AnswerError> {
        let spec = &self.spec;
        if let Some(boxes) = &self.boxes {
            let outputs: Vec<&[f32]> = outputs.iter().map(Vec::as_slice).collect();
            let found = boxes.decode(&outputs, min_confidence);
            let decoder = || spec.name.clone();
            let found =
                found.map_err(|source| AnswerError::Boxes { decoder: decoder(), source })?;
            return Ok(Answer::Boxes(found));
        }
        dense_answer(spec, outputs)
    }
}

/// The answer of a decoder that finds no boxes.
fn dense_answer(spec: &DecoderSpec, outputs: Vec<Vec<f32>>) -> Result<Answer, AnswerError> {
    let first = || outputs.first().map_or(&[][..], Vec::as_slice);
    match spec.task {
        Task::Classification => Ok(Answer::Scores(Scores::of(first().to_vec()))),
        Task::Segmentation => {
            expect_finite(spec, &outputs)?;
            Ok(Answer::Classes(class_map(grid(spec), first())))
        }
        Task::Regression => {
            expect_finite(spec, &outputs)?;
            let (width, height) = grid(spec);
            Ok(Answer::Values(ValueMap { width, height, values: first().to_vec() }))
        }
        Task::Detection | Task::Tensors => {
            let tensor =
                |(spec, data): (&OutputSpec, Vec<f32>)| Tensor { shape: spec.shape.clone(), data };
            Ok(Answer::Tensors(spec.outputs.iter().zip(outputs).map(tensor).collect()))
        }
    }
}

/// Width and height of a map; a manifest that was parsed says both.
fn grid(spec: &DecoderSpec) -> (usize, usize) {
    match spec.outputs.first().map(|output| output.shape.as_slice()) {
        Some(&[.., height, width]) => (width, height),
        _ => (0, 0),
    }
}

fn expect_finite(spec: &DecoderSpec, outputs: &[Vec<f32>]) -> Result<(), AnswerError> {
    for (output, values) in spec.outputs.iter().zip(outputs) {
        if let Some(at) = values.iter().position(|value| !value.is_finite()) {
            let (decoder, output) = (spec.name.clone(), output.name.clone());
            return Err(AnswerError::NotFinite { decoder, output, at, value: values[at] });
        }
    }
    Ok(())
}

/// The likeliest class of each place, of logits `[K, height, width]`; of equals the lower one.
fn class_map((width, height): (usize, usize), logits: &[f32]) -> ClassMap {
    let places = width * height;
    let (mut classes, mut sum) = (Vec::with_capacity(places), 0.0f64);
    let mut here: Vec<f32> = Vec::new();
    for place in 0..places {
        here.clear();
        here.extend(logits.iter().skip(place).step_by(places.max(1)));
        let greatest = here.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let class = here.iter().position(|&logit| logit == greatest).unwrap_or(0);
        // The greatest one's softmax probability, without room for the others'.
        let exponentials: f32 = here.iter().map(|logit| (logit - greatest).exp()).sum();
        sum += f64::from(1.0 / exponentials);
        classes.push(class as u8);
    }
    ClassMap { width, height, classes, confidence: (sum / places.max(1) as f64) as f32 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decoders(task: Task, labels: &[&str], outputs: &[&[usize]]) -> Decoders {
        let output =
            |(at, shape): (usize, &&[usize])| OutputSpec::f32(&at.to_string(), shape.to_vec());
        let spec = DecoderSpec {
            name: "it".into(),
            task,
            labels: labels.iter().map(|&label| label.into()).collect(),
            trunk: [].into(),
            outputs: outputs.iter().enumerate().map(output).collect(),
            boxes: None,
        };
        Decoders::new(&[spec], (8, 8)).expect("no boxes")
    }

    #[test]
    fn a_map_has_the_likeliest_class_of_every_place() {
        let decoders = decoders(Task::Segmentation, &["road", "sky"], &[&[2, 1, 3]]);
        let answers =
            decoders.answers(vec![vec![0.0, 9.0, 0.0, 0.0, 0.0, 9.0]], None).expect("a map");
        let [Answer::Classes(map)] = answers.as_slice() else { panic!("{answers:?}") };
        assert_eq!((map.width, map.height, &map.classes[..]), (3, 1, &[0, 0, 1][..]));
        assert!((map.confidence - (0.5 + 2.0 * 0.99987_66) / 3.0).abs() < 1e-5);
        let error = decoders.answers(vec![vec![0.0, 9.0, 0.0, 0.0, f32::NAN, 9.0]], None);
        let error = error.expect_err("NaN").to_string();
        assert_eq!(error, "it.0: value 4 is NaN; expected a finite number");
        assert!(decoders.answers(vec![vec![0.0; 5]], None).is_err());
    }

    #[test]
    fn several_outputs_come_as_they_are() {
        let decoders = decoders(Task::Tensors, &[], &[&[2], &[1, 2]]);
        let answers =
            decoders.answers(vec![vec![1.0, f32::NAN], vec![3.0, 4.0]], None).expect("any");
        let [Answer::Tensors(tensors)] = answers.as_slice() else { panic!("{answers:?}") };
        assert_eq!(
            (tensors[1].shape.as_slice(), tensors[1].data.as_slice()),
            (&[1, 2][..], &[3.0, 4.0][..])
        );
        assert_eq!((answers[0].confidence(), answers[0].class()), (1.0, None));
    }
}
