//! The connection to the server, kept alive.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_proto::wire::Hello;
use isthmus_proto::{Timestamp, TraceIds};
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout, timeout_at};

use super::grpc::GrpcConnection;
use super::protocol::{Command, Ends, Event, Failure, Target};
use super::quic::QuicConnection;
use super::tls::{Trust, TrustError, Verifier};
use crate::config::{ServerUrl, Transport};
use crate::exchange::{Backoff, Handshake, Limits, WelcomeError};

/// Longest wait for the first attempt to connect before frames are taken.
const FIRST_ATTEMPT: Duration = Duration::from_secs(1);
/// A failure that goes on is logged again after this time.
const SAID_AGAIN: Duration = Duration::from_secs(60);
/// How often a server is tried that goes before the one that is connected.
const PREFERRED_AGAIN: Duration = Duration::from_secs(30);
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
    /// No server was named.
    #[error("no server is named")]
    NoServer,
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

/// Why there is no connection, in short.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Unconnected {
    /// The server's name has no address.
    NoAddress,
    /// Nothing answers.
    Unreachable,
    /// What answers is not the server it should be.
    Identity,
    /// The server does not serve the bundle.
    NotServed,
    /// What answers speaks another protocol, or the attempt could not be made.
    Protocol,
}

impl Unconnected {
    /// All of them.
    pub const ALL: [Unconnected; 5] = [
        Unconnected::NoAddress,
        Unconnected::Unreachable,
        Unconnected::Identity,
        Unconnected::NotServed,
        Unconnected::Protocol,
    ];

    /// Whether whoever looks for the cause learns more of this one.
    fn tells_more_than(self, other: Unconnected) -> bool {
        let rank = |cause| match cause {
            Unconnected::NotServed => 3,
            Unconnected::Identity => 2,
            Unconnected::Protocol => 1,
            Unconnected::Unreachable | Unconnected::NoAddress => 0,
        };
        rank(self) > rank(other)
    }

    /// Its name in results and metrics.
    pub fn name(self) -> &'static str {
        match self {
            Unconnected::NoAddress => "no_address",
            Unconnected::Unreachable => "unreachable",
            Unconnected::Identity => "identity",
            Unconnected::NotServed => "not_served",
            Unconnected::Protocol => "protocol",
        }
    }
}

impl ConnectError {
    /// The kind of failure.
    pub fn cause(&self) -> Unconnected {
        match self {
            ConnectError::Resolve { .. } | ConnectError::NoServer => Unconnected::NoAddress,
            ConnectError::Unreachable { .. } => Unconnected::Unreachable,
            ConnectError::Identity { .. } => Unconnected::Identity,
            ConnectError::NotServed { .. } => Unconnected::NotServed,
            _ => Unconnected::Protocol,
        }
    }
}

/// Connects to a server, as often as it has to be.
pub(crate) struct Dialer {
    /// In order of preference, at least one.
    targets: Vec<Target>,
    hello: Hello,
    /// Fraction of frames to trace, 0 to 1; `None` traces nothing.
    sampled: Option<f64>,
}

/// The connection's two ends as the client sees them. Dropping it closes the connection.
pub(crate) struct Link {
    pub(crate) commands: mpsc::UnboundedSender<Command>,
    pub(crate) events: mpsc::UnboundedReceiver<Event>,
    keeper: JoinHandle<()>,
}

/// A connection whose hello was welcomed.
struct Connected {
    /// The server's place among the targets.
    target: usize,
    connection: Connection,
    limits: Limits,
    round_trip: Option<Duration>,
    traces: Option<TraceIds>,
}

enum Connection {
    Quic(QuicConnection),
    Grpc(GrpcConnection),
}

impl Dialer {
    /// Of `servers`, at least one, the first that can be reached is taken.
    pub(crate) fn new(
        servers: Vec<ServerUrl>,
        trust: &Trust,
        hello: Hello,
        timeout: Duration,
        sampled: Option<f64>,
    ) -> Result<Self, ConnectError> {
        let verifier = Verifier::new(trust)?;
        let target = |server| {
            let verifier = Arc::clone(&verifier);
            Target { server, verifier, timeout, send_window: None }
        };
        Ok(Dialer { targets: servers.into_iter().map(target).collect(), hello, sampled })
    }

    /// Hands QUIC so many bytes at most before they are acknowledged.
    pub(crate) fn with_send_window(mut self, bytes: u64) -> Self {
        self.targets.iter_mut().for_each(|target| target.send_window = Some(bytes));
        self
    }

    /// A connection to the first server that can be reached; otherwise what is most worth knowing.
    async fn connect(&self) -> Result<Connected, ConnectError> {
        self.connect_before(self.targets.len()).await
    }

