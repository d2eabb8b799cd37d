use isthmus_models::ImageSpec;
use isthmus_proto::{ImageFormat, OperatingPoint};
use proptest::prelude::*;

use super::*;
use crate::controller::{Fixed, ImageRun, Run, SendDecision};

const POINT: OperatingPoint = OperatingPoint { split: 0, width: 1, layers: 2, bits: 6 };
const DEADLINE: Duration = Duration::from_millis(100);

fn at(ms: u64) -> Timestamp {
    Timestamp::from_micros(ms * 1000)
}

fn session(pace: Pace) -> Session {
    let guard = Duration::from_millis(5);
    let config = SessionConfig { deadline: DEADLINE, guard, in_flight: 2, pace };
    Session::new(config, Box::new(Fixed::new(POINT)))
}

fn connected(pace: Pace) -> Session {
    let mut session = session(pace);
    session.handle_input(at(0), link_up());
    session
}

fn link_up() -> Input {
    let round_trip = Some(Duration::from_millis(10));
    Input::LinkUp { max_in_flight: 8, max_frame_bytes: 1 << 20, round_trip }
}

fn head_done(frame: u64) -> Input {
    let outcome = HeadOutcome {
        exit: Some(0.5),
        layer_ends: vec![300, 700],
        head: Duration::from_millis(4),
        encode: Duration::from_millis(1),
    };
    Input::HeadDone { frame: FrameId(frame), outcome }
}

fn captured(frame: u64) -> Input {
    Input::Captured { frame: FrameId(frame) }
}

fn answer(frame: u64) -> Input {
    let feedback = wire::Feedback {
        receive_span_us: 2_000,
        queue_us: 1_000,
        decode_us: 500,
        tail_us: 6_000,
        batch_size: 1,
    };
    let outcome = Ok((0.9, 2));
    Input::Reply { frame: FrameId(frame), reply: ServerReply { outcome, feedback } }
}

fn refusal(frame: u64, reason: wire::Reason, retry_ms: u64) -> Input {
    let outcome = Err((reason, Duration::from_millis(retry_ms)));
    let reply = ServerReply { outcome, feedback: wire::Feedback::default() };
    Input::Reply { frame: FrameId(frame), reply }
}

fn drain(session: &mut Session) -> Vec<Output> {
    std::iter::from_fn(|| session.poll_output()).collect()
}

/// Feeds an input and gives the frames that ended by it.
fn done(session: &mut Session, ms: u64, input: Input) -> Vec<FrameOutcome> {
    session.handle_input(at(ms), input);
    let ended = |output| match output {
        Output::Done(outcome) => Some(outcome),
        _ => None,
    };
    drain(session).into_iter().filter_map(ended).collect()
}

/// The stages' sum in whole microseconds, each rounded by itself as a report does.
fn sum(timing: &Timing) -> Duration {
    let Timing { wait, head, encode, network, receive_span: _, queue, decode, tail } = *timing;
    let stages = [Some(wait), head, encode, network, queue, decode, tail];
    Duration::from_micros(stages.into_iter().flatten().map(|it| it.as_micros() as u64).sum())
}

fn reason(outcome: &FrameOutcome) -> String {
    match outcome.verdict {
        Verdict::Answered { reason, .. } => reason.to_string(),
        Verdict::Dropped(cause) => cause.to_string(),
    }
}

#[test]
fn frames_that_a_source_dropped_are_counted_like_those_dropped_here() {
    for pace in [Pace::Live, Pace::EveryFrame] {
        let mut session = connected(pace);
        session.handle_input(at(10), captured(0));
        let outcomes = done(&mut session, 20, Input::Superseded { frame: FrameId(1) });
        assert_eq!(outcomes.iter().map(reason).collect::<Vec<_>>(), ["superseded"]);
        let Counters { captured, open, dropped, .. } = session.counters();
        assert_eq!((*captured, *open, dropped.get(&DropCause::Superseded)), (2, 1, Some(&1)));
    }
}

