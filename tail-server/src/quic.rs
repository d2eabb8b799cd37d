//! Frames over QUIC, each on a stream of its own.

use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::ALPN;
use isthmus_proto::wire::Reply;
use prost::Message;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    Connection, ConnectionError, Endpoint, EndpointConfig, Incoming, ReadError, RecvStream,
    SendStream, ServerConfig, TokioRuntime, TransportConfig, VarInt, WriteError,
};
use quinn_proto::HashedConnectionIdGenerator;
use ring::hmac;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::admission::HelloError;
use crate::code;
use crate::exchange::{Carrier, Exchange, ExchangeConfig, FrameKey};
use crate::gate::{Gate, Open, Order, Place};
use crate::handshake::Handshake;
use crate::tls::{Certificates, TlsError};

/// A connection on which nothing moves for so long is closed; a device that wants to keep it open
/// sends keep-alives.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// First guess, for a connection's first packets: mobile networks are slower than most, and the
/// specification's 333 ms would make a lost first packet cost a second.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Longest wait for the device to take and acknowledge a reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes of replies that a device has not acknowledged.
const SEND_WINDOW: u64 = 1 << 20;
const CHUNK_BYTES: usize = 64 << 10;

/// Binds `address` and offers [`ALPN`].
pub(crate) fn bind(
    address: SocketAddr,
    certificates: &Arc<Certificates>,
    gate: &Gate,
) -> Result<io::Result<Endpoint>, TlsError> {
    let crypto = QuicServerConfig::try_from(certificates.server_config(ALPN)?)
        .map_err(|error| TlsError::Unusable(error.to_string()))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    let ExchangeConfig { receiver, max_in_flight, .. } = gate.config;
    config.transport_config(Arc::new(transport_config(receiver.max_frame_bytes, max_in_flight)));
    let key = certificates.served().reset_key;
    let mut endpoint = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &key)));
    // Only packets to a name that this server may have given are answered with a reset.
    let [a, b, c, d, e, f, g, h, ..] = key;
    let names = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
    endpoint.cid_generator(move || Box::new(HashedConnectionIdGenerator::from_key(names)));
    let open = || {
        let socket = std::net::UdpSocket::bind(address)?;
        Endpoint::new(endpoint, Some(config), socket, Arc::new(TokioRuntime))
    };
    Ok(open())
}

/// Serves until the endpoint is closed.
pub(crate) async fn serve(endpoint: Endpoint, gate: Arc<Gate>) {
    while let Some(incoming) = endpoint.accept().await {
        // Under load, have devices prove their address before they take a place.
        if gate.ask(Exchange::is_crowded)
            && incoming.may_retry()
            && !incoming.remote_address_validated()
        {
            let _ = incoming.retry();
            continue;
        }
        let origin = incoming.remote_address().ip().into();
        let Some(place) = gate.enter(Carrier::Streams, origin) else {
            incoming.refuse();
            continue;
        };
        tokio::spawn(serve_connection(incoming, Arc::clone(&gate), place));
    }
}

/// How the server transports frames of at most `frame` bytes, of which a device may have `in_flight`
/// unanswered.
pub fn transport_config(frame: usize, in_flight: usize) -> TransportConfig {
    // A stream stays counted until its reply was acknowledged, and a frame too many is to be
    // refused with a reason rather than kept waiting; hence twice what may be in flight.
    let streams = VarInt::try_from(2 * in_flight + 16).unwrap_or(VarInt::MAX);
    let window = |bytes: usize| VarInt::try_from(bytes).unwrap_or(VarInt::MAX);
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(streams)
        .max_concurrent_uni_streams(0u32.into())
        .datagram_receive_buffer_size(None)
        .stream_receive_window(window(frame))
        .receive_window(window(frame.saturating_mul(4)))
        .send_window(SEND_WINDOW)
        .initial_rtt(INITIAL_RTT)
        .max_idle_timeout(IDLE_TIMEOUT.try_into().ok());
    transport
}

async fn serve_connection(incoming: Incoming, gate: Arc<Gate>, place: Place) {
    let remote = incoming.remote_address();
    let connection = match incoming.accept() {
        Ok(connecting) => tokio::select! {
            connection = connecting => connection,
            () = place.evicted() => return,
        },
        Err(error) => Err(error),
    };
    let connection = match connection {
        Ok(connection) => connection,
        Err(error) => return tracing::debug!(%remote, "no connection: {error}"),
    };
    tokio::select! {
        () = converse(&connection, &gate, &place) => {}
        () = place.evicted() => {
            tracing::info!(%remote, "evicted");
            connection.close(code::EVICTED.into(), b"other devices need the place");
        }
    }
}

