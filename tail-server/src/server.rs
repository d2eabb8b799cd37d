//! A running server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use isthmus_models::Engine;
use isthmus_telemetry::spans::Spans;
use quinn::Endpoint;
use tokio::sync::watch;
use tokio::task::{self, JoinSet};
use tokio::time::timeout;

use crate::batcher::BatcherConfig;
use crate::config::ServerConfig;
use crate::counters::Counters;
use crate::exchange::ExchangeConfig;
use crate::gate::Gate;
use crate::http::Http;
use crate::receiver::ReceiverConfig;
use crate::registry::Registry;
use crate::start_error::StartError;
use crate::tls::{Fingerprint, Identity};
use crate::{code, grpc, quic, worker};

/// How long closing connections may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// A running server. It serves until [`shutdown`](Server::shutdown); one that is dropped instead
/// closes its connections without answering what it accepted.
pub struct Server {
    gate: Arc<Gate>,
    fingerprint: Fingerprint,
    exit_timeout: Duration,
    quic: Option<(Endpoint, SocketAddr)>,
    grpc: Option<(task::JoinHandle<()>, SocketAddr)>,
    http: Http,
    closing: watch::Sender<bool>,
    workers: Vec<JoinHandle<()>>,
    /// Ends frames that are due, until it is dropped.
    _timer: JoinSet<()>,
}

impl Server {
    /// Verifies and prepares the bundles of the model repository, and starts to serve them. It
    /// needs a tokio runtime with I/O and time.
    pub async fn start(config: ServerConfig) -> Result<Server, StartError> {
        config.validate()?;
        // Before all else, so that whoever waits for the bundles sees that the server lives.
        let http = Http::start(&config).await?;
        let repository = config.model_repository.clone();
        let engine: Arc<dyn Engine> = Arc::from(config.engine.open(&config.ort_providers)?);
        let open = move || Registry::open(&repository, &engine);
        let registry = match task::spawn_blocking(open).await {
            Ok(registry) => registry?,
            Err(panicked) => std::panic::resume_unwind(panicked.into_panic()),
        };
        Server::serve(config, registry, http).await
    }

    /// Starts to serve networks that are already prepared; the model repository is not looked at.
    pub async fn start_with(
        config: ServerConfig,
        registry: Registry,
    ) -> Result<Server, StartError> {
        config.validate()?;
        let http = Http::start(&config).await?;
        Server::serve(config, registry, http).await
    }

    async fn serve(
        config: ServerConfig,
        registry: Registry,
        http: Http,
    ) -> Result<Server, StartError> {
        let identity = Identity::load(&config.tls)?;
        let exchange = ExchangeConfig {
            receiver: ReceiverConfig {
                max_frame_bytes: config.max_frame_bytes,
                max_stay: config.max_stay,
            },
            batcher: BatcherConfig {
                workers: config.workers,
                max_batch: config.max_batch,
                queue: config.queue,
            },
            max_in_flight: config.max_in_flight,
            max_connections: config.max_connections,
            max_connections_per_address: config.max_connections_per_address,
            max_buffered_bytes: config.max_buffered_bytes,
        };
        let spans = match &config.otlp_endpoint {
            None => None,
            Some(endpoint) => {
                Some(Spans::start(endpoint, "isthmus-tail-server", env!("CARGO_PKG_VERSION"))?)
            }
        };
        let gate = Arc::new(Gate::new(exchange, registry, spans));
        let closing = watch::Sender::new(false);

        let bind = |transport, option, address| {
            move |source| StartError::Bind { transport, option, address, source }
        };
        let quic = match config.quic {
            Some(address) => {
                let failed = bind("QUIC", "--quic-port", address);
                let endpoint = quic::bind(address, &identity, &gate)?.map_err(failed)?;
                let local = endpoint.local_addr().map_err(failed)?;
                Some((endpoint, local))
            }
            None => None,
        };
        let grpc = match config.grpc {
            Some(address) => {
                let failed = bind("gRPC", "--grpc-port", address);
                let listener = grpc::bind(address).await.map_err(failed)?;
                let local = listener.local_addr().map_err(failed)?;
                Some((grpc::tls(&identity)?, listener, local))
            }
            None => None,
        };
        // Nothing can fail any more but the threads, so nothing is left running on an error.
        let workers = worker::spawn(&gate, config.workers).map_err(|error| {
            gate.stop_workers();
            StartError::Threads(error)
        })?;
        let mut timer = JoinSet::new();
        timer.spawn({
            let gate = Arc::clone(&gate);
            async move { gate.keep_time().await }
        });
        if let Some((endpoint, _)) = &quic {
            tokio::spawn(quic::serve(endpoint.clone(), Arc::clone(&gate)));
        }
        let grpc = grpc.map(|(tls, listener, local)| {
            let serving = grpc::serve(tls, listener, Arc::clone(&gate), closing.subscribe());
            (tokio::spawn(serving), local)
        });
        http.on_serving(&gate);
        Ok(Server {
            gate,
            fingerprint: identity.fingerprint,
            exit_timeout: config.exit_timeout,
            quic,
            grpc,
            http,
            closing,
            workers,
            _timer: timer,
        })
    }

