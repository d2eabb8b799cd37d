//! What an exchange orders, and what a driver hands it.

use std::time::Duration;

use isthmus_models::Wanted;
use isthmus_proto::TraceContext;
use isthmus_proto::wire::{Answer, Reply};

use super::FrameKey;
use crate::admission::{Announced, Refused};
use crate::counters::{Cause, Verdict};
use crate::receiver::Received;

/// What the driver has to do for a frame, at the place to which the frame belongs.
#[derive(Clone, Debug, PartialEq)]
pub struct Output<H> {
    /// The frame.
    pub frame: FrameKey,
    /// The place that the driver named when the frame began.
    pub to: H,
    /// What to do.
    pub action: Action,
}

/// What a driver has to do for a frame. After [`Action::Reply`] and [`Action::LetGo`] it calls
/// [`Exchange::handle_left`](super::Exchange::handle_left).
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Refuse the bytes that have not come yet; a reply follows.
    StopReading,
    /// Send this reply, which ends the frame.
    Reply(Box<Ended>),
    /// End the frame without a reply: nobody wants one.
    LetGo,
}

/// The end of a frame that gets a reply.
#[derive(Clone, Debug, PartialEq)]
pub struct Ended {
    /// What the device is to get.
    pub reply: Reply,
    /// How the frame was counted.
    pub verdict: Verdict,
    /// There if the frame is sampled for tracing.
    pub trace: Option<TraceContext>,
}

/// A frame of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Work<H> {
    /// To be handed to [`Exchange::handle_computed`](super::Exchange::handle_computed).
    pub frame: FrameKey,
    /// The place that the driver named when the frame began.
    pub to: H,
    /// What arrived of it.
    pub received: Received,
    /// How much of an answer its device wants.
    pub wanted: Wanted,
}

/// A network's answer to one frame.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Computed {
    /// The answer of each decoder in order, as much as its device wants.
    pub answers: Vec<Answer>,
    /// Layers that were decoded.
    pub layers: usize,
    /// How long decoding the batch's frames took.
    pub decode: Duration,
    /// How long the network ran.
    pub tail: Duration,
    /// Frames that the network ran on at once.
    pub batch_size: u32,
}

/// Why an accepted frame gets no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// It did not run, or the server failed.
    Dropped(Cause),
    /// What arrived whole turned out to be no picture, or too large a one.
    Refused(Refused),
}

/// A frame that a driver has as a whole, because it does not model bytes.
#[derive(Clone, Debug, PartialEq)]
pub enum Whole {
    /// A probe.
    Probe {
        /// The envelope's frame id.
        id: u16,
        /// First to last byte.
        receive_span: Duration,
    },
    /// A frame of a bundle.
    Frame {
        /// The header's word.
        announced: Announced,
        /// What arrived.
        received: Received,
    },
}
