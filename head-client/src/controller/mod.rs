//! What to run and what to send: the two decisions about every frame.

mod conformal;
mod greedy;
mod ladder;
mod mpc;
mod share;
mod transfer;
mod way;

use std::time::Duration;

use isthmus_models::ImageSpec;
use isthmus_proto::{Bitrate, FrameId, OperatingPoint, Timestamp};

use crate::outcome::Choice;

pub use conformal::Conformal;
pub use greedy::Greedy;
pub use ladder::{Calibration, Ladder, LadderError, LadderRung};
pub use mpc::{Mpc, MpcConfig};
pub use transfer::{Prediction, TransferTime};

/// Decides twice about every frame: before the head what to run, after it what to send.
///
/// A controller is pure: it is told the time and what the session sees, and every decision carries
/// its reason. The session overrules it only where there is nothing to decide: without a
/// connection, or with no room for another unanswered frame, the exit answers.
pub trait Controller: Send {
    /// A connection is there, perhaps over another path than before; connecting showed a round
    /// trip of small packets.
    fn on_link_up(&mut self, now: Timestamp, round_trip: Option<Duration>);

    /// What to run for the frame whose turn it is.
    fn decide_head(&mut self, now: Timestamp, view: &HeadView) -> HeadDecision;

    /// What to send of a head's features, knowing what the exit says and how large every layer
    /// became. A compressed picture is sent without asking again.
    fn decide_send(&mut self, now: Timestamp, view: &SendView<'_>) -> SendDecision;

    /// A reply came, or a refusal.
    fn on_reply(&mut self, now: Timestamp, sample: &NetworkSample);

    /// A frame that was sent was given up.
    fn on_timeout(&mut self, now: Timestamp, timeout: &NetworkTimeout);

    /// What it takes the link for, to be shown; `None` from one that does not estimate, or knows
    /// nothing yet.
    fn estimate(&self) -> Option<LinkEstimate> {
        None
    }
}

/// What a controller takes the link for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkEstimate {
    /// How fast bytes pass.
    pub rate: Bitrate,
    /// The time of a frame without bytes.
    pub round_trip: Duration,
}

/// What a controller sees before the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadView {
    /// Time until the frame has to be answered.
    pub time_left: Duration,
    /// The link.
    pub link: LinkView,
}

/// What a controller sees of the link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkView {
    /// Whether there is a connection.
    pub up: bool,
    /// Frames and probes sent and unanswered.
    pub in_flight: usize,
    /// Their coded sizes and padding together (bytes).
    pub bytes_in_flight: usize,
    /// Smoothed time that a frame spends outside the server, once known.
    pub network: Option<Duration>,
}

/// What a controller sees after the head.
#[derive(Clone, Copy, Debug)]
pub struct SendView<'a> {
    /// The frame.
    pub frame: FrameId,
    /// What was run.
    pub run: HeadRun,
    /// Probability of the exit's best class, 0 to 1; `None` if the head has no usable exit.
    pub exit_confidence: Option<f32>,
    /// Bytes of the coded stream up to and with each layer; not decreasing.
    pub layer_ends: &'a [usize],
    /// Time until the frame has to be answered.
    pub time_left: Duration,
    /// The link.
    pub link: LinkView,
}

/// A head to run, and how deep to quantise what it gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadRun {
    /// Position of the split in the bundle.
    pub split: u8,
    /// Position of the width within the split.
    pub width: u8,
    /// Quantiser depth to code with.
    pub bits: u8,
    /// Layers to code: the most that may be sent.
    pub layers: u8,
}

impl HeadRun {
    /// The operating point that sends the first `layers` layers of this run.
    pub fn point(self, layers: u8) -> OperatingPoint {
        let HeadRun { split, width, bits, .. } = self;
        OperatingPoint { split, width, layers, bits }
    }
}

/// The run whose every layer is sent at this point.
impl From<OperatingPoint> for HeadRun {
    fn from(point: OperatingPoint) -> Self {
        let OperatingPoint { split, width, layers, bits } = point;
        HeadRun { split, width, bits, layers }
    }
}

/// A picture to compress for the uncut network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImageRun {
    /// How to compress it.
    pub image: ImageSpec,
    /// Position of the split, and of the width within it, of the head whose exit stands by; `None`
    /// spares the device every head, and leaves a frame without an answer when the network has none.
    pub exit: Option<(u8, u8)>,
}

/// What is run on the device for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// A head, for its features.
    Head(HeadRun),
    /// An image codec.
    Image(ImageRun),
}

