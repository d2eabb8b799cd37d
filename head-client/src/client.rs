//! Drives a session with a real link, a compute thread and a source.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::pin::pin;
use std::sync::Arc;
use std::thread;
#[cfg(feature = "otel")]
use std::time::SystemTime;
use std::time::{Duration, Instant};

use isthmus_models::{Full, Head, Picture};
use isthmus_proto::wire::{BundleRef, Hello};
use isthmus_proto::{
    Coded, Content, FrameId, OperatingPoint, PROTOCOL_VERSION, Timestamp, TraceContext, TraceIds,
};
use isthmus_telemetry::http::{self, StatusCode};
#[cfg(feature = "otel")]
use isthmus_telemetry::spans::Spans;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::config::ClientConfig;
use crate::controller::{Controller, Run};
use crate::exchange::{BoundBundle, Checked, Limits, Outgoing};
use crate::metrics::Metrics;
use crate::outcome::{FrameOutcome, Verdict};
use crate::report::{FrameReport, Stages, Summary, SummaryBuilder};
use crate::session::{HeadOutcome, Input, Output, Pace, Session, SessionConfig};
use crate::source::{NoPicture, SourceFrame};
use crate::transport::{Command, ConnectError, Dialer, Event, Link};
use crate::worker::{Bench, Compute, Computed, Done, Job, Worker};

/// How long before its deadline a frame is settled. Timers fire up to a millisecond late, and on a
/// busy machine a thread waits for its core.
const GUARD: Duration = Duration::from_millis(5);

/// Why a run could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The system gives no threads.
    #[error("threads cannot be started: {0}")]
    Threads(io::Error),
}

/// A device's side of the work, connected to a server.
///
/// It needs a tokio runtime with I/O and time; one thread is enough, and the fastest.
pub struct Client {
    config: ClientConfig,
    head: Arc<Head>,
    compute: Box<dyn Compute>,
    controller: Box<dyn Controller>,
    link: Link,
    watch: Watch,
}

/// What of a client others can see, beside its reports.
struct Watch {
    metrics: Option<(Arc<Metrics>, SocketAddr)>,
    /// Serves the metrics until it is dropped.
    _pages: JoinSet<()>,
    #[cfg(feature = "otel")]
    spans: Option<Spans>,
}

impl Client {
    /// Offers metrics where the configuration says so, connects to the server, checks that it is
    /// the right one and that it serves the bundle of `head`. Afterwards a lost connection is made
    /// again by itself.
    pub async fn connect(
        config: ClientConfig,
        head: Arc<Head>,
        controller: Box<dyn Controller>,
    ) -> Result<Client, ConnectError> {
        let bundle = head.bundle();
        let name = bundle.name().to_owned();
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            bundles: vec![BundleRef { name, digest: bundle.digest().0.to_vec() }],
            detail: config.detail.into(),
            // Drawn anew for every connection.
            tracing: None,
        };
        let watch = Watch::start(&config).await?;
        let (server, timeout) = (config.server.clone(), config.connect_timeout);
        let sampled = config.traces.as_ref().map(|traces| traces.sampled);
        let dialer = Dialer::new(server, &config.trust, hello, timeout, sampled)?;
        let link = Link::connect(dialer).await?;
        let compute = Box::new(Bench::new(Arc::clone(&head), None));
        Ok(Client { config, head, compute, controller, link, watch })
    }

    /// Lets the controller answer frames by the uncut network on the device; without it, such frames
    /// are dropped as ones whose head failed.
    #[must_use]
    pub fn with_full(self, full: Arc<Full>) -> Client {
        let compute = Box::new(Bench::new(Arc::clone(&self.head), Some(full)));
        Client { compute, ..self }
    }

    /// Has `compute` stand for the head and the codecs, such as to charge another device's time.
    #[must_use]
    pub fn with_compute(self, compute: Box<dyn Compute>) -> Client {
        Client { compute, ..self }
    }

    /// Where Prometheus finds metrics.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.watch.metrics.as_ref().map(|(_, address)| *address)
    }

    /// Answers every frame of `source`, until it ends, `stop` comes or `sink` breaks.
    ///
    /// `sink` gets each frame's report as soon as there is one; while it runs, nothing else does.
    /// After `stop` the frames that are open still get their reports.
    pub async fn run(
        self,
        source: impl Iterator<Item = SourceFrame> + Send + 'static,
        stop: impl Future<Output = ()>,
        sink: impl FnMut(&FrameReport) -> ControlFlow<()>,
    ) -> Result<Summary, RunError> {
        let Client { config, head, compute, controller, link, watch } = self;
        let worker = Worker::start(compute).map_err(RunError::Threads)?;
        let captures = capture(source, config.rate).map_err(RunError::Threads)?;
        let ClientConfig { deadline, in_flight, pace, .. } = config;
        let session = SessionConfig { deadline, guard: GUARD, in_flight, pace };
        let zero = Instant::now();
        let run = Driver {
            session: Session::new(session, controller),
            config,
            head,
            link,
            watch,
            traces: None,
            worker,
            frames: BTreeMap::new(),
            summary: SummaryBuilder::default(),
            sink,
            zero,
            now: Timestamp::ZERO,
        };
        Ok(run.drive(captures, stop).await)
    }
}

