//! What happens to a connection from its hello to its end, and to each frame on it from its first
//! byte to its verdict: a state machine without I/O, in injected time.
//!
//! The shells of QUIC and gRPC drive it, and so does the simulator, in virtual time. A driver calls
//! a `handle_` method for what happened, then drains [`poll_output`](Exchange::poll_output) and
//! [`poll_batch`](Exchange::poll_batch), and calls [`handle_timeout`](Exchange::handle_timeout) at
//! [`poll_timeout`](Exchange::poll_timeout). Batches are computed by the driver, which hands each
//! result to [`handle_computed`](Exchange::handle_computed).

mod event;
mod places;
mod state;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::wire::{Echo, Feedback, Hello, Reason, Reply, Welcome, reply};
use isthmus_proto::{Content, Envelope, MAX_CONTROL_BYTES, Timestamp, TraceIds};
use prost::Message;

use crate::admission::{self, Announced, Binding, HelloError, Load, Refused};
use crate::batcher::{Batch, BatchId, Batcher, BatcherConfig, Cost, Flow, Job, Lane};
use crate::counters::{Cause, Counters, Verdict};
use crate::receiver::{Received, Receiver, ReceiverConfig};
use crate::registry::Registry;

use state::{Connection, Frame, Running, Stage};

pub use event::{Action, Computed, Ended, NoAnswer, Output, Whole, Work};
pub use places::Origin;
pub(crate) use places::Places;

/// Limits of an [`Exchange`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExchangeConfig {
    /// Of one frame.
    pub receiver: ReceiverConfig,
    /// Workers, batches and queue.
    pub batcher: BatcherConfig,
    /// Most accepted, unanswered frames of a connection.
    pub max_in_flight: usize,
    /// Most connections, over all transports together.
    pub max_connections: usize,
    /// Most connections of one [`Origin`].
    pub max_connections_per_address: usize,
    /// Most bytes of frames that are being received or wait, and of replies that have not left.
    pub max_buffered_bytes: usize,
}

/// How the frames of a connection reach the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Carrier {
    /// Each on a stream of its own.
    Streams,
    /// All in one call, told apart by their ids alone.
    Call,
}

/// A connection, numbered in order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(u64);

/// A frame, numbered in order of arrival over all connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FrameKey(u64);

/// The server's side of all connections, with the queue before the workers.
///
/// `H` is the driver's name for the place to which a frame's reply goes. Every frame that begins is
/// counted once on arrival and once by its [`Verdict`].
pub struct Exchange<H> {
    config: ExchangeConfig,
    registry: Arc<Registry>,
    batcher: Batcher<FrameKey>,
    places: Places<ConnectionId>,
    connections: BTreeMap<ConnectionId, Connection>,
    /// Connections that have to be closed.
    evicted: VecDeque<ConnectionId>,
    frames: BTreeMap<FrameKey, Frame<H>>,
    /// Bytes that are kept of all frames.
    buffered: usize,
    /// When to stop waiting for more of the frames that are being received.
    cutoffs: BTreeSet<(Timestamp, FrameKey)>,
    /// Frames of the batches that run.
    running: BTreeMap<BatchId, Vec<FrameKey>>,
    outputs: VecDeque<Output<H>>,
    counters: Counters,
    draining: bool,
    /// Accepted frames whose reply has not left.
    accepted: usize,
    next_connection: u64,
    next_frame: u64,
}

impl<H: Clone> Exchange<H> {
    /// An exchange without connections, for the networks of `registry`.
    pub fn new(config: ExchangeConfig, registry: Arc<Registry>) -> Self {
        Exchange {
            config,
            registry,
            batcher: Batcher::new(config.batcher),
            places: Places::new(config.max_connections, config.max_connections_per_address),
            connections: BTreeMap::new(),
            evicted: VecDeque::new(),
            frames: BTreeMap::new(),
            buffered: 0,
            cutoffs: BTreeSet::new(),
            running: BTreeMap::new(),
            outputs: VecDeque::new(),
            counters: Counters::default(),
            draining: false,
            accepted: 0,
            next_connection: 0,
            next_frame: 0,
        }
    }

