//! What devices may do to a server.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_fixtures::OnePoint;
use isthmus_proto::wire::{Answer, Hello, Reason};
use isthmus_proto::{OperatingPoint, Timestamp};
use isthmus_tail_server::Registry;
use isthmus_tail_server::admission::Refused;
use isthmus_tail_server::batcher::{Batch, BatcherConfig};
use isthmus_tail_server::counters::Cause;
use isthmus_tail_server::exchange::{
    Action, Carrier, Computed, ConnectionId, Exchange, ExchangeConfig, FrameKey, NoAnswer, Output,
    Work,
};
use isthmus_tail_server::handshake::Handshake;
use isthmus_tail_server::receiver::ReceiverConfig;

use crate::choice;
use crate::coding::DIGEST;

/// The one operating point that is served, and most bytes of a stream of it.
pub(crate) const POINT: OperatingPoint = OperatingPoint { split: 0, width: 0, layers: 3, bits: 4 };
const MAX_STREAM: usize = 100;
/// Most that the server keeps.
const MAX_BUFFERED: usize = 1_024;

/// What the first byte of a step does; all but [`CONNECT`] and [`COMPUTE`] go on with the position
/// of a connection or a frame. Values from [`STEPS`] on begin again.
pub(crate) const CONNECT: u8 = 0;
pub(crate) const HELLO: u8 = 1;
pub(crate) const BEGIN: u8 = 2;
pub(crate) const MORE: u8 = 3;
pub(crate) const ENDED: u8 = 4;
pub(crate) const UNWANTED: u8 = 5;
pub(crate) const CANCEL: u8 = 6;
pub(crate) const LEFT: u8 = 7;
pub(crate) const WAIT: u8 = 8;
pub(crate) const START: u8 = 9;
pub(crate) const COMPUTE: u8 = 10;
pub(crate) const LOST: u8 = 11;
pub(crate) const CLOSED: u8 = 12;
pub(crate) const DRAIN: u8 = 13;
const STEPS: u8 = 14;

const MODEL: OnePoint = OnePoint { digest: DIGEST, point: POINT, max_stream_bytes: MAX_STREAM };

/// Whatever devices do and in whatever order, each frame ends once and is counted once, and nothing
/// of it stays when all devices are gone. The bytes are a script of steps.
pub fn server(mut script: &[u8]) {
    let mut server = Server::new();
    while !script.is_empty() {
        let step = choice(&mut script) % STEPS;
        server.step(step, &mut script);
        server.settle();
    }
    server.end();
}

struct Server {
    exchange: Exchange<usize>,
    now: Timestamp,
    connections: Vec<Connection>,
    frames: Vec<Frame>,
    batches: VecDeque<Batch<Work<usize>>>,
}

struct Connection {
    id: ConnectionId,
    handshake: Handshake,
    /// It brings no more frames.
    over: bool,
}

struct Frame {
    key: FrameKey,
    /// It got its reply, or was let go.
    ended: bool,
    /// Its reply has left.
    left: bool,
}

impl Server {
    fn new() -> Server {
        let config = ExchangeConfig {
            receiver: ReceiverConfig { max_frame_bytes: 512, max_stay: Duration::from_secs(60) },
            batcher: BatcherConfig { workers: 2, max_batch: 2, queue: 3 },
            max_in_flight: 2,
            max_connections: 3,
            max_connections_per_address: 2,
            max_buffered_bytes: MAX_BUFFERED,
        };
        Server {
            exchange: Exchange::new(config, Arc::new(Registry::new(vec![Arc::new(MODEL)]))),
            now: Timestamp::ZERO,
            connections: Vec::new(),
            frames: Vec::new(),
            batches: VecDeque::new(),
        }
    }

    fn step(&mut self, step: u8, script: &mut &[u8]) {
        match step {
            CONNECT => self.connect(script),
            HELLO | BEGIN | CANCEL | LOST | CLOSED => {
                if let Some(at) = position(script, self.connections.len()) {
                    self.step_of_connection(step, at, script);
                }
            }
            MORE | ENDED | UNWANTED | LEFT => {
                if let Some(at) = position(script, self.frames.len()) {
                    self.step_of_frame(step, at, script);
                }
            }
            WAIT => {
                self.now = self.now + Duration::from_millis(u64::from(choice(script)) * 4);
                self.exchange.handle_timeout(self.now);
            }
            START => self.batches.extend(self.exchange.poll_batch(self.now)),
            COMPUTE => self.compute(choice(script)),
            _ => self.exchange.handle_drain(),
        }
    }

    fn connect(&mut self, script: &mut &[u8]) {
        let carrier =
            if choice(script).is_multiple_of(2) { Carrier::Streams } else { Carrier::Call };
        let origin = IpAddr::from([192, 0, 2, choice(script) % 2]).into();
        if let Some(id) = self.exchange.connect(self.now, carrier, origin) {
            let handshake = Handshake::new(self.now);
            self.connections.push(Connection { id, handshake, over: false });
        }
    }

