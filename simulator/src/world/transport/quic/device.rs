//! A device's end: plumbing between the client's own [exchange](isthmus_head_client::exchange) and
//! a QUIC connection in virtual time.

use std::collections::{BTreeMap, VecDeque};
use std::error::Error;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use isthmus_head_client::exchange::{
    Backoff, CANCELLED, CONNECT_TIMEOUT, Exchange, Handshake, Outgoing,
};
use isthmus_proto::{FrameId, Timestamp};
use quinn_proto::{
    Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, Event as QuicEvent, StreamEvent,
    StreamId, WriteError,
};

use super::end::{Read, abandon, read, reconcile, transmit};
use super::identity::{HOST, Identity};
use crate::world::frames::coded;
use crate::world::hello;
use crate::world::transport::{Event, Key, Upload, bundle, event};

pub(super) struct Device {
    camera: u32,
    server: SocketAddr,
    link: Option<Link>,
    attempts: u32,
    backoff: Backoff,
    /// While there is no link, when to try again.
    redial: Option<Instant>,
    buffer: Vec<u8>,
    pub(super) transmits: VecDeque<Bytes>,
    pub(super) events: VecDeque<Event>,
}

/// A connection, and what is on its way over it.
struct Link {
    endpoint: Endpoint,
    handle: ConnectionHandle,
    connection: Connection,
    dialled: Instant,
    /// Counts time from when it was dialled.
    handshake: Handshake,
    control: Option<StreamId>,
    /// Frames that wait for a stream.
    waiting: VecDeque<Outgoing>,
    exchanges: BTreeMap<StreamId, Exchange>,
}

