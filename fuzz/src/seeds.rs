//! Where fuzzing begins: small inputs that get far.

use std::time::Duration;

use isthmus_models::{Decoders, Wanted};
use isthmus_proto::framer::write_message;
use isthmus_proto::wire::{
    Answer, BundleRef, BundleStatus, Echo, Feedback, Hello, Reason, Refusal, Reply, Score,
    ToDevice, ToServer, Welcome, reply, to_device, to_server,
};
use isthmus_proto::{
    Coded, Envelope, ImageFormat, PROTOCOL_VERSION, write_image_packet, write_packet, write_padding,
};
use prost::Message;

use crate::answers::{TASKS, decoder};
use crate::coding::{DIGEST, STREET};
use crate::server::{
    BEGIN, CANCEL, CLOSED, COMPUTE, CONNECT, DRAIN, ENDED, HELLO, LEFT, LOST, MORE, POINT, START,
    UNWANTED, WAIT,
};

/// An input for a target.
pub struct Seed {
    /// The target, whose folder it lies in.
    pub target: &'static str,
    /// Its file's name.
    pub name: String,
    /// The input.
    pub bytes: Vec<u8>,
}

/// All seeds.
pub fn all() -> Vec<Seed> {
    [answers(), framer(), frame(), context(), reply(), server()].into_iter().flatten().collect()
}

fn seed(target: &'static str, name: impl Into<String>, parts: &[&[u8]]) -> Seed {
    Seed { target, name: name.into(), bytes: parts.concat() }
}

/// An answer of each task, and a network's outputs for it.
fn answers() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for (at, task) in TASKS.into_iter().enumerate() {
        let decoders = Decoders::new(&[decoder(task)], (64, 48)).expect("a decoder");
        let values = decoder(task).outputs.into_iter().map(|output| {
            (0..output.len()).map(|at| [0.5f32, 0.25, 0.75, 0.4][at % 4]).collect::<Vec<f32>>()
        });
        let outputs: Vec<Vec<f32>> = values.collect();
        let bytes: Vec<u8> = outputs.concat().iter().flat_map(|it| it.to_le_bytes()).collect();
        let answers = decoders.answers(outputs, None).expect("answers");
        let wanted = Wanted { logits: true, min_confidence: None };
        let sent = decoders.to_wire(answers, wanted).remove(0).encode_to_vec();
        let name = task.name();
        seeds.push(seed("answer", format!("{name}-sent"), &[&[at as u8], &sent]));
        seeds.push(seed("answer", format!("{name}-outputs"), &[&[at as u8], &bytes]));
    }
    seeds
}

fn message(message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_message(&mut bytes, message);
    bytes
}

fn to_server(it: to_server::Message) -> Vec<u8> {
    message(&ToServer { message: Some(it) })
}

fn to_device(it: to_device::Message) -> Vec<u8> {
    message(&ToDevice { message: Some(it) })
}

fn hello() -> Vec<u8> {
    let bundles = vec![BundleRef { name: "one-point".into(), digest: DIGEST.0.to_vec() }];
    let hello = Hello { protocol: PROTOCOL_VERSION, bundles, ..Hello::default() };
    to_server(to_server::Message::Hello(hello))
}

fn welcome() -> Vec<u8> {
    let served = BundleStatus { served: true, reason: String::new() };
    to_device(to_device::Message::Welcome(Welcome {
        protocol: PROTOCOL_VERSION,
        server: "seed".into(),
        bundles: vec![served],
        max_frame_bytes: 1 << 20,
        max_in_flight: 4,
    }))
}

fn answer() -> Reply {
    let top = vec![Score { class: 3, probability: 0.75 }, Score { class: 0, probability: 0.125 }];
    let answer = Answer { top, layers_used: 2, logits: vec![0.5; 4], ..Answer::default() };
    let feedback = Feedback { queue_us: 7, batch_size: 2, ..Feedback::default() };
    Reply {
        frame: 13,
        outcome: Some(reply::Outcome::Answer(answer)),
        feedback: Some(feedback),
        further: Vec::new(),
    }
}

fn refusal() -> Reply {
    let reason = Reason::Overloaded.into();
    let refusal = Refusal { reason, detail: "the queue is full".into(), retry_after_ms: 30 };
    Reply { outcome: Some(reply::Outcome::Refusal(refusal)), ..answer() }
}

fn echo(frame: u64) -> Reply {
    Reply { frame, outcome: Some(reply::Outcome::Echo(Echo {})), ..Reply::default() }
}

/// A frame of three layers as it goes over the wire.
fn features(id: u16) -> Vec<u8> {
    let mut bytes = envelope(id, false);
    let coded = Coded { stream: (0..60).collect(), layer_ends: vec![20, 40, 60] };
    write_packet(&mut bytes, 0, &DIGEST, POINT, &coded);
    bytes
}

fn picture(format: ImageFormat) -> Vec<u8> {
    let mut bytes = envelope(2, false);
    write_image_packet(&mut bytes, 0, &DIGEST, format, &[0xff; 40]);
    bytes
}

fn probe(padding: usize) -> Vec<u8> {
    let mut bytes = envelope(3, true);
    write_padding(&mut bytes, padding);
    bytes
}

fn envelope(frame: u16, probe: bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    Envelope { frame, time_left: Duration::from_millis(200), probe }.write(&mut bytes);
    bytes
}

