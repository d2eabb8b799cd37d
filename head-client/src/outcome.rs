//! The final outcome of a frame: an answer or none, why, and where the time went.

use std::fmt;
use std::time::Duration;

use isthmus_proto::wire;
use isthmus_proto::{Arm, Content, FrameId, Timestamp};
use serde::{Serialize, Serializer};

use crate::controller::{Choice, Run};

/// The outcome of a captured frame, of which there is exactly one.
#[derive(Clone, Debug, PartialEq)]
pub struct FrameOutcome {
    /// The frame.
    pub frame: FrameId,
    /// When it was captured.
    pub captured: Timestamp,
    /// When its answer or verdict was there.
    pub finished: Timestamp,
    /// Answer or verdict.
    pub verdict: Verdict,
    /// What was run on the device, if anything.
    pub run: Option<Run>,
    /// What was sent to the server, if anything.
    pub sent: Option<Content>,
    /// Layers that the server's answer rests on, where features were sent.
    pub layers_used: Option<u8>,
    /// Where the time went.
    pub timing: Timing,
    /// True if the frame was answered, and within its deadline.
    pub on_time: bool,
}

/// How a frame ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Verdict {
    /// With an answer.
    Answered {
        /// Who answered.
        arm: Arm,
        /// How sure the answer is, 0 to 1: of a class its softmax probability, of other answers
        /// [their own](isthmus_models::Answer::confidence).
        confidence: f32,
        /// Why this arm.
        reason: Reason,
    },
    /// Without one.
    Dropped(DropCause),
}

/// Where a frame's time went, in whole microseconds. The parts that are present, `receive_span`
/// apart, add up to the time from capture to output exactly; `receive_span` lies within `network`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timing {
    /// Waiting on the device: for the compute thread, and for threads to wake.
    pub wait: Duration,
    /// Preprocessing and the head.
    pub head: Option<Duration>,
    /// Quantising and entropy coding, or compressing the picture.
    pub encode: Option<Duration>,
    /// From handing the frame to the link until the reply (or until it was given up), less what
    /// the server accounts for.
    pub network: Option<Duration>,
    /// First to last byte of the frame at the server.
    pub receive_span: Option<Duration>,
    /// Waiting on the server.
    pub queue: Option<Duration>,
    /// Entropy decoding on the server, or decompressing the picture and preparing it.
    pub decode: Option<Duration>,
    /// The tail network, or the full one for a compressed picture.
    pub tail: Option<Duration>,
}

/// Why an arm gave the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The controller chose it.
    Chosen(Choice),
    /// The network was to answer, and could not.
    Fallback(Fallback),
}

/// Why the fallback exit answers in place of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fallback {
    /// No answer came in time.
    Deadline,
    /// The server refused.
    Refused(wire::Reason),
    /// The server refused an earlier frame and asked for a pause that is not over.
    HoldOff,
    /// There is no connection.
    LinkDown,
    /// This frame's stream ended without a reply.
    StreamLost,
    /// As many frames as allowed are unanswered.
    InFlightFull,
    /// The coded frame is larger than the server accepts.
    TooLarge,
}

/// Why a frame has no answer at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum DropCause {
    /// A newer frame took its place before its head ran.
    Superseded,
    /// Its time ran out before its head ran.
    Expired,
    /// Its time ran out while its head ran, or its picture was being compressed.
    HeadLate,
    /// The head or the image codec failed; the log says how.
    HeadFailed,
    /// The server did not answer, and no exit was run that could.
    NoExit,
    /// The controller decided not to spend anything on it.
    Skipped,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Chosen(choice) => choice.fmt(f),
            Reason::Fallback(fallback) => fallback.fmt(f),
        }
    }
}

impl fmt::Display for Fallback {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Fallback::Deadline => "deadline",
            Fallback::Refused(reason) => {
                return write!(f, "refused: {}", reason.as_str_name().to_ascii_lowercase());
            }
            Fallback::HoldOff => "hold off",
            Fallback::LinkDown => "link down",
            Fallback::StreamLost => "stream lost",
            Fallback::InFlightFull => "in flight full",
            Fallback::TooLarge => "too large",
        })
    }
}

impl fmt::Display for DropCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DropCause::Superseded => "superseded",
            DropCause::Expired => "expired",
            DropCause::HeadLate => "head late",
            DropCause::HeadFailed => "head failed",
            DropCause::NoExit => "no exit",
            DropCause::Skipped => "skipped",
        })
    }
}

impl Serialize for Fallback {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Serialize for DropCause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_read_as_words() {
        let refused = Reason::Fallback(Fallback::Refused(wire::Reason::UnknownBundle));
        assert_eq!(refused.to_string(), "refused: unknown_bundle");
        assert_eq!(Reason::Chosen(Choice::Fixed).to_string(), "fixed");
        assert_eq!(DropCause::HeadLate.to_string(), "head late");
    }
}
