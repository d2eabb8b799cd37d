//! Plays the same scripted device against the real server over loopback and against the simulated
//! one, and compares what the device gets and what the server counts.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use isthmus_head_client::quic::client_config;
use isthmus_head_client::tls::{Fingerprint, Trust, verifier};
use isthmus_models::{Outputs, TailItem};
use isthmus_proto::framer::write_message;
use isthmus_proto::wire::{BundleRef, Hello, Reason, Reply, Score, ToServer, reply, to_server};
use isthmus_proto::{
    BundleDigest, Coded, Envelope, OperatingPoint, PROTOCOL_VERSION, Timestamp, write_packet,
    write_padding,
};
use isthmus_tail_server::batcher::{Batch, BatcherConfig};
use isthmus_tail_server::exchange::{Computed, ExchangeConfig, Work};
use isthmus_tail_server::model::{Model, ModelError};
use isthmus_tail_server::receiver::ReceiverConfig;
use isthmus_tail_server::{Counters, Registry, Server, ServerConfig, TlsConfig, code};
use prost::Message;
use quinn_proto::{ConnectionError, Dir, Event as QuicEvent, StreamId, VarInt};
use tokio::runtime::Runtime;

use super::endpoint::{Clock, Endpoint};
use super::identity::{HOST, Identity};
use super::{Datagram, SERVER, server};
use crate::world::transport::Exchange;

const DIGEST: BundleDigest = BundleDigest([3; 32]);
const POINT: OperatingPoint = OperatingPoint { split: 0, width: 0, layers: 3, bits: 4 };
const LAYER: usize = 50;
/// How long the network runs, whatever its batch.
const RUN: Duration = Duration::from_millis(400);
/// Longer than anything here.
const LONG: Duration = Duration::from_secs(20);
const MAX_FRAME: usize = 4_096;
const MAX_IN_FLIGHT: usize = 3;

/// What a device does next.
#[derive(Clone, Debug)]
enum Step {
    /// Writes to the control stream.
    Control(Vec<u8>),
    /// Opens the next frame's stream, and writes to it.
    Open(Vec<u8>),
    /// Writes more to a frame's stream.
    Write(usize, Vec<u8>),
    /// Ends a frame's stream.
    Finish(usize),
    /// Gives up sending a frame.
    Reset(usize),
    /// Wants a frame's reply no more.
    Stop(usize),
    /// Lets time pass.
    Wait(u64),
    /// The server begins to shut down.
    Drain,
}

use Step::{Control, Drain, Finish, Open, Reset, Stop, Wait, Write};

/// What a device got for a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Got {
    Answer {
        layers: u32,
    },
    Refusal(Reason),
    Echo,
    /// The stream or the connection ended without a reply.
    Nothing,
}

/// How a script ended.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Ended {
    frames: Vec<Got>,
    /// With which code the server closed the connection.
    closed: Option<u64>,
    counters: Counters,
}

/// One network with one point, which takes [`RUN`].
struct Slow;