#[test]
fn an_answer_in_time_is_the_answer_and_its_stages_add_up() {
    let mut session = connected(Pace::Live);
    session.handle_input(at(10), captured(0));
    session.handle_input(at(17), head_done(0));
    let sent = drain(&mut session).into_iter().find_map(|output| match output {
        Output::Send { content, time_left, .. } => Some((content, time_left)),
        _ => None,
    });
    // 95 ms after capture, less the 7 gone, the 10 of the round trip and twice its 5 of deviation.
    assert_eq!(sent, Some((Content::Features(POINT), Duration::from_millis(68))));

    let outcomes = done(&mut session, 40, answer(0));
    let [outcome] = &outcomes[..] else { panic!("{outcomes:?}") };
    let Verdict::Answered { arm, confidence, .. } = outcome.verdict else { panic!() };
    assert_eq!((arm, confidence, outcome.layers_used), (Arm::Split(POINT), 0.9, Some(2)));
    assert!(outcome.on_time);
    assert_eq!(outcome.timing.wait, Duration::from_millis(2));
    assert_eq!(outcome.timing.network, Some(Duration::from_micros(15_500)));
    assert_eq!(sum(&outcome.timing), Duration::from_millis(30));
}

#[test]
fn the_exit_answers_when_the_deadline_comes_and_the_reply_is_counted_as_late() {
    let mut session = connected(Pace::Live);
    session.handle_input(at(0), captured(0));
    session.handle_input(at(5), head_done(0));
    drain(&mut session);
    assert_eq!(session.poll_timeout(), Some(at(95)));

    session.handle_input(at(95), Input::Timeout);
    let outputs = drain(&mut session);
    assert!(matches!(outputs[0], Output::Cancel { frame: FrameId(0) }));
    let Output::Done(outcome) = &outputs[1] else { panic!("{outputs:?}") };
    assert_eq!(reason(outcome), "deadline");
    assert!(outcome.on_time, "the exit's answer was there in time");
    assert_eq!(outcome.sent, Some(Content::Features(POINT)));

    assert!(done(&mut session, 96, answer(0)).is_empty());
    assert_eq!(session.counters().late_replies, 1);
    assert_eq!(session.poll_timeout(), None);
}

#[test]
fn a_reply_after_the_deadline_is_late_even_if_the_timer_was_later_still() {
    let mut session = connected(Pace::Live);
    session.handle_input(at(0), captured(0));
    session.handle_input(at(5), head_done(0));
    let outcomes = done(&mut session, 101, answer(0));
    assert_eq!(outcomes.iter().map(reason).collect::<Vec<_>>(), ["deadline"]);
    assert_eq!(session.counters().late_replies, 1);
}

#[test]
fn the_newest_frame_waits_and_the_one_before_is_counted() {
    let mut session = connected(Pace::Live);
    session.handle_input(at(0), captured(0));
    session.handle_input(at(1), captured(1));
    let outcomes = done(&mut session, 2, captured(2));
    assert_eq!((outcomes[0].frame, reason(&outcomes[0])), (FrameId(1), "superseded".into()));
    session.handle_input(at(5), head_done(0));
    let ran = |output: &Output| matches!(output, Output::RunHead { frame: FrameId(2), .. });
    assert!(drain(&mut session).iter().any(ran));
}

#[test]
fn every_frame_waits_its_turn_when_asked_to() {
    let mut session = connected(Pace::EveryFrame);
    (0..5).for_each(|frame| session.handle_input(at(0), captured(frame)));
    session.handle_input(at(5), head_done(0));
    session.handle_input(at(10), head_done(1));
    // Two are unanswered: the third head waits for one of them.
    let ran = |outputs: Vec<Output>| {
        outputs.iter().filter(|output| matches!(output, Output::RunHead { .. })).count()
    };
    assert_eq!(ran(drain(&mut session)), 2);
    session.handle_input(at(12), answer(0));
    assert_eq!(ran(drain(&mut session)), 1);
    assert_eq!(session.counters().dropped.len(), 0);
}

#[test]
fn without_an_exit_a_frame_that_the_server_does_not_answer_has_none() {
    let mut session = connected(Pace::Live);
    session.handle_input(at(0), captured(0));
    let outcome = HeadOutcome {
        exit: None,
        layer_ends: vec![300, 700],
        head: Duration::from_millis(4),
        encode: Duration::from_millis(1),
    };
    let head_done = Input::HeadDone { frame: FrameId(0), outcome };
    assert!(done(&mut session, 5, head_done).is_empty(), "it is sent");
    let [end] = &done(&mut session, 20, refusal(0, wire::Reason::Overloaded, 0))[..] else {
        panic!("one frame ends");
    };
    assert_eq!(end.verdict, Verdict::Dropped(DropCause::NoExit));
    assert!(!end.on_time);
}

