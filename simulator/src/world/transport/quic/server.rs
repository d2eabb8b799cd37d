//! The server's end: what the server's shell does with connections, without a runtime. Admission
//! and the batcher are the world's.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use isthmus_head_client::ServerReply;
use isthmus_proto::framer::write_message;
use isthmus_proto::wire::{self, ToDevice, ToServer, Welcome, reply, to_device, to_server};
use isthmus_proto::{Framer, MAX_CONTROL_BYTES, OperatingPoint, PROTOCOL_VERSION, Timestamp};
use isthmus_tail_server::admission::Refused;
use isthmus_tail_server::code;
use isthmus_tail_server::receiver::{Receiver, ReceiverConfig};
use prost::Message;
use quinn_proto::{
    Connection, ConnectionHandle, DatagramEvent, Dir, Endpoint, EndpointConfig, Event as QuicEvent,
    Incoming, ServerConfig, StreamEvent, StreamId, VarInt,
};

use super::device::DIGEST;
use super::end::{Clock, Read, datagrams, read, reconcile, transmit, write_last};
use crate::world::transport::{Event, Key, Received};
use crate::world::{MAX_FRAME, received_only};

/// Longest time that a frame may stay, whatever its time left says.
const MAX_STAY: Duration = Duration::from_secs(10);

/// Classes that an answer tells.
const TOP: u32 = 5;

pub(super) struct Server {
    clock: Clock,
    endpoint: Endpoint,
    peers: BTreeMap<usize, Peer>,
    /// Where the frames are that the world was told of.
    places: BTreeMap<Key, (usize, StreamId)>,
    /// The latest frame that each camera sent, which tells what 16 bits of a number stand for.
    latest: Vec<u64>,
    max_in_flight: usize,
    buffer: Vec<u8>,
    pub(super) transmits: VecDeque<(SocketAddr, Bytes)>,
    pub(super) events: VecDeque<Event>,
}

/// A connection, and the frames that are on it.
struct Peer {
    camera: u32,
    connection: Connection,
    control: Option<StreamId>,
    framer: Framer,
    frames: BTreeMap<StreamId, Frame>,
}

struct Frame {
    receiver: Receiver,
    stage: Stage,
    key: Option<Key>,
    /// Nothing more will come.
    ended: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its header has not come.
    Receiving,
    /// The world has to say whether it may come in.
    Announced,
    /// It may, and is not yet whole.
    Admitted,
    /// The world has it.
    Submitted,
    /// Its reply is on its way.
    Replied,
}

impl Server {
    pub(super) fn new(
        clock: Clock,
        config: (Arc<EndpointConfig>, Arc<ServerConfig>),
        cameras: u32,
        max_in_flight: usize,
    ) -> Self {
        let (endpoint, server) = config;
        Server {
            clock,
            endpoint: Endpoint::new(endpoint, Some(server), true, None),
            peers: BTreeMap::new(),
            places: BTreeMap::new(),
            latest: vec![0; cameras as usize],
            max_in_flight,
            buffer: Vec::new(),
            transmits: VecDeque::new(),
            events: VecDeque::new(),
        }
    }

    /// A camera is going to send this frame.
    pub(super) fn expect(&mut self, key: Key) {
        self.latest[key.camera as usize] = key.frame;
    }

    /// Takes a datagram of a camera's device; which connection may have something to do now.
    pub(super) fn handle_datagram(
        &mut self,
        now: Timestamp,
        camera: u32,
        remote: SocketAddr,
        datagram: &[u8],
    ) -> Option<usize> {
        let (at, data) = (self.clock.instant(now), BytesMut::from(datagram));
        let mut buffer = Vec::new();
        match self.endpoint.handle(at, remote, None, None, data, &mut buffer)? {
            DatagramEvent::ConnectionEvent(handle, event) => {
                self.peers.get_mut(&handle.0)?.connection.handle_event(event);
                self.drive(now, handle.0);
                Some(handle.0)
            }
            DatagramEvent::NewConnection(incoming) => self.accept(now, camera, incoming),
            DatagramEvent::Response(transmit) => {
                let answers = datagrams(&transmit, &buffer);
                self.transmits.extend(answers.map(|bytes| (transmit.destination, bytes)));
                None
            }
        }
    }