    /// A connection begins; `None` if there is no place for one more. Where all are taken, one that
    /// is idle makes room: it comes out of [`poll_evicted`](Self::poll_evicted).
    pub fn connect(
        &mut self,
        now: Timestamp,
        carrier: Carrier,
        origin: Origin,
    ) -> Option<ConnectionId> {
        let id = ConnectionId(self.next_connection);
        if let Some(idlest) = self.places.take(now, id, origin)? {
            self.evict(idlest);
        }
        self.next_connection += 1;
        let connection = Connection {
            carrier,
            origin,
            binding: None,
            traces: None,
            in_flight: Vec::new(),
            closed: false,
            frames: 0,
            buffered: 0,
        };
        self.connections.insert(id, connection);
        Some(id)
    }

    /// A connection's hello came. Its frames are traced if it asks for that and `traced` is true.
    pub fn handle_hello(
        &mut self,
        connection: ConnectionId,
        hello: &Hello,
        traced: bool,
    ) -> Result<Welcome, HelloError> {
        let binding = Binding::new(hello, &self.registry)?;
        let ExchangeConfig { receiver, max_in_flight, .. } = self.config;
        let welcome = binding.welcome(receiver.max_frame_bytes, max_in_flight);
        self.places.greet(connection);
        if let Some(connection) = self.connections.get_mut(&connection) {
            connection.binding = Some(binding);
            connection.traces = hello.tracing.map(TraceIds::from).filter(|_| traced);
        }
        Ok(welcome)
    }

    /// A connection brings no more frames, but takes the replies to those that it brought.
    pub fn handle_closed(&mut self, connection: ConnectionId) {
        if let Some(state) = self.connections.get_mut(&connection) {
            state.closed = true;
            self.places.free(connection);
            if state.frames == 0 {
                self.connections.remove(&connection);
            }
        }
    }

    /// A connection is gone, and with it whoever wanted replies.
    pub fn handle_lost(&mut self, connection: ConnectionId) {
        let of_it = |(_, frame): &(_, &Frame<H>)| frame.connection == connection;
        let keys: Vec<_> = self.frames.iter().filter(of_it).map(|(&key, _)| key).collect();
        keys.into_iter().for_each(|key| self.handle_unwanted(key));
        self.handle_closed(connection);
    }

    /// A frame or probe begins on a connection, where it has this ordinal; its replies go `to`.
    pub fn begin(
        &mut self,
        now: Timestamp,
        connection: ConnectionId,
        ordinal: u64,
        to: H,
    ) -> FrameKey {
        self.counters.on_arrival();
        self.places.begin(now, connection);
        let key = FrameKey(self.next_frame);
        self.next_frame += 1;
        let state = self.connections.get_mut(&connection);
        let trace = state.and_then(|state| {
            state.frames += 1;
            state.traces.and_then(|traces| traces.context(ordinal))
        });
        let receiver = Receiver::new(now, self.config.receiver);
        let stage = Stage::Receiving { receiver, armed: None };
        let (id, receive_span, bundle, buffered) = (0, Duration::ZERO, None, 0);
        let frame = Frame { to, connection, trace, id, receive_span, bundle, buffered, stage };
        self.frames.insert(key, frame);
        self.arm(key);
        key
    }

    /// The next bytes of a frame came; whether more are wanted.
    pub fn handle_bytes(&mut self, now: Timestamp, key: FrameKey, bytes: &[u8]) -> bool {
        if !self.frames.get(&key).is_some_and(|frame| frame.stage.is_receiving()) {
            return false;
        }
        self.keep(key, bytes.len());
        match self.receive(now, key, bytes) {
            None => return false,
            Some(Ok(false)) => {
                self.arm(key);
                return true;
            }
            Some(Ok(true)) => self.finish(now, key),
            Some(Err(refused)) => self.refuse(key, refused),
        }
        false
    }

