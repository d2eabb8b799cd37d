//! QUIC: one bidirectional stream per frame, the more urgent the sooner it has to be answered.
//!
//! What another driver of the same state machine needs to behave alike is public.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::framer::write_message;
use isthmus_proto::wire::{self, Hello, ToDevice, ToServer, Welcome, to_device, to_server};
use isthmus_proto::{ALPN, FrameId, Framer, MAX_CONTROL_BYTES, Timestamp};
use prost::Message;
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig};
use quinn::{
    ClientConfig, ConnectionError, Endpoint, IdleTimeout, ReadError, TransportConfig, VarInt,
    WriteError,
};
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::CryptoProvider;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use crate::link::{Command, Dialer, Event, Failure, Outgoing, whole};

/// Bytes handed to the transport and not yet acknowledged. What is written cannot be taken back
/// except by resetting its stream, so the window is small: a few frames.
const SEND_WINDOW: u64 = 64 << 10;
const KEEP_ALIVE: Duration = Duration::from_secs(2);
/// Silence after which the connection counts as lost.
const IDLE_TIMEOUT_MS: u32 = 8_000;
/// Resets a frame's stream, both ways, when its answer is no longer wanted.
pub const CANCELLED: VarInt = VarInt::from_u32(1);
const CLOSED: VarInt = VarInt::from_u32(0);

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
    let mut transport = TransportConfig::default();
    transport
        .send_window(SEND_WINDOW)
        .send_fairness(false)
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_TIMEOUT_MS))))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0));
    let mut config = ClientConfig::new(Arc::new(crypto));
    config.transport_config(Arc::new(transport));
    Ok(config)
}

/// A probe's priority: whatever is to be answered goes first.
pub const PROBE_PRIORITY: i32 = i32::MIN;

/// Priority of the stream of a frame that has to be answered by `answer_by`: earlier is more
/// urgent. It wraps once in 24 days, for a moment.
pub fn priority(answer_by: Timestamp) -> i32 {
    let millis = (answer_by.as_micros() / 1000 % i32::MAX as u64) as i32;
    i32::MAX - millis
}

/// A connection whose hello was welcomed.
pub(crate) struct QuicConnection {
    endpoint: Endpoint,
    connection: quinn::Connection,
    /// The first stream stays open for as long as the connection.
    _control: (quinn::SendStream, quinn::RecvStream),
    traced: bool,
}

impl QuicConnection {
    pub(crate) async fn connect(
        dialer: &Dialer,
        address: SocketAddr,
        hello: Hello,
    ) -> Result<(Self, Welcome, Duration), Failure> {
        let unspecified = match address {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let mut endpoint = Endpoint::client(unspecified)?;
        endpoint.set_default_client_config(config(dialer)?);
        let connection = endpoint
            .connect(address, &dialer.server.host)
            .map_err(Failure::unreachable)?
            .await
            .map_err(lost)?;
        if let Some(window) = dialer.send_window {
            connection.set_send_window(window);
        }
        let (mut send, mut recv) = connection.open_bi().await.map_err(lost)?;
        let mut bytes = Vec::new();
        let traced = hello.tracing.is_some();
        let hello = to_server::Message::Hello(hello);
        write_message(&mut bytes, &ToServer { message: Some(hello) });
        send.write_all(&bytes).await.map_err(Failure::unreachable)?;
        let welcome = read_welcome(&mut recv).await?;
        let round_trip = connection.rtt();
        let connected = QuicConnection { endpoint, connection, _control: (send, recv), traced };
        Ok((connected, welcome, round_trip))
    }

    /// Carries frames until the connection is lost (`Err`, with the reason) or the link dropped.
    pub(crate) async fn serve(
        self,
        commands: &mut mpsc::UnboundedReceiver<Command>,
        events: &mpsc::UnboundedSender<Event>,
    ) -> Result<(), String> {
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
                        Ok(Some(reply)) => Event::Reply(frame, reply),
                        Ok(None) => continue,
                        // The connection itself is gone, which is told once.
                        Err(_) if self.connection.close_reason().is_some() => continue,
                        Err(reason) => Event::Lost(frame, reason),
                    };
                    if events.send(event).is_err() {
                        break;
                    }
                }
                command = commands.recv() => match command {
                    Some(Command::Send(outgoing)) => {
                        let (cancel, cancelled) = oneshot::channel();
                        cancels.insert(outgoing.frame, cancel);
                        let connection = self.connection.clone();
                        let opened = self.traced.then(|| events.clone());
                        exchanges.spawn(async move {
                            let frame = outgoing.frame;
                            (frame, exchange(&connection, opened, outgoing, cancelled).await)
                        });
                    }
                    // Dropping the sender cancels, too; an exchange that has ended has no sender.
                    Some(Command::Cancel(frame)) => drop(cancels.remove(&frame)),
                    None => break,
                },
                lost = self.connection.closed() => return Err(whole(&lost)),
            }
        }
        self.connection.close(CLOSED, b"done");
        // Says goodbye, so that the server need not wait for a timeout.
        self.endpoint.wait_idle().await;
        Ok(())
    }
}