    fn accept(&mut self, now: Timestamp, camera: u32, incoming: Incoming) -> Option<usize> {
        let mut buffer = Vec::new();
        match self.endpoint.accept(incoming, self.clock.instant(now), &mut buffer, None) {
            Ok((handle, connection)) => {
                let framer = Framer::new(MAX_CONTROL_BYTES);
                let frames = BTreeMap::new();
                let peer = Peer { camera, connection, control: None, framer, frames };
                self.peers.insert(handle.0, peer);
                self.drive(now, handle.0);
                Some(handle.0)
            }
            Err(error) => {
                if let Some(transmit) = error.response {
                    let answers = datagrams(&transmit, &buffer);
                    self.transmits.extend(answers.map(|bytes| (transmit.destination, bytes)));
                }
                None
            }
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Timestamp, handle: usize) {
        let at = self.clock.instant(now);
        let Some(peer) = self.peers.get_mut(&handle) else { return };
        if peer.connection.poll_timeout().is_some_and(|due| due <= at) {
            peer.connection.handle_timeout(at);
        }
        let impatient = |frame: &Frame| frame.patience().is_some_and(|until| until <= now);
        let over = peer.frames.iter().filter(|(_, frame)| impatient(frame));
        for stream in over.map(|(&stream, _)| stream).collect::<Vec<_>>() {
            self.finish_receiving(now, handle, stream);
        }
        self.drive(now, handle);
    }

    pub(super) fn poll_timeout(&mut self, handle: usize) -> Option<Timestamp> {
        let peer = self.peers.get_mut(&handle)?;
        let due = peer.connection.poll_timeout().map(|due| self.clock.timestamp(due));
        peer.frames.values().filter_map(Frame::patience).chain(due).min()
    }

    /// Lets an announced frame in; the connection it is on.
    pub(super) fn admit(&mut self, now: Timestamp, key: Key, compute: Duration) -> Option<usize> {
        let &(handle, stream) = self.places.get(&key)?;
        let frame = self.peers.get_mut(&handle)?.frames.get_mut(&stream)?;
        frame.receiver.handle_expected_compute(compute);
        frame.stage = Stage::Admitted;
        if frame.ended || frame.receiver.is_whole() {
            self.finish_receiving(now, handle, stream);
        }
        self.drive(now, handle);
        Some(handle)
    }

    /// Replies to a frame, if it is still wanted; the connection it is on.
    pub(super) fn reply(&mut self, now: Timestamp, key: Key, reply: ServerReply) -> Option<usize> {
        let (handle, stream) = self.places.remove(&key)?;
        let peer = self.peers.get_mut(&handle)?;
        let frame = peer.frames.get_mut(&stream)?;
        if frame.stage == Stage::Announced {
            // Fails when the device has sent everything, and then there is nothing to stop.
            let _ = peer.connection.recv_stream(stream).stop(code::REFUSED.into());
        }
        frame.stage = Stage::Replied;
        write_last(&mut peer.connection, stream, &wire_reply(key, reply).encode_to_vec());
        self.drive(now, handle);
        Some(handle)
    }

    /// What came of a frame is all that will.
    fn finish_receiving(&mut self, now: Timestamp, handle: usize, stream: StreamId) {
        let Some(peer) = self.peers.get_mut(&handle) else { return };
        let Some(frame) = peer.frames.get_mut(&stream) else { return };
        let received = frame.receiver.finish(now, &DIGEST);
        match (received, frame.key) {
            (Ok(received), Some(key)) if frame.stage == Stage::Admitted => {
                frame.stage = Stage::Submitted;
                self.events.push_back(Event::Received(Received {
                    key,
                    content: received.content,
                    layers: u8::try_from(received.layers).unwrap_or(OperatingPoint::MAX_LAYERS),
                    deadline: received.deadline,
                    span: received.receive_span,
                }));
            }
            (Err(error), _) => self.refuse(handle, stream, error.into()),
            (Ok(_), _) => {}
        }
    }

    /// Refuses a frame that the world does not have.
    fn refuse(&mut self, handle: usize, stream: StreamId, refused: Refused) {
        let Some(peer) = self.peers.get_mut(&handle) else { return };
        let Some(frame) = peer.frames.get_mut(&stream) else { return };
        frame.stage = Stage::Replied;
        if let Some(key) = frame.key {
            self.places.remove(&key);
            self.events.push_back(Event::Unwanted { key });
        }
        let reply = reply_at_once(&frame.receiver, reply::Outcome::Refusal(refused.into()));
        let _ = peer.connection.recv_stream(stream).stop(code::REFUSED.into());
        write_last(&mut peer.connection, stream, &reply.encode_to_vec());
    }

    /// Lets a connection do all that it can.
    fn drive(&mut self, now: Timestamp, handle: usize) {
        let at = self.clock.instant(now);
        loop {
            let Some(peer) = self.peers.get_mut(&handle) else { return };
            let connection = &mut peer.connection;
            let mut any = reconcile(&mut self.endpoint, ConnectionHandle(handle), connection);
            while let Some(event) = self.peers.get_mut(&handle).and_then(|it| it.connection.poll())
            {
                any = true;
                self.on_event(now, handle, event);
            }
            if !any {
                break;
            }
        }
        let Some(peer) = self.peers.get_mut(&handle) else { return };
        let transmits = &mut self.transmits;
        transmit(&mut peer.connection, at, &mut self.buffer, |transmit, datagram| {
            transmits.push_back((transmit.destination, datagram));
        });
        if peer.connection.is_drained() {
            self.peers.remove(&handle);
        }
    }

    fn on_event(&mut self, now: Timestamp, handle: usize, event: QuicEvent) {
        let Some(peer) = self.peers.get_mut(&handle) else { return };
        match event {
            QuicEvent::Stream(StreamEvent::Opened { dir: Dir::Bi }) => {
                while let Some(peer) = self.peers.get_mut(&handle)
                    && let Some(stream) = peer.connection.streams().accept(Dir::Bi)
                {
                    if peer.control.is_none() {
                        peer.control = Some(stream);
                    } else {
                        peer.frames.insert(stream, Frame::new(now));
                    }
                    self.on_readable(now, handle, stream);
                }
            }
            QuicEvent::Stream(StreamEvent::Readable { id }) => self.on_readable(now, handle, id),
            QuicEvent::Stream(StreamEvent::Stopped { id, .. }) => self.let_go(handle, id),
            QuicEvent::Stream(StreamEvent::Finished { id }) => {
                let unread = peer.frames.remove(&id).filter(|frame| !frame.ended);
                unread.map(|_| peer.connection.recv_stream(id).stop(VarInt::from_u32(0)));
            }
            QuicEvent::ConnectionLost { reason } => {
                tracing::debug!(camera = peer.camera, %reason, "disconnected");
                let streams: Vec<_> = peer.frames.keys().copied().collect();
                streams.into_iter().for_each(|stream| self.let_go(handle, stream));
            }
            _ => {}
        }
    }

    /// Nobody wants the answer to a frame any more.
    fn let_go(&mut self, handle: usize, stream: StreamId) {
        let Some(peer) = self.peers.get_mut(&handle) else { return };
        let Some(frame) = peer.frames.remove(&stream) else { return };
        if let Some(key) = frame.key
            && self.places.remove(&key).is_some()
            && frame.stage != Stage::Announced
        {
            self.events.push_back(Event::Unwanted { key });
        }
        // Each fails where its side has ended.
        let _ = peer.connection.send_stream(stream).reset(code::DONE.into());
        let _ = peer.connection.recv_stream(stream).stop(VarInt::from_u32(0));
    }

    fn on_readable(&mut self, now: Timestamp, handle: usize, stream: StreamId) {
        let Some(peer) = self.peers.get_mut(&handle) else { return };
        if Some(stream) == peer.control {
            return peer.greet(self.max_in_flight);
        }
        let Some(frame) = peer.frames.get_mut(&stream) else { return };
        let Read { chunks, ended, reset } = read(&mut peer.connection, stream);
        frame.ended |= ended;
        if reset {
            return self.let_go(handle, stream);
        }
        if matches!(frame.stage, Stage::Submitted | Stage::Replied) {
            return;
        }
        let mut taken = chunks.iter().map(|chunk| frame.receiver.handle_bytes(now, chunk));
        if let Some(error) = taken.find_map(Result::err) {
            return self.refuse(handle, stream, error.into());
        }
        if frame.receiver.is_probe() && frame.receiver.is_whole() {
            frame.stage = Stage::Replied;
            let reply = reply_at_once(&frame.receiver, reply::Outcome::Echo(wire::Echo {}));
            return write_last(&mut peer.connection, stream, &reply.encode_to_vec());
        }
        let number = frame.receiver.envelope().map(|envelope| envelope.frame);
        match (frame.stage, number) {
            (Stage::Receiving, Some(number)) if frame.receiver.packet().is_some() => {
                let latest = self.latest[peer.camera as usize];
                let behind = (latest as u16).wrapping_sub(number);
                let key = Key { camera: peer.camera, frame: latest.saturating_sub(behind.into()) };
                (frame.key, frame.stage) = (Some(key), Stage::Announced);
                self.places.insert(key, (handle, stream));
                self.events.push_back(Event::Announced { key });
            }
            (Stage::Receiving | Stage::Admitted, _) if ended || frame.receiver.is_whole() => {
                self.finish_receiving(now, handle, stream);
            }
            _ => {}
        }
    }
}

/// The reply to something of which nothing is to be computed.
fn reply_at_once(receiver: &Receiver, outcome: reply::Outcome) -> wire::Reply {
    wire::Reply {
        frame: receiver.envelope().map_or(0, |envelope| envelope.frame.into()),
        outcome: Some(outcome),
        feedback: Some(received_only(receiver.receive_span())),
    }
}

impl Peer {
    /// Answers the hello.
    fn greet(&mut self, max_in_flight: usize) {
        let Some(control) = self.control else { return };
        let read = read(&mut self.connection, control);
        read.chunks.iter().for_each(|chunk| self.framer.push(chunk));
        let message = self.framer.next_message::<ToServer>().ok().flatten();
        let Some(to_server::Message::Hello(hello)) = message.and_then(|it| it.message) else {
            return;
        };
        let served = wire::BundleStatus { served: true, reason: String::new() };
        let welcome = Welcome {
            protocol: PROTOCOL_VERSION,
            server: concat!("isthmus-tail-server ", env!("CARGO_PKG_VERSION")).into(),
            bundles: hello.bundles.iter().map(|_| served.clone()).collect(),
            max_frame_bytes: u32::try_from(MAX_FRAME).unwrap_or(u32::MAX),
            max_in_flight: u32::try_from(max_in_flight).unwrap_or(u32::MAX),
        };
        let mut bytes = Vec::new();
        let message = Some(to_device::Message::Welcome(welcome));
        write_message(&mut bytes, &ToDevice { message });
        // A fresh stream takes a message that is shorter than its window.
        let _ = self.connection.send_stream(control).write(&bytes);
    }
}

impl Frame {
    fn new(now: Timestamp) -> Self {
        let config = ReceiverConfig { max_frame_bytes: MAX_FRAME, max_stay: MAX_STAY };
        let receiver = Receiver::new(now, config);
        Frame { receiver, stage: Stage::Receiving, key: None, ended: false }
    }