/// A connected session that sends pictures, with the head of `exit` for its fallback exit.
fn image_session(exit: Option<(u8, u8)>) -> Session {
    let image = ImageSpec { format: ImageFormat::Webp, side: 160, quality: 40 };
    let controller = Fixed::new(Run::Image(ImageRun { image, exit }));
    let mut session = Session { controller: Box::new(controller), ..session(Pace::EveryFrame) };
    session.handle_input(at(0), link_up());
    session
}

fn compressed(frame: u64, exit: Option<f32>) -> Input {
    let outcome = HeadOutcome {
        exit,
        layer_ends: vec![900],
        head: Duration::ZERO,
        encode: Duration::from_millis(3),
    };
    Input::HeadDone { frame: FrameId(frame), outcome }
}

#[test]
fn a_compressed_picture_is_sent_and_answered_without_a_head() {
    let mut session = image_session(None);
    session.handle_input(at(0), captured(0));
    session.handle_input(at(4), compressed(0, None));
    let sent = Content::Image(ImageFormat::Webp);
    let is_sent =
        |output: &Output| matches!(output, Output::Send { content, .. } if *content == sent);
    assert!(drain(&mut session).iter().any(is_sent));
    let [end] = &done(&mut session, 40, answer(0))[..] else { panic!("one frame ends") };
    let Verdict::Answered { arm, confidence, .. } = end.verdict else { panic!("{end:?}") };
    assert_eq!((arm, confidence, reason(end).as_str()), (Arm::Image, 0.9, "fixed"));
    assert_eq!((end.sent, end.layers_used), (Some(sent), None));
    assert_eq!((end.timing.head, end.timing.encode), (None, Some(Duration::from_millis(3))));
    assert_eq!(sum(&end.timing), Duration::from_millis(40));
    assert_eq!(session.counters().answered, BTreeMap::from([("image", 1)]));
}

#[test]
fn a_compressed_picture_that_is_refused_leaves_a_verdict_or_the_fallback_exit() {
    let mut session = image_session(None);
    session.handle_input(at(0), captured(0));
    session.handle_input(at(4), compressed(0, None));
    let [end] = &done(&mut session, 20, refusal(0, wire::Reason::TooLarge, 0))[..] else {
        panic!("one frame ends");
    };
    assert_eq!(end.verdict, Verdict::Dropped(DropCause::NoExit));

    let mut session = image_session(Some((0, 1)));
    session.handle_input(at(0), captured(0));
    session.handle_input(at(4), compressed(0, Some(0.5)));
    let [end] = &done(&mut session, 20, refusal(0, wire::Reason::TooLarge, 0))[..] else {
        panic!("one frame ends");
    };
    assert!(matches!(end.verdict, Verdict::Answered { arm: Arm::Exit, .. }), "{end:?}");
    assert_eq!(
        (reason(end).as_str(), end.timing.head),
        ("refused: too_large", Some(Duration::ZERO))
    );
}

#[test]
fn the_full_network_s_answer_on_the_device_is_the_answer_with_a_connection_or_without() {
    for up in [false, true] {
        let mut session =
            Session { controller: Box::new(Fixed::new(Run::Local)), ..session(Pace::Live) };
        if up {
            session.handle_input(at(0), link_up());
        }
        session.handle_input(at(0), captured(0));
        let outcome = HeadOutcome {
            exit: Some(0.9),
            head: Duration::from_millis(30),
            ..HeadOutcome::default()
        };
        let ends = done(&mut session, 31, Input::HeadDone { frame: FrameId(0), outcome });
        let [end] = &ends[..] else { panic!("one frame ends") };
        let Verdict::Answered { arm, .. } = end.verdict else { panic!("{end:?}") };
        assert_eq!((arm, reason(end).as_str(), end.sent), (Arm::Local, "fixed", None));
        assert_eq!(end.timing.head, Some(Duration::from_millis(30)));
        assert_eq!((session.counters().sent, session.counters().fallbacks.len()), (0, 0));
    }
}

/// Notes how long what was run took (milliseconds).
struct Timed(std::sync::mpsc::Sender<u128>);

