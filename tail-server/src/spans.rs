//! The server's spans of one frame, made when its reply is.

use std::time::{Duration, SystemTime};

use isthmus_proto::wire::Feedback;
use isthmus_proto::{Part, TraceContext};
use isthmus_telemetry::spans::{Parent, Span};

use crate::counters::Verdict;

/// A span for each stage of the frame, as parts of the device's span of it; the last one ended at
/// `end`. A frame without an answer was received, and that is where the span says why.
pub(crate) fn of_frame(
    context: TraceContext,
    feedback: &Feedback,
    verdict: Verdict,
    end: SystemTime,
) -> Vec<Span> {
    let Feedback { receive_span_us, queue_us, decode_us, tail_us, batch_size } = *feedback;
    let answered = matches!(verdict, Verdict::Answered { .. });
    let error = match verdict {
        Verdict::Answered { .. } | Verdict::Echoed => None,
        Verdict::Refused(reason) => Some(reason),
        Verdict::Dropped(cause) => Some(cause.reason()),
    };
    let error = error.map(|reason| reason.as_str_name().to_ascii_lowercase());
    let stages = [
        (Part::Receive, receive_span_us),
        (Part::Queue, queue_us),
        (Part::Decode, decode_us),
        (Part::Tail, tail_us),
    ];
    let took: u64 = stages.iter().map(|(_, micros)| micros).sum();
    let mut at = end.checked_sub(Duration::from_micros(took)).unwrap_or(end);
    let passed = stages.into_iter().filter(|(part, _)| answered || *part == Part::Receive);
    passed
        .map(|(part, micros)| {
            let start = at;
            at += Duration::from_micros(micros);
            let batch =
                (part == Part::Tail).then(|| ("isthmus.batch_size", i64::from(batch_size).into()));
            Span {
                trace: context.trace_id,
                id: context.part(part),
                parent: Some(Parent { id: context.span_id, remote: true }),
                name: part.name(),
                start,
                end: at,
                attributes: batch.into_iter().collect(),
                error: error.clone(),
            }
        })
        .collect()
}
