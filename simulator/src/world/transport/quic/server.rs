//! The server's end: moves datagrams and streams between quinn's state machine and the exchange.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use isthmus_proto::Timestamp;
use isthmus_tail_server::admission::HelloError;
use isthmus_tail_server::code;
use isthmus_tail_server::exchange::{Action, Carrier, ConnectionId, FrameKey, Output};
use isthmus_tail_server::handshake::{Handshake, welcome_bytes};
use prost::Message;
use quinn_proto::{
    Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig, Event as QuicEvent,
    Incoming, ServerConfig, StreamEvent, StreamId, Transmit, VarInt,
};

use super::end::{Clock, Read, datagrams, read, reconcile, transmit, write_last};
use crate::world::transport::{Exchange, Route};

pub(super) struct Server {
    clock: Clock,
    endpoint: Endpoint,
    peers: BTreeMap<usize, Peer>,
    buffer: Vec<u8>,
    pub(super) transmits: VecDeque<(SocketAddr, Bytes)>,
    /// Connections whose next timeout may have changed.
    pub(super) touched: BTreeSet<usize>,
}

/// A connection, and the frames that are on it.
struct Peer {
    camera: u32,
    connection: Connection,
    /// The exchange's name for it.
    id: ConnectionId,
    control: Option<StreamId>,
    /// There until the hello was welcomed.
    handshake: Option<Handshake>,
    frames: BTreeMap<StreamId, Frame>,
}

struct Frame {
    key: FrameKey,
    /// Nothing more will come.
    ended: bool,
}

impl Server {
    pub(super) fn new(clock: Clock, config: (Arc<EndpointConfig>, Arc<ServerConfig>)) -> Self {
        let (endpoint, server) = config;
        Server {
            clock,
            endpoint: Endpoint::new(endpoint, Some(server), true, None),
            peers: BTreeMap::new(),
            buffer: Vec::new(),
            transmits: VecDeque::new(),
            touched: BTreeSet::new(),
        }
    }

    /// Takes a datagram of a camera's device.
    pub(super) fn handle_datagram(
        &mut self,
        now: Timestamp,
        camera: u32,
        remote: SocketAddr,
        datagram: &[u8],
        exchange: &mut Exchange,
    ) {
        let (at, data) = (self.clock.instant(now), BytesMut::from(datagram));
        let mut buffer = Vec::new();
        match self.endpoint.handle(at, remote, None, None, data, &mut buffer) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(peer) = self.peers.get_mut(&handle.0) {
                    peer.connection.handle_event(event);
                    self.drive(now, handle.0, exchange);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => {
                self.accept(now, camera, incoming, exchange);
            }
            Some(DatagramEvent::Response(transmit)) => self.answer(&transmit, &buffer),
            None => {}
        }
    }

    fn accept(&mut self, now: Timestamp, camera: u32, incoming: Incoming, exchange: &mut Exchange) {
        let mut buffer = Vec::new();
        let Some(id) = exchange.connect(Carrier::Streams) else {
            let transmit = self.endpoint.refuse(incoming, &mut buffer);
            return self.answer(&transmit, &buffer);
        };
        match self.endpoint.accept(incoming, self.clock.instant(now), &mut buffer, None) {
            Ok((handle, connection)) => {
                let (control, frames) = (None, BTreeMap::new());
                let handshake = Some(Handshake::new(now));
                let peer = Peer { camera, connection, id, control, handshake, frames };
                self.peers.insert(handle.0, peer);
                self.drive(now, handle.0, exchange);
            }
            Err(error) => {
                exchange.handle_closed(id);
                if let Some(transmit) = error.response {
                    self.answer(&transmit, &buffer);
                }
            }
        }
    }

    fn answer(&mut self, transmit: &Transmit, buffer: &[u8]) {
        let answers = datagrams(transmit, buffer);
        self.transmits.extend(answers.map(|bytes| (transmit.destination, bytes)));
    }