impl Model for Slow {
    fn name(&self) -> &str {
        "slow"
    }
    fn digest(&self) -> BundleDigest {
        DIGEST
    }
    fn max_stream_bytes(&self, point: OperatingPoint) -> Option<usize> {
        (point == POINT).then_some(3 * LAYER)
    }
    fn decode(&self, _: OperatingPoint, _: &[u8], _: usize) -> Result<Vec<f32>, ModelError> {
        Ok(vec![0.0; 4])
    }
    fn infer(&self, batch: &[TailItem<'_>]) -> Result<Vec<Outputs>, ModelError> {
        thread::sleep(RUN);
        Ok(vec![vec![vec![1.0, 0.0, 0.0, 0.0]]; batch.len()])
    }
}

fn hello() -> Vec<u8> {
    let bundle = BundleRef { name: "slow".into(), digest: DIGEST.0.to_vec() };
    let hello = Hello { protocol: PROTOCOL_VERSION, bundles: vec![bundle], ..Hello::default() };
    control(to_server::Message::Hello(hello))
}

fn control(message: to_server::Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_message(&mut bytes, &ToServer { message: Some(message) });
    bytes
}

fn frame_of(id: u16, time_left: Duration, point: OperatingPoint, layer: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    Envelope { frame: id, time_left, probe: false }.write(&mut bytes);
    let layer_ends = (1..=3).map(|count| count * layer).collect();
    let coded = Coded { stream: vec![9; 3 * layer], layer_ends };
    write_packet(&mut bytes, 0, &DIGEST, point, &coded);
    bytes
}

fn frame(id: u16) -> Vec<u8> {
    frame_of(id, LONG, POINT, LAYER)
}

/// A frame up to and with so many layers.
fn layers(id: u16, count: usize) -> Vec<u8> {
    let mut bytes = frame(id);
    bytes.truncate(bytes.len() - (3 - count) * LAYER);
    bytes
}

fn urgent(id: u16, millis: u64) -> Vec<u8> {
    frame_of(id, Duration::from_millis(millis), POINT, LAYER)
}

fn probe(id: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    Envelope { frame: id, time_left: LONG, probe: true }.write(&mut bytes);
    write_padding(&mut bytes, 700);
    bytes
}

type Script = (&'static str, Vec<Step>);

/// Everything that a device may do to a frame or a connection, good or bad.
fn scripts() -> BTreeMap<&'static str, Vec<Step>> {
    [good_frames(), bad_frames(), bad_hellos()].into_iter().flatten().collect()
}

/// After a hello.
fn greeted(steps: Vec<Step>) -> Vec<Step> {
    [vec![Control(hello()), Wait(100)], steps].concat()
}

fn good_frames() -> Vec<Script> {
    let mut short_urgent = urgent(1, 300);
    short_urgent.truncate(short_urgent.len() - LAYER);
    let mut no_layer = urgent(1, 200);
    no_layer.truncate(no_layer.len() - 3 * LAYER);
    vec![
        ("all layers", greeted(vec![Open(frame(1)), Finish(0)])),
        ("all layers, byte by byte", {
            let mut steps = vec![Open(Vec::new())];
            steps.extend(frame(1).into_iter().map(|byte| Write(0, vec![byte])));
            greeted(steps)
        }),
        ("ended after two layers", greeted(vec![Open(layers(1, 2)), Finish(0)])),
        (
            "ended within a layer",
            greeted(vec![Open(frame(1)[..frame(1).len() - 9].into()), Finish(0)]),
        ),
        ("ended before the first layer", greeted(vec![Open(layers(1, 0)), Finish(0)])),
        ("ended before a byte", greeted(vec![Open(Vec::new()), Finish(0)])),
        ("reset after two layers", greeted(vec![Open(layers(1, 2)), Wait(100), Reset(0)])),
        ("reset before the first layer", greeted(vec![Open(layers(1, 0)), Wait(100), Reset(0)])),
        ("cut at its deadline", greeted(vec![Open(short_urgent)])),
        ("no layer by its deadline", greeted(vec![Open(no_layer)])),
        ("late", greeted(vec![Open(urgent(1, 200)), Finish(0)])),
        (
            "expired in the queue",
            greeted(vec![Open(frame(1)), Finish(0), Wait(100), Open(urgent(2, 100)), Finish(1)]),
        ),
        (
            "stopped while it is received",
            greeted(vec![Open(layers(1, 1)), Wait(100), Stop(0), Reset(0)]),
        ),
        (
            "stopped while it waits",
            greeted(vec![
                Open(frame(1)),
                Finish(0),
                Wait(100),
                Open(frame(2)),
                Finish(1),
                Wait(100),
                Stop(1),
            ]),
        ),
        ("stopped while it runs", greeted(vec![Open(frame(1)), Finish(0), Wait(100), Stop(0)])),
        ("cancelled at once", greeted(vec![Open(frame(1)), Stop(0), Reset(0)])),
        ("too many in flight", {
            greeted((0..5).flat_map(|id| [Open(frame(id)), Wait(50)]).collect())
        }),
        ("a batch", greeted(vec![Open(frame(0)), Wait(100), Open(frame(1)), Open(frame(2))])),
        (
            "refused while the server drains",
            greeted(vec![
                Open(frame(1)),
                Finish(0),
                Wait(100),
                Drain,
                Wait(50),
                Open(frame(2)),
                Finish(1),
            ]),
        ),
        ("two frames of one id", greeted(vec![Open(frame(1)), Open(frame(1))])),
        (
            "probes beside a running frame",
            greeted(vec![
                Open(frame(1)),
                Wait(50),
                Open(probe(2)),
                Open(probe(3)[..400].into()),
                Finish(2),
            ]),
        ),
    ]
}

fn bad_frames() -> Vec<Script> {
    let corrupt = |mut bytes: Vec<u8>| {
        *bytes.last_mut().expect("not empty") ^= 1;
        bytes
    };
    let other_point = OperatingPoint { bits: 7, ..POINT };
    vec![
        ("garbage", greeted(vec![Open(vec![0xff; 300]), Finish(0)])),
        ("announced too large", greeted(vec![Open(frame_of(1, LONG, POINT, 3_000)[..60].into())])),
        (
            "a stream longer than its point's",
            greeted(vec![Open(frame_of(1, LONG, POINT, 2 * LAYER)), Finish(0)]),
        ),
        ("a corrupt layer", greeted(vec![Open(corrupt(frame(1))), Finish(0)])),
        ("an unknown point", greeted(vec![Open(frame_of(1, LONG, other_point, LAYER)), Finish(0)])),
        (
            "bytes after the last layer",
            greeted(vec![Open([frame(1), vec![0; 9]].concat()), Finish(0)]),
        ),
        (
            "bytes after the last layer, later",
            greeted(vec![Open(frame(1)), Wait(100), Write(0, vec![0; 9]), Finish(0)]),
        ),
    ]
}

fn bad_hellos() -> Vec<Script> {
    vec![
        ("two hellos", greeted(vec![Control(hello()), Wait(50), Open(frame(1)), Finish(0)])),
        (
            "a cancel for a hello",
            vec![Control(control(to_server::Message::Cancel(1))), Wait(100), Open(frame(1))],
        ),
        ("garbage for a hello", vec![Control(vec![0xff; 50]), Wait(100), Open(frame(1))]),
        ("a hello of another version", {
            let hello = Hello { protocol: 9, ..Hello::default() };
            vec![Control(control(to_server::Message::Hello(hello))), Wait(100), Open(frame(1))]
        }),
        ("a frame of a bundle that was not bound", {
            let hello = Hello { protocol: PROTOCOL_VERSION, ..Hello::default() };
            vec![Control(control(to_server::Message::Hello(hello))), Wait(100), Open(frame(1))]
        }),
        ("half a hello, then nothing", vec![Control(hello()[..10].into()), Open(frame(1))]),
    ]
}

/// When everything has ended.
const SETTLED: u64 = 1_500;

fn got(reply: &[u8]) -> Got {
    match Reply::decode(reply).ok().and_then(|reply| reply.outcome) {
        Some(reply::Outcome::Answer(answer)) => Got::Answer { layers: answer.layers_used },
        Some(reply::Outcome::Refusal(refusal)) => Got::Refusal(refusal.reason()),
        Some(reply::Outcome::Echo(_)) => Got::Echo,
        None => Got::Nothing,
    }
}

/// Plays a script over a loopback interface.
fn play_for_real(script: &[Step]) -> Ended {
    let runtime = Runtime::new().expect("a runtime");
    let dir = tempfile::tempdir().expect("a folder");
    let tls = TlsConfig::SelfSigned { dir: dir.path().into() };
    let mut config = ServerConfig::new(PathBuf::new(), tls);
    (config.workers, config.max_batch, config.queue) = (1, 8, 64);
    (config.max_in_flight, config.max_frame_bytes) = (MAX_IN_FLIGHT, MAX_FRAME);
    let registry = Registry::new(vec![Arc::new(Slow)]);
    runtime.block_on(async {
        let server = Server::start_with(config, registry).await.expect("the server starts");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let fingerprint: Fingerprint = server.fingerprint().to_string().parse().expect("one");
        let trusted = verifier(&Trust::Fingerprints(vec![fingerprint])).expect("needs no file");
        let endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().expect("an address"));
        let endpoint = endpoint.expect("a socket");
        let config = client_config(provider, trusted).expect("a configuration");
        let address = server.quic_addr().expect("QUIC is offered");
        let connecting = endpoint.connect_with(config, address, HOST).expect("valid");
        let connection = connecting.await.expect("connected");
        let (mut control, _kept) = connection.open_bi().await.expect("a stream");
        let (mut server, mut shutdown) = (Some(server), None);
        let mut sends = Vec::new();
        let mut replies = Vec::new();
        for step in script {
            match step {
                Control(bytes) => drop(control.write_all(bytes).await),
                Open(bytes) => {
                    let Ok((mut send, mut recv)) = connection.open_bi().await else { break };
                    let _ = send.write_all(bytes).await;
                    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
                    sends.push((send, Some(stop)));
                    replies.push(tokio::spawn(async move {
                        tokio::select! {
                            reply = recv.read_to_end(1 << 16) => got(&reply.unwrap_or_default()),
                            _ = stopped => {
                                let _ = recv.stop(VarInt::from_u32(1));
                                Got::Nothing
                            }
                        }
                    }));
                }
                Write(frame, bytes) => drop(sends[*frame].0.write_all(bytes).await),
                Finish(frame) => drop(sends[*frame].0.finish()),
                Reset(frame) => drop(sends[*frame].0.reset(VarInt::from_u32(1))),
                Stop(frame) => drop(sends[*frame].1.take().map(|stop| stop.send(()))),
                Wait(millis) => tokio::time::sleep(Duration::from_millis(*millis)).await,
                Drain => shutdown = server.take().map(|it| tokio::spawn(it.shutdown())),
            }
        }
        tokio::time::sleep(Duration::from_millis(SETTLED)).await;
        let closed = match connection.close_reason() {
            Some(quinn::ConnectionError::ApplicationClosed(close)) => {
                Some(close.error_code.into_inner())
            }
            _ => None,
        };
        // At its end the real server closes connections, too.
        let closed = closed.filter(|&code| code != u64::from(code::DRAINING));
        let counters = match (server, shutdown) {
            (Some(server), _) => server.counters(),
            (None, Some(shutdown)) => shutdown.await.expect("no panic"),
            (None, None) => Counters::default(),
        };
        let mut frames = Vec::new();
        connection.close(code::DONE.into(), b"");
        for reply in replies {
            frames.push(reply.await.expect("no panic"));
        }
        Ended { frames, closed, counters }
    })
}

