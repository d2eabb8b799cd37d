//! Frames over gRPC: one bidirectional call per device. Frames share the call, so a lost packet
//! delays all that were sent after it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isthmus_proto::wire::tail_server::{Tail, TailServer};
use isthmus_proto::wire::{Reason, ToDevice, ToServer, to_device, to_server};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity as TonicIdentity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::admission::Refused;
use crate::config::Transport;
use crate::gate::{Frame, Gate, Peer, Place};
use crate::tls::{Identity, TlsError};
use crate::worker::Ticket;

/// Longest wait for a hello on a new call, and for a TLS handshake.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Calls that one TCP connection may carry.
const CALLS_PER_CONNECTION: u32 = 16;
/// Replies that wait for a device to read them.
const REPLIES: usize = 16;
/// Bytes that a message adds around a frame.
const MESSAGE_OVERHEAD: usize = 64;
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Binds `address`; must run within the runtime.
pub(crate) fn bind(address: SocketAddr) -> std::io::Result<TcpIncoming> {
    Ok(TcpIncoming::bind(address)?.with_nodelay(Some(true)))
}

/// Prepares TLS.
pub(crate) fn server(identity: &Identity) -> Result<Server, TlsError> {
    let pem = TonicIdentity::from_pem(&identity.pem, &identity.pem);
    let tls = ServerTlsConfig::new().identity(pem).timeout(HELLO_TIMEOUT);
    Server::builder()
        .max_concurrent_streams(CALLS_PER_CONNECTION)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .tls_config(tls)
        .map_err(|error| TlsError::Unusable(error.to_string()))
}

