//! gRPC: one stream of the same messages each way, where QUIC's cannot pass.
//!
//! Frames share one TCP connection, so a large or lost one delays those behind it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use isthmus_proto::wire::tail_client::TailClient;
use isthmus_proto::wire::{Hello, ToDevice, ToServer, Welcome, to_device, to_server};
use isthmus_proto::{FrameId, MAX_CONTROL_BYTES};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::Streaming;
use tonic::transport::{ClientTlsConfig, Endpoint};

use crate::link::{Command, Dialer, Event, Failure, whole};

const KEEP_ALIVE: Duration = Duration::from_secs(2);
const KEEP_ALIVE_TIMEOUT: Duration = Duration::from_secs(6);

/// A connection whose hello was welcomed.
pub(crate) struct GrpcConnection {
    outbound: mpsc::UnboundedSender<ToServer>,
    inbound: Streaming<ToDevice>,
    traced: bool,
}

impl GrpcConnection {
    pub(crate) async fn connect(
        dialer: &Dialer,
        address: SocketAddr,
        hello: Hello,
    ) -> Result<(Self, Welcome), Failure> {
        let tls = ClientTlsConfig::new().domain_name(&dialer.server.host);
        let channel = Endpoint::from_shared(format!("https://{address}"))
            .map_err(Failure::unreachable)?
            .connect_timeout(dialer.timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .tls_config_with_verifier(tls, dialer.verifier.clone())
            .map_err(Failure::unreachable)?
            .connect()
            .await
            .map_err(Failure::unreachable)?;
        let (outbound, messages) = mpsc::unbounded_channel();
        // The server may wait for the hello before it opens its own stream.
        let traced = hello.tracing.is_some();
        let hello = to_server::Message::Hello(hello);
        let _ = outbound.send(ToServer { message: Some(hello) });
        let mut client = TailClient::new(channel).max_decoding_message_size(MAX_CONTROL_BYTES);
        let mut inbound = client
            .infer(UnboundedReceiverStream::new(messages))
            .await
            .map_err(refused)?
            .into_inner();
        match inbound.message().await.map_err(refused)?.and_then(|first| first.message) {
            Some(to_device::Message::Welcome(welcome)) => {
                Ok((GrpcConnection { outbound, inbound, traced }, welcome))
            }
            _ => Err(Failure::Protocol("its first message is no welcome".into())),
        }
    }

    /// Carries frames until the connection is lost (`Err`, with the reason) or the link dropped.
    pub(crate) async fn serve(
        mut self,
        commands: &mut mpsc::UnboundedReceiver<Command>,
        events: &mpsc::UnboundedSender<Event>,
    ) -> Result<(), String> {
        // Wire ids of frames that are not answered yet; 16 bits name them without doubt, because
        // far fewer are unanswered at a time. Cancelled ones stay, so that a reply that was on its
        // way is known for a late one; without a reply they stay until their id is used again.
        let mut unanswered: BTreeMap<u64, FrameId> = BTreeMap::new();
        let mut sent = 0;
        loop {
            tokio::select! {
                biased;
                message = self.inbound.message() => {
                    let message = match message {
                        Ok(Some(message)) => message.message,
                        Ok(None) => return Err("the server ended the stream".into()),
                        Err(status) => return Err(whole(&status)),
                    };
                    let Some(to_device::Message::Reply(reply)) = message else {
                        return Err("the server sent a message that has no place here".into());
                    };
                    let Some(frame) = unanswered.remove(&reply.frame) else {
                        tracing::warn!(frame = reply.frame, "a reply to a frame that was not sent");
                        continue;
                    };
                    if events.send(Event::Reply(frame, reply)).is_err() {
                        return Ok(());
                    }
                }
                command = commands.recv() => {
                    let message = match command {
                        Some(Command::Send(outgoing)) => {
                            unanswered.insert(wire_id(outgoing.frame), outgoing.frame);
                            sent += 1;
                            if self.traced {
                                // Fails when the link is dropped, which the commands tell as well.
                                let _ = events.send(Event::Sent(outgoing.frame, sent));
                            }
                            to_server::Message::Frame(outgoing.bytes)
                        }
                        Some(Command::Cancel(frame)) => {
                            to_server::Message::Cancel(wire_id(frame))
                        }
                        None => return Ok(()),
                    };
                    if self.outbound.send(ToServer { message: Some(message) }).is_err() {
                        return Err("the outgoing stream has ended".into());
                    }
                }
            }
        }
    }
}

fn wire_id(frame: FrameId) -> u64 {
    frame.0 & 0xffff
}

fn refused(status: tonic::Status) -> Failure {
    match status.code() {
        tonic::Code::Unavailable | tonic::Code::DeadlineExceeded => Failure::unreachable(status),
        _ => Failure::protocol(status),
    }
}
