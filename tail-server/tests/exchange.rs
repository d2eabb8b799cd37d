//! The exchange alone, in injected time.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_fixtures::OnePoint;
use isthmus_models::Wanted;
use isthmus_proto::wire::{Answer, BundleRef, Detail, Hello, Reason, Score, reply};
use isthmus_proto::{
    BundleDigest, Coded, Envelope, OperatingPoint, PROTOCOL_VERSION, Timestamp, write_packet,
    write_padding,
};
use isthmus_tail_server::Registry;
use isthmus_tail_server::batcher::BatcherConfig;
use isthmus_tail_server::counters::{Cause, Verdict};
use isthmus_tail_server::exchange::{
    Action, Carrier, Computed, ConnectionId, Exchange, ExchangeConfig, FrameKey, Origin, Output,
    Work,
};
use isthmus_tail_server::receiver::{Received, ReceiverConfig};
use proptest::prelude::*;

const DIGEST: BundleDigest = BundleDigest([7; 32]);
const POINT: OperatingPoint = OperatingPoint { split: 0, width: 0, layers: 3, bits: 4 };
/// Bytes of each layer.
const LAYER: usize = 20;
const TIME_LEFT: Duration = Duration::from_millis(80);

const MODEL: OnePoint = OnePoint { digest: DIGEST, point: POINT, max_stream_bytes: 3 * LAYER };

/// An exchange, and what it has ordered so far.
struct Desk {
    exchange: Exchange<u32>,
    connection: ConnectionId,
    orders: Vec<(u32, Action)>,
    begun: u32,
}

fn at(millis: u64) -> Timestamp {
    Timestamp::from_micros(millis * 1_000)
}

fn config() -> ExchangeConfig {
    ExchangeConfig {
        receiver: ReceiverConfig { max_frame_bytes: 4_096, ..ReceiverConfig::default() },
        batcher: BatcherConfig { workers: 1, max_batch: 4, queue: 4 },
        max_in_flight: 3,
        max_connections: 2,
        max_connections_per_address: 2,
        max_buffered_bytes: 1 << 20,
    }
}

/// Where a device is.
fn here() -> Origin {
    IpAddr::from([192, 0, 2, 1]).into()
}

fn hello() -> Hello {
    let bundle = BundleRef { name: "one-point".into(), digest: DIGEST.0.to_vec() };
    Hello { protocol: PROTOCOL_VERSION, bundles: vec![bundle], ..Hello::default() }
}

fn frame(id: u16) -> Vec<u8> {
    let mut bytes = Vec::new();
    Envelope { frame: id, time_left: TIME_LEFT, probe: false }.write(&mut bytes);
    let layer_ends = (1..=3).map(|layer| layer * LAYER).collect();
    let coded = Coded { stream: vec![id as u8; 3 * LAYER], layer_ends };
    write_packet(&mut bytes, 0, &DIGEST, POINT, &coded);
    bytes
}

fn computed() -> Computed {
    let top = vec![Score { class: 3, probability: 0.9 }];
    let answers = vec![Answer { top, logits: vec![1.0; 4], ..Answer::default() }];
    Computed { answers, layers: 3, batch_size: 1, ..Computed::default() }
}

impl Desk {
    fn new(carrier: Carrier) -> Desk {
        let registry = Arc::new(Registry::new(vec![Arc::new(MODEL)]));
        let mut exchange = Exchange::new(config(), registry);
        let connection = exchange.connect(at(0), carrier, here()).expect("a place");
        let welcome = exchange.handle_hello(connection, &hello(), false).expect("a good hello");
        assert!(welcome.bundles[0].served);
        Desk { exchange, connection, orders: Vec::new(), begun: 0 }
    }

    fn begin(&mut self, now: Timestamp) -> FrameKey {
        let place = self.begun;
        self.begun += 1;
        self.exchange.begin(now, self.connection, place.into(), place)
    }

    /// A frame of which so many bytes come.
    fn send(&mut self, now: Timestamp, id: u16, bytes: usize) -> FrameKey {
        let key = self.begin(now);
        self.exchange.handle_bytes(now, key, &frame(id)[..bytes]);
        key
    }

    /// Carries out all orders, as a driver whose replies leave at once.
    fn settle(&mut self) {
        while let Some(Output { frame, to, action }) = self.exchange.poll_output() {
            if action != Action::StopReading {
                self.exchange.handle_left(at(0), frame);
            }
            self.orders.push((to, action));
        }
    }

