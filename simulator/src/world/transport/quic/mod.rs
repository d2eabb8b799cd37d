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
mod endpoint;
mod identity;
mod server;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use isthmus_head_client::exchange::Outgoing;
use isthmus_proto::{Bitrate, DataSize, FrameId, Timestamp};

use super::links::Links;
use super::{Event, Exchange, Key, Transport, Upload, bundle};
use crate::link::chance::scattered;
use crate::link::{Delivered, LinkCounters};
use crate::world::WorldConfig;
use crate::world::agenda::Alarms;
use crate::world::frames::coded;
use device::Device;
use endpoint::Clock;
use identity::Identity;
use server::Server;

/// Headers of IPv4 and UDP (bytes).
const HEADERS: usize = 28;

const SERVER: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 4_433);

/// The first port that a device is seen to send from.
const FIRST_PORT: u16 = 1_024;

pub(in crate::world) struct Quic {
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
        let mut alarms = Alarms::new();
        for camera in 0..config.cameras {
            alarms.set(End::Device(camera), Some(Timestamp::ZERO));
        }
        let server = Server::new(clock, &identity);
        let device = |camera| Device::new(camera, clock, &identity);
        let devices = (0..config.cameras).map(device).collect();
        let (uplink, downlink) = (&config.path.uplink, &config.path.downlink);
        Quic {
            identity,
            uplink: Links::new(uplink, config.paths(), scattered(config.seed)),
            downlink: Links::new(downlink, config.paths(), scattered(!config.seed)),
            devices,
            server,
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
        let port = (self.devices[camera as usize].number as u32).wrapping_add(self.rebound);
        let port = FIRST_PORT + (port % ports) as u16;
        SocketAddr::from(([10, a, b, c], port))
    }

    fn put(&mut self, now: Timestamp, camera: u32, outgoing: Outgoing) {
        self.devices[camera as usize].send(now, outgoing);
        self.settle_device(now, camera);
    }

    /// Takes what a device wants to send and tell.
    fn settle_device(&mut self, now: Timestamp, camera: u32) {
        let address = self.address(camera);
        let device = &mut self.devices[camera as usize];
        self.events.append(&mut device.events);
        for (_, bytes) in std::mem::take(&mut device.endpoint.transmits) {
            let size = size(&bytes);
            self.uplink.handle_packet(now, camera, size, Datagram { camera, address, bytes });
        }
        self.alarms.set(End::Device(camera), device.poll_timeout());
        self.forget_dropped();
    }

    /// Takes what the server wants to send, after something happened to some connections.
    fn settle_server(&mut self, now: Timestamp) {
        for (address, bytes) in std::mem::take(&mut self.server.endpoint.transmits) {
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
        let Upload { key, content, layer_ends, time_left, answer_by } = upload;
        let (frame, coded) = (FrameId(key.frame), coded(&layer_ends, key.frame));
        let frame = Outgoing::frame(&bundle(), frame, content, &coded, time_left, answer_by);
        self.put(now, key.camera, frame);
    }

    fn probe(&mut self, now: Timestamp, key: Key, padding: usize, time_left: Duration) {
        self.put(now, key.camera, Outgoing::probe(FrameId(key.frame), padding, time_left));
    }

    fn cancel(&mut self, now: Timestamp, Key { camera, frame }: Key) {
        self.devices[camera as usize].cancel(now, frame);
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
            self.server.handle_datagram(now, &received(arrived), exchange);
            self.settle_server(now);
            if exchange.queued() > 0 {
                return;
            }
        }
        while let Some(arrived) = self.downlink.poll_delivered(now) {
            let Datagram { camera, bytes, .. } = received(arrived);
            self.devices[camera as usize].handle_datagram(now, &bytes);
            self.settle_device(now, camera);
        }
        while let Some(end) = self.alarms.due(now) {
            match end {
                End::Device(camera) => {
                    self.devices[camera as usize].handle_timeout(now, &self.identity);
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

/// A datagram as it came: one bit of it flips where it was damaged.
fn received(Delivered { content, corrupted, .. }: Delivered<Datagram>) -> Datagram {
    let mut bytes = content.bytes.to_vec();
    let middle = bytes.len() / 2;
    if let Some(byte) = bytes.get_mut(middle).filter(|_| corrupted) {
        *byte ^= 1;
    }
    Datagram { bytes: bytes.into(), ..content }
}
