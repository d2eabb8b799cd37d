//! What a session takes in and gives out: its settings, inputs, outputs and counters.

use std::collections::BTreeMap;
use std::time::Duration;

use isthmus_proto::wire;
use isthmus_proto::{Content, FrameId, Timestamp};

use crate::controller::Run;
use crate::outcome::{DropCause, Fallback, FrameOutcome};

/// How long before its deadline a client settles a frame. Timers fire up to a millisecond late, and
/// on a busy machine a thread waits for its core.
pub const GUARD: Duration = Duration::from_millis(5);

/// The settings of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionConfig {
    /// Longest time from capture to output.
    pub deadline: Duration,
    /// How long before the deadline a frame is settled with what there is, so that the answer is
    /// there in time although timers fire late; at most a quarter of the deadline is used.
    pub guard: Duration,
    /// Frames that may be sent and unanswered at a time, at least 1.
    pub in_flight: usize,
    /// What happens to frames that come faster than they can be dealt with.
    pub pace: Pace,
}

/// What happens to frames that come faster than they can be dealt with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// The newest waits, the one before it is dropped and counted; a frame whose head has run and
    /// that finds as many unanswered as allowed takes the exit's answer.
    Live,
    /// All wait their turn, and for one of the unanswered to end.
    EveryFrame,
}

/// What happens to a session.
#[derive(Clone, Debug)]
pub enum Input {
    /// A frame is in memory. Numbers increase.
    Captured {
        /// Its number.
        frame: FrameId,
    },
    /// A source dropped a frame for a newer one before it was in memory. Numbers increase.
    Superseded {
        /// Its number.
        frame: FrameId,
    },
    /// The head, or the image codec, that was ordered is done.
    HeadDone {
        /// Whose.
        frame: FrameId,
        /// What it gave.
        outcome: HeadOutcome,
    },
    /// The head, or the image codec, that was ordered failed.
    HeadFailed {
        /// Whose.
        frame: FrameId,
    },
    /// The server replied.
    Reply {
        /// To which frame.
        frame: FrameId,
        /// What.
        reply: ServerReply,
    },
    /// The server has all of a probe.
    Echo {
        /// The frame whose number the probe carries.
        frame: FrameId,
        /// Durations on the server's clock.
        feedback: wire::Feedback,
    },
    /// The stream of a frame or of a probe ended without a usable reply.
    Lost {
        /// Which.
        frame: FrameId,
    },
    /// A connection is there.
    LinkUp {
        /// Unanswered frames that the server allows at a time.
        max_in_flight: usize,
        /// Largest frame that the server accepts (bytes).
        max_frame_bytes: usize,
        /// A round trip seen while connecting.
        round_trip: Option<Duration>,
    },
    /// The connection is gone.
    LinkDown,
    /// The instant of `poll_timeout` has come.
    Timeout,
}

/// What a head, or an image codec, gave.
#[derive(Clone, Debug, Default)]
pub struct HeadOutcome {
    /// How sure the exit's answer is, 0 to 1, or the full network's if that was run here.
    pub exit: Option<f32>,
    /// Bytes of the coded stream up to and with each layer; not decreasing. A compressed picture is
    /// one layer.
    pub layer_ends: Vec<usize>,
    /// Time that preprocessing and the head, or the full network, took; zero if none was run.
    pub head: Duration,
    /// Time that quantising and coding took, or compressing the picture.
    pub encode: Duration,
}

/// What a server says to a frame.
#[derive(Clone, Copy, Debug)]
pub struct ServerReply {
    /// How sure the answer is, 0 to 1, with the layers it rests on; or the refusal with the pause that it
    /// requests.
    pub outcome: Result<(f32, u8), (wire::Reason, Duration)>,
    /// Durations on the server's clock.
    pub feedback: wire::Feedback,
}

/// What a session orders.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Run a head or an image codec; answer with `HeadDone` or `HeadFailed`.
    RunHead {
        /// For which frame.
        frame: FrameId,
        /// Which head, and how to code what it gives; or how to compress the picture.
        run: Run,
    },
    /// Send a coded frame; answer with `Reply` or `Lost`.
    Send {
        /// Which.
        frame: FrameId,
        /// With which layers, or that it is a compressed picture.
        content: Content,
        /// The time left to stamp on it.
        time_left: Duration,
        /// When it has to be answered: the earlier, the more urgent.
        answer_by: Timestamp,
    },
    /// Send padding, of which only the echo matters; answer with `Echo`, `Reply` or `Lost`.
    Probe {
        /// The frame whose number it carries, which is not sent itself and may have ended.
        frame: FrameId,
        /// Padding (bytes).
        bytes: usize,
        /// The time left to stamp on it.
        time_left: Duration,
    },
    /// Stop sending a frame or a probe and waiting for its reply.
    Cancel {
        /// Which.
        frame: FrameId,
    },
    /// A frame has ended.
    Done(FrameOutcome),
}

/// The counters of a session. At any time
/// `captured = answered + dropped + open`, and every frame is in exactly one of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames captured.
    pub captured: u64,
    /// Frames answered, by the arm's name.
    pub answered: BTreeMap<&'static str, u64>,
    /// Frames without an answer, by cause.
    pub dropped: BTreeMap<DropCause, u64>,
    /// Frames that the exit answered because the network could not, by cause.
    pub fallbacks: BTreeMap<Fallback, u64>,
    /// Frames captured and not yet ended.
    pub open: u64,
    /// Frames sent.
    pub sent: u64,
    /// Frames cancelled after they were sent.
    pub cancelled: u64,
    /// Probes sent.
    pub probes: u64,
    /// Padding that was sent in probes (bytes).
    pub probe_bytes: u64,
    /// Replies to frames that had already ended.
    pub late_replies: u64,
    /// Times the connection came up.
    pub links_up: u64,
    /// Times the connection went down.
    pub links_down: u64,
}
