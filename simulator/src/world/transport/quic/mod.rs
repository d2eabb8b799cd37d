//! The real QUIC state machine at both ends, in virtual time: handshake with TLS 1.3, congestion
//! control, pacing, acknowledgements, loss recovery, migration.
//!
//! Everything is configured as by the client's and the server's shells, and each frame is a stream,
//! as there. Packets cross the links as datagrams; those that were damaged are damaged, and fail
//! their authentication.

mod device;
#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod differential;
mod end;
mod identity;
mod server;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use isthmus_proto::{Bitrate, DataSize, Timestamp};

use super::links::Links;
use super::{Event, Exchange, Key, Transport, Upload};
use crate::link::chance::scattered;
use crate::link::{Delivered, LinkCounters};
use crate::world::WorldConfig;
use crate::world::agenda::Alarms;
use device::Device;
use end::Clock;
use identity::Identity;
use server::Server;

/// Headers of IPv4 and UDP (bytes).
const HEADERS: usize = 28;

const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 4_433);

/// The first port that a device is seen to send from.
const FIRST_PORT: u16 = 1_024;

pub(in crate::world) struct Quic {
    clock: Clock,
    identity: Identity,
    uplink: Links<Datagram>,
    downlink: Links<Datagram>,
    devices: Vec<Device>,
    server: Server,
    alarms: Alarms<End>,
    /// How often all devices' addresses have changed.
    rebound: u32,
    misdirected: u64,
    events: VecDeque<Event>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Device(u32),
    /// The server's end of a connection.
    Peer(usize),
}

#[derive(Clone, Debug)]
struct Datagram {
    camera: u32,
    /// The device's address, as the server sees it.
    address: SocketAddr,
    bytes: Bytes,
}

impl Quic {
    pub(in crate::world) fn new(config: &WorldConfig) -> Self {
        let clock = Clock::start();
        let max_in_flight = config.server.max_in_flight;
        let identity = Identity::new(config.seed, max_in_flight);
        let zero = clock.instant(Timestamp::ZERO);
        let ends = (identity.endpoint(u64::MAX), identity.server());
        let mut alarms = Alarms::new();
        for camera in 0..config.cameras {
            alarms.set(End::Device(camera), Some(Timestamp::ZERO));
        }
        let (uplink, downlink) = (&config.path.uplink, &config.path.downlink);
        Quic {
            clock,
            identity,
            uplink: Links::new(uplink, config.paths(), scattered(config.seed)),
            downlink: Links::new(downlink, config.paths(), scattered(!config.seed)),
            devices: (0..config.cameras).map(|camera| Device::new(camera, SERVER, zero)).collect(),
            server: Server::new(clock, ends),
            alarms,
            rebound: 0,
            misdirected: 0,
            events: VecDeque::new(),
        }
    }

    /// Where a device sends from, as the server sees it.
    fn address(&self, camera: u32) -> SocketAddr {
        let [_, a, b, c] = camera.to_be_bytes();
        let ports = u32::from(u16::MAX - FIRST_PORT);
        let port = self.devices[camera as usize].attempts().wrapping_add(self.rebound);
        let port = FIRST_PORT + (port % ports) as u16;
        SocketAddr::from(([10, a, b, c], port))
    }

    /// Takes what a device wants to send and tell.
    fn settle_device(&mut self, now: Timestamp, camera: u32) {
        let address = self.address(camera);
        let device = &mut self.devices[camera as usize];
        self.events.append(&mut device.events);
        for bytes in std::mem::take(&mut device.transmits) {
            let size = size(&bytes);
            self.uplink.handle_packet(now, camera, size, Datagram { camera, address, bytes });
        }
        let due = device.poll_timeout().map(|due| self.clock.timestamp(due));
        self.alarms.set(End::Device(camera), due);
        self.forget_dropped();
    }