    /// Until when to wait for more of it.
    fn patience(&self) -> Option<Timestamp> {
        match self.stage {
            Stage::Receiving | Stage::Admitted => self.receiver.poll_timeout(),
            Stage::Announced | Stage::Submitted | Stage::Replied => None,
        }
    }
}

/// A reply as large as a real one: the most probable classes, of which the first is known.
fn wire_reply(key: Key, reply: ServerReply) -> wire::Reply {
    let outcome = match reply.outcome {
        Ok((answer, layers)) => {
            let first = u32::try_from(answer.class).unwrap_or(u32::MAX);
            let rest = (1.0 - answer.confidence) / TOP as f32;
            let score = |at: u32| wire::Score {
                class: first.saturating_add(at),
                probability: if at == 0 { answer.confidence } else { rest },
            };
            let top = (0..TOP).map(score).collect();
            let layers_used = layers.into();
            reply::Outcome::Answer(wire::Answer { top, layers_used, logits: Vec::new() })
        }
        Err((reason, retry_after)) => {
            let refused =
                Refused { retry_after, ..Refused::new(reason, "as in a simulated world") };
            reply::Outcome::Refusal(refused.into())
        }
    };
    let frame = key.frame & 0xffff;
    wire::Reply { frame, outcome: Some(outcome), feedback: Some(reply.feedback) }
}
