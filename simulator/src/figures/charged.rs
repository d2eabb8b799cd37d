//! A real client and a real server over a link in real time, to compare the
//! [`world`](crate::world) in virtual time with.
//!
//! Their compute is charged: the threads sleep for as long as a device or a server would take, and
//! answers and sizes come from a record.

use std::net::Ipv4Addr;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use isthmus_head_client::config::{ClientConfig, ServerUrl, Transport};
use isthmus_head_client::source::SourceFrame;
use isthmus_head_client::tls::Trust;
use isthmus_head_client::{
    Client, Compute, ComputeError, Computed, Controller, FrameReport, Here, Histogram, Pace, Run,
};
use isthmus_models::{Head, Outputs, Picture, TailItem};
use isthmus_proto::{Arm, BundleDigest, FrameId, OperatingPoint, Timestamp};
use isthmus_tail_server::model::{Model, ModelError};
use isthmus_tail_server::{Registry, Server, ServerConfig, TlsConfig};
use tokio::runtime;

use crate::relay::{Forward, Relay, RelayConfig};
use crate::world::frames::{coded, tag_of};
use crate::world::{Record, WorldConfig, device_noise, picture};

/// Largest stream of an operating point (bytes).
const MAX_STREAM: usize = 1 << 20;

/// What a run came to.
#[derive(Clone, Debug, Default)]
pub(crate) struct RealRun {
    /// Frames captured.
    pub(crate) frames: u64,
    /// From capture to output (µs), of frames with an answer.
    pub(crate) latency: Histogram,
    /// Frames that the server answered in time.
    pub(crate) by_network: u64,
}

/// Runs the first camera of a world in real time, for as long as it says. Of `head` only the
/// bundle's labels are used.
pub(crate) fn run(
    config: &WorldConfig,
    record: &Arc<Record>,
    head: Arc<Head>,
    controller: Box<dyn Controller>,
) -> anyhow::Result<RealRun> {
    let bundle = head.bundle();
    for point in record.points() {
        let (recorded, own) = (record.name(point), bundle.describe_point(point).to_string());
        ensure!(recorded == own, "the record numbers {recorded} as the bundle does {own}");
    }
    let model = ChargedTail {
        digest: bundle.digest(),
        labels: bundle.labels().len(),
        config: config.clone(),
        record: Arc::clone(record),
    };
    // Apart from the client's, as on another machine.
    let others = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let (server, relay) = others.block_on(serve(config, model))?;
    let client = client_config(config, &server, &relay)?;
    let compute = ChargedHead { config: config.clone(), record: Arc::clone(record) };
    let source = blank_frames(config)?;
    let mut result = RealRun::default();
    let sink = |report: &FrameReport| {
        result.count(report);
        ControlFlow::Continue(())
    };
    // One thread, as the client's program has.
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::connect(client, head, controller).await?;
        let client = client.with_compute(Box::new(compute));
        client.run(source, std::future::pending(), sink).await?;
        anyhow::Ok(())
    })?;
    drop(relay);
    others.block_on(server.shutdown());
    Ok(result)
}

/// Starts the server, and the relay in front of it.
async fn serve(config: &WorldConfig, model: ChargedTail) -> anyhow::Result<(Server, Relay)> {
    let server = ServerConfig {
        grpc: None,
        workers: config.server.batcher.workers,
        max_batch: config.server.batcher.max_batch,
        queue: config.server.batcher.queue,
        max_in_flight: config.server.max_in_flight,
        ..ServerConfig::new("unused".into(), TlsConfig::InMemory)
    };
    let server = Server::start_with(server, Registry::new(vec![Arc::new(model)])).await?;
    let address = server.quic_addr().context("the server offers no QUIC")?;
    let listen = (Ipv4Addr::LOCALHOST, 0).into();
    let udp = vec![Forward { listen, upstream: address.to_string() }];
    let (path, seed) = (config.path.clone(), config.seed);
    let relay = Relay::start(RelayConfig { path, seed, udp, tcp: Vec::new() }).await?;
    Ok((server, relay))
}

/// A client of `server` over `relay`.
fn client_config(
    config: &WorldConfig,
    server: &Server,
    relay: &Relay,
) -> anyhow::Result<ClientConfig> {
    let (_, address) = relay.addresses().next().context("the relay has no address")?;
    let (host, port) = (address.ip().to_string(), address.port());
    let trust = Trust::Fingerprints(vec![server.fingerprint().to_string().parse()?]);
    Ok(ClientConfig {
        deadline: config.deadline,
        in_flight: config.in_flight,
        pace: Pace::Live,
        require_server: true,
        rate: Some(1.0 / config.interval.as_secs_f64()),
        connect_timeout: Duration::from_secs(10),
        ..ClientConfig::new(ServerUrl { transport: Transport::Quic, host, port }, trust)
    })
}