impl Run {
    /// Positions of split and width of the head that is run, if one is.
    pub fn head(self) -> Option<(u8, u8)> {
        match self {
            Run::Head(run) => Some((run.split, run.width)),
            Run::Image(run) => run.exit,
        }
    }
}

/// The decision before the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadDecision {
    /// What to run.
    pub work: Work,
    /// Why.
    pub reason: Choice,
}

/// What to run for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A head.
    Head(HeadRun),
    /// An image codec; the picture is sent as it comes out.
    Image(ImageRun),
    /// Nothing: the frame is dropped and counted as skipped.
    Nothing,
}

/// The decision after the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendDecision {
    /// What to send.
    pub sending: Sending,
    /// Why.
    pub reason: Choice,
}

/// What to send of a coded frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// Nothing: the exit answers.
    Exit,
    /// The first layers, at least 1 and at most those coded.
    Layers(u8),
    /// Nothing of the frame: the exit answers, and a probe with so many bytes of padding asks
    /// whether and how fast the network carries them.
    Probe(usize),
}

/// What a reply to a frame or to a probe tells about the network and the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkSample {
    /// The frame.
    pub frame: FrameId,
    /// Coded size of the frame, or the padding (bytes).
    pub bytes: usize,
    /// From sending until the reply, less the server's durations; both directions.
    pub network: Duration,
    /// First to last byte of the frame at the server; a part of `network`.
    pub receive_span: Duration,
    /// Waiting, decoding and the tail on the server.
    pub server: Duration,
    /// Whether the reply was a refusal.
    pub refused: bool,
}

/// What a frame or a probe that was given up tells: the network would have taken longer than `waited`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkTimeout {
    /// The frame.
    pub frame: FrameId,
    /// Coded size of the frame, or the padding (bytes).
    pub bytes: usize,
    /// From sending until it was given up.
    pub waited: Duration,
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Always the same operating point.
#[derive(Clone, Copy, Debug)]
pub struct Fixed(pub OperatingPoint);

impl Controller for Fixed {
    fn on_link_up(&mut self, _now: Timestamp, _round_trip: Option<Duration>) {}

    fn decide_head(&mut self, _now: Timestamp, _view: &HeadView) -> HeadDecision {
        HeadDecision { work: Work::Head(self.0.into()), reason: Choice::Fixed }
    }

    fn decide_send(&mut self, _now: Timestamp, view: &SendView<'_>) -> SendDecision {
        SendDecision { sending: Sending::Layers(view.run.layers), reason: Choice::Fixed }
    }

    fn on_reply(&mut self, _now: Timestamp, _sample: &NetworkSample) {}

    fn on_timeout(&mut self, _now: Timestamp, _timeout: &NetworkTimeout) {}
}

/// Always the exit of the same head.
#[derive(Clone, Copy, Debug)]
pub struct FixedExit(pub HeadRun);

impl Controller for FixedExit {
    fn on_link_up(&mut self, _now: Timestamp, _round_trip: Option<Duration>) {}

    fn decide_head(&mut self, _now: Timestamp, _view: &HeadView) -> HeadDecision {
        HeadDecision { work: Work::Head(self.0), reason: Choice::Fixed }
    }

    fn decide_send(&mut self, _now: Timestamp, _view: &SendView<'_>) -> SendDecision {
        SendDecision { sending: Sending::Exit, reason: Choice::Fixed }
    }

    fn on_reply(&mut self, _now: Timestamp, _sample: &NetworkSample) {}

    fn on_timeout(&mut self, _now: Timestamp, _timeout: &NetworkTimeout) {}
}

/// Always a picture, compressed in the same way.
#[derive(Clone, Copy, Debug)]
pub struct FixedImage(pub ImageRun);

impl Controller for FixedImage {
    fn on_link_up(&mut self, _now: Timestamp, _round_trip: Option<Duration>) {}

    fn decide_head(&mut self, _now: Timestamp, _view: &HeadView) -> HeadDecision {
        HeadDecision { work: Work::Image(self.0), reason: Choice::Fixed }
    }

    fn decide_send(&mut self, _now: Timestamp, _view: &SendView<'_>) -> SendDecision {
        SendDecision { sending: Sending::Exit, reason: Choice::Fixed }
    }

    fn on_reply(&mut self, _now: Timestamp, _sample: &NetworkSample) {}

    fn on_timeout(&mut self, _now: Timestamp, _timeout: &NetworkTimeout) {}
}
