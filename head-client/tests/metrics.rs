//! The client's metrics, as Prometheus reads them.

#![cfg(feature = "shell")]

use std::future::pending;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::mpsc;
use std::time::Duration;

use isthmus_fixtures::{ends, tiny};
use isthmus_head_client::ConnectError;
use isthmus_head_client::config::Transport;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

const FRAMES: usize = 6;

async fn get(address: SocketAddr, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    let request = format!("GET {path} HTTP/1.1\r\nHost: device\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut response = String::new();
    stream.read_to_string(&mut response).await.expect("text");
    let (head, body) = response.split_once("\r\n\r\n").expect("a head");
    (head.to_owned(), body.to_owned())
}

/// What Prometheus reads of a client that has answered `FRAMES` frames and waits for the next.
async fn scrape() -> String {
    let (_dir, bundle) = tiny::bundle();
    let server = ends::server(&bundle, Duration::ZERO).await;
    let mut config = ends::config(&server, Transport::Quic);
    config.metrics = "127.0.0.1:0".parse().ok();
    let client = ends::client(config, &bundle).await.expect("connected");
    let address = client.metrics_addr().expect("offered");

    let (camera, source) = mpsc::channel();
    ends::pictures(FRAMES).for_each(|picture| camera.send(picture).expect("open"));
    let answered = Notify::new();
    let mut frames = 0;
    let running = client.run(source.into_iter(), pending(), |_| {
        frames += 1;
        if frames == FRAMES {
            answered.notify_one();
        }
        ControlFlow::Continue(())
    });
    let scraping = async {
        answered.notified().await;
        let (head, text) = get(address, "/metrics").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("text/plain"), "{head}");
        assert!(get(address, "/").await.0.starts_with("HTTP/1.1 404"));
        // The camera is gone, and the client ends.
        drop(camera);
        text
    };
    let (ran, text) = tokio::join!(running, scraping);
    ran.expect("threads");
    text
}

#[tokio::test]
async fn what_happened_is_what_prometheus_reads() {
    let text = scrape().await;
    let answered = r#"{arm="split",split="s8",width="w100",channels="4",bits="6",reason="fixed"}"#;
    for sample in [
        r#"isthmus_client_frames_total{verdict="on_time"} 6"#,
        r#"isthmus_client_frames_total{verdict="dropped"} 0"#,
        &format!("isthmus_client_config_selected_total{answered} 6"),
        r#"isthmus_client_fallback_total{cause="deadline"} 0"#,
        r#"isthmus_client_dropped_total{cause="superseded"} 0"#,
        "isthmus_client_capture_to_output_seconds_count 6",
        r#"isthmus_client_stage_duration_seconds_count{stage="tail"} 6"#,
        "isthmus_client_sent_frames_total 6",
        "isthmus_client_link_up 1",
        r#"isthmus_client_link_changes_total{to="up"} 1"#,
        r#"isthmus_client_link_changes_total{to="down"} 0"#,
    ] {
        assert!(text.lines().any(|line| line == sample), "{sample} is not in\n{text}");
    }
    assert!(
        text.contains(r#"isthmus_client_bandwidth_bits_per_second{kind="goodput"} "#),
        "{text}"
    );
}

#[tokio::test]
async fn the_documentation_lists_the_metrics_that_there_are() {
    let text = scrape().await;
    let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let mut offered: Vec<String> = kinds.map(str::to_owned).collect();
    let page = include_str!("../../docs/device.md");
    let rows = page.lines().filter(|line| line.starts_with("| `isthmus_client_"));
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

#[tokio::test]
async fn a_port_that_is_taken_is_named_before_anything_starts() {
    let (_dir, bundle) = tiny::bundle();
    let server = ends::server(&bundle, Duration::ZERO).await;
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = taken.local_addr().expect("bound");
    let mut config = ends::config(&server, Transport::Quic);
    config.metrics = Some(address);
    let failed = ends::client(config, &bundle).await.err().expect("refused");
    assert!(matches!(&failed, ConnectError::Listen { address: at, .. } if *at == address));
    assert!(failed.to_string().contains("--metrics-port"), "{failed}");
}
