//! The cut network through the wire against the same network without a wire.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;
use isthmus_head_client::config::Transport;
use isthmus_head_client::{
    Controller, Fixed, FrameReport, HeadDecision, HeadView, NetworkSample, NetworkTimeout,
    SendDecision, SendView,
};
use isthmus_models::{Preprocessor, TailItem, likeliest};
use isthmus_proto::wire::Detail;
use isthmus_proto::{OperatingPoint, Timestamp};
use isthmus_tail_server::model::Model;

use super::Measurement;
use super::accuracy::NO_CLASSES;
use super::lab::{Lab, Talk, frames_of};

/// Frames unanswered at a time, so that the server has some to batch.
pub(super) const IN_FLIGHT: usize = 8;

pub(super) fn top1(lab: &Lab) -> anyhow::Result<Measurement> {
    if !lab.classifies() {
        return Ok(Measurement::skipped(NO_CLASSES));
    }
    let parity = lab.once(Parity::measure)?;
    Ok(Measurement::of(parity.same as f64 / parity.frames as f64, parity.words(lab)))
}

pub(super) fn logit_max(lab: &Lab) -> anyhow::Result<Measurement> {
    if !lab.classifies() {
        return Ok(Measurement::skipped(NO_CLASSES));
    }
    let parity = lab.once(Parity::measure)?;
    Ok(Measurement::of(parity.gap.into(), parity.words(lab)))
}

/// Two ways to the same logits.
#[derive(Default)]
struct Parity {
    frames: usize,
    /// Frames whose likeliest class is the same.
    same: usize,
    /// Greatest difference between two logits.
    gap: f32,
    points: BTreeSet<OperatingPoint>,
}

impl Parity {
    fn measure(lab: &Lab) -> anyhow::Result<Parity> {
        let (head, model, bundle) = (lab.head()?, lab.model()?, lab.bundle());
        let pictures = lab.pictures()?;
        let preprocessor = Preprocessor::new(&bundle.manifest().input);
        let mut parity = Parity::default();
        let mut input = Vec::new();
        let compare = |report: &FrameReport| {
            let point = bundle.parse_point(&name_of(report).context("a frame without a point")?)?;
            preprocessor.run(&pictures[report.frame as usize], &mut input);
            let OperatingPoint { split, width, layers, bits } = point;
            let codec = bundle.codec(split, width, bits).context("a point without a codec")?;
            let latents = head.run(split, width, &input)?.latents;
            let symbols = codec.quantise(&latents, layers.into())?;
            let mut latents = Vec::new();
            codec.dequantise(&symbols, &mut latents)?;
            let unsplit = model.infer(&[TailItem { split, width, latents: &latents }])?.remove(0);
            parity.record(point, report.logits(), &unsplit.concat());
            Ok(())
        };
        let talk = Talk {
            transport: Transport::Quic,
            detail: Detail::Logits,
            min_confidence: None,
            in_flight: IN_FLIGHT,
            controller: Box::new(Spread::new(lab.shuffled_points())),
        };
        let source = frames_of(&pictures, pictures.len());
        lab.serve()?.answer(lab.head()?, talk, source, compare)?;
        Ok(parity)
    }

    fn record(&mut self, point: OperatingPoint, split: &[f32], unsplit: &[f32]) {
        let same = split.len() == unsplit.len() && likeliest(split) == likeliest(unsplit);
        // A logit that is missing or not a number is infinitely far away.
        let gap =
            |(a, b): (&f32, &f32)| if (a - b).is_nan() { f32::INFINITY } else { (a - b).abs() };
        let gap = split.iter().zip(unsplit).map(gap).fold(0.0, f32::max);
        let gap = if split.len() == unsplit.len() { gap } else { f32::INFINITY };
        self.frames += 1;
        self.same += usize::from(same);
        self.gap = self.gap.max(gap);
        self.points.insert(point);
    }

    fn words(&self, lab: &Lab) -> String {
        let Parity { frames, same, gap, points } = self;
        format!(
            "client and server over QUIC against the same symbols in process: {same} of {frames} \
             {} agree at {} operating points, logits within {gap:.1e}",
            lab.origin(),
            points.len(),
        )
    }
}

pub(super) fn name_of(report: &FrameReport) -> Option<String> {
    let FrameReport { split, width, channels, bits, .. } = report;
    let (split, width) = (split.as_ref()?, width.as_ref()?);
    Some(format!("{split}/{width}/c{}/b{}", (*channels)?, (*bits)?))
}

/// Takes one point after the other.
pub(super) struct Spread {
    points: Vec<OperatingPoint>,
    next: usize,
}

impl Spread {
    /// Of at least one point.
    pub(super) fn new(points: Vec<OperatingPoint>) -> Spread {
        Spread { points, next: 0 }
    }
}

impl Controller for Spread {
    fn on_link_up(&mut self, _now: Timestamp, _round_trip: Option<Duration>) {}

    fn decide_head(&mut self, now: Timestamp, view: &HeadView) -> HeadDecision {
        let point = self.points[self.next % self.points.len()];
        self.next += 1;
        Fixed::new(point).decide_head(now, view)
    }

    fn decide_send(&mut self, now: Timestamp, view: &SendView<'_>) -> SendDecision {
        Fixed::new(view.run).decide_send(now, view)
    }

    fn on_reply(&mut self, _now: Timestamp, _sample: &NetworkSample) {}

    fn on_timeout(&mut self, _now: Timestamp, _timeout: &NetworkTimeout) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_and_broken_logits_are_no_parity() {
        let point = OperatingPoint { split: 0, width: 0, layers: 1, bits: 4 };
        let mut parity = Parity::default();
        parity.record(point, &[0.0, 1.0], &[0.0, 1.25]);
        assert_eq!((parity.same, parity.gap), (1, 0.25));
        parity.record(point, &[], &[0.0, 1.0]);
        assert_eq!((parity.same, parity.gap), (1, f32::INFINITY));
        let mut parity = Parity::default();
        parity.record(point, &[f32::NAN, 1.0], &[0.0, 1.0]);
        assert_eq!(parity.gap, f32::INFINITY);
    }
}
