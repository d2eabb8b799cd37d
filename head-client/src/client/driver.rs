//! The loop that drives a session: it feeds captures, computed heads, replies and time, and carries
//! out what the session orders.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_models::{Head, Picture};
use isthmus_proto::{Content, FrameId, Timestamp, TraceIds};
use tokio::sync::mpsc;

use super::RunError;
use super::capture::{Capture, Captured};
use super::entry::Entry;
use super::telemetry::Telemetry;
use super::worker::{Computed, Done, Here, Job, Worker};
use crate::config::ClientConfig;
use crate::controller::Controller;
use crate::exchange::{BoundBundle, Checked, Limits, Outgoing};
use crate::outcome::FrameOutcome;
use crate::report::{FrameReport, Summary, SummaryBuilder};
use crate::session::{GUARD, HeadOutcome, Input, Output, Pace, Session, SessionConfig};
use crate::source::{FrameTruth, NoPicture, SourceFrame};
use crate::transport::{Command, Event, Link, Unconnected};

/// How often the compute thread is looked after.
const WATCH: Duration = Duration::from_secs(1);
/// A network that has run for so long hangs; the slowest take seconds.
const HANGS: Duration = Duration::from_secs(20);

pub(super) struct Driver<F> {
    session: Session,
    config: ClientConfig,
    head: Arc<Head>,
    link: Link,
    worker: Worker,
    telemetry: Telemetry,
    /// Names for the spans of the connection's frames.
    traces: Option<TraceIds>,
    frames: BTreeMap<FrameId, Entry>,
    summary: SummaryBuilder,
    sink: F,
    /// The frame that the compute thread is at, and since when.
    computing: Option<(FrameId, Instant)>,
    /// Why there has never been a connection.
    unconnected: Option<Unconnected>,
    zero: Instant,
    now: Timestamp,
}

impl<F: FnMut(&FrameReport) -> ControlFlow<()>> Driver<F> {
    /// A driver whose time begins now.
    pub(super) fn new(
        config: ClientConfig,
        head: Arc<Head>,
        controller: Box<dyn Controller>,
        (link, worker, telemetry): (Link, Worker, Telemetry),
        sink: F,
    ) -> Self {
        let ClientConfig { deadline, in_flight, pace, .. } = config;
        let session = SessionConfig { deadline, guard: GUARD, in_flight, pace };
        Driver {
            session: Session::new(session, controller),
            config,
            head,
            link,
            worker,
            telemetry,
            traces: None,
            frames: BTreeMap::new(),
            summary: SummaryBuilder::default(),
            sink,
            computing: None,
            unconnected: None,
            zero: Instant::now(),
            now: Timestamp::ZERO,
        }
    }

    /// Answers frames until there are no more, `stop` comes or the sink breaks.
    pub(super) async fn drive(
        mut self,
        mut captures: mpsc::Receiver<Captured>,
        stop: impl Future<Output = ()>,
    ) -> Result<Summary, RunError> {
        let mut stop = pin!(stop);
        let mut timer = pin!(tokio::time::sleep(Duration::ZERO));
        let mut more = true;
        let mut failed = None;
        let mut watch = tokio::time::interval(WATCH);
        loop {
            if self.carry_out().is_break() {
                break;
            }
            let open = self.session.counters().open;
            if !more && open == 0 {
                break;
            }
            let due = self.session.poll_timeout();
            if let Some(due) = due {
                let due = self.zero + Duration::from_micros(due.as_micros());
                if timer.deadline().into_std() != due {
                    timer.as_mut().reset(due.into());
                }
            }
            let room = self.config.pace == Pace::Live || open < self.config.in_flight as u64;
            // In order of urgency: an answer that is there must not lose against the timer.
            tokio::select! {
                biased;
                Some(event) = self.link.events.recv() => self.on_event(event),
                Some(done) = self.worker.done.recv() => self.on_head(done),
                () = &mut timer, if due.is_some() => self.handle(Input::Timeout),
                () = &mut stop, if more => more = false,
                capture = captures.recv(), if more && room => match capture {
                    None => more = false,
                    Some(Ok(capture)) => if self.on_capture(capture).is_break() { break },
                    Some(Err(cause)) => {
                        failed = Some(RunError::Source(cause));
                        more = false;
                    }
                },
                _ = watch.tick() => if let Some(hangs) = self.hangs() {
                    failed = Some(hangs);
                    break;
                },
            }
        }
        let elapsed = self.zero.elapsed();
        self.link.close().await;
        self.telemetry.close().await;
        if let Some(failed) = failed {
            return Err(failed);
        }
        let mut summary = self.summary.finish(self.session.counters(), elapsed);
        summary.unconnected = self.unconnected;
        Ok(summary)
    }

