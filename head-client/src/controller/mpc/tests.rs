//! The controller against a made-up network, decision by decision.

use super::super::decision::LinkView;
use super::super::ladder::tests::{exit, ladder, rung};
use super::*;

const ENDS: [usize; 4] = [300, 600, 1_200, 2_400];
const LARGE: [usize; 1] = [6_000];
const UNSURE: f32 = 0.2;
const SURE: f32 = 0.95;

/// A network of one rate without jitter in front of an [`Mpc`].
struct Loop {
    mpc: Mpc,
    now: Timestamp,
    frame: u64,
    kbits: f64,
    /// A probe, its padding, when it was sent and when its echo will come.
    probe: Option<(FrameId, usize, Timestamp, Timestamp)>,
}

impl Loop {
    fn new(kbits: f64) -> Self {
        Loop::with(kbits, ladder())
    }

    fn with(kbits: f64, ladder: Ladder) -> Self {
        let mut mpc = Mpc::new(MpcConfig::default(), Arc::new(ladder));
        mpc.on_link_up(Timestamp::ZERO, Some(Duration::from_millis(40)));
        Loop { mpc, now: Timestamp::ZERO, frame: 0, kbits, probe: None }
    }

    fn network(&self, bytes: usize) -> Duration {
        Duration::from_secs_f64((40.0 + bytes as f64 * 8.0 / self.kbits) / 1e3)
    }

    /// An echo that has come by `now`, or comes with a rise of the rate.
    fn echo(&mut self, now: Timestamp) {
        let Some((frame, bytes, sent, due)) = self.probe else { return };
        let at = if sent + self.network(bytes) < due { due.min(now) } else { due };
        if at <= now {
            self.probe = None;
            let network = at.saturating_since(sent);
            let (receive_span, server, refused) = (Duration::ZERO, Duration::ZERO, false);
            let sample = NetworkSample { frame, bytes, network, receive_span, server, refused };
            self.mpc.on_reply(at, &sample);
        }
    }

    /// One frame every 100 ms with a deadline of 150 ms and a head of 10 ms.
    fn step(&mut self, confidence: f32) -> SendDecision {
        let ms = Duration::from_millis;
        let frame = FrameId(self.frame);
        self.frame += 1;
        let start = Timestamp::from_micros(self.frame * 100_000);
        self.echo(start);
        let link = LinkView { up: true, ..LinkView::default() };
        let head = self.mpc.decide_head(start, &HeadView { time_left: ms(150), link });
        let run = head.run.expect("something is always run");
        let now = start + ms(10);
        self.mpc.on_run(now, run, ms(10));
        let layer_ends = if run.head() == Some((0, 1)) { &LARGE[..] } else { &ENDS };
        let view = SendView {
            frame,
            run,
            exit_confidence: Some(confidence),
            layer_ends,
            time_left: ms(140),
            link,
        };
        let decision = self.mpc.decide_send(now, &view);
        if let Sending::Probe(padding) = decision.sending {
            self.probe = Some((frame, padding, now, now + self.network(padding)));
        }
        if let Sending::Layers(layers) = decision.sending {
            let bytes = layer_ends[usize::from(layers) - 1];
            let (network, server) = (self.network(bytes), ms(5));
            if network + server <= ms(140) {
                let receive_span = Duration::ZERO;
                let sample =
                    NetworkSample { frame, bytes, network, receive_span, server, refused: false };
                self.mpc.on_reply(now + network + server, &sample);
            } else {
                let timeout = NetworkTimeout { frame, bytes, waited: ms(140) };
                self.mpc.on_timeout(now + ms(140), &timeout);
            }
        }
        self.now = now;
        decision
    }

    fn steps(&mut self, count: usize) -> Vec<SendDecision> {
        (0..count).map(|_| self.step(UNSURE)).collect()
    }
}

fn layers(decision: SendDecision) -> u8 {
    match decision.sending {
        Sending::Exit | Sending::Probe(_) => 0,
        Sending::Layers(layers) => layers,
    }
}

#[test]
fn a_fast_network_gets_all_layers_and_a_slow_one_what_it_carries() {
    // 140 ms less 45 ms are 23,750, 1,780 and 475 bytes.
    for (kbits, expected) in [(2_000.0, 4), (150.0, 3), (40.0, 1)] {
        let mut network = Loop::new(kbits);
        let last = network.steps(60)[59];
        assert_eq!((layers(last), last.reason), (expected, Choice::InTime), "{kbits} kbit/s");
    }
}

