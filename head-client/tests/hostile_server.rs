//! Servers that break the protocol: the exit answers, nothing hangs, memory stays bounded.

#![cfg(feature = "shell")]

use std::future::pending;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use isthmus_fixtures::{ends, tiny};
use isthmus_head_client::config::{ClientConfig, ServerUrl, Transport};
use isthmus_head_client::tls::{Fingerprint, Trust};
use isthmus_head_client::{ConnectError, FrameReport};
use isthmus_proto::ALPN;
use isthmus_proto::framer::write_message;
use isthmus_proto::wire::tail_server::{Tail, TailServer};
use isthmus_proto::wire::{
    Answer, BundleStatus, Feedback, Reply, Score, ToDevice, ToServer, Welcome, reply, to_device,
    to_server,
};
use prost::Message;
use quinn::{Endpoint, ServerConfig};
use rcgen::{CertifiedKey, KeyPair};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{TcpListenerStream, UnboundedReceiverStream};
use tonic::transport::{Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status, Streaming};

/// Serves with `welcome` as the first bytes of the control stream and `reply` to every frame.
fn hostile(welcome: Vec<u8>, reply: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> ClientConfig {
    let (endpoint, fingerprint) = endpoint();
    let address = endpoint.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Some(incoming) = endpoint.accept().await {
            let Ok(connection) = incoming.await else { continue };
            let Ok((mut control, _hello)) = connection.accept_bi().await else { continue };
            let _ = control.write_all(&welcome).await;
            while let Ok((mut send, mut recv)) = connection.accept_bi().await {
                let frame = recv.read_to_end(1 << 20).await.unwrap_or_default();
                let _ = send.write_all(&reply(&frame)).await;
                let _ = send.finish();
            }
        }
    });
    config(Transport::Quic, address, fingerprint)
}

/// Serves over gRPC with `first` as its first message and what `reply` says to every frame.
async fn hostile_grpc(first: ToDevice, reply: Replies) -> ClientConfig {
    let CertifiedKey { cert, signing_key } = certified();
    let identity = Identity::from_pem(cert.pem(), signing_key.serialize_pem());
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    let mut server = Server::builder()
        .tls_config(ServerTlsConfig::new().identity(identity))
        .expect("a certificate and its key");
    let router = server.add_service(TailServer::new(Hostile { first, reply: Arc::new(reply) }));
    tokio::spawn(router.serve_with_incoming(TcpListenerStream::new(listener)));
    config(Transport::Grpc, address, Fingerprint::of(cert.der()))
}

type Replies = Box<dyn Fn(&[u8]) -> Vec<ToDevice> + Send + Sync>;

struct Hostile {
    first: ToDevice,
    reply: Arc<Replies>,
}

#[tonic::async_trait]
impl Tail for Hostile {
    type InferStream = UnboundedReceiverStream<Result<ToDevice, Status>>;

    async fn infer(
        &self,
        request: Request<Streaming<ToServer>>,
    ) -> Result<Response<Self::InferStream>, Status> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let (first, reply) = (self.first.clone(), Arc::clone(&self.reply));
        let mut messages = request.into_inner();
        tokio::spawn(async move {
            let _ = sender.send(Ok(first));
            while let Ok(Some(message)) = messages.message().await {
                let Some(to_server::Message::Frame(frame)) = message.message else { continue };
                reply(&frame).into_iter().for_each(|reply| drop(sender.send(Ok(reply))));
            }
        });
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }
}

fn certified() -> CertifiedKey<KeyPair> {
    rcgen::generate_simple_self_signed(["localhost".into()]).expect("a certificate")
}

fn endpoint() -> (Endpoint, Fingerprint) {
    let own = certified();
    let certificate = CertificateDer::from(own.cert);
    let fingerprint = Fingerprint::of(&certificate);
    let key = PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()).into();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("TLS 1.3")
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .expect("a key");
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let tls = quinn::crypto::rustls::QuicServerConfig::try_from(tls).expect("QUIC");
    let endpoint =
        Endpoint::server(ServerConfig::with_crypto(Arc::new(tls)), ([127, 0, 0, 1], 0).into());
    (endpoint.expect("bound"), fingerprint)
}

fn config(transport: Transport, address: SocketAddr, fingerprint: Fingerprint) -> ClientConfig {
    let host = address.ip().to_string();
    let server = ServerUrl { transport, host, port: address.port() };
    ClientConfig {
        deadline: Duration::from_secs(20),
        connect_timeout: Duration::from_secs(20),
        require_server: true,
        ..ClientConfig::new(server, Trust::Fingerprints(vec![fingerprint]))
    }
}

fn welcome() -> Welcome {
    Welcome {
        protocol: 1,
        server: "hostile".into(),
        bundles: vec![BundleStatus { served: true, reason: String::new() }],
        max_frame_bytes: 1 << 20,
        max_in_flight: 4,
    }
}

fn welcoming(welcome: Welcome) -> ToDevice {
    ToDevice { message: Some(to_device::Message::Welcome(welcome)) }
}

fn replying(reply: Reply) -> ToDevice {
    ToDevice { message: Some(to_device::Message::Reply(reply)) }
}

fn framed(welcome: Welcome) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_message(&mut bytes, &welcoming(welcome));
    bytes
}

fn answer(frame: &[u8], class: u32, probability: f32) -> Reply {
    let id = u64::from(frame[1]) << 8 | u64::from(frame[2]);
    let answer =
        Answer { top: vec![Score { class, probability }], layers_used: 2, ..Answer::default() };
    let feedback = Some(Feedback::default());
    Reply { frame: id, outcome: Some(reply::Outcome::Answer(answer)), feedback, further: vec![] }
}