/// Sends a frame, tells `opened` of its place, and reads its reply; `None` if it was cancelled.
async fn exchange(
    connection: &quinn::Connection,
    opened: Option<mpsc::UnboundedSender<Event>>,
    outgoing: Outgoing,
    mut cancelled: oneshot::Receiver<()>,
) -> Result<Option<wire::Reply>, String> {
    let stream = tokio::select! {
        stream = connection.open_bi() => stream,
        _ = &mut cancelled => return Ok(None),
    };
    let (mut send, mut recv) = stream.map_err(|error| whole(&error))?;
    // A stream that has just been opened cannot have been closed.
    let _ = send.set_priority(outgoing.priority);
    let frame = outgoing.frame;
    if let Some(opened) = opened {
        // Fails when the link is dropped, which the commands tell as well.
        let _ = opened.send(Event::Sent(frame, send.id().index()));
    }
    let replied = tokio::select! {
        replied = write_and_read(&mut send, &mut recv, outgoing) => Some(replied),
        _ = &mut cancelled => None,
    };
    match replied {
        Some(Ok(reply)) if reply.frame == frame.0 & 0xffff => Ok(Some(reply)),
        Some(Ok(reply)) => Err(format!("reply to frame {} on the stream of another", reply.frame)),
        Some(Err(reason)) => {
            let _ = send.reset(CANCELLED);
            Err(reason)
        }
        None => {
            // Both fail only if the stream has ended, and then there is nothing to cancel.
            let _ = send.reset(CANCELLED);
            let _ = recv.stop(CANCELLED);
            Ok(None)
        }
    }
}

async fn write_and_read(
    send: &mut quinn::SendStream,
    recv: &mut quinn::RecvStream,
    Outgoing { bytes, layer_ends, .. }: Outgoing,
) -> Result<wire::Reply, String> {
    let mut start = 0;
    for end in layer_ends {
        match send.write_all(&bytes[start..end]).await {
            Ok(()) => start = end,
            // The server has seen enough; its reply says why.
            Err(WriteError::Stopped(_)) => break,
            Err(error) => return Err(whole(&error)),
        }
    }
    // Fails only on a stream that was stopped.
    let _ = send.finish();
    let reply = recv.read_to_end(MAX_CONTROL_BYTES).await.map_err(|error| whole(&error))?;
    wire::Reply::decode(reply.as_slice()).map_err(|error| format!("malformed reply: {error}"))
}

async fn read_welcome(recv: &mut quinn::RecvStream) -> Result<Welcome, Failure> {
    let mut framer = Framer::new(MAX_CONTROL_BYTES);
    let mut buffer = [0; 2048];
    loop {
        if let Some(message) = framer.next_message::<ToDevice>().map_err(Failure::protocol)? {
            return match message.message {
                Some(to_device::Message::Welcome(welcome)) => Ok(welcome),
                _ => Err(Failure::Protocol("its first message is no welcome".into())),
            };
        }
        match recv.read(&mut buffer).await.map_err(not_read)? {
            Some(length) => framer.push(&buffer[..length]),
            None => return Err(Failure::Protocol("it ended the stream without a welcome".into())),
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

fn config(dialer: &Dialer) -> Result<ClientConfig, Failure> {
    client_config(dialer.verifier.provider(), dialer.verifier.clone()).map_err(Failure::protocol)
}