    /// Whether the compute thread has been at a frame for so long that it will hardly finish.
    fn hangs(&self) -> Option<RunError> {
        let (frame, since) = self.computing?;
        let after = since.elapsed();
        (after >= HANGS).then_some(RunError::Hangs { frame: frame.0, after })
    }

    fn handle(&mut self, input: Input) {
        self.handle_at(Instant::now(), input);
    }

    /// Instants that a session sees never decrease, even if a capture's stamp is a little old.
    fn handle_at(&mut self, at: Instant, input: Input) {
        let micros = at.saturating_duration_since(self.zero).as_micros();
        let at = Timestamp::from_micros(u64::try_from(micros).unwrap_or(u64::MAX));
        self.now = self.now.max(at);
        self.session.handle_input(self.now, input);
    }

    fn on_capture(&mut self, capture: Capture) -> ControlFlow<()> {
        let Capture { frame, at, content: SourceFrame { source, truth, picture } } = capture;
        let (picture, input) = match picture {
            Ok(picture) => (Some(picture), Input::Captured { frame }),
            Err(NoPicture::Superseded) => (None, Input::Superseded { frame }),
            Err(NoPicture::Bad(error)) => {
                return self.report(&FrameReport {
                    frame: frame.0,
                    source,
                    truth: truth.and_then(FrameTruth::into_class),
                    reason: "bad picture".into(),
                    error: Some(error),
                    ..FrameReport::default()
                });
            }
        };
        let size = picture.as_ref().map_or((1, 1), |it: &Picture| (it.width(), it.height()));
        let picture = picture.map(Arc::new);
        self.frames.insert(frame, Entry { source, truth, picture, size, ..Entry::default() });
        let at = if self.config.pace == Pace::Live { at } else { Instant::now() };
        self.handle_at(at, input);
        ControlFlow::Continue(())
    }

