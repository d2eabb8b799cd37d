//! A running server.

use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

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
use crate::tls::{Certificates, Fingerprint};
use crate::{code, grpc, quic, worker};

/// How often the certificate's files are read again.
const RENEW: Duration = Duration::from_secs(30);
/// How often a certificate that is about to expire is warned of.
const REMIND: Duration = Duration::from_secs(86_400);
/// How long closing connections may take to say goodbye.
const GOODBYE: Duration = Duration::from_secs(1);

/// A running server. It serves until [`shutdown`](Server::shutdown); one that is dropped instead
/// closes its connections without answering what it accepted.
pub struct Server {
    gate: Arc<Gate>,
    certificates: Arc<Certificates>,
    exit_timeout: Duration,
    quic: Option<(Endpoint, SocketAddr)>,
    grpc: Option<(task::JoinHandle<()>, SocketAddr)>,
    http: Http,
    closing: watch::Sender<bool>,
    workers: Vec<JoinHandle<()>>,
    /// Ends frames that are due and looks after the certificate, until it is dropped.
    _timers: JoinSet<()>,
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
        let certificates = Certificates::load(&config.tls)?;
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
                let endpoint = quic::bind(address, &certificates, &gate)?.map_err(failed)?;
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
                Some((grpc::tls(&certificates)?, listener, local))
            }
            None => None,
        };
        // Nothing can fail any more but the threads, so nothing is left running on an error.
        let workers = worker::spawn(&gate, config.workers).map_err(|error| {
            gate.stop_workers();
            StartError::Threads(error)
        })?;
        let mut timers = JoinSet::new();
        timers.spawn({
            let gate = Arc::clone(&gate);
            async move { gate.keep_time().await }
        });
        timers.spawn(look_after(Arc::clone(&certificates)));
        if let Some((endpoint, _)) = &quic {
            tokio::spawn(quic::serve(endpoint.clone(), Arc::clone(&gate)));
        }
        let grpc = grpc.map(|(tls, listener, local)| {
            let serving = grpc::serve(tls, listener, Arc::clone(&gate), closing.subscribe());
            (tokio::spawn(serving), local)
        });
        http.on_serving(&gate, &certificates);
        Ok(Server {
            gate,
            certificates,
            exit_timeout: config.exit_timeout,
            quic,
            grpc,
            http,
            closing,
            workers,
            _timers: timers,
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
    pub fn fingerprint(&self) -> Fingerprint {
        self.certificates.served().fingerprint
    }

    /// Reads the certificate and its key again, as it does by itself every half minute. Connections
    /// that are open keep theirs; where the files are not good, the one before stays.
    pub fn reload(&self) {
        renew(&self.certificates);
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

/// Reads the certificate again every [`RENEW`], and says every [`REMIND`] when it is about to expire.
async fn look_after(certificates: Arc<Certificates>) {
    let mut remind = tokio::time::interval(REMIND);
    let mut check = tokio::time::interval(RENEW);
    loop {
        tokio::select! {
            _ = remind.tick() => {
                if let Some(warning) = certificates.served().warning(SystemTime::now()) {
                    tracing::warn!("{warning}");
                }
            }
            _ = check.tick() => renew(&certificates),
        }
    }
}

fn renew(certificates: &Certificates) {
    match certificates.reload() {
        Ok(false) => {}
        Ok(true) => {
            let served = certificates.served();
            tracing::info!(sha256 = %served.fingerprint, "another certificate is served from now on");
            if let Some(warning) = served.warning(SystemTime::now()) {
                tracing::warn!("{warning}");
            }
        }
        Err(error) => tracing::warn!("the certificate stays as it was: {error}"),
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
