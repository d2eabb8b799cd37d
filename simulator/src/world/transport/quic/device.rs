//! A device's end: what the client's shell does with a connection, without a runtime.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use isthmus_head_client::quic::{CANCELLED, PROBE_PRIORITY, priority};
use isthmus_head_client::{Answer, FIRST_PAUSE, LONGEST_PAUSE, ServerReply};
use isthmus_proto::framer::write_message;
use isthmus_proto::wire::{self, Hello, ToDevice, ToServer, reply, to_device, to_server};
use isthmus_proto::{
    Content, Envelope, Framer, MAX_CONTROL_BYTES, PROTOCOL_VERSION, write_image_packet,
    write_packet, write_padding,
};
use prost::Message;
use quinn_proto::{
    Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, Event as QuicEvent, StreamEvent,
    StreamId, VarInt, WriteError,
};

use super::end::{abandon, read, reconcile, transmit};
use super::identity::{HOST, Identity};
use crate::world::DIGEST;
use crate::world::frames::coded;
use crate::world::transport::{Event, Key, Upload};

/// How long an attempt to connect may take, as the client has it by default.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Device {
    camera: u32,
    server: SocketAddr,
    link: Option<Link>,
    attempts: u32,
    pause: Duration,
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
    control: Option<StreamId>,
    framer: Framer,
    /// Until when the server has to have welcomed; none once it has.
    welcome_by: Option<Instant>,
    /// Frames that wait for a stream.
    waiting: VecDeque<Outgoing>,
    exchanges: BTreeMap<StreamId, Exchange>,
    streams: BTreeMap<u64, StreamId>,
}

struct Outgoing {
    key: Key,
    bytes: Vec<u8>,
    priority: i32,
}

struct Exchange {
    key: Key,
    bytes: Vec<u8>,
    written: usize,
    /// What came of the reply, and whether that is all.
    reply: Vec<u8>,
    replied: bool,
}

impl Device {
    /// A device that connects at once.
    pub(super) fn new(camera: u32, server: SocketAddr, now: Instant) -> Self {
        Device {
            camera,
            server,
            link: None,
            attempts: 0,
            pause: FIRST_PAUSE,
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
        let Upload { key, content, ref layer_ends, time_left, answer_by } = *upload;
        let mut bytes = envelope(key, time_left, false);
        match content {
            Content::Features(point) => {
                write_packet(&mut bytes, 0, &DIGEST, point, &coded(layer_ends, key.frame));
            }
            Content::Image(format) => {
                let file = coded(layer_ends, key.frame).stream;
                write_image_packet(&mut bytes, 0, &DIGEST, format, &file);
            }
        }
        self.put(now, Outgoing { key, bytes, priority: priority(answer_by) });
    }

    pub(super) fn probe(&mut self, now: Instant, key: Key, padding: usize, time_left: Duration) {
        let mut bytes = envelope(key, time_left, true);
        write_padding(&mut bytes, padding);
        self.put(now, Outgoing { key, bytes, priority: PROBE_PRIORITY });
    }

    fn put(&mut self, now: Instant, outgoing: Outgoing) {
        let Some(link) = &mut self.link else {
            return self.events.push_back(Event::Lost { key: outgoing.key });
        };
        link.waiting.push_back(outgoing);
        link.open_streams();
        self.drive(now);
    }

    pub(super) fn cancel(&mut self, now: Instant, frame: u64) {
        let Some(link) = &mut self.link else { return };
        let Some(stream) = link.streams.remove(&frame) else {
            return link.waiting.retain(|outgoing| outgoing.key.frame != frame);
        };
        link.exchanges.remove(&stream);
        abandon(&mut link.connection, stream, CANCELLED);
        self.drive(now);
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
        let late = |link: &Link| link.welcome_by.is_some_and(|until| until <= now);
        if self.link.as_ref().is_some_and(late) {
            self.hang_up(now);
        }
    }

    pub(super) fn poll_timeout(&mut self) -> Option<Instant> {
        let link = self.link.as_mut();
        let timers = link.map(|link| [link.connection.poll_timeout(), link.welcome_by]);
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
            control: None,
            framer: Framer::new(MAX_CONTROL_BYTES),
            welcome_by: Some(now + CONNECT_TIMEOUT),
            waiting: VecDeque::new(),
            exchanges: BTreeMap::new(),
            streams: BTreeMap::new(),
        });
    }

    fn hang_up(&mut self, now: Instant) {
        if let Some(link) = self.link.take()
            && link.welcome_by.is_none()
        {
            self.events.push_back(Event::Down { camera: self.camera });
        }
        self.redial = Some(now + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
    }

    /// Lets the connection do all that it can.
    fn drive(&mut self, now: Instant) {
        loop {
            let Some(link) = &mut self.link else { return };
            let mut any = reconcile(&mut link.endpoint, link.handle, &mut link.connection);
            while let Some(event) = link.connection.poll() {
                any = true;
                if let QuicEvent::ConnectionLost { reason } = &event {
                    tracing::debug!(camera = self.camera, %reason, "connection lost");
                    return self.hang_up(now);
                }
                link.on_event(self.camera, event, &mut self.events);
            }
            if !any {
                break;
            }
            if link.welcome_by.is_none() {
                self.pause = FIRST_PAUSE;
            }
        }
        let Some(link) = &mut self.link else { return };
        let send = |_: &_, datagram| self.transmits.push_back(datagram);
        transmit(&mut link.connection, now, &mut self.buffer, send);
    }
}

