//! The connection to the server, kept alive.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::wire::{self, Hello, Welcome};
use isthmus_proto::{Envelope, FrameId, PROTOCOL_VERSION, TraceIds, write_padding};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::config::{ServerUrl, Transport};
use crate::grpc::GrpcConnection;
use crate::quic::{PROBE_PRIORITY, QuicConnection};
use crate::tls::{Trust, TrustError, Verifier};

/// First pause before connecting again; it doubles with every failure.
pub const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause before connecting again.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// Longest wait for the goodbye at the end.
const GOODBYE: Duration = Duration::from_millis(300);

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The check of the server's identity could not be set up.
    #[error("cannot check the server's identity: {0}")]
    Trust(#[from] TrustError),
    /// The server's name has no address.
    #[error("{server}: no address: {reason}")]
    Resolve {
        /// The server.
        server: ServerUrl,
        /// What the resolver says.
        reason: String,
    },
    /// Nothing answers there.
    #[error("{server}: cannot be reached: {reason}")]
    Unreachable {
        /// The server.
        server: ServerUrl,
        /// What the transport says.
        reason: String,
    },
    /// Something answers, and is not the server it should be.
    #[error("{server}: not the expected server: {reason}")]
    Identity {
        /// The server.
        server: ServerUrl,
        /// What differs.
        reason: String,
    },
    /// The server speaks another protocol, or breaks this one.
    #[error("{server}: does not speak this protocol: {reason}")]
    Protocol {
        /// The server.
        server: ServerUrl,
        /// What it did.
        reason: String,
    },
    /// Metrics cannot be offered there.
    #[error("cannot listen on {address} for metrics (--metrics-port chooses another port)")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// There is no such collector.
    #[cfg(feature = "otel")]
    #[error(transparent)]
    Collector(#[from] isthmus_telemetry::spans::EndpointError),
    /// The server does not serve the bundle.
    #[error("{server}: does not serve bundle {bundle}: {reason}")]
    NotServed {
        /// The server.
        server: ServerUrl,
        /// The bundle's name.
        bundle: String,
        /// What the server says.
        reason: String,
    },
}

/// How a transport failed, before it is known what that means.
#[derive(Debug)]
pub(crate) enum Failure {
    Unreachable(String),
    Protocol(String),
}

/// What it takes to connect, again and again.
pub(crate) struct Dialer {
    pub(crate) server: ServerUrl,
    pub(crate) verifier: Arc<Verifier>,
    pub(crate) hello: Hello,
    pub(crate) timeout: Duration,
    /// The share of frames to trace; `None` traces nothing.
    pub(crate) sampled: Option<f64>,
    /// Bytes on their way over QUIC at most; as a client has it by default.
    pub(crate) send_window: Option<u64>,
}

/// A coded frame on its way out.
#[derive(Debug)]
pub(crate) struct Outgoing {
    pub(crate) frame: FrameId,
    /// Envelope and packet.
    pub(crate) bytes: Vec<u8>,
    /// Where each layer ends in `bytes`; the last is its length.
    pub(crate) layer_ends: Vec<usize>,
    /// The higher, the more urgent.
    pub(crate) priority: i32,
}

impl Outgoing {
    /// So many bytes of padding, after whatever is to be answered.
    pub(crate) fn probe(frame: FrameId, padding: usize, time_left: Duration) -> Self {
        let mut bytes = Vec::with_capacity(padding + 16);
        Envelope { probe: true, ..envelope(frame, time_left) }.write(&mut bytes);
        write_padding(&mut bytes, padding);
        let layer_ends = vec![bytes.len()];
        Outgoing { frame, bytes, layer_ends, priority: PROBE_PRIORITY }
    }
}

/// A frame's envelope.
pub(crate) fn envelope(frame: FrameId, time_left: Duration) -> Envelope {
    Envelope { frame: (frame.0 & 0xffff) as u16, time_left, probe: false }
}

#[derive(Debug)]
pub(crate) enum Command {
    Send(Outgoing),
    Cancel(FrameId),
}

#[derive(Debug)]
pub(crate) enum Event {
    Up(Limits),
    Down,
    /// A frame found its place on the connection, which is its ordinal there.
    Sent(FrameId, u64),
    Reply(FrameId, wire::Reply),
    Lost(FrameId, String),
}

/// What a fresh connection allows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) max_in_flight: usize,
    pub(crate) max_frame_bytes: usize,
    pub(crate) round_trip: Option<Duration>,
    pub(crate) traces: Option<TraceIds>,
}

