//! Health and metrics over plain HTTP/1.1, for orchestrators and Prometheus.
//!
//! Paths and meanings are those of KServe's protocol, as Triton serves them. Pages are told from
//! the first moment on, while bundles are still being loaded.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::config::ServerConfig;
use crate::gate::Gate;
use crate::metrics;
use crate::server::StartError;

/// Server metadata; no extension of the protocol is spoken here.
const METADATA: &str = concat!(
    r#"{"name":"isthmus-tail-server","version":""#,
    env!("CARGO_PKG_VERSION"),
    r#"","extensions":[]}"#,
);
/// One request has to be over within this time: these ports share file descriptors with devices.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Connections of one port at a time; more are closed at once.
const MAX_CONNECTIONS: usize = 64;
/// Pause after a connection could not be accepted, usually for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
        let status = Arc::new(Status { strict, gate: OnceLock::new() });
        let mut servers = JoinSet::new();
        let mut health = None;
        if let Some(address) = config.http {
            let (listener, local) = bind("health over HTTP", "--http-port", address).await?;
            servers.spawn(serve(listener, Arc::clone(&status), Status::health));
            health = Some(local);
        }
        let mut metrics = None;
        if let Some(address) = config.metrics {
            let (listener, local) = bind("metrics over HTTP", "--metrics-port", address).await?;
            servers.spawn(serve(listener, Arc::clone(&status), Status::metrics));
            metrics = Some(local);
        }
        Ok(Http { status, health, metrics, _servers: servers })
    }

    /// The server serves; from now on the pages tell of `gate`.
    pub(crate) fn on_serving(&self, gate: &Arc<Gate>) {
        self.status.gate.get_or_init(|| Arc::clone(gate));
    }

    pub(crate) fn health_addr(&self) -> Option<SocketAddr> {
        self.health
    }

    pub(crate) fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics
    }
}

/// What the pages tell of.
struct Status {
    strict: bool,
    /// Not there until the server serves.
    gate: OnceLock<Arc<Gate>>,
}

impl Status {
    fn health(&self, path: &str) -> Response<String> {
        let model = || path.strip_prefix("/v2/models/")?.strip_suffix("/ready");
        match path {
            "/v2" | "/v2/" => page(StatusCode::OK, "application/json", METADATA.to_owned()),
            "/v2/health/live" => status(StatusCode::OK),
            "/v2/health/ready" => status(serving_if(self.is_ready())),
            _ => status(model().map_or(StatusCode::NOT_FOUND, |name| self.model(name))),
        }
    }

    fn metrics(&self, path: &str) -> Response<String> {
        match (path, self.gate.get()) {
            ("/metrics", Some(gate)) => match metrics::text(gate) {
                Ok(text) => page(StatusCode::OK, metrics::CONTENT_TYPE, text),
                Err(_) => status(StatusCode::INTERNAL_SERVER_ERROR),
            },
            ("/metrics", None) => status(StatusCode::SERVICE_UNAVAILABLE),
            _ => status(StatusCode::NOT_FOUND),
        }
    }

    fn is_ready(&self) -> bool {
        self.gate.get().map_or(!self.strict, |gate| !gate.is_draining())
    }

    fn model(&self, name: &str) -> StatusCode {
        let Some(gate) = self.gate.get() else { return StatusCode::SERVICE_UNAVAILABLE };
        match gate.registry.models().iter().any(|model| model.name() == name) {
            true => serving_if(!gate.is_draining()),
            false => StatusCode::NOT_FOUND,
        }
    }
}

fn serving_if(yes: bool) -> StatusCode {
    if yes { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

fn status(code: StatusCode) -> Response<String> {
    let mut response = Response::default();
    *response.status_mut() = code;
    response
}

fn page(code: StatusCode, content_type: &'static str, text: String) -> Response<String> {
    let mut response = status(code);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    *response.body_mut() = text;
    response
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

/// Answers each request by its path, until it is dropped.
async fn serve(listener: TcpListener, status: Arc<Status>, pages: Pages) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_CONNECTIONS {
            continue;
        }
        let status = Arc::clone(&status);
        let service = service_fn(move |request: Request<Incoming>| {
            let response = answer(&status, pages, request.method(), request.uri().path());
            async move { Ok::<_, Infallible>(response) }
        });
        // One request each, so that the time limit is the request's.
        let serving =
            http1::Builder::new().keep_alive(false).serve_connection(TokioIo::new(stream), service);
        connections.spawn(async move {
            // Fails when the peer speaks no HTTP or is gone.
            let _ = timeout(REQUEST_TIMEOUT, serving).await;
        });
    }
}

type Pages = fn(&Status, &str) -> Response<String>;

fn answer(status: &Status, pages: Pages, method: &Method, path: &str) -> Response<String> {
    match *method {
        Method::GET | Method::HEAD => pages(status, path),
        _ => self::status(StatusCode::METHOD_NOT_ALLOWED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn health(strict: bool, path: &str) -> u16 {
        let status = Status { strict, gate: OnceLock::new() };
        answer(&status, Status::health, &Method::GET, path).status().as_u16()
    }

    #[test]
    fn while_bundles_load_the_server_lives_and_strictness_decides_on_readiness() {
        assert_eq!(health(true, "/v2/health/live"), 200);
        assert_eq!(health(true, "/v2/health/ready"), 503);
        assert_eq!(health(false, "/v2/health/ready"), 200);
        assert_eq!(health(false, "/v2/models/street/ready"), 503);
        let status = Status { strict: false, gate: OnceLock::new() };
        assert_eq!(status.metrics("/metrics").status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[test]
    fn what_is_not_served_is_refused() {
        for path in ["/", "/v2/health", "/v2/models//ready/x", "/metrics"] {
            assert_eq!(health(true, path), 404, "{path}");
        }
        let status = Status { strict: true, gate: OnceLock::new() };
        let post = answer(&status, Status::health, &Method::POST, "/v2/health/live");
        assert_eq!(post.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
