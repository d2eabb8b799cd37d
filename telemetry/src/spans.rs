//! Finished spans on their way to a collector of OpenTelemetry (OTLP over gRPC).
//!
//! Spans are made after the fact, from durations that were measured anyway, and under ids that both
//! ends of a connection derive alike. So no tracer runs beside the frames; what is left is a queue
//! of bounded length and the exporter that empties it. Where the collector is too slow or away,
//! spans are dropped and counted.

use std::env;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanExporter as _, SpanLinks};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};

pub use opentelemetry::Value;

/// Frames whose spans wait for the exporter; those of more are dropped.
const QUEUE: usize = 1024;
/// Frames whose spans one export carries at most.
const BATCH: usize = 256;
/// How long an export waits for more spans after the first.
const BATCH_DELAY: Duration = Duration::from_secs(1);
/// Longest wait for the last export.
const GOODBYE: Duration = Duration::from_secs(2);

/// A finished span.
#[derive(Clone, Debug, PartialEq)]
pub struct Span {
    /// Id of its trace.
    pub trace: [u8; 16],
    /// Its own id, unique in the trace.
    pub id: [u8; 8],
    /// What it is a part of; `None` at the root of the trace.
    pub parent: Option<Parent>,
    /// What it is called.
    pub name: &'static str,
    /// When it began, on this machine's clock.
    pub start: SystemTime,
    /// When it ended, on this machine's clock.
    pub end: SystemTime,
    /// What else is known of it.
    pub attributes: Vec<(&'static str, Value)>,
    /// What went wrong, if something did.
    pub error: Option<String>,
}

/// The span that a span is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parent {
    /// Its id.
    pub id: [u8; 8],
    /// Whether it is another program's.
    pub remote: bool,
}

/// Spans that never reached the collector, by cause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// The queue was full.
    pub queue_full: u64,
    /// The collector could not be reached or would not have them; the log says why.
    pub export_failed: u64,
}

impl Dropped {
    /// Names of the causes, and how often each was one.
    pub fn by_cause(self) -> [(&'static str, u64); 2] {
        [("queue_full", self.queue_full), ("export_failed", self.export_failed)]
    }
}

/// The queue before a collector.
#[derive(Debug)]
pub struct Spans {
    queue: mpsc::Sender<Vec<Span>>,
    counts: Arc<Counts>,
    closing: Arc<Notify>,
    exporter: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Debug, Default)]
struct Counts {
    queue_full: AtomicU64,
    export_failed: AtomicU64,
}

