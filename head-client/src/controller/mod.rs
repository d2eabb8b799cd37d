//! What to run and what to send: the two decisions about every frame.

mod backoff;
mod calibration;
mod conformal;
mod doubt;
mod greedy;
mod ladder;
mod linucb;
mod mpc;
mod objective;
mod reach;
mod statistics;
mod transfer;
mod way;

use std::fmt;
use std::time::Duration;

use isthmus_models::ImageSpec;
use isthmus_proto::{Bitrate, FrameId, OperatingPoint, Timestamp};

use crate::outcome::Choice;

pub use calibration::{Arms, BundleLadderError, Calibration, Measured};
pub use conformal::Conformal;
pub use greedy::Greedy;
pub use ladder::{Ladder, LadderError, LadderRung};
pub use linucb::LinUcb;
pub use mpc::{Mpc, MpcConfig};
pub use objective::{EnergyModel, Objective};
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

    /// What was run is done and took the device so long, also where its frame has ended meanwhile.
    fn on_run(&mut self, _now: Timestamp, _run: Run, _took: Duration) {}

    /// What to send of what was run, knowing what the exit says and how large every layer, or the
    /// compressed picture, became. It is not asked about the uncut network's answer.
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
    pub run: Run,
    /// Probability of the exit's best class, 0 to 1; `None` if no head with a usable exit was run.
    pub exit_confidence: Option<f32>,
    /// Bytes of the coded stream up to and with each layer; not decreasing. A compressed picture is
    /// one layer.
    pub layer_ends: &'a [usize],
    /// Time until the frame has to be answered.
    pub time_left: Duration,
    /// The link.
    pub link: LinkView,
}

/// A head to run, and how deep to quantise what it gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageRun {
    /// How to compress it.
    pub image: ImageSpec,
    /// Position of the split, and of the width within it, of the head whose exit stands by; `None`
    /// spares the device every head, and leaves a frame without an answer when the network has none.
    pub exit: Option<(u8, u8)>,
}

/// What is run on the device for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Run {
    /// A head, for its features.
    Head(HeadRun),
    /// An image codec.
    Image(ImageRun),
    /// The uncut network: its answer is the frame's, and nothing is sent.
    Local,
}

impl Run {
    /// Positions of split and width of the head that is run, if one is.
    pub fn head(self) -> Option<(u8, u8)> {
        match self {
            Run::Head(run) => Some((run.split, run.width)),
            Run::Image(run) => run.exit,
            Run::Local => None,
        }
    }

    /// What it asks of the device.
    pub fn load(self) -> Load {
        match self {
            Run::Head(HeadRun { split, width, .. }) => Load::Head(split, width),
            Run::Image(run) => Load::Image(run),
            Run::Local => Load::Local,
        }
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Run::Head(run) => write!(f, "operating point {}", run.point(run.layers)),
            Run::Image(ImageRun { image, .. }) => write!(f, "picture {image}"),
            Run::Local => f.write_str("the network on the device"),
        }
    }
}

/// The run whose every layer is sent at this point.
impl From<OperatingPoint> for Run {
    fn from(point: OperatingPoint) -> Self {
        Run::Head(point.into())
    }
}

/// What runs have in common that take equally long: of a head's, coding more or less is no
/// difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Load {
    /// A head by split and width, and a coder.
    Head(u8, u8),
    /// An image codec, and perhaps a head.
    Image(ImageRun),
    /// The uncut network.
    Local,
}

/// The decision before the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadDecision {
    /// What to run; nothing drops the frame, which is counted as skipped.
    pub run: Option<Run>,
    /// Why.
    pub reason: Choice,
}

/// The decision after the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SendDecision {
    /// What to send.
    pub sending: Sending,
    /// Why.
    pub reason: Choice,
}

/// What to send of a frame once something was run for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sending {
    /// Nothing: what was run on the device answers.
    Exit,
    /// The first layers, at least 1 and at most those coded; a compressed picture is one layer.
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

/// Always the same.
#[derive(Clone, Copy, Debug)]
pub struct Fixed {
    run: Run,
    sends: bool,
}

impl Fixed {
    /// Always runs the same and sends all that comes of it: an operating point, or a compressed
    /// picture.
    pub fn new(run: impl Into<Run>) -> Fixed {
        Fixed { run: run.into(), sends: true }
    }

    /// Always the exit of the same head.
    pub fn exit(run: HeadRun) -> Fixed {
        Fixed { run: Run::Head(run), sends: false }
    }
}

impl Controller for Fixed {
    fn on_link_up(&mut self, _now: Timestamp, _round_trip: Option<Duration>) {}

    fn decide_head(&mut self, _now: Timestamp, _view: &HeadView) -> HeadDecision {
        HeadDecision { run: Some(self.run), reason: Choice::Fixed }
    }

    fn decide_send(&mut self, _now: Timestamp, view: &SendView<'_>) -> SendDecision {
        let layers = u8::try_from(view.layer_ends.len()).unwrap_or(u8::MAX);
        let sending = if self.sends { Sending::Layers(layers) } else { Sending::Exit };
        SendDecision { sending, reason: Choice::Fixed }
    }

    fn on_reply(&mut self, _now: Timestamp, _sample: &NetworkSample) {}

    fn on_timeout(&mut self, _now: Timestamp, _timeout: &NetworkTimeout) {}
}