impl Watch {
    async fn start(config: &ClientConfig) -> Result<Self, ConnectError> {
        let mut pages = JoinSet::new();
        let metrics = match config.metrics {
            None => None,
            Some(address) => {
                let failed = |source| ConnectError::Listen { address, source };
                let listener = TcpListener::bind(address).await.map_err(failed)?;
                let local = listener.local_addr().map_err(failed)?;
                tracing::info!(address = %local, "metrics");
                let metrics = Arc::new(Metrics::new());
                let told = Arc::clone(&metrics);
                pages.spawn(http::serve(listener, move |path: &str| match path {
                    "/metrics" => told.page(),
                    _ => http::status(StatusCode::NOT_FOUND),
                }));
                Some((metrics, local))
            }
        };
        Ok(Watch {
            metrics,
            _pages: pages,
            #[cfg(feature = "otel")]
            spans: match &config.traces {
                None => None,
                Some(traces) => {
                    let (service, version) = ("isthmus-head-client", env!("CARGO_PKG_VERSION"));
                    Some(Spans::start(&traces.endpoint, service, version)?)
                }
            },
        })
    }
}

#[cfg(feature = "otel")]
impl Watch {
    fn send_spans(&self, context: TraceContext, outcome: &FrameOutcome, report: &FrameReport) {
        if let Some(spans) = &self.spans {
            spans.send(crate::spans::of_frame(context, outcome, report, SystemTime::now()));
        }
    }
}

#[cfg(not(feature = "otel"))]
impl Watch {
    fn send_spans(&self, _: TraceContext, _: &FrameOutcome, _: &FrameReport) {}
}

/// A frame in memory.
struct Capture {
    frame: FrameId,
    at: Instant,
    content: SourceFrame,
}

/// What is kept of a frame until it ends.
struct Entry {
    source: String,
    truth: Option<String>,
    picture: Option<Picture>,
    coded: Option<Coded>,
    bytes: Option<usize>,
    logits: Vec<f32>,
    /// The frame's ordinal on its connection, where that is traced.
    ordinal: Option<u64>,
}

struct Driver<F> {
    session: Session,
    config: ClientConfig,
    head: Arc<Head>,
    link: Link,
    watch: Watch,
    /// Names for the frames of the connection.
    traces: Option<TraceIds>,
    worker: Worker,
    frames: BTreeMap<FrameId, Entry>,
    summary: SummaryBuilder,
    sink: F,
    zero: Instant,
    now: Timestamp,
}

