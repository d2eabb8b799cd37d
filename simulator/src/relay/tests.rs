//! Real sockets on the loopback interface.

use std::time::{Duration, Instant};

use isthmus_proto::{Bitrate, DataSize};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::*;
use crate::link::{LinkConfig, Loss};
use crate::profile::RebindingSpec;

const MS: Duration = Duration::from_millis(1);

/// 20 Mbit/s and 10 ms each way.
fn link() -> LinkConfig {
    let rate = Bitrate::from_bps(20_000_000);
    LinkConfig::constant(rate, 10 * MS, DataSize::from_bytes(64 << 10))
}

async fn relay(link: LinkConfig, udp: Option<SocketAddr>, tcp: Option<SocketAddr>) -> Relay {
    let forward = |address: Option<SocketAddr>| {
        address.map(|it| format!("0={it}").parse().expect("a forward")).into_iter().collect()
    };
    let path = PathConfig { uplink: link.clone(), downlink: link, rebindings: Default::default() };
    let config = RelayConfig { path, seed: 1, udp: forward(udp), tcp: forward(tcp) };
    Relay::start(config).await.expect("free ports")
}

fn address(relay: &Relay) -> SocketAddr {
    relay.addresses().next().expect("a proxy").1
}

async fn udp_echo() -> SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let address = socket.local_addr().expect("an address");
    tokio::spawn(async move {
        let mut buffer = [0; 2_000];
        while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            socket.send_to(&buffer[..length], from).await.expect("loopback");
        }
    });
    address
}

async fn tcp_echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = socket.split();
                tokio::io::copy(&mut read, &mut write).await
            });
        }
    });
    address
}

#[tokio::test]
async fn clients_get_their_own_datagrams_back_after_both_delays() {
    let relay = relay(link(), Some(udp_echo().await), None).await;
    let mut clients = Vec::new();
    for text in ["one", "two"] {
        let client = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        client.connect(address(&relay)).await.expect("loopback");
        client.send(text.as_bytes()).await.expect("loopback");
        clients.push((text, Instant::now(), client));
    }
    for (text, sent, client) in &clients {
        let mut buffer = [0; 100];
        let length = timeout(1_000 * MS, client.recv(&mut buffer)).await.expect("in time");
        assert_eq!(&buffer[..length.expect("loopback")], text.as_bytes());
        assert!(sent.elapsed() >= 20 * MS, "{:?}", sent.elapsed());
    }
    let counters = relay.counters();
    assert_eq!(counters.flows["udp-1"].opened, 2);
    let delivered = Tally { packets: 2, bytes: 2 * (28 + 3) };
    assert_eq!(counters.uplink.link.delivered, delivered);
    assert_eq!(counters.downlink.link.delivered, delivered);
}

#[tokio::test]
async fn a_stream_comes_whole_over_a_link_that_loses_packets() {
    let lossy = LinkConfig { loss: Loss::Uniform(0.05), corruption: 0.02, ..link() };
    let relay = relay(lossy, None, Some(tcp_echo().await)).await;
    let sent: Vec<u8> = (0..500_000u32).map(|at| ((at * 31) >> 3) as u8).collect();
    let client = TcpStream::connect(address(&relay)).await.expect("a connection");
    let (mut read, mut write) = client.into_split();
    let bytes = sent.clone();
    tokio::spawn(async move {
        write.write_all(&bytes).await.expect("the relay reads");
        write.shutdown().await.expect("and takes the end");
    });
    let mut got = Vec::new();
    timeout(20_000 * MS, read.read_to_end(&mut got)).await.expect("in time").expect("whole");
    assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
    let Counters { uplink, downlink, .. } = relay.counters();
    for lane in [uplink, downlink] {
        assert!(lane.sent_again.packets > 0, "{lane:?}");
        let LaneCounters { link, inside, .. } = lane;
        let out = [link.delivered, link.dropped, link.lost, inside];
        let packets: u64 = out.iter().map(|tally| tally.packets).sum();
        assert_eq!(link.offered.packets + link.duplicated.packets, packets);
    }
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let taken = StdTcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address");
    let path = PathConfig { uplink: link(), downlink: link(), rebindings: Default::default() };
    let tcp = vec![format!("{address}=127.0.0.1:9").parse().expect("a forward")];
    let config = RelayConfig { path, seed: 1, udp: Vec::new(), tcp };
    let error = Relay::start(config).await.err().expect("in use").to_string();
    assert!(error.starts_with(&format!("tcp-1 cannot listen on {address}: ")), "{error}");
}

/// A request as a client of Toxiproxy's makes it: its status and JSON.
async fn request(api: SocketAddr, line: &str, body: Value) -> (u16, Value) {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let length = body.len();
    let text = format!(
        "{line} HTTP/1.1\r\nHost: api\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    let mut socket = TcpStream::connect(api).await.expect("the API listens");
    socket.write_all(text.as_bytes()).await.expect("it reads");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).await.expect("it answers");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    (status.expect("a status"), serde_json::from_str(body).unwrap_or(Value::Null))
}

