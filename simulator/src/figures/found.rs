//! A detector's answer to one picture, as a device gets it.

use anyhow::Context;
use isthmus_head_client::config::MEASURED_CONFIDENCE;
use isthmus_models::{Answer, Bundle, DecoderSpec, Detection, Outputs, View, Wanted};
use prost::Message;

/// What was found in a picture.
#[derive(Clone, Debug)]
pub(super) struct Found {
    /// Boxes in the picture's pixels, the unsure ones as well.
    pub(super) boxes: Vec<Detection>,
    /// How sure the answer is, 0 to 1.
    pub(super) confidence: f32,
    /// Answers (bytes) in the reply to a device that asks for boxes of the bundle's own confidence.
    pub(super) reply: u32,
}

impl Found {
    /// Of a network's outputs for a picture that it saw so, by way of the wire.
    pub(super) fn of(bundle: &Bundle, outputs: Outputs, view: &View) -> anyhow::Result<Found> {
        let (decoders, usual) = (bundle.decoders(), threshold(bundle));
        let answers = decoders.answers(outputs, Some(usual.min(MEASURED_CONFIDENCE)))?;
        let mut sure = answers.clone();
        if let Some(Answer::Boxes(boxes)) = sure.first_mut() {
            boxes.retain(|it| it.confidence >= usual);
        }
        let sent = decoders.to_wire(sure, Wanted::default());
        let reply = sent.iter().map(Message::encoded_len).sum::<usize>() as u32;

        let mut sent = decoders.to_wire(answers, Wanted::default()).into_iter();
        let first = sent.next().context("a bundle without decoders")?;
        let answers = decoders.from_wire(first, sent.collect())?;
        let first = answers.into_iter().next().context("a reply without answers")?;
        let confidence = decoders.confidence(0, &first);
        let Answer::Boxes(boxes) = first.in_picture(view) else {
            anyhow::bail!("the network's first answer is no boxes");
        };
        Ok(Found { boxes, confidence, reply })
    }
}

/// From which confidence a bundle's boxes are answered by default.
pub(super) fn threshold(bundle: &Bundle) -> f32 {
    bundle.manifest().decoders.first().map_or(0.0, DecoderSpec::confidence)
}
