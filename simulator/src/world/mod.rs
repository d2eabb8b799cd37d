//! Devices, a link and a server in virtual time.
//!
//! The session, its controller, admission and batcher are those of the real programs; camera,
//! compute and transport are charged. The transport is ideal: a frame's packets enter the link at
//! once, and a packet that is lost is sent again one round trip after it was. Congestion control,
//! handshakes and cutting frames short belong to the fidelity with the real QUIC state machine.

pub mod device;
pub mod oracle;
pub mod record;
pub mod synthetic;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::time::Duration;

use isthmus_head_client::{
    Answer, Controller, FrameOutcome, HeadOutcome, HeadRun, Histogram, Input, LinkEstimate, Output,
    Pace, Reason, Run, ServerReply, Session, SessionConfig, Verdict,
};
use isthmus_proto::wire::{self, Feedback};
use isthmus_proto::{Arm, Bitrate, Content, DataSize, FrameId, OperatingPoint, Timestamp};
use isthmus_tail_server::admission::{Load, Refused, admit_load};
use isthmus_tail_server::batcher::{Batch, BatchId, Batcher, BatcherConfig, Job, Lane};
use isthmus_tail_server::counters::Cause;
use serde::{Deserialize, Serialize};

use crate::link::chance::{Chance, scattered};
use crate::link::{Link, LinkCounters};
use crate::profile::PathConfig;

pub use device::{Device, DeviceError, DeviceSpec};
pub use record::{Luck, Record, RecordError};

/// Payload of a packet (bytes): QUIC's on most paths.
pub const PAYLOAD: u32 = 1_200;

/// What a packet adds (bytes): IPv4 and UDP 28, QUIC's header, stream frame and tag 32.
pub const HEADERS: u32 = 60;

/// A reply without headers (bytes).
const REPLY: u32 = 48;

/// How long before its deadline a frame is settled, as in the real client.
pub const GUARD: Duration = Duration::from_millis(5);

/// What is simulated.
#[derive(Clone, Debug)]
pub struct WorldConfig {
    /// Devices, each with a camera, behind one link.
    pub cameras: u32,
    /// Time between frames of a camera.
    pub interval: Duration,
    /// For how long frames are captured.
    pub duration: Duration,
    /// From capture to output.
    pub deadline: Duration,
    /// Frames of a device that may be sent and unanswered.
    pub in_flight: usize,
    /// The path between the devices and the server.
    pub path: PathConfig,
    /// How long a device takes.
    pub device: Device,
    /// The server.
    pub server: ServerConfig,
    /// Everything random hangs from it.
    pub seed: u64,
}

/// A simulated server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServerConfig {
    /// Workers, batches and queue.
    pub batcher: BatcherConfig,
    /// Most unanswered frames of a device.
    pub max_in_flight: usize,
    /// Entropy decoding of a frame.
    pub decode: Duration,
    /// A run of the tail, whatever its batch.
    pub tail: Duration,
    /// What each frame of a batch adds.
    pub tail_per_frame: Duration,
}

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunResult {
    /// Frames captured.
    pub frames: u64,
    /// Frames whose answer was right and in time.
    pub right_in_time: u64,
    /// How many of them could be expected, by what a record says of each answer in time.
    pub expected: f64,
    /// The luck of every head that was run with its picture, which no controller can know before.
    pub luck: Luck,
    /// Frames sent.
    pub sent: u64,
    /// Frames sent whose network answer did not arrive by the deadline.
    pub missed: u64,
    /// Envelopes and packets sent (bytes).
    pub bytes: u64,
    /// Changes of operating point from one sent frame of a device to its next.
    pub switches: u64,
    /// From capture to output (µs), of frames with an answer.
    pub latency: Histogram,
    /// Frames by how they ended: the controller's reason, the fallback's, or the cause of a drop.
    pub reasons: BTreeMap<String, u64>,
    /// What became of the packets on the way to the server.
    pub uplink: LinkCounters,
}

