//! More connections than there are places for.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use isthmus_proto::wire::reply;
use isthmus_tail_server::code;
use quinn::ConnectionError;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tonic::Code;

use crate::device::{DIGEST, Device, LONG, Setup, answer, frame, hello, start, underway};
use crate::grpc::{Call, connect};

/// What a QUIC server says with the code of a refused connection.
const CONNECTION_REFUSED: u64 = 2;

#[tokio::test]
async fn a_connection_too_many_is_refused_until_one_leaves() {
    let setup = start(Duration::ZERO, |config| config.max_connections = 2).await;
    let device = setup.device().await;
    let mut call = Call::greeted(&setup).await;

    let address = setup.server.quic_addr().expect("QUIC is offered");
    match setup.try_connect(address).await.1 {
        Err(ConnectionError::ConnectionClosed(close)) => {
            assert_eq!(u64::from(close.error_code), CONNECTION_REFUSED, "{close}");
        }
        other => panic!("not refused but {other:?}"),
    }
    let refused = Call::try_open(connect(&setup).await).await.err().expect("no third call");
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::ResourceExhausted, "too many connections")
    );

    answer(&device.ask(&frame(1, LONG, 1)).await);
    call.send_frame(frame(1, LONG, 1)).await;
    answer(&call.reply().await);

    device.connection.close(code::DONE.into(), b"");
    let later = eventually(&setup, address).await;
    answer(&later.ask(&frame(2, LONG, 1)).await);
}

#[tokio::test]
async fn when_places_become_few_a_device_proves_its_address_before_it_takes_one() {
    let setup = start(Duration::ZERO, |config| config.max_connections = 4).await;
    let watched = Watched::before(setup.server.quic_addr().expect("QUIC is offered")).await;
    let mut devices = Vec::new();
    for retries in [0, 0, 1, 2] {
        let (endpoint, connection) = setup.try_connect(watched.address).await;
        let connection = connection.expect("a connection");
        let device = Device::greet(endpoint, connection, hello(DIGEST)).await;
        answer(&device.ask(&frame(1, LONG, 1)).await);
        devices.push(device);
        assert_eq!(watched.retries.load(Ordering::Relaxed), retries, "{} devices", devices.len());
    }
}

/// Connects as soon as there is a place again.
async fn eventually(setup: &Setup, address: SocketAddr) -> Device {
    for _ in 0..500 {
        if let (endpoint, Ok(connection)) = setup.try_connect(address).await {
            return Device::greet(endpoint, connection, hello(DIGEST)).await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("no place became free");
}

/// Forwards packets between devices and a server, and counts the server's Retry packets.
struct Watched {
    address: SocketAddr,
    retries: Arc<AtomicUsize>,
}

impl Watched {
    async fn before(server: SocketAddr) -> Watched {
        let front = Arc::new(bind().await);
        let address = front.local_addr().expect("bound");
        let watched = Watched { address, retries: Arc::default() };
        let retries = Arc::clone(&watched.retries);
        tokio::spawn(async move {
            let mut paths = BTreeMap::new();
            let mut packet = [0; 2048];
            while let Ok((length, device)) = front.recv_from(&mut packet).await {
                let path: &mut Arc<UdpSocket> = match paths.entry(device) {
                    Entry::Occupied(known) => known.into_mut(),
                    Entry::Vacant(new) => {
                        let back = Arc::new(bind().await);
                        back.connect(server).await.expect("an address");
                        let sockets = (Arc::clone(&back), Arc::clone(&front));
                        tokio::spawn(return_packets(sockets, device, Arc::clone(&retries)));
                        new.insert(back)
                    }
                };
                let _ = path.send(&packet[..length]).await;
            }
        });
        watched
    }
}

async fn return_packets(
    (back, front): (Arc<UdpSocket>, Arc<UdpSocket>),
    device: SocketAddr,
    retries: Arc<AtomicUsize>,
) {
    let mut packet = [0; 2048];
    while let Ok(length) = back.recv(&mut packet).await {
        // A long header of type 3.
        if packet[0] & 0xb0 == 0xb0 {
            retries.fetch_add(1, Ordering::Relaxed);
        }
        let _ = front.send_to(&packet[..length], device).await;
    }
}

async fn bind() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").await.expect("a socket")
}

#[tokio::test]
async fn devices_that_flood_the_queue_leave_another_its_answers() {
    let delay = Duration::from_millis(10);
    let setup = start(delay, |config| (config.workers, config.queue) = (1, 16)).await;
    let mut floods = JoinSet::new();
    for _ in 0..4 {
        let device = Arc::new(setup.device().await);
        // Patient frames fill the queue, urgent ones would go before all others in it.
        for place in 0..24u16 {
            let device = Arc::clone(&device);
            let time_left = if place % 2 == 0 { LONG } else { Duration::from_millis(40) };
            floods.spawn(async move {
                loop {
                    device.ask(&frame(place, time_left, 1)).await;
                }
            });
        }
    }
    underway().await;
    let camera = setup.device().await;
    let mut answers = 0;
    for number in 0..40 {
        let reply = camera.ask(&frame(number, Duration::from_millis(300), 1)).await;
        answers += usize::from(matches!(reply.outcome, Some(reply::Outcome::Answer(_))));
    }
    floods.abort_all();
    assert!(answers >= 38, "{answers} of 40");
}

#[tokio::test]
async fn connections_without_a_hello_make_room_for_a_device() {
    let setup = start(Duration::ZERO, |config| config.max_connections = 2).await;
    let address = setup.server.quic_addr().expect("QUIC is offered");
    let (_first, silent) = setup.connect().await;
    let _second = setup.connect().await;
    assert!(setup.try_connect(address).await.1.is_err(), "there is no third place yet");
    let device = eventually(&setup, address).await;
    answer(&device.ask(&frame(1, LONG, 1)).await);
    let ConnectionError::ApplicationClosed(close) = silent.closed().await else {
        panic!("not evicted")
    };
    assert_eq!(u64::from(close.error_code), u64::from(code::EVICTED));
}
