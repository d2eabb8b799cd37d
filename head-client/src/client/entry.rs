//! What a client keeps of a frame until it ends, and the report that it makes of it then.

use std::time::Duration;

use isthmus_models::{Bundle, Picture};
use isthmus_proto::{Coded, Content, OperatingPoint};

use crate::controller::{LinkEstimate, Run};
use crate::outcome::{FrameOutcome, Verdict};
use crate::report::{FrameReport, Stages};

#[derive(Default)]
pub(super) struct Entry {
    pub(super) source: String,
    pub(super) truth: Option<String>,
    /// Until the compute thread has it.
    pub(super) picture: Option<Picture>,
    /// Until it is sent.
    pub(super) coded: Option<Coded>,
    /// Envelope and packet (bytes), once sent.
    pub(super) bytes: Option<usize>,
    pub(super) logits: Vec<f32>,
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
        let mut report = FrameReport {
            frame: outcome.frame.0,
            source: self.source,
            truth: self.truth,
            layers_used: outcome.layers_used,
            bytes: self.bytes,
            on_time: outcome.on_time,
            logits: self.logits,
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
            Verdict::Answered { arm, answer, reason } => {
                let elapsed = outcome.finished.saturating_since(outcome.captured);
                report.label = bundle.labels().get(answer.class).cloned();
                report.confidence = Some(answer.confidence);
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
