//! QUIC: one bidirectional stream per frame, the more urgent the sooner it has to be answered.
//!
//! What another driver of the same state machine needs to behave alike is public.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::{ALPN, FrameId, MAX_CONTROL_BYTES};
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig};
use quinn::{
    ClientConfig, ConnectionError, Endpoint, IdleTimeout, ReadError, TransportConfig, VarInt,
    WriteError,
};
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::protocol::{
    Command, Ends, Event, Failure, IDLE_TIMEOUT, KEEP_ALIVE, Target, with_sources,
};
use crate::exchange::{self, Checked, Exchange, Handshake, Limits, Outgoing, ReplyError};

pub use crate::exchange::{PROBE_PRIORITY, priority};

/// Bytes handed to the transport and not yet acknowledged. What is written cannot be taken back
/// except by resetting its stream, so the window is small: a few frames.
const SEND_WINDOW: u64 = 64 << 10;
/// [`exchange::CANCELLED`] as QUIC writes it.
pub const CANCELLED: VarInt = VarInt::from_u32(exchange::CANCELLED);
const CLOSED: VarInt = VarInt::from_u32(exchange::CLOSED);

/// Why a connection cannot be configured: the cryptography lacks what QUIC needs.
#[derive(Debug, thiserror::Error)]
pub enum ClientConfigError {
    /// No TLS 1.3.
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    /// No cipher for the first packets.
    #[error(transparent)]
    Cipher(#[from] NoInitialCipherSuite),
}

/// How a device connects: TLS 1.3 without a certificate of its own, [`ALPN`], and a transport that
/// keeps alive and hands over little at a time. A fresh one for each connection resumes none.
pub fn client_config(
    provider: Arc<CryptoProvider>,
    verifier: Arc<dyn ServerCertVerifier>,
) -> Result<ClientConfig, ClientConfigError> {
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let crypto = QuicClientConfig::try_from(tls)?;
    let idle_ms = IDLE_TIMEOUT.as_millis() as u32;
    let mut transport = TransportConfig::default();
    transport
        .send_window(SEND_WINDOW)
        .send_fairness(false)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(idle_ms))))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0));
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// A connection whose hello was welcomed.
pub(crate) struct QuicConnection {
    endpoint: Endpoint,
    connection: quinn::Connection,
    /// The first stream stays open for as long as the connection.
    _control: (quinn::SendStream, quinn::RecvStream),
}