impl RunResult {
    /// Share of all frames that were right and in time.
    pub fn on_time_accuracy(&self) -> f64 {
        share(self.right_in_time, self.frames)
    }

    /// The same run without the luck of its pictures: what was expected of each answer less the
    /// head's luck, where the share `sent` of frames is sent. Heads are chosen before anything is
    /// known about the picture, so what is subtracted is zero in the mean, whoever chooses and
    /// whatever the share (a control variate).
    #[must_use]
    pub fn without_luck(mut self, sent: f64) -> RunResult {
        self.expected -= std::mem::take(&mut self.luck).of(sent);
        self
    }

    /// The share of all frames that could be expected to be right and in time.
    pub fn expected_accuracy(&self) -> f64 {
        self.expected / self.frames.max(1) as f64
    }

    /// Share of the frames sent that missed their deadline.
    pub fn miss_rate(&self) -> f64 {
        share(self.missed, self.sent)
    }

    /// Adds another run.
    pub fn merge(&mut self, other: &RunResult) {
        self.frames += other.frames;
        self.right_in_time += other.right_in_time;
        self.expected += other.expected;
        self.luck = self.luck.plus(other.luck);
        self.sent += other.sent;
        self.missed += other.missed;
        self.bytes += other.bytes;
        self.switches += other.switches;
        self.latency.merge(&other.latency);
        for (reason, count) in &other.reasons {
            *self.reasons.entry(reason.clone()).or_default() += count;
        }
        self.uplink = self.uplink.plus(&other.uplink);
    }
}

fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// Which picture of a record a camera's frame is, the same whoever plays it.
pub(crate) fn picture(seed: u64, camera: u32, frame: u64, played: usize) -> usize {
    let place = scattered(seed ^ scattered(u64::from(camera) << 40 | frame));
    (place % played as u64) as usize
}

/// The device's luck with a frame, standard normal, the same whatever it runs.
pub(crate) fn luck(seed: u64, camera: u32, frame: u64) -> f64 {
    Chance::new(seed ^ scattered(u64::from(camera) << 40 | frame), 0x6c_75_63_6b).normal()
}

/// When a camera captures a frame: cameras take turns within an interval.
pub(crate) fn capture_time(config: &WorldConfig, camera: u32, frame: u64) -> Timestamp {
    let interval = config.interval.as_micros() as u64;
    Timestamp::from_micros(
        frame * interval + interval * u64::from(camera) / u64::from(config.cameras),
    )
}

/// Bytes that a frame or reply of `bytes` takes on the link, and its packets.
pub(crate) fn on_the_wire(bytes: u32) -> (DataSize, u32) {
    let packets = bytes.div_ceil(PAYLOAD).max(1);
    (DataSize::from_bytes(u64::from(bytes + packets * HEADERS)), packets)
}

/// What an observer sees as a frame ends.
#[derive(Debug)]
pub struct FrameEnd<'a> {
    /// The device.
    pub camera: u32,
    /// What became of the frame.
    pub outcome: &'a FrameOutcome,
    /// How it ended: the controller's reason, the fallback's, or the cause of a drop.
    pub reason: &'a str,
    /// Whether the answer is right and in time.
    pub right: bool,
    /// Whether it was sent and no network answer arrived by the deadline.
    pub missed: bool,
    /// Bytes that it put on the way to the server, headers apart; 0 if it was not sent.
    pub bytes: u32,
    /// The uplink's rate now.
    pub capacity: Bitrate,
    /// What waits before the uplink or is being sent.
    pub backlog: DataSize,
    /// What the device's controller takes the link for.
    pub estimate: Option<LinkEstimate>,
}

