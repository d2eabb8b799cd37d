//! Health and metrics over HTTP.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use isthmus_proto::wire::Reason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::device::{LONG, SLOW, Setup, answer, frame, reason, start, underway};

async fn start_with_http(delay: Duration) -> Setup {
    let loopback: Option<SocketAddr> = "127.0.0.1:0".parse().ok();
    start(delay, |config| (config.http, config.metrics) = (loopback, loopback)).await
}

/// Status and body.
async fn get(address: Option<SocketAddr>, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address.expect("offered")).await.expect("a connection");
    let request = format!("GET {path} HTTP/1.1\r\nHost: server\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut response = String::new();
    stream.read_to_string(&mut response).await.expect("text");
    let (head, body) = response.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.expect("a status"), body.to_owned())
}

/// Samples by name with labels.
async fn scrape(setup: &Setup) -> BTreeMap<String, f64> {
    let (status, text) = get(setup.server.metrics_addr(), "/metrics").await;
    assert_eq!(status, 200);
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    samples
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a sample");
            (name.to_owned(), value.parse().expect("a number"))
        })
        .collect()
}

#[tokio::test]
async fn what_happened_is_what_prometheus_reads() {
    let tail = Duration::from_millis(400);
    let setup = start_with_http(tail).await;
    let device = setup.device().await;
    let good = frame(1, LONG, 1);
    answer(&device.ask(&good).await);
    answer(&device.ask(&good).await);
    let late = frame(2, tail / 2, 1);
    answer(&device.ask(&late).await);
    assert_eq!(reason(&device.ask(b"rubbish").await), Reason::Malformed);

    let samples = scrape(&setup).await;
    let sample = |name: &str| *samples.get(name).unwrap_or_else(|| panic!("{name}: {samples:?}"));
    assert_eq!(sample(r#"isthmus_requests_total{code="ok"}"#), 3.0);
    assert_eq!(sample(r#"isthmus_requests_total{code="malformed"}"#), 1.0);
    assert_eq!(sample(r#"isthmus_requests_total{code="overloaded"}"#), 0.0);
    assert_eq!(sample(r#"isthmus_dropped_total{reason="expired"}"#), 0.0);
    assert_eq!(sample(r#"isthmus_deadline_missed_total{stage="tail"}"#), 1.0);
    for stage in ["receive", "queue", "decode", "tail"] {
        let count = format!(r#"isthmus_stage_duration_seconds_count{{stage="{stage}"}}"#);
        assert_eq!(sample(&count), 3.0, "{stage}");
    }
    let took = sample(r#"isthmus_stage_duration_seconds_sum{stage="tail"}"#);
    assert!((3.0 * tail.as_secs_f64()..30.0).contains(&took), "{took} s");
    assert_eq!((sample("isthmus_batch_size_count"), sample("isthmus_batch_size_sum")), (3.0, 3.0));
    let bytes = 2 * good.len() + late.len() + b"rubbish".len();
    assert_eq!(sample(r#"isthmus_payload_bytes_total{direction="received"}"#), bytes as f64);
    assert!(sample(r#"isthmus_payload_bytes_total{direction="sent"}"#) > 4.0 * 10.0);
    assert_eq!(sample("isthmus_quic_rtt_seconds_count"), 4.0);
    assert_eq!(sample(r#"isthmus_connections{transport="quic"}"#), 1.0);
    assert_eq!(sample(r#"isthmus_connections{transport="grpc"}"#), 0.0);
    let build = format!(r#"isthmus_build_info{{version="{}"}}"#, env!("CARGO_PKG_VERSION"));
    assert_eq!(sample(&build), 1.0);
}

#[tokio::test]
async fn a_draining_server_lives_but_is_not_ready() {
    let setup = start_with_http(SLOW).await;
    let device = setup.device().await;
    let http = setup.server.http_addr();
    let (status, metadata) = get(http, "/v2").await;
    assert!(status == 200 && metadata.contains(r#""name":"isthmus-tail-server""#), "{metadata}");
    for path in ["/v2/health/live", "/v2/health/ready", "/v2/models/echo/ready"] {
        assert_eq!(get(http, path).await.0, 200, "{path}");
    }
    assert_eq!(get(http, "/v2/models/none/ready").await.0, 404);

    let (_running, _first) = device.send(&frame(1, LONG, 1)).await;
    underway().await;
    let (_waiting, _second) = device.send(&frame(2, LONG, 1)).await;
    underway().await;
    assert_eq!(scrape(&setup).await.get("isthmus_pending_requests"), Some(&1.0));
    let stopping = tokio::spawn(setup.server.shutdown());
    underway().await;
    assert_eq!(get(http, "/v2/health/live").await.0, 200);
    for path in ["/v2/health/ready", "/v2/models/echo/ready"] {
        assert_eq!(get(http, path).await.0, 503, "{path}");
    }
    stopping.await.expect("it stops");
    let gone = TcpStream::connect(http.expect("offered")).await;
    assert!(gone.is_err(), "the port is still open");
}

#[tokio::test]
async fn the_documentation_lists_the_metrics_that_there_are() {
    let setup = start_with_http(Duration::ZERO).await;
    let (_, text) = get(setup.server.metrics_addr(), "/metrics").await;
    let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let mut offered: Vec<String> = kinds.map(str::to_owned).collect();
    let page = include_str!("../../../docs/server.md");
    let rows = page.lines().filter(|line| line.starts_with("| `isthmus_"));
    let mut told: Vec<String> = rows
        .map(|row| {
            let cells: Vec<_> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
            format!("{} {}", cells[1], cells[2])
        })
        .collect();
    offered.sort();
    told.sort();
    assert_eq!(told, offered);
}