impl QuicConnection {
    /// A connection, what the server allows on it, and a round trip.
    pub(crate) async fn connect(
        target: &Target,
        address: SocketAddr,
        handshake: &mut Handshake,
    ) -> Result<(Self, Limits, Duration), Failure> {
        let unspecified = match address {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let verifier = Arc::clone(&target.verifier);
        let config = client_config(verifier.provider(), verifier).map_err(Failure::protocol)?;
        let mut endpoint = Endpoint::client(unspecified)?;
        endpoint.set_default_client_config(config);
        let connection = endpoint
            .connect(address, &target.server.host)
            .map_err(Failure::unreachable)?
            .await
            .map_err(lost)?;
        if let Some(window) = target.send_window {
            connection.set_send_window(window);
        }
        let (mut send, mut recv) = connection.open_bi().await.map_err(lost)?;
        send.write_all(&handshake.hello_bytes()).await.map_err(Failure::unreachable)?;
        let limits = read_welcome(handshake, &mut recv).await?;
        let round_trip = connection.rtt();
        let connected = QuicConnection { endpoint, connection, _control: (send, recv) };
        Ok((connected, limits, round_trip))
    }

    /// Carries frames until the connection is lost (`Err`, with the reason) or the link dropped.
    /// Ordinals are said only where frames are `traced`.
    pub(crate) async fn serve(self, ends: &mut Ends, traced: bool) -> Result<(), String> {
        let Ends { commands, events } = ends;
        let mut exchanges = JoinSet::new();
        let mut cancels: BTreeMap<FrameId, oneshot::Sender<()>> = BTreeMap::new();
        loop {
            tokio::select! {
                biased;
                Some(ended) = exchanges.join_next() => {
                    // An exchange never panics and is never aborted while the loop runs.
                    let Ok((frame, exchanged)) = ended else { continue };
                    cancels.remove(&frame);
                    let event = match exchanged {
                        Ok(checked) => Event::Reply(frame, checked),
                        Err(NoReply::Cancelled) => continue,
                        // The connection itself is gone, which is told once.
                        Err(_) if self.connection.close_reason().is_some() => continue,
                        Err(reason) => Event::Lost(frame, with_sources(&reason)),
                    };
                    if events.send(event).is_err() {
                        break;
                    }
                }
                command = commands.recv() => match command {
                    Some(Command::Send(outgoing)) => {
                        let frame = outgoing.number();
                        let (cancel, cancelled) = oneshot::channel();
                        cancels.insert(frame, cancel);
                        let connection = self.connection.clone();
                        let opened = traced.then(|| events.clone());
                        exchanges.spawn(async move {
                            (frame, exchange(&connection, opened, outgoing, cancelled).await)
                        });
                    }
                    // Dropping the sender cancels, too; an exchange that has ended has no sender.
                    Some(Command::Cancel(frame)) => drop(cancels.remove(&frame)),
                    None => break,
                },
                lost = self.connection.closed() => return Err(with_sources(&lost)),
            }
        }
        self.connection.close(CLOSED, b"done");
        // Says goodbye, so that the server need not wait for a timeout.
        self.endpoint.wait_idle().await;
        Ok(())
    }
}

/// Why an exchange gave no reply.
#[derive(Debug, thiserror::Error)]
enum NoReply {
    #[error("cancelled")]
    Cancelled,
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Reply(#[from] ReplyError),
}

/// Sends a frame, tells `opened` of its ordinal, and reads its reply, unless it is `cancelled`.
async fn exchange(
    connection: &quinn::Connection,
    opened: Option<mpsc::UnboundedSender<Event>>,
    outgoing: Outgoing,
    mut cancelled: oneshot::Receiver<()>,
) -> Result<Checked, NoReply> {
    let (mut send, mut recv) = tokio::select! {
        stream = connection.open_bi() => stream?,
        _ = &mut cancelled => return Err(NoReply::Cancelled),
    };
    // A stream that has just been opened cannot have been closed.
    let _ = send.set_priority(outgoing.priority());
    if let Some(opened) = opened {
        // Fails when the link is dropped, which the commands tell as well.
        let _ = opened.send(Event::Sent(outgoing.number(), send.id().index()));
    }
    let replied = tokio::select! {
        replied = drive(Exchange::new(outgoing), &mut send, &mut recv) => replied,
        _ = &mut cancelled => Err(NoReply::Cancelled),
    };
    if replied.is_err() {
        // Each fails only where its side of the stream has ended.
        let _ = send.reset(CANCELLED);
        let _ = recv.stop(CANCELLED);
    }
    replied
}

/// Does on a stream what its exchange says.
async fn drive(
    mut exchange: Exchange,
    send: &mut quinn::SendStream,
    recv: &mut quinn::RecvStream,
) -> Result<Checked, NoReply> {
    while let Some(bytes) = exchange.poll_write() {
        match send.write(bytes).await {
            Ok(written) => exchange.handle_written(written),
            Err(WriteError::Stopped(_)) => exchange.handle_stopped(),
            Err(error) => return Err(error.into()),
        }
    }
    // Fails only on a stream that was stopped.
    let _ = send.finish();
    loop {
        match recv.read_chunk(MAX_CONTROL_BYTES, true).await {
            Ok(Some(chunk)) => exchange.handle_reply_bytes(&chunk.bytes),
            Ok(None) => exchange.handle_reply_end(),
            Err(ReadError::Reset(_)) => exchange.handle_reply_reset(),
            Err(error) => return Err(error.into()),
        }
        if let Some(outcome) = exchange.poll_outcome() {
            return Ok(outcome?);
        }
    }
}

async fn read_welcome(
    handshake: &mut Handshake,
    recv: &mut quinn::RecvStream,
) -> Result<Limits, Failure> {
    loop {
        match recv.read_chunk(MAX_CONTROL_BYTES, true).await.map_err(not_read)? {
            Some(chunk) => {
                if let Some(limits) = handshake.handle_bytes(&chunk.bytes)? {
                    return Ok(limits);
                }
            }
            None => handshake.handle_end()?,
        }
    }
}

fn not_read(error: ReadError) -> Failure {
    match error {
        ReadError::ConnectionLost(error) => lost(error),
        error => Failure::protocol(error),
    }
}

/// Tells silence from a server that answered and would not have it.
fn lost(error: ConnectionError) -> Failure {
    match error {
        ConnectionError::VersionMismatch
        | ConnectionError::TransportError(_)
        | ConnectionError::ConnectionClosed(_)
        | ConnectionError::ApplicationClosed(_) => Failure::protocol(error),
        ConnectionError::Reset
        | ConnectionError::TimedOut
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => Failure::unreachable(error),
    }
}