    /// Runs one batch, if there is one, and answers its frames.
    fn compute(&mut self, now: Timestamp) -> Vec<Received> {
        let Some(batch) = self.exchange.poll_batch(now) else { return Vec::new() };
        let of = |work: &Work<u32>| work.received.clone();
        let received = batch.work.iter().map(of).collect();
        for Work { frame, .. } in batch.work {
            self.exchange.handle_computed(now, frame, Ok(computed()));
        }
        self.exchange.handle_worker_free(now, batch.id);
        received
    }

    fn verdicts(&mut self) -> Vec<(u32, Option<Verdict>)> {
        self.settle();
        let verdict = |(to, action): &(u32, Action)| match action {
            Action::StopReading => None,
            Action::Reply(ended) => Some((*to, Some(ended.verdict))),
            Action::LetGo => Some((*to, None)),
        };
        self.orders.iter().filter_map(verdict).collect()
    }
}

#[test]
fn a_frame_is_answered_with_its_durations() {
    let mut desk = Desk::new(Carrier::Streams);
    let bytes = frame(7);
    let key = desk.begin(at(10));
    assert!(desk.exchange.handle_bytes(at(10), key, &bytes[..9]));
    assert!(!desk.exchange.handle_bytes(at(14), key, &bytes[9..]));
    let batch = desk.exchange.poll_batch(at(15)).expect("a free worker");
    assert_eq!(batch.work[0].received.layers, 3);
    let took = Duration::from_millis(5);
    let computed = Computed { decode: took, tail: took * 2, ..computed() };
    desk.exchange.handle_computed(at(30), batch.work[0].frame, Ok(computed));
    desk.exchange.handle_worker_free(at(30), batch.id);
    assert_eq!(desk.verdicts(), [(0, Some(Verdict::Answered { late: false }))]);
    let Action::Reply(ended) = &desk.orders[0].1 else { panic!("no reply") };
    assert_eq!(ended.reply.frame, 7);
    let feedback = ended.reply.feedback.expect("durations");
    let durations = (feedback.receive_span_us, feedback.queue_us, feedback.decode_us);
    assert_eq!((durations, feedback.tail_us), ((4_000, 1_000, 5_000), 10_000));
    let Some(reply::Outcome::Answer(answer)) = &ended.reply.outcome else { panic!("no answer") };
    assert_eq!((answer.top.len(), answer.layers_used), (1, 3));
    assert_eq!((desk.exchange.accepted(), desk.exchange.counters().unfinished()), (0, 0));
}

#[test]
fn a_worker_is_told_what_the_device_wants_and_a_reply_that_it_does_not_take_is_refused() {
    let registry = Arc::new(Registry::new(vec![Arc::new(MODEL)]));
    let mut exchange = Exchange::new(config(), registry);
    let connection = exchange.connect(at(0), Carrier::Streams, here()).expect("a place");
    let wants = Hello {
        detail: Detail::Logits.into(),
        min_confidence: 0.25,
        max_reply_bytes: 100,
        ..hello()
    };
    exchange.handle_hello(connection, &wants, false).expect("a good hello");
    let key = exchange.begin(at(0), connection, 0, 0);
    exchange.handle_bytes(at(0), key, &frame(1));
    let batch = exchange.poll_batch(at(0)).expect("a free worker");
    let wanted = Wanted { logits: true, min_confidence: Some(0.25) };
    assert_eq!(batch.work[0].wanted, wanted);
    let answers = vec![Answer { boxes: vec![0; 100], ..Answer::default() }];
    exchange.handle_computed(at(1), key, Ok(Computed { answers, ..computed() }));
    let Some(Output { action: Action::Reply(ended), .. }) = exchange.poll_output() else {
        panic!()
    };
    assert_eq!(ended.verdict, Verdict::Refused(Reason::TooLarge));
    let Some(reply::Outcome::Refusal(refusal)) = &ended.reply.outcome else { panic!() };
    assert!(refusal.detail.ends_with("the device takes 100"), "{}", refusal.detail);
}

#[test]
fn whole_layers_are_used_when_a_frame_ends_early_or_its_time_runs_out() {
    let mut desk = Desk::new(Carrier::Streams);
    let header = frame(1).len() - 3 * LAYER;
    let key = desk.send(at(0), 1, header + 2 * LAYER + 5);
    desk.exchange.handle_ended(at(1), key);
    assert_eq!(desk.compute(at(1))[0].layers, 2);

    desk.send(at(10), 2, header + LAYER);
    let cutoff = desk.exchange.poll_timeout().expect("it waits for more");
    // An eighth of the time left is kept for the tail.
    assert_eq!(cutoff, at(80));
    desk.exchange.handle_timeout(cutoff);
    assert_eq!(desk.compute(cutoff)[0].layers, 1);

    desk.send(at(100), 3, header + LAYER - 1);
    desk.exchange.handle_timeout(at(190));
    let verdicts = desk.verdicts();
    let answered = Some(Verdict::Answered { late: false });
    let expired = Some(Verdict::Refused(Reason::Expired));
    assert_eq!(verdicts, [(0, answered), (1, answered), (2, expired)]);
    assert!(desk.orders.contains(&(2, Action::StopReading)));
}

