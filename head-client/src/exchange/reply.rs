//! What a reply has to be to be used: no later part of the client checks it again.

use std::time::Duration;

use isthmus_proto::wire::{self, reply};
use isthmus_proto::{FrameId, MAX_CONTROL_BYTES};

use crate::outcome::Answer;
use crate::session::ServerReply;

/// What a device asks a server for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asked {
    /// The class of a frame.
    Class {
        /// How many labels the bundle has.
        labels: usize,
    },
    /// The echo of a probe.
    Echo,
}

/// A reply that passed every check.
#[derive(Clone, Debug)]
pub enum Checked {
    /// An answer or a refusal.
    Reply {
        /// What the session needs of it.
        reply: ServerReply,
        /// One logit per class, where the hello asked for them.
        logits: Vec<f32>,
        /// Why it is refused, in the server's words; empty in an answer.
        detail: String,
    },
    /// The server has all of a probe.
    Echo(wire::Feedback),
}

/// Why a reply cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ReplyError {
    /// The server gave its side of the stream up.
    #[error("the server reset the reply's stream")]
    Reset,
    /// More bytes than any reply may have.
    #[error("reply longer than {MAX_CONTROL_BYTES} bytes")]
    TooLong,
    /// The bytes are no reply.
    #[error("malformed reply: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// It belongs to another frame.
    #[error("reply to frame {replied} on the stream of frame {asked}")]
    OtherFrame {
        /// The id in the reply.
        replied: u64,
        /// The id that was sent: the low 16 bits of the frame's number.
        asked: u64,
    },
    /// Neither an answer, nor a refusal, nor an echo.
    #[error("reply without an outcome; expected an answer, a refusal or an echo")]
    NoOutcome,
    /// An answer to something that carries no frame.
    #[error("answer to a probe; expected an echo or a refusal")]
    AnswerToProbe,
    /// An echo of something that is no probe.
    #[error("echo of a frame; expected an answer or a refusal")]
    EchoOfFrame,
    /// An answer that names no class.
    #[error("answer without a class")]
    NoClass,
    /// A class that the bundle does not have.
    #[error("class {class}, but the bundle has {labels} labels")]
    Class {
        /// The position in the bundle's labels.
        class: u32,
        /// How many there are.
        labels: usize,
    },
    /// A probability outside 0 to 1.
    #[error("confidence {0} is not in 0..=1")]
    Confidence(f32),
    /// More layers than any packet has.
    #[error("{0} layers used; expected at most {max}", max = u8::MAX)]
    Layers(u32),
}

/// What the exchange of a frame comes to: a reply that can be used, or why there is none.
pub type Outcome = Result<Checked, ReplyError>;

/// How the wire names a frame: by the low 16 bits of its number. Far fewer frames are unanswered at a
/// time, so they name one without doubt.
pub(super) fn wire_id(frame: FrameId) -> u64 {
    frame.0 & 0xffff
}

/// Checks a reply to `frame` against what was asked for.
pub fn check(frame: FrameId, asked: Asked, reply: wire::Reply) -> Outcome {
    if reply.frame != wire_id(frame) {
        return Err(ReplyError::OtherFrame { replied: reply.frame, asked: wire_id(frame) });
    }
    let feedback = reply.feedback.unwrap_or_default();
    match (reply.outcome.ok_or(ReplyError::NoOutcome)?, asked) {
        (reply::Outcome::Echo(_), Asked::Echo) => Ok(Checked::Echo(feedback)),
        (reply::Outcome::Echo(_), Asked::Class { .. }) => Err(ReplyError::EchoOfFrame),
        (reply::Outcome::Refusal(refusal), _) => {
            let pause = Duration::from_millis(refusal.retry_after_ms.into());
            let outcome = Err((refusal.reason(), pause));
            let (reply, detail) = (ServerReply { outcome, feedback }, refusal.detail);
            Ok(Checked::Reply { reply, logits: Vec::new(), detail })
        }
        (reply::Outcome::Answer(_), Asked::Echo) => Err(ReplyError::AnswerToProbe),
        (reply::Outcome::Answer(answer), Asked::Class { labels }) => {
            let outcome = Ok(check_answer(&answer, labels)?);
            let (reply, logits) = (ServerReply { outcome, feedback }, answer.logits);
            Ok(Checked::Reply { reply, logits, detail: String::new() })
        }
    }
}

