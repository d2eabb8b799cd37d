//! Datagrams in and out.

use std::future::pending;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use isthmus_proto::{DataSize, Timestamp};
use tokio::net::UdpSocket;

use super::Task;
use super::driver::{Driver, Parcel};
use super::flows::FlowTable;
use super::toxic::Stream;
use super::{FlowCounts, header};
use crate::profile::Rebindings;

/// Bytes of a UDP header.
const UDP_HEADER: usize = 8;
const LARGEST_DATAGRAM: usize = 65_535;
/// A flow through which nothing has passed for so long is over, as in many a home's router.
const IDLE: Duration = Duration::from_secs(120);
/// More than a socket's buffer holds; who sends faster than that is read is not waited for.
const MOST_STALE: usize = 4_096;
/// Each flow holds a socket.
const MOST_FLOWS: usize = 512;

/// A bound socket and what reads it hands to the link.
pub(super) struct UdpProxy {
    pub(super) front: Arc<std::net::UdpSocket>,
    pub(super) upstream: SocketAddr,
    pub(super) driver: Arc<Driver>,
    pub(super) counts: Arc<FlowCounts>,
    pub(super) rebindings: Rebindings,
}

struct Flow {
    back: Arc<std::net::UdpSocket>,
    _reader: Task,
}

type Flows = Arc<Mutex<FlowTable<Flow>>>;

impl UdpProxy {
    pub(super) fn bind(
        listen: SocketAddr,
        upstream: SocketAddr,
        driver: Arc<Driver>,
        counts: Arc<FlowCounts>,
        rebindings: Rebindings,
    ) -> io::Result<UdpProxy> {
        let front = Arc::new(bind(listen)?);
        Ok(UdpProxy { front, upstream, driver, counts, rebindings })
    }

    /// Reads what clients send until the task is dropped, and all flows with it.
    pub(super) fn run(&self) -> io::Result<Task> {
        let socket = UdpSocket::from_std(self.front.try_clone()?)?;
        let flows = Arc::new(Mutex::new(FlowTable::new(IDLE, MOST_FLOWS)));
        let UdpProxy { front, upstream, driver, counts, rebindings } = self;
        let front = Arc::clone(front);
        let (upstream, driver, counts) = (*upstream, Arc::clone(driver), Arc::clone(counts));
        let rebindings = rebindings.clone();
        let mut rebinding = rebindings.after(driver.now());
        Ok(Task::spawn(async move {
            let mut buffer = vec![0; LARGEST_DATAGRAM];
            // What came while nobody read is lost.
            let stale = (0..MOST_STALE).map(|_| front.recv_from(&mut buffer));
            stale.take_while(Result::is_ok).for_each(drop);
            loop {
                let next = lock(&flows).poll_timeout();
                let until = async |next: Option<Timestamp>| match next {
                    Some(next) => tokio::time::sleep(next.saturating_since(driver.now())).await,
                    None => pending().await,
                };
                tokio::select! {
                    received = socket.recv_from(&mut buffer) => match received {
                        Ok((length, client)) => {
                            let Some(back) = flow(&flows, &front, client, upstream, &driver, &counts)
                            else { continue };
                            let bytes = Bytes::copy_from_slice(&buffer[..length]);
                            let parcel = Parcel::Datagram { bytes, socket: back, to: None };
                            driver.datagram(Stream::Upstream, size(length, client), parcel);
                        }
                        Err(_) => breathe().await,
                    },
                    () = until(next) => {
                        let expired = lock(&flows).expire(driver.now());
                        counts.expired.fetch_add(expired, Ordering::Relaxed);
                    }
                    () = until(rebinding) => {
                        rebind(&flows, &front, upstream, &driver, &counts);
                        rebinding = rebindings.after(driver.now());
                    }
                }
            }
        }))
    }
}

/// The socket towards the server of this client's flow; none if there are too many flows.
fn flow(
    flows: &Flows,
    front: &Arc<std::net::UdpSocket>,
    client: SocketAddr,
    upstream: SocketAddr,
    driver: &Arc<Driver>,
    counts: &FlowCounts,
) -> Option<Arc<std::net::UdpSocket>> {
    let mut table = lock(flows);
    if let Some(flow) = table.touch(driver.now(), client) {
        return Some(Arc::clone(&flow.back));
    }
    let opened = match table.is_full() {
        true => Err(io::Error::other(format!("{MOST_FLOWS} flows are the most"))),
        false => open(flows, front, client, upstream, driver),
    };
    match opened {
        Ok(flow) => {
            counts.opened.fetch_add(1, Ordering::Relaxed);
            let back = Arc::clone(&flow.back);
            table.insert(driver.now(), client, flow);
            Some(back)
        }
        Err(error) => {
            counts.refused.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%client, %error, "a datagram without a flow");
            None
        }
    }
}

/// Gives every flow another socket towards the server: what the server sends to the one before is
/// lost, as behind a NAT that has forgotten it.
fn rebind(
    flows: &Flows,
    front: &Arc<std::net::UdpSocket>,
    upstream: SocketAddr,
    driver: &Arc<Driver>,
    counts: &FlowCounts,
) {
    lock(flows).replace(|client| match open(flows, front, client, upstream, driver) {
        Ok(flow) => {
            counts.rebound.fetch_add(1, Ordering::Relaxed);
            Some(flow)
        }
        Err(error) => {
            counts.refused.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(%client, %error, "no other socket for a flow");
            None
        }
    });
}

fn open(
    flows: &Flows,
    front: &Arc<std::net::UdpSocket>,
    client: SocketAddr,
    upstream: SocketAddr,
    driver: &Arc<Driver>,
) -> io::Result<Flow> {
    let any: IpAddr = match upstream {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let back = Arc::new(bind((any, 0).into())?);
    back.connect(upstream)?;
    let socket = UdpSocket::from_std(back.try_clone()?)?;
    let (flows, front, driver) = (Arc::downgrade(flows), Arc::clone(front), Arc::clone(driver));
    let reader = Task::spawn(async move {
        let mut buffer = vec![0; LARGEST_DATAGRAM];
        loop {
            let Ok(length) = socket.recv(&mut buffer).await else {
                breathe().await;
                continue;
            };
            let Some(flows) = flows.upgrade() else { return };
            lock(&flows).touch(driver.now(), client);
            let bytes = Bytes::copy_from_slice(&buffer[..length]);
            let parcel = Parcel::Datagram { bytes, socket: Arc::clone(&front), to: Some(client) };
            driver.datagram(Stream::Downstream, size(length, upstream), parcel);
        }
    });
    Ok(Flow { back, _reader: reader })
}

/// Readable by the runtime and writable by the link's thread.
fn bind(address: SocketAddr) -> io::Result<std::net::UdpSocket> {
    let socket = std::net::UdpSocket::bind(address)?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// A closed peer may show as an error on the socket; it must not become a busy loop.
async fn breathe() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

fn size(payload: usize, peer: SocketAddr) -> DataSize {
    DataSize::from_bytes((header(peer) + UDP_HEADER + payload) as u64)
}

fn lock(flows: &Flows) -> std::sync::MutexGuard<'_, FlowTable<Flow>> {
    flows.lock().unwrap_or_else(PoisonError::into_inner)
}
