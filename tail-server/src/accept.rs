//! Takes TCP connections for gRPC: no more than there are places for, each with a time limit for its
//! handshake, its first bytes and every silence.

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, futures::OwnedNotified, mpsc};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::exchange::{Origin, Places};
use crate::gate::Clock;

/// Longest wait for a TLS handshake, and then for the first bytes.
const BEGIN_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest silence: three of the pings that a device answers.
const SILENCE: Duration = Duration::from_secs(45);
/// Pause after a connection could not be accepted, usually for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Places for TCP connections.
pub(crate) struct Sockets {
    state: Mutex<State>,
    clock: Clock,
}

struct State {
    places: Places<u64>,
    next: u64,
    /// Tells a connection that it has to leave.
    leave: BTreeMap<u64, Arc<Notify>>,
}

impl Sockets {
    /// So many places, and so many for one [`Origin`].
    pub(crate) fn new(clock: Clock, most: usize, most_of_origin: usize) -> Self {
        let places = Places::new(most, most_of_origin);
        Sockets { state: Mutex::new(State { places, next: 0, leave: BTreeMap::new() }), clock }
    }

    fn take(self: &Arc<Self>, address: IpAddr) -> Option<Socket> {
        let (now, origin) = (self.clock.now(), Origin::from(address));
        let mut state = self.lock();
        let id = state.next;
        if let Some(evicted) = state.places.take(now, id, origin)?
            && let Some(leave) = state.leave.remove(&evicted)
        {
            leave.notify_one();
        }
        state.next += 1;
        let leave = Arc::new(Notify::new());
        state.leave.insert(id, Arc::clone(&leave));
        Some(Socket { sockets: Arc::clone(self), id, origin: address, leave })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that may panic runs while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A TCP connection's place, until it is dropped.
pub(crate) struct Socket {
    sockets: Arc<Sockets>,
    id: u64,
    origin: IpAddr,
    leave: Arc<Notify>,
}

impl Socket {
    /// Where the device is.
    pub(crate) fn address(&self) -> IpAddr {
        self.origin
    }

    /// A call begins; the connection is not idle until the call is dropped.
    pub(crate) fn call(self: &Arc<Self>) -> SocketCall {
        let mut state = self.sockets.lock();
        state.places.greet(self.id);
        state.places.begin(self.sockets.clock.now(), self.id);
        SocketCall(Arc::clone(self))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let mut state = self.sockets.lock();
        state.places.free(self.id);
        state.leave.remove(&self.id);
    }
}

/// A call on a TCP connection.
pub(crate) struct SocketCall(Arc<Socket>);

impl Drop for SocketCall {
    fn drop(&mut self) {
        let now = self.0.sockets.clock.now();
        self.0.sockets.lock().places.end(now, self.0.id);
    }
}

/// Accepts connections until nobody takes them from the receiver any more.
pub(crate) fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    sockets: Arc<Sockets>,
) -> mpsc::Receiver<io::Result<Accepted>> {
    let (sender, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = sender.closed() => return,
            };
            let Ok((stream, remote)) = accepted else {
                sleep(ACCEPT_PAUSE).await;
                continue;
            };
            // Closed at once where there is no place: a handshake would cost more than it tells.
            if let Some(socket) = sockets.take(remote.ip()) {
                tokio::spawn(secure(stream, remote, tls.clone(), socket, sender.clone()));
            }
        }
    });
    receiver
}

async fn secure(
    stream: TcpStream,
    remote: SocketAddr,
    tls: TlsAcceptor,
    socket: Socket,
    sender: mpsc::Sender<io::Result<Accepted>>,
) {
    // Without it replies wait for more to send; a socket that cannot has ended.
    let _ = stream.set_nodelay(true);
    let leave = Arc::clone(&socket.leave);
    let shaken = tokio::select! {
        shaken = timeout(BEGIN_TIMEOUT, tls.accept(stream)) => shaken,
        () = leave.notified() => return,
    };
    match shaken {
        Ok(Ok(stream)) => drop(sender.send(Ok(Accepted::new(stream, socket))).await),
        Ok(Err(error)) => tracing::debug!(%remote, "no TLS: {error}"),
        Err(_) => tracing::debug!(%remote, "no TLS within {BEGIN_TIMEOUT:?}"),
    }
}

/// A TCP connection with TLS. Reading fails when it has been silent for too long or has to leave.
pub(crate) struct Accepted {
    stream: TlsStream<TcpStream>,
    socket: Arc<Socket>,
    leave: Pin<Box<OwnedNotified>>,
    silence: Pin<Box<Sleep>>,
}

impl Accepted {
    fn new(stream: TlsStream<TcpStream>, socket: Socket) -> Self {
        let leave = Box::pin(Arc::clone(&socket.leave).notified_owned());
        let silence = Box::pin(sleep(BEGIN_TIMEOUT));
        Accepted { stream, socket: Arc::new(socket), leave, silence }
    }
}

impl Connected for Accepted {
    type ConnectInfo = Arc<Socket>;

    fn connect_info(&self) -> Arc<Socket> {
        Arc::clone(&self.socket)
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.leave.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        if let Poll::Ready(read) = Pin::new(&mut self.stream).poll_read(context, buffer) {
            self.silence.as_mut().reset(Instant::now() + SILENCE);
            return Poll::Ready(read);
        }
        ready!(self.silence.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