/// Serves until `closing` turns true and all calls have ended.
pub(crate) async fn serve(
    mut server: Server,
    incoming: TcpIncoming,
    gate: Arc<Gate>,
    mut closing: watch::Receiver<bool>,
) {
    let (reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(report(reporter, Arc::clone(&gate)));
    let limit = gate.limits.receiver.max_frame_bytes + MESSAGE_OVERHEAD;
    let service = Service { gate, closing: closing.clone() };
    let service = TailServer::new(service).max_decoding_message_size(limit);
    let closed = async move {
        // The sender is dropped with the server, which is as good as true.
        let _ = closing.wait_for(|closing| *closing).await;
    };
    let router = server.add_service(service).add_service(health);
    if let Err(error) = router.serve_with_incoming_shutdown(incoming, closed).await {
        tracing::error!("gRPC stopped: {error}");
    }
}

/// Tells `grpc.health.v1` of the server, named or as a whole.
async fn report(reporter: HealthReporter, gate: Arc<Gate>) {
    reporter.set_serving::<TailServer<Service>>().await;
    gate.draining().await;
    reporter.set_not_serving::<TailServer<Service>>().await;
    reporter.set_service_status("", ServingStatus::NotServing).await;
}

struct Service {
    gate: Arc<Gate>,
    closing: watch::Receiver<bool>,
}

type ToDeviceSender = mpsc::Sender<Result<ToDevice, Status>>;
type Cancels = BTreeMap<u64, oneshot::Sender<()>>;

#[tonic::async_trait]
impl Tail for Service {
    type InferStream = ReceiverStream<Result<ToDevice, Status>>;

    async fn infer(
        &self,
        request: Request<Streaming<ToServer>>,
    ) -> Result<Response<Self::InferStream>, Status> {
        let Some(place) = self.gate.enter(Transport::Grpc) else {
            return Err(Status::resource_exhausted("too many connections"));
        };
        if self.gate.is_draining() {
            return Err(Status::unavailable("the server is shutting down"));
        }
        let (sender, receiver) = mpsc::channel(REPLIES);
        let call = Call {
            gate: Arc::clone(&self.gate),
            closing: self.closing.clone(),
            sender,
            cancels: Arc::default(),
            _place: place,
        };
        tokio::spawn(call.converse(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

struct Call {
    gate: Arc<Gate>,
    closing: watch::Receiver<bool>,
    sender: ToDeviceSender,
    /// Unanswered frames by id; dropping the sender, or using it, cancels the frame.
    cancels: Arc<Mutex<Cancels>>,
    _place: Place,
}

impl Call {
    async fn converse(mut self, mut messages: Streaming<ToServer>) {
        if let Err(status) = self.converse_until_end(&mut messages).await {
            tracing::info!("call ended: {}", status.message());
            let _ = self.sender.send(Err(status)).await;
        }
    }

    async fn converse_until_end(
        &mut self,
        messages: &mut Streaming<ToServer>,
    ) -> Result<(), Status> {
        let peer = tokio::time::timeout(HELLO_TIMEOUT, self.greet(messages))
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let mut frames = 0;
        loop {
            let message = tokio::select! {
                biased;
                message = messages.message() => message,
                _ = self.closing.wait_for(|closing| *closing) => return Ok(()),
            };
            let message = match message {
                Ok(Some(ToServer { message: Some(message) })) => message,
                Ok(Some(ToServer { message: None })) => {
                    return Err(Status::invalid_argument("a message of an unknown kind"));
                }
                // The device sends no more, but still reads.
                Ok(None) => return Ok(()),
                Err(status) => {
                    self.cancels().clear();
                    return Err(status);
                }
            };
            match message {
                to_server::Message::Frame(bytes) => {
                    frames += 1;
                    self.handle_frame(&peer, frames, &bytes).await;
                }
                to_server::Message::Cancel(id) => self.cancel(id),
                to_server::Message::Hello(_) => {
                    return Err(Status::invalid_argument("a second hello"));
                }
            }
        }
    }

    async fn greet(&self, messages: &mut Streaming<ToServer>) -> Result<Arc<Peer>, Status> {
        let Some(ToServer { message: Some(to_server::Message::Hello(hello)) }) =
            messages.message().await?
        else {
            return Err(Status::invalid_argument("the first message is no hello"));
        };
        let (peer, welcome) = self
            .gate
            .greet(&hello)
            .map_err(|error| Status::failed_precondition(error.to_string()))?;
        self.send(to_device::Message::Welcome(welcome)).await;
        Ok(peer)
    }

    async fn handle_frame(&self, peer: &Arc<Peer>, ordinal: u64, bytes: &[u8]) {
        let mut frame = Frame::open(&self.gate, peer, ordinal);
        let submit = |frame: &mut Frame| {
            frame.handle_bytes(bytes)?;
            match self.cancels().contains_key(&frame.id()) {
                true => Err(Refused::new(Reason::Malformed, "another frame has this id")),
                false => frame.submit(),
            }
        };
        match submit(&mut frame) {
            Ok(Some(ticket)) => self.spawn_answer(frame, ticket),
            Ok(None) => self.send(to_device::Message::Reply(frame.echo())).await,
            Err(refused) => {
                let reply = frame.refuse(refused);
                self.send(to_device::Message::Reply(reply)).await;
            }
        }
    }

    fn spawn_answer(&self, mut frame: Frame, ticket: Ticket) {
        let id = frame.id();
        let (cancel, cancelled) = oneshot::channel();
        self.cancels().insert(id, cancel);
        let (sender, cancels) = (self.sender.clone(), Arc::clone(&self.cancels));
        tokio::spawn(async move {
            let gone = async {
                tokio::select! {
                    _ = cancelled => {}
                    () = sender.closed() => {}
                }
            };
            let reply = frame.answer(ticket, gone).await;
            cancels.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
            let _ = sender.send(Ok(to_device(to_device::Message::Reply(reply)))).await;
        });
    }

    fn cancel(&self, id: u64) {
        if let Some(cancel) = self.cancels().remove(&id) {
            // Fails when the answer is already on its way.
            let _ = cancel.send(());
        }
    }

    fn cancels(&self) -> MutexGuard<'_, Cancels> {
        self.cancels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn send(&self, message: to_device::Message) {
        // Fails when the device is gone; the next read says so.
        let _ = self.sender.send(Ok(to_device(message))).await;
    }
}

fn to_device(message: to_device::Message) -> ToDevice {
    ToDevice { message: Some(message) }
}