/// Sees every frame of a run end, in order of time, and changes nothing.
pub type Observer<'a> = &'a mut dyn FnMut(&FrameEnd<'_>);

/// Runs one world with a controller per camera.
pub fn run(
    config: &WorldConfig,
    record: &Record,
    controller: impl FnMut(u32) -> Box<dyn Controller>,
) -> RunResult {
    run_observed(config, record, controller, None)
}

/// The same, seen by an observer.
pub fn run_observed(
    config: &WorldConfig,
    record: &Record,
    mut controller: impl FnMut(u32) -> Box<dyn Controller>,
    observer: Option<Observer<'_>>,
) -> RunResult {
    let mut world = World::new(config, record, observer);
    for camera in 0..config.cameras {
        world.add_device(camera, controller(camera));
    }
    world.run()
}

struct World<'a, 'o> {
    config: &'a WorldConfig,
    record: &'a Record,
    now: Timestamp,
    /// What is to happen, in order of time, then of being told.
    agenda: BinaryHeap<Reverse<(Timestamp, u64, Event)>>,
    told: u64,
    devices: Vec<DeviceState>,
    uplink: Link<UpPacket>,
    downlink: Link<DownPacket>,
    /// Sent and not given up, by camera and frame.
    wanted: BTreeSet<(u32, u64)>,
    /// Partly arrived at the server.
    arriving: BTreeMap<(u32, u64), Arriving>,
    batcher: Batcher<Work>,
    /// Accepted and unanswered frames of each device.
    accepted: Vec<usize>,
    batches: BTreeMap<BatchId, Batch<Work>>,
    result: RunResult,
    observer: Option<Observer<'o>>,
}

struct DeviceState {
    session: Session,
    armed: Option<Timestamp>,
    next_frame: u64,
    last_sent: Option<OperatingPoint>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Capture {
        camera: u32,
    },
    HeadDone {
        camera: u32,
        frame: u64,
        split: u8,
        width: u8,
        bits: u8,
        layers: u8,
        started: Timestamp,
    },
    Timer {
        camera: u32,
    },
    BatchDone {
        batch: BatchId,
    },
    SendAgain {
        packet: UpPacket,
    },
    ReplyAgain {
        packet: DownPacket,
    },
}

/// One packet of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct UpPacket {
    camera: u32,
    frame: u64,
    index: u32,
    packets: u32,
    bytes: u32,
    time_left: Duration,
    point: OperatingPoint,
}

/// A reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct DownPacket {
    camera: u32,
    frame: u64,
    point: OperatingPoint,
    refused: Option<(wire::Reason, Duration)>,
    receive_span: Duration,
    queue: Duration,
    tail: Duration,
    batch: u32,
}

#[derive(Clone, Copy, Debug)]
struct Arriving {
    first: Timestamp,
    missing: u32,
    seen: u128,
}

/// An accepted frame on the server.
#[derive(Clone, Copy, Debug)]
struct Work {
    packet: UpPacket,
    received_at: Timestamp,
    receive_span: Duration,
    started: Timestamp,
}

impl<'a, 'o> World<'a, 'o> {
    fn new(config: &'a WorldConfig, record: &'a Record, observer: Option<Observer<'o>>) -> Self {
        let PathConfig { uplink, downlink } = config.path.clone();
        World {
            config,
            record,
            now: Timestamp::ZERO,
            agenda: BinaryHeap::new(),
            told: 0,
            devices: Vec::new(),
            uplink: Link::new(uplink, scattered(config.seed)),
            downlink: Link::new(downlink, scattered(!config.seed)),
            wanted: BTreeSet::new(),
            arriving: BTreeMap::new(),
            batcher: Batcher::new(config.server.batcher),
            accepted: Vec::new(),
            batches: BTreeMap::new(),
            result: RunResult::default(),
            observer,
        }
    }

    fn add_device(&mut self, camera: u32, controller: Box<dyn Controller>) {
        let WorldConfig { deadline, in_flight, .. } = *self.config;
        let session = SessionConfig { deadline, guard: GUARD, in_flight, pace: Pace::Live };
        let mut session = Session::new(session, controller);
        let path = &self.config.path;
        session.handle_input(
            Timestamp::ZERO,
            Input::LinkUp {
                max_in_flight: self.config.server.max_in_flight,
                max_frame_bytes: 1 << 20,
                round_trip: Some(path.uplink.delay.base + path.downlink.delay.base),
            },
        );
        let device = DeviceState { session, armed: None, next_frame: 0, last_sent: None };
        self.devices.push(device);
        self.accepted.push(0);
        if capture_time(self.config, camera, 0) < Timestamp::ZERO + self.config.duration {
            self.at(capture_time(self.config, camera, 0), Event::Capture { camera });
        }
    }