#[test]
fn an_unwanted_frame_is_let_go_dropped_or_computed_in_vain() {
    let mut desk = Desk::new(Carrier::Streams);
    let whole = frame(0).len();
    let running = desk.send(at(0), 1, whole);
    let batch = desk.exchange.poll_batch(at(0)).expect("a free worker");
    let queued = desk.send(at(0), 2, whole);
    let receiving = desk.send(at(0), 3, 30);
    for key in [receiving, queued, running] {
        desk.exchange.handle_unwanted(key);
    }
    let cancelled = Some(Verdict::Dropped(Cause::Cancelled));
    assert_eq!(desk.verdicts(), [(2, None), (1, cancelled)]);
    desk.exchange.handle_computed(at(5), batch.work[0].frame, Ok(computed()));
    desk.exchange.handle_worker_free(at(5), batch.id);
    assert_eq!(desk.verdicts()[2], (0, cancelled));
    assert_eq!(desk.exchange.counters().dropped.get(&Cause::Cancelled), Some(&3));
}

#[test]
fn a_place_in_flight_is_free_again_when_the_reply_is_made() {
    let mut desk = Desk::new(Carrier::Streams);
    let whole = frame(0).len();
    for id in 0..4 {
        desk.send(at(0), id, whole);
    }
    assert_eq!(desk.verdicts(), [(3, Some(Verdict::Refused(Reason::Overloaded)))]);
    desk.compute(at(1));
    desk.send(at(1), 4, whole);
    assert_eq!(desk.exchange.queued(), 1);
}

#[test]
fn a_full_queue_and_a_drain_refuse() {
    let registry = Arc::new(Registry::new(vec![Arc::new(MODEL)]));
    let config = ExchangeConfig { max_in_flight: 9, ..config() };
    let mut desk =
        Desk { exchange: Exchange::new(config, registry), ..Desk::new(Carrier::Streams) };
    desk.connection = desk.exchange.connect(at(0), Carrier::Streams, here()).expect("a place");
    desk.exchange.handle_hello(desk.connection, &hello(), false).expect("a good hello");
    let whole = frame(0).len();
    for id in 0..5 {
        desk.send(at(0), id, whole);
    }
    assert_eq!(desk.verdicts(), [(4, Some(Verdict::Refused(Reason::Overloaded)))]);
    desk.exchange.handle_drain();
    desk.send(at(0), 5, whole);
    assert_eq!(desk.verdicts()[1], (5, Some(Verdict::Refused(Reason::Draining))));
    assert_eq!(desk.exchange.accepted(), 4);
}

#[test]
fn a_batch_without_results_has_failed() {
    let mut desk = Desk::new(Carrier::Streams);
    desk.send(at(0), 1, frame(1).len());
    let batch = desk.exchange.poll_batch(at(0)).expect("a free worker");
    desk.exchange.handle_worker_free(at(9), batch.id);
    assert_eq!(desk.verdicts(), [(0, Some(Verdict::Dropped(Cause::Failed)))]);
}

#[test]
fn frames_of_one_call_are_told_apart_by_their_ids() {
    let mut desk = Desk::new(Carrier::Call);
    let whole = frame(0).len();
    desk.send(at(0), 1, whole);
    desk.send(at(0), 1, whole);
    assert_eq!(desk.verdicts(), [(1, Some(Verdict::Refused(Reason::Malformed)))]);
    desk.exchange.handle_cancel(desk.connection, 2);
    desk.exchange.handle_cancel(desk.connection, 1);
    assert_eq!(desk.verdicts()[1], (0, Some(Verdict::Dropped(Cause::Cancelled))));
    // Its id is free again.
    desk.send(at(0), 1, whole);
    assert_eq!(desk.compute(at(0)).len(), 1);
}

