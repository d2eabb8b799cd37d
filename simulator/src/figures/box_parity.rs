//! Boxes by one way against those by another.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context;
use isthmus_head_client::FrameReport;
use isthmus_head_client::config::Transport;
use isthmus_models::{
    Answer, Bundle, Detection, EngineKind, Full, Outputs, Picture, Preprocessor, Tail, TailItem,
    TrueBox, View, iou,
};
use isthmus_proto::OperatingPoint;
use isthmus_proto::wire::Detail;
use isthmus_tail_server::model::Model;

use super::Measurement;
use super::found::threshold;
use super::lab::{Lab, Talk, frames_of};
use super::parity::{IN_FLIGHT, Spread, name_of};
use super::sent;

/// Overlap from which two boxes are the same.
const ALIKE: f64 = 0.99;
/// By how much their confidences may differ.
const SCORE: f32 = 1e-3;
/// Pictures that it takes.
const PICTURES: usize = 200;
/// Pictures that are asked of an ONNX Runtime.
const ORT_PICTURES: usize = 256;

pub(super) fn over_quic(lab: &Lab) -> anyhow::Result<Measurement> {
    if !lab.detects() {
        return Ok(Measurement::skipped("the bundle's network finds no boxes"));
    }
    let (head, model, bundle) = (lab.head()?, lab.model()?, lab.bundle());
    let pictures = lab.pictures()?;
    let preprocessor = Preprocessor::new(&bundle.manifest().input);
    let (mut parity, mut points) = (Parity::new(bundle), BTreeSet::new());
    let mut input = Vec::new();
    let compare = |report: &FrameReport| {
        let point = bundle.parse_point(&name_of(report).context("a frame without a point")?)?;
        let picture = &pictures[report.frame as usize];
        preprocessor.run(picture, &mut input);
        let latents =
            sent::arrived(bundle, point, &head.run(point.split, point.width, &input)?.latents)?;
        let OperatingPoint { split, width, .. } = point;
        let unsplit = model.infer(&[TailItem { split, width, latents: &latents }])?.remove(0);
        let here = boxes(bundle, unsplit, picture)?;
        let Some(Answer::Boxes(there)) = report.answers.first() else {
            anyhow::bail!("{}: no boxes came: {}", report.source, report.reason);
        };
        parity.compare(there, &here);
        parity.frames += 1;
        points.insert(point);
        Ok(())
    };
    let talk = Talk {
        transport: Transport::Quic,
        detail: Detail::Top,
        min_confidence: None,
        in_flight: IN_FLIGHT,
        controller: Box::new(Spread::new(lab.shuffled_points())),
    };
    let source = frames_of(&pictures, pictures.len());
    lab.serve()?.answer(lab.head()?, talk, source, compare)?;
    let way = format!(
        "client and server over QUIC against the same symbols in process, at {} operating points",
        points.len()
    );
    Ok(parity.measurement(lab, &way))
}

pub(super) fn ort(lab: &Lab) -> anyhow::Result<Measurement> {
    if !lab.detects() {
        return Ok(Measurement::skipped("the bundle's network finds no boxes"));
    }
    let installed = match EngineKind::Ort.open(&[]) {
        Ok(installed) => installed,
        Err(missing) => return Ok(Measurement::skipped(missing.to_string())),
    };
    let bundle = lab.bundle();
    let tails = (lab.model()?, Tail::load(Arc::clone(bundle), &*installed)?);
    let fulls = (lab.full()?, Full::load(Arc::clone(bundle), &*installed)?);
    let (head, point) = (lab.head()?, bundle.default_point());
    let OperatingPoint { split, width, .. } = point;
    let preprocessor = Preprocessor::new(&bundle.manifest().input);
    let (mut parity, mut input) = (Parity::new(bundle), Vec::new());
    for picture in lab.pictures()?.iter().take(ORT_PICTURES) {
        preprocessor.run(picture, &mut input);
        let latents = sent::arrived(bundle, point, &head.run(split, width, &input)?.latents)?;
        let item = [TailItem { split, width, latents: &latents }];
        let ours = [tails.0.infer(&item)?.remove(0), fulls.0.run(&[&input])?.remove(0)];
        let theirs = [tails.1.run(&item)?.remove(0), fulls.1.run(&[&input])?.remove(0)];
        for (ours, theirs) in ours.into_iter().zip(theirs) {
            parity.compare(&boxes(bundle, ours, picture)?, &boxes(bundle, theirs, picture)?);
        }
        parity.frames += 1;
    }
    let way = format!(
        "tract against ONNX Runtime, the full network and the tail on the same symbols at {}",
        bundle.describe_point(point)
    );
    Ok(parity.measurement(lab, &way))
}

