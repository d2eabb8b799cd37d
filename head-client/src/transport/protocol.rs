//! What the [link](super::link) and the transports under it say to each other.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::{FrameId, TraceIds};
use tokio::sync::mpsc;

use super::link::Unconnected;
use super::tls::Verifier;
use crate::config::ServerUrl;
use crate::exchange::{Checked, Limits, Outcome, Outgoing, WelcomeError};

/// Silence after which a transport asks whether the server is still there.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Silence after which a connection counts as lost.
pub(crate) const IDLE_TIMEOUT: Duration = Duration::from_secs(8);

/// What a transport needs to connect.
pub(crate) struct Target {
    pub(crate) server: ServerUrl,
    pub(crate) verifier: Arc<Verifier>,
    pub(crate) timeout: Duration,
    /// Most bytes that are handed to QUIC and not acknowledged; `None` for a client's default.
    pub(crate) send_window: Option<u64>,
}

#[derive(Debug)]
pub(crate) enum Command {
    Send(Outgoing),
    Cancel(FrameId),
}

#[derive(Debug)]
pub(crate) enum Event {
    /// A fresh connection.
    Up {
        limits: Limits,
        /// A round trip seen while connecting.
        round_trip: Option<Duration>,
        /// Names for its frames' spans, where they are traced.
        traces: Option<TraceIds>,
    },
    Down,
    /// An attempt to connect failed.
    Unconnected(Unconnected),
    /// A frame got its ordinal on the connection.
    Sent(FrameId, u64),
    Reply(FrameId, Checked),
    /// There will be no reply, and why.
    Lost(FrameId, String),
}

/// The link's ends that a transport serves.
pub(crate) struct Ends {
    pub(crate) commands: mpsc::UnboundedReceiver<Command>,
    pub(crate) events: mpsc::UnboundedSender<Event>,
}

/// How a transport failed to connect, before it is known whether the server's identity is why.
#[derive(Debug)]
pub(crate) enum Failure {
    Unreachable(String),
    Protocol(String),
    Welcome(WelcomeError),
}

impl Event {
    /// What an exchange came to.
    pub(crate) fn of_outcome(frame: FrameId, outcome: Outcome) -> Self {
        match outcome {
            Ok(checked) => Event::Reply(frame, checked),
            Err(error) => Event::Lost(frame, error.to_string()),
        }
    }
}

impl Failure {
    pub(crate) fn unreachable(error: impl std::error::Error) -> Self {
        Failure::Unreachable(with_sources(&error))
    }

    pub(crate) fn protocol(error: impl std::error::Error) -> Self {
        Failure::Protocol(with_sources(&error))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::unreachable(error)
    }
}

impl From<WelcomeError> for Failure {
    fn from(error: WelcomeError) -> Self {
        Failure::Welcome(error)
    }
}

/// An error and its sources, in one line.
pub(crate) fn with_sources(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_words = cause.to_string();
        if !words.contains(&cause_words) {
            words = format!("{words}: {cause_words}");
        }
        source = cause.source();
    }
    words
}
