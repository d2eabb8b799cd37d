//! A transport without handshake, acknowledgements and congestion control: a frame's packets enter
//! the link at once, and a packet that is lost is sent again one round trip after it was. No frame
//! is cut short. A reply to an address that has changed is lost, until a packet has told the server
//! of the new one.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use isthmus_head_client::exchange::{Asked, check};
use isthmus_proto::wire::{Reply, reply};
use isthmus_proto::{Bitrate, Content, DataSize, Envelope, FrameId, Timestamp};
use isthmus_tail_server::admission::Announced;
use isthmus_tail_server::exchange::{Action, ConnectionId, Output, Whole};
use isthmus_tail_server::receiver::Received;
use prost::Message;
use quinn_proto::{Dir, Side, StreamId};

use super::links::Links;
use super::{Event, Exchange, Key, Route, Transport, Upload, bundle, event};
use crate::link::LinkCounters;
use crate::link::chance::scattered;
use crate::world::agenda::Agenda;
use crate::world::{HEADERS, PAYLOAD, WorldConfig, connect, on_the_wire, probe_len};

/// A reply without headers (bytes), where the record does not say.
const REPLY: u32 = 48;

/// What a sender waits beyond a round trip, on a path without delay too.
const PATIENCE: Duration = Duration::from_millis(1);

pub(in crate::world) struct Ideal {
    uplink: Links<Packet>,
    downlink: Links<Answer>,
    /// Delays of both directions without queues.
    there: Duration,
    back: Duration,
    /// Sent and not given up.
    wanted: BTreeSet<Key>,
    /// The server's names for the devices' connections.
    connections: Vec<ConnectionId>,
    /// At the server, at least in part, and not yet answered.
    arriving: BTreeMap<Key, Arriving>,
    /// What is sent again.
    again: Agenda<Lost>,
    /// Which address the devices have by now, and which the server knows of each.
    address: u32,
    known: Vec<u32>,
    misdirected: u64,
    events: VecDeque<Event>,
}

/// One packet of a frame.
#[derive(Clone, Copy, Debug)]
struct Packet {
    key: Key,
    index: u32,
    packets: u32,
    bytes: u32,
    time_left: Duration,
    /// `None` of a probe.
    content: Option<Content>,
    /// That it was sent from.
    address: u32,
}

#[derive(Clone, Debug)]
struct Answer {
    key: Key,
    reply: Reply,
}

#[derive(Clone, Copy, Debug)]
struct Arriving {
    first: Timestamp,
    time_left: Duration,
    missing: u32,
    seen: u128,
}

#[derive(Debug)]
enum Lost {
    Packet(Packet),
    Answer(Answer),
}

impl Ideal {
    pub(in crate::world) fn new(config: &WorldConfig, exchange: &mut Exchange) -> Self {
        let (uplink, downlink) = (&config.path.uplink, &config.path.downlink);
        let (there, back) = (uplink.delay.base, downlink.delay.base);
        let count = config.paths();
        let up = |camera| Event::Up { camera, round_trip: there + back };
        Ideal {
            uplink: Links::new(uplink, count, scattered(config.seed)),
            downlink: Links::new(downlink, count, scattered(!config.seed)),
            there,
            back,
            wanted: BTreeSet::new(),
            connections: (0..config.cameras).map(|camera| connect(exchange, camera)).collect(),
            arriving: BTreeMap::new(),
            again: Agenda::new(),
            address: 0,
            known: vec![0; config.cameras as usize],
            misdirected: 0,
            events: (0..config.cameras).map(up).collect(),
        }
    }

    fn put_packet(&mut self, now: Timestamp, packet: Packet) {
        let packet = Packet { address: self.address, ..packet };
        let size = DataSize::from_bytes(packet.bytes.into());
        self.uplink.handle_packet(now, packet.key.camera, size, packet);
        self.note_dropped(now + self.there + self.back);
    }

    fn put_answer(&mut self, now: Timestamp, answer: Answer) {
        if self.known[answer.key.camera as usize] != self.address {
            self.misdirected += 1;
            return self.send_again(now + self.there + self.back, Lost::Answer(answer));
        }
        let (size, _) = on_the_wire(reply_bytes(&answer.reply));
        self.downlink.handle_packet(now, answer.key.camera, size, answer);
        self.note_dropped(now + self.there + self.back);
    }

    /// Sends what the links dropped again, once its sender can have missed it: a round trip after
    /// the queue turned it away, the way back after it should have arrived.
    fn note_dropped(&mut self, noticed: Timestamp) {
        while let Some(packet) = self.uplink.poll_dropped() {
            self.send_again(noticed, Lost::Packet(packet));
        }
        while let Some(answer) = self.downlink.poll_dropped() {
            self.send_again(noticed, Lost::Answer(answer));
        }
    }

    fn send_again(&mut self, noticed: Timestamp, lost: Lost) {
        self.again.plan(noticed + PATIENCE, lost);
    }