    /// Takes what the server wants to send, after something happened to some connections.
    fn settle_server(&mut self, now: Timestamp) {
        for (address, bytes) in std::mem::take(&mut self.server.transmits) {
            let camera = camera_of(address).filter(|&camera| self.address(camera) == address);
            let Some(camera) = camera else {
                self.misdirected += 1;
                continue;
            };
            let size = size(&bytes);
            self.downlink.handle_packet(now, camera, size, Datagram { camera, address, bytes });
        }
        for peer in std::mem::take(&mut self.server.touched) {
            self.alarms.set(End::Peer(peer), self.server.poll_timeout(peer));
        }
        self.forget_dropped();
    }

    /// Nobody is told of what the links drop; both ends find out.
    fn forget_dropped(&mut self) {
        while self.uplink.poll_dropped().is_some() || self.downlink.poll_dropped().is_some() {}
    }
}

impl Transport for Quic {
    fn send(&mut self, now: Timestamp, upload: Upload) {
        let camera = upload.key.camera;
        self.devices[camera as usize].send(self.clock.instant(now), &upload);
        self.settle_device(now, camera);
    }

    fn probe(&mut self, now: Timestamp, key: Key, padding: usize, time_left: Duration) {
        let at = self.clock.instant(now);
        self.devices[key.camera as usize].probe(at, key, padding, time_left);
        self.settle_device(now, key.camera);
    }

    fn cancel(&mut self, now: Timestamp, Key { camera, frame }: Key) {
        self.devices[camera as usize].cancel(self.clock.instant(now), frame);
        self.settle_device(now, camera);
    }

    fn carry_out(&mut self, now: Timestamp, exchange: &mut Exchange) {
        self.server.carry_out(now, exchange);
        self.settle_server(now);
    }

    fn rebind(&mut self) {
        self.rebound = self.rebound.wrapping_add(1);
    }

    fn handle_timeout(&mut self, now: Timestamp, exchange: &mut Exchange) {
        self.identity.date().set(now);
        while let Some(arrived) = self.uplink.poll_delivered(now) {
            let bytes = damaged(&arrived);
            let Datagram { camera, address, .. } = arrived.content;
            self.server.handle_datagram(now, camera, address, &bytes, exchange);
            self.settle_server(now);
            if exchange.queued() > 0 {
                return;
            }
        }
        while let Some(arrived) = self.downlink.poll_delivered(now) {
            let bytes = damaged(&arrived);
            let camera = arrived.content.camera;
            let device = &mut self.devices[camera as usize];
            device.handle_datagram(self.clock.instant(now), &bytes);
            self.settle_device(now, camera);
        }
        while let Some(end) = self.alarms.due(now) {
            match end {
                End::Device(camera) => {
                    let at = self.clock.instant(now);
                    self.devices[camera as usize].handle_timeout(at, &self.identity);
                    self.settle_device(now, camera);
                }
                End::Peer(peer) => {
                    self.server.handle_timeout(now, peer, exchange);
                    self.settle_server(now);
                }
            }
        }
        self.forget_dropped();
    }

    fn poll_timeout(&self) -> Option<Timestamp> {
        let links = [self.uplink.poll_timeout(), self.downlink.poll_timeout()];
        links.into_iter().flatten().chain(self.alarms.next()).min()
    }

    fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn uplink(&self) -> LinkCounters {
        self.uplink.counters()
    }

    fn uplink_of(&mut self, now: Timestamp, camera: u32) -> (Bitrate, DataSize) {
        self.uplink.state(now, camera)
    }

    fn misdirected(&self) -> u64 {
        self.misdirected
    }
}

fn size(bytes: &Bytes) -> DataSize {
    DataSize::from_bytes((HEADERS + bytes.len()) as u64)
}

/// The camera whose device has this address.
fn camera_of(address: SocketAddr) -> Option<u32> {
    match address.ip() {
        IpAddr::V4(ip) => Some(u32::from(ip) & 0xff_ffff),
        IpAddr::V6(_) => None,
    }
}

/// A datagram's bytes, of which one bit flips where it was damaged.
fn damaged(arrived: &Delivered<Datagram>) -> Bytes {
    let bytes = &arrived.content.bytes;
    if !arrived.corrupted || bytes.is_empty() {
        return bytes.clone();
    }
    let mut bytes = bytes.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    bytes.into()
}
