//! Frames over QUIC, each on a stream of its own.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::framer::write_message;
use isthmus_proto::wire::{Hello, ToDevice, ToServer, to_device, to_server};
use isthmus_proto::{ALPN, Framer, MAX_CONTROL_BYTES};
use prost::Message;
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    Connection, Endpoint, Incoming, RecvStream, SendStream, ServerConfig, TransportConfig, VarInt,
};
use tokio::time::timeout;

use crate::admission::Refused;
use crate::config::Transport;
use crate::gate::{Frame, Gate, Limits, Peer, Place};
use crate::tls::{Identity, TlsError};

/// Error codes with which the server closes a connection or stops a stream.
pub mod code {
    /// Nothing is wrong.
    pub const DONE: u32 = 0;
    /// The control stream is unintelligible, or names a protocol version not spoken here.
    pub const BAD_HELLO: u32 = 1;
    /// The server is shutting down.
    pub const DRAINING: u32 = 2;
    /// The rest of the frame is not wanted; the reply says why.
    pub const REFUSED: u32 = 3;
}

/// Longest wait for a hello on a new connection.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection on which nothing moves for so long is closed; a device that wants to keep it open
/// sends keep-alives.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// First guess, for a connection's first packets: mobile networks are slower than most, and the
/// specification's 333 ms would make a lost first packet cost a second.
const INITIAL_RTT: Duration = Duration::from_millis(100);
/// Longest wait for the device to acknowledge a reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);
const CHUNK_BYTES: usize = 64 << 10;

/// Binds `address` and offers [`ALPN`].
pub(crate) fn bind(
    address: SocketAddr,
    identity: &Identity,
    gate: &Gate,
) -> Result<io::Result<Endpoint>, TlsError> {
    let crypto = QuicServerConfig::try_from(identity.server_config(ALPN)?)
        .map_err(|error| TlsError::Unusable(error.to_string()))?;
    let mut config = ServerConfig::with_crypto(Arc::new(crypto));
    let Limits { receiver, max_in_flight, .. } = gate.limits;
    config.transport_config(Arc::new(transport_config(receiver.max_frame_bytes, max_in_flight)));
    Ok(Endpoint::server(config, address))
}