fn framer() -> Vec<Seed> {
    let cancel = to_server(to_server::Message::Cancel(7));
    let frame = to_server(to_server::Message::Frame(features(1)));
    let replied = to_device(to_device::Message::Reply(answer()));
    vec![
        seed("framer", "hello", &[&[3], &hello()]),
        seed("framer", "call", &[&[9], &hello(), &frame, &cancel]),
        seed("framer", "welcome", &[&[1], &welcome(), &replied]),
        seed("framer", "half", &[&[2], &hello()[..30]]),
        seed("framer", "oversize", &[&[1], &[0xbf, 0xff, 0xff, 0xff]]),
        seed("framer", "garbage", &[&[4], &[0x05; 30]]),
    ]
}

fn frame() -> Vec<Seed> {
    let mut flipped = features(1);
    flipped.iter_mut().rev().take(1).for_each(|byte| *byte ^= 1);
    vec![
        seed("frame", "features", &[&[7], &features(1)]),
        seed("frame", "cut", &[&[7], &features(1)[..50]]),
        seed("frame", "flipped", &[&[7], &flipped]),
        seed("frame", "jpeg", &[&[1], &picture(ImageFormat::Jpeg)]),
        seed("frame", "webp", &[&[1], &picture(ImageFormat::Webp)]),
        seed("frame", "probe", &[&[5], &probe(100)]),
    ]
}

/// At every bit depth, a latent grid that is at its zero point, and one that moves a little.
fn context() -> Vec<Seed> {
    let mut seeds: Vec<Seed> = Vec::new();
    for (at, rung) in STREET.points().iter().enumerate() {
        let point = rung.point;
        let Ok(position) = u8::try_from(at) else { break };
        let name = |kind: &str| format!("{kind}-b{}", point.bits);
        if seeds.iter().any(|seed| seed.name == name("still")) {
            continue;
        }
        let codec = STREET.codec(point.split, point.width, point.bits).expect("a point");
        let latents = vec![0.0; codec.shape().all_channels() * codec.shape().plane()];
        let still = codec.quantise(&latents, 1).expect("latents of the grid");
        let mut moving = still.clone();
        moving.iter_mut().step_by(37).for_each(|symbol| *symbol ^= 1);
        for (kind, symbols) in [("still", still), ("moving", moving)] {
            let stream = codec.encode(&symbols).expect("symbols of the alphabet").stream;
            seeds.push(seed("context", name(kind), &[&[position, 0], &stream]));
        }
    }
    seeds
}

fn reply() -> Vec<Seed> {
    let raw = |reply: Reply| reply.encode_to_vec();
    let said = |reply: Reply| to_device(to_device::Message::Reply(reply));
    let mut other = answer();
    other.frame = 12;
    vec![
        seed("reply", "answer", &[&[5], &raw(answer())]),
        seed("reply", "refusal", &[&[5], &raw(refusal())]),
        seed("reply", "echo", &[&[1], &raw(echo(13))]),
        seed("reply", "other-frame", &[&[9], &raw(other)]),
        seed("reply", "welcome", &[&[3], &welcome()]),
        seed("reply", "call", &[&[3], &said(echo(14)), &said(answer()), &said(refusal())]),
    ]
}

/// Positions of connections and frames are those of one device's only connection.
fn server() -> Vec<Seed> {
    let with = |step: u8, bytes: &[u8]| [&[step, 0, bytes.len() as u8], bytes].concat();
    let call = [&[CONNECT, 1], &with(HELLO, &hello())[..]].concat();
    let streams = [&[CONNECT, 0], &with(HELLO, &hello())[..]].concat();
    let whole = with(BEGIN, &features(1));
    let frame = features(1);
    let (first, rest) = frame.split_at(45);
    let (first, rest) = (with(BEGIN, first), with(MORE, rest));
    let s = |name: &str, parts: &[&[u8]]| seed("server", name, parts);
    vec![
        s("answered", &[&streams, &whole, &[START, COMPUTE, 0, LEFT, 0]]),
        s("in-pieces", &[&streams, &first, &[WAIT, 3], &rest, &[START, COMPUTE, 0]]),
        s("cut-short", &[&streams, &first, &[WAIT, 60, START, COMPUTE, 0]]),
        s("ended-early", &[&streams, &first, &[ENDED, 0, START, UNWANTED, 0, COMPUTE, 0]]),
        s("expired", &[&streams, &whole, &[WAIT, 100]]),
        s("failed", &[&streams, &whole, &whole, &[START, COMPUTE, 0b1101]]),
        s("cancelled", &[&call, &whole, &whole, &[CANCEL, 0, 1]]),
        s("overload", &[&streams, &whole, &whole, &whole, &[START, LOST, 0, COMPUTE, 0]]),
        s("closed", &[&call, &whole, &[CLOSED, 0, START, COMPUTE, 0]]),
        s("draining", &[&streams, &whole, &[DRAIN], &whole]),
        s("probe", &[&streams, &with(BEGIN, &probe(60))]),
        s("picture", &[&streams, &with(BEGIN, &picture(ImageFormat::Jpeg))]),
        s("two-hellos", &[&streams, &with(HELLO, &hello()), &whole]),
        s("no-hello", &[&[CONNECT, 0], &whole, &with(HELLO, &[5; 40])]),
    ]
}
