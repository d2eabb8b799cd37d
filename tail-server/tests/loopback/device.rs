//! A network that is quick to make, a server for it, and a device that can misbehave.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use isthmus_models::{
    ImageEncoder, ImageSpec, InputSpec, Outputs, Picture, PictureError, TailItem, decode_image,
};
use isthmus_proto::framer::write_message;
use isthmus_proto::packet::VERSION;
use isthmus_proto::wire::{
    Answer, BundleRef, Detail, Hello, Reason, Reply, ToDevice, ToServer, Welcome, reply, to_device,
    to_server,
};
use isthmus_proto::{
    ALPN, BundleDigest, Coded, Envelope, Framer, ImageFormat, MAX_CONTROL_BYTES, OperatingPoint,
    PROTOCOL_VERSION, write_image_packet, write_packet, write_padding,
};
use isthmus_tail_server::model::{FullNetwork, Model, ModelError};
use isthmus_tail_server::{Counters, Registry, Server, ServerConfig, TlsConfig};
use prost::Message;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, RecvStream, SendStream};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tempfile::TempDir;

pub const DIGEST: BundleDigest = BundleDigest([5; 32]);
pub const POINT: OperatingPoint = OperatingPoint { split: 0, width: 0, layers: 3, bits: 8 };
pub const LAYER_BYTES: usize = 4;
/// Most pixels of a compressed picture.
pub const MAX_PIXELS: u64 = 64 * 64;
/// A stream with this first byte makes the tail panic.
pub const PANIC: u8 = 0xee;
/// A stream with this first byte cannot be decoded.
pub const UNDECODABLE: u8 = 0xdd;
/// More time than any test takes.
pub const LONG: Duration = Duration::from_secs(30);

/// How long a slow tail takes: whatever is done while it runs is done well before it ends.
pub const SLOW: Duration = Duration::from_millis(1_500);
/// Within this time, what was sent is where it belongs: with a worker, or in the queue.
pub const UNDERWAY: Duration = Duration::from_millis(200);

/// Waits until what was sent is where it belongs.
pub async fn underway() {
    tokio::time::sleep(UNDERWAY).await;
}

/// A network whose latents are the stream's bytes and whose logits are its latents.
pub struct Echo {
    /// How long the tail takes, whatever the batch.
    pub delay: Duration,
}

impl Model for Echo {
    fn name(&self) -> &str {
        "echo"
    }

    fn digest(&self) -> BundleDigest {
        DIGEST
    }

    fn max_stream_bytes(&self, point: OperatingPoint) -> Option<usize> {
        let exists = OperatingPoint { layers: POINT.layers, ..point } == POINT;
        (exists && point.layers <= POINT.layers)
            .then_some(usize::from(point.layers) * LAYER_BYTES * 2)
    }

    fn decode(
        &self,
        _: OperatingPoint,
        stream: &[u8],
        layers: usize,
    ) -> Result<Vec<f32>, ModelError> {
        assert_eq!(stream.len(), layers * LAYER_BYTES);
        if stream.first() == Some(&UNDECODABLE) {
            return Err(ModelError::new("undecodable"));
        }
        let mut latents: Vec<f32> = stream.iter().map(|&byte| byte.into()).collect();
        latents.resize(usize::from(POINT.layers) * LAYER_BYTES, 0.0);
        Ok(latents)
    }

    fn infer(&self, batch: &[TailItem<'_>]) -> Result<Vec<Outputs>, ModelError> {
        std::thread::sleep(self.delay);
        assert!(batch.iter().all(|item| item.latents[0] != f32::from(PANIC)), "asked to panic");
        Ok(batch.iter().map(|item| vec![item.latents.to_vec()]).collect())
    }

    fn full_network(&self) -> Option<&dyn FullNetwork> {
        Some(self)
    }
}

/// Its logits are the first pixels of the picture.
impl FullNetwork for Echo {
    fn decode(&self, format: ImageFormat, file: &[u8]) -> Result<Vec<f32>, PictureError> {
        let picture = decode_image(format, file, MAX_PIXELS)?;
        Ok(picture.rgb()[..12].iter().map(|&level| level.into()).collect())
    }