impl Device {
    /// A device that connects at once.
    pub(super) fn new(camera: u32, server: SocketAddr, now: Instant) -> Self {
        Device {
            camera,
            server,
            link: None,
            attempts: 0,
            backoff: Backoff::default(),
            redial: Some(now),
            buffer: Vec::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// How often it has connected or tried to: each time from another port.
    pub(super) fn attempts(&self) -> u32 {
        self.attempts
    }

    pub(super) fn send(&mut self, now: Instant, upload: &Upload) {
        let &Upload { key, content, ref layer_ends, time_left, answer_by } = upload;
        let (frame, coded) = (FrameId(key.frame), coded(layer_ends, key.frame));
        self.put(now, Outgoing::frame(&bundle(), frame, content, &coded, time_left, answer_by));
    }

    pub(super) fn probe(&mut self, now: Instant, key: Key, padding: usize, time_left: Duration) {
        self.put(now, Outgoing::probe(FrameId(key.frame), padding, time_left));
    }

    fn put(&mut self, now: Instant, outgoing: Outgoing) {
        let Some(link) = &mut self.link else {
            let key = Key { camera: self.camera, frame: outgoing.number().0 };
            return self.events.push_back(Event::Lost { key });
        };
        link.waiting.push_back(outgoing);
        link.open_streams();
        self.drive(now);
    }

    pub(super) fn cancel(&mut self, now: Instant, frame: u64) {
        let (frame, Some(link)) = (FrameId(frame), &mut self.link) else { return };
        link.waiting.retain(|outgoing| outgoing.number() != frame);
        let on_stream = link.exchanges.iter().find(|(_, exchange)| exchange.frame() == frame);
        if let Some((&stream, _)) = on_stream {
            link.exchanges.remove(&stream);
            abandon(&mut link.connection, stream, CANCELLED.into());
            self.drive(now);
        }
    }

    pub(super) fn handle_datagram(&mut self, now: Instant, datagram: &[u8]) {
        let Some(link) = &mut self.link else { return };
        let data = BytesMut::from(datagram);
        let mut buffer = Vec::new();
        let event = link.endpoint.handle(now, self.server, None, None, data, &mut buffer);
        // A device answers nothing that is not its connection's.
        if let Some(DatagramEvent::ConnectionEvent(handle, event)) = event
            && handle == link.handle
        {
            link.connection.handle_event(event);
            self.drive(now);
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Instant, identity: &Identity) {
        if self.redial.is_some_and(|at| at <= now) {
            self.dial(now, identity);
        }
        let Some(link) = &mut self.link else { return };
        if link.connection.poll_timeout().is_some_and(|at| at <= now) {
            link.connection.handle_timeout(now);
        }
        self.drive(now);
        if let Some(link) = &mut self.link
            && link.welcome_by().is_some_and(|until| until <= now)
        {
            let error = link.handshake.handle_timeout();
            self.hang_up(now, &error);
        }
    }

    pub(super) fn poll_timeout(&mut self) -> Option<Instant> {
        let link = self.link.as_mut();
        let timers = link.map(|link| [link.connection.poll_timeout(), link.welcome_by()]);
        timers.into_iter().flatten().flatten().chain(self.redial).min()
    }

    fn dial(&mut self, now: Instant, identity: &Identity) {
        self.redial = None;
        let number = u64::from(self.camera) << 32 | u64::from(self.attempts);
        self.attempts += 1;
        let mut endpoint = Endpoint::new(identity.endpoint(number), None, true, None);
        let dialled = endpoint.connect(now, identity.client(number), self.server, HOST);
        let (handle, connection) = dialled.expect("the server's name and address are valid");
        self.link = Some(Link {
            endpoint,
            handle,
            connection,
            dialled: now,
            handshake: Handshake::new(hello(), Timestamp::ZERO, CONNECT_TIMEOUT),
            control: None,
            waiting: VecDeque::new(),
            exchanges: BTreeMap::new(),
        });
    }

    fn hang_up(&mut self, now: Instant, error: &dyn Error) {
        tracing::debug!(camera = self.camera, %error, "no connection");
        if self.link.take().is_some_and(|link| link.handshake.is_welcomed()) {
            self.events.push_back(Event::Down { camera: self.camera });
        }
        self.redial = Some(now + self.backoff.next_pause());
    }

    /// Lets the connection do all that it can.
    fn drive(&mut self, now: Instant) {
        loop {
            let Some(link) = &mut self.link else { return };
            let mut any = reconcile(&mut link.endpoint, link.handle, &mut link.connection);
            while let Some(event) = link.connection.poll() {
                any = true;
                match link.on_event(self.camera, event) {
                    Ok(event) => self.events.extend(event),
                    Err(error) => return self.hang_up(now, &*error),
                }
            }
            if !any {
                break;
            }
            if link.handshake.is_welcomed() {
                self.backoff.handle_welcome();
            }
        }
        let Some(link) = &mut self.link else { return };
        let send = |_: &_, datagram| self.transmits.push_back(datagram);
        transmit(&mut link.connection, now, &mut self.buffer, send);
    }
}

impl Link {
    /// Until when the server has to have welcomed; none once it has.
    fn welcome_by(&self) -> Option<Instant> {
        let until = self.handshake.poll_timeout()?;
        Some(self.dialled + Duration::from_micros(until.as_micros()))
    }

    /// Takes in what happened, and says what it means; or why the connection cannot go on.
    fn on_event(&mut self, camera: u32, event: QuicEvent) -> Result<Option<Event>, Box<dyn Error>> {
        match event {
            QuicEvent::ConnectionLost { reason } => return Err(reason.into()),
            QuicEvent::Connected => {
                self.control = self.connection.streams().open(Dir::Bi);
                let Some(stream) = self.control else { return Ok(None) };
                // A fresh stream takes a message that is shorter than its window.
                let _ = self.connection.send_stream(stream).write(&self.handshake.hello_bytes());
            }
            QuicEvent::Stream(StreamEvent::Available { dir: Dir::Bi }) => self.open_streams(),
            QuicEvent::Stream(StreamEvent::Readable { id }) if Some(id) == self.control => {
                let Read { chunks, ended, .. } = read(&mut self.connection, id);
                let limits = self.handshake.handle_bytes(&chunks.concat())?;
                if ended {
                    self.handshake.handle_end()?;
                }
                let round_trip = self.connection.rtt();
                return Ok(limits.map(|_| Event::Up { camera, round_trip }));
            }
            QuicEvent::Stream(StreamEvent::Readable { id }) => {
                let Some(exchange) = self.exchanges.get_mut(&id) else { return Ok(None) };
                let Read { chunks, ended, reset } = read(&mut self.connection, id);
                exchange.handle_reply_bytes(&chunks.concat());
                if reset {
                    exchange.handle_reply_reset();
                } else if ended {
                    exchange.handle_reply_end();
                }
                return Ok(self.settle(camera, id));
            }
            QuicEvent::Stream(StreamEvent::Writable { id } | StreamEvent::Stopped { id, .. }) => {
                self.write(id);
                return Ok(self.settle(camera, id));
            }
            _ => {}
        }
        Ok(None)
    }

    /// Gives waiting frames a stream each, as long as the server allows some.
    fn open_streams(&mut self) {
        while !self.waiting.is_empty()
            && let Some(stream) = self.connection.streams().open(Dir::Bi)
            && let Some(outgoing) = self.waiting.pop_front()
        {
            // A stream that has just been opened cannot have been closed.
            let _ = self.connection.send_stream(stream).set_priority(outgoing.priority());
            self.exchanges.insert(stream, Exchange::new(outgoing));
            self.write(stream);
        }
    }

    fn write(&mut self, id: StreamId) {
        let Some(exchange) = self.exchanges.get_mut(&id) else { return };
        let mut stream = self.connection.send_stream(id);
        while let Some(bytes) = exchange.poll_write() {
            match stream.write(bytes) {
                Ok(written) => exchange.handle_written(written),
                Err(WriteError::Blocked) => return,
                Err(_) => exchange.handle_stopped(),
            }
        }
        // Fails on a stream that was stopped or has been finished.
        let _ = stream.finish();
    }

    /// The outcome of an exchange that is over.
    fn settle(&mut self, camera: u32, id: StreamId) -> Option<Event> {
        let exchange = self.exchanges.get_mut(&id)?;
        let key = Key { camera, frame: exchange.frame().0 };
        let outcome = exchange.poll_outcome()?;
        self.exchanges.remove(&id);
        Some(match outcome {
            Ok(checked) => event(key, checked),
            Err(error) => {
                tracing::debug!(camera, frame = key.frame, %error, "no reply");
                abandon(&mut self.connection, id, CANCELLED.into());
                Event::Lost { key }
            }
        })
    }
}
