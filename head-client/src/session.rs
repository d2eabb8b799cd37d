//! The session: a state machine that follows every frame from capture to its one outcome.

mod messages;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use isthmus_proto::wire;
use isthmus_proto::{Arm, Content, FrameId, Timestamp};

pub use self::messages::{
    Counters, GUARD, HeadOutcome, Input, Output, Pace, ServerReply, SessionConfig,
};
use crate::controller::{
    Choice, Controller, HeadDecision, HeadView, LinkEstimate, LinkView, NetworkSample,
    NetworkTimeout, Run, SendDecision, SendView, Sending,
};
use crate::estimator::NetworkTime;
use crate::outcome::{DropCause, Fallback, FrameOutcome, Reason, Timing, Verdict};

/// Follows every frame from capture to its one outcome.
///
/// Drive it so: feed an input with the time, drain [`Session::poll_output`], arm one timer for
/// [`Session::poll_timeout`] and feed [`Input::Timeout`] when it fires.
///
/// Every frame captured ends in exactly one [`Output::Done`], at the latest when its deadline
/// comes. If the network has not answered by then, the exit's answer is the answer.
///
/// ```
/// use std::time::Duration;
/// use isthmus_head_client::{
///     Fixed, HeadOutcome, Input, Output, Pace, Session, SessionConfig, Verdict,
/// };
/// use isthmus_proto::{Arm, FrameId, OperatingPoint, Timestamp};
///
/// let point = OperatingPoint { split: 0, width: 0, layers: 2, bits: 6 };
/// let config = SessionConfig {
///     deadline: Duration::from_millis(100),
///     guard: Duration::from_millis(5),
///     in_flight: 2,
///     pace: Pace::Live,
/// };
/// let mut session = Session::new(config, Box::new(Fixed::new(point)));
/// let frame = FrameId(0);
///
/// session.handle_input(Timestamp::ZERO, Input::Captured { frame });
/// assert!(matches!(session.poll_output(), Some(Output::RunHead { .. })));
///
/// // There is no connection, so the exit answers.
/// let exit = Some(0.8);
/// let outcome = HeadOutcome { exit, layer_ends: vec![200, 500], ..HeadOutcome::default() };
/// session.handle_input(Timestamp::from_micros(9_000), Input::HeadDone { frame, outcome });
/// let Some(Output::Done(done)) = session.poll_output() else { panic!() };
/// let Verdict::Answered { arm: Arm::Exit, confidence, reason } = done.verdict else { panic!() };
/// assert_eq!((confidence, reason.to_string().as_str()), (0.8, "link down"));
/// ```
pub struct Session {
    config: SessionConfig,
    controller: Box<dyn Controller>,
    network: NetworkTime,
    link: Option<LinkLimits>,
    hold_until: Timestamp,
    waiting: VecDeque<Captured>,
    running: Option<Running>,
    in_flight: BTreeMap<FrameId, InFlight>,
    probes: BTreeMap<FrameId, Probe>,
    outputs: VecDeque<Output>,
    counters: Counters,
}

#[derive(Clone, Copy)]
struct LinkLimits {
    in_flight: usize,
    frame_bytes: usize,
}

#[derive(Clone, Copy)]
struct Captured {
    frame: FrameId,
    at: Timestamp,
}

struct Running {
    frame: FrameId,
    started: Timestamp,
    /// `None` once the frame has ended: only the compute thread is still busy with it.
    captured: Option<Captured>,
    run: Run,
    reason: Choice,
}

struct InFlight {
    coded: Coded,
    content: Content,
    bytes: usize,
    sent: Timestamp,
    reason: Choice,
}

/// A probe in flight.
struct Probe {
    bytes: usize,
    sent: Timestamp,
    /// When it is given up.
    until: Timestamp,
}

/// A frame that is ready to be sent.
#[derive(Clone, Copy)]
struct Coded {
    captured: Captured,
    run: Run,
    exit: Option<f32>,
    timing: Timing,
}

impl Session {
    /// A session without a connection and without frames.
    pub fn new(config: SessionConfig, controller: Box<dyn Controller>) -> Self {
        Session {
            config,
            controller,
            network: NetworkTime::default(),
            link: None,
            hold_until: Timestamp::ZERO,
            waiting: VecDeque::new(),
            running: None,
            in_flight: BTreeMap::new(),
            probes: BTreeMap::new(),
            outputs: VecDeque::new(),
            counters: Counters::default(),
        }
    }

