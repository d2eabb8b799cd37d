//! Frames over gRPC: one bidirectional call per device. Frames share the call, so a lost packet
//! delays all that were sent after it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isthmus_proto::wire::tail_server::{Tail, TailServer};
use isthmus_proto::wire::{ToDevice, ToServer, to_device, to_server};
use tokio::net::TcpListener;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::accept::{Socket, SocketCall, Sockets, accept};
use crate::exchange::{Carrier, ExchangeConfig, FrameKey};
use crate::gate::{Gate, Open, Order, Orders, Place};
use crate::handshake::{HELLO_TIMEOUT, hello};
use crate::tls::{Certificates, TlsError};

/// HTTP/2 as TLS names it.
const HTTP_2: &[u8] = b"h2";
/// Calls that one TCP connection may carry.
const CALLS_PER_CONNECTION: u32 = 16;
/// Replies that wait for a device to read them.
const REPLIES: usize = 16;
/// Bytes that a message adds around a frame.
const MESSAGE_OVERHEAD: usize = 64;
const KEEPALIVE: Duration = Duration::from_secs(15);
/// Longest wait for a device to take a reply.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// Binds `address`.
pub(crate) async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    TcpListener::bind(address).await
}

/// Prepares TLS.
pub(crate) fn tls(certificates: &Arc<Certificates>) -> Result<TlsAcceptor, TlsError> {
    Ok(TlsAcceptor::from(Arc::new(certificates.server_config(HTTP_2)?)))
}