#[test]
fn probes_are_echoed_while_the_queue_is_full_and_the_server_drains() {
    let mut desk = Desk::new(Carrier::Streams);
    for id in 0..3 {
        desk.send(at(0), id, frame(0).len());
    }
    desk.exchange.handle_drain();
    let mut probe = Vec::new();
    Envelope { frame: 9, time_left: TIME_LEFT, probe: true }.write(&mut probe);
    write_padding(&mut probe, 300);
    let key = desk.begin(at(0));
    desk.exchange.handle_bytes(at(0), key, &probe);
    assert_eq!(desk.verdicts(), [(3, Some(Verdict::Echoed))]);
}

#[test]
fn places_for_connections_are_limited_and_free_again() {
    let mut desk = Desk::new(Carrier::Streams);
    let second = desk.exchange.connect(at(0), Carrier::Call, here()).expect("a second place");
    assert!(desk.exchange.is_crowded());
    assert_eq!(desk.exchange.connect(at(0), Carrier::Call, here()), None);
    assert_eq!(desk.exchange.connections(Carrier::Call), 1);
    desk.exchange.handle_closed(second);
    assert_eq!(desk.exchange.connections(Carrier::Call), 0);
    assert!(desk.exchange.connect(at(0), Carrier::Call, here()).is_some());
}

#[test]
fn an_idle_connection_makes_room_for_a_new_one() {
    let mut desk = Desk::new(Carrier::Streams);
    let silent = desk.exchange.connect(at(0), Carrier::Call, here()).expect("a second place");
    assert_eq!(desk.exchange.connect(at(1_000), Carrier::Call, here()), None);
    // Two seconds without a hello are enough, without a frame five.
    let third = desk.exchange.connect(at(2_000), Carrier::Call, here()).expect("a place");
    assert_eq!(desk.exchange.poll_evicted(), Some(silent));
    desk.exchange.handle_hello(third, &hello(), false).expect("a good hello");
    desk.send(at(2_500), 1, 40);
    assert_eq!(desk.exchange.connect(at(6_000), Carrier::Call, here()), None);
    let fourth = desk.exchange.connect(at(7_000), Carrier::Call, here()).expect("a place");
    assert_eq!(desk.exchange.poll_evicted(), Some(third));
    assert_ne!(fourth, third);
    // What the driver says of it later is no news.
    desk.exchange.handle_closed(third);
    assert_eq!(desk.exchange.connections(Carrier::Call), 1);
    assert_eq!(desk.exchange.poll_evicted(), None);
}

#[test]
fn one_address_leaves_places_for_others() {
    let config = ExchangeConfig { max_connections: 4, max_connections_per_address: 2, ..config() };
    let mut exchange: Exchange<u32> = Exchange::new(config, Arc::new(Registry::new(vec![])));
    let mut connect = |last| {
        exchange.connect(at(0), Carrier::Streams, IpAddr::from([192, 0, 2, last]).into()).is_some()
    };
    assert_eq!(
        [1, 1, 1, 2, 1, 3, 4].map(&mut connect),
        [true, true, false, true, false, true, false]
    );
}

#[test]
fn the_heaviest_connection_makes_room_in_a_full_buffer() {
    let registry = Arc::new(Registry::new(vec![Arc::new(MODEL)]));
    let config = ExchangeConfig { max_buffered_bytes: 1_000, ..config() };
    let mut desk =
        Desk { exchange: Exchange::new(config, registry), ..Desk::new(Carrier::Streams) };
    let [heavy, light] = [1, 2].map(|last| {
        let origin = IpAddr::from([192, 0, 2, last]).into();
        let connection = desk.exchange.connect(at(0), Carrier::Streams, origin).expect("a place");
        desk.exchange.handle_hello(connection, &hello(), false).expect("a good hello");
        connection
    });
    let mut probe = Vec::new();
    Envelope { frame: 1, time_left: TIME_LEFT, probe: true }.write(&mut probe);
    write_padding(&mut probe, 600);
    desk.connection = heavy;
    for bytes in [500, 400] {
        let key = desk.begin(at(0));
        assert!(desk.exchange.handle_bytes(at(0), key, &probe[..bytes]));
    }
    desk.connection = light;
    desk.send(at(0), 7, 70);
    desk.send(at(0), 8, 70);
    let overloaded = Verdict::Refused(Reason::Overloaded);
    assert_eq!(desk.verdicts(), [(0, Some(overloaded))]);
    assert!(desk.exchange.buffered() <= 1_000, "{}", desk.exchange.buffered());
    // Replies that nobody takes are kept too, and in the end cost the connection.
    desk.connection = heavy;
    while desk.exchange.poll_evicted().is_none() {
        let key = desk.begin(at(0));
        desk.exchange.handle_bytes(at(0), key, &[0xff; 40]);
        while desk.exchange.poll_output().is_some() {}
        assert!(desk.begun < 200, "{} bytes are kept", desk.exchange.buffered());
    }
    assert!(desk.exchange.buffered() <= 1_000);
}