    /// Takes in what happened at `now`. Instants never decrease from call to call.
    pub fn handle_input(&mut self, now: Timestamp, input: Input) {
        match input {
            Input::Captured { frame } => self.on_captured(now, frame),
            Input::Superseded { frame } => {
                self.counters.captured += 1;
                self.counters.open += 1;
                let captured = Captured { frame, at: now };
                self.drop_frame(now, captured, None, DropCause::Superseded);
            }
            Input::HeadDone { frame, outcome } => self.on_head_done(now, frame, outcome),
            Input::HeadFailed { frame } => {
                if let Some((captured, run, _)) = self.take_running(frame) {
                    self.drop_frame(now, captured, Some(run), DropCause::HeadFailed);
                }
            }
            Input::Reply { frame, reply } => self.on_reply(now, frame, reply),
            Input::Echo { frame, feedback } => self.on_echo(now, frame, &feedback),
            Input::Lost { frame } => {
                self.probes.remove(&frame);
                if let Some(lost) = self.in_flight.remove(&frame) {
                    self.fall_back(now, lost, Fallback::StreamLost);
                }
            }
            Input::LinkUp { max_in_flight, max_frame_bytes, round_trip } => {
                let in_flight = self.config.in_flight.min(max_in_flight).max(1);
                self.link = Some(LinkLimits { in_flight, frame_bytes: max_frame_bytes });
                self.network =
                    round_trip.map_or_else(NetworkTime::default, NetworkTime::starting_at);
                self.controller.on_link_up(now, round_trip);
                self.hold_until = Timestamp::ZERO;
                self.counters.links_up += 1;
            }
            Input::LinkDown => {
                if self.link.take().is_some() {
                    self.counters.links_down += 1;
                }
                self.probes.clear();
                for (_, lost) in std::mem::take(&mut self.in_flight) {
                    self.fall_back(now, lost, Fallback::LinkDown);
                }
            }
            Input::Timeout => self.expire(now),
        }
        self.start_head(now);
    }