#[tokio::test]
async fn a_client_of_toxiproxy_s_changes_the_link() {
    let relay = Arc::new(relay(link(), None, Some(tcp_echo().await)).await);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let api = listener.local_addr().expect("an address");
    tokio::spawn(api::serve(listener, Arc::clone(&relay)));

    let (status, proxies) = request(api, "GET /proxies", Value::Null).await;
    assert_eq!((status, &proxies["tcp-1"]["enabled"]), (200, &json!(true)));
    assert_eq!(proxies["tcp-1"]["listen"], json!(address(&relay)));

    let mut client = TcpStream::connect(address(&relay)).await.expect("a connection");
    let mut round_trip = async || {
        let start = Instant::now();
        client.write_all(b"x").await.expect("the relay reads");
        client.read_exact(&mut [0]).await.expect("and answers");
        start.elapsed()
    };
    round_trip().await;
    assert!(round_trip().await < 150 * MS);
    let latency = json!({ "type": "latency", "attributes": { "latency": 150 } });
    let (status, toxic) = request(api, "POST /proxies/tcp-1/toxics", latency.clone()).await;
    assert_eq!((status, &toxic["name"]), (200, &json!("latency_downstream")));
    assert!(round_trip().await >= 170 * MS);
    assert_eq!(request(api, "POST /proxies/tcp-1/toxics", latency).await.0, 409);
    let one = "/proxies/tcp-1/toxics/latency_downstream";
    let less = json!({ "attributes": { "latency": 0 } });
    assert_eq!(request(api, &format!("PATCH {one}"), less).await.0, 200);
    assert!(round_trip().await < 150 * MS);

    // What an outage holds comes when it is over.
    let outage = json!({ "name": "out", "type": "outage", "stream": "upstream" });
    assert_eq!(request(api, "POST /proxies/tcp-1/toxics", outage).await.0, 200);
    assert!(timeout(100 * MS, round_trip()).await.is_err());
    assert_eq!(request(api, "DELETE /proxies/tcp-1/toxics/out", Value::Null).await.0, 204);
    client.read_exact(&mut [0]).await.expect("the one that was held");

    let down = json!({ "enabled": false });
    assert_eq!(request(api, "POST /proxies/tcp-1", down).await.0, 200);
    assert!(TcpStream::connect(address(&relay)).await.is_err(), "nobody listens");
    assert_eq!(client.read(&mut [0]).await.unwrap_or(0), 0, "and connections are closed");
    assert_eq!(request(api, "POST /reset", Value::Null).await.0, 204);
    TcpStream::connect(address(&relay)).await.expect("it listens again");
    assert_eq!(request(api, "GET /proxies/tcp-1/toxics", Value::Null).await.1, json!([]));

    for (line, body, status, said) in [
        ("GET /proxies/tcp-2", Value::Null, 404, "tcp-2"),
        ("POST /proxies", json!({ "name": "new" }), 501, "command line"),
        ("POST /proxies/tcp-1/toxics", json!({ "type": "slicer" }), 400, "slicer"),
        ("POST /proxies/tcp-1", json!({ "upstream": "a:1" }), 501, "moved"),
        ("GET /metrics", Value::Null, 404, "/metrics"),
    ] {
        let (found, answer) = request(api, line, body).await;
        assert_eq!(found, status, "{line}");
        assert!(answer["error"].as_str().is_some_and(|error| error.contains(said)), "{answer}");
    }
    let (_, stats) = request(api, "GET /stats", Value::Null).await;
    assert!(stats["uplink"]["delivered"]["packets"].as_u64() > Some(0), "{stats}");
}

#[tokio::test]
async fn a_rebound_client_comes_from_another_port_and_is_still_answered() {
    let echo = udp_echo().await;
    let rebindings = RebindingSpec { at_s: vec![0.3], every_s: None };
    let rebindings = rebindings.to_config("rebindings").expect("valid");
    let path = PathConfig { uplink: link(), downlink: link(), rebindings };
    let seen = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let forward = |to: SocketAddr| format!("0={to}").parse().expect("a forward");
    let udp = vec![forward(seen.local_addr().expect("an address")), forward(echo)];
    let config = RelayConfig { path, seed: 1, udp, tcp: Vec::new() };
    let relay = Relay::start(config).await.expect("free ports");
    let proxies: Vec<_> = relay.addresses().map(|it| it.1).collect();
    let client = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
    let mut ports = std::collections::BTreeSet::new();
    let mut buffer = [0; 100];
    for _ in 0..2 {
        client.send_to(b"who", proxies[0]).await.expect("sent");
        let received = timeout(Duration::from_secs(5), seen.recv_from(&mut buffer)).await;
        ports.insert(received.expect("in time").expect("received").1.port());
        client.send_to(b"echo", proxies[1]).await.expect("sent");
        let received = timeout(Duration::from_secs(5), client.recv_from(&mut buffer)).await;
        assert_eq!(received.expect("in time").expect("received").1, proxies[1]);
        tokio::time::sleep(Duration::from_millis(400)).await;
    }
    assert_eq!(ports.len(), 2);
    let flows = relay.counters().flows;
    assert!(flows.values().all(|it| (it.opened, it.rebound) == (1, 1)), "{flows:?}");
}
