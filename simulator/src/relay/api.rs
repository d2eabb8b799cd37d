//! Changing a running relay over HTTP, in the form of Toxiproxy's API.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;

use super::{ChangeError, ProxyState, Relay, Toxic, ToxicError};

/// Answers requests on `listener` until dropped.
pub async fn serve(listener: TcpListener, relay: Arc<Relay>) -> std::io::Result<()> {
    axum::serve(listener, routes(relay)).await
}

fn routes(relay: Arc<Relay>) -> Router {
    let toxic = get(show_toxic).post(update_toxic).patch(update_toxic).delete(remove_toxic);
    let proxy = get(show_proxy).post(update_proxy).patch(update_proxy).delete(fixed);
    Router::new()
        .route("/version", get(version))
        .route("/stats", get(stats))
        .route("/reset", post(reset))
        .route("/proxies", get(list_proxies).post(fixed))
        .route("/populate", post(fixed))
        .route("/proxies/{proxy}", proxy)
        .route("/proxies/{proxy}/toxics", get(list_toxics).post(add_toxic))
        .route("/proxies/{proxy}/toxics/{toxic}", toxic)
        .fallback(unknown)
        .layer(middleware::from_fn(no_browsers))
        .with_state(relay)
}

type Shared = State<Arc<Relay>>;
type Answer = Result<Response, Refusal>;

/// Why a request is not carried out.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error("bad request body: {0}")]
    Body(serde_json::Error),
    #[error("proxies are named on the command line and cannot be created, moved or deleted")]
    Fixed,
    #[error("unknown endpoint {0}")]
    Unknown(String),
    #[error("requests from web browsers (User-Agent Mozilla/…) are refused")]
    Browser,
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = match &self {
            Refusal::Change(ChangeError::UnknownProxy(_) | ChangeError::UnknownToxic(_))
            | Refusal::Unknown(_) => StatusCode::NOT_FOUND,
            Refusal::Change(ChangeError::ToxicExists(_)) => StatusCode::CONFLICT,
            Refusal::Change(ChangeError::Listen(_)) => StatusCode::INTERNAL_SERVER_ERROR,
            Refusal::Change(ChangeError::Toxic(_)) | Refusal::Body(_) => StatusCode::BAD_REQUEST,
            Refusal::Fixed => StatusCode::NOT_IMPLEMENTED,
            Refusal::Browser => StatusCode::FORBIDDEN,
        };
        let body = json!({ "error": self.to_string(), "status": status.as_u16() });
        (status, answer(&body)).into_response()
    }
}

impl From<ToxicError> for Refusal {
    fn from(error: ToxicError) -> Self {
        Refusal::Change(error.into())
    }
}

#[derive(Deserialize)]
struct ProxyRequest {
    enabled: Option<bool>,
    listen: Option<SocketAddr>,
    upstream: Option<String>,
}

async fn version() -> Response {
    answer(&json!({ "version": env!("CARGO_PKG_VERSION") }))
}

async fn stats(State(relay): Shared) -> Response {
    answer(&relay.counters())
}

async fn reset(State(relay): Shared) -> Answer {
    relay.reset().await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn list_proxies(State(relay): Shared) -> Answer {
    let mut proxies: BTreeMap<String, ProxyState> = BTreeMap::new();
    for (name, _) in relay.addresses() {
        proxies.insert(name.to_owned(), relay.proxy(name).await?);
    }
    Ok(answer(&proxies))
}

async fn show_proxy(State(relay): Shared, Path(proxy): Path<String>) -> Answer {
    Ok(answer(&relay.proxy(&proxy).await?))
}

async fn update_proxy(State(relay): Shared, Path(proxy): Path<String>, body: Bytes) -> Answer {
    let state = relay.proxy(&proxy).await?;
    let request: ProxyRequest = serde_json::from_slice(&body).map_err(Refusal::Body)?;
    let moved = request.listen.is_some_and(|listen| listen != state.listen)
        || request.upstream.is_some_and(|upstream| upstream != state.upstream);
    if moved {
        return Err(Refusal::Fixed);
    }
    if let Some(enabled) = request.enabled {
        relay.set_enabled(&proxy, enabled).await?;
    }
    Ok(answer(&relay.proxy(&proxy).await?))
}

async fn list_toxics(State(relay): Shared, Path(proxy): Path<String>) -> Answer {
    Ok(answer(&relay.proxy(&proxy).await?.toxics))
}

async fn add_toxic(State(relay): Shared, Path(proxy): Path<String>, body: Bytes) -> Answer {
    let toxic = Toxic::parse(&body)?;
    relay.add_toxic(&proxy, toxic.clone())?;
    Ok(answer(&toxic))
}

async fn show_toxic(State(relay): Shared, Path((proxy, name)): Path<(String, String)>) -> Answer {
    let toxics = relay.proxy(&proxy).await?.toxics;
    let toxic = toxics.iter().find(|toxic| toxic.name == name);
    Ok(answer(toxic.ok_or(ChangeError::UnknownToxic(name))?))
}

async fn update_toxic(
    State(relay): Shared,
    Path((proxy, name)): Path<(String, String)>,
    body: Bytes,
) -> Answer {
    Ok(answer(&relay.update_toxic(&proxy, &name, &body)?))
}

async fn remove_toxic(State(relay): Shared, Path((proxy, name)): Path<(String, String)>) -> Answer {
    relay.remove_toxic(&proxy, &name)?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn fixed() -> Refusal {
    Refusal::Fixed
}

async fn unknown(request: Request) -> Refusal {
    Refusal::Unknown(format!("{} {}", request.method(), request.uri().path()))
}

/// A page that someone visits could otherwise reach what listens on their own machine.
async fn no_browsers(headers: HeaderMap, request: Request, next: Next) -> Response {
    let agent = headers.get(header::USER_AGENT).map(|agent| agent.as_bytes());
    match agent.is_some_and(|agent| agent.starts_with(b"Mozilla/")) {
        true => Refusal::Browser.into_response(),
        false => next.run(request).await,
    }
}

fn answer(value: &impl Serialize) -> Response {
    match serde_json::to_vec(value) {
        Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