    pub(super) fn handle_timeout(
        &mut self,
        now: Timestamp,
        handle: usize,
        exchange: &mut Exchange,
    ) {
        let at = self.clock.instant(now);
        let Some(peer) = self.peers.get_mut(&handle) else { return };
        if peer.connection.poll_timeout().is_some_and(|due| due <= at) {
            peer.connection.handle_timeout(at);
        }
        if peer.handshake.as_ref().is_some_and(|handshake| handshake.deadline() <= now) {
            peer.close(at, "no hello came");
        }
        self.drive(now, handle, exchange);
    }

    pub(super) fn poll_timeout(&mut self, handle: usize) -> Option<Timestamp> {
        let peer = self.peers.get_mut(&handle)?;
        let due = peer.connection.poll_timeout().map(|due| self.clock.timestamp(due));
        let hello_by = peer.handshake.as_ref().map(Handshake::deadline);
        due.into_iter().chain(hello_by).min()
    }

    /// Carries out what the exchange has ordered.
    pub(super) fn carry_out(&mut self, now: Timestamp, exchange: &mut Exchange) {
        let written = self.write_orders(exchange);
        written.into_iter().for_each(|handle| self.transmit(now, handle));
    }

    /// Writes what the exchange has ordered; to which connections.
    fn write_orders(&mut self, exchange: &mut Exchange) -> BTreeSet<usize> {
        let mut written = BTreeSet::new();
        while let Some(Output { frame, to, action }) = exchange.poll_output() {
            let Route { connection: handle, stream, .. } = to;
            let peer = self.peers.get_mut(&handle);
            if let Some(peer) = peer.filter(|peer| peer.frames.contains_key(&stream)) {
                written.insert(handle);
                match &action {
                    Action::StopReading => {
                        // Fails when the device has sent everything, and then there is nothing to
                        // stop.
                        let _ = peer.connection.recv_stream(stream).stop(code::REFUSED.into());
                    }
                    Action::Reply(ended) => {
                        let reply = ended.reply.encode_to_vec();
                        write_last(&mut peer.connection, stream, &reply);
                    }
                    Action::LetGo => peer.abandon(stream),
                }
            }
            if action != Action::StopReading {
                exchange.handle_left(frame);
            }
        }
        written
    }

    /// Lets a connection do all that it can.
    fn drive(&mut self, now: Timestamp, handle: usize, exchange: &mut Exchange) {
        loop {
            let Some(peer) = self.peers.get_mut(&handle) else { return };
            let connection = &mut peer.connection;
            let mut any = reconcile(&mut self.endpoint, ConnectionHandle(handle), connection);
            while let Some(event) = self.peers.get_mut(&handle).and_then(|it| it.connection.poll())
            {
                any = true;
                self.on_event(now, handle, event, exchange);
            }
            if !any {
                break;
            }
        }
        let mut written = self.write_orders(exchange);
        written.insert(handle);
        written.into_iter().for_each(|handle| self.transmit(now, handle));
    }

    fn transmit(&mut self, now: Timestamp, handle: usize) {
        self.touched.insert(handle);
        let at = self.clock.instant(now);
        let Some(peer) = self.peers.get_mut(&handle) else { return };
        let transmits = &mut self.transmits;
        transmit(&mut peer.connection, at, &mut self.buffer, |transmit, datagram| {
            transmits.push_back((transmit.destination, datagram));
        });
        if peer.connection.is_drained() {
            self.peers.remove(&handle);
        }
    }

