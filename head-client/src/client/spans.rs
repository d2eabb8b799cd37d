//! The device's spans of one frame, made when it has ended.

use std::time::{Duration, SystemTime};

use isthmus_proto::{Part, TraceContext};
use isthmus_telemetry::spans::{Parent, Span, Value};

use crate::outcome::{FrameOutcome, Verdict};
use crate::report::FrameReport;

/// The root, and a span for each part of the frame's time that passed on the device or in the
/// network; the frame ended at `end`.
///
/// A frame waits in several places: all of it is told as one wait, at the beginning. The network's
/// span reaches from sending to the reply and so surrounds the server's spans; its attribute says
/// how much of it the server does not account for.
pub(crate) fn of_frame(
    context: TraceContext,
    outcome: &FrameOutcome,
    report: &FrameReport,
    end: SystemTime,
) -> Vec<Span> {
    let TraceContext { trace_id: trace, span_id } = context;
    let timing = outcome.timing;
    let took = outcome.finished.saturating_since(outcome.captured);
    let start = end.checked_sub(took).unwrap_or(end);
    let root = Span {
        trace,
        id: span_id,
        parent: None,
        name: "frame",
        start,
        end,
        attributes: attributes(outcome, report),
        error: match outcome.verdict {
            Verdict::Answered { .. } => None,
            Verdict::Dropped(cause) => Some(cause.to_string()),
        },
    };
    let mut at = start;
    let mut part = |part: Part, took: Option<Duration>, attributes| {
        let (start, took) = (at, took?);
        at += took;
        let parent = Some(Parent { id: span_id, remote: false });
        let (id, name, error) = (context.part(part), part.name(), None);
        Some(Span { trace, id, parent, name, start, end: at, attributes, error })
    };
    let before = timing.wait + timing.head.unwrap_or_default() + timing.encode.unwrap_or_default();
    let round = timing.network.map(|_| took.saturating_sub(before));
    let micros = timing.network.map(|network| ("isthmus.network_us", integer(network.as_micros())));
    let parts = [
        part(Part::Wait, Some(timing.wait), Vec::new()),
        part(Part::Head, timing.head, Vec::new()),
        part(Part::Encode, timing.encode, Vec::new()),
        part(Part::Network, round, micros.into_iter().collect()),
    ];
    std::iter::once(root).chain(parts.into_iter().flatten()).collect()
}

/// What the frame's JSON line says of it, too.
fn attributes(outcome: &FrameOutcome, report: &FrameReport) -> Vec<(&'static str, Value)> {
    let text = |text: &String| Value::from(text.clone());
    let known = [
        ("isthmus.frame", Some(integer(outcome.frame.0))),
        ("isthmus.arm", report.arm_name().map(Value::from)),
        ("isthmus.split", report.split.as_ref().map(text)),
        ("isthmus.width", report.width.as_ref().map(text)),
        ("isthmus.channels", report.channels.map(integer)),
        ("isthmus.bits", report.bits.map(integer)),
        ("isthmus.image", report.image.as_ref().map(text)),
        ("isthmus.bytes", report.bytes.map(integer)),
        ("isthmus.on_time", Some(Value::from(outcome.on_time))),
        ("isthmus.reason", Some(text(&report.reason))),
    ];
    known.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
}

fn integer(value: impl TryInto<i64>) -> Value {
    Value::from(value.try_into().unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use isthmus_proto::{Arm, FrameId, Timestamp, TraceIds};

    use super::*;
    use crate::controller::Choice;
    use crate::outcome::{Reason, Timing};

    #[test]
    fn parts_follow_each_other_and_fill_the_frame() {
        let ms = Duration::from_millis;
        let context = TraceIds::new(1, 1.0).context(1).expect("all are sampled");
        let reason = Reason::Chosen(Choice::Fixed);
        let outcome = FrameOutcome {
            frame: FrameId(5),
            captured: Timestamp::ZERO,
            finished: Timestamp::from_micros(100_000),
            verdict: Verdict::Answered { arm: Arm::Split, confidence: 1.0, reason },
            run: None,
            sent: None,
            layers_used: None,
            timing: Timing {
                wait: ms(5),
                head: Some(ms(20)),
                encode: Some(ms(5)),
                network: Some(ms(40)),
                tail: Some(ms(30)),
                ..Timing::default()
            },
            on_time: true,
        };
        let end = SystemTime::UNIX_EPOCH + ms(1_000);
        let spans = of_frame(context, &outcome, &FrameReport::default(), end);
        let told: Vec<_> = spans
            .iter()
            .map(|span| {
                let at = |time: SystemTime| end.duration_since(time).expect("past").as_millis();
                (span.name, at(span.start), at(span.end))
            })
            .collect();
        let all = [
            ("frame", 100, 0),
            ("wait", 100, 95),
            ("head", 95, 75),
            ("encode", 75, 70),
            ("network", 70, 0),
        ];
        assert_eq!(told, all);
    }
}
