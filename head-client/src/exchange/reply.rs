//! What a reply has to be to be used: no later part of the client checks it again.

use std::sync::Arc;
use std::time::Duration;

use isthmus_models::{Answer, Decoders, UnusableAnswer};
use isthmus_proto::wire::{self, reply};
use isthmus_proto::{FrameId, MAX_REPLY_BYTES};

use crate::session::ServerReply;

/// What a device asks a server for.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    /// The answers to a frame.
    Answers(Arc<Decoders>),
    /// The echo of a probe.
    Echo,
}

/// A reply that passed every check.
#[derive(Clone, Debug)]
pub enum Checked {
    /// Answers or a refusal.
    Reply {
        /// What the session needs of it.
        reply: ServerReply,
        /// The answer of each of the bundle's decoders; none in a refusal.
        answers: Vec<Answer>,
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
    #[error("reply longer than {MAX_REPLY_BYTES} bytes")]
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
    /// Answers that the bundle's decoders cannot have given.
    #[error(transparent)]
    Unusable(#[from] UnusableAnswer),
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
pub fn check(frame: FrameId, asked: &Asked, reply: wire::Reply) -> Outcome {
    if reply.frame != wire_id(frame) {
        return Err(ReplyError::OtherFrame { replied: reply.frame, asked: wire_id(frame) });
    }
    let feedback = reply.feedback.unwrap_or_default();
    match (reply.outcome.ok_or(ReplyError::NoOutcome)?, asked) {
        (reply::Outcome::Echo(_), Asked::Echo) => Ok(Checked::Echo(feedback)),
        (reply::Outcome::Echo(_), Asked::Answers(_)) => Err(ReplyError::EchoOfFrame),
        (reply::Outcome::Refusal(refusal), _) => {
            let pause = Duration::from_millis(refusal.retry_after_ms.into());
            let outcome = Err((refusal.reason(), pause));
            let (reply, detail) = (ServerReply { outcome, feedback }, refusal.detail);
            Ok(Checked::Reply { reply, answers: Vec::new(), detail })
        }
        (reply::Outcome::Answer(_), Asked::Echo) => Err(ReplyError::AnswerToProbe),
        (reply::Outcome::Answer(first), Asked::Answers(decoders)) => {
            let layers = first.layers_used;
            let layers = u8::try_from(layers).map_err(|_| ReplyError::Layers(layers))?;
            let answers = decoders.from_wire(first, reply.further)?;
            let confidence = answers.first().map_or(0.0, |first| decoders.confidence(0, first));
            let outcome = Ok((confidence, layers));
            let reply = ServerReply { outcome, feedback };
            Ok(Checked::Reply { reply, answers, detail: String::new() })
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use isthmus_models::Scores;

    use super::*;

    pub(in crate::exchange) const FRAME: FrameId = FrameId(0x1_000d);
    /// The answers of a classifier of four classes.
    pub(in crate::exchange) fn asked() -> Asked {
        let labels = (0..4).map(|label| label.to_string());
        Asked::Answers(Arc::new(Decoders::classifier(labels)))
    }

    pub(in crate::exchange) fn answer(class: u32, probability: f32) -> wire::Reply {
        let top = vec![wire::Score { class, probability }];
        let answer =
            wire::Answer { top, layers_used: 2, logits: vec![0.5; 4], ..Default::default() };
        let feedback = wire::Feedback { queue_us: 7, ..wire::Feedback::default() };
        let outcome = Some(reply::Outcome::Answer(answer));
        wire::Reply { frame: 13, outcome, feedback: Some(feedback), further: Vec::new() }
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
            let checked = check(FRAME, &asked(), answer(3, confidence));
            let Ok(Checked::Reply { reply, answers, detail }) = checked else {
                panic!("{checked:?}")
            };
            assert_eq!((reply.outcome, reply.feedback.queue_us), (Ok((confidence, 2)), 7));
            let scores = Scores { top: vec![(3, confidence)], logits: vec![0.5; 4] };
            assert_eq!((answers, detail.as_str()), (vec![Answer::Scores(scores)], ""));
        }
        for asked in [asked(), Asked::Echo] {
            let checked = check(FRAME, &asked, refusal(wire::Reason::Overloaded));
            let Ok(Checked::Reply { reply, detail, .. }) = checked else { panic!("{checked:?}") };
            let refused = Err((wire::Reason::Overloaded, Duration::from_millis(30)));
            assert_eq!((reply.outcome, detail.as_str()), (refused, "full"));
        }
        let checked = check(FRAME, &Asked::Echo, echo());
        assert!(matches!(checked, Ok(Checked::Echo(feedback)) if feedback.queue_us == 7));
    }

    #[test]
    fn a_reason_of_a_later_version_is_a_refusal_all_the_same() {
        let mut reply = refusal(wire::Reason::Overloaded);
        if let Some(reply::Outcome::Refusal(refusal)) = &mut reply.outcome {
            refusal.reason = 99;
        }
        let Ok(Checked::Reply { reply, .. }) = check(FRAME, &asked(), reply) else { panic!() };
        assert!(matches!(reply.outcome, Err((wire::Reason::Unspecified, _))));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_value() {
        let other = wire::Reply { frame: 12, ..answer(1, 0.5) };
        let empty = wire::Reply { outcome: None, ..answer(1, 0.5) };
        let cases = [
            (asked(), other, "reply to frame 12 on the stream of frame 13"),
            (asked(), empty, "without an outcome"),
            (asked(), echo(), "echo of a frame"),
            (Asked::Echo, answer(1, 0.5), "answer to a probe"),
            (asked(), with_answer(|answer| answer.top.clear()), "answer without a class"),
            (asked(), answer(4, 0.5), "class 4, but class has 4 labels"),
            (asked(), answer(u32::MAX, 0.5), "class 4294967295, but"),
            (asked(), answer(1, 1.3), "confidence 1.3 is not in 0..=1"),
            (asked(), answer(1, -0.1), "confidence -0.1 is not"),
            (asked(), answer(1, f32::NAN), "confidence NaN is not"),
            (asked(), with_answer(|answer| answer.layers_used = 256), "256 layers used; expected"),
        ];
        for (asked, reply, words) in cases {
            let error = check(FRAME, &asked, reply).expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