impl Controller for Timed {
    fn on_link_up(&mut self, _: Timestamp, _: Option<Duration>) {}
    fn decide_head(&mut self, now: Timestamp, view: &HeadView) -> HeadDecision {
        Fixed::new(POINT).decide_head(now, view)
    }
    fn on_run(&mut self, _: Timestamp, _: Run, took: Duration) {
        self.0.send(took.as_millis()).expect("the test listens");
    }
    fn decide_send(&mut self, now: Timestamp, view: &SendView<'_>) -> SendDecision {
        Fixed::new(view.run).decide_send(now, view)
    }
    fn on_reply(&mut self, _: Timestamp, _: &NetworkSample) {}
    fn on_timeout(&mut self, _: Timestamp, _: &NetworkTimeout) {}
}

#[test]
fn the_controller_learns_how_long_a_head_took_also_when_its_frame_has_ended() {
    let (sender, took) = std::sync::mpsc::channel();
    let mut session = connected(Pace::Live);
    session.controller = Box::new(Timed(sender));
    session.handle_input(at(0), captured(0));
    session.handle_input(at(4), head_done(0));
    session.handle_input(at(100), captured(1));
    session.handle_input(at(900), Input::Timeout);
    session.handle_input(at(950), head_done(1));
    assert_eq!(took.try_iter().collect::<Vec<_>>(), [4, 850]);
}

#[test]
fn live_frames_take_the_exit_when_too_many_are_unanswered() {
    let mut session = connected(Pace::Live);
    for frame in 0..2 {
        session.handle_input(at(frame * 10), captured(frame));
        session.handle_input(at(frame * 10 + 5), head_done(frame));
    }
    session.handle_input(at(20), captured(2));
    let outcomes = done(&mut session, 25, head_done(2));
    assert_eq!(outcomes.iter().map(reason).collect::<Vec<_>>(), ["in flight full"]);
}

/// Asks with 400 bytes instead of sending, and notes what it learns (bytes, milliseconds).
struct Probing(std::sync::mpsc::Sender<(usize, u128)>);

impl Controller for Probing {
    fn on_link_up(&mut self, _: Timestamp, _: Option<Duration>) {}
    fn decide_head(&mut self, now: Timestamp, view: &HeadView) -> HeadDecision {
        Fixed::new(POINT).decide_head(now, view)
    }
    fn decide_send(&mut self, _: Timestamp, _: &SendView<'_>) -> SendDecision {
        SendDecision { sending: Sending::Probe(400), reason: Choice::Probe }
    }
    fn on_reply(&mut self, _: Timestamp, sample: &NetworkSample) {
        self.0.send((sample.bytes, sample.network.as_millis())).expect("the test listens");
    }
    fn on_timeout(&mut self, _: Timestamp, timeout: &NetworkTimeout) {
        self.0.send((timeout.bytes, timeout.waited.as_millis())).expect("the test listens");
    }
}

#[test]
fn a_probe_measures_the_network_and_its_frame_is_the_exits() {
    let (sender, learnt) = std::sync::mpsc::channel();
    let mut session = connected(Pace::Live);
    session.controller = Box::new(Probing(sender));
    for frame in 0..3 {
        let start = 200 * frame;
        session.handle_input(at(start), captured(frame));
        session.handle_input(at(start + 5), head_done(frame));
        let outputs = drain(&mut session);
        let Output::Done(outcome) = &outputs[1] else { panic!("{outputs:?}") };
        assert_eq!((reason(outcome).as_str(), outcome.sent), ("probe", None));
        let Output::Probe { bytes: 400, time_left, .. } = outputs[2] else { panic!("{outputs:?}") };
        assert_eq!((time_left, session.poll_timeout()), (ECHO_TIMEOUT, Some(at(5_005))));
    }
    let feedback = wire::Feedback { queue_us: 1_000, ..wire::Feedback::default() };
    session.handle_input(at(470), Input::Echo { frame: FrameId(2), feedback });
    session.handle_input(at(471), Input::Echo { frame: FrameId(2), feedback });
    session.handle_input(at(5_300), Input::Timeout);
    assert_eq!(learnt.try_iter().collect::<Vec<_>>(), [(400, 64), (400, 5_295), (400, 5_095)]);
    let Counters { sent, probes, probe_bytes, late_replies, .. } = *session.counters();
    assert_eq!((sent, probes, probe_bytes, late_replies), (0, 3, 1_200, 1));
    assert_eq!(session.poll_timeout(), None);
}