#[test]
fn sure_exits_answer_and_unsure_ones_ask() {
    let mut network = Loop::new(2_000.0);
    network.steps(20);
    let sure = network.step(SURE);
    assert_eq!((sure.sending, sure.reason), (Sending::Exit, Choice::ExitSuffices));
    assert_eq!(layers(network.step(UNSURE)), 4);
}

#[test]
fn after_a_fall_to_a_tenth_two_frames_pay_at_most() {
    let mut network = Loop::new(1_000.0);
    assert_eq!(layers(network.steps(60)[59]), 4);
    network.kbits = 100.0;
    // The timeout of the first shows at least how slow the network is, and another may find that
    // it is slower still: 1,200 bytes would take 141 ms.
    let sent: Vec<u8> = network.steps(60).into_iter().map(layers).collect();
    let late = sent.iter().filter(|&&layers| layers > 2).count();
    assert!(late <= 2 && sent[10..].iter().all(|&layers| (1..=2).contains(&layers)), "{sent:?}");
}

#[test]
fn after_a_rise_the_best_point_is_back_within_two_seconds() {
    let mut network = Loop::new(150.0);
    assert_eq!(layers(network.steps(60)[59]), 3);
    network.kbits = 2_000.0;
    assert_eq!(layers(network.steps(20)[19]), 4);
}

#[test]
fn in_an_outage_it_probes_once_and_the_echo_restores_the_estimate() {
    let mut network = Loop::new(1_000.0);
    network.steps(60);
    let margin = network.mpc.estimates.conformal.margin();
    network.kbits = 0.001;
    let dead = network.steps(100);
    let sent = dead.iter().filter(|decision| layers(**decision) > 0).count();
    let probes = dead.iter().filter(|it| it.reason == Choice::Probe).count();
    assert!(sent <= 3 && probes == 1, "{sent} frames in vain, {probes} probes");
    network.kbits = 1_000.0;
    let back: Vec<u8> = network.steps(8).into_iter().map(layers).collect();
    assert!(back[2..].iter().all(|&layers| layers == 4), "{back:?}");
    assert!((network.mpc.estimates.conformal.margin() - margin).abs() < 0.6);
}

#[test]
fn a_network_that_answers_small_frames_alone_is_slow_and_not_away() {
    let mut network = Loop::new(1_000.0);
    network.steps(60);
    // 300 bytes take 40 ms more than the round trip of 40 ms, 600 already 120 ms in all.
    network.kbits = 60.0;
    let sent: Vec<u8> = network.steps(60).into_iter().map(layers).collect();
    let late = sent.iter().filter(|&&layers| layers > 2).count();
    assert!(late <= 3, "{sent:?}");
}

#[test]
fn a_larger_target_takes_more_risk() {
    let late = |target_miss| {
        let config = MpcConfig { target_miss, ..MpcConfig::default() };
        let mut mpc = Mpc::new(config, Arc::new(ladder()));
        // One in twenty misses.
        for frame in 0..400 {
            let place = frame % 20;
            mpc.estimates.conformal.on_score(f64::from(place) / 10.0, place == 19);
        }
        mpc.estimates.lateness().of_transfer(1.0, 1.0)
    };
    let [little, some, much] = [0.01, 0.05, 0.2].map(late);
    assert!(little > some && some > much, "{little} {some} {much}");
}

/// The layers of one head, and a wide head whose only layer is large.
fn steep() -> Ladder {
    let layers = (0..4).zip(ENDS).map(|(at, end)| rung(0, at + 1, end as f64, 0.0));
    let rungs = layers.chain([rung(1, 1, LARGE[0] as f64, 0.19)]).collect();
    Ladder::new(rungs, [((0, 0), exit()), ((0, 1), exit())].into()).expect("a ladder")
}

