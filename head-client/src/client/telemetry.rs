//! What others can see of a client beside its reports: metrics for Prometheus, spans for a
//! collector.

use std::net::SocketAddr;
use std::sync::Arc;
#[cfg(feature = "otel")]
use std::time::SystemTime;

use isthmus_proto::TraceContext;
use isthmus_telemetry::http::{self, StatusCode};
#[cfg(feature = "otel")]
use isthmus_telemetry::spans::Spans;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::config::ClientConfig;
use crate::metrics::Metrics;
use crate::outcome::FrameOutcome;
use crate::report::FrameReport;
use crate::session::Session;
use crate::transport::{ConnectError, Unconnected};

pub(super) struct Telemetry {
    metrics: Option<(Arc<Metrics>, SocketAddr)>,
    /// Serves the metrics until it is dropped.
    _pages: JoinSet<()>,
    #[cfg(feature = "otel")]
    spans: Option<Spans>,
}

impl Telemetry {
    /// Offers metrics and reaches for the collector, where the configuration says so.
    pub(super) async fn start(config: &ClientConfig) -> Result<Self, ConnectError> {
        let mut pages = JoinSet::new();
        let metrics = match config.metrics {
            None => None,
            Some(address) => {
                let failed = |source| ConnectError::Listen { address, source };
                let listener = TcpListener::bind(address).await.map_err(failed)?;
                let local = listener.local_addr().map_err(failed)?;
                tracing::info!(address = %local, "metrics");
                let metrics = Arc::new(Metrics::new());
                let shown = Arc::clone(&metrics);
                pages.spawn(http::serve(listener, move |path: &str| match path {
                    "/metrics" => shown.page(),
                    _ => http::status(StatusCode::NOT_FOUND),
                }));
                Some((metrics, local))
            }
        };
        Ok(Telemetry {
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

    /// Where Prometheus finds metrics.
    pub(super) fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().map(|(_, address)| *address)
    }

    /// Counts a frame that has ended.
    pub(super) fn count_frame(&self, report: &FrameReport) {
        if let Some((metrics, _)) = &self.metrics {
            metrics.on_frame(report);
        }
    }

    /// Counts an attempt to connect that failed.
    pub(super) fn count_unconnected(&self, cause: Unconnected) {
        if let Some((metrics, _)) = &self.metrics {
            metrics.on_unconnected(cause);
        }
    }

    /// Shows what the session has counted.
    pub(super) fn show_session(&self, session: &Session) {
        if let Some((metrics, _)) = &self.metrics {
            let rate = session.link_estimate().map(|estimate| estimate.rate);
            metrics.on_session(session.counters(), session.link_is_up(), rate);
            #[cfg(feature = "otel")]
            if let Some(spans) = &self.spans {
                metrics.on_spans(spans.dropped());
            }
        }
    }
}

#[cfg(feature = "otel")]
impl Telemetry {
    /// Sends a frame's spans to the collector.
    pub(super) fn send_spans(
        &self,
        context: TraceContext,
        outcome: &FrameOutcome,
        report: &FrameReport,
    ) {
        if let Some(spans) = &self.spans {
            spans.send(super::spans::of_frame(context, outcome, report, SystemTime::now()));
        }
    }

    /// Waits until the collector has what was sent.
    pub(super) async fn close(self) {
        if let Some(spans) = &self.spans {
            spans.close().await;
        }
    }
}

#[cfg(not(feature = "otel"))]
impl Telemetry {
    pub(super) fn send_spans(&self, _: TraceContext, _: &FrameOutcome, _: &FrameReport) {}

    pub(super) async fn close(self) {}
}
