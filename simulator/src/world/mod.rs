//! Devices, a path and a server in virtual time.
//!
//! The session, its controller, admission and batcher are those of the real programs; camera and
//! compute are charged. What carries frames is chosen: an ideal transport, or the real QUIC state
//! machine ([`TransportKind`]).

mod agenda;
mod config;
#[allow(clippy::disallowed_methods)]
pub mod device;
pub(crate) mod frames;
mod model;
pub mod oracle;
pub mod record;
mod result;
pub mod synthetic;
#[cfg(test)]
mod tests;
mod transport;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use isthmus_head_client::{
    Controller, FrameOutcome, GUARD, HeadOutcome, Input, Output, Pace, Reason, Run, Session,
    SessionConfig, Verdict,
};
use isthmus_models::{Outcome, TOP_CLASSES};
use isthmus_proto::wire::{self, BundleRef, Hello, Score};
use isthmus_proto::{
    Arm, BundleDigest, Content, DEFAULT_MAX_FRAME_BYTES, DataSize, FrameId, OperatingPoint,
    PROTOCOL_VERSION, Timestamp,
};
use isthmus_tail_server::admission::Refused;
use isthmus_tail_server::batcher::{Batch, BatchId};
use isthmus_tail_server::exchange::{Carrier, Computed, ConnectionId, NoAnswer, Work};
use prost::Message;

use crate::link::chance::{Chance, scattered};
use agenda::Agenda;
use model::Recorded;
use transport::{Event as Carried, Exchange, Ideal, Key, Quic, Route, Transport, Upload};

pub use config::{ServerConfig, TransportKind, WorldConfig};
pub use device::{Device, DeviceError, DeviceSpec};
pub use record::{ControlVariate, Macs, Record, RecordError};
pub use result::{FrameEnd, Observer, RunResult};

use result::mean;

/// Payload of a packet (bytes): QUIC's on most paths.
pub const PAYLOAD: u32 = 1_200;

/// What a packet adds (bytes): IPv4 and UDP 28, QUIC's header, stream frame and tag 32.
pub const HEADERS: u32 = 60;

/// The digest of the bundle that all simulated devices use.
const DIGEST: BundleDigest = BundleDigest([0; 32]);

/// Which picture of a record a camera's frame is, the same for every controller.
pub(crate) fn picture(seed: u64, camera: u32, frame: u64, played: usize) -> usize {
    let place = scattered(seed ^ scattered(u64::from(camera) << 40 | frame));
    (place % played as u64) as usize
}

/// The noise of the device's speed with a frame, standard normal, the same whatever it runs.
pub(crate) fn device_noise(seed: u64, camera: u32, frame: u64) -> f64 {
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

/// Bytes of a probe: its envelope, the padding's length and the padding.
fn probe_len(padding: usize) -> usize {
    7 + padding
}

/// As the wire tells a time left.
fn whole_millis(time_left: Duration) -> Duration {
    Duration::from_millis(time_left.as_millis() as u64)
}

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
    agenda: Agenda<Event>,
    devices: Vec<DeviceState>,
    transport: Box<dyn Transport>,
    /// Cameras that still capture, and frames that have not ended.
    capturing: u32,
    open: u64,
    exchange: Exchange,
    /// What was sent of the frames that have not ended.
    sent: BTreeMap<Key, Run>,
    /// Batches that run, and since when.
    batches: BTreeMap<BatchId, (Timestamp, Batch<Work<Route>>)>,
    result: RunResult,
    observer: Option<Observer<'o>>,
}

struct DeviceState {
    session: Session,
    armed: Option<Timestamp>,
    next_frame: u64,
    /// What its compute thread runs, or has run last.
    run: Option<Run>,
    /// What was sent last: all of such a run.
    last_sent: Option<Run>,
}

#[derive(Clone, Copy, Debug)]
enum Event {
    Capture { camera: u32 },
    RunDone { camera: u32, frame: u64, run: Run, network: Duration, coding: Duration },
    Timer { camera: u32 },
    BatchDone { batch: BatchId },
    Rebinding,
}

impl<'a, 'o> World<'a, 'o> {
    fn new(config: &'a WorldConfig, record: &'a Record, observer: Option<Observer<'o>>) -> Self {
        let mut exchange = Exchange::new(config.server.exchange(), Recorded::registry());
        let transport: Box<dyn Transport> = match config.transport {
            TransportKind::Ideal => Box::new(Ideal::new(config, &mut exchange)),
            TransportKind::Quic => Box::new(Quic::new(config)),
        };
        World {
            config,
            record,
            now: Timestamp::ZERO,
            agenda: Agenda::new(),
            devices: Vec::new(),
            transport,
            capturing: 0,
            open: 0,
            exchange,
            sent: BTreeMap::new(),
            batches: BTreeMap::new(),
            result: RunResult::default(),
            observer,
        }
    }