/// Serves until `closing` turns true and all calls have ended.
pub(crate) async fn serve(
    tls: TlsAcceptor,
    listener: TcpListener,
    gate: Arc<Gate>,
    mut closing: watch::Receiver<bool>,
) {
    let (reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(report(reporter, Arc::clone(&gate)));
    let ExchangeConfig { receiver, max_connections, max_connections_per_address, .. } = gate.config;
    let sockets = Sockets::new(gate.clock, max_connections, max_connections_per_address);
    let accepted = ReceiverStream::new(accept(listener, tls, Arc::new(sockets)));
    let limit = receiver.max_frame_bytes + MESSAGE_OVERHEAD;
    let service = Service { gate, closing: closing.clone() };
    let service = TailServer::new(service).max_decoding_message_size(limit);
    let closed = async move {
        // The sender is dropped with the server, which is as good as true.
        let _ = closing.wait_for(|closing| *closing).await;
    };
    let router = Server::builder()
        .max_concurrent_streams(CALLS_PER_CONNECTION)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .add_service(service)
        .add_service(health);
    if let Err(error) = router.serve_with_incoming_shutdown(accepted, closed).await {
        tracing::error!("gRPC stopped: {error}");
    }
}

/// Reports the server's health over `grpc.health.v1`, by service and as a whole.
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

#[tonic::async_trait]
impl Tail for Service {
    type InferStream = ReceiverStream<Result<ToDevice, Status>>;

    async fn infer(
        &self,
        request: Request<Streaming<ToServer>>,
    ) -> Result<Response<Self::InferStream>, Status> {
        let Some(socket) = request.extensions().get::<Arc<Socket>>() else {
            return Err(Status::internal("the connection is not known"));
        };
        let Some(place) = self.gate.enter(Carrier::Call, socket.address().into()) else {
            return Err(Status::resource_exhausted("too many connections"));
        };
        if self.gate.is_draining() {
            return Err(Status::unavailable("the server is shutting down"));
        }
        let (sender, receiver) = mpsc::channel(REPLIES);
        let call = Call { place: Arc::new(place), open: Arc::default(), sender };
        // As many as may be in flight, and as many whose reply has not left.
        let unsent = Arc::new(Semaphore::new(2 * self.gate.config.max_in_flight));
        let busy = socket.call();
        let messages = request.into_inner();
        tokio::spawn(call.converse(messages, self.closing.clone(), unsent, busy));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// A frame whose reply has not left, with its permit to be one of so many.
type Unsent = (Arc<Open>, OwnedSemaphorePermit);

#[derive(Clone)]
struct Call {
    place: Arc<Place>,
    open: Arc<Mutex<BTreeMap<FrameKey, Unsent>>>,
    sender: ToDeviceSender,
}

impl Call {
    async fn converse(
        self,
        mut messages: Streaming<ToServer>,
        mut closing: watch::Receiver<bool>,
        unsent: Arc<Semaphore>,
        _busy: SocketCall,
    ) {
        let (orders, ordered) = mpsc::unbounded_channel();
        let conversed = async {
            self.greet(&mut messages).await?;
            tokio::spawn(self.clone().carry_out(ordered));
            self.take_frames(&mut messages, &mut closing, &orders, &unsent).await
        };
        let conversed = tokio::select! {
            conversed = conversed => conversed,
            () = self.place.evicted() => {
                self.place.lose();
                Err(Status::resource_exhausted("other devices need the place"))
            }
        };
        if let Err(status) = conversed {
            tracing::info!("call ended: {}", status.message());
            let _ = timeout(REPLY_TIMEOUT, self.sender.send(Err(status))).await;
        }
    }

    async fn greet(&self, messages: &mut Streaming<ToServer>) -> Result<(), Status> {
        let refused = |error: String| Status::failed_precondition(error);
        let first = tokio::time::timeout(HELLO_TIMEOUT, messages.message())
            .await
            .map_err(|_| Status::deadline_exceeded("no hello came"))??;
        let hello = hello(first.unwrap_or_default())
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let welcome = self.place.greet(&hello).map_err(|error| refused(error.to_string()))?;
        self.send(to_device::Message::Welcome(welcome)).await;
        Ok(())
    }

    /// Takes frames until the device sends no more or the server closes.
    async fn take_frames(
        &self,
        messages: &mut Streaming<ToServer>,
        closing: &mut watch::Receiver<bool>,
        orders: &Orders,
        unsent: &Arc<Semaphore>,
    ) -> Result<(), Status> {
        let mut frames = 0;
        loop {
            // A device that takes no replies is not heard either.
            let message = async {
                let permit = Arc::clone(unsent).acquire_owned().await;
                (messages.message().await, permit)
            };
            let (message, permit) = tokio::select! {
                biased;
                _ = closing.wait_for(|closing| *closing) => return Ok(()),
                message = message => message,
            };
            let permit = permit.map_err(|_| Status::internal("the call has ended"))?;
            let message = match message {
                Ok(Some(ToServer { message: Some(message) })) => message,
                Ok(Some(ToServer { message: None })) => {
                    return Err(Status::invalid_argument("a message of an unknown kind"));
                }
                // The device sends no more, but still reads.
                Ok(None) => return Ok(()),
                Err(status) => {
                    self.place.lose();
                    return Err(status);
                }
            };
            match message {
                to_server::Message::Frame(bytes) => {
                    frames += 1;
                    let frame = Arc::new(self.place.open(frames, orders.clone()));
                    self.open().insert(frame.key, (Arc::clone(&frame), permit));
                    frame.handle_bytes(&bytes);
                    frame.handle_ended();
                }
                to_server::Message::Cancel(id) => self.place.cancel(id),
                to_server::Message::Hello(_) => {
                    return Err(Status::invalid_argument("a second hello"));
                }
            }
        }
    }

    /// Sends the replies of the call's frames, until there can be no more.
    async fn carry_out(self, mut ordered: mpsc::UnboundedReceiver<(FrameKey, Order)>) {
        let mut gone = false;
        loop {
            let ordered = tokio::select! {
                biased;
                ordered = ordered.recv() => ordered,
                () = self.sender.closed(), if !gone => {
                    gone = true;
                    self.place.lose();
                    continue;
                }
            };
            match ordered {
                // A frame came whole: there is nothing to stop.
                Some((_, Order::StopReading)) => {}
                Some((frame, Order::Reply(reply))) => {
                    let _open = self.open().remove(&frame);
                    self.send(to_device::Message::Reply(*reply)).await;
                }
                Some((frame, Order::LetGo)) => drop(self.open().remove(&frame)),
                None => return,
            }
        }
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<FrameKey, Unsent>> {
        // No code that may panic runs while it is held.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a message to the transport. A device that does not take it in time is lost.
    async fn send(&self, message: to_device::Message) {
        // Fails when the device is gone; the next read says so.
        let sending = self.sender.send(Ok(ToDevice { message: Some(message) }));
        if timeout(REPLY_TIMEOUT, sending).await.is_err() {
            self.place.give_up();
        }
    }
}