#[test]
fn a_step_up_is_probed_before_it_is_taken() {
    let mut network = Loop::with(4_000.0, steep());
    let sizes: Vec<Option<usize>> = (0..20)
        .map(|_| {
            let decision = network.step(UNSURE);
            match (decision.sending, network.mpc.started) {
                (Sending::Probe(bytes), _) => Some(bytes),
                (Sending::Layers(_), Some((_, run))) if run.head() == Some((0, 1)) => None,
                _ => Some(0),
            }
        })
        .collect();
    let first = sizes.iter().position(Option::is_none).expect("it steps up");
    let probes: Vec<_> = sizes[..first].iter().flatten().filter(|&&bytes| bytes > 0).collect();
    assert_eq!(probes, [&LARGE[0]], "{sizes:?}");
    assert!(first <= 12 && sizes[first..].iter().all(Option::is_none), "{sizes:?}");
    // A frame that the exit answers leaves room for the probe at once.
    let mut network = Loop::with(4_000.0, steep());
    network.steps(1);
    let idle = network.step(SURE);
    assert_eq!(idle.sending, Sending::Probe(LARGE[0]));
}

#[test]
fn bytes_that_would_hold_up_the_next_frames_are_not_sent() {
    // 1,200 bytes every 100 ms are more than 80 kbit/s carries, though one alone is in time.
    let mut network = Loop::new(80.0);
    let steady: Vec<u8> = network.steps(80)[40..].iter().map(|&it| layers(it)).collect();
    let bytes: usize = steady.iter().filter(|&&l| l > 0).map(|&l| ENDS[usize::from(l) - 1]).sum();
    assert!(bytes <= steady.len() * 1_000, "{steady:?}");
    assert!(steady.iter().all(|&layers| layers > 0), "{steady:?}");
}

#[test]
fn the_device_costs_what_its_time_gains_where_heads_are_mixed() {
    let is_measured = true;
    let cost =
        |device, exit| RungCost { device, exit, quality: exit, is_measured, ..RungCost::default() };
    let device_price = |costs: &[RungCost]| Prices::default().device_price(costs, 33.0);
    // The second keeps pace, but of 13 ms and 38 ms in turn more comes.
    let costs = [cost(13.0, 0.5), cost(31.0, 0.6), cost(38.0, 0.75)];
    let price = device_price(&costs);
    assert!((price - 0.25 / 25.0).abs() < 1e-4, "{price}");
    assert_eq!(device_price(&costs[..2]), 0.0, "time to spare");
    // Beside the head nothing but dropping a frame takes less.
    let price = device_price(&costs[2..]);
    assert!((price - 0.75 / 38.0).abs() < 1e-4, "{price}");
    // A run whose time is a guess does not keep pace.
    let untried = RungCost { is_measured: false, ..cost(0.0, 0.9) };
    assert_eq!(device_price(&[costs[2], untried]), price);
}

#[test]
fn a_frame_whose_turn_may_not_come_counts_for_as_much() {
    let mut estimates = Estimates::new(0.01, Some(Duration::from_millis(33)));
    estimates.deadline = Duration::from_millis(150);
    let conditions = estimates.conditions();
    let cost = |device_deviation| RungCost {
        device: 33.0,
        device_deviation,
        exit: 0.8,
        ..RungCost::default()
    };
    let plan = |spread: f64, age: f64| {
        let free = Backlog { device: 0.0, link: 0.0 };
        let planner = Planner { costs: &[], prices: Prices::default(), conditions };
        planner.value([&cost(spread), &cost(spread)], free, age, 2)
    };
    // The second frame's turn comes when the first is done, 33 ms less its age before it is lost.
    assert!((plan(0.001, 32.0) - 1.6).abs() < 1e-6);
    assert!((plan(5.0, 33.0) - 1.2).abs() < 1e-6, "as likely as not");
    assert!(plan(5.0, 10.0) > 1.599, "time enough");
}

#[test]
fn the_margin_of_the_network_is_not_that_of_the_device() {
    let estimates = Estimates::new(0.01, None);
    let (lateness, margin) = (estimates.lateness(), estimates.conformal.margin());
    // A head that takes all the time as often as not, and a network without doubt behind it.
    let late = lateness.of_run(0.0, 1e-6, 5.0);
    assert!((late - 5.0 / 6.0).abs() < 1e-6, "no time is left by the mean, either: {late}");
    assert_eq!(lateness.of_run(3.0 * 5.0, 0.01, 5.0), 0.0, "a margin of {margin} would be more");
    assert_eq!(lateness.of_run(-10.0, 1.0, 5.0), 1.0);
    assert_eq!(lateness.of_run(7.0, 2.0, 0.0), lateness.of_transfer(7.0, 2.0));
}

#[test]
fn deciding_is_pure() {
    let run = || {
        let mut network = Loop::new(700.0);
        (0..200).map(|at| network.step(if at % 3 == 0 { SURE } else { UNSURE })).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}