    fn add_device(&mut self, camera: u32, controller: Box<dyn Controller>) {
        let WorldConfig { deadline, in_flight, .. } = *self.config;
        let session = SessionConfig { deadline, guard: GUARD, in_flight, pace: Pace::Live };
        let session = Session::new(session, controller);
        let device =
            DeviceState { session, armed: None, next_frame: 0, run: None, last_sent: None };
        self.devices.push(device);
        self.plan_capture(camera, 0);
    }

    fn plan_capture(&mut self, camera: u32, frame: u64) {
        let at = capture_time(self.config, camera, frame);
        if at < Timestamp::ZERO + self.config.duration {
            self.capturing += 1;
            self.agenda.plan(at, Event::Capture { camera });
        }
    }

    fn plan_rebinding(&mut self) {
        if let Some(next) = self.config.path.rebindings.after(self.now) {
            self.agenda.plan(next, Event::Rebinding);
        }
    }

    /// Runs until every frame has ended.
    fn run(mut self) -> RunResult {
        self.plan_rebinding();
        self.settle();
        while self.capturing > 0 || self.open > 0 {
            let (carried, served) = (self.transport.poll_timeout(), self.exchange.poll_timeout());
            let timers = [self.agenda.next(), carried, served];
            let Some(next) = timers.into_iter().flatten().min() else { break };
            self.now = self.now.max(next);
            let now = self.now;
            while self.transport.poll_timeout().is_some_and(|at| at <= now) {
                self.transport.handle_timeout(now, &mut self.exchange);
                self.settle();
            }
            if served.is_some_and(|at| at <= now) {
                self.exchange.handle_timeout(now);
                self.settle();
            }
            while let Some(event) = self.agenda.poll(now) {
                self.on_event(event);
                self.settle();
            }
        }
        self.result.uplink = self.transport.uplink();
        self.result.misdirected = self.transport.misdirected();
        self.result
    }