    /// The same of the servers before a place.
    async fn connect_before(&self, end: usize) -> Result<Connected, ConnectError> {
        let mut failed: Option<ConnectError> = None;
        for at in 0..end {
            match self.connect_at(at).await {
                Ok(connected) => return Ok(connected),
                Err(error) => {
                    let cause = |error: &ConnectError| error.cause();
                    // A wrong server says more than one that does not answer.
                    if failed.as_ref().is_none_or(|it| cause(&error).tells_more_than(cause(it))) {
                        failed = Some(error);
                    }
                }
            }
        }
        Err(failed.unwrap_or(ConnectError::NoServer))
    }

    async fn connect_at(&self, at: usize) -> Result<Connected, ConnectError> {
        let target = &self.targets[at];
        let server = &target.server;
        let resolve = |reason| ConnectError::Resolve { server: server.clone(), reason };
        let looked_up = tokio::net::lookup_host((server.host.as_str(), server.port));
        let addresses: Vec<SocketAddr> = timeout(target.timeout, looked_up)
            .await
            .map_err(|_| resolve(format!("no answer in {:?}", target.timeout)))?
            .map_err(|error| resolve(error.to_string()))?
            .collect();
        let mut last = resolve("the name is known, but has no address".into());
        for address in addresses {
            match self.connect_to(at, address).await {
                Ok(connected) => return Ok(connected),
                Err(error @ (ConnectError::Identity { .. } | ConnectError::NotServed { .. })) => {
                    return Err(error);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    async fn connect_to(&self, at: usize, address: SocketAddr) -> Result<Connected, ConnectError> {
        let target = &self.targets[at];
        let traces = self.sampled.and_then(|sampled| self.draw_trace_ids(sampled));
        let hello = Hello { tracing: traces.map(Into::into), ..self.hello.clone() };
        let start = Instant::now();
        let mut handshake = Handshake::new(hello, Timestamp::ZERO, target.timeout);
        let due = handshake.poll_timeout().map_or(0, Timestamp::as_micros);
        let due = start + Duration::from_micros(due);
        let connecting = timeout_at(due.into(), shake_hands(target, address, &mut handshake)).await;
        let silent = |_| Err(WelcomeError::Silent(target.timeout).into());
        let shaken = connecting.unwrap_or_else(silent);
        let (connection, limits, round_trip) =
            shaken.map_err(|failure| to_error(target, address, failure))?;
        Ok(Connected { target: at, connection, limits, round_trip, traces })
    }

    /// Names for the spans of a new connection's frames.
    fn draw_trace_ids(&self, sampled: f64) -> Option<TraceIds> {
        let mut seed = [0; 8];
        let provider = self.targets.first()?.verifier.provider();
        match provider.secure_random.fill(&mut seed) {
            Ok(()) => Some(TraceIds::new(u64::from_be_bytes(seed), sampled)),
            Err(_) => {
                tracing::warn!("no random numbers: this connection is not traced");
                None
            }
        }
    }
}

async fn shake_hands(
    target: &Target,
    address: SocketAddr,
    handshake: &mut Handshake,
) -> Result<(Connection, Limits, Option<Duration>), Failure> {
    match target.server.transport {
        Transport::Quic => {
            let connected = QuicConnection::connect(target, address, handshake).await?;
            let (quic, limits, round_trip) = connected;
            Ok((Connection::Quic(quic), limits, Some(round_trip)))
        }
        Transport::Grpc => {
            let connected = GrpcConnection::connect(target, address, handshake).await?;
            let (grpc, limits) = connected;
            Ok((Connection::Grpc(grpc), limits, None))
        }
    }
}

/// What a failure means, now that it can be known whether the server's identity is the cause.
fn to_error(target: &Target, address: SocketAddr, failure: Failure) -> ConnectError {
    let server = target.server.clone();
    if let Some(reason) = target.verifier.take_refusal() {
        return ConnectError::Identity { server, reason };
    }
    match failure {
        Failure::Unreachable(reason) => ConnectError::Unreachable { server, reason },
        Failure::Protocol(reason) => ConnectError::Protocol { server, reason },
        Failure::Welcome(error @ WelcomeError::Silent(_)) => {
            ConnectError::Unreachable { server, reason: format!("{address}: {error}") }
        }
        Failure::Welcome(WelcomeError::NotServed { bundle, reason }) => {
            ConnectError::NotServed { server, bundle, reason }
        }
        Failure::Welcome(error) => ConnectError::Protocol { server, reason: error.to_string() },
    }
}

impl Connected {
    fn event(&self) -> Event {
        let &Connected { limits, round_trip, traces, .. } = self;
        Event::Up { limits, round_trip, traces }
    }
}

impl Link {
    /// A link that connects, and again whenever the connection is lost. If `required` it begins with
    /// a connection, whose event is there at once. If not, it waits for the first attempt for
    /// [`FIRST_ATTEMPT`] at most, and goes on with further ones beside the first frames.
    pub(crate) async fn open(dialer: Dialer, required: bool) -> Result<Link, ConnectError> {
        let connected = if required { Some(dialer.connect().await?) } else { None };
        let (commands, command_receiver) = mpsc::unbounded_channel();
        let (event_sender, events) = mpsc::unbounded_channel();
        let ends = Ends { commands: command_receiver, events: event_sender };
        let (tried, first) = oneshot::channel();
        let keeper = tokio::spawn(keep(dialer, connected, ends, tried));
        // The first frame may be ready before the task first runs.
        let _ = timeout(FIRST_ATTEMPT, first).await;
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

/// Serves one connection after the other until the link is dropped. `tried` is dropped when the first
/// attempt has ended.
async fn keep(
    dialer: Dialer,
    mut connected: Option<Connected>,
    mut ends: Ends,
    tried: oneshot::Sender<()>,
) {
    let mut attempts =
        Attempts { dialer: &dialer, events: ends.events.clone(), tried: Some(tried), said: None };
    let mut backoff = Backoff::default();
    loop {
        let next = match connected.take() {
            Some(connected) => connected,
            None => tokio::select! {
                next = attempts.until_connected(&mut backoff) => next,
                () = refuse(&mut ends) => return,
            },
        };
        let server = &dialer.targets[next.target].server;
        tracing::info!(%server, "connected");
        if ends.events.send(next.event()).is_err() {
            return;
        }
        attempts.tried = None;
        let traced = next.traces.is_some();
        let serving = async {
            match next.connection {
                Connection::Quic(quic) => quic.serve(&mut ends, traced).await,
                Connection::Grpc(grpc) => grpc.serve(&mut ends, traced).await,
            }
        };
        let lost = tokio::select! {
            lost = serving => lost,
            preferred = preferred(&dialer, next.target) => {
                connected = Some(preferred);
                Err("a server that goes before it is there again".to_owned())
            }
        };
        let Err(reason) = lost else { return };
        tracing::warn!(%server, reason, "connection lost");
        if ends.events.send(Event::Down).is_err() {
            return;
        }
    }
}

/// A connection to a server that goes before the one at `at`, once one is there; never, where there is
/// none.
async fn preferred(dialer: &Dialer, at: usize) -> Connected {
    if at == 0 {
        std::future::pending().await
    }
    loop {
        sleep(PREFERRED_AGAIN).await;
        if let Ok(connected) = dialer.connect_before(at).await {
            return connected;
        }
    }
}

/// Attempts to connect, and what is said of those that fail.
struct Attempts<'a> {
    dialer: &'a Dialer,
    events: mpsc::UnboundedSender<Event>,
    tried: Option<oneshot::Sender<()>>,
    /// The latest failure in the log, and when.
    said: Option<(Unconnected, Instant)>,
}

impl Attempts<'_> {
    async fn until_connected(&mut self, backoff: &mut Backoff) -> Connected {
        loop {
            // The very first attempt waits for nothing.
            if self.tried.is_none() {
                sleep(backoff.next_pause()).await;
            }
            if let Some(connected) = self.next().await {
                backoff.handle_welcome();
                self.said = None;
                return connected;
            }
        }
    }

    async fn next(&mut self) -> Option<Connected> {
        let error = match self.dialer.connect().await {
            Ok(connected) => return Some(connected),
            Err(error) => error,
        };
        let cause = error.cause();
        // The same again and again is worth a line a minute.
        let told = self.said.is_some_and(|(said, at)| said == cause && at.elapsed() < SAID_AGAIN);
        if !told {
            self.said = Some((cause, Instant::now()));
            match cause {
                Unconnected::Identity | Unconnected::NotServed => {
                    tracing::error!(%error, "no connection");
                }
                _ => tracing::warn!(%error, "no connection"),
            }
        }
        // The receiver may be gone already; then the link soon is, too.
        let _ = self.events.send(Event::Unconnected(cause));
        self.tried = None;
        None
    }
}

/// Answers what is still sent while there is no connection; ends when the link is dropped.
async fn refuse(ends: &mut Ends) {
    while let Some(command) = ends.commands.recv().await {
        if let Command::Send(outgoing) = command {
            let lost = Event::Lost(outgoing.number(), "no connection".into());
            // The receiver may be gone already; then the sender of commands soon is, too.
            let _ = ends.events.send(lost);
        }
    }
}
