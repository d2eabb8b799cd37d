//! The client: a [session](crate::Session) between a source of pictures, a compute thread and a
//! server.

mod capture;
mod driver;
mod entry;
#[cfg(feature = "otel")]
mod spans;
mod telemetry;
mod worker;

use std::io;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use isthmus_models::{Full, Head};
use isthmus_proto::wire::{BundleRef, Hello};

use crate::config::ClientConfig;
use crate::controller::Controller;
use crate::report::{FrameReport, Summary};
use crate::source::SourceFrame;
use crate::transport::{ConnectError, Dialer, Link};
use driver::Driver;
use telemetry::Telemetry;
use worker::{Networks, Worker};

pub use worker::{Compute, ComputeError, Computed, Here};

/// Why a run could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The system gives no threads.
    #[error("threads cannot be started: {0}")]
    Threads(io::Error),
    /// The source of pictures ended with a panic.
    #[error("the source of pictures failed: {0}")]
    Source(String),
    /// The compute thread does not come back.
    #[error("the head has been at frame {frame} for {after:?}, and will hardly finish")]
    Hangs {
        /// The frame.
        frame: u64,
        /// For how long.
        after: Duration,
    },
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
    telemetry: Telemetry,
}

impl Client {
    /// Offers metrics where the configuration says so, connects to the server, checks that it is
    /// the right one and that it serves the bundle of `head`. A lost connection is made again by
    /// itself. Where that is the first, frames are answered on the device meanwhile, unless the
    /// configuration requires the server: then it is an error.
    pub async fn connect(
        config: ClientConfig,
        head: Arc<Head>,
        controller: Box<dyn Controller>,
    ) -> Result<Client, ConnectError> {
        let bundle = head.bundle();
        let name = bundle.name().to_owned();
        let hello = Hello {
            bundles: vec![BundleRef { name, digest: bundle.digest().0.to_vec() }],
            detail: config.detail.into(),
            min_confidence: config.min_confidence.unwrap_or(0.0),
            ..Hello::default()
        };
        let telemetry = Telemetry::start(&config).await?;
        let servers =
            [&config.server].into_iter().chain(&config.further_servers).cloned().collect();
        let timeout = config.connect_timeout;
        let sampled = config.traces.as_ref().map(|traces| traces.sampled);
        let dialer = Dialer::new(servers, &config.trust, hello, timeout, sampled)?;
        let link = Link::open(dialer, config.require_server).await?;
        let compute = Box::new(Networks::new(Arc::clone(&head), None, &config));
        Ok(Client { config, head, compute, controller, link, telemetry })
    }

    /// Lets the controller answer frames by the full network on the device; without it, such frames
    /// are dropped as ones whose head failed.
    #[must_use]
    pub fn with_full(self, full: Arc<Full>) -> Client {
        let compute = Box::new(Networks::new(Arc::clone(&self.head), Some(full), &self.config));
        Client { compute, ..self }
    }

    /// Has `compute` stand for the head and the codecs, such as to charge another device's time.
    #[must_use]
    pub fn with_compute(self, compute: Box<dyn Compute>) -> Client {
        Client { compute, ..self }
    }

    /// Where Prometheus finds metrics.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.telemetry.metrics_addr()
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
        let Client { config, head, compute, controller, link, telemetry } = self;
        let worker = Worker::start(compute).map_err(RunError::Threads)?;
        let captures = capture::start(source, config.rate).map_err(RunError::Threads)?;
        let driver = Driver::new(config, head, controller, (link, worker, telemetry), sink);
        driver.drive(captures, stop).await
    }
}
