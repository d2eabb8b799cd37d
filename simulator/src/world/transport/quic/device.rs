//! A device's end: moves what comes and goes between an endpoint in virtual time and the client's own
//! [exchange](isthmus_head_client::exchange).

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;

use isthmus_head_client::exchange::{
    Backoff, CANCELLED, CONNECT_TIMEOUT, Exchange, Handshake, Outgoing,
};
use isthmus_proto::{FrameId, Timestamp};
use quinn_proto::StreamEvent::{Available, Readable, Stopped, Writable};
use quinn_proto::{Dir, Event as QuicEvent, StreamId, WriteError};

use super::SERVER;
use super::endpoint::{Arrived, Clock, Connected, Endpoint, Read};
use super::identity::{HOST, Identity};
use crate::world::hello;
use crate::world::transport::{Event, Key, event};

/// Handle of the one connection that each of a device's endpoints has.
const ONLY: usize = 0;

pub(super) struct Device {
    camera: u32,
    pub(super) endpoint: Endpoint<Link>,
    /// Of the next attempt to connect, among those of all devices. Each is from another port.
    pub(super) number: u64,
    backoff: Backoff,
    /// While there is no connection, when to try again.
    redial: Option<Timestamp>,
    pub(super) events: VecDeque<Event>,
}

/// What is on its way over a connection.
pub(super) struct Link {
    handshake: Handshake,
    /// Frames that wait for a stream.
    waiting: VecDeque<Outgoing>,
    exchanges: BTreeMap<StreamId, Exchange>,
}

impl Device {
    /// A device that connects at once.
    pub(super) fn new(camera: u32, clock: Clock, identity: &Identity) -> Self {
        let number = u64::from(camera) << 32;
        Device {
            camera,
            endpoint: Endpoint::new(clock, identity.endpoint(number), None),
            number,
            backoff: Backoff::default(),
            redial: Some(Timestamp::ZERO),
            events: VecDeque::new(),
        }
    }

    pub(super) fn send(&mut self, now: Timestamp, outgoing: Outgoing) {
        let Some(link) = self.endpoint.get(ONLY) else {
            let key = Key { camera: self.camera, frame: outgoing.number().0 };
            return self.events.push_back(Event::Lost { key });
        };
        link.state.waiting.push_back(outgoing);
        link.open_streams(self.camera);
        self.drive(now);
    }

    pub(super) fn cancel(&mut self, now: Timestamp, frame: u64) {
        let (frame, Some(link)) = (FrameId(frame), self.endpoint.get(ONLY)) else { return };
        link.state.waiting.retain(|outgoing| outgoing.number() != frame);
        let mut exchanges = link.state.exchanges.iter();
        if let Some((&stream, _)) = exchanges.find(|(_, exchange)| exchange.frame() == frame) {
            link.state.exchanges.remove(&stream);
            link.abandon(stream, CANCELLED);
            self.drive(now);
        }
    }