/// The boxes of a network's outputs, in the picture's pixels.
fn boxes(bundle: &Bundle, outputs: Outputs, picture: &Picture) -> anyhow::Result<Vec<Detection>> {
    let view = View::new(&bundle.manifest().input, None, (picture.width(), picture.height()));
    let answers = bundle.decoders().answers(outputs, None)?;
    match answers.into_iter().next().map(|first| first.in_picture(&view)) {
        Some(Answer::Boxes(boxes)) => Ok(boxes),
        _ => anyhow::bail!("the network's first answer is no boxes"),
    }
}

/// What was compared.
struct Parity {
    /// Boxes that are less sure are in no answer.
    threshold: f32,
    frames: usize,
    /// Boxes of either way, those of both counted once.
    boxes: usize,
    alike: usize,
    /// Of boxes of the same class and about the same place.
    score_gap: f32,
}

impl Parity {
    fn new(bundle: &Bundle) -> Parity {
        Parity { threshold: threshold(bundle), frames: 0, boxes: 0, alike: 0, score_gap: 0.0 }
    }

    /// Takes in the boxes of one picture. One that only one way gives is no difference where the other's
    /// would be just below the threshold.
    fn compare(&mut self, ours: &[Detection], theirs: &[Detection]) {
        let mut free: Vec<&Detection> = theirs.iter().collect();
        let unsure = |it: &Detection| it.confidence <= self.threshold + SCORE;
        let mut alone = 0;
        for found in ours {
            let overlap = |other: &Detection| match other.class == found.class {
                true => iou(found, &as_true(other)),
                false => 0.0,
            };
            let nearest =
                (0..free.len()).max_by(|&a, &b| overlap(free[a]).total_cmp(&overlap(free[b])));
            let Some(at) = nearest.filter(|&at| overlap(free[at]) >= ALIKE) else {
                alone += usize::from(!unsure(found));
                continue;
            };
            let gap = (free.swap_remove(at).confidence - found.confidence).abs();
            self.score_gap = self.score_gap.max(gap);
            self.boxes += 1;
            self.alike += usize::from(gap <= SCORE);
        }
        alone += free.iter().filter(|it| !unsure(it)).count();
        self.boxes += alone;
    }

    fn measurement(&self, lab: &Lab, way: &str) -> Measurement {
        let Parity { frames, boxes, alike, score_gap, .. } = self;
        let detail = format!(
            "{way}: {alike} of {boxes} boxes in {frames} {} (at least {PICTURES}) overlap by {ALIKE} with \
             confidences within {SCORE}; the greatest gap is {score_gap:.1e}",
            lab.origin()
        );
        let broken = *frames < PICTURES || *boxes == 0;
        let value = *alike as f64 / (*boxes).max(1) as f64;
        Measurement { broken, ..Measurement::of(value, detail) }
    }
}

fn as_true(found: &Detection) -> TrueBox {
    let Detection { class, x0, y0, x1, y1, .. } = *found;
    TrueBox { class, x0, y0, x1, y1, crowd: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_boxes_near_the_threshold_may_be_missing() {
        let found = |confidence, x0| Detection {
            class: 1,
            confidence,
            x0,
            y0: 0.0,
            x1: x0 + 100.0,
            y1: 100.0,
        };
        let parity = |ours: &[Detection], theirs: &[Detection]| {
            let mut parity =
                Parity { threshold: 0.3, frames: 0, boxes: 0, alike: 0, score_gap: 0.0 };
            parity.compare(ours, theirs);
            (parity.alike, parity.boxes)
        };
        let both = [found(0.9, 0.0), found(0.3005, 200.0)];
        assert_eq!(parity(&both, &[found(0.9005, 0.1)]), (1, 1));
        assert_eq!(parity(&both, &[found(0.9, 5.0)]), (0, 2));
        assert_eq!(parity(&both, &[found(0.8, 0.0), found(0.3, 200.0)]), (1, 2));
        assert_eq!(parity(&[], &both), (0, 1));
    }
}