impl<F: FnMut(&FrameReport) -> ControlFlow<()>> Driver<F> {
    async fn drive(
        mut self,
        mut captures: mpsc::Receiver<Capture>,
        stop: impl Future<Output = ()>,
    ) -> Summary {
        let mut stop = pin!(stop);
        let mut timer = pin!(tokio::time::sleep(Duration::ZERO));
        let mut more = true;
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
                    Some(capture) => if self.on_capture(capture).is_break() { break },
                },
            }
        }
        let elapsed = self.zero.elapsed();
        self.link.close().await;
        #[cfg(feature = "otel")]
        if let Some(spans) = &self.watch.spans {
            spans.close().await;
        }
        self.summary.finish(self.session.counters(), elapsed)
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
                    truth,
                    reason: "bad picture".into(),
                    error: Some(error),
                    ..FrameReport::default()
                });
            }
        };
        let (coded, bytes, logits, ordinal) = (None, None, Vec::new(), None);
        let entry = Entry { source, truth, picture, coded, bytes, logits, ordinal };
        self.frames.insert(frame, entry);
        let at = if self.config.pace == Pace::Live { at } else { Instant::now() };
        self.handle_at(at, input);
        ControlFlow::Continue(())
    }

    fn on_head(&mut self, Done { frame, computed }: Done) {
        match computed {
            Ok(Computed { exit, coded, head, encode }) => {
                let layer_ends = coded.layer_ends.clone();
                if let Some(entry) = self.frames.get_mut(&frame) {
                    entry.coded = Some(coded);
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
            Event::Lost(frame, reason) => {
                tracing::warn!(%frame, reason, "no reply");
                Input::Lost { frame }
            }
            Event::Reply(frame, Checked::Echo(feedback)) => Input::Echo { frame, feedback },
            Event::Reply(frame, Checked::Reply { reply, logits, detail }) => {
                if let Err((reason, _)) = reply.outcome {
                    tracing::debug!(%frame, ?reason, detail, "refused");
                }
                if let Some(entry) = self.frames.get_mut(&frame) {
                    entry.logits = logits;
                }
                Input::Reply { frame, reply }
            }
        };
        self.handle(input);
        self.tell_session();
    }

    /// Carries out what the session orders.
    fn carry_out(&mut self) -> ControlFlow<()> {
        while let Some(output) = self.session.poll_output() {
            match output {
                Output::RunHead { frame, run } => {
                    let entry = self.frames.get_mut(&frame);
                    let picture = entry.and_then(|entry| entry.picture.take());
                    let job = picture.map(|picture| Job { frame, picture, run });
                    // The thread lives as long as this does, unless a head panicked.
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
                Output::Done(outcome) => {
                    if let Some(entry) = self.frames.remove(&outcome.frame) {
                        let ordinal = entry.ordinal;
                        let report = self.to_report(&outcome, entry);
                        self.tell_spans(&outcome, ordinal, &report);
                        self.report(&report)?;
                    }
                }
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
        let bundle = BoundBundle { digest: bundle.digest(), labels: bundle.labels().len() };
        let outgoing = Outgoing::frame(&bundle, frame, content, &coded, time_left, answer_by);
        entry.bytes = Some(outgoing.bytes().len());
        Some(outgoing)
    }

    fn to_report(&self, outcome: &FrameOutcome, entry: Entry) -> FrameReport {
        let bundle = self.head.bundle();
        let mut report = FrameReport {
            frame: outcome.frame.0,
            source: entry.source,
            truth: entry.truth,
            layers_used: outcome.layers_used,
            bytes: entry.bytes,
            on_time: outcome.on_time,
            logits: entry.logits,
            estimate: self.session.link_estimate(),
            ..FrameReport::default()
        };
        if let Some((split, width)) = outcome.run.and_then(Run::head) {
            let point = OperatingPoint { split, width, layers: 1, bits: 1 };
            let name = bundle.describe_point(point);
            (report.split, report.width) = (Some(name.split), Some(name.width));
        }
        match (outcome.sent, outcome.run) {
            (Some(Content::Features(point)), _) => {
                let name = bundle.describe_point(point);
                (report.channels, report.bits) = (Some(name.channels), Some(name.bits));
            }
            (Some(Content::Image(_)), Some(Run::Image(run))) => {
                report.image = Some(run.image.to_string());
            }
            _ => {}
        }
        match outcome.verdict {
            Verdict::Dropped(cause) => report.reason = cause.to_string(),
            Verdict::Answered { arm, answer, reason } => {
                let elapsed = outcome.finished.saturating_since(outcome.captured);
                report.label = bundle.labels().get(answer.class).cloned();
                report.confidence = Some(answer.confidence);
                report.arm = Some(arm.name());
                report.capture_to_output_ms = Some(millis(elapsed));
                report.reason = reason.to_string();
                report.device_wait = outcome.timing.wait;
                let timing = outcome.timing;
                report.stages = Stages {
                    head: timing.head.map(millis),
                    encode: timing.encode.map(millis),
                    network: timing.network.map(millis),
                    receive_span: timing.receive_span.map(millis),
                    queue: Some(millis(timing.wait + timing.queue.unwrap_or_default())),
                    decode: timing.decode.map(millis),
                    tail: timing.tail.map(millis),
                };
            }
        }
        report
    }

    fn report(&mut self, report: &FrameReport) -> ControlFlow<()> {
        self.summary.record(report);
        if let Some((metrics, _)) = &self.watch.metrics {
            metrics.on_frame(report);
        }
        self.tell_session();
        (self.sink)(report)
    }

    fn tell_session(&self) {
        if let Some((metrics, _)) = &self.watch.metrics {
            let session = &self.session;
            let rate = session.link_estimate().map(|estimate| estimate.rate);
            metrics.on_session(session.counters(), session.link_is_up(), rate);
            #[cfg(feature = "otel")]
            if let Some(spans) = &self.watch.spans {
                metrics.on_spans(spans.dropped());
            }
        }
    }

    /// Sends a sampled frame's spans.
    fn tell_spans(&self, outcome: &FrameOutcome, ordinal: Option<u64>, report: &FrameReport) {
        // A frame without a place on the connection takes one that none will ever have.
        let ordinal = ordinal.unwrap_or(!outcome.frame.0);
        if let Some(context) = self.traces.and_then(|traces| traces.context(ordinal)) {
            self.watch.send_spans(context, outcome, report);
        }
    }
}

/// Starts a thread that reads `source`. It ends with the source or with the receiver, and reads at
/// most two pictures ahead.
fn capture(
    source: impl Iterator<Item = SourceFrame> + Send + 'static,
    rate: Option<f64>,
) -> io::Result<mpsc::Receiver<Capture>> {
    let (sender, receiver) = mpsc::channel(1);
    thread::Builder::new().name("capture".into()).spawn(move || {
        let start = Instant::now();
        for (number, content) in (0u64..).zip(source) {
            if let Some(rate) = rate {
                let due = start + Duration::from_secs_f64(number as f64 / rate);
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            let capture = Capture { frame: FrameId(number), at: Instant::now(), content };
            if sender.blocking_send(capture).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}

fn millis(span: Duration) -> f64 {
    span.as_micros() as f64 / 1e3
}