/// Why there is no exporter.
#[derive(Debug, thiserror::Error)]
#[error("--otlp-endpoint looks like http://HOST:4317: {0}")]
pub struct EndpointError(#[from] ExporterBuildError);

/// The collector's URL: `given`, or what OpenTelemetry's own variables say.
pub fn endpoint(given: Option<String>) -> Option<String> {
    let variable = |name| env::var(name).ok().filter(|value| !value.is_empty());
    given
        .or_else(|| variable("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))
        .or_else(|| variable("OTEL_EXPORTER_OTLP_ENDPOINT"))
}

impl Spans {
    /// Starts to export to the collector at `endpoint`, as the program `service` of `version`
    /// (`OTEL_SERVICE_NAME` goes before it; `OTEL_RESOURCE_ATTRIBUTES` and
    /// `OTEL_EXPORTER_OTLP_HEADERS` count, too). It needs a tokio runtime with I/O and time, and
    /// connects when there is something to say.
    pub fn start(
        endpoint: &str,
        service: &'static str,
        version: &'static str,
    ) -> Result<Self, EndpointError> {
        let mut exporter = SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
        let mut resource = Resource::builder();
        if env::var_os("OTEL_SERVICE_NAME").is_none() {
            resource = resource.with_service_name(service);
        }
        let version_of_service = KeyValue::new("service.version", version);
        exporter.set_resource(&resource.with_attribute(version_of_service).build());
        let (queue, frames) = mpsc::channel(QUEUE);
        let (counts, closing) = (Arc::new(Counts::default()), Arc::new(Notify::new()));
        let scope = InstrumentationScope::builder(service).with_version(version).build();
        let exporting = export(exporter, scope, frames, Arc::clone(&counts), Arc::clone(&closing));
        let exporter = Mutex::new(Some(tokio::spawn(exporting)));
        Ok(Spans { queue, counts, closing, exporter })
    }

    /// Takes the spans of one frame, or drops and counts all of them. Never waits.
    pub fn send(&self, spans: Vec<Span>) {
        let count = spans.len() as u64;
        match self.queue.try_send(spans) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Closed(_)) => {
                self.counts.queue_full.fetch_add(count, Ordering::Relaxed);
            }
        }
    }

    /// What was dropped so far.
    pub fn dropped(&self) -> Dropped {
        Dropped {
            queue_full: self.counts.queue_full.load(Ordering::Relaxed),
            export_failed: self.counts.export_failed.load(Ordering::Relaxed),
        }
    }

    /// Exports what is still in the queue, for two seconds at most; later spans are dropped.
    pub async fn close(&self) {
        let exporter = self.exporter.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.closing.notify_one();
        if let Some(exporter) = exporter
            && timeout(GOODBYE, exporter).await.is_err()
        {
            tracing::warn!("the collector did not take the last spans in time");
        }
    }
}

async fn export(
    exporter: SpanExporter,
    scope: InstrumentationScope,
    mut frames: mpsc::Receiver<Vec<Span>>,
    counts: Arc<Counts>,
    closing: Arc<Notify>,
) {
    let mut batch = Vec::with_capacity(BATCH);
    let mut closed = false;
    loop {
        let due = Instant::now() + BATCH_DELAY;
        let mut waits = true;
        while waits && batch.len() < BATCH {
            let room = BATCH - batch.len();
            tokio::select! {
                biased;
                () = closing.notified(), if !closed => {
                    closed = true;
                    frames.close();
                }
                taken = frames.recv_many(&mut batch, room) => waits = taken > 0,
                () = sleep_until(due), if !batch.is_empty() => waits = false,
            }
        }
        if batch.is_empty() {
            return;
        }
        let spans: Vec<_> = batch.drain(..).flatten().map(|span| to_data(span, &scope)).collect();
        let count = spans.len() as u64;
        if let Err(error) = exporter.export(spans).await {
            counts.export_failed.fetch_add(count, Ordering::Relaxed);
            tracing::warn!("{count} spans were not exported: {error}");
        }
    }
}

fn to_data(span: Span, scope: &InstrumentationScope) -> SpanData {
    let Span { trace, id, parent, name, start, end, attributes, error } = span;
    let context = SpanContext::new(
        TraceId::from_bytes(trace),
        SpanId::from_bytes(id),
        TraceFlags::SAMPLED,
        false,
        TraceState::NONE,
    );
    SpanData {
        span_context: context,
        parent_span_id: parent.map_or(SpanId::INVALID, |parent| SpanId::from_bytes(parent.id)),
        parent_span_is_remote: parent.is_some_and(|parent| parent.remote),
        span_kind: SpanKind::Internal,
        name: name.into(),
        start_time: start,
        end_time: end,
        attributes: attributes.into_iter().map(|(key, value)| KeyValue::new(key, value)).collect(),
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: error.map_or(Status::Unset, Status::error),
        instrumentation_scope: scope.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span() -> Span {
        let now = SystemTime::now();
        Span {
            trace: [1; 16],
            id: [2; 8],
            parent: None,
            name: "frame",
            start: now,
            end: now,
            attributes: Vec::new(),
            error: None,
        }
    }

    /// A collector at a port where nobody listens.
    fn away() -> Spans {
        Spans::start("http://127.0.0.1:1", "test", "0").expect("a URL")
    }

    #[tokio::test]
    async fn a_full_queue_drops_and_counts_instead_of_waiting() {
        let spans = away();
        // The exporter has no chance to run before the first `await`.
        (0..QUEUE + 3).for_each(|_| spans.send(vec![span(), span()]));
        assert_eq!(spans.dropped(), Dropped { queue_full: 6, export_failed: 0 });
    }

    #[tokio::test]
    async fn spans_that_the_collector_does_not_take_are_counted() {
        let spans = away();
        spans.send(vec![span(), span(), span()]);
        spans.close().await;
        // The exporter tries again for some seconds.
        while spans.dropped().export_failed == 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(spans.dropped(), Dropped { queue_full: 0, export_failed: 3 });
        spans.send(vec![span()]);
        assert_eq!(spans.dropped().queue_full, 1);
    }

    #[tokio::test]
    async fn an_endpoint_that_is_no_url_is_refused() {
        let error = Spans::start("not a url", "test", "0").expect_err("refused").to_string();
        assert!(error.contains("--otlp-endpoint"), "{error}");
    }
}