/// Serves until the endpoint is closed.
pub(crate) async fn serve(endpoint: Endpoint, gate: Arc<Gate>) {
    while let Some(incoming) = endpoint.accept().await {
        let Some(place) = gate.enter(Transport::Quic) else {
            incoming.refuse();
            continue;
        };
        // Under load, have devices prove their address before they take memory.
        if gate.is_crowded() && incoming.may_retry() && !incoming.remote_address_validated() {
            let _ = incoming.retry();
            continue;
        }
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
        .initial_rtt(INITIAL_RTT)
        .max_idle_timeout(IDLE_TIMEOUT.try_into().ok());
    transport
}

async fn serve_connection(incoming: Incoming, gate: Arc<Gate>, place: Place) {
    let remote = incoming.remote_address();
    let connection = match incoming.accept() {
        Ok(connecting) => connecting.await,
        Err(error) => Err(error),
    };
    let connection = match connection {
        Ok(connection) => connection,
        Err(error) => return tracing::debug!(%remote, "no connection: {error}"),
    };
    match timeout(HELLO_TIMEOUT, greet(&connection, &gate)).await {
        Ok(Ok((peer, _control))) => {
            tracing::info!(%remote, "connected");
            while let Ok((send, recv)) = connection.accept_bi().await {
                gate.metrics.on_quic_rtt(connection.rtt());
                let frame = Frame::open(&gate, &peer, send.id().index());
                tokio::spawn(serve_frame(frame, send, recv));
            }
            let reason = connection.close_reason().map(|reason| reason.to_string());
            tracing::info!(%remote, "disconnected: {}", reason.unwrap_or_default());
        }
        Ok(Err(why)) => {
            tracing::info!(%remote, "refused: {why}");
            connection.close(code::BAD_HELLO.into(), why.as_bytes());
        }
        Err(_) => connection.close(code::BAD_HELLO.into(), b"no hello came"),
    }
    drop(place);
}

/// Reads the hello and answers it; the control stream stays open as long as the connection.
async fn greet(
    connection: &Connection,
    gate: &Gate,
) -> Result<(Arc<Peer>, (SendStream, RecvStream)), String> {
    let (mut send, mut recv) = connection.accept_bi().await.map_err(|error| error.to_string())?;
    let hello = read_hello(&mut recv).await?;
    let (peer, welcome) = gate.greet(&hello).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    let message = ToDevice { message: Some(to_device::Message::Welcome(welcome)) };
    write_message(&mut bytes, &message);
    send.write_all(&bytes).await.map_err(|error| error.to_string())?;
    Ok((peer, (send, recv)))
}

async fn read_hello(recv: &mut RecvStream) -> Result<Hello, String> {
    let mut framer = Framer::new(MAX_CONTROL_BYTES);
    loop {
        if let Some(message) = framer.next_message().map_err(|error| error.to_string())? {
            return match message {
                ToServer { message: Some(to_server::Message::Hello(hello)) } => Ok(hello),
                _ => Err("the first message is no hello".into()),
            };
        }
        match recv.read_chunk(CHUNK_BYTES, true).await {
            Ok(Some(chunk)) => framer.push(&chunk.bytes),
            Ok(None) => return Err("the control stream ended before a hello".into()),
            Err(error) => return Err(error.to_string()),
        }
    }
}

async fn serve_frame(mut frame: Frame, mut send: SendStream, mut recv: RecvStream) {
    let received = match receive(&mut frame, &send, &mut recv).await {
        Ok(true) => frame.submit(),
        Ok(false) => return drop(send.reset(code::DONE.into())),
        Err(refused) => Err(refused),
    };
    let reply = match received {
        Ok(None) => frame.echo(),
        Ok(Some(ticket)) => frame.answer(ticket, unwanted(&send, &mut recv)).await,
        Err(refused) => {
            // Fails when the device has sent everything, and then there is nothing to stop.
            let _ = recv.stop(code::REFUSED.into());
            frame.refuse(refused)
        }
    };
    // Fails when the device is gone or wants no reply.
    if send.write_all(&reply.encode_to_vec()).await.is_ok() && send.finish().is_ok() {
        // The frame counts as accepted until its reply has arrived, so that a server that shuts
        // down does not close the connection on it.
        let _ = timeout(REPLY_TIMEOUT, send.stopped()).await;
    }
}

/// Reads until the frame is whole, its stream ends or its patience does; false when the device
/// wants no reply.
async fn receive(
    frame: &mut Frame,
    send: &SendStream,
    recv: &mut RecvStream,
) -> Result<bool, Refused> {
    let mut stopped = pin!(send.stopped());
    while !frame.is_whole() {
        let read = tokio::select! {
            biased;
            _ = &mut stopped => return Ok(false),
            read = recv.read_chunk(CHUNK_BYTES, true) => read,
            () = tokio::time::sleep(frame.patience()) => return Ok(true),
        };
        match read {
            Ok(Some(chunk)) => frame.handle_bytes(&chunk.bytes)?,
            // Ended or reset: what came is what there is.
            Ok(None) | Err(_) => return Ok(true),
        }
    }
    Ok(true)
}

/// Ends when the device wants no reply any more. Meanwhile it takes the end of the device's side
/// of the stream, so that closing the stream later needs no message.
async fn unwanted(send: &SendStream, recv: &mut RecvStream) {
    let rest = async {
        let _ = recv.read_chunk(1, true).await;
        pending::<()>().await;
    };
    tokio::select! {
        biased;
        () = rest => {}
        _ = send.stopped() => {}
    }
}