/// The most probable class of an answer, and the layers that it rests on.
fn check_answer(answer: &wire::Answer, labels: usize) -> Result<(Answer, u8), ReplyError> {
    let &wire::Score { class, probability } = answer.top.first().ok_or(ReplyError::NoClass)?;
    let position = usize::try_from(class).ok().filter(|&position| position < labels);
    let position = position.ok_or(ReplyError::Class { class, labels })?;
    if !(0.0..=1.0).contains(&probability) {
        return Err(ReplyError::Confidence(probability));
    }
    let layers = answer.layers_used;
    let layers = u8::try_from(layers).map_err(|_| ReplyError::Layers(layers))?;
    Ok((Answer { class: position, confidence: probability }, layers))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::exchange) const FRAME: FrameId = FrameId(0x1_000d);
    pub(in crate::exchange) const ASKED: Asked = Asked::Class { labels: 4 };

    pub(in crate::exchange) fn answer(class: u32, probability: f32) -> wire::Reply {
        let top = vec![wire::Score { class, probability }];
        let answer = wire::Answer { top, layers_used: 2, logits: vec![0.5; 4] };
        let feedback = wire::Feedback { queue_us: 7, ..wire::Feedback::default() };
        let outcome = Some(reply::Outcome::Answer(answer));
        wire::Reply { frame: 13, outcome, feedback: Some(feedback) }
    }

    pub(in crate::exchange) fn refusal(reason: wire::Reason) -> wire::Reply {
        let refusal =
            wire::Refusal { reason: reason.into(), detail: "full".into(), retry_after_ms: 30 };
        wire::Reply { outcome: Some(reply::Outcome::Refusal(refusal)), ..answer(0, 0.0) }
    }

    pub(in crate::exchange) fn echo() -> wire::Reply {
        wire::Reply { outcome: Some(reply::Outcome::Echo(wire::Echo {})), ..answer(0, 0.0) }
    }

    fn with_answer(change: impl FnOnce(&mut wire::Answer)) -> wire::Reply {
        let mut reply = answer(1, 0.5);
        if let Some(reply::Outcome::Answer(answer)) = &mut reply.outcome {
            change(answer);
        }
        reply
    }

    #[test]
    fn what_is_right_comes_through_whole() {
        for confidence in [0.0, 0.5, 1.0] {
            let checked = check(FRAME, ASKED, answer(3, confidence));
            let Ok(Checked::Reply { reply, logits, detail }) = checked else {
                panic!("{checked:?}")
            };
            let answer = Answer { class: 3, confidence };
            assert_eq!((reply.outcome, reply.feedback.queue_us), (Ok((answer, 2)), 7));
            assert_eq!((logits, detail.as_str()), (vec![0.5; 4], ""));
        }
        for asked in [ASKED, Asked::Echo] {
            let checked = check(FRAME, asked, refusal(wire::Reason::Overloaded));
            let Ok(Checked::Reply { reply, detail, .. }) = checked else { panic!("{checked:?}") };
            let refused = Err((wire::Reason::Overloaded, Duration::from_millis(30)));
            assert_eq!((reply.outcome, detail.as_str()), (refused, "full"));
        }
        let checked = check(FRAME, Asked::Echo, echo());
        assert!(matches!(checked, Ok(Checked::Echo(feedback)) if feedback.queue_us == 7));
    }

    #[test]
    fn a_reason_of_a_later_version_is_a_refusal_all_the_same() {
        let mut reply = refusal(wire::Reason::Overloaded);
        if let Some(reply::Outcome::Refusal(refusal)) = &mut reply.outcome {
            refusal.reason = 99;
        }
        let Ok(Checked::Reply { reply, .. }) = check(FRAME, ASKED, reply) else { panic!() };
        assert!(matches!(reply.outcome, Err((wire::Reason::Unspecified, _))));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_value() {
        let other = wire::Reply { frame: 12, ..answer(1, 0.5) };
        let empty = wire::Reply { outcome: None, ..answer(1, 0.5) };
        let cases = [
            (ASKED, other, "reply to frame 12 on the stream of frame 13"),
            (ASKED, empty, "without an outcome"),
            (ASKED, echo(), "echo of a frame"),
            (Asked::Echo, answer(1, 0.5), "answer to a probe"),
            (ASKED, with_answer(|answer| answer.top.clear()), "answer without a class"),
            (ASKED, answer(4, 0.5), "class 4, but the bundle has 4 labels"),
            (ASKED, answer(u32::MAX, 0.5), "class 4294967295, but"),
            (ASKED, answer(1, 1.3), "confidence 1.3 is not in 0..=1"),
            (ASKED, answer(1, -0.1), "confidence -0.1 is not"),
            (ASKED, answer(1, f32::NAN), "confidence NaN is not"),
            (ASKED, with_answer(|answer| answer.layers_used = 256), "256 layers used; expected"),
        ];
        for (asked, reply, words) in cases {
            let error = check(FRAME, asked, reply).expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
