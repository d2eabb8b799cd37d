//! gRPC: one stream of messages each way, where QUIC's packets cannot pass.
//!
//! Frames share one TCP connection, so a large or lost one delays those behind it.

use std::net::SocketAddr;

use isthmus_proto::MAX_REPLY_BYTES;
use isthmus_proto::wire::tail_client::TailClient;
use isthmus_proto::wire::{ToDevice, ToServer};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;
use tonic::transport::{ClientTlsConfig, Endpoint};

use super::protocol::{
    Command, Ends, Event, Failure, IDLE_TIMEOUT, KEEP_ALIVE, Target, with_sources,
};
use crate::exchange::{Handshake, Limits, MessageError, Messages, WelcomeError};

/// A connection whose hello was welcomed.
pub(crate) struct GrpcConnection {
    outbound: mpsc::UnboundedSender<ToServer>,
    inbound: Streaming<ToDevice>,
}

impl GrpcConnection {
    pub(crate) async fn connect(
        target: &Target,
        address: SocketAddr,
        handshake: &mut Handshake,
    ) -> Result<(Self, Limits), Failure> {
        let tls = ClientTlsConfig::new().domain_name(&target.server.host);
        let channel = Endpoint::from_shared(format!("https://{address}"))
            .map_err(Failure::unreachable)?
            .connect_timeout(target.timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(IDLE_TIMEOUT - KEEP_ALIVE)
            .keep_alive_while_idle(true)
            .tls_config_with_verifier(tls, target.verifier.clone())
            .map_err(Failure::unreachable)?
            .connect()
            .await
            .map_err(Failure::unreachable)?;
        let (outbound, messages) = mpsc::unbounded_channel();
        // The server may wait for the hello before it opens its own stream.
        let _ = outbound.send(handshake.hello());
        let mut client = TailClient::new(channel).max_decoding_message_size(MAX_REPLY_BYTES);
        let mut inbound = client
            .infer(UnboundedReceiverStream::new(messages))
            .await
            .map_err(refused)?
            .into_inner();
        let first = inbound.message().await.map_err(refused)?;
        let limits = handshake.handle_message(first.ok_or(WelcomeError::Ended)?)?;
        Ok((GrpcConnection { outbound, inbound }, limits))
    }

    /// Carries frames until the connection is lost (`Err`, with the reason) or the link dropped.
    /// Ordinals are said only where frames are `traced`.
    pub(crate) async fn serve(mut self, ends: &mut Ends, traced: bool) -> Result<(), String> {
        let Ends { commands, events } = ends;
        let mut messages = Messages::default();
        loop {
            tokio::select! {
                biased;
                message = self.inbound.message() => {
                    let message = match message {
                        Ok(Some(message)) => message,
                        Ok(None) => return Err("the server ended the stream".into()),
                        Err(status) => return Err(with_sources(&status)),
                    };
                    let event = match messages.handle_message(message) {
                        Ok(Some((frame, outcome))) => Event::of_outcome(frame, outcome),
                        Ok(None) => continue,
                        Err(error @ MessageError::UnknownFrame(_)) => {
                            tracing::warn!(%error, "ignored");
                            continue;
                        }
                        Err(error @ MessageError::NotReply) => return Err(error.to_string()),
                    };
                    if events.send(event).is_err() {
                        return Ok(());
                    }
                }
                command = commands.recv() => {
                    let message = match command {
                        Some(Command::Send(outgoing)) => {
                            let frame = outgoing.number();
                            let (message, ordinal) = messages.send(outgoing);
                            if traced {
                                // Fails when the link is dropped, which the commands tell as well.
                                let _ = events.send(Event::Sent(frame, ordinal));
                            }
                            Some(message)
                        }
                        Some(Command::Cancel(frame)) => messages.cancel(frame),
                        None => return Ok(()),
                    };
                    if message.is_some_and(|message| self.outbound.send(message).is_err()) {
                        return Err("the outgoing stream has ended".into());
                    }
                }
            }
        }
    }
}

fn refused(status: tonic::Status) -> Failure {
    match status.code() {
        tonic::Code::Unavailable | tonic::Code::DeadlineExceeded => Failure::unreachable(status),
        _ => Failure::protocol(status),
    }
}