    fn step_of_connection(&mut self, step: u8, at: usize, script: &mut &[u8]) {
        let Connection { id, over, .. } = self.connections[at];
        match step {
            HELLO => {
                let bytes = take(script);
                let Server { exchange, connections, .. } = self;
                let greet = |hello: &Hello| {
                    let welcome = exchange.handle_hello(id, hello, true)?;
                    assert_eq!(welcome.bundles.len(), hello.bundles.len());
                    Ok(welcome)
                };
                if connections[at].handshake.handle_bytes(bytes, greet).is_err() {
                    self.lose(at);
                }
            }
            BEGIN if !over => {
                let frame = self.frames.len();
                let key = self.exchange.begin(self.now, id, frame as u64, frame);
                self.frames.push(Frame { key, ended: false, left: false });
                self.exchange.handle_bytes(self.now, key, take(script));
            }
            CANCEL => self.exchange.handle_cancel(id, choice(script).into()),
            LOST => self.lose(at),
            CLOSED => {
                self.connections[at].over = true;
                self.exchange.handle_closed(id);
            }
            _ => {}
        }
    }

    fn lose(&mut self, at: usize) {
        self.connections[at].over = true;
        self.exchange.handle_lost(self.connections[at].id);
    }

    fn step_of_frame(&mut self, step: u8, at: usize, script: &mut &[u8]) {
        let key = self.frames[at].key;
        match step {
            MORE => {
                self.exchange.handle_bytes(self.now, key, take(script));
            }
            ENDED => self.exchange.handle_ended(self.now, key),
            UNWANTED => self.exchange.handle_unwanted(key),
            _ => {
                self.frames[at].left = true;
                self.exchange.handle_left(self.now, key);
            }
        }
    }

    /// Ends the oldest batch; `how` chooses what comes of each of its frames.
    fn compute(&mut self, how: u8) {
        let Some(batch) = self.batches.pop_front() else { return };
        self.now = self.now + Duration::from_millis(3);
        for (at, work) in batch.work.iter().enumerate() {
            assert!((1..=3).contains(&work.received.layers));
            assert!(work.received.stream.len() <= MAX_STREAM);
            let answers = vec![Answer::default()];
            let result = match (how >> (2 * at)) % 4 {
                0 => Ok(Computed { answers, layers: work.received.layers, ..Computed::default() }),
                1 => Err(NoAnswer::Dropped(Cause::Failed)),
                2 => Err(NoAnswer::Refused(Refused::new(Reason::Malformed, "no picture"))),
                _ => continue,
            };
            self.exchange.handle_computed(self.now, work.frame, result);
        }
        self.exchange.handle_worker_free(self.now, batch.id);
    }

    /// Sees what is ordered for frames.
    fn settle(&mut self) {
        while let Some(Output { frame, to, action }) = self.exchange.poll_output() {
            let known = &mut self.frames[to];
            assert_eq!(known.key, frame);
            assert!(!known.ended, "an order for a frame that has ended");
            known.ended = action != Action::StopReading;
        }
        while let Some(evicted) = self.exchange.poll_evicted() {
            let of_it = |connection: &&mut Connection| connection.id == evicted;
            if let Some(connection) = self.connections.iter_mut().find(of_it) {
                connection.over = true;
            }
        }
        let buffered = self.exchange.buffered();
        assert!(buffered <= MAX_BUFFERED, "{buffered} bytes are kept");
    }

    /// Every device leaves, and the workers finish.
    fn end(mut self) {
        (0..self.connections.len()).for_each(|at| self.lose(at));
        while let Some(due) = self.exchange.poll_timeout() {
            self.now = self.now.max(due);
            self.exchange.handle_timeout(self.now);
        }
        loop {
            self.batches.extend(self.exchange.poll_batch(self.now));
            if self.batches.is_empty() {
                break;
            }
            self.compute(0);
        }
        self.settle();
        for Frame { key, ended, left } in &self.frames {
            assert!(*ended || *left, "a frame without an end");
            self.exchange.handle_left(self.now, *key);
        }
        let counters = self.exchange.counters();
        assert_eq!((counters.arrived, counters.unfinished()), (self.frames.len() as u64, 0));
        assert!(self.exchange.is_empty());
        assert_eq!((self.exchange.accepted(), self.exchange.queued()), (0, 0));
    }
}

/// A position among `length`, if there is any.
fn position(script: &mut &[u8], length: usize) -> Option<usize> {
    let chosen = usize::from(choice(script));
    (length > 0).then(|| chosen % length)
}

/// As many bytes as the next one says, or what there is.
fn take<'a>(script: &mut &'a [u8]) -> &'a [u8] {
    let length = usize::from(choice(script)).min(script.len());
    let (taken, rest) = script.split_at(length);
    *script = rest;
    taken
}
