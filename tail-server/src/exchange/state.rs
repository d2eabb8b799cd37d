//! What an exchange keeps of each connection and of each frame.

use std::time::Duration;

use isthmus_proto::{Timestamp, TraceContext, TraceIds};

use super::{Carrier, ConnectionId, FrameKey, Origin};
use crate::admission::Binding;
use crate::batcher::JobId;
use crate::receiver::{Received, Receiver};

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) carrier: Carrier,
    pub(super) origin: Origin,
    /// There once the hello was welcomed.
    pub(super) binding: Option<Binding>,
    /// Names for its frames, where both ends trace.
    pub(super) traces: Option<TraceIds>,
    /// Accepted, unanswered frames by id.
    pub(super) in_flight: Vec<(u64, FrameKey)>,
    /// Nothing new will come; it is kept for the frames that it still has.
    pub(super) closed: bool,
    pub(super) frames: usize,
    /// Bytes that are kept of its frames and of their replies.
    pub(super) buffered: usize,
}

#[derive(Debug)]
pub(super) struct Frame<H> {
    pub(super) to: H,
    pub(super) connection: ConnectionId,
    pub(super) trace: Option<TraceContext>,
    /// The envelope's frame id; 0 before it arrived.
    pub(super) id: u64,
    /// First to latest byte.
    pub(super) receive_span: Duration,
    /// The bundle's position in the registry, once the header was accepted.
    pub(super) bundle: Option<usize>,
    /// Bytes that are kept of it, or of its reply.
    pub(super) buffered: usize,
    pub(super) stage: Stage,
}

#[derive(Debug)]
pub(super) enum Stage {
    Receiving {
        receiver: Receiver,
        armed: Option<Timestamp>,
    },
    Queued {
        job: JobId,
        received: Received,
    },
    Running(Running),
    /// Its verdict is counted, and its reply, if it gets one, is on its way.
    Ended,
}

impl Stage {
    pub(super) fn is_receiving(&self) -> bool {
        matches!(self, Stage::Receiving { .. })
    }

    /// Whether it can still be ended for want of room.
    pub(super) fn is_open(&self) -> bool {
        matches!(self, Stage::Receiving { .. } | Stage::Queued { .. })
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Running {
    pub(super) deadline: Timestamp,
    pub(super) received_at: Timestamp,
    pub(super) started: Timestamp,
    pub(super) unwanted: bool,
}
