//! A UDP relay that puts a [`Link`] in each direction between real sockets, in real time.

use std::future::pending;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use isthmus_proto::{DataSize, Timestamp};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;

use crate::link::{Delivered, Link, LinkConfig, LinkCounters};

/// Bytes of IPv4 and UDP headers, which a link carries too.
const HEADERS: usize = 28;
const LARGEST_DATAGRAM: usize = 65_535;

/// A running relay between one client and one server; it stops when dropped.
pub struct Relay {
    address: SocketAddr,
    counters: Arc<Mutex<Counters>>,
    task: JoinHandle<()>,
}

/// What became of the datagrams of both directions.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// From the client to the server.
    pub uplink: LinkCounters,
    /// From the server to the client.
    pub downlink: LinkCounters,
}

impl Relay {
    /// Listens on a free port of the loopback interface and relays to `server`. The client is
    /// whoever sent last. What is random in the links hangs from `seed`.
    pub async fn start(
        server: SocketAddr,
        uplink: LinkConfig,
        downlink: LinkConfig,
        seed: u64,
    ) -> io::Result<Relay> {
        let front = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let back = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        back.connect(server).await?;
        let address = front.local_addr()?;
        let counters = Arc::new(Mutex::new(Counters::default()));
        let links = (Link::new(uplink, seed), Link::new(downlink, !seed));
        let task = tokio::spawn(relay(front, back, links, Arc::clone(&counters)));
        Ok(Relay { address, counters, task })
    }

    /// Where the client finds the server.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What became of the datagrams so far.
    pub fn counters(&self) -> Counters {
        *self.counters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(
    front: UdpSocket,
    back: UdpSocket,
    (mut uplink, mut downlink): (Link<Vec<u8>>, Link<Vec<u8>>),
    counters: Arc<Mutex<Counters>>,
) {
    let zero = Instant::now();
    let now = || Timestamp::ZERO + zero.elapsed();
    let mut client = None;
    let (mut up, mut down) = (vec![0; LARGEST_DATAGRAM], vec![0; LARGEST_DATAGRAM]);
    loop {
        let next = [uplink.poll_timeout(), downlink.poll_timeout()].into_iter().flatten().min();
        let timer = async {
            match next {
                Some(next) => tokio::time::sleep(next.saturating_since(now())).await,
                None => pending().await,
            }
        };
        tokio::select! {
            received = front.recv_from(&mut up) => match received {
                Ok((length, from)) => {
                    client = Some(from);
                    uplink.handle_packet(now(), size(length), up[..length].to_vec());
                }
                Err(_) => breathe().await,
            },
            received = back.recv(&mut down) => match received {
                Ok(length) => downlink.handle_packet(now(), size(length), down[..length].to_vec()),
                Err(_) => breathe().await,
            },
            () = timer => {}
        }
        let now = now();
        while let Some(datagram) = uplink.poll_delivered(now) {
            // A datagram that the system refuses is lost, as on any network.
            let _ = back.send(&content(datagram)).await;
        }
        while let Some(datagram) = downlink.poll_delivered(now) {
            if let Some(client) = client {
                let _ = front.send_to(&content(datagram), client).await;
            }
        }
        while uplink.poll_dropped().or_else(|| downlink.poll_dropped()).is_some() {}
        let both = Counters { uplink: uplink.counters(), downlink: downlink.counters() };
        *counters.lock().unwrap_or_else(PoisonError::into_inner) = both;
    }
}

/// Loopback reports a closed peer as an error on the socket; it must not become a busy loop.
async fn breathe() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

/// A datagram as it arrives: one bit flips in one that was damaged.
fn content(Delivered { mut content, corrupted }: Delivered<Vec<u8>>) -> Vec<u8> {
    let middle = content.len() / 2;
    if let Some(byte) = content.get_mut(middle).filter(|_| corrupted) {
        *byte ^= 1;
    }
    content
}

fn size(payload: usize) -> DataSize {
    DataSize::from_bytes((payload + HEADERS) as u64)
}
