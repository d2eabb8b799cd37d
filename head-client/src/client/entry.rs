//! What a client keeps of a frame until it ends, and the report that it makes of it then.

use std::sync::Arc;
use std::time::Duration;

use isthmus_models::{Answer, Bundle, Picture, View};
use isthmus_proto::{Arm, Coded, Content, OperatingPoint};

use crate::controller::{LinkEstimate, Run};
use crate::outcome::{FrameOutcome, Verdict};
use crate::report::{FrameReport, Stages};
use crate::source::FrameTruth;

#[derive(Default)]
pub(super) struct Entry {
    pub(super) source: String,
    pub(super) truth: Option<FrameTruth>,
    /// Until the compute thread has it; to the end where the report is to have it.
    pub(super) picture: Option<Arc<Picture>>,
    /// Until it is sent.
    pub(super) coded: Option<Coded>,
    /// Envelope and packet (bytes), once sent.
    pub(super) bytes: Option<usize>,
    /// Width and height of the picture (pixels).
    pub(super) size: (u32, u32),
    /// What was answered on the device.
    pub(super) here: Vec<Answer>,
    /// What the server answered.
    pub(super) replied: Vec<Answer>,
    /// The frame's ordinal on its connection, where that is traced.
    pub(super) ordinal: Option<u64>,
}

impl Entry {
    /// The report of a frame that ended so, while the link was estimated as said.
    pub(super) fn into_report(
        self,
        outcome: &FrameOutcome,
        bundle: &Bundle,
        estimate: Option<LinkEstimate>,
    ) -> FrameReport {
        let (truth, true_boxes) = match self.truth {
            Some(FrameTruth::Class(class)) => (Some(class), None),
            Some(FrameTruth::Boxes(boxes)) => (None, Some(boxes)),
            None => (None, None),
        };
        let mut report = FrameReport {
            frame: outcome.frame.0,
            source: self.source,
            truth,
            true_boxes,
            picture: self.picture,
            layers_used: outcome.layers_used,
            bytes: self.bytes,
            on_time: outcome.on_time,
            estimate,
            ..FrameReport::default()
        };
        if let Some((split, width)) = outcome.run.and_then(Run::head) {
            let point = OperatingPoint { split, width, layers: 1, bits: 1 };
            let name = bundle.describe_point(point);
            (report.split, report.width) = (Some(name.split), Some(name.width));
        }
        match (outcome.sent, outcome.run) {
            (Some(Content::Features(point)), _) => {
                let name = bundle.describe_point(point);
                (report.channels, report.bits) = (Some(name.channels), Some(name.bits));
            }
            (Some(Content::Image(_)), Some(Run::Image(run))) => {
                report.image = Some(run.image.to_string());
            }
            _ => {}
        }
        match outcome.verdict {
            Verdict::Dropped(cause) => report.reason = cause.to_string(),
            Verdict::Answered { arm, confidence, reason } => {
                let elapsed = outcome.finished.saturating_since(outcome.captured);
                let (answers, image) = match (arm, outcome.run) {
                    (Arm::Exit | Arm::Local, _) => (self.here, None),
                    (Arm::Image, Some(Run::Image(run))) => (self.replied, Some(run.image)),
                    (Arm::Image | Arm::Split(_), _) => (self.replied, None),
                };
                let view = View::new(&bundle.manifest().input, image, self.size);
                report.say(bundle, answers, view);
                report.confidence = Some(confidence);
                report.arm = Some(arm);
                report.capture_to_output_ms = Some(millis(elapsed));
                report.reason = reason.to_string();
                report.device_wait = outcome.timing.wait;
                report.stages = stages(outcome);
            }
        }
        report
    }
}

/// The parts of a frame's time (ms). It waits on the device and on the server: that is one stage.
fn stages(FrameOutcome { timing, .. }: &FrameOutcome) -> Stages {
    Stages {
        head: timing.head.map(millis),
        encode: timing.encode.map(millis),
        network: timing.network.map(millis),
        receive_span: timing.receive_span.map(millis),
        queue: Some(millis(timing.wait + timing.queue.unwrap_or_default())),
        decode: timing.decode.map(millis),
        tail: timing.tail.map(millis),
    }
}

fn millis(span: Duration) -> f64 {
    span.as_micros() as f64 / 1e3
}