impl Link {
    fn on_event(&mut self, camera: u32, event: QuicEvent, events: &mut VecDeque<Event>) {
        match event {
            QuicEvent::Connected => self.say_hello(),
            QuicEvent::Stream(StreamEvent::Readable { id }) if Some(id) == self.control => {
                events.extend(self.welcomed().map(|round_trip| Event::Up { camera, round_trip }));
            }
            QuicEvent::Stream(StreamEvent::Readable { id }) => {
                let Some(exchange) = self.exchanges.get_mut(&id) else { return };
                let read = read(&mut self.connection, id);
                read.chunks.iter().for_each(|chunk| exchange.reply.extend_from_slice(chunk));
                exchange.replied |= read.ended;
                self.settle(id, events);
            }
            QuicEvent::Stream(StreamEvent::Writable { id } | StreamEvent::Stopped { id, .. }) => {
                self.write(id);
                self.settle(id, events);
            }
            QuicEvent::Stream(StreamEvent::Available { dir: Dir::Bi }) => self.open_streams(),
            _ => {}
        }
    }

    fn say_hello(&mut self) {
        let Some(stream) = self.connection.streams().open(Dir::Bi) else { return };
        self.control = Some(stream);
        let name = "simulated".to_owned();
        let bundles = vec![wire::BundleRef { name, digest: DIGEST.0.to_vec() }];
        let detail = wire::Detail::Top.into();
        let hello = Hello { protocol: PROTOCOL_VERSION, bundles, detail, tracing: None };
        let mut bytes = Vec::new();
        let message = Some(to_server::Message::Hello(hello));
        write_message(&mut bytes, &ToServer { message });
        // A fresh stream takes a message that is shorter than its window.
        let _ = self.connection.send_stream(stream).write(&bytes);
    }

    /// The round trip seen so far, once the server has welcomed.
    fn welcomed(&mut self) -> Option<Duration> {
        let read = read(&mut self.connection, self.control?);
        read.chunks.iter().for_each(|chunk| self.framer.push(chunk));
        let message = self.framer.next_message::<ToDevice>().ok().flatten()?.message;
        let welcome = matches!(message, Some(to_device::Message::Welcome(_)));
        self.welcome_by.take_if(|_| welcome).map(|_| self.connection.rtt())
    }

    /// Gives waiting frames a stream each, as long as the server allows some.
    fn open_streams(&mut self) {
        while !self.waiting.is_empty()
            && let Some(stream) = self.connection.streams().open(Dir::Bi)
            && let Some(Outgoing { key, bytes, priority }) = self.waiting.pop_front()
        {
            // A stream that has just been opened cannot have been closed.
            let _ = self.connection.send_stream(stream).set_priority(priority);
            let exchange = Exchange { key, bytes, written: 0, reply: Vec::new(), replied: false };
            self.exchanges.insert(stream, exchange);
            self.streams.insert(key.frame, stream);
            self.write(stream);
        }
    }

    fn write(&mut self, id: StreamId) {
        let Some(exchange) = self.exchanges.get_mut(&id) else { return };
        let mut stream = self.connection.send_stream(id);
        while exchange.written < exchange.bytes.len() {
            match stream.write(&exchange.bytes[exchange.written..]) {
                Ok(written) => exchange.written += written,
                Err(WriteError::Blocked) => return,
                // The server has seen enough; its reply says why.
                Err(_) => exchange.written = exchange.bytes.len(),
            }
        }
        // Fails on a stream that was stopped or has been finished.
        let _ = stream.finish();
    }

    /// Ends an exchange whose frame was written and whose reply has come.
    fn settle(&mut self, id: StreamId, events: &mut VecDeque<Event>) {
        let done = |it: &Exchange| it.replied && it.written == it.bytes.len();
        if !self.exchanges.get(&id).is_some_and(done) {
            return;
        }
        let Some(Exchange { key, reply, .. }) = self.exchanges.remove(&id) else { return };
        self.streams.remove(&key.frame);
        match wire::Reply::decode(reply.as_slice()).ok().and_then(|reply| event(key, reply)) {
            Some(event) => events.push_back(event),
            None => {
                abandon(&mut self.connection, id, VarInt::from_u32(0));
                events.push_back(Event::Lost { key });
            }
        }
    }
}

fn envelope(key: Key, time_left: Duration, probe: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    Envelope { frame: (key.frame & 0xffff) as u16, time_left, probe }.write(&mut bytes);
    bytes
}

/// What a reply that makes sense tells.
fn event(key: Key, reply: wire::Reply) -> Option<Event> {
    let feedback = reply.feedback.unwrap_or_default();
    let outcome = match reply.outcome? {
        reply::Outcome::Echo(_) => return Some(Event::Echoed { key, feedback }),
        reply::Outcome::Refusal(refusal) => {
            Err((refusal.reason(), Duration::from_millis(refusal.retry_after_ms.into())))
        }
        reply::Outcome::Answer(answer) => {
            let best = answer.top.first()?;
            let class = usize::try_from(best.class).ok()?;
            let layers = u8::try_from(answer.layers_used).ok()?;
            Ok((Answer { class, confidence: best.probability }, layers))
        }
    };
    Some(Event::Replied { key, reply: ServerReply { outcome, feedback } })
}