    /// A frame's bytes end here, or its sender gave up sending: what came is what there is.
    pub fn handle_ended(&mut self, now: Timestamp, key: FrameKey) {
        self.finish(now, key);
    }

    /// A frame that just began has come as a whole.
    pub fn handle_whole(&mut self, now: Timestamp, key: FrameKey, whole: Whole) {
        let Some(frame) = self.frames.get_mut(&key) else { return };
        match whole {
            Whole::Probe { id, receive_span } => {
                (frame.id, frame.receive_span) = (id.into(), receive_span);
                self.reply(key, Verdict::Echoed, reply::Outcome::Echo(Echo {}));
            }
            Whole::Frame { announced, received } => {
                frame.id = received.envelope.frame.into();
                frame.receive_span = received.receive_span;
                match self.admit(key, &announced, received.deadline) {
                    Ok(_) => self.submit(now, key, received),
                    Err(refused) => self.refuse(key, refused),
                }
            }
        }
    }

    /// Nobody wants a frame's reply any more. What waits is not run; what runs, runs to its end.
    pub fn handle_unwanted(&mut self, key: FrameKey) {
        let Some(frame) = self.frames.get_mut(&key) else { return };
        match &mut frame.stage {
            Stage::Receiving { .. } => {
                let to = frame.to.clone();
                self.end(key, Verdict::Dropped(Cause::Cancelled));
                self.outputs.push_back(Output { frame: key, to, action: Action::LetGo });
            }
            Stage::Queued { job, .. } => {
                let job = *job;
                self.batcher.handle_drop(job, Cause::Cancelled);
                self.settle_dropped();
            }
            Stage::Running(running) => running.unwanted = true,
            Stage::Ended => {}
        }
    }

    /// A device cancels an accepted frame of its connection by its id.
    pub fn handle_cancel(&mut self, connection: ConnectionId, id: u64) {
        let state = self.connections.get(&connection);
        let found = state.and_then(|state| state.in_flight.iter().find(|(other, _)| *other == id));
        if let Some(&(_, key)) = found {
            self.handle_unwanted(key);
        }
    }

    /// A frame's reply has left, or never will: the driver has no more to do with it.
    pub fn handle_left(&mut self, now: Timestamp, key: FrameKey) {
        if let Some(Frame { stage: Stage::Queued { job, .. }, .. }) = self.frames.get(&key) {
            let job = *job;
            self.batcher.handle_drop(job, Cause::Cancelled);
            self.settle_dropped();
        }
        self.end(key, Verdict::Dropped(Cause::Cancelled));
        self.let_go(key);
        let Some(frame) = self.frames.remove(&key) else { return };
        self.accepted -= usize::from(frame.bundle.is_some());
        self.places.end(now, frame.connection);
        let Some(connection) = self.connections.get_mut(&frame.connection) else { return };
        connection.frames -= 1;
        if connection.closed && connection.frames == 0 {
            self.connections.remove(&frame.connection);
        }
    }

    /// A frame of a running batch was computed, or cannot be.
    pub fn handle_computed(
        &mut self,
        now: Timestamp,
        key: FrameKey,
        result: Result<Computed, NoAnswer>,
    ) {
        let Some(Frame { stage: Stage::Running(running), .. }) = self.frames.get(&key) else {
            return;
        };
        let running = *running;
        match result {
            Ok(_) if running.unwanted => self.drop(key, Cause::Cancelled),
            Ok(computed) => self.answer(now, key, running, computed),
            Err(NoAnswer::Dropped(cause)) => self.drop(key, cause),
            Err(NoAnswer::Refused(refused)) => self.refuse(key, refused),
        }
    }