    /// The next order; drain it after every input.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to feed [`Input::Timeout`].
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let running = self.running.iter().filter_map(|running| running.captured);
        let in_flight = self.in_flight.values().map(|sent| sent.coded.captured);
        let open = self.waiting.iter().copied().chain(running).chain(in_flight);
        let probes = self.probes.values().map(|probe| probe.until);
        open.map(|captured| self.answer_by(captured)).chain(probes).min()
    }

    /// Whether a connection is known to be there.
    pub fn link_is_up(&self) -> bool {
        self.link.is_some()
    }

    /// The counters so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Smoothed time that a frame spends outside the server, once known.
    pub fn network_time(&self) -> Option<Duration> {
        self.network.smoothed()
    }

    /// The controller's link estimate.
    pub fn link_estimate(&self) -> Option<LinkEstimate> {
        self.controller.estimate()
    }

    fn on_captured(&mut self, now: Timestamp, frame: FrameId) {
        self.counters.captured += 1;
        self.counters.open += 1;
        if self.config.pace == Pace::Live {
            while let Some(older) = self.waiting.pop_front() {
                self.drop_frame(now, older, None, DropCause::Superseded);
            }
        }
        self.waiting.push_back(Captured { frame, at: now });
    }

    /// Gives the compute thread its next frame if it is free.
    fn start_head(&mut self, now: Timestamp) {
        while self.running.is_none() {
            let full = self.link.is_some_and(|link| self.in_flight.len() >= link.in_flight);
            if full && self.config.pace == Pace::EveryFrame {
                return;
            }
            let Some(captured) = self.waiting.pop_front() else { return };
            if now >= self.answer_by(captured) {
                self.drop_frame(now, captured, None, DropCause::Expired);
                continue;
            }
            let time_left = self.answer_by(captured).saturating_since(now);
            let view = HeadView { time_left, link: self.view() };
            let HeadDecision { run, reason } = self.controller.decide_head(now, &view);
            let Some(run) = run else {
                self.drop_frame(now, captured, None, DropCause::Skipped);
                continue;
            };
            let frame = captured.frame;
            let (started, captured) = (now, Some(captured));
            self.running = Some(Running { frame, started, captured, run, reason });
            self.outputs.push_back(Output::RunHead { frame, run });
        }
    }

    fn on_head_done(&mut self, now: Timestamp, frame: FrameId, outcome: HeadOutcome) {
        // The controller learns how long the run took even if its frame has ended.
        if let Some(Running { started, run, .. }) =
            self.running.as_ref().filter(|it| it.frame == frame)
        {
            self.controller.on_run(now, *run, now.saturating_since(*started));
        }
        let Some((captured, run, reason)) = self.take_running(frame) else { return };
        let HeadOutcome { exit, layer_ends, head, encode } = outcome;
        let mut rest = now.saturating_since(captured.at);
        let network = run.head().is_some() || run == Run::Local;
        let head = network.then(|| take(&mut rest, head));
        let encode = Some(take(&mut rest, encode));
        let timing = Timing { wait: rest, head, encode, ..Timing::default() };
        let coded = Coded { captured, run, exit, timing };
        if run == Run::Local {
            return self.answer_by_exit(now, coded, None, Reason::Chosen(reason));
        }
        let time_left = self.answer_by(captured).saturating_since(now);
        let link = match self.usable_link(now, time_left) {
            Ok(link) => link,
            Err(cause) => {
                return self.answer_by_exit(now, coded, None, Reason::Fallback(cause));
            }
        };
        let view = SendView {
            frame,
            run,
            exit_confidence: exit,
            layer_ends: &layer_ends,
            time_left,
            link: self.view(),
        };
        let SendDecision { sending, reason } = self.controller.decide_send(now, &view);
        match sending {
            Sending::Exit => self.answer_by_exit(now, coded, None, Reason::Chosen(reason)),
            Sending::Probe(bytes) => {
                self.answer_by_exit(now, coded, None, Reason::Chosen(reason));
                self.probe(now, captured, bytes.min(link.frame_bytes / 2));
            }
            Sending::Layers(layers) => {
                let Some((content, bytes)) = content(run, layers, &layer_ends) else { return };
                if bytes.saturating_add(MOST_OVERHEAD) > link.frame_bytes {
                    let too_large = Reason::Fallback(Fallback::TooLarge);
                    return self.answer_by_exit(now, coded, None, too_large);
                }
                self.send(now, InFlight { coded, content, bytes, sent: now, reason });
            }
        }
    }

    /// The link, if a frame with so much time left may be sent over it; else why not.
    fn usable_link(&self, now: Timestamp, time_left: Duration) -> Result<LinkLimits, Fallback> {
        let link = self.link.ok_or(Fallback::LinkDown)?;
        if time_left.is_zero() {
            Err(Fallback::Deadline)
        } else if now < self.hold_until {
            Err(Fallback::HoldOff)
        } else if self.in_flight.len() >= link.in_flight {
            Err(Fallback::InFlightFull)
        } else {
            Ok(link)
        }
    }

    fn send(&mut self, now: Timestamp, sent: InFlight) {
        let Captured { frame, .. } = sent.coded.captured;
        let answer_by = self.answer_by(sent.coded.captured);
        let time_left = self.network.time_left(answer_by.saturating_since(now));
        let content = sent.content;
        self.in_flight.insert(frame, sent);
        self.counters.sent += 1;
        self.outputs.push_back(Output::Send { frame, content, time_left, answer_by });
    }

    fn probe(&mut self, now: Timestamp, captured: Captured, bytes: usize) {
        let (frame, until) = (captured.frame, now + ECHO_TIMEOUT);
        self.probes.insert(frame, Probe { bytes, sent: now, until });
        self.counters.probes += 1;
        self.counters.probe_bytes += bytes as u64;
        self.outputs.push_back(Output::Probe { frame, bytes, time_left: ECHO_TIMEOUT });
    }

    fn on_echo(&mut self, now: Timestamp, frame: FrameId, feedback: &wire::Feedback) {
        let Some(Probe { bytes, sent, .. }) = self.probes.remove(&frame) else {
            self.counters.late_replies += 1;
            return;
        };
        let mut timing = Timing::default();
        let server = split_round(now.saturating_since(sent), feedback, &mut timing);
        self.learn(now, (frame, bytes), &timing, server, false);
    }

    /// Learns about the network from a round trip of so many bytes, of which the server took `server`.
    fn learn(
        &mut self,
        now: Timestamp,
        (frame, bytes): (FrameId, usize),
        timing: &Timing,
        server: Duration,
        refused: bool,
    ) {
        let network = timing.network.unwrap_or_default();
        let receive_span = timing.receive_span.unwrap_or_default();
        self.network.on_sample(network.saturating_sub(receive_span));
        let sample = NetworkSample { frame, bytes, network, receive_span, server, refused };
        self.controller.on_reply(now, &sample);
    }

    fn on_reply(&mut self, now: Timestamp, frame: FrameId, reply: ServerReply) {
        // A server that refuses a probe has it all the same.
        if self.probes.contains_key(&frame) {
            return self.on_echo(now, frame, &reply.feedback);
        }
        // A reply that beats the timer but not the deadline is late all the same.
        if self.in_flight.get(&frame).is_some_and(|sent| now > self.deadline(sent.coded.captured)) {
            self.expire(now);
        }
        let Some(mut sent) = self.in_flight.remove(&frame) else {
            self.counters.late_replies += 1;
            return;
        };
        let timing = &mut sent.coded.timing;
        let server = split_round(now.saturating_since(sent.sent), &reply.feedback, timing);
        let refused = reply.outcome.is_err();
        self.learn(now, (frame, sent.bytes), &sent.coded.timing, server, refused);
        match reply.outcome {
            Ok((confidence, layers_used)) => {
                let reason = Reason::Chosen(sent.reason);
                let verdict = Verdict::Answered { arm: sent.content.arm(), confidence, reason };
                let of_features = matches!(sent.content, Content::Features(_));
                self.finish(
                    now,
                    FrameOutcome {
                        layers_used: of_features.then_some(layers_used),
                        sent: Some(sent.content),
                        run: Some(sent.coded.run),
                        timing: sent.coded.timing,
                        ..blank(now, sent.coded.captured, verdict)
                    },
                );
            }
            Err((reason, retry_after)) => {
                // A hint is a guess: a pause of the server's machine may have made it.
                let pause = retry_after.min(LONGEST_HOLD);
                self.hold_until = self.hold_until.max(now + pause);
                let reason = Reason::Fallback(Fallback::Refused(reason));
                self.answer_by_exit(now, sent.coded, Some(sent.content), reason);
            }
        }
    }

    /// Settles every frame whose time is up.
    fn expire(&mut self, now: Timestamp) {
        while let Some(&captured) = self.waiting.front()
            && now >= self.answer_by(captured)
        {
            self.waiting.pop_front();
            self.drop_frame(now, captured, None, DropCause::Expired);
        }
        if let Some(captured) = self.running.as_ref().and_then(|running| running.captured)
            && now >= self.answer_by(captured)
        {
            let run = self.running.as_mut().map(|running| {
                running.captured = None;
                running.run
            });
            self.drop_frame(now, captured, run, DropCause::HeadLate);
        }
        let due = |sent: &InFlight| now >= self.answer_by(sent.coded.captured);
        let late: Vec<_> =
            self.in_flight.iter().filter(|(_, sent)| due(sent)).map(|(&frame, _)| frame).collect();
        for frame in late {
            if let Some(sent) = self.in_flight.remove(&frame) {
                self.counters.cancelled += 1;
                self.outputs.push_back(Output::Cancel { frame });
                let waited = now.saturating_since(sent.sent);
                let timeout = NetworkTimeout { frame, bytes: sent.bytes, waited };
                self.controller.on_timeout(now, &timeout);
                self.fall_back(now, sent, Fallback::Deadline);
            }
        }
        let due = self.probes.iter().filter(|(_, probe)| now >= probe.until);
        for frame in due.map(|(&frame, _)| frame).collect::<Vec<_>>() {
            if let Some(Probe { bytes, sent, .. }) = self.probes.remove(&frame) {
                self.outputs.push_back(Output::Cancel { frame });
                let waited = now.saturating_since(sent);
                self.controller.on_timeout(now, &NetworkTimeout { frame, bytes, waited });
            }
        }
    }

    /// Frees the compute thread; the frame it worked on, unless that has already ended.
    fn take_running(&mut self, frame: FrameId) -> Option<(Captured, Run, Choice)> {
        let Running { captured, run, reason, .. } =
            self.running.take_if(|running| running.frame == frame)?;
        captured.map(|captured| (captured, run, reason))
    }

    fn fall_back(&mut self, now: Timestamp, mut sent: InFlight, cause: Fallback) {
        sent.coded.timing.network = Some(now.saturating_since(sent.sent));
        self.answer_by_exit(now, sent.coded, Some(sent.content), Reason::Fallback(cause));
    }

    fn answer_by_exit(
        &mut self,
        now: Timestamp,
        coded: Coded,
        sent: Option<Content>,
        reason: Reason,
    ) {
        if let Reason::Fallback(fallback) = reason {
            *self.counters.fallbacks.entry(fallback).or_default() += 1;
        }
        let verdict = match coded.exit {
            Some(confidence) => {
                let arm = if coded.run == Run::Local { Arm::Local } else { Arm::Exit };
                Verdict::Answered { arm, confidence, reason }
            }
            None => Verdict::Dropped(DropCause::NoExit),
        };
        let (run, timing) = (Some(coded.run), coded.timing);
        self.finish(now, FrameOutcome { run, sent, timing, ..blank(now, coded.captured, verdict) });
    }

    fn drop_frame(
        &mut self,
        now: Timestamp,
        captured: Captured,
        run: Option<Run>,
        cause: DropCause,
    ) {
        let timing = Timing { wait: now.saturating_since(captured.at), ..Timing::default() };
        let verdict = Verdict::Dropped(cause);
        self.finish(now, FrameOutcome { run, timing, ..blank(now, captured, verdict) });
    }

    fn finish(&mut self, now: Timestamp, mut outcome: FrameOutcome) {
        self.counters.open -= 1;
        match outcome.verdict {
            Verdict::Answered { arm, .. } => {
                *self.counters.answered.entry(arm.name()).or_default() += 1;
                outcome.on_time = now <= outcome.captured + self.config.deadline;
            }
            Verdict::Dropped(cause) => *self.counters.dropped.entry(cause).or_default() += 1,
        }
        self.outputs.push_back(Output::Done(outcome));
    }

    fn view(&self) -> LinkView {
        let frames = self.in_flight.values().map(|sent| sent.bytes);
        let probes = self.probes.values().map(|probe| probe.bytes);
        LinkView {
            up: self.link.is_some(),
            in_flight: self.in_flight.len() + self.probes.len(),
            bytes_in_flight: frames.chain(probes).sum(),
            network: self.network.smoothed(),
        }
    }

    fn deadline(&self, captured: Captured) -> Timestamp {
        captured.at + self.config.deadline
    }

    fn answer_by(&self, captured: Captured) -> Timestamp {
        let SessionConfig { deadline, guard, .. } = self.config;
        captured.at + (deadline - guard.min(deadline / 4))
    }
}