/// As many frames as the world's camera captures; nobody looks at them.
fn blank_frames(
    config: &WorldConfig,
) -> anyhow::Result<impl Iterator<Item = SourceFrame> + Send + 'static> {
    let count = (config.duration.as_secs_f64() / config.interval.as_secs_f64()).ceil() as u64;
    let blank = Picture::new(1, 1, vec![0; 3])?;
    Ok((0..count).map(move |number| SourceFrame {
        source: number.to_string(),
        truth: None,
        picture: Ok(blank.clone()),
    }))
}

impl RealRun {
    fn count(&mut self, report: &FrameReport) {
        self.frames += 1;
        if let Some(ms) = report.capture_to_output_ms {
            self.latency.record((ms * 1e3).round() as u64);
        }
        let split = matches!(report.arm, Some(Arm::Split(_)));
        self.by_network += u64::from(split && report.on_time);
    }
}

/// A device's compute, as long as its profile says.
struct ChargedHead {
    config: WorldConfig,
    record: Arc<Record>,
}

impl Compute for ChargedHead {
    fn compute(&mut self, frame: FrameId, _: &Picture, run: Run) -> Result<Computed, ComputeError> {
        let started = Instant::now();
        let Run::Head(run) = run else {
            return Err(ComputeError("a charged device runs heads and nothing else".into()));
        };
        let WorldConfig { seed, ref device, .. } = self.config;
        let noise = device_noise(seed, 0, frame.0);
        let (head, encode) = device.times(Timestamp::ZERO, Run::Head(run).load(), noise);
        let picture = picture(seed, 0, frame.0, self.record.played());
        let exit = self.record.exit(run.split, run.width, picture);
        let exit = exit.map(|exit| Here { answers: Vec::new(), confidence: exit.confidence });
        let coded = coded(&self.record.layer_ends(run, picture), frame.0);
        thread::sleep((head + encode).saturating_sub(started.elapsed()));
        Ok(Computed { exit, coded, head, encode })
    }
}

/// A server's network, as long as the world says.
struct ChargedTail {
    digest: BundleDigest,
    labels: usize,
    config: WorldConfig,
    record: Arc<Record>,
}

impl Model for ChargedTail {
    fn name(&self) -> &str {
        "charged"
    }

    fn digest(&self) -> BundleDigest {
        self.digest
    }

    fn max_stream_bytes(&self, _: OperatingPoint) -> Option<usize> {
        Some(MAX_STREAM)
    }

    /// What the record says, instead of latents: class and probability.
    fn decode(
        &self,
        point: OperatingPoint,
        stream: &[u8],
        layers: usize,
    ) -> Result<Vec<f32>, ModelError> {
        thread::sleep(self.config.server.decode);
        let picture = picture(self.config.seed, 0, tag_of(stream), self.record.played());
        let layers = u8::try_from(layers).unwrap_or(point.layers);
        let known = self.record.outcome_of_layers(point, layers, picture);
        let (outcome, _) = known.ok_or_else(|| ModelError::new(format!("no record of {point}")))?;
        let class = self.record.label(picture) + usize::from(outcome.quality < 1.0);
        Ok(vec![(class % self.labels.max(1)) as f32, outcome.confidence])
    }

    fn infer(&self, batch: &[TailItem<'_>]) -> Result<Vec<Outputs>, ModelError> {
        let count = u32::try_from(batch.len()).unwrap_or(u32::MAX);
        thread::sleep(self.config.server.tail + self.config.server.tail_per_frame * count);
        let logits = |item: &TailItem<'_>| {
            let &[class, probability] = item.latents else {
                return Err(ModelError::new("class and probability are expected"));
            };
            let others = self.labels.saturating_sub(1).max(1) as f32;
            let probability = probability.clamp(1e-3, 1.0 - 1e-3);
            let mut logits = vec![((1.0 - probability) / others).ln(); self.labels];
            if let Some(logit) = logits.get_mut(class as usize) {
                *logit = probability.ln();
            }
            Ok(vec![logits])
        };
        batch.iter().map(logits).collect()
    }
}