    fn on_head(&mut self, Done { frame, computed }: Done) {
        self.computing = None;
        match computed {
            Ok(Computed { exit, coded, head, encode }) => {
                let layer_ends = coded.layer_ends.clone();
                let (answers, exit) = match exit {
                    Some(Here { answers, confidence }) => (answers, Some(confidence)),
                    None => (Vec::new(), None),
                };
                if let Some(entry) = self.frames.get_mut(&frame) {
                    entry.coded = Some(coded);
                    entry.here = answers;
                }
                let outcome = HeadOutcome { exit, layer_ends, head, encode };
                self.handle(Input::HeadDone { frame, outcome });
            }
            Err(error) => {
                tracing::error!(%frame, %error, "the head failed");
                self.handle(Input::HeadFailed { frame });
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        let input = match event {
            Event::Up { limits, round_trip, traces } => {
                self.unconnected = None;
                self.traces = traces;
                let Limits { max_in_flight, max_frame_bytes } = limits;
                Input::LinkUp { max_in_flight, max_frame_bytes, round_trip }
            }
            Event::Sent(frame, ordinal) => {
                if let Some(entry) = self.frames.get_mut(&frame) {
                    entry.ordinal = Some(ordinal);
                }
                return;
            }
            Event::Down => Input::LinkDown,
            Event::Unconnected(cause) => {
                if self.session.counters().links_up == 0 {
                    self.unconnected = Some(cause);
                }
                return self.telemetry.count_unconnected(cause);
            }
            Event::Lost(frame, reason) => {
                tracing::warn!(%frame, reason, "no reply");
                Input::Lost { frame }
            }
            Event::Reply(frame, Checked::Echo(feedback)) => Input::Echo { frame, feedback },
            Event::Reply(frame, Checked::Reply { reply, answers, detail }) => {
                if let Err((reason, _)) = reply.outcome {
                    tracing::debug!(%frame, ?reason, detail, "refused");
                }
                if let Some(entry) = self.frames.get_mut(&frame) {
                    entry.replied = answers;
                }
                Input::Reply { frame, reply }
            }
        };
        self.handle(input);
        self.telemetry.show_session(&self.session);
    }

    /// Carries out what the session orders.
    fn carry_out(&mut self) -> ControlFlow<()> {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::RunHead { frame, run } => {
                    let kept = self.config.keep_pictures;
                    let picture = self.frames.get_mut(&frame).and_then(|entry| match kept {
                        true => entry.picture.clone(),
                        false => entry.picture.take(),
                    });
                    let job = picture.map(|picture| Job { frame, picture, run });
                    self.computing = Some((frame, Instant::now()));
                    // The thread lives as long as this does.
                    if job.is_none_or(|job| self.worker.jobs.send(job).is_err()) {
                        self.handle(Input::HeadFailed { frame });
                    }
                }
                Output::Send { frame, content, time_left, answer_by } => {
                    if let Some(outgoing) = self.outgoing(frame, content, time_left, answer_by) {
                        // Without a link task the link is down, and the deadline settles it.
                        let _ = self.link.commands.send(Command::Send(outgoing));
                    }
                }
                Output::Probe { frame, bytes: padding, time_left } => {
                    let probe = Outgoing::probe(frame, padding, time_left);
                    let _ = self.link.commands.send(Command::Send(probe));
                }
                Output::Cancel { frame } => {
                    let _ = self.link.commands.send(Command::Cancel(frame));
                }
                Output::Done(outcome) => self.finish(&outcome)?,
            }
        }
        ControlFlow::Continue(())
    }

    fn outgoing(
        &mut self,
        frame: FrameId,
        content: Content,
        time_left: Duration,
        answer_by: Timestamp,
    ) -> Option<Outgoing> {
        let entry = self.frames.get_mut(&frame)?;
        let coded = entry.coded.take()?;
        let bundle = self.head.bundle();
        let decoders = Arc::clone(bundle.decoders());
        let bundle = BoundBundle { digest: bundle.digest(), decoders };
        let outgoing = Outgoing::frame(&bundle, frame, content, &coded, time_left, answer_by);
        entry.bytes = Some(outgoing.bytes().len());
        Some(outgoing)
    }

    /// Reports a frame that has ended.
    fn finish(&mut self, outcome: &FrameOutcome) -> ControlFlow<()> {
        let Some(entry) = self.frames.remove(&outcome.frame) else {
            return ControlFlow::Continue(());
        };
        // A frame without an ordinal takes one that no other will ever have.
        let ordinal = entry.ordinal.unwrap_or(!outcome.frame.0);
        let estimate = self.session.link_estimate();
        let report = entry.into_report(outcome, self.head.bundle(), estimate);
        if let Some(context) = self.traces.and_then(|traces| traces.context(ordinal)) {
            self.telemetry.send_spans(context, outcome, &report);
        }
        self.report(&report)
    }

    fn report(&mut self, report: &FrameReport) -> ControlFlow<()> {
        self.summary.record(report);
        self.telemetry.count_frame(report);
        self.telemetry.show_session(&self.session);
        (self.sink)(report)
    }
}