    fn on_packet(&mut self, now: Timestamp, packet: Packet, exchange: &mut Exchange) {
        let Packet { key, index, packets, time_left, content, address, .. } = packet;
        let known = &mut self.known[key.camera as usize];
        *known = address.max(*known);
        if !self.wanted.contains(&key) {
            // Given up, or answered: the stream was reset.
            self.arriving.remove(&key);
            return;
        }
        let blank = Arriving { first: now, time_left, missing: packets, seen: 0 };
        let arriving = self.arriving.entry(key).or_insert(blank);
        let bit = 1u128 << index;
        if arriving.seen & bit != 0 {
            return;
        }
        arriving.seen |= bit;
        arriving.missing -= 1;
        // What was received stays noted, so that a second copy is no second frame.
        if arriving.missing > 0 {
            return;
        }
        let (first, time_left) = (arriving.first, arriving.time_left);
        let (id, receive_span) = ((key.frame & 0xffff) as u16, now.saturating_since(first));
        let whole = match content {
            None => Whole::Probe { id, receive_span },
            Some(content) => Whole::Frame {
                announced: Announced { bundle: 0, content, bytes: 0 },
                received: Received {
                    envelope: Envelope { frame: id, time_left, probe: false },
                    content,
                    stream: Vec::new(),
                    layers: match content {
                        Content::Features(point) => point.layers.into(),
                        Content::Image(_) => 1,
                    },
                    deadline: first + time_left,
                    receive_span,
                    received_at: now,
                },
            },
        };
        let stream = StreamId::new(Side::Client, Dir::Bi, key.frame);
        let route = Route { camera: key.camera, connection: 0, stream };
        let connection = self.connections[key.camera as usize];
        let frame = exchange.begin(now, connection, key.frame, route);
        exchange.handle_whole(now, frame, whole);
    }

    fn put(
        &mut self,
        now: Timestamp,
        key: Key,
        bytes: usize,
        content: Option<Content>,
        time_left: Duration,
    ) {
        let mut rest = u32::try_from(bytes).unwrap_or(u32::MAX);
        let (_, packets) = on_the_wire(rest);
        self.wanted.insert(key);
        for index in 0..packets {
            let bytes = rest.min(PAYLOAD);
            rest -= bytes;
            let bytes = bytes + HEADERS;
            self.put_packet(
                now,
                Packet { key, index, packets, bytes, time_left, content, address: 0 },
            );
        }
    }
}

impl Transport for Ideal {
    fn send(&mut self, now: Timestamp, upload: Upload) {
        let Upload { key, content, layer_ends, time_left, .. } = upload;
        let whole = layer_ends.last().copied().unwrap_or(0);
        self.put(now, key, whole, Some(content), time_left);
    }

    fn probe(&mut self, now: Timestamp, key: Key, padding: usize, time_left: Duration) {
        self.put(now, key, probe_len(padding), None, time_left);
    }

    fn cancel(&mut self, _: Timestamp, key: Key) {
        self.wanted.remove(&key);
    }

    fn carry_out(&mut self, now: Timestamp, exchange: &mut Exchange) {
        while let Some(Output { frame, to, action }) = exchange.poll_output() {
            let key = Key { camera: to.camera, frame: to.stream.index() };
            match action {
                // A frame came whole: there is nothing to stop.
                Action::StopReading => continue,
                Action::LetGo => {}
                // Nobody listens for the answer to a stream that was reset.
                Action::Reply(ended) if self.wanted.contains(&key) => {
                    self.put_answer(now, Answer { key, reply: ended.reply });
                }
                Action::Reply(_) => {}
            }
            self.arriving.remove(&key);
            exchange.handle_left(now, frame);
        }
    }

    fn rebind(&mut self) {
        self.address += 1;
    }

    fn handle_timeout(&mut self, now: Timestamp, exchange: &mut Exchange) {
        while let Some(arrived) = self.uplink.poll_delivered(now) {
            match arrived.corrupted {
                false => self.on_packet(now, arrived.content, exchange),
                // Its authentication fails: it is as good as lost.
                true => self.send_again(now + self.back, Lost::Packet(arrived.content)),
            }
            if exchange.queued() > 0 {
                return;
            }
        }
        self.note_dropped(now + self.back);
        while let Some(arrived) = self.downlink.poll_delivered(now) {
            match arrived.corrupted {
                false => {
                    let Answer { key, reply } = arrived.content;
                    if self.wanted.remove(&key) {
                        self.events.push_back(heard(key, reply));
                    }
                }
                true => self.send_again(now + self.there, Lost::Answer(arrived.content)),
            }
        }
        self.note_dropped(now + self.there);
        while let Some(lost) = self.again.poll(now) {
            match lost {
                Lost::Packet(packet) if self.wanted.contains(&packet.key) => {
                    self.put_packet(now, packet);
                }
                Lost::Answer(answer) if self.wanted.contains(&answer.key) => {
                    self.put_answer(now, answer);
                }
                _ => {}
            }
        }
    }

    fn poll_timeout(&self) -> Option<Timestamp> {
        [self.again.next(), self.uplink.poll_timeout(), self.downlink.poll_timeout()]
            .into_iter()
            .flatten()
            .min()
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

/// Bytes of a reply without headers. Those whose size was recorded are as long as they are.
fn reply_bytes(reply: &Reply) -> u32 {
    match &reply.outcome {
        Some(reply::Outcome::Answer(answer)) if !answer.boxes.is_empty() => {
            u32::try_from(reply.encoded_len()).unwrap_or(u32::MAX)
        }
        _ => REPLY,
    }
}

/// What a reply means to a device.
fn heard(key: Key, reply: Reply) -> Event {
    let asked = match reply.outcome {
        Some(reply::Outcome::Echo(_)) => Asked::Echo,
        _ => Asked::Answers(bundle().decoders),
    };
    let checked = check(FrameId(key.frame), &asked, reply);
    checked.map_or(Event::Lost { key }, |checked| event(key, checked))
}