async fn converse(connection: &Connection, gate: &Arc<Gate>, place: &Place) {
    let remote = connection.remote_address();
    match greet(connection, gate, place).await {
        Ok(_control) => {
            tracing::info!(%remote, "connected");
            while let Ok((send, recv)) = connection.accept_bi().await {
                gate.metrics.on_quic_rtt(connection.rtt());
                let (orders, ordered) = mpsc::unbounded_channel();
                let frame = place.open(send.id().index(), orders);
                tokio::spawn(serve_frame(frame, ordered, send, recv));
            }
            let reason = connection.close_reason().map(|reason| reason.to_string());
            tracing::info!(%remote, "disconnected: {}", reason.unwrap_or_default());
        }
        Err(why) => {
            tracing::info!(%remote, "refused: {why}");
            connection.close(code::BAD_HELLO.into(), why.to_string().as_bytes());
        }
    }
}

/// Why a connection was not greeted.
#[derive(Debug, thiserror::Error)]
enum NotGreeted {
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Write(#[from] WriteError),
}

/// Reads the hello and answers it, unless it takes too long; the control stream stays open as long as
/// the connection.
async fn greet(
    connection: &Connection,
    gate: &Gate,
    place: &Place,
) -> Result<(SendStream, RecvStream), NotGreeted> {
    let mut handshake = Handshake::new(gate.clock.now());
    let wait = handshake.poll_timeout().map_or(Duration::ZERO, |due| gate.clock.until(due));
    let greeted = async {
        let (mut send, mut recv) = connection.accept_bi().await?;
        while !handshake.is_welcomed() {
            match recv.read_chunk(CHUNK_BYTES, true).await? {
                Some(chunk) => {
                    let welcome =
                        handshake.handle_bytes(&chunk.bytes, |hello| place.greet(hello))?;
                    send.write_all(&welcome.unwrap_or_default()).await?;
                }
                None => handshake.handle_end()?,
            }
        }
        Ok((send, recv))
    };
    match timeout(wait, greeted).await {
        Ok(greeted) => greeted,
        Err(_) => Err(HelloError::Late.into()),
    }
}

/// What is read of a frame's stream.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    Frame,
    /// Only its end, so that closing the stream later needs no message.
    End,
    Nothing,
}

async fn serve_frame(
    frame: Open,
    mut ordered: mpsc::UnboundedReceiver<(FrameKey, Order)>,
    mut send: SendStream,
    mut recv: RecvStream,
) {
    let reply = {
        let mut stopped = pin!(send.stopped());
        let (mut reading, mut wanted) = (Reading::Frame, true);
        loop {
            let most = if reading == Reading::Frame { CHUNK_BYTES } else { 1 };
            tokio::select! {
                biased;
                Some((_, order)) = ordered.recv() => match order {
                    Order::StopReading => {
                        reading = Reading::Nothing;
                        // Fails when the device has sent everything, and then there is nothing to
                        // stop.
                        let _ = recv.stop(code::REFUSED.into());
                    }
                    Order::Reply(reply) => break Some(*reply),
                    Order::LetGo => break None,
                },
                // The device wants no reply, or is gone.
                _ = &mut stopped, if wanted => {
                    wanted = false;
                    frame.handle_unwanted();
                }
                read = recv.read_chunk(most, true), if reading != Reading::Nothing => match read {
                    Ok(Some(chunk)) if reading == Reading::Frame => {
                        if !frame.handle_bytes(&chunk.bytes) {
                            reading = Reading::End;
                        }
                    }
                    // Ended or reset: what came is what there is.
                    _ => {
                        reading = Reading::Nothing;
                        frame.handle_ended();
                    }
                },
            }
        }
    };
    match reply {
        Some(reply) => say(&mut send, &reply).await,
        None => drop(send.reset(code::DONE.into())),
    }
}

/// Sends a reply. The frame counts as accepted until it has arrived, so that a server that shuts
/// down does not close the connection on it.
async fn say(send: &mut SendStream, reply: &Reply) {
    let sent = async {
        // Fails when the device is gone or wants no reply.
        if send.write_all(&reply.encode_to_vec()).await.is_ok() && send.finish().is_ok() {
            let _ = send.stopped().await;
        }
    };
    if timeout(REPLY_TIMEOUT, sent).await.is_err() {
        // Fails when all of it was sent, and only the acknowledgement is missing.
        let _ = send.reset(code::DONE.into());
    }
}
