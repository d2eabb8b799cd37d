//! Health and metrics over plain HTTP/1.1, for orchestrators and Prometheus.
//!
//! Paths and meanings are those of KServe's protocol, as Triton serves them. Pages are served
//! from the first moment on, while bundles are still being loaded.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use isthmus_telemetry::http::{self, Response, StatusCode, status};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::config::ServerConfig;
use crate::gate::Gate;
use crate::scrape;
use crate::start_error::StartError;
use crate::tls::Certificates;

/// Server metadata; no extension of the protocol is spoken here.
const METADATA: &str = concat!(
    r#"{"name":"isthmus-tail-server","version":""#,
    env!("CARGO_PKG_VERSION"),
    r#"","extensions":[]}"#,
);
/// The HTTP ports; they are closed when it is dropped.
pub(crate) struct Http {
    status: Arc<Status>,
    health: Option<SocketAddr>,
    metrics: Option<SocketAddr>,
    _servers: JoinSet<()>,
}

impl Http {
    /// Binds the ports that `config` names, and answers on them.
    pub(crate) async fn start(config: &ServerConfig) -> Result<Self, StartError> {
        let strict = config.strict_readiness;
        let status = Arc::new(Status { strict, serving: OnceLock::new() });
        let mut servers = JoinSet::new();
        let mut health = None;
        if let Some(address) = config.http {
            let (listener, local) = bind("health over HTTP", "--http-port", address).await?;
            let status = Arc::clone(&status);
            servers.spawn(http::serve(listener, move |path: &str| status.health(path)));
            health = Some(local);
        }
        let mut metrics = None;
        if let Some(address) = config.metrics {
            let (listener, local) = bind("metrics over HTTP", "--metrics-port", address).await?;
            let status = Arc::clone(&status);
            servers.spawn(http::serve(listener, move |path: &str| status.metrics(path)));
            metrics = Some(local);
        }
        Ok(Http { status, health, metrics, _servers: servers })
    }

    /// The server serves; from now on the pages report on `gate`.
    pub(crate) fn on_serving(&self, gate: &Arc<Gate>, certificates: &Arc<Certificates>) {
        self.status.serving.get_or_init(|| (Arc::clone(gate), Arc::clone(certificates)));
    }

    pub(crate) fn health_addr(&self) -> Option<SocketAddr> {
        self.health
    }

    pub(crate) fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics
    }
}

/// What the pages report on.
struct Status {
    strict: bool,
    /// Not there until the server serves.
    serving: OnceLock<(Arc<Gate>, Arc<Certificates>)>,
}

impl Status {
    fn health(&self, path: &str) -> Response<String> {
        let model = || path.strip_prefix("/v2/models/")?.strip_suffix("/ready");
        match path {
            "/v2" | "/v2/" => http::page("application/json", METADATA.to_owned()),
            "/v2/health/live" => status(StatusCode::OK),
            "/v2/health/ready" => self.ready(),
            _ => status(model().map_or(StatusCode::NOT_FOUND, |name| self.model(name))),
        }
    }

    fn metrics(&self, path: &str) -> Response<String> {
        match (path, self.serving.get()) {
            ("/metrics", Some((gate, certificates))) => scrape::page(gate, certificates),
            ("/metrics", None) => status(StatusCode::SERVICE_UNAVAILABLE),
            _ => status(StatusCode::NOT_FOUND),
        }
    }

    /// Whether frames are served, and in words what is in the way, or will be.
    fn ready(&self) -> Response<String> {
        let Some((gate, certificates)) = self.serving.get() else {
            return status(serving_if(!self.strict));
        };
        let (ready, detail) = match () {
            () if gate.is_draining() => (false, Some("the server is shutting down".to_owned())),
            () if gate.hangs() => (false, Some("a worker does not finish its batch".to_owned())),
            () => (true, certificates.served().warning(SystemTime::now())),
        };
        let mut response = http::page("text/plain", detail.unwrap_or_default());
        *response.status_mut() = serving_if(ready);
        response
    }

    fn model(&self, name: &str) -> StatusCode {
        let Some((gate, _)) = self.serving.get() else { return StatusCode::SERVICE_UNAVAILABLE };
        match gate.registry.models().iter().any(|model| model.name() == name) {
            true => serving_if(!gate.is_draining()),
            false => StatusCode::NOT_FOUND,
        }
    }
}

fn serving_if(yes: bool) -> StatusCode {
    if yes { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

async fn bind(
    transport: &'static str,
    option: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |source| StartError::Bind { transport, option, address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let local = listener.local_addr().map_err(failed)?;
    Ok((listener, local))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(strict: bool, path: &str) -> u16 {
        let status = Status { strict, serving: OnceLock::new() };
        status.health(path).status().as_u16()
    }

    #[test]
    fn while_bundles_load_the_server_lives_and_strictness_decides_on_readiness() {
        assert_eq!(health(true, "/v2/health/live"), 200);
        assert_eq!(health(true, "/v2/health/ready"), 503);
        assert_eq!(health(false, "/v2/health/ready"), 200);
        assert_eq!(health(false, "/v2/models/street/ready"), 503);
        let status = Status { strict: false, serving: OnceLock::new() };
        assert_eq!(status.metrics("/metrics").status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn what_is_not_served_is_refused() {
        for path in ["/", "/v2/health", "/v2/models//ready/x", "/metrics"] {
            assert_eq!(health(true, path), 404, "{path}");
        }
    }
}