    /// A batch has run and its worker is free. A frame of it without a result has failed.
    pub fn handle_worker_free(&mut self, now: Timestamp, batch: BatchId) {
        for key in self.running.remove(&batch).unwrap_or_default() {
            self.handle_computed(now, key, Err(NoAnswer::Dropped(Cause::Failed)));
        }
        self.batcher.handle_worker_free(now, batch);
    }

    /// From now on new frames are refused.
    pub fn handle_drain(&mut self) {
        self.draining = true;
    }

    /// Ends what is due: frames that are cut short, and those that expire in the queue.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        while let Some(&(cutoff, key)) = self.cutoffs.first()
            && cutoff <= now
        {
            self.cutoffs.pop_first();
            self.finish(now, key);
        }
        self.batcher.handle_timeout(now);
        self.settle_dropped();
    }

    /// A batch to run now, if a worker is free and a frame waits.
    pub fn poll_batch(&mut self, now: Timestamp) -> Option<Batch<Work<H>>> {
        let batch = self.batcher.poll_batch(now);
        self.settle_dropped();
        let Batch { id, lane, work: keys } = batch?;
        let mut work = Vec::with_capacity(keys.len());
        for &frame in &keys {
            let Some(state) = self.frames.get_mut(&frame) else { continue };
            let Stage::Queued { received, .. } = &state.stage else { continue };
            let (deadline, received_at) = (received.deadline, received.received_at);
            let running = Running { deadline, received_at, started: now, unwanted: false };
            let stage = std::mem::replace(&mut state.stage, Stage::Running(running));
            if let Stage::Queued { received, .. } = stage {
                let connection = self.connections.get(&state.connection);
                let binding = connection.and_then(|it| it.binding.as_ref());
                let wanted = binding.map(Binding::wanted).unwrap_or_default();
                work.push(Work { frame, to: state.to.clone(), received, wanted });
            }
            self.let_go(frame);
        }
        self.running.insert(id, keys);
        Some(Batch { id, lane, work })
    }

    /// What a driver has to do next; where too much is kept, that makes room first.
    pub fn poll_output(&mut self) -> Option<Output<H>> {
        self.fit();
        self.outputs.pop_front()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout).
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let cutoff = self.cutoffs.first().map(|&(cutoff, _)| cutoff);
        cutoff.into_iter().chain(self.batcher.poll_timeout()).min()
    }

    /// The final outcome of the frames so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Open connections of a kind.
    pub fn connections(&self, carrier: Carrier) -> usize {
        self.open().filter(|connection| connection.carrier == carrier).count()
    }

    /// Whether half of the places for connections are taken.
    pub fn is_crowded(&self) -> bool {
        self.places.is_crowded()
    }

    /// A connection that the driver has to close: it was idle and its place is taken, or it made the
    /// server keep too much.
    pub fn poll_evicted(&mut self) -> Option<ConnectionId> {
        self.evicted.pop_front()
    }

    /// Bytes that are kept of frames and of replies that have not left.
    pub fn buffered(&self) -> usize {
        self.buffered
    }

    /// When the batch began that runs longest.
    pub fn longest_running(&self) -> Option<Timestamp> {
        self.batcher.longest_running()
    }

    /// Whether new frames are refused.
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// Accepted frames whose reply has not left.
    pub fn accepted(&self) -> usize {
        self.accepted
    }

    /// Frames that wait for a worker.
    pub fn queued(&self) -> usize {
        self.batcher.queued()
    }

    /// Whether nothing is kept of any connection or frame.
    pub fn is_empty(&self) -> bool {
        self.connections.is_empty() && self.frames.is_empty()
    }

    fn open(&self) -> impl Iterator<Item = &Connection> {
        self.connections.values().filter(|connection| !connection.closed)
    }

    /// Takes bytes of a frame that is being received, and decides on its header once that is
    /// complete; whether the frame is whole.
    fn receive(
        &mut self,
        now: Timestamp,
        key: FrameKey,
        bytes: &[u8],
    ) -> Option<Result<bool, Refused>> {
        let frame = self.frames.get_mut(&key)?;
        let Stage::Receiving { receiver, .. } = &mut frame.stage else { return None };
        let taken = receiver.handle_bytes(now, bytes);
        frame.id = receiver.envelope().map_or(0, |&Envelope { frame, .. }| frame.into());
        frame.receive_span = receiver.receive_span();
        if let Err(error) = taken {
            return Some(Err(error.into()));
        }
        let whole = receiver.is_whole();
        if frame.bundle.is_some() {
            return Some(Ok(whole));
        }
        let Some(announced) = receiver.packet().map(Announced::from) else {
            return Some(Ok(whole));
        };
        let deadline = receiver.deadline();
        Some(self.admit(key, &announced, deadline).map(|compute| {
            let frame = self.frames.get_mut(&key);
            if let Some(Frame { stage: Stage::Receiving { receiver, .. }, .. }) = frame {
                receiver.handle_expected_compute(compute);
            }
            whole
        }))
    }

    /// Accepts or refuses a frame by its header; how long it will wait and run.
    fn admit(
        &mut self,
        key: FrameKey,
        announced: &Announced,
        deadline: Timestamp,
    ) -> Result<Duration, Refused> {
        let unknown = || Refused::new(Reason::Malformed, "a frame before the hello");
        let frame = self.frames.get_mut(&key).ok_or_else(unknown)?;
        let connection = self.connections.get_mut(&frame.connection).ok_or_else(unknown)?;
        let binding = connection.binding.as_ref().ok_or_else(unknown)?;
        let (flow, cost) = (flow(frame.connection), self.places.cost(connection.origin));
        let load = Load {
            in_flight: connection.in_flight.len(),
            max_in_flight: self.config.max_in_flight,
            queue_full: self.batcher.is_full_for(flow, cost, deadline),
            expected_wait: self.batcher.expected_wait(flow),
            draining: self.draining,
        };
        let bundle = admission::admit(announced, binding, &self.registry, &load)?;
        let same_id = |(id, _): &(u64, FrameKey)| *id == frame.id;
        if connection.carrier == Carrier::Call && connection.in_flight.iter().any(same_id) {
            return Err(Refused::new(Reason::Malformed, "another frame has this id"));
        }
        frame.bundle = Some(bundle);
        connection.in_flight.push((frame.id, key));
        self.accepted += 1;
        Ok(load.expected_wait + self.batcher.expected_run())
    }

    /// What came of a frame is all that will.
    fn finish(&mut self, now: Timestamp, key: FrameKey) {
        let Some(frame) = self.frames.get_mut(&key) else { return };
        let Stage::Receiving { receiver, .. } = &frame.stage else { return };
        if receiver.is_probe() && receiver.is_whole() {
            return self.reply(key, Verdict::Echoed, reply::Outcome::Echo(Echo {}));
        }
        let received = match frame.bundle {
            None => Err(receiver.missing(now)),
            Some(bundle) => receiver.finish(now, &self.registry.model(bundle).digest()),
        };
        match received {
            Ok(received) => self.submit(now, key, received),
            Err(error) => self.refuse(key, error.into()),
        }
    }

    /// Queues an accepted frame.
    fn submit(&mut self, now: Timestamp, key: FrameKey, received: Received) {
        self.disarm(key);
        let Some(frame) = self.frames.get_mut(&key) else { return };
        let Some(bundle) = frame.bundle else { return };
        let split = match received.content {
            Content::Features(point) => Some(point.split),
            Content::Image(_) => None,
        };
        let (lane, deadline) = (Lane { bundle, split }, received.deadline);
        let flow = flow(frame.connection);
        let connection = self.connections.get(&frame.connection);
        let cost = connection.map_or(Cost::ONE, |it| self.places.cost(it.origin));
        match self.batcher.handle_arrival(now, Job { lane, flow, cost, deadline, work: key }) {
            Ok(job) => frame.stage = Stage::Queued { job, received },
            Err(_) => {
                let wait = self.batcher.expected_wait(flow);
                self.refuse(key, Refused::overloaded("the queue is full", wait));
            }
        }
        self.settle_dropped();
    }

    fn answer(&mut self, now: Timestamp, key: FrameKey, running: Running, computed: Computed) {
        let Some(frame) = self.frames.get(&key) else { return };
        let Running { deadline, received_at, started, .. } = running;
        let feedback = Feedback {
            receive_span_us: micros(frame.receive_span),
            queue_us: micros(started.saturating_since(received_at)),
            decode_us: micros(computed.decode),
            tail_us: micros(computed.tail),
            batch_size: computed.batch_size,
        };
        let binding = self.connections.get(&frame.connection).and_then(|it| it.binding.as_ref());
        let most = binding.map_or(MAX_CONTROL_BYTES, Binding::max_reply_bytes);
        let mut answers = computed.answers.into_iter();
        let mut first = answers.next().unwrap_or_default();
        first.layers_used = u32::try_from(computed.layers).unwrap_or(u32::MAX);
        let reply = Reply {
            frame: frame.id,
            outcome: Some(reply::Outcome::Answer(first)),
            feedback: Some(feedback),
            further: answers.collect(),
        };
        let bytes = reply.encoded_len();
        if bytes > most {
            let detail = format!("the reply has {bytes} bytes, the device takes {most}");
            return self.refuse(key, Refused::new(Reason::TooLarge, detail));
        }
        self.reply_with(key, Verdict::Answered { late: now > deadline }, reply);
    }

    /// Ends a frame that is not accepted, or whose picture is none.
    fn refuse(&mut self, key: FrameKey, refused: Refused) {
        let Some(frame) = self.frames.get(&key) else { return };
        if frame.stage.is_receiving() {
            let (to, action) = (frame.to.clone(), Action::StopReading);
            self.outputs.push_back(Output { frame: key, to, action });
        }
        let verdict = Verdict::Refused(refused.reason);
        self.reply(key, verdict, reply::Outcome::Refusal(refused.into()));
    }

    /// Ends an accepted frame that is not answered.
    fn drop(&mut self, key: FrameKey, cause: Cause) {
        let detail = match cause {
            Cause::Expired => "the time left ran out in the queue",
            Cause::Cancelled => "the device cancelled the frame",
            Cause::Displaced => "there was no room for it beside those of devices with less",
            Cause::Failed => "the server failed; its log says how",
        };
        let refused = Refused::new(cause.reason(), detail);
        self.reply(key, Verdict::Dropped(cause), reply::Outcome::Refusal(refused.into()));
    }

    /// Ends a frame of which nothing was computed.
    fn reply(&mut self, key: FrameKey, verdict: Verdict, outcome: reply::Outcome) {
        let receive_span = self.frames.get(&key).map_or(Duration::ZERO, |frame| frame.receive_span);
        let receive_span_us = micros(receive_span);
        let feedback = Some(Feedback { receive_span_us, ..Feedback::default() });
        let frame = self.frames.get(&key).map_or(0, |frame| frame.id);
        let reply = Reply { frame, outcome: Some(outcome), feedback, further: Vec::new() };
        self.reply_with(key, verdict, reply);
    }

    fn reply_with(&mut self, key: FrameKey, verdict: Verdict, reply: Reply) {
        self.end(key, verdict);
        self.let_go(key);
        self.keep(key, reply.encoded_len());
        let Some(frame) = self.frames.get(&key) else { return };
        let action = Action::Reply(Box::new(Ended { reply, verdict, trace: frame.trace }));
        self.outputs.push_back(Output { frame: key, to: frame.to.clone(), action });
    }

    /// Counts a frame's verdict, and makes room for the connection's next one before the reply that
    /// invites it is sent.
    fn end(&mut self, key: FrameKey, verdict: Verdict) {
        self.disarm(key);
        let Some(frame) = self.frames.get_mut(&key) else { return };
        if matches!(frame.stage, Stage::Ended) {
            return;
        }
        frame.stage = Stage::Ended;
        self.counters.on_verdict(verdict);
        if let Some(connection) = self.connections.get_mut(&frame.connection) {
            connection.in_flight.retain(|(_, other)| *other != key);
        }
    }

    /// So many bytes more are kept of a frame.
    fn keep(&mut self, key: FrameKey, bytes: usize) {
        let Some(frame) = self.frames.get_mut(&key) else { return };
        frame.buffered += bytes;
        self.buffered += bytes;
        if let Some(connection) = self.connections.get_mut(&frame.connection) {
            connection.buffered += bytes;
        }
    }

    /// Nothing is kept of a frame any more.
    fn let_go(&mut self, key: FrameKey) {
        let Some(frame) = self.frames.get_mut(&key) else { return };
        let bytes = std::mem::take(&mut frame.buffered);
        self.buffered -= bytes;
        if let Some(connection) = self.connections.get_mut(&frame.connection) {
            connection.buffered -= bytes;
        }
    }

    /// Where too much is kept in all, the connections of which most is kept make room.
    fn fit(&mut self) {
        while self.buffered > self.config.max_buffered_bytes && self.make_room() {}
    }

    /// Ends the largest frame of the connection of which most is kept, or where that is all replies,
    /// the connection; whether there was one.
    fn make_room(&mut self) -> bool {
        let heaviest = self.connections.iter().max_by_key(|(_, it)| it.buffered);
        let Some((&connection, _)) = heaviest.filter(|(_, it)| it.buffered > 0) else {
            return false;
        };
        let of_it = self.frames.iter().filter(|(_, frame)| frame.connection == connection);
        let open = of_it.filter(|(_, frame)| frame.buffered > 0 && frame.stage.is_open());
        match open.max_by_key(|(_, frame)| frame.buffered).map(|(&key, frame)| (key, &frame.stage))
        {
            Some((_, &Stage::Queued { job, .. })) => {
                self.batcher.handle_drop(job, Cause::Displaced);
                self.settle_dropped();
            }
            Some((key, _)) => {
                let flow = flow(connection);
                let wait = self.batcher.expected_wait(flow).max(Duration::from_millis(1));
                let detail = "the server keeps as many bytes of frames as it may";
                self.refuse(key, Refused::overloaded(detail, wait));
            }
            None => self.evict(connection),
        }
        true
    }

    /// Has the driver close a connection.
    fn evict(&mut self, connection: ConnectionId) {
        let of_it = |(_, frame): &(_, &Frame<H>)| frame.connection == connection;
        let keys: Vec<_> = self.frames.iter().filter(of_it).map(|(&key, _)| key).collect();
        keys.into_iter().for_each(|key| self.let_go(key));
        self.handle_lost(connection);
        self.evicted.push_back(connection);
    }

    fn settle_dropped(&mut self) {
        while let Some(dropped) = self.batcher.poll_dropped() {
            self.drop(dropped.work, dropped.cause);
        }
    }

    /// Plans the cutoff of a frame that is being received.
    fn arm(&mut self, key: FrameKey) {
        let Some(frame) = self.frames.get_mut(&key) else { return };
        let Stage::Receiving { receiver, armed } = &mut frame.stage else { return };
        let due = receiver.poll_timeout();
        if due != *armed {
            armed.map(|at| self.cutoffs.remove(&(at, key)));
            due.map(|at| self.cutoffs.insert((at, key)));
            *armed = due;
        }
    }

    fn disarm(&mut self, key: FrameKey) {
        let frame = self.frames.get_mut(&key);
        if let Some(Frame { stage: Stage::Receiving { armed, .. }, .. }) = frame
            && let Some(at) = armed.take()
        {
            self.cutoffs.remove(&(at, key));
        }
    }
}

/// Each connection has its own share.
fn flow(connection: ConnectionId) -> Flow {
    Flow(connection.0)
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}
