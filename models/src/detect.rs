//! Boxes from a detector's outputs: what each layout of tensors means, and which boxes stay.

mod candidates;
mod error;
mod grids;
mod layout;
mod pairs;
mod plain;
mod spec;
mod suppress;
mod tensors;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use self::candidates::{Candidate, Candidates};
use self::grids::{Centernet, Distribution, DistributionSpec, Fastestdet, Yolox};
use self::layout::Layout;
use self::pairs::{PairBoxes, PairScores, Pairs};
use self::plain::{Decoded, Suppressed};
use self::tensors::Output;

pub use self::error::{BoxesDecodeError, BoxesError};
pub use self::spec::{
    Activation, Background, BoxForm, BoxesLayout, BoxesSpec, Column, MAX_BOXES, MAX_CANDIDATES,
    PriorLevel,
};

/// How far above 1 a score may lie: half-precision engines round up.
const ABOVE_ONE: f32 = 1e-2;

/// A box that a detector found, in pixels of the network's input, or of a picture that it was
/// mapped back into.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Detection {
    /// Class, a place among the labels.
    pub class: u16,
    /// Score, 0..=1.
    pub confidence: f32,
    /// Left side.
    pub x0: f32,
    /// Upper side.
    pub y0: f32,
    /// Right side, above `x0`.
    pub x1: f32,
    /// Lower side, above `y0`.
    pub y1: f32,
}

impl Detection {
    /// Intersection over union with another box, 0..=1, whatever their classes.
    ///
    /// ```
    /// use isthmus_models::Detection;
    /// let one = Detection { class: 0, confidence: 0.9, x0: 0.0, y0: 0.0, x1: 2.0, y1: 2.0 };
    /// let other = Detection { x0: 1.0, x1: 3.0, ..one };
    /// assert_eq!(one.iou(&other), 2.0 / 6.0);
    /// ```
    pub fn iou(&self, other: &Detection) -> f32 {
        let width = self.x1.min(other.x1) - self.x0.max(other.x0);
        let height = self.y1.min(other.y1) - self.y0.max(other.y0);
        if width <= 0.0 || height <= 0.0 {
            return 0.0;
        }
        let both = width * height;
        both / (self.area() + other.area() - both)
    }

    /// Width times height.
    fn area(&self) -> f32 {
        (self.x1 - self.x0) * (self.y1 - self.y0)
    }
}

/// Makes boxes of the outputs of one detector. Several threads may use it at once.
///
/// ```
/// use isthmus_models::{BoxesDecoder, BoxesSpec};
///
/// let spec: BoxesSpec = toml::from_str("layout = 'corners'\nconfidence = 0.3")?;
/// let decoder = BoxesDecoder::new(&spec, &[("found", &[2, 6])], (64, 64), 3)?;
/// let found = [4.0, 5.0, 90.0, 20.0, 0.8, 2.0, 0.0, 0.0, 9.0, 9.0, 0.1, 1.0];
/// let boxes = decoder.decode(&[&found], None)?;
/// assert_eq!(boxes.len(), 1, "the other scores too little");
/// assert_eq!((boxes[0].class, boxes[0].x1), (2, 64.0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct BoxesDecoder {
    layout: Arc<dyn Layout>,
    /// Those that the layout reads, in its order.
    outputs: Arc<[Output]>,
    /// Outputs of the network.
    given: usize,
    /// Width and height of the input (pixels).
    input: [f32; 2],
    confidence: f32,
    iou: Option<f32>,
    agnostic: bool,
    every_class: bool,
    limit: usize,
    candidates: usize,
}

impl BoxesDecoder {
    /// A decoder for a network with these outputs (name and shape without the batch, in the
    /// network's order), this input (width and height in pixels) and as many classes.
    ///
    /// An error names the parameter, or the output with the shape that it needs.
    pub fn new(
        spec: &BoxesSpec,
        outputs: &[(&str, &[usize])],
        input: (u32, u32),
        classes: u16,
    ) -> Result<BoxesDecoder, BoxesError> {
        spec.check()?;
        if classes == 0 {
            return Err(error::value("labels", "needs at least one"));
        }
        let input = [input.0, input.1];
        if input.iter().any(|side| !(1..=spec::MAX_SIDE).contains(side)) {
            let problem = format!("is {input:?}; sides of 1 to {} are understood", spec::MAX_SIDE);
            return Err(error::value("input", problem));
        }
        let given = outputs.len();
        let outputs = Output::select(outputs, &spec.tensors)?;
        Ok(BoxesDecoder {
            layout: read(&spec.layout, &outputs, input, classes)?,
            outputs: outputs.into(),
            given,
            input: input.map(|side| side as f32),
            confidence: spec.confidence,
            iou: spec.iou,
            agnostic: spec.agnostic,
            every_class: spec.gives_every_class(),
            limit: spec.limit as usize,
            candidates: spec.candidates as usize,
        })
    }