/// The connection's two ends as the client sees them. Dropping it closes the connection.
pub(crate) struct Link {
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    pub(crate) events: mpsc::UnboundedReceiver<Event>,
    keeper: JoinHandle<()>,
}

enum Connection {
    Quic(QuicConnection),
    Grpc(GrpcConnection),
}

impl Dialer {
    pub(crate) fn new(
        server: ServerUrl,
        trust: &Trust,
        hello: Hello,
        timeout: Duration,
        sampled: Option<f64>,
    ) -> Result<Self, ConnectError> {
        let verifier = Verifier::new(trust)?;
        Ok(Dialer { server, verifier, hello, timeout, sampled, send_window: None })
    }

    async fn connect(&self) -> Result<(Connection, Limits), ConnectError> {
        let server = || self.server.clone();
        let resolve = |reason: String| ConnectError::Resolve { server: server(), reason };
        let addresses: Vec<SocketAddr> =
            tokio::net::lookup_host((self.server.host.as_str(), self.server.port))
                .await
                .map_err(|error| resolve(error.to_string()))?
                .collect();
        let mut last = resolve("the name is known, but has no address".into());
        for address in addresses {
            match timeout(self.timeout, self.connect_to(address)).await {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(
                    error @ (ConnectError::Identity { .. } | ConnectError::NotServed { .. }),
                )) => {
                    return Err(error);
                }
                Ok(Err(error)) => last = error,
                Err(_) => {
                    let reason = format!("no answer from {address} within {:?}", self.timeout);
                    last = ConnectError::Unreachable { server: server(), reason };
                }
            }
        }
        Err(last)
    }

    async fn connect_to(&self, address: SocketAddr) -> Result<(Connection, Limits), ConnectError> {
        let traces = self.sampled.and_then(|sampled| self.draw_trace_ids(sampled));
        let hello = Hello { tracing: traces.map(Into::into), ..self.hello.clone() };
        let connected = match self.server.transport {
            Transport::Quic => QuicConnection::connect(self, address, hello)
                .await
                .map(|(quic, welcome, rtt)| (Connection::Quic(quic), welcome, Some(rtt))),
            Transport::Grpc => GrpcConnection::connect(self, address, hello)
                .await
                .map(|(grpc, welcome)| (Connection::Grpc(grpc), welcome, None)),
        };
        let server = self.server.clone();
        let (connection, welcome, round_trip) =
            connected.map_err(|failure| match (self.verifier.take_refusal(), failure) {
                (Some(reason), _) => ConnectError::Identity { server, reason },
                (None, Failure::Unreachable(reason)) => {
                    ConnectError::Unreachable { server, reason }
                }
                (None, Failure::Protocol(reason)) => ConnectError::Protocol { server, reason },
            })?;
        let limits = self.check(welcome, round_trip, traces)?;
        Ok((connection, limits))
    }

    /// Names for the frames of a new connection.
    fn draw_trace_ids(&self, sampled: f64) -> Option<TraceIds> {
        let mut seed = [0; 8];
        match self.verifier.provider().secure_random.fill(&mut seed) {
            Ok(()) => Some(TraceIds::new(u64::from_be_bytes(seed), sampled)),
            Err(_) => {
                tracing::warn!("no random numbers: this connection is not traced");
                None
            }
        }
    }

    fn check(
        &self,
        welcome: Welcome,
        round_trip: Option<Duration>,
        traces: Option<TraceIds>,
    ) -> Result<Limits, ConnectError> {
        let server = self.server.clone();
        if welcome.protocol != PROTOCOL_VERSION {
            let spoken = welcome.protocol;
            let reason = format!("version {spoken}, not {PROTOCOL_VERSION}");
            return Err(ConnectError::Protocol { server, reason });
        }
        if welcome.bundles.len() != self.hello.bundles.len() {
            let reason = "its welcome does not match the hello".into();
            return Err(ConnectError::Protocol { server, reason });
        }
        let refused = self.hello.bundles.iter().zip(&welcome.bundles).find(|(_, it)| !it.served);
        if let Some((bundle, status)) = refused {
            let (bundle, reason) = (bundle.name.clone(), status.reason.clone());
            return Err(ConnectError::NotServed { server, bundle, reason });
        }
        Ok(Limits {
            max_in_flight: usize::try_from(welcome.max_in_flight).unwrap_or(usize::MAX),
            max_frame_bytes: usize::try_from(welcome.max_frame_bytes).unwrap_or(usize::MAX),
            round_trip,
            traces,
        })
    }
}