/// Longest pause that a refusal's hint makes.
const LONGEST_HOLD: Duration = Duration::from_secs(2);

/// How long to wait for an echo. One that is late shows when the network came back.
const ECHO_TIMEOUT: Duration = Duration::from_secs(5);

/// Most bytes of envelope and packet header: 16 layers, long lengths.
const MOST_OVERHEAD: usize = 3 + 8 + 3 + 16 * 6;

/// What is sent of a run, and its size (bytes), if `layers` are wanted of those that end at
/// `layer_ends`. A controller that wants layers which were not coded gets those that were.
fn content(run: Run, layers: u8, layer_ends: &[usize]) -> Option<(Content, usize)> {
    let (content, layers) = match run {
        Run::Head(run) => {
            let layers = layers.clamp(1, run.layers);
            (Content::Features(run.point(layers)), layers)
        }
        Run::Image(run) => (Content::Image(run.image.format), 1),
        Run::Local => return None,
    };
    let last = usize::from(layers).min(layer_ends.len()).saturating_sub(1);
    Some((content, layer_ends.get(last).copied().unwrap_or(0)))
}

fn blank(now: Timestamp, captured: Captured, verdict: Verdict) -> FrameOutcome {
    FrameOutcome {
        frame: captured.frame,
        captured: captured.at,
        finished: now,
        verdict,
        run: None,
        sent: None,
        layers_used: None,
        timing: Timing::default(),
        on_time: false,
    }
}

/// Takes a stage out of the `rest` of the time that is not accounted for yet, and returns the time taken.
///
/// The session's instants are whole microseconds, stages come from finer clocks and from servers:
/// a stage counts in whole microseconds and up to what is left, so that stages always add up.
fn take(rest: &mut Duration, stage: Duration) -> Duration {
    let micros = u64::try_from(stage.as_micros()).unwrap_or(u64::MAX);
    let taken = Duration::from_micros(micros).min(*rest);
    *rest -= taken;
    taken
}

/// Splits the time from sending to the reply into network and server, and gives the server's part.
fn split_round(round: Duration, feedback: &wire::Feedback, timing: &mut Timing) -> Duration {
    let mut rest = round;
    let mut server = |micros| Some(take(&mut rest, Duration::from_micros(micros)));
    timing.queue = server(feedback.queue_us);
    timing.decode = server(feedback.decode_us);
    timing.tail = server(feedback.tail_us);
    timing.network = Some(rest);
    timing.receive_span = Some(Duration::from_micros(feedback.receive_span_us).min(rest));
    round - rest
}