#[test]
fn a_frame_before_the_hello_is_refused() {
    let mut desk = Desk::new(Carrier::Streams);
    desk.connection = desk.exchange.connect(at(0), Carrier::Streams, here()).expect("a place");
    desk.send(at(0), 1, frame(1).len());
    assert_eq!(desk.verdicts(), [(0, Some(Verdict::Refused(Reason::Malformed)))]);
}

/// What may happen next, to one of the frames or to all.
#[derive(Clone, Debug)]
enum Step {
    Begin,
    Bytes(usize, usize),
    Ended(usize),
    Unwanted(usize),
    Left(usize),
    Cancel(u16),
    Compute(bool),
    Wait(u64),
    Settle,
    Lost,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::Begin),
        6 => (0..9usize, 1..60usize).prop_map(|(frame, bytes)| Step::Bytes(frame, bytes)),
        1 => (0..9usize).prop_map(Step::Ended),
        1 => (0..9usize).prop_map(Step::Unwanted),
        1 => (0..9usize).prop_map(Step::Left),
        1 => (0..9u16).prop_map(Step::Cancel),
        3 => any::<bool>().prop_map(Step::Compute),
        2 => (0..60u64).prop_map(Step::Wait),
        2 => Just(Step::Settle),
        1 => Just(Step::Lost),
    ];
    prop::collection::vec(step, 0..120)
}

proptest! {
    /// Whatever happens, every frame ends exactly once, and nothing of it stays.
    #[test]
    fn every_frame_ends_once(steps in steps(), call in any::<bool>()) {
        let mut desk = Desk::new(if call { Carrier::Call } else { Carrier::Streams });
        let (mut now, mut frames) = (at(0), Vec::new());
        for step in steps {
            let pick = |index: usize, frames: &[(FrameKey, usize)]| -> Option<usize> {
                (!frames.is_empty()).then(|| index % frames.len())
            };
            match step {
                Step::Begin => frames.push((desk.begin(now), 0)),
                Step::Bytes(index, count) => if let Some(at) = pick(index, &frames) {
                    let (key, sent) = &mut frames[at];
                    let bytes = frame(at as u16 % 9);
                    let end = (*sent + count).min(bytes.len());
                    desk.exchange.handle_bytes(now, *key, &bytes[*sent..end]);
                    *sent = end;
                },
                Step::Ended(index) => if let Some(at) = pick(index, &frames) {
                    desk.exchange.handle_ended(now, frames[at].0);
                },
                Step::Unwanted(index) => if let Some(at) = pick(index, &frames) {
                    desk.exchange.handle_unwanted(frames[at].0);
                },
                Step::Left(index) => if let Some(at) = pick(index, &frames) {
                    desk.exchange.handle_left(now, frames[at].0);
                },
                Step::Cancel(id) => desk.exchange.handle_cancel(desk.connection, id.into()),
                Step::Compute(fails) => if let Some(batch) = desk.exchange.poll_batch(now) {
                    for work in batch.work.iter().filter(|_| !fails) {
                        desk.exchange.handle_computed(now, work.frame, Ok(computed()));
                    }
                    desk.exchange.handle_worker_free(now, batch.id);
                },
                Step::Wait(millis) => {
                    now = now + Duration::from_millis(millis);
                    desk.exchange.handle_timeout(now);
                }
                Step::Settle => desk.settle(),
                Step::Lost => desk.exchange.handle_lost(desk.connection),
            }
        }
        // Everything that still waits is due in a minute at most.
        now = now + Duration::from_secs(61);
        desk.exchange.handle_timeout(now);
        desk.settle();
        prop_assert_eq!(desk.exchange.counters().arrived, u64::from(desk.begun));
        prop_assert_eq!(desk.exchange.counters().unfinished(), 0);
        prop_assert_eq!(desk.exchange.accepted(), 0);
        prop_assert_eq!(desk.exchange.poll_timeout(), None);
        desk.exchange.handle_closed(desk.connection);
        prop_assert!(desk.exchange.is_empty());
        let mut ended: Vec<_> = desk.verdicts().iter().map(|(to, _)| *to).collect();
        ended.sort_unstable();
        let count = ended.len();
        ended.dedup();
        prop_assert_eq!(ended.len(), count, "a frame was told twice how it ended");
    }
}
