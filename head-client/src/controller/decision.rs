//! The interface of controllers: what they see of a frame and the link, and what they decide.

use std::fmt;
use std::time::Duration;

use isthmus_proto::{Bitrate, FrameId, Timestamp};

use super::run::Run;

/// Decides twice about every frame: before the head what to run, after it what to send.
///
/// A controller is pure: it gets the time and the session's view as arguments, and every decision
/// carries its reason. The session overrules it only where there is nothing to decide: without a
/// connection, or with no room for another unanswered frame, the exit answers.
///
/// A controller that sends its first layer while the last frame of that size came back in half the
/// time left, and else leaves the answer to the exit:
///
/// ```
/// use std::time::Duration;
///
/// use isthmus_head_client::{
///     Choice, Controller, HeadDecision, HeadRun, HeadView, NetworkSample, NetworkTimeout, Run,
///     SendDecision, SendView, Sending,
/// };
/// use isthmus_proto::Timestamp;
///
/// struct Cautious {
///     run: HeadRun,
///     /// What the last frame took outside the server.
///     last: Duration,
/// }
///
/// impl Controller for Cautious {
///     fn on_link_up(&mut self, _now: Timestamp, round_trip: Option<Duration>) {
///         // Another connection, perhaps over another path: forget what was learnt.
///         self.last = round_trip.unwrap_or_default();
///     }
///
///     fn decide_head(&mut self, _now: Timestamp, _view: &HeadView) -> HeadDecision {
///         HeadDecision { run: Some(Run::Head(self.run)), reason: Choice::Fixed }
///     }
///
///     fn decide_send(&mut self, _now: Timestamp, view: &SendView<'_>) -> SendDecision {
///         match 2 * self.last <= view.time_left {
///             true => SendDecision { sending: Sending::Layers(1), reason: Choice::InTime },
///             false => SendDecision { sending: Sending::Exit, reason: Choice::TooSlow },
///         }
///     }
///
///     fn on_reply(&mut self, _now: Timestamp, sample: &NetworkSample) {
///         self.last = sample.network;
///     }
///
///     fn on_timeout(&mut self, _now: Timestamp, timeout: &NetworkTimeout) {
///         self.last = timeout.waited;
///     }
/// }
///
/// let mut cautious =
///     Cautious { run: HeadRun { split: 0, width: 0, bits: 6, layers: 2 }, last: Duration::ZERO };
/// cautious.on_link_up(Timestamp::ZERO, Some(Duration::from_millis(80)));
/// # use isthmus_head_client::LinkView;
/// # use isthmus_proto::FrameId;
/// let view = SendView {
///     frame: FrameId(0),
///     run: Run::Head(cautious.run),
///     exit_confidence: Some(0.4),
///     layer_ends: &[300, 700],
///     time_left: Duration::from_millis(120),
///     link: LinkView::default(),
/// };
/// let decision = cautious.decide_send(Timestamp::from_micros(30_000), &view);
/// assert_eq!((decision.sending, decision.reason), (Sending::Exit, Choice::TooSlow));
/// ```
pub trait Controller: Send {
    /// A connection is there, perhaps over another path than before. `round_trip` is that of the
    /// small packets by which it was made, where the transport measures it.
    fn on_link_up(&mut self, now: Timestamp, round_trip: Option<Duration>);

    /// What to run for the frame whose turn it is.
    fn decide_head(&mut self, now: Timestamp, view: &HeadView) -> HeadDecision;

    /// A run has ended and took the device so long. This is called even if its frame ended before.
    fn on_run(&mut self, _now: Timestamp, _run: Run, _took: Duration) {}

    /// What to send of the run's result, given the exit's confidence and the size of every layer,
    /// or of the compressed picture. This is not called after [`Run::Local`].
    fn decide_send(&mut self, now: Timestamp, view: &SendView<'_>) -> SendDecision;

    /// A reply came, or a refusal.
    fn on_reply(&mut self, now: Timestamp, sample: &NetworkSample);

    /// A frame or a probe that was sent was given up.
    fn on_timeout(&mut self, now: Timestamp, timeout: &NetworkTimeout);

    /// The controller's estimate of the link, for people to see; `None` from a controller that does
    /// not estimate it, or has no sample yet.
    fn estimate(&self) -> Option<LinkEstimate> {
        None
    }
}

/// A controller's estimate of the link.
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

/// The decision before the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadDecision {
    /// What to run; `None` drops the frame, which is counted as skipped.
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
    /// Nothing of the frame: the exit answers, and a probe with so many bytes of padding measures
    /// whether and how fast the network carries them.
    Probe(usize),
}

/// Why a controller decided as it did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Choice {
    /// It always does the same.
    Fixed,
    /// The most valuable choice that should be in time.
    InTime,
    /// The network's answer would be in time, but no better than the exit's.
    ExitSuffices,
    /// Nothing would be in time.
    TooSlow,
    /// It would be in time, but costs more than it gains: it holds up frames that gain more, or
    /// spends bytes or energy that are to be saved.
    Spared,
    /// The exit says that nothing of interest is in the picture.
    Filtered,
    /// A probe goes in place of the frame, to find out whether frames, or larger ones, would be in
    /// time.
    Probe,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Choice::Fixed => "fixed",
            Choice::InTime => "in time",
            Choice::ExitSuffices => "exit suffices",
            Choice::TooSlow => "too slow",
            Choice::Spared => "spared",
            Choice::Filtered => "filtered",
            Choice::Probe => "probe",
        })
    }
}

/// What a reply to a frame or to a probe shows of the network and the server.
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

/// A frame or a probe that was given up: the network would have taken longer than `waited`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetworkTimeout {
    /// The frame.
    pub frame: FrameId,
    /// Coded size of the frame, or the padding (bytes).
    pub bytes: usize,
    /// From sending until it was given up.
    pub waited: Duration,
}