/// A device in virtual time that does as it is told.
struct Bare {
    endpoint: Endpoint<()>,
    handle: usize,
    frames: Vec<(StreamId, Vec<u8>)>,
    stopped: Vec<usize>,
    closed: Option<u64>,
}

/// Plays a script in virtual time, without a link between.
fn play_virtually(script: &[Step]) -> Ended {
    let clock = Clock::start();
    let identity = Identity::new(1, MAX_IN_FLIGHT);
    let exchange = ExchangeConfig {
        receiver: ReceiverConfig { max_frame_bytes: MAX_FRAME, ..ReceiverConfig::default() },
        batcher: BatcherConfig { workers: 1, max_batch: 8, queue: 64 },
        max_in_flight: MAX_IN_FLIGHT,
        max_connections: 8,
        max_connections_per_address: 8,
        max_buffered_bytes: 1 << 20,
    };
    let registry = Arc::new(Registry::new(vec![Arc::new(Slow)]));
    let mut exchange = Exchange::new(exchange, registry);
    let mut server = server::Server::new(clock, &identity);
    let mut endpoint = Endpoint::new(clock, identity.endpoint(1), None);
    let handle = endpoint.connect(Timestamp::ZERO, identity.client(1), (SERVER, HOST), ());
    let (frames, stopped, closed) = (Vec::new(), Vec::new(), None);
    let mut device = Bare { endpoint, handle, frames, stopped, closed };
    let mut batches = Vec::new();
    let mut steps = script.iter();
    // The real device is connected before its script begins.
    let mut next_step = 50;
    for millis in 0.. {
        let now = Timestamp::from_micros(millis * 1_000);
        let mut over = true;
        while millis >= next_step
            && let Some(step) = steps.next()
        {
            over = false;
            match step {
                Wait(wait) => next_step = millis + wait,
                Drain => exchange.handle_drain(),
                step => device.take(step),
            }
        }
        if over && millis >= next_step + SETTLED {
            break;
        }
        exchange.handle_timeout(now);
        let due = |(at, _): &(Timestamp, _)| *at <= now;
        while let Some(done) = batches.iter().position(due) {
            let (_, batch): (_, Batch<_>) = batches.remove(done);
            for Work { frame, received, .. } in batch.work {
                let top = vec![Score { class: 0, probability: 0.5 }];
                let answers = vec![isthmus_proto::wire::Answer { top, ..Default::default() }];
                let computed = Computed { answers, layers: received.layers, ..Computed::default() };
                exchange.handle_computed(now, frame, Ok(computed));
            }
            exchange.handle_worker_free(now, batch.id);
        }
        // Until neither end has anything to say at this instant.
        loop {
            server.carry_out(now, &mut exchange);
            while let Some(batch) = exchange.poll_batch(now) {
                batches.push((now + RUN, batch));
            }
            let sent = device.exchange_datagrams(now, &mut server, &mut exchange);
            for peer in std::mem::take(&mut server.touched) {
                if server.poll_timeout(peer).is_some_and(|at| at <= now) {
                    server.handle_timeout(now, peer, &mut exchange);
                }
            }
            if !sent {
                break;
            }
        }
        for peer in 0..4 {
            if server.poll_timeout(peer).is_some_and(|at| at <= now) {
                server.handle_timeout(now, peer, &mut exchange);
            }
        }
    }
    let frames = device.frames.iter().enumerate().map(|(at, (_, reply))| {
        if device.stopped.contains(&at) { Got::Nothing } else { got(reply) }
    });
    Ended { frames: frames.collect(), closed: device.closed, counters: exchange.counters().clone() }
}

