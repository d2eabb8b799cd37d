//! Streams in and out.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use isthmus_proto::DataSize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use super::driver::{Driver, Parcel, Piece};
use super::toxic::Stream;
use super::{FlowCounts, Task, header};

/// Bytes of a TCP header with timestamps.
const TCP_HEADER: usize = 32;
/// Bytes that one segment carries, so that it fills a packet of 1,500 over IPv4.
const SEGMENT: usize = 1_448;
/// Bytes of one direction between the two sockets: what a receive window is elsewhere.
const WINDOW: usize = 4 << 20;
const READ: usize = 64 << 10;

/// What a listener hands to the link.
#[derive(Clone)]
pub(super) struct TcpProxy {
    pub(super) upstream: SocketAddr,
    pub(super) driver: Arc<Driver>,
    pub(super) counts: Arc<FlowCounts>,
}

impl TcpProxy {
    /// Accepts connections until the task is dropped, and all connections with it.
    pub(super) fn run(&self, listener: TcpListener) -> Task {
        let proxy = self.clone();
        Task::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => match accepted {
                        Ok((client, address)) => {
                            proxy.counts.opened.fetch_add(1, Ordering::Relaxed);
                            connections.spawn(proxy.clone().connection(client, address));
                        }
                        // Too many open files, for one: it passes.
                        Err(error) => {
                            proxy.counts.refused.fetch_add(1, Ordering::Relaxed);
                            tracing::warn!(%error, "a connection was not accepted");
                            tokio::time::sleep(Duration::from_millis(10)).await;
                        }
                    },
                    Some(_) = connections.join_next() => {}
                }
            }
        })
    }

    async fn connection(self, client: TcpStream, address: SocketAddr) {
        if let Err(error) = self.relay(client).await {
            tracing::info!(client = %address, upstream = %self.upstream, %error, "closed");
        }
    }

    /// Relays one connection until both directions have ended, or either fails.
    async fn relay(&self, client: TcpStream) -> io::Result<()> {
        let connection = Connection { driver: Arc::clone(&self.driver), stream: next_stream() };
        let (up, mut from_up) = mpsc::unbounded_channel();
        let (down, mut from_down) = mpsc::unbounded_channel();
        // The handshake takes its round trip on the link, too.
        let headers = header(self.upstream) + TCP_HEADER;
        connection.send(Stream::Upstream, headers, Piece::Start, &up);
        from_up.recv().await;
        let upstream = TcpStream::connect(self.upstream).await?;
        connection.send(Stream::Downstream, headers, Piece::Start, &down);
        from_down.recv().await;

        client.set_nodelay(true)?;
        upstream.set_nodelay(true)?;
        let (client_read, client_write) = client.into_split();
        let (upstream_read, upstream_write) = upstream.into_split();
        tokio::try_join!(
            connection.read(client_read, Stream::Upstream, headers, up),
            write(from_up, upstream_write),
            connection.read(upstream_read, Stream::Downstream, headers, down),
            write(from_down, client_write),
        )?;
        Ok(())
    }
}

/// One connection's use of the link, which forgets it at the end.
struct Connection {
    driver: Arc<Driver>,
    stream: u64,
}

impl Connection {
    async fn read(
        &self,
        mut socket: OwnedReadHalf,
        direction: Stream,
        headers: usize,
        writer: mpsc::UnboundedSender<Piece>,
    ) -> io::Result<()> {
        let room = Arc::new(Semaphore::new(WINDOW));
        let mut buffer = BytesMut::with_capacity(READ);
        while socket.read_buf(&mut buffer).await? > 0 {
            while !buffer.is_empty() {
                let bytes: Bytes = buffer.split_to(SEGMENT.min(buffer.len())).freeze();
                let length = bytes.len();
                let permits = Arc::clone(&room).acquire_many_owned(length as u32).await;
                let room = Arc::new(permits.map_err(io::Error::other)?);
                let piece = Piece::Bytes { bytes, _room: room };
                self.send(direction, headers + length, piece, &writer);
            }
            buffer.reserve(READ);
        }
        self.send(direction, headers, Piece::End, &writer);
        Ok(())
    }

    fn send(
        &self,
        direction: Stream,
        size: usize,
        piece: Piece,
        writer: &mpsc::UnboundedSender<Piece>,
    ) {
        let parcel = Parcel::Piece { piece, writer: writer.clone() };
        self.driver.segment(direction, self.stream, DataSize::from_bytes(size as u64), parcel);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.forget(self.stream);
    }
}

/// Writes what arrives until the stream ends.
async fn write(
    mut pieces: mpsc::UnboundedReceiver<Piece>,
    mut socket: OwnedWriteHalf,
) -> io::Result<()> {
    while let Some(piece) = pieces.recv().await {
        match piece {
            Piece::Start => {}
            Piece::Bytes { bytes, .. } => socket.write_all(&bytes).await?,
            Piece::End => break,
        }
    }
    socket.shutdown().await
}

fn next_stream() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
