//! Pages over plain HTTP/1.1, for orchestrators and Prometheus.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

pub use hyper::{Response, StatusCode};

/// One request has to be over within this time: the ports share file descriptors with frames.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// And its head has to be there within this time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(2);
/// Connections of one port at a time; with one more the oldest is closed, because a request that is
/// one takes no longer than a page.
const MAX_CONNECTIONS: usize = 64;
/// Pause after a connection could not be accepted, usually for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers requests with what `pages` has for their path, until it is dropped.
pub async fn serve<P>(listener: TcpListener, pages: P)
where
    P: Fn(&str) -> Response<String> + Clone + Send + 'static,
{
    let mut connections = JoinSet::new();
    let mut oldest_first = VecDeque::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(ACCEPT_PAUSE).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        oldest_first.retain(|connection: &AbortHandle| !connection.is_finished());
        if oldest_first.len() >= MAX_CONNECTIONS
            && let Some(oldest) = oldest_first.pop_front()
        {
            oldest.abort();
        }
        let pages = pages.clone();
        let service = service_fn(move |request: Request<Incoming>| {
            let response = answer(request.method(), request.uri().path(), &pages);
            async move { Ok::<_, Infallible>(response) }
        });
        // One request each, so that the time limit is the request's.
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        oldest_first.push_back(connections.spawn(async move {
            // Fails when the peer speaks no HTTP or is gone.
            let _ = timeout(REQUEST_TIMEOUT, serving).await;
        }));
    }
}

/// An empty page.
pub fn status(code: StatusCode) -> Response<String> {
    let mut response = Response::default();
    *response.status_mut() = code;
    response
}

/// A page with a text.
pub fn page(content_type: &'static str, text: String) -> Response<String> {
    let mut response = Response::new(text);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn answer(
    method: &Method,
    path: &str,
    pages: &impl Fn(&str) -> Response<String>,
) -> Response<String> {
    match *method {
        Method::GET | Method::HEAD => pages(path),
        _ => status(StatusCode::METHOD_NOT_ALLOWED),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    #[test]
    fn pages_are_read_and_nothing_else() {
        let pages = |path: &str| page("text/plain", path.to_owned());
        assert_eq!(answer(&Method::GET, "/x", &pages).into_body(), "/x");
        let post = answer(&Method::POST, "/x", &pages);
        assert_eq!(post.status(), StatusCode::METHOD_NOT_ALLOWED);
    }

    #[tokio::test]
    async fn requests_that_do_not_end_make_room_for_one_that_does() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let serving =
            tokio::spawn(serve(listener, |_: &str| page("text/plain", "well".to_owned())));
        let mut halves = Vec::new();
        for _ in 0..2 * MAX_CONNECTIONS {
            let mut half = TcpStream::connect(address).await.expect("accepted");
            half.write_all(b"GET / HT").await.expect("sent");
            halves.push(half);
        }
        let mut whole = TcpStream::connect(address).await.expect("accepted");
        whole.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("sent");
        let mut said = String::new();
        whole.read_to_string(&mut said).await.expect("an answer");
        assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("well"), "{said}");
        serving.abort();
    }
}