    fn infer(&self, batch: &[&[f32]]) -> Result<Vec<Outputs>, ModelError> {
        std::thread::sleep(self.delay);
        Ok(batch.iter().map(|input| vec![input.to_vec()]).collect())
    }
}

/// A white picture of `side` pixels, as a file.
pub fn picture(format: ImageFormat, side: u32) -> Vec<u8> {
    let input = InputSpec::new(side, side);
    let white = Picture::new(side, side, vec![255; (3 * side * side) as usize]).expect("pixels");
    let spec = ImageSpec { format, side, quality: 50 };
    ImageEncoder::new(spec, &input).encode(&white).expect("encodes")
}

/// The wire form of a frame with a compressed picture.
pub fn image_frame(id: u16, format: ImageFormat, file: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Envelope { frame: id, time_left: LONG, probe: false }.write(&mut bytes);
    write_image_packet(&mut bytes, 0, &DIGEST, format, file);
    bytes
}

/// The wire form of a probe.
pub fn probe(id: u16, padding: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    Envelope { frame: id, time_left: LONG, probe: true }.write(&mut bytes);
    write_padding(&mut bytes, padding);
    bytes
}

/// Whether the reply is a probe's.
pub fn is_echo(reply: &Reply) -> bool {
    matches!(reply.outcome, Some(reply::Outcome::Echo(_)))
}

/// A server and the folder of its certificate.
pub struct Setup {
    pub server: Server,
    dir: TempDir,
}

pub async fn start(delay: Duration, tune: impl FnOnce(&mut ServerConfig)) -> Setup {
    start_with(Registry::new(vec![Arc::new(Echo { delay })]), tune).await
}

pub async fn start_with(registry: Registry, tune: impl FnOnce(&mut ServerConfig)) -> Setup {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let tls = TlsConfig::SelfSigned { dir: dir.path().into() };
    let mut config = ServerConfig::new(PathBuf::new(), tls);
    config.workers = 1;
    tune(&mut config);
    let server = Server::start_with(config, registry).await.expect("the server starts");
    Setup { server, dir }
}

impl Setup {
    /// The server's certificate (PEM).
    pub fn certificate(&self) -> String {
        let path = self.dir.path().join("certificate.pem");
        std::fs::read_to_string(path).expect("the server has written its certificate")
    }

    /// A connection without a hello.
    pub async fn connect(&self) -> (Endpoint, Connection) {
        let address = self.server.quic_addr().expect("QUIC is offered");
        let (endpoint, connection) = self.try_connect(address).await;
        (endpoint, connection.expect("a connection"))
    }

    /// A connection, if there is one, to the server or to what stands at `address` before it.
    pub async fn try_connect(
        &self,
        address: SocketAddr,
    ) -> (Endpoint, Result<Connection, ConnectionError>) {
        let pem = self.certificate();
        let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
        let mut roots = RootCertStore::empty();
        roots.add(certificate).expect("a usable certificate");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut crypto = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        crypto.alpn_protocols = vec![ALPN.to_vec()];
        let crypto = QuicClientConfig::try_from(crypto).expect("a QUIC configuration");
        let config = ClientConfig::new(Arc::new(crypto));
        let endpoint = Endpoint::client("127.0.0.1:0".parse().expect("an address"));
        let endpoint = endpoint.expect("a socket");
        let connecting = endpoint.connect_with(config, address, "localhost");
        let connection = connecting.expect("a configuration").await;
        (endpoint, connection)
    }

    /// A connection that is ready for frames of [`Echo`].
    pub async fn device(&self) -> Device {
        self.device_for(hello(DIGEST)).await
    }

    /// A connection that is ready for frames.
    pub async fn device_for(&self, hello: Hello) -> Device {
        let (endpoint, connection) = self.connect().await;
        Device::greet(endpoint, connection, hello).await
    }