impl Link {
    /// Connects, and from then on reconnects by itself; the first event is `Up`.
    pub(crate) async fn connect(dialer: Dialer) -> Result<Link, ConnectError> {
        let (connection, limits) = dialer.connect().await?;
        let (commands, command_receiver) = mpsc::unbounded_channel();
        let (event_sender, events) = mpsc::unbounded_channel();
        // From here, not from the task: the first frame may be ready before the task first runs.
        let _ = event_sender.send(Event::Up(limits));
        let keeper = tokio::spawn(keep(dialer, connection, command_receiver, event_sender));
        Ok(Link { commands, events, keeper })
    }

    /// Ends the connection, and tells the server.
    pub(crate) async fn close(self) {
        let Link { commands, events, keeper } = self;
        drop((commands, events));
        // A goodbye that takes longer is left to the server's idle timeout.
        let _ = timeout(GOODBYE, keeper).await;
    }
}

/// Serves one connection after the other until the link is dropped.
async fn keep(
    dialer: Dialer,
    mut connection: Connection,
    mut commands: mpsc::UnboundedReceiver<Command>,
    events: mpsc::UnboundedSender<Event>,
) {
    loop {
        let lost = match connection {
            Connection::Quic(quic) => quic.serve(&mut commands, &events).await,
            Connection::Grpc(grpc) => grpc.serve(&mut commands, &events).await,
        };
        let Err(reason) = lost else { return };
        tracing::warn!(server = %dialer.server, reason, "connection lost");
        if events.send(Event::Down).is_err() {
            return;
        }
        let reconnected = tokio::select! {
            reconnected = reconnect(&dialer) => reconnected,
            () = refuse(&mut commands, &events) => return,
        };
        tracing::info!(server = %dialer.server, "connected again");
        let (again, limits) = reconnected;
        connection = again;
        if events.send(Event::Up(limits)).is_err() {
            return;
        }
    }
}

async fn reconnect(dialer: &Dialer) -> (Connection, Limits) {
    let mut pause = FIRST_PAUSE;
    loop {
        sleep(pause).await;
        match dialer.connect().await {
            Ok(connected) => return connected,
            Err(error) => tracing::warn!(%error, "still no connection"),
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Answers what is still sent while there is no connection; ends when the link is dropped.
async fn refuse(
    commands: &mut mpsc::UnboundedReceiver<Command>,
    events: &mpsc::UnboundedSender<Event>,
) {
    while let Some(command) = commands.recv().await {
        if let Command::Send(Outgoing { frame, .. }) = command {
            // The receiver may be gone already; then the sender of commands soon is, too.
            let _ = events.send(Event::Lost(frame, "no connection".into()));
        }
    }
}

impl Failure {
    pub(crate) fn unreachable(error: impl std::error::Error) -> Self {
        Failure::Unreachable(whole(&error))
    }

    pub(crate) fn protocol(error: impl std::error::Error) -> Self {
        Failure::Protocol(whole(&error))
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Failure::unreachable(error)
    }
}

/// An error and its sources, in one line.
pub(crate) fn whole(error: &dyn std::error::Error) -> String {
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