#[test]
fn a_refusal_is_answered_by_the_exit_and_its_pause_is_kept() {
    let mut session = connected(Pace::Live);
    session.handle_input(at(0), captured(0));
    session.handle_input(at(5), head_done(0));
    let outcomes = done(&mut session, 9, refusal(0, wire::Reason::Overloaded, 50));
    assert_eq!(reason(&outcomes[0]), "refused: overloaded");

    session.handle_input(at(10), captured(1));
    assert_eq!(reason(&done(&mut session, 15, head_done(1))[0]), "hold off");
    session.handle_input(at(60), captured(2));
    assert!(done(&mut session, 65, head_done(2)).is_empty(), "the pause is over: it is sent");
}

#[test]
fn a_lost_connection_ends_what_was_sent_and_the_next_one_is_used() {
    let mut session = connected(Pace::Live);
    session.handle_input(at(0), captured(0));
    session.handle_input(at(5), head_done(0));
    assert_eq!(reason(&done(&mut session, 7, Input::LinkDown)[0]), "link down");
    session.handle_input(at(10), captured(1));
    assert_eq!(reason(&done(&mut session, 15, head_done(1))[0]), "link down");
    session.handle_input(at(20), link_up());
    session.handle_input(at(21), captured(2));
    session.handle_input(at(26), head_done(2));
    assert_eq!(reason(&done(&mut session, 40, answer(2))[0]), "fixed");
    assert_eq!((session.counters().links_up, session.counters().links_down), (2, 1));
}

#[test]
fn a_head_that_is_late_frees_its_frame_and_later_the_thread() {
    let mut session = connected(Pace::Live);
    session.handle_input(at(0), captured(0));
    assert_eq!(reason(&done(&mut session, 95, Input::Timeout)[0]), "head late");
    session.handle_input(at(100), captured(1));
    let ran = |outputs: &[Output]| {
        outputs.iter().any(|output| matches!(output, Output::RunHead { frame: FrameId(1), .. }))
    };
    assert!(!ran(&drain(&mut session)), "the thread is still busy");
    session.handle_input(at(120), head_done(0));
    assert!(ran(&drain(&mut session)));
}

#[test]
fn a_frame_larger_than_the_server_accepts_is_not_sent() {
    let mut session = session(Pace::Live);
    let round_trip = None;
    session
        .handle_input(at(0), Input::LinkUp { max_in_flight: 1, max_frame_bytes: 700, round_trip });
    session.handle_input(at(0), captured(0));
    assert_eq!(reason(&done(&mut session, 5, head_done(0))[0]), "too large");
}

#[test]
fn a_server_that_claims_more_time_than_passed_cannot_break_the_sum() {
    let mut timing = Timing::default();
    let feedback = wire::Feedback { queue_us: u64::MAX, tail_us: 9, ..Default::default() };
    let round = Duration::from_millis(3);
    assert_eq!(split_round(round, &feedback, &mut timing), round);
    assert_eq!((timing.queue, timing.tail), (Some(round), Some(Duration::ZERO)));
    assert_eq!(timing.network, Some(Duration::ZERO));
}

proptest! {
    #[test]
    fn stages_add_up_whatever_finer_clocks_and_servers_say(
        [head, encode] in [0u64..9_000_000, 0u64..9_000_000],
        [queue_us, decode_us, tail_us] in [0u64..9_000, 0u64..9_000, 0u64..9_000],
        took in 0u64..9_000,
        replied in proptest::option::of(0u64..9_000),
    ) {
        let mut session = connected(Pace::Live);
        session.handle_input(at(0), captured(0));
        let outcome = HeadOutcome {
            exit: Some(0.5),
            layer_ends: vec![300, 700],
            head: Duration::from_nanos(head),
            encode: Duration::from_nanos(encode),
        };
        let head_done = Input::HeadDone { frame: FrameId(0), outcome };
        session.handle_input(Timestamp::from_micros(took), head_done);
        let (end, input) = match replied {
            Some(after) => {
                let feedback = wire::Feedback { queue_us, decode_us, tail_us, ..Default::default() };
                let outcome = Ok((0.9, 2));
                let reply = ServerReply { outcome, feedback };
                (took + after, Input::Reply { frame: FrameId(0), reply })
            }
            None => (95_000, Input::Timeout),
        };
        session.handle_input(Timestamp::from_micros(end), input);
        let ended = drain(&mut session).into_iter().find_map(|output| match output {
            Output::Done(outcome) => Some(outcome),
            _ => None,
        });
        let timing = ended.expect("an end").timing;
        prop_assert_eq!(sum(&timing), Duration::from_micros(end), "{:?}", timing);
    }
}

