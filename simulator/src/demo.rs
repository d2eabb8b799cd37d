//! The main job in one process: camera, client, emulated link and server, over real sockets.

use std::net::Ipv4Addr;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use isthmus_head_client::config::{ClientConfig, ControllerKind, ServerUrl, Transport};
use isthmus_head_client::source::{self, BoxedSource, NoPicture, SourceFrame};
use isthmus_head_client::tls::Trust;
use isthmus_head_client::{Client, FrameReport, MpcConfig, Pace, Summary};
use isthmus_models::{Bundle, Head, Picture, Tract};
use isthmus_proto::wire::Detail;
use isthmus_tail_server::model::BundleModel;
use isthmus_tail_server::{Registry, Server, ServerConfig, TlsConfig};

use crate::camera::{Camera, CameraConfig};
use crate::link::LinkConfig;
use crate::profile::PathConfig;
use crate::relay::{Counters, Forward, Relay, RelayConfig};

/// What to demonstrate.
#[derive(Clone, Debug)]
pub struct DemoConfig {
    /// Folder of the bundle.
    pub bundle: PathBuf,
    /// Pictures instead of the built-in camera's.
    pub input: Option<PathBuf>,
    /// Operating point by name; the bundle's most accurate by default.
    pub point: Option<String>,
    /// What chooses, frame by frame.
    pub controller: ControllerKind,
    /// How long.
    pub duration: Duration,
    /// Frames per second.
    pub rate: f64,
    /// From capture to output.
    pub deadline: Duration,
    /// The link, the same in both directions.
    pub link: LinkConfig,
    /// Seed of camera and link.
    pub seed: u64,
}

/// What was seen.
pub struct DemoResult {
    /// Every frame.
    pub frames: Vec<FrameReport>,
    /// The client's account.
    pub summary: Summary,
    /// The link's account.
    pub link: Counters,
    /// Name of the bundle.
    pub bundle: String,
    /// Name of the operating point.
    pub point: String,
}

/// Runs the demonstration; `progress` sees each frame as it ends.
pub async fn run(
    config: &DemoConfig,
    mut progress: impl FnMut(&FrameReport),
) -> anyhow::Result<DemoResult> {
    let bundle = Arc::new(Bundle::open(&config.bundle)?);
    let point = match &config.point {
        Some(text) => bundle.parse_point(text).context("--point")?,
        None => bundle.default_point(),
    };
    let source = open_source(config, &bundle)?;
    let head = Arc::new(Head::load(Arc::clone(&bundle), &Tract)?);
    let model = BundleModel::load(Arc::clone(&bundle), Arc::new(Tract))?;

    let server = ServerConfig::new(config.bundle.clone(), TlsConfig::InMemory);
    let server = ServerConfig { grpc: None, workers: 1, ..server };
    let server = Server::start_with(server, Registry::new(vec![Arc::new(model)])).await?;
    let address = server.quic_addr().context("the server offers no QUIC")?;
    let path = PathConfig { uplink: config.link.clone(), downlink: config.link.clone() };
    let listen = (Ipv4Addr::LOCALHOST, 0).into();
    let udp = vec![Forward { listen, upstream: address.to_string() }];
    let relay = Relay::start(RelayConfig { path, seed: config.seed, udp, tcp: Vec::new() }).await?;
    let (_, relay_address) = relay.addresses().next().context("the relay has no address")?;
    let client_config = ClientConfig {
        server: ServerUrl {
            transport: Transport::Quic,
            host: relay_address.ip().to_string(),
            port: relay_address.port(),
        },
        trust: Trust::Fingerprint(server.fingerprint().to_string().parse()?),
        deadline: config.deadline,
        in_flight: 2,
        pace: Pace::Live,
        rate: Some(config.rate),
        connect_timeout: Duration::from_secs(10),
        detail: Detail::Top,
        metrics: None,
        traces: None,
    };
    let interval = Some(Duration::from_secs_f64(1.0 / config.rate));
    let mpc = MpcConfig { interval, ..MpcConfig::default() };
    let controller =
        config.controller.to_controller(&bundle, point, mpc).context("--controller")?;
    let client = Client::connect(client_config, head, controller).await?;
    let count = (config.duration.as_secs_f64() * config.rate).round() as usize;
    ensure!(
        count > 0,
        "a duration of {:?} at {} frames/s is no frame",
        config.duration,
        config.rate
    );
    let mut frames = Vec::with_capacity(count);
    let summary = client
        .run(source.take(count), std::future::pending(), |report| {
            progress(report);
            frames.push(report.clone());
            ControlFlow::Continue(())
        })
        .await?;
    let link = relay.counters();
    server.shutdown().await;
    let point = bundle.describe_point(point).to_string();
    Ok(DemoResult { frames, summary, link, bundle: bundle.name().to_owned(), point })
}

/// The frames of the built-in camera as a source.
pub fn camera_source(
    config: CameraConfig,
) -> Result<impl Iterator<Item = SourceFrame> + Send, crate::camera::ConfigError> {
    Ok(Camera::new(config)?.map(|frame| SourceFrame {
        source: format!("camera {}", frame.index),
        truth: Some(frame.sign.label().to_owned()),
        picture: Picture::new(frame.width, frame.height, frame.rgb)
            .map_err(|error| NoPicture::Bad(error.to_string())),
    }))
}

fn open_source(config: &DemoConfig, bundle: &Bundle) -> anyhow::Result<BoxedSource> {
    Ok(match &config.input {
        Some(input) => source::open(input, bundle.labels(), None)?,
        None => {
            let camera = CameraConfig {
                frames_per_second: config.rate as f32,
                seed: config.seed,
                ..CameraConfig::default()
            };
            Box::new(camera_source(camera)?)
        }
    })
}
