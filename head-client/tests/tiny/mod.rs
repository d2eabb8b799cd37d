//! A bundle so small that it is made for every test, and an engine that runs it: the head gives a
//! picture's brightness, the tail names its class, so does the full network, and the exit always
//! says `dark`.

#![allow(dead_code)] // no test needs all of it

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use isthmus_head_client::config::{ClientConfig, ServerUrl, Transport};
use isthmus_head_client::source::{FrameTruth, SourceFrame};
use isthmus_head_client::tls::Trust;
use isthmus_head_client::{Client, ConnectError, Controller, Fixed, Pace};
use isthmus_models::{Bundle, Engine, EngineError, Full, Graph, Head, Picture, Tensor, TensorView};
use isthmus_proto::wire::Detail;
use isthmus_proto::{BundleDigest, OperatingPoint};
use isthmus_tail_server::model::{BundleModel, Model};
use isthmus_tail_server::{Registry, Server, ServerConfig, TlsConfig};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

pub const LABELS: [&str; 4] = ["dark", "dim", "light", "bright"];
/// Both layers, 6 bits.
pub const POINT: OperatingPoint = OperatingPoint { split: 0, width: 0, layers: 2, bits: 6 };

const MANIFEST: &str = r#"
format = 1
name = "tiny"
version = "0.1.0"
task = "classification"
labels = ["dark", "dim", "light", "bright"]

[input]
width = 8
height = 8
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]

[full]
file = "onnx/full.onnx"
macs = 1
parameters = 1
accuracy = 1.0

[[splits]]
name = "s8"
latent = [4, 8, 8]
channels = [2, 4]
features = [4, 8, 8]
trunk = "onnx/trunk.onnx"

[[splits.widths]]
name = "w100"
head = "onnx/head.onnx"
adapter = "onnx/adapter.onnx"
head_macs = 1
head_parameters = 1
exit_parameters = 1
exit_accuracy = 0.25

[[splits.widths.quantisers]]
bits = 6
scale = [0.04, 0.04, 0.04, 0.04]
zero_point = [32, 32, 32, 32]
prior_mean = [0.0, 0.0, 0.0, 0.0]
tables = "tables/b6.cdf"
"#;

/// Writes the bundle into `dir`.
pub fn write(dir: &Path) {
    let mut manifest = format!("{MANIFEST}\n[files]\n");
    let table: Vec<u8> = [1024u16; 4 * 64].iter().flat_map(|f| f.to_le_bytes()).collect();
    let graph = |name: &str| (format!("onnx/{name}.onnx"), name.as_bytes().to_vec());
    let graphs = ["full", "trunk", "head", "adapter"].map(graph);
    for (name, bytes) in graphs.into_iter().chain([("tables/b6.cdf".to_owned(), table)]) {
        let path = dir.join(&name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
        fs::write(path, &bytes).expect("file");
        let sha256 = BundleDigest(Sha256::digest(&bytes).into());
        manifest += &format!("{name:?} = {{ bytes = {}, sha256 = \"{sha256}\" }}\n", bytes.len());
    }
    fs::write(dir.join("manifest.toml"), manifest).expect("manifest");
}

/// The bundle, opened; it is kept in memory.
pub fn bundle() -> (TempDir, Arc<Bundle>) {
    let dir = TempDir::new().expect("temporary folder");
    write(dir.path());
    let bundle = Bundle::open(dir.path()).unwrap_or_else(|error| panic!("{error}"));
    (dir, Arc::new(bundle))
}

/// Runs the bundle's graphs; a tail takes `tail` for a batch.
pub struct Lamp {
    pub tail: Duration,
}

enum LampGraph {
    Head,
    Adapter,
    Trunk { takes: Duration },
    Full { takes: Duration },
}

impl Engine for Lamp {
    fn name(&self) -> &'static str {
        "lamp"
    }

    fn load(&self, onnx: &[u8], name: &str) -> Result<Arc<dyn Graph>, EngineError> {
        match onnx {
            b"head" => Ok(Arc::new(LampGraph::Head)),
            b"adapter" => Ok(Arc::new(LampGraph::Adapter)),
            b"trunk" => Ok(Arc::new(LampGraph::Trunk { takes: self.tail })),
            b"full" => Ok(Arc::new(LampGraph::Full { takes: self.tail })),
            _ => {
                let reason = "not one of the lamp's".into();
                Err(EngineError::Load { name: name.into(), reason })
            }
        }
    }
}