impl Bare {
    fn take(&mut self, step: &Step) {
        let Some(server) = self.endpoint.get(self.handle) else { return };
        if server.control.is_none() {
            server.control = server.quic.streams().open(Dir::Bi);
        }
        let stream = |frame: &usize| self.frames[*frame].0;
        match step {
            Control(bytes) => server.write(server.control.expect("a stream"), bytes, false),
            Open(bytes) => {
                let Some(stream) = server.quic.streams().open(Dir::Bi) else { return };
                server.write(stream, bytes, false);
                self.frames.push((stream, Vec::new()));
            }
            Write(frame, bytes) => server.write(stream(frame), bytes, false),
            Finish(frame) => drop(server.quic.send_stream(stream(frame)).finish()),
            Reset(frame) => drop(server.quic.send_stream(stream(frame)).reset(VarInt::from_u32(1))),
            Stop(frame) => {
                server.stop(stream(frame), 1);
                self.stopped.push(*frame);
            }
            Wait(_) | Drain => {}
        }
    }

    /// Hands what this end has to say to the server, and takes what it says; whether there was
    /// anything.
    fn exchange_datagrams(
        &mut self,
        now: Timestamp,
        server: &mut server::Server,
        exchange: &mut Exchange,
    ) -> bool {
        self.endpoint.handle_timeout(now, self.handle);
        while let Some((_, event)) = self.endpoint.poll(self.handle) {
            if let QuicEvent::ConnectionLost { reason: ConnectionError::ApplicationClosed(close) } =
                event
            {
                self.closed = Some(close.error_code.into_inner());
            }
        }
        if let Some(connected) = self.endpoint.get(self.handle) {
            for (stream, reply) in &mut self.frames {
                reply.extend(connected.read(*stream).bytes);
            }
        }
        self.endpoint.transmit(now, self.handle);
        let mut any = false;
        let address = "10.0.0.1:5000".parse().expect("an address");
        for (_, bytes) in std::mem::take(&mut self.endpoint.transmits) {
            any = true;
            server.handle_datagram(now, &Datagram { camera: 0, address, bytes }, exchange);
        }
        for (_, bytes) in std::mem::take(&mut server.endpoint.transmits) {
            any = true;
            self.endpoint.handle_datagram(now, SERVER, &bytes);
        }
        any
    }
}

#[test]
fn the_simulated_server_treats_devices_as_the_real_one_does() {
    let scripts = scripts();
    // Each has a server of its own and mostly waits.
    let real: Vec<_> = thread::scope(|scope| {
        let playing: Vec<_> =
            scripts.values().map(|script| scope.spawn(|| play_for_real(script))).collect();
        playing.into_iter().map(|played| played.join().expect("no panic")).collect()
    });
    let mut differing = Vec::new();
    for ((name, script), mut real) in scripts.iter().zip(real) {
        let virtually = play_virtually(script);
        let ended = &virtually.counters;
        assert_eq!(ended.unfinished(), 0, "{name}: {ended:?}");
        // A machine that stood still for a moment took the script's pauses for shorter ones.
        for _ in 0..2 {
            if real != virtually {
                real = play_for_real(script);
            }
        }
        if real != virtually {
            differing.push(format!("{name}:\n  real    {real:?}\n  virtual {virtually:?}"));
        }
    }
    assert!(differing.is_empty(), "{}", differing.join("\n"));
}