#[derive(Clone, Debug)]
enum Step {
    Capture,
    Head,
    HeadFails,
    Answer(u64),
    Refuse(u64),
    Lose(u64),
    Up,
    Down,
    Fire,
    Early,
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let step = prop_oneof![
        6 => Just(Step::Capture),
        6 => Just(Step::Head),
        1 => Just(Step::HeadFails),
        6 => (0u64..8).prop_map(Step::Answer),
        2 => (0u64..8).prop_map(Step::Refuse),
        2 => (0u64..8).prop_map(Step::Lose),
        2 => Just(Step::Up),
        1 => Just(Step::Down),
        3 => Just(Step::Fire),
        1 => Just(Step::Early),
    ];
    prop::collection::vec((0u64..40, step), 1..200)
}

proptest! {
    #[test]
    fn every_frame_captured_ends_exactly_once_and_in_time(
        live in any::<bool>(),
        steps in steps(),
    ) {
        let mut session = session(if live { Pace::Live } else { Pace::EveryFrame });
        let (mut now, mut next) = (0, 0);
        let mut running = None;
        let mut in_flight = std::collections::BTreeSet::new();
        let mut ended = BTreeMap::new();
        for (wait, step) in steps {
            // The driver's timer fires before anything that happens later.
            let mut inputs = Vec::new();
            now += wait;
            while let Some(due) = session.poll_timeout().filter(|&due| due <= at(now)) {
                session.handle_input(due, Input::Timeout);
                inputs.extend(drain(&mut session));
            }
            let input = match step {
                Step::Capture => { next += 1; Some(captured(next - 1)) }
                Step::Head => running.take().map(head_done),
                Step::HeadFails => running.take().map(|id| Input::HeadFailed { frame: FrameId(id) }),
                Step::Answer(back) => Some(answer(next.saturating_sub(back))),
                Step::Refuse(back) =>
                    Some(refusal(next.saturating_sub(back), wire::Reason::Overloaded, 10)),
                Step::Lose(back) => Some(Input::Lost { frame: FrameId(next.saturating_sub(back)) }),
                Step::Up => Some(link_up()),
                Step::Down => Some(Input::LinkDown),
                Step::Fire => session.poll_timeout().map(|due| {
                    now = now.max(due.as_micros().div_ceil(1000));
                    Input::Timeout
                }),
                Step::Early => Some(Input::Timeout),
            };
            if let Some(input) = input {
                session.handle_input(at(now), input);
            }
            inputs.extend(drain(&mut session));
            for output in inputs {
                match output {
                    Output::RunHead { frame, .. } => prop_assert!(running.replace(frame.0).is_none()),
                    Output::Send { frame, .. } => prop_assert!(in_flight.insert(frame)),
                    Output::Cancel { frame } => prop_assert!(in_flight.contains(&frame)),
                    Output::Probe { .. } => prop_assert!(false, "this controller does not ask"),
                    Output::Done(outcome) => {
                        in_flight.remove(&outcome.frame);
                        let took = outcome.finished.saturating_since(outcome.captured);
                        prop_assert!(took <= DEADLINE, "{took:?}");
                        prop_assert!(ended.insert(outcome.frame, outcome).is_none());
                    }
                }
            }
            prop_assert!(in_flight.len() <= 2);
            let counters = session.counters();
            let answered: u64 = counters.answered.values().sum();
            let dropped: u64 = counters.dropped.values().sum();
            prop_assert_eq!(counters.captured, answered + dropped + counters.open);
            prop_assert_eq!(answered + dropped, ended.len() as u64);
            prop_assert_eq!(counters.captured, next);
        }
        // Left alone, the timer alone settles all that is open.
        while let Some(due) = session.poll_timeout() {
            session.handle_input(due.max(at(now)), Input::Timeout);
        }
        prop_assert_eq!(session.counters().open, 0);
    }
}