impl Graph for LampGraph {
    fn run(&self, inputs: &[TensorView<'_>]) -> Result<Vec<Tensor>, EngineError> {
        let TensorView { shape, data } = inputs[0];
        let items = shape[0];
        Ok(match self {
            LampGraph::Head => {
                let mean = data.iter().sum::<f32>() / data.len() as f32;
                let latents = Tensor { shape: vec![1, 4, 8, 8], data: vec![mean; 4 * 64] };
                let exit = Tensor { shape: vec![1, 4], data: vec![2.0, 0.0, 0.0, 0.0] };
                vec![latents, exit]
            }
            LampGraph::Adapter => vec![Tensor { shape: shape.to_vec(), data: data.to_vec() }],
            LampGraph::Trunk { takes } | LampGraph::Full { takes } => {
                std::thread::sleep(*takes);
                // A trunk's features are all the picture's brightness.
                let logits = |item: &[f32]| {
                    let brightness = item.iter().sum::<f32>() / item.len() as f32;
                    [-0.75f32, -0.25, 0.25, 0.75].map(|centre| -40.0 * (brightness - centre).abs())
                };
                let data = data.chunks(data.len() / items).flat_map(logits).collect();
                vec![Tensor { shape: vec![items, 4], data }]
            }
        })
    }
}

/// A server of the bundle whose tail takes `tail`.
pub async fn server(bundle: &Arc<Bundle>, tail: Duration) -> Server {
    serve(vec![model(bundle, tail)], ServerConfig::new("unused".into(), TlsConfig::InMemory)).await
}

/// A server of `models`.
pub async fn serve(models: Vec<Arc<dyn Model>>, config: ServerConfig) -> Server {
    Server::start_with(config, Registry::new(models)).await.expect("a server")
}

/// A server's configuration at a port (0 for free ones), whose certificate is kept in `tls`.
pub fn server_config(port: u16, tls: &Path) -> ServerConfig {
    let tls = TlsConfig::SelfSigned { dir: tls.to_owned() };
    let address = Some(([127, 0, 0, 1], port).into());
    ServerConfig { quic: address, grpc: address, ..ServerConfig::new("unused".into(), tls) }
}

/// The bundle's tail, which takes `tail` for a batch.
pub fn model(bundle: &Arc<Bundle>, tail: Duration) -> Arc<dyn Model> {
    Arc::new(BundleModel::load(Arc::clone(bundle), Arc::new(Lamp { tail })).expect("a tail"))
}

/// A configuration for `server`; every frame is taken.
pub fn config(server: &Server, transport: Transport) -> ClientConfig {
    let address = match transport {
        Transport::Quic => server.quic_addr(),
        Transport::Grpc => server.grpc_addr(),
    };
    let port = address.expect("offered").port();
    ClientConfig {
        server: ServerUrl { transport, host: "127.0.0.1".into(), port },
        trust: Trust::Fingerprint(server.fingerprint().to_string().parse().expect("hex")),
        deadline: Duration::from_secs(20),
        in_flight: 1,
        pace: Pace::EveryFrame,
        rate: None,
        connect_timeout: Duration::from_secs(20),
        detail: Detail::Top,
        min_confidence: None,
        filter_classes: None,
        keep_pictures: false,
        metrics: None,
        traces: None,
    }
}

/// A client with the fixed point.
pub async fn client(config: ClientConfig, bundle: &Arc<Bundle>) -> Result<Client, ConnectError> {
    client_with(config, bundle, Box::new(Fixed::new(POINT))).await
}

/// A client with a controller.
pub async fn client_with(
    config: ClientConfig,
    bundle: &Arc<Bundle>,
    controller: Box<dyn Controller>,
) -> Result<Client, ConnectError> {
    let head = Head::load(Arc::clone(bundle), &Lamp { tail: Duration::ZERO }).expect("heads");
    Client::connect(config, Arc::new(head), controller).await
}

/// The full network.
pub fn full(bundle: &Arc<Bundle>) -> Arc<Full> {
    Arc::new(Full::load(Arc::clone(bundle), &Lamp { tail: Duration::ZERO }).expect("a network"))
}

/// Grey pictures that go through the classes one after the other, and know it.
pub fn pictures(count: usize) -> impl Iterator<Item = SourceFrame> + Send + 'static {
    (0..count).map(|number| {
        let class = number % LABELS.len();
        let grey = [32u8, 96, 160, 224][class];
        let picture =
            Picture::new(16, 12, vec![grey; 16 * 12 * 3]).map_err(|e| e.to_string().into());
        let truth = Some(FrameTruth::Class(LABELS[class].to_owned()));
        SourceFrame { source: format!("grey:{number}"), truth, picture }
    })
}