    /// Waits until every frame has its verdict.
    pub async fn settled(&self) -> Counters {
        for _ in 0..500 {
            let counters = self.server.counters();
            if counters.unfinished() == 0 {
                return counters;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("frames without a verdict: {:?}", self.server.counters());
    }
}

/// A device that said hello over QUIC.
pub struct Device {
    pub connection: Connection,
    pub welcome: Welcome,
    _endpoint: Endpoint,
    _control: (SendStream, RecvStream),
}

impl Device {
    /// Says hello on a connection.
    pub async fn greet(endpoint: Endpoint, connection: Connection, hello: Hello) -> Device {
        let (mut send, mut recv) = connection.open_bi().await.expect("a stream");
        let mut bytes = Vec::new();
        write_message(&mut bytes, &to_server(to_server::Message::Hello(hello)));
        send.write_all(&bytes).await.expect("written");
        let welcome = read_welcome(&mut recv).await;
        Device { connection, welcome, _endpoint: endpoint, _control: (send, recv) }
    }

    /// Opens a stream, and sends `bytes` on it.
    pub async fn send(&self, bytes: &[u8]) -> (SendStream, RecvStream) {
        let (mut send, recv) = self.connection.open_bi().await.expect("a stream");
        send.write_all(bytes).await.expect("written");
        (send, recv)
    }

    /// Sends a whole frame and waits for its reply.
    pub async fn ask(&self, bytes: &[u8]) -> Reply {
        let (mut send, mut recv) = self.send(bytes).await;
        // The server may have stopped a frame that it refuses.
        let _ = send.finish();
        read_reply(&mut recv).await
    }
}

pub async fn read_reply(recv: &mut RecvStream) -> Reply {
    let bytes = recv.read_to_end(1 << 20).await.expect("a reply");
    Reply::decode(&bytes[..]).expect("a well-formed reply")
}

async fn read_welcome(recv: &mut RecvStream) -> Welcome {
    let mut framer = Framer::new(MAX_CONTROL_BYTES);
    loop {
        let chunk = recv.read_chunk(1 << 16, true).await.expect("open").expect("not ended");
        framer.push(&chunk.bytes);
        if let Some(message) = framer.next_message().expect("well formed") {
            match message {
                ToDevice { message: Some(to_device::Message::Welcome(welcome)) } => return welcome,
                other => panic!("no welcome but {other:?}"),
            }
        }
    }
}

pub fn to_server(message: to_server::Message) -> ToServer {
    ToServer { message: Some(message) }
}

pub fn hello(digest: BundleDigest) -> Hello {
    let bundle = |digest: [u8; 32]| BundleRef { name: "test".into(), digest: digest.to_vec() };
    Hello {
        protocol: PROTOCOL_VERSION,
        // The second one is served nowhere.
        bundles: vec![bundle(digest.0), bundle([0; 32])],
        detail: Detail::Logits.into(),
        ..Hello::default()
    }
}

/// The wire form of a frame whose layers consist of `first`, and then of 1, 2, 3, …
pub fn frame(id: u16, time_left: Duration, first: u8) -> Vec<u8> {
    frame_of(id, time_left, 0, POINT, &coded(first))
}

pub fn coded(first: u8) -> Coded {
    let layers = usize::from(POINT.layers);
    let mut stream: Vec<u8> = (0..).take(layers * LAYER_BYTES).collect();
    stream[0] = first;
    Coded { stream, layer_ends: (1..=layers).map(|layer| layer * LAYER_BYTES).collect() }
}

pub fn frame_of(
    id: u16,
    time_left: Duration,
    bundle: u8,
    point: OperatingPoint,
    coded: &Coded,
) -> Vec<u8> {
    let mut bytes = Vec::new();
    Envelope { frame: id, time_left, probe: false }.write(&mut bytes);
    write_packet(&mut bytes, bundle, &DIGEST, point, coded);
    bytes
}

pub fn answer(reply: &Reply) -> &Answer {
    match &reply.outcome {
        Some(reply::Outcome::Answer(answer)) => answer,
        other => panic!("no answer but {other:?}"),
    }
}

pub fn reason(reply: &Reply) -> Reason {
    match &reply.outcome {
        Some(reply::Outcome::Refusal(refusal)) => refusal.reason(),
        other => panic!("no refusal but {other:?}"),
    }
}

/// Frames that are refused one by one, with the reason each deserves.
pub fn bad_frames() -> Vec<(Vec<u8>, Reason)> {
    let good = frame(1, LONG, 9);
    let header = good.len() - usize::from(POINT.layers) * LAYER_BYTES;
    let mut envelope = Vec::new();
    Envelope { frame: 1, time_left: LONG, probe: false }.write(&mut envelope);
    let packet = envelope.len();
    let with = |at: usize, value: u8| {
        let mut bytes = good.clone();
        bytes[at] = value;
        bytes
    };
    let large = Coded { stream: vec![0; 100], layer_ends: vec![100; 3] };
    let huge = Coded { stream: vec![0; 2 << 20], layer_ends: vec![2 << 20; 3] };
    let mut long = good.clone();
    long.push(0);
    let mut other_bundle = good[..packet].to_vec();
    write_packet(&mut other_bundle, 0, &BundleDigest([6; 32]), POINT, &coded(9));
    let [jpeg, webp] = [ImageFormat::Jpeg, ImageFormat::Webp].map(|format| picture(format, 32));
    let whole = image_frame(1, ImageFormat::Jpeg, &jpeg);
    let image = |format, file: &[u8]| image_frame(1, format, file);
    let mut damaged = whole.clone();
    *damaged.last_mut().expect("bytes") ^= 1;
    let mut format = whole.clone();
    format[packet + 1] = 9;
    // A header that announces 65,535 pixels a side, and nothing like them behind it.
    let mut bomb = jpeg.clone();
    let header_of_frame = bomb.windows(2).position(|it| it == [0xff, 0xc2]).expect("progressive");
    bomb[header_of_frame + 5..header_of_frame + 9].fill(0xff);
    let large_file = vec![0; 2 << 20];
    vec![
        (image(ImageFormat::Jpeg, &bomb), Reason::TooLarge),
        (image(ImageFormat::Webp, &picture(ImageFormat::Webp, 65)), Reason::TooLarge),
        (image(ImageFormat::Jpeg, &large_file)[..1000].to_vec(), Reason::TooLarge),
        (image(ImageFormat::Webp, &jpeg), Reason::Malformed),
        (image(ImageFormat::Jpeg, &webp), Reason::Malformed),
        (image(ImageFormat::Jpeg, b""), Reason::Malformed),
        (image(ImageFormat::Webp, &webp[..30]), Reason::Malformed),
        (whole[..whole.len() - 1].to_vec(), Reason::Malformed),
        (format, Reason::Malformed),
        (damaged, Reason::Corrupt),
        (vec![0xff; 50], Reason::Malformed),
        (Vec::new(), Reason::Malformed),
        (good[..header + 2].to_vec(), Reason::Malformed),
        (long, Reason::Malformed),
        (with(packet, (VERSION + 1) << 4), Reason::UnsupportedVersion),
        (frame_of(1, LONG, 1, POINT, &coded(9)), Reason::UnknownBundle),
        (frame_of(1, LONG, 9, POINT, &coded(9)), Reason::UnknownBundle),
        (
            frame_of(1, LONG, 0, OperatingPoint { split: 3, ..POINT }, &coded(9)),
            Reason::UnknownPoint,
        ),
        (frame_of(1, LONG, 0, POINT, &large), Reason::TooLarge),
        (frame_of(1, LONG, 0, POINT, &huge)[..1000].to_vec(), Reason::TooLarge),
        (with(header + 1, 77), Reason::Corrupt),
        // Its header is as good as any: only the checksums tell.
        (other_bundle, Reason::Corrupt),
        (good[..header].to_vec(), Reason::Malformed),
    ]
}