    /// Stops gracefully: the server lives but is not ready any more, new frames are refused as
    /// draining, accepted ones are answered, then connections are closed. What is not answered
    /// within the configured exit timeout is dropped. Returns the final counts of all frames.
    pub async fn shutdown(mut self) -> Counters {
        self.gate.drain();
        if let Some((endpoint, _)) = &self.quic {
            endpoint.set_server_config(None);
        }
        if timeout(self.exit_timeout, self.gate.drained()).await.is_err() {
            tracing::warn!("some accepted frames were not answered in time");
        }
        self.closing.send_replace(true);
        if let Some((endpoint, _)) = self.quic.take() {
            endpoint.close(code::DRAINING.into(), b"the server is shutting down");
            let _ = timeout(GOODBYE, endpoint.wait_idle()).await;
        }
        if let Some((mut serving, _)) = self.grpc.take()
            && timeout(GOODBYE, &mut serving).await.is_err()
        {
            serving.abort();
        }
        self.gate.stop_workers();
        let workers = std::mem::take(&mut self.workers);
        let join = move || workers.into_iter().try_for_each(JoinHandle::join);
        if !matches!(task::spawn_blocking(join).await, Ok(Ok(()))) {
            tracing::error!("a worker thread had ended with a panic");
        }
        if let Some(spans) = &self.gate.spans {
            spans.close().await;
        }
        self.counters()
    }

    /// Where QUIC listens.
    pub fn quic_addr(&self) -> Option<SocketAddr> {
        self.quic.as_ref().map(|(_, address)| *address)
    }

    /// Where gRPC listens.
    pub fn grpc_addr(&self) -> Option<SocketAddr> {
        self.grpc.as_ref().map(|(_, address)| *address)
    }

    /// Where health is served over HTTP.
    pub fn http_addr(&self) -> Option<SocketAddr> {
        self.http.health_addr()
    }

    /// Where Prometheus finds metrics.
    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.http.metrics_addr()
    }

    /// The fingerprint of the server's certificate.
    pub fn fingerprint(&self) -> &Fingerprint {
        &self.fingerprint
    }

    /// The networks that are served.
    pub fn registry(&self) -> &Registry {
        &self.gate.registry
    }

    /// Frames so far, by their final outcome.
    pub fn counters(&self) -> Counters {
        self.gate.counters()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.gate.drain();
        self.closing.send_replace(true);
        if let Some((endpoint, _)) = &self.quic {
            endpoint.close(code::DRAINING.into(), b"the server is gone");
        }
        self.gate.stop_workers();
    }
}