    fn on_event(
        &mut self,
        now: Timestamp,
        handle: usize,
        event: QuicEvent,
        exchange: &mut Exchange,
    ) {
        let at = self.clock.instant(now);
        let Some(peer) = self.peers.get_mut(&handle) else { return };
        match event {
            QuicEvent::Stream(StreamEvent::Opened { dir: Dir::Bi }) => {
                if peer.control.is_none() {
                    peer.control = peer.connection.streams().accept(Dir::Bi);
                    peer.greet(at, exchange);
                }
                peer.accept_frames(now, handle, exchange);
            }
            QuicEvent::Stream(StreamEvent::Readable { id }) if Some(id) == peer.control => {
                peer.greet(at, exchange);
                peer.accept_frames(now, handle, exchange);
            }
            QuicEvent::Stream(StreamEvent::Readable { id } | StreamEvent::Stopped { id, .. }) => {
                peer.take(now, id, exchange)
            }
            QuicEvent::Stream(StreamEvent::Finished { id }) => {
                let unread = peer.frames.remove(&id).filter(|frame| !frame.ended);
                unread.map(|_| peer.connection.recv_stream(id).stop(code::DONE.into()));
            }
            QuicEvent::ConnectionLost { reason } => {
                tracing::debug!(camera = peer.camera, %reason, "disconnected");
                exchange.handle_lost(peer.id);
                (peer.handshake, peer.frames) = (None, BTreeMap::new());
            }
            _ => {}
        }
    }
}

impl Peer {
    /// Reads the hello and answers it.
    fn greet(&mut self, at: Instant, exchange: &mut Exchange) {
        let (Some(control), Some(handshake)) = (self.control, &mut self.handshake) else { return };
        let Read { chunks, ended, .. } = read(&mut self.connection, control);
        let mut hello = Ok(None);
        for chunk in chunks {
            hello = handshake.handle_bytes(&chunk);
            if !matches!(hello, Ok(None)) {
                break;
            }
        }
        let welcome = hello.and_then(|hello| {
            hello.map(|hello| exchange.handle_hello(self.id, &hello, false)).transpose()
        });
        match welcome {
            Ok(Some(welcome)) => {
                self.handshake = None;
                // A fresh stream takes a message that is shorter than its window.
                let _ = self.connection.send_stream(control).write(&welcome_bytes(welcome));
            }
            Ok(None) if ended => self.close(at, &HelloError::Missing.to_string()),
            Ok(None) => {}
            Err(error) => self.close(at, &error.to_string()),
        }
    }

    /// Closes a connection that cannot be greeted.
    fn close(&mut self, at: Instant, why: &str) {
        self.handshake = None;
        let why = Bytes::copy_from_slice(why.as_bytes());
        self.connection.close(at, code::BAD_HELLO.into(), why);
    }

    /// Begins the frames whose streams have come, once the hello was welcomed.
    fn accept_frames(&mut self, now: Timestamp, handle: usize, exchange: &mut Exchange) {
        if self.control.is_none() || self.handshake.is_some() {
            return;
        }
        while let Some(stream) = self.connection.streams().accept(Dir::Bi) {
            let route = Route { camera: self.camera, connection: handle, stream };
            let key = exchange.begin(now, self.id, stream.index(), route);
            self.frames.insert(stream, Frame { key, ended: false });
            self.take(now, stream, exchange);
        }
    }

    /// Hands what has come of a frame to the exchange, or that its reply is not wanted.
    fn take(&mut self, now: Timestamp, stream: StreamId, exchange: &mut Exchange) {
        let Some(frame) = self.frames.get_mut(&stream) else { return };
        if matches!(self.connection.send_stream(stream).stopped(), Ok(Some(_))) {
            exchange.handle_unwanted(frame.key);
            return self.abandon(stream);
        }
        let Read { chunks, ended, .. } = read(&mut self.connection, stream);
        frame.ended |= ended;
        let key = frame.key;
        let wanted = chunks.iter().all(|chunk| exchange.handle_bytes(now, key, chunk));
        // Ended or reset: what came is what there is.
        if ended && wanted {
            exchange.handle_ended(now, key);
        }
    }

    /// Ends a stream of which nobody wants anything more.
    fn abandon(&mut self, stream: StreamId) {
        self.frames.remove(&stream);
        // Each fails where its side has ended.
        let _ = self.connection.send_stream(stream).reset(code::DONE.into());
        let _ = self.connection.recv_stream(stream).stop(VarInt::from_u32(code::DONE));
    }
}