    /// The boxes in the outputs for one picture: all outputs of the network in its order, row-major.
    /// Boxes score at least `threshold`, or else the specification's confidence, end at the input's
    /// sides and come best first; of equals the lower class, then the earlier place.
    ///
    /// NaN, infinite values, scores above 1 and classes without a label are errors that name the
    /// output and the place.
    pub fn decode(
        &self,
        outputs: &[&[f32]],
        threshold: Option<f32>,
    ) -> Result<Vec<Detection>, BoxesDecodeError> {
        let threshold = threshold.unwrap_or(self.confidence);
        if !(0.0..=1.0).contains(&threshold) {
            return Err(BoxesDecodeError::Threshold(threshold));
        }
        if outputs.len() != self.given {
            let (expected, actual) = (self.given, outputs.len());
            return Err(BoxesDecodeError::Count { expected, actual });
        }
        let outputs: Vec<&[f32]> = self.outputs.iter().map(|output| outputs[output.at]).collect();
        for (output, data) in self.outputs.iter().zip(&outputs) {
            output.check(data)?;
        }
        self.layout.check(&outputs, threshold)?;
        let mut candidates = Candidates::new(threshold, self.every_class);
        self.layout.score(&outputs, &mut candidates);
        let mut boxes = Vec::new();
        for candidate in candidates.best(self.candidates) {
            boxes.extend(self.detection(&outputs, candidate)?);
        }
        match self.iou {
            Some(iou) => boxes = suppress::suppress(boxes, iou, self.agnostic, self.limit),
            None => boxes.truncate(self.limit),
        }
        Ok(boxes)
    }

    /// The box of a candidate within the input, unless nothing of it is there.
    fn detection(
        &self,
        outputs: &[&[f32]],
        Candidate { score, class, place }: Candidate,
    ) -> Result<Option<Detection>, BoxesDecodeError> {
        let tensor =
            |at: usize| self.outputs.get(at).map_or_else(String::new, |it| it.name.clone());
        if score > 1.0 + ABOVE_ONE {
            return Err(BoxesDecodeError::Score {
                tensor: tensor(self.layout.scores_in(place)),
                place,
                class,
                score,
            });
        }
        let corners = self.layout.corners(outputs, place);
        if corners.iter().any(|side| !side.is_finite()) {
            let boxes = self.layout.boxes_in(place);
            return Err(BoxesDecodeError::Endless { tensor: tensor(boxes), place });
        }
        let [width, height] = self.input;
        let [x0, y0, x1, y1] = corners;
        let found = Detection {
            class,
            confidence: score.min(1.0),
            x0: x0.clamp(0.0, width),
            y0: y0.clamp(0.0, height),
            x1: x1.clamp(0.0, width),
            y1: y1.clamp(0.0, height),
        };
        Ok((found.x0 < found.x1 && found.y0 < found.y1).then_some(found))
    }
}

/// The layout for outputs of these shapes.
fn read(
    layout: &BoxesLayout,
    outputs: &[Output],
    input: [u32; 2],
    classes: u16,
) -> Result<Arc<dyn Layout>, BoxesError> {
    Ok(match layout {
        BoxesLayout::Yolox { strides, activation } => {
            Arc::new(Yolox::new(outputs, input, classes, strides, *activation)?)
        }
        BoxesLayout::Yolov5 { activation } => {
            Arc::new(Decoded::new(outputs, classes, *activation, true)?)
        }
        BoxesLayout::Yolov8 { activation } => {
            Arc::new(Decoded::new(outputs, classes, *activation, false)?)
        }
        &BoxesLayout::Distribution { ref strides, bins, offset, activation } => {
            let spec = DistributionSpec { strides, bins: bins as usize, offset, activation };
            Arc::new(Distribution::new(outputs, input, classes, &spec)?)
        }
        &BoxesLayout::Ssd {
            boxes,
            normalised,
            background,
            activation,
            variances,
            ref priors,
            clip_priors,
        } => {
            let scores = PairScores { activation, background, classes };
            let boxes = PairBoxes { form: boxes, normalised, variances, priors, clip: clip_priors };
            Arc::new(Pairs::new(outputs, input, scores, &boxes)?)
        }
        &BoxesLayout::Detr { activation } => {
            let background = (activation == Activation::Softmax).then_some(Background::Last);
            let scores = PairScores { activation, background, classes };
            let boxes = PairBoxes {
                form: BoxForm::Centres,
                normalised: true,
                variances: [1.0; 2],
                priors: &[],
                clip: false,
            };
            Arc::new(Pairs::new(outputs, input, scores, &boxes)?)
        }
        BoxesLayout::Fastestdet {} => Arc::new(Fastestdet::new(outputs, input, classes)?),
        BoxesLayout::Centernet { stride, activation } => {
            Arc::new(Centernet::new(outputs, input, classes, *stride, *activation)?)
        }
        BoxesLayout::Corners { columns, normalised, first_class } => {
            let sides = input.map(|side| if *normalised { side as f32 } else { 1.0 });
            Arc::new(Suppressed::new(outputs, columns, sides, [*first_class, classes])?)
        }
    })
}
