//! A path is measured as it is.

use std::net::Ipv4Addr;
use std::time::Duration;

use isthmus_head_client::ConnectError;
use isthmus_head_client::config::{ServerUrl, Transport};
use isthmus_head_client::tls::Trust;
use isthmus_proto::{Bitrate, DataSize};
use isthmus_simulator::relay::{Forward, Relay, RelayConfig};
use isthmus_simulator::survey::{Workload, measure};
use isthmus_simulator::{LinkConfig, PathConfig, Rebindings};
use isthmus_tail_server::{Registry, Server, ServerConfig, TlsConfig};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_echoes_what_the_link_lets_through() {
    let config = ServerConfig::new("unused".into(), TlsConfig::InMemory);
    let config = ServerConfig { grpc: None, ..config };
    let server = Server::start_with(config, Registry::new(Vec::new())).await.expect("it starts");
    let upstream = server.quic_addr().expect("QUIC").to_string();
    let queue = DataSize::from_bytes(65_536);
    let way = |mbps: u64| {
        let rate = Bitrate::from_bps(mbps * 1_000_000);
        LinkConfig::constant(rate, Duration::from_millis(10), queue)
    };
    let path = PathConfig { uplink: way(2), downlink: way(10), rebindings: Rebindings::default() };
    let udp = vec![Forward { listen: (Ipv4Addr::LOCALHOST, 0).into(), upstream }];
    let relay = RelayConfig { path, seed: 1, udp, tcp: Vec::new() };
    let relay = Relay::start(relay).await.expect("it starts");
    let (_, address) = relay.addresses().next().expect("a proxy");
    let (host, port) = (address.ip().to_string(), address.port());
    let url = ServerUrl { transport: Transport::Quic, host, port };
    let trust =
        Trust::Fingerprints(vec![server.fingerprint().to_string().parse().expect("hexadecimal")]);

    let light = measure(url.clone(), &trust, Workload::Light, SECOND, SECOND, |_| {}).await;
    let light = light.expect("connected");
    assert_eq!((light.sent, light.timed_out, light.lost), (10, 0, 0));
    assert!(
        light.round_trip(0.1) >= Some(Duration::from_millis(20)),
        "{:?}",
        light.round_trip(0.1)
    );

    let heavy = measure(url.clone(), &trust, Workload::Heavy, SECOND, SECOND, |_| {}).await;
    let rate = heavy.expect("connected").rate(0.5).as_bps();
    // How near it comes depends on who else wants the processor.
    assert!((200_000..2_200_000).contains(&rate), "{rate}");

    let other = Trust::Fingerprints(vec!["00".repeat(32).parse().expect("hexadecimal")]);
    let refused = measure(url, &other, Workload::Light, SECOND, SECOND, |_| {}).await;
    assert!(matches!(refused, Err(ConnectError::Identity { .. })), "{refused:?}");
}