/// How five frames end when every reply is `reply`.
async fn reasons(reply: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> Vec<String> {
    reasons_with(hostile(framed(welcome()), reply)).await
}

/// The same over gRPC.
async fn grpc_reasons(
    reply: impl Fn(&[u8]) -> Vec<ToDevice> + Send + Sync + 'static,
) -> Vec<String> {
    reasons_with(hostile_grpc(welcoming(welcome()), Box::new(reply)).await).await
}

async fn reasons_with(config: ClientConfig) -> Vec<String> {
    let (_dir, bundle) = tiny::bundle();
    let client = ends::client(config, &bundle).await.expect("connected");
    let mut reasons = Vec::new();
    let sink = |report: &FrameReport| {
        assert!(report.label.is_some() && report.on_time, "{report:?}");
        reasons.push(report.reason.clone());
        ControlFlow::Continue(())
    };
    client.run(ends::pictures(5), pending(), sink).await.expect("threads");
    reasons
}

#[tokio::test]
async fn replies_that_make_no_sense_leave_the_answer_to_the_exit() {
    assert_eq!(reasons(|frame| answer(frame, 3, 0.5).encode_to_vec()).await, ["fixed"; 5]);

    assert_eq!(reasons(|_| b"rubbish".to_vec()).await, ["stream lost"; 5]);
    assert_eq!(reasons(|_| Vec::new()).await, ["stream lost"; 5]);
    assert_eq!(reasons(|_| vec![0; 1 << 20]).await, ["stream lost"; 5]);
    for (class, probability) in [(4, 0.5), (u32::MAX, 0.5), (1, f32::NAN), (1, 7.0)] {
        let reply = move |frame: &[u8]| answer(frame, class, probability).encode_to_vec();
        assert_eq!(reasons(reply).await, ["stream lost"; 5]);
    }
    let other = |frame: &[u8]| Reply { frame: 77, ..answer(frame, 1, 0.5) }.encode_to_vec();
    assert_eq!(reasons(other).await, ["stream lost"; 5]);
}

#[tokio::test]
async fn replies_that_make_no_sense_over_grpc_cost_their_frame_alone() {
    let right = |frame: &[u8]| replying(answer(frame, 3, 0.5));
    assert_eq!(grpc_reasons(move |frame| vec![right(frame)]).await, ["fixed"; 5]);

    for (class, probability) in [(4, 0.5), (u32::MAX, 0.5), (1, f32::NAN), (1, 7.0)] {
        let reply = move |frame: &[u8]| vec![replying(answer(frame, class, probability))];
        assert_eq!(grpc_reasons(reply).await, ["stream lost"; 5]);
    }
    let silent = |frame: &[u8]| Reply { outcome: None, ..answer(frame, 1, 0.5) };
    assert_eq!(grpc_reasons(move |frame| vec![replying(silent(frame))]).await, ["stream lost"; 5]);
    // To a frame that was not sent, and twice to one that was.
    let other = |frame: &[u8]| replying(Reply { frame: 77, ..answer(frame, 1, 0.5) });
    let more = move |frame: &[u8]| vec![other(frame), right(frame), right(frame)];
    assert_eq!(grpc_reasons(more).await, ["fixed"; 5]);
}

#[tokio::test]
async fn messages_that_are_no_replies_end_a_connection_over_grpc() {
    let again = |_: &[u8]| vec![welcoming(welcome())];
    assert_eq!(grpc_reasons(again).await, ["link down"; 5]);
    let empty = |_: &[u8]| vec![ToDevice { message: None }];
    assert_eq!(grpc_reasons(empty).await, ["link down"; 5]);
    let oversized = |frame: &[u8]| {
        let mut reply = answer(frame, 3, 0.5);
        if let Some(reply::Outcome::Answer(answer)) = &mut reply.outcome {
            answer.logits = vec![0.0; 1 << 21];
        }
        vec![replying(reply)]
    };
    assert_eq!(grpc_reasons(oversized).await, ["link down"; 5]);
}

#[tokio::test]
async fn first_messages_that_break_the_protocol_over_grpc_are_refused() {
    let (_dir, bundle) = tiny::bundle();
    let cases = [
        welcoming(Welcome { protocol: 2, ..welcome() }),
        welcoming(Welcome { bundles: Vec::new(), ..welcome() }),
        replying(Reply::default()),
        ToDevice { message: None },
    ];
    for first in cases {
        let config = hostile_grpc(first, Box::new(|_| Vec::new())).await;
        let error = ends::client(config, &bundle).await.err();
        assert!(matches!(error, Some(ConnectError::Protocol { .. })), "{error:?}");
    }
}

#[tokio::test]
async fn welcomes_that_break_the_protocol_are_refused() {
    let (_dir, bundle) = tiny::bundle();
    let mut oversized = vec![0x80, 0xff, 0xff, 0xff];
    oversized.extend([0; 100]);
    let cases = [
        framed(Welcome { protocol: 2, ..welcome() }),
        framed(Welcome { bundles: Vec::new(), ..welcome() }),
        b"\x05abcde".to_vec(),
        oversized,
    ];
    for bytes in cases {
        let error = ends::client(hostile(bytes, |_| Vec::new()), &bundle).await.err();
        assert!(matches!(error, Some(ConnectError::Protocol { .. })), "{error:?}");
    }
}

#[tokio::test]
async fn a_server_that_stays_silent_is_unreachable() {
    let (_dir, bundle) = tiny::bundle();
    let mut config = hostile(Vec::new(), |_| Vec::new());
    config.connect_timeout = Duration::from_millis(300);
    let error = ends::client(config, &bundle).await.err();
    assert!(matches!(error, Some(ConnectError::Unreachable { .. })), "{error:?}");
}
