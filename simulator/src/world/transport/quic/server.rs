//! The server's end: moves what comes and goes between an endpoint in virtual time and the server's
//! own [exchange](isthmus_tail_server::exchange).

use std::collections::{BTreeMap, BTreeSet};

use isthmus_proto::Timestamp;
use isthmus_tail_server::admission::HelloError;
use isthmus_tail_server::code;
use isthmus_tail_server::exchange::{Action, Carrier, ConnectionId, FrameKey, Output};
use isthmus_tail_server::handshake::Handshake;
use prost::Message;
use quinn_proto::StreamEvent::{Finished, Opened, Readable, Stopped};
use quinn_proto::{Dir, Event, Incoming, StreamId};

use super::Datagram;
use super::endpoint::{Arrived, Clock, Connected, Endpoint, Read};
use super::identity::Identity;
use crate::world::transport::{Exchange, Route};

pub(super) struct Server {
    pub(super) endpoint: Endpoint<Peer>,
    /// Connections whose next timeout may have changed.
    pub(super) touched: BTreeSet<usize>,
}

/// A device, and the frames that are on its connection.
pub(super) struct Peer {
    camera: u32,
    /// The exchange's name for the connection.
    id: ConnectionId,
    handshake: Handshake,
    frames: BTreeMap<StreamId, FrameKey>,
}

impl Server {
    pub(super) fn new(clock: Clock, identity: &Identity) -> Self {
        let endpoint = Endpoint::new(clock, identity.endpoint(u64::MAX), Some(identity.server()));
        Server { endpoint, touched: BTreeSet::new() }
    }

    /// Takes a datagram of a camera's device.
    pub(super) fn handle_datagram(
        &mut self,
        now: Timestamp,
        it: &Datagram,
        exchange: &mut Exchange,
    ) {
        match self.endpoint.handle_datagram(now, it.address, &it.bytes) {
            Some(Arrived::Of(handle)) => self.drive(now, handle, exchange),
            Some(Arrived::New(incoming)) => self.accept(now, it, *incoming, exchange),
            None => {}
        }
    }

    fn accept(
        &mut self,
        now: Timestamp,
        it: &Datagram,
        incoming: Incoming,
        exchange: &mut Exchange,
    ) {
        let origin = it.address.ip().into();
        let Some(id) = exchange.connect(now, Carrier::Streams, origin) else {
            return self.endpoint.refuse(incoming);
        };
        let (handshake, frames) = (Handshake::new(now), BTreeMap::new());
        let peer = Peer { camera: it.camera, id, handshake, frames };
        match self.endpoint.accept(now, incoming, peer) {
            Some(handle) => self.drive(now, handle, exchange),
            None => exchange.handle_closed(id),
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Timestamp, at: usize, exchange: &mut Exchange) {
        self.endpoint.handle_timeout(now, at);
        let timed = self.endpoint.get(at).map(|peer| peer.state.handshake.handle_timeout(now));
        if let Some(Err(error)) = timed {
            self.endpoint.close(now, at, code::BAD_HELLO, error.to_string());
        }
        self.drive(now, at, exchange);
    }

    pub(super) fn poll_timeout(&mut self, handle: usize) -> Option<Timestamp> {
        self.endpoint.poll_timeout(handle, |peer| peer.handshake.poll_timeout())
    }

    /// Carries out what the exchange has ordered.
    pub(super) fn carry_out(&mut self, now: Timestamp, exchange: &mut Exchange) {
        while let Some(Output { frame, to, action }) = exchange.poll_output() {
            let Route { connection: handle, stream, .. } = to;
            let peer = self.endpoint.get(handle);
            if let Some(peer) = peer.filter(|peer| peer.state.frames.contains_key(&stream)) {
                self.touched.insert(handle);
                match &action {
                    Action::StopReading => peer.stop(stream, code::REFUSED),
                    Action::Reply(ended) => peer.write(stream, &ended.reply.encode_to_vec(), true),
                    Action::LetGo => peer.abandon_frame(stream),
                }
            }
            if action != Action::StopReading {
                exchange.handle_left(now, frame);
            }
        }
        self.touched.iter().for_each(|&handle| self.endpoint.transmit(now, handle));
    }

    /// Lets a connection do all that it can.
    fn drive(&mut self, now: Timestamp, handle: usize, exchange: &mut Exchange) {
        while let Some((peer, event)) = self.endpoint.poll(handle) {
            if let Err(error) = peer.on_event(now, event, exchange) {
                self.endpoint.close(now, handle, code::BAD_HELLO, error.to_string());
            }
        }
        self.touched.insert(handle);
        self.carry_out(now, exchange);
    }
}

impl Connected<Peer> {
    /// Takes in what happened; an error where the device cannot be greeted.
    fn on_event(
        &mut self,
        now: Timestamp,
        event: Event,
        exchange: &mut Exchange,
    ) -> Result<(), HelloError> {
        match event {
            Event::Stream(Opened { .. }) => self.accept(now, exchange)?,
            Event::Stream(Readable { id }) if Some(id) == self.control => {
                self.accept(now, exchange)?;
            }
            Event::Stream(Readable { id } | Stopped { id, .. }) => self.take(now, id, exchange),
            Event::Stream(Finished { id }) => {
                self.state.frames.remove(&id);
                self.stop(id, code::DONE);
            }
            Event::ConnectionLost { reason } => {
                tracing::debug!(camera = self.state.camera, %reason, "disconnected");
                exchange.handle_lost(self.state.id);
                self.state.frames.clear();
                return self.state.handshake.handle_end().or(Ok(()));
            }
            _ => {}
        }
        Ok(())
    }

    /// Reads the hello of the first stream and answers it; every other stream is a frame.
    fn accept(&mut self, now: Timestamp, exchange: &mut Exchange) -> Result<(), HelloError> {
        if self.control.is_none() {
            self.control = self.quic.streams().accept(Dir::Bi);
        }
        let Some(control) = self.control else { return Ok(()) };
        if !self.state.handshake.is_welcomed() {
            let Read { bytes, ended, .. } = self.read(control);
            let Peer { id, handshake, .. } = &mut self.state;
            let greet = |hello: &_| exchange.handle_hello(*id, hello, false);
            let welcome = handshake.handle_bytes(&bytes, greet)?;
            if ended {
                handshake.handle_end()?;
            }
            self.write(control, &welcome.unwrap_or_default(), false);
        }
        while self.state.handshake.is_welcomed()
            && let Some(stream) = self.quic.streams().accept(Dir::Bi)
        {
            let Peer { camera, id, .. } = self.state;
            let route = Route { camera, connection: self.handle, stream };
            let key = exchange.begin(now, id, stream.index(), route);
            self.state.frames.insert(stream, key);
            self.take(now, stream, exchange);
        }
        Ok(())
    }

    /// Hands what has come of a frame to the exchange, or that its reply is not wanted.
    fn take(&mut self, now: Timestamp, stream: StreamId, exchange: &mut Exchange) {
        let Some(&key) = self.state.frames.get(&stream) else { return };
        if matches!(self.quic.send_stream(stream).stopped(), Ok(Some(_))) {
            exchange.handle_unwanted(key);
            return self.abandon_frame(stream);
        }
        let Read { bytes, ended, .. } = self.read(stream);
        let wanted = bytes.is_empty() || exchange.handle_bytes(now, key, &bytes);
        // Ended or reset: what came is what there is.
        if ended && wanted {
            exchange.handle_ended(now, key);
        }
    }

    fn abandon_frame(&mut self, stream: StreamId) {
        self.state.frames.remove(&stream);
        self.abandon(stream, code::DONE);
    }
}