    fn on_event(&mut self, event: Event) {
        match event {
            Event::Capture { camera } => {
                let device = &mut self.devices[camera as usize];
                let frame = device.next_frame;
                device.next_frame += 1;
                self.capturing -= 1;
                self.open += 1;
                self.plan_capture(camera, frame + 1);
                self.result.frames += 1;
                self.tell(camera, Input::Captured { frame: FrameId(frame) });
            }
            Event::RunDone { camera, frame, run, network, coding } => {
                let picture = self.picture(camera, frame);
                let said = match run {
                    Run::Local => self.record.run_outcome(run, picture),
                    Run::Head(_) | Run::Image(_) => {
                        run.head().and_then(|(s, w)| self.record.exit(s, w, picture))
                    }
                };
                let outcome = HeadOutcome {
                    exit: said.map(|it| it.confidence),
                    layer_ends: self.layer_ends(run, picture),
                    head: network,
                    encode: coding,
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
            Event::Rebinding => {
                self.result.rebindings += 1;
                self.transport.rebind();
                self.plan_rebinding();
            }
        }
    }

    /// Tells a device's session, and does what it orders.
    fn tell(&mut self, camera: u32, input: Input) {
        let now = self.now;
        self.devices[camera as usize].session.handle_input(now, input);
        while let Some(output) = self.devices[camera as usize].session.poll_output() {
            match output {
                Output::RunHead { frame, run } => {
                    let noise = device_noise(self.config.seed, camera, frame.0);
                    let (network, coding) = self.config.device.times(now, run.load(), noise);
                    let picture = self.picture(camera, frame.0);
                    let chance = self.record.control_variate(run.load(), picture);
                    self.result.control_variate = self.result.control_variate.plus(chance);
                    self.devices[camera as usize].run = Some(run);
                    let frame = frame.0;
                    let done = Event::RunDone { camera, frame, run, network, coding };
                    self.agenda.plan(now + network + coding, done);
                }
                Output::Send { frame, content, time_left, answer_by } => {
                    let key = Key { camera, frame: frame.0 };
                    self.send(key, content, time_left, answer_by);
                }
                Output::Probe { frame, bytes, time_left } => {
                    self.result.probes += 1;
                    self.result.bytes += probe_len(bytes) as u64;
                    let key = Key { camera, frame: frame.0 };
                    self.transport.probe(now, key, bytes, whole_millis(time_left));
                }
                Output::Cancel { frame } => {
                    self.transport.cancel(now, Key { camera, frame: frame.0 });
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
            self.agenda.plan(due.max(self.now), Event::Timer { camera });
        }
    }

    fn send(&mut self, key: Key, content: Content, time_left: Duration, answer_by: Timestamp) {
        let picture = self.picture(key.camera, key.frame);
        let device = &mut self.devices[key.camera as usize];
        let run = match (content, device.run) {
            (Content::Features(point), _) => point.into(),
            // A picture is sent as soon as it is compressed.
            (Content::Image(_), Some(run)) => run,
            (Content::Image(_), None) => return,
        };
        let before = device.last_sent.replace(run);
        self.result.switches += u64::from(before.is_some_and(|before| before != run));
        let layer_ends = self.layer_ends(run, picture);
        self.result.bytes += layer_ends.last().map_or(0, |&bytes| bytes as u64);
        self.sent.insert(key, run);
        let time_left = whole_millis(time_left);
        let upload = Upload { key, content, layer_ends, time_left, answer_by };
        self.transport.send(self.now, upload);
    }

    /// Sizes up to and with each layer that a run codes.
    fn layer_ends(&self, run: Run, picture: usize) -> Vec<usize> {
        match run {
            Run::Head(run) => self.record.layer_ends(run, picture),
            Run::Image(run) => {
                let outcome = self.record.image_outcome(run.image, picture);
                vec![outcome.map_or(0, |outcome| outcome.bytes as usize)]
            }
            Run::Local => Vec::new(),
        }
    }

    /// Carries out what the server has ordered, starts batches, and tells the devices what reached
    /// them.
    fn settle(&mut self) {
        let now = self.now;
        self.transport.carry_out(now, &mut self.exchange);
        while let Some(batch) = self.exchange.poll_batch(now) {
            let count = u32::try_from(batch.work.len()).unwrap_or(u32::MAX);
            let [decode, run, per_frame] = self.config.server.times(batch.lane);
            let time = run + (per_frame + decode) * count;
            self.agenda.plan(now + time, Event::BatchDone { batch: batch.id });
            self.batches.insert(batch.id, (now, batch));
        }
        self.transport.carry_out(now, &mut self.exchange);
        while let Some(event) = self.transport.poll_event() {
            let (camera, input) = match event {
                Carried::Up { camera, round_trip } => {
                    let max_in_flight = self.config.server.max_in_flight;
                    let (max_frame_bytes, round_trip) = (DEFAULT_MAX_FRAME_BYTES, Some(round_trip));
                    (camera, Input::LinkUp { max_in_flight, max_frame_bytes, round_trip })
                }
                Carried::Down { camera } => (camera, Input::LinkDown),
                Carried::Replied { key: Key { camera, frame }, reply } => {
                    (camera, Input::Reply { frame: FrameId(frame), reply })
                }
                Carried::Echoed { key: Key { camera, frame }, feedback } => {
                    (camera, Input::Echo { frame: FrameId(frame), feedback })
                }
                Carried::Lost { key: Key { camera, frame } } => {
                    (camera, Input::Lost { frame: FrameId(frame) })
                }
            };
            self.tell(camera, input);
        }
    }

    fn on_batch_done(&mut self, id: BatchId) {
        let Some((started, batch)) = self.batches.remove(&id) else { return };
        let batch_size = u32::try_from(batch.work.len()).unwrap_or(u32::MAX);
        let [decode, ..] = self.config.server.times(batch.lane);
        let tail = self.now.saturating_since(started).saturating_sub(decode);
        for Work { frame, to, received, .. } in batch.work {
            let key = self.key(to.camera, received.envelope.frame);
            let picture = self.picture(key.camera, key.frame);
            let layers = u8::try_from(received.layers).unwrap_or(OperatingPoint::MAX_LAYERS);
            let outcome = match (received.content, self.sent.get(&key)) {
                (Content::Features(point), _) => {
                    self.record.outcome_of_layers(point, layers, picture)
                }
                (Content::Image(_), Some(&run)) => {
                    self.record.run_outcome(run, picture).map(|outcome| (outcome, layers))
                }
                // Given up meanwhile: nobody listens.
                (Content::Image(_), None) => None,
            };
            let computed = match outcome {
                Some((it, layers)) => Ok(Computed {
                    answers: vec![answer(&it)],
                    layers: layers.into(),
                    decode,
                    tail,
                    batch_size,
                }),
                None => {
                    let detail = "the record has no such outcome";
                    Err(NoAnswer::Refused(Refused::new(wire::Reason::UnknownPoint, detail)))
                }
            };
            self.exchange.handle_computed(self.now, frame, computed);
        }
        self.exchange.handle_worker_free(self.now, id);
    }

    /// The frame of a camera that these last 16 bits of a number stand for.
    fn key(&self, camera: u32, id: u16) -> Key {
        let latest = self.devices[camera as usize].next_frame.saturating_sub(1);
        let behind = (latest as u16).wrapping_sub(id);
        Key { camera, frame: latest.saturating_sub(behind.into()) }
    }

    fn on_done(&mut self, camera: u32, outcome: &FrameOutcome) {
        self.open -= 1;
        let key = Key { camera, frame: outcome.frame.0 };
        self.transport.cancel(self.now, key);
        let sent = self.sent.remove(&key);
        let picture = self.picture(camera, outcome.frame.0);
        let (mut by_network, mut quality) = (false, 0.0);
        let reason = match outcome.verdict {
            Verdict::Dropped(cause) => cause.to_string(),
            Verdict::Answered { arm, reason, .. } => {
                by_network = matches!(arm, Arm::Split(_) | Arm::Image) && outcome.on_time;
                if outcome.on_time {
                    quality = self.quality(arm, outcome, picture);
                    self.result.quality_in_time += f64::from(quality);
                    self.result.expected += self.expected(arm, outcome, picture);
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
            let sent = sent.and_then(|run| self.record.run_outcome(run, picture));
            let (capacity, backlog) = self.transport.uplink_of(self.now, camera);
            observer(&FrameEnd {
                camera,
                outcome,
                reason: &reason,
                quality,
                missed,
                bytes: sent.map_or(0, |sent| sent.bytes),
                capacity,
                backlog,
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

    fn expected(&self, arm: Arm, outcome: &FrameOutcome, picture: usize) -> f64 {
        let exit = |(split, width)| self.record.expected_exit(split, width, picture);
        let expected = match arm {
            Arm::Split(point) => {
                let layers = outcome.layers_used.unwrap_or(point.layers);
                self.record.expected(OperatingPoint { layers, ..point }, picture)
            }
            Arm::Exit => outcome.run.and_then(Run::head).and_then(exit),
            Arm::Image | Arm::Local => {
                outcome.run.and_then(|run| self.record.expected(run, picture))
            }
        };
        expected.unwrap_or(0.0)
    }

    /// How good the answer of a frame is.
    fn quality(&self, arm: Arm, outcome: &FrameOutcome, picture: usize) -> f32 {
        let recorded = match arm {
            Arm::Split(point) => {
                let layers = outcome.layers_used.unwrap_or(point.layers);
                self.record.outcome(OperatingPoint { layers, ..point }, picture)
            }
            Arm::Exit => {
                let head = outcome.run.and_then(Run::head);
                head.and_then(|(split, width)| self.record.exit(split, width, picture))
            }
            Arm::Image | Arm::Local => {
                outcome.run.and_then(|run| self.record.run_outcome(run, picture))
            }
        };
        recorded.map_or(0.0, |recorded| recorded.quality)
    }
}

/// Opens a connection for a device that has said hello.
fn connect(exchange: &mut Exchange, camera: u32) -> ConnectionId {
    let origin = IpAddr::from(Ipv4Addr::from_bits(camera)).into();
    let connection = exchange.connect(Timestamp::ZERO, Carrier::Streams, origin);
    let connection = connection.expect("connections have no limit");
    exchange.handle_hello(connection, &hello(), false).expect("a good hello");
    connection
}

/// What every simulated device says first.
fn hello() -> Hello {
    let bundle = BundleRef { name: "simulated".into(), digest: DIGEST.0.to_vec() };
    Hello { protocol: PROTOCOL_VERSION, bundles: vec![bundle], ..Hello::default() }
}

/// An answer as large as a real one. Its quality is the record's: whose class it names is of no account.
/// Where the record tells its size it is that long, whatever it holds, but for a class that says how sure
/// it is.
fn answer(outcome: &Outcome) -> wire::Answer {
    if outcome.reply > 0 {
        let top = vec![Score { class: 0, probability: outcome.confidence }];
        let mut answer = wire::Answer { top, ..Default::default() };
        let missing = (outcome.reply as usize).saturating_sub(answer.encoded_len());
        // The field's own tag and length are part of it.
        answer.boxes = vec![0; missing.saturating_sub(2).max(1)];
        return answer;
    }
    let rest = (1.0 - outcome.confidence) / TOP_CLASSES as f32;
    // The class 0 would take no byte.
    let score = |class: u32| Score {
        class,
        probability: if class == 1 { outcome.confidence } else { rest },
    };
    let top = (1..=TOP_CLASSES as u32).map(score).collect();
    wire::Answer { top, ..Default::default() }
}