    pub(super) fn handle_datagram(&mut self, now: Timestamp, datagram: &[u8]) {
        // A device answers nothing that is not its connection's.
        if let Some(Arrived::Of(_)) = self.endpoint.handle_datagram(now, SERVER, datagram) {
            self.drive(now);
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Timestamp, identity: &Identity) {
        if self.redial.is_some_and(|at| at <= now) {
            self.dial(now, identity);
        }
        self.endpoint.handle_timeout(now, ONLY);
        self.drive(now);
        let timed = self.endpoint.get(ONLY).map(|link| link.state.handshake.handle_timeout(now));
        if let Some(Err(error)) = timed {
            self.hang_up(now, &error);
        }
    }

    pub(super) fn poll_timeout(&mut self) -> Option<Timestamp> {
        let due = self.endpoint.poll_timeout(ONLY, |link| link.handshake.poll_timeout());
        due.into_iter().chain(self.redial).min()
    }

    fn dial(&mut self, now: Timestamp, identity: &Identity) {
        self.redial = None;
        self.endpoint = Endpoint::new(self.endpoint.clock, identity.endpoint(self.number), None);
        let link = Link {
            handshake: Handshake::new(hello(), now, CONNECT_TIMEOUT),
            waiting: VecDeque::new(),
            exchanges: BTreeMap::new(),
        };
        self.endpoint.connect(now, identity.client(self.number), (SERVER, HOST), link);
        self.number += 1;
    }

    fn hang_up(&mut self, now: Timestamp, error: &dyn Error) {
        tracing::debug!(camera = self.camera, %error, "no connection");
        if self.endpoint.forget(ONLY).is_some_and(|link| link.handshake.is_welcomed()) {
            self.events.push_back(Event::Down { camera: self.camera });
            self.backoff.handle_welcome();
        }
        self.redial = Some(now + self.backoff.next_pause());
    }

    /// Lets the connection do all that it can.
    fn drive(&mut self, now: Timestamp) {
        while let Some((link, event)) = self.endpoint.poll(ONLY) {
            match link.on_event(self.camera, event) {
                Ok(event) => self.events.extend(event),
                Err(error) => return self.hang_up(now, &*error),
            }
        }
        self.endpoint.transmit(now, ONLY);
    }
}

impl Connected<Link> {
    /// Takes in what happened, and says what it means; or why the connection cannot go on.
    fn on_event(&mut self, camera: u32, event: QuicEvent) -> Result<Option<Event>, Box<dyn Error>> {
        match event {
            QuicEvent::ConnectionLost { reason } => return Err(reason.into()),
            QuicEvent::Connected => {
                self.control = self.quic.streams().open(Dir::Bi);
                let hello = self.state.handshake.hello_bytes();
                if let Some(control) = self.control {
                    self.write(control, &hello, false);
                }
            }
            QuicEvent::Stream(Available { dir: Dir::Bi }) => self.open_streams(camera),
            QuicEvent::Stream(Readable { id }) if Some(id) == self.control => {
                let Read { bytes, ended, .. } = self.read(id);
                let limits = self.state.handshake.handle_bytes(&bytes)?;
                if ended {
                    self.state.handshake.handle_end()?;
                }
                let round_trip = self.quic.rtt();
                return Ok(limits.map(|_| Event::Up { camera, round_trip }));
            }
            QuicEvent::Stream(Readable { id } | Writable { id } | Stopped { id, .. }) => {
                let exchange = self.state.exchanges.remove(&id);
                return Ok(exchange.and_then(|exchange| self.go_on(camera, id, exchange)));
            }
            _ => {}
        }
        Ok(None)
    }

    /// Gives waiting frames a stream each, as long as the server allows some.
    fn open_streams(&mut self, camera: u32) {
        while !self.state.waiting.is_empty()
            && let Some(stream) = self.quic.streams().open(Dir::Bi)
            && let Some(outgoing) = self.state.waiting.pop_front()
        {
            // A stream that has just been opened cannot have been closed.
            let _ = self.quic.send_stream(stream).set_priority(outgoing.priority());
            // Nor can a reply have come.
            let _ = self.go_on(camera, stream, Exchange::new(outgoing));
        }
    }

    /// Writes and reads what can be, and keeps the exchange, or says how it ended.
    fn go_on(&mut self, camera: u32, id: StreamId, mut exchange: Exchange) -> Option<Event> {
        let mut stream = self.quic.send_stream(id);
        while let Some(bytes) = exchange.poll_write() {
            match stream.write(bytes) {
                Ok(written) => exchange.handle_written(written),
                Err(WriteError::Blocked) => break,
                Err(_) => exchange.handle_stopped(),
            }
        }
        if exchange.poll_write().is_none() {
            // Fails on a stream that was stopped or has been finished.
            let _ = stream.finish();
        }
        let Read { bytes, ended, reset } = self.read(id);
        exchange.handle_reply_bytes(&bytes);
        if reset {
            exchange.handle_reply_reset();
        } else if ended {
            exchange.handle_reply_end();
        }
        let key = Key { camera, frame: exchange.frame().0 };
        match exchange.poll_outcome() {
            Some(Ok(checked)) => return Some(event(key, checked)),
            Some(Err(error)) => {
                tracing::debug!(camera, frame = key.frame, %error, "no reply");
                self.abandon(id, CANCELLED);
                return Some(Event::Lost { key });
            }
            None => self.state.exchanges.insert(id, exchange),
        };
        None
    }
}