    fn run(mut self) -> RunResult {
        loop {
            let agenda = self.agenda.peek().map(|Reverse((at, ..))| *at);
            let links = [self.uplink.poll_timeout(), self.downlink.poll_timeout()];
            let timers = [agenda, links[0], links[1], self.batcher.poll_timeout()];
            let Some(next) = timers.into_iter().flatten().min() else { break };
            self.now = self.now.max(next);
            let now = self.now;
            if links[0].is_some_and(|at| at <= now) {
                self.drain_uplink();
            }
            if links[1].is_some_and(|at| at <= now) {
                self.drain_downlink();
            }
            self.batcher.handle_timeout(now);
            self.drain_batcher();
            while let Some(Reverse((at, ..))) = self.agenda.peek()
                && *at <= now
            {
                let Some(Reverse((_, _, event))) = self.agenda.pop() else { break };
                self.on_event(event);
            }
        }
        self.result.uplink = self.uplink.counters();
        self.result
    }

    fn at(&mut self, at: Timestamp, event: Event) {
        self.agenda.push(Reverse((at, self.told, event)));
        self.told += 1;
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Capture { camera } => {
                let device = &mut self.devices[camera as usize];
                let frame = device.next_frame;
                device.next_frame += 1;
                let next = capture_time(self.config, camera, frame + 1);
                if next < Timestamp::ZERO + self.config.duration {
                    self.at(next, Event::Capture { camera });
                }
                self.result.frames += 1;
                self.tell(camera, Input::Captured { frame: FrameId(frame) });
            }
            Event::HeadDone { camera, frame, split, width, bits, layers, started } => {
                let run = HeadRun { split, width, bits, layers };
                let picture = self.picture(camera, frame);
                let exit = self.record.exit(split, width, picture);
                let luck = luck(self.config.seed, camera, frame);
                let (head, encode) = self.config.device.times(started, (split, width), luck);
                let outcome = HeadOutcome {
                    exit: exit.map(|exit| self.answer(picture, exit.right, exit.confidence)),
                    layer_ends: self.record.layer_ends(run, picture),
                    head,
                    encode,
                };
                self.tell(camera, Input::HeadDone { frame: FrameId(frame), outcome });
            }
            Event::Timer { camera } => {
                let device = &mut self.devices[camera as usize];
                device.armed = None;
                if device.session.poll_timeout().is_some_and(|due| due <= self.now) {
                    self.tell(camera, Input::Timeout);
                } else {
                    self.arm(camera);
                }
            }
            Event::BatchDone { batch } => self.on_batch_done(batch),
            Event::SendAgain { packet } => {
                if self.wanted.contains(&(packet.camera, packet.frame)) {
                    self.put_on_uplink(packet);
                }
            }
            Event::ReplyAgain { packet } => self.put_on_downlink(packet),
        }
    }

    /// Tells a device's session, and does what it orders.
    fn tell(&mut self, camera: u32, input: Input) {
        let now = self.now;
        self.devices[camera as usize].session.handle_input(now, input);
        while let Some(output) = self.devices[camera as usize].session.poll_output() {
            match output {
                Output::RunHead { frame, run: Run::Head(run) } => {
                    let luck = luck(self.config.seed, camera, frame.0);
                    let device = &self.config.device;
                    let (head, encode) = device.times(now, (run.split, run.width), luck);
                    let (split, width) = (run.split, run.width);
                    let (bits, layers, frame) = (run.bits, run.layers, frame.0);
                    let luck = self.record.luck(split, width, self.picture(camera, frame));
                    self.result.luck = self.result.luck.plus(luck);
                    let done =
                        Event::HeadDone { camera, frame, split, width, bits, layers, started: now };
                    self.at(now + head + encode, done);
                }
                Output::Send { frame, content: Content::Features(point), time_left, .. } => {
                    self.send(camera, frame.0, point, time_left);
                }
                // A record holds no compressed pictures, and no controller here asks for one.
                Output::RunHead { frame, run: Run::Image(_) } => {
                    let failed = Input::HeadFailed { frame };
                    self.devices[camera as usize].session.handle_input(now, failed);
                }
                Output::Send { frame, content: Content::Image(_), .. } => {
                    let lost = Input::Lost { frame };
                    self.devices[camera as usize].session.handle_input(now, lost);
                }
                Output::Cancel { frame } => {
                    self.wanted.remove(&(camera, frame.0));
                }
                Output::Done(outcome) => self.on_done(camera, &outcome),
            }
        }
        self.arm(camera);
    }

    fn arm(&mut self, camera: u32) {
        let device = &mut self.devices[camera as usize];
        let Some(due) = device.session.poll_timeout() else { return };
        if device.armed.is_none_or(|armed| due < armed) {
            device.armed = Some(due);
            self.at(due.max(self.now), Event::Timer { camera });
        }
    }

    fn send(&mut self, camera: u32, frame: u64, point: OperatingPoint, time_left: Duration) {
        let picture = self.picture(camera, frame);
        let bytes = self.record.outcome(point, picture).map_or(0, |outcome| outcome.bytes);
        self.result.bytes += u64::from(bytes);
        self.wanted.insert((camera, frame));
        let device = &mut self.devices[camera as usize];
        let before = device.last_sent.replace(point);
        self.result.switches += u64::from(before.is_some_and(|before| before != point));
        let (_, packets) = on_the_wire(bytes);
        // The wire's whole milliseconds.
        let time_left = Duration::from_millis(time_left.as_millis() as u64);
        let mut rest = bytes;
        for index in 0..packets {
            let bytes = rest.min(PAYLOAD);
            rest -= bytes;
            let bytes = bytes + HEADERS;
            self.put_on_uplink(UpPacket { camera, frame, index, packets, bytes, time_left, point });
        }
    }

    fn put_on_uplink(&mut self, packet: UpPacket) {
        self.uplink.handle_packet(self.now, DataSize::from_bytes(packet.bytes.into()), packet);
        self.send_again_after(self.round_trip());
    }

    fn put_on_downlink(&mut self, packet: DownPacket) {
        let (size, _) = on_the_wire(REPLY);
        self.downlink.handle_packet(self.now, size, packet);
        self.send_again_after(self.round_trip());
    }

    fn round_trip(&self) -> Duration {
        self.config.path.uplink.delay.base + self.config.path.downlink.delay.base
    }

    /// Sends what the links dropped again, once its sender can have missed it: a round trip after
    /// the queue turned it away, the way back after it should have arrived.
    fn send_again_after(&mut self, notice: Duration) {
        // Also on a path without delay a sender waits a little.
        let missed = self.now + notice + Duration::from_millis(1);
        while let Some(packet) = self.uplink.poll_dropped() {
            self.at(missed, Event::SendAgain { packet });
        }
        while let Some(packet) = self.downlink.poll_dropped() {
            self.at(missed, Event::ReplyAgain { packet });
        }
    }

    fn drain_uplink(&mut self) {
        while let Some(packet) = self.uplink.poll_delivered(self.now) {
            match packet.corrupted {
                false => self.on_server_packet(packet.content),
                // Its authentication fails: it is as good as lost.
                true => {
                    let missed = self.now + self.config.path.downlink.delay.base;
                    self.at(missed, Event::SendAgain { packet: packet.content });
                }
            }
        }
        self.send_again_after(self.config.path.downlink.delay.base);
    }

    fn on_server_packet(&mut self, packet: UpPacket) {
        let key = (packet.camera, packet.frame);
        if !self.wanted.contains(&key) {
            // Given up, or answered: the stream was reset.
            self.arriving.remove(&key);
            return;
        }
        let now = self.now;
        let arriving = self.arriving.entry(key).or_insert(Arriving {
            first: now,
            missing: packet.packets,
            seen: 0,
        });
        let bit = 1u128 << packet.index;
        if arriving.seen & bit != 0 {
            return;
        }
        arriving.seen |= bit;
        arriving.missing -= 1;
        if arriving.missing > 0 {
            return;
        }
        let first = arriving.first;
        let receive_span = now.saturating_since(first);
        // What was received stays noted, so that a second copy is no second frame.
        let deadline = first + packet.time_left;
        let load = Load {
            in_flight: self.accepted[packet.camera as usize],
            max_in_flight: self.config.server.max_in_flight,
            queue_full: self.batcher.is_full(),
            expected_wait: self.batcher.expected_wait(),
            draining: false,
        };
        let work = Work { packet, received_at: now, receive_span, started: now };
        let lane = Lane { bundle: 0, split: Some(packet.point.split) };
        if deadline <= now {
            return self.refuse(&work, wire::Reason::Expired, Duration::ZERO);
        }
        if let Err(Refused { reason, retry_after, .. }) = admit_load(&load) {
            return self.refuse(&work, reason, retry_after);
        }
        match self.batcher.handle_arrival(now, Job { lane, deadline, work }) {
            Ok(_) => self.accepted[packet.camera as usize] += 1,
            Err(full) => {
                let wait = self.batcher.expected_wait();
                return self.refuse(&full.0, wire::Reason::Overloaded, wait);
            }
        }
        self.drain_batcher();
    }

    fn drain_batcher(&mut self) {
        while let Some(mut batch) = self.batcher.poll_batch(self.now) {
            let count = u32::try_from(batch.work.len()).unwrap_or(u32::MAX);
            let ServerConfig { decode, tail, tail_per_frame, .. } = self.config.server;
            let time = tail + (tail_per_frame + decode) * count;
            batch.work.iter_mut().for_each(|work| work.started = self.now);
            self.at(self.now + time, Event::BatchDone { batch: batch.id });
            self.batches.insert(batch.id, batch);
        }
        while let Some(dropped) = self.batcher.poll_dropped() {
            self.accepted[dropped.work.packet.camera as usize] -= 1;
            if dropped.cause == Cause::Expired {
                self.refuse(&dropped.work, wire::Reason::Expired, Duration::ZERO);
            }
        }
    }

    fn on_batch_done(&mut self, id: BatchId) {
        self.batcher.handle_worker_free(self.now, id);
        let Some(batch) = self.batches.remove(&id) else { return };
        let count = u32::try_from(batch.work.len()).unwrap_or(u32::MAX);
        for work in batch.work {
            let Work { packet, received_at, receive_span, started } = work;
            self.accepted[packet.camera as usize] -= 1;
            let ran = self.now.saturating_since(started);
            self.reply(DownPacket {
                camera: packet.camera,
                frame: packet.frame,
                point: packet.point,
                refused: None,
                receive_span,
                queue: started.saturating_since(received_at),
                tail: ran.saturating_sub(self.config.server.decode),
                batch: count,
            });
        }
        self.drain_batcher();
    }

    fn refuse(&mut self, work: &Work, reason: wire::Reason, retry_after: Duration) {
        let Work { packet, receive_span, received_at, .. } = *work;
        self.reply(DownPacket {
            camera: packet.camera,
            frame: packet.frame,
            point: packet.point,
            refused: Some((reason, retry_after)),
            receive_span,
            queue: self.now.saturating_since(received_at),
            tail: Duration::ZERO,
            batch: 0,
        });
    }

    fn reply(&mut self, packet: DownPacket) {
        self.arriving.remove(&(packet.camera, packet.frame));
        // Nobody listens for the answer to a stream that was reset.
        if self.wanted.contains(&(packet.camera, packet.frame)) {
            self.put_on_downlink(packet);
        }
    }

    fn drain_downlink(&mut self) {
        while let Some(packet) = self.downlink.poll_delivered(self.now) {
            match packet.corrupted {
                false => self.on_reply(packet.content),
                true => {
                    let missed = self.now + self.config.path.uplink.delay.base;
                    self.at(missed, Event::ReplyAgain { packet: packet.content });
                }
            }
        }
        self.send_again_after(self.config.path.uplink.delay.base);
    }

    fn on_reply(&mut self, packet: DownPacket) {
        if !self.wanted.remove(&(packet.camera, packet.frame)) {
            return;
        }
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let answered = packet.refused.is_none();
        let feedback = Feedback {
            receive_span_us: micros(packet.receive_span),
            queue_us: micros(packet.queue),
            decode_us: if answered { micros(self.config.server.decode) } else { 0 },
            tail_us: micros(packet.tail),
            batch_size: packet.batch,
        };
        let picture = self.picture(packet.camera, packet.frame);
        let network = self.record.outcome(packet.point, picture);
        let outcome = match (packet.refused, network) {
            (None, Some(network)) => {
                let answer = self.answer(picture, network.right, network.confidence);
                Ok((answer, packet.point.layers))
            }
            (refused, _) => Err(refused.unwrap_or((wire::Reason::UnknownPoint, Duration::ZERO))),
        };
        let reply = ServerReply { outcome, feedback };
        self.tell(packet.camera, Input::Reply { frame: FrameId(packet.frame), reply });
    }

    fn on_done(&mut self, camera: u32, outcome: &FrameOutcome) {
        self.wanted.remove(&(camera, outcome.frame.0));
        let picture = self.picture(camera, outcome.frame.0);
        let (mut by_network, mut right) = (false, false);
        let reason = match outcome.verdict {
            Verdict::Dropped(cause) => cause.to_string(),
            Verdict::Answered { arm, answer, reason } => {
                by_network = matches!(arm, Arm::Split(_)) && outcome.on_time;
                right = answer.class == self.record.label(picture) && outcome.on_time;
                self.result.right_in_time += u64::from(right);
                if outcome.on_time {
                    self.result.expected +=
                        self.expected(arm, outcome.run.and_then(Run::head), picture);
                }
                let took = outcome.finished.saturating_since(outcome.captured);
                self.result.latency.record(took.as_micros() as u64);
                match reason {
                    Reason::Chosen(choice) => format!("{}: {choice}", arm.name()),
                    Reason::Fallback(fallback) => fallback.to_string(),
                }
            }
        };
        let missed = outcome.sent.is_some() && !by_network;
        self.result.sent += u64::from(outcome.sent.is_some());
        self.result.missed += u64::from(missed);
        if let Some(observer) = &mut self.observer {
            let sent = match outcome.sent {
                Some(Content::Features(point)) => self.record.outcome(point, picture),
                _ => None,
            };
            observer(&FrameEnd {
                camera,
                outcome,
                reason: &reason,
                right,
                missed,
                bytes: sent.map_or(0, |sent| sent.bytes),
                capacity: self.uplink.rate_at(self.now),
                backlog: self.uplink.queued(self.now),
                estimate: self.devices[camera as usize].session.link_estimate(),
            });
        }
        match self.result.reasons.get_mut(&reason) {
            Some(count) => *count += 1,
            None => {
                self.result.reasons.insert(reason, 1);
            }
        }
    }

    fn picture(&self, camera: u32, frame: u64) -> usize {
        picture(self.config.seed, camera, frame, self.record.played())
    }

    fn expected(&self, arm: Arm, head: Option<(u8, u8)>, picture: usize) -> f64 {
        let exit = |(split, width)| self.record.expected_exit(split, width, picture);
        let expected = match arm {
            Arm::Split(point) => self.record.expected(point, picture),
            Arm::Exit => head.and_then(exit),
            _ => None,
        };
        expected.unwrap_or(0.0)
    }

    fn answer(&self, picture: usize, right: bool, confidence: f32) -> Answer {
        let class = self.record.label(picture) + usize::from(!right);
        Answer { class, confidence }
    }
}
