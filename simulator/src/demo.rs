//! The demonstration: camera, client, emulated link and server in one process, over real sockets.
//!
//! The link is good, weak, very weak, good again, gone for a moment and good. What adapts, one
//! operating point, and the upload of pictures have to get along with it, one after the other, so
//! that none takes the machine's time from another.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use isthmus_head_client::config::{ClientConfig, ControllerKind, ServerUrl, Transport};
use isthmus_head_client::source::{self, BoxedSource, FrameTruth, NoPicture, SourceFrame};
use isthmus_head_client::tls::Trust;
use isthmus_head_client::{
    Arms, Client, Controller, Fixed, FrameReport, ImageRun, MpcConfig, Pace, Run, Summary,
};
use isthmus_models::{Bundle, Head, ImageSpec, Picture, Tract, TrueBox, TrueBoxes};
use isthmus_proto::{Bitrate, DataSize, ImageFormat, OperatingPoint, Timestamp};
use isthmus_tail_server::model::{BundleModel, Model};
use isthmus_tail_server::{Registry, Server, ServerConfig, TlsConfig};

use crate::camera::{BoundingBox, Camera, CameraConfig, LabelledFrame, Sign};
use crate::figures::TruthFile;
use crate::link::chance::Chance;
use crate::link::{AtEnd, LinkConfig, Outage, Playback, Rate};
use crate::profile::{PathConfig, Rebindings};
use crate::relay::{Counters, Forward, Relay, RelayConfig};
use crate::trace::Trace;

/// What the controller that adapts may choose beside the split network.
const ARMS: Arms = Arms { image: true, local: false };

/// Quality of the pictures that are uploaded: right about as often as the full network.
const JPEG_QUALITY: u8 = 75;

/// The uplink over time: until which fraction of the duration, which fraction of its rate it has.
const COURSE: [(f64, f64); 5] = [(0.2, 1.0), (0.4, 0.15), (0.6, 0.03), (0.72, 1.0), (1.0, 1.0)];
/// When it is gone, in fractions of the duration.
const OUTAGE: (f64, f64) = (0.72, 0.82);
/// How long a rate stays, and the deviation of its logarithm.
const DWELL: Duration = Duration::from_millis(500);
const SPREAD: f64 = 0.2;

/// The frames whose pictures a page shows, in fractions of the duration: on the good link, on the weak
/// ones, while it is gone, and behind that.
const SHOWN: [f64; 5] = [0.1, 0.3, 0.5, 0.77, 0.95];

/// What to demonstrate.
#[derive(Clone, Debug)]
pub struct DemoConfig {
    /// Folder of the bundle.
    pub bundle: PathBuf,
    /// Pictures instead of the built-in camera's.
    pub input: Option<PathBuf>,
    /// Their true boxes, for a network that finds some.
    pub truth: Option<TruthFile>,
    /// Operating point of the one that does not adapt, by name; the bundle's most accurate by
    /// default.
    pub point: Option<String>,
    /// Controller of the adaptive run.
    pub controller: ControllerKind,
    /// Duration of each run.
    pub duration: Duration,
    /// Frames per second.
    pub rate: f64,
    /// From capture to output.
    pub deadline: Duration,
    /// Rate of the uplink where it is good, and of the downlink.
    pub link: Bitrate,
    /// Delay in each direction.
    pub delay: Duration,
    /// Seed of camera and link.
    pub seed: u64,
}

/// What was seen.
pub struct DemoResult {
    /// What adapts first, then the fixed point, then the upload.
    pub runs: Vec<DemoRun>,
    /// Name of the bundle.
    pub bundle: String,
    /// What the bundle's first answer names.
    pub labels: Vec<String>,
    /// Whether answers are boxes, which are more or less good, and not right or wrong.
    pub boxes: bool,
    /// The link that each of them had.
    pub uplink: LinkConfig,
}

/// What was seen of one of them.
pub struct DemoRun {
    /// Such as `mpc`, `fixed s16/w100/c16/b6` or `upload jpeg/192/q75`.
    pub name: String,
    /// Every frame.
    pub frames: Vec<FrameReport>,
    /// The client's account.
    pub summary: Summary,
    /// The link's account.
    pub link: Counters,
    /// From the link's time zero to the first frame.
    pub start: Duration,
}

impl DemoConfig {
    /// The link that each of them has.
    fn path(&self) -> anyhow::Result<PathConfig> {
        let queue = DataSize::from_bytes(64 << 10);
        let steady = LinkConfig::constant(self.link, self.delay, queue);
        let mut chance = Chance::new(self.seed, 0x64_65_6d_6f);
        let mut pieces = Vec::new();
        let mut at = Duration::ZERO;
        while at < self.duration {
            let passed = at.as_secs_f64() / self.duration.as_secs_f64();
            let fraction = COURSE.iter().find(|(until, _)| passed < *until).map_or(1.0, |it| it.1);
            let rate = self.link.as_bps() as f64 * fraction * (SPREAD * chance.normal()).exp();
            pieces.push((DWELL, Bitrate::from_bps(rate as u64)));
            at += DWELL;
        }
        let trace = Arc::new(Trace::new(pieces).context("--duration")?);
        let rate = Rate::Trace(Playback { trace, offset: Duration::ZERO, at_end: AtEnd::Once });
        let start = Timestamp::ZERO + self.duration.mul_f64(OUTAGE.0);
        let outages = vec![Outage { start, length: self.duration.mul_f64(OUTAGE.1 - OUTAGE.0) }];
        let uplink = LinkConfig { rate, outages, ..steady.clone() };
        Ok(PathConfig { uplink, downlink: steady, rebindings: Rebindings::default() })
    }

    fn frames(&self) -> usize {
        (self.duration.as_secs_f64() * self.rate).round() as usize
    }
}

/// Runs the demonstration; `progress` gets the name of the run and each frame as it ends.
pub async fn run(
    config: &DemoConfig,
    mut progress: impl FnMut(&str, &FrameReport),
) -> anyhow::Result<DemoResult> {
    ensure!(
        config.frames() > 0,
        "{:?} at {} frames/s has no frame; expected at least one",
        config.duration,
        config.rate
    );
    let bundle = Arc::new(Bundle::open(&config.bundle)?);
    let point = match &config.point {
        Some(text) => bundle.parse_point(text).context("--point")?,
        None => bundle.default_point(),
    };
    let controllers = controllers(config, &bundle, point)?;
    // What is wrong with the pictures shows before anything is started.
    let mut first = open_source(config, &bundle)?;
    let head = Arc::new(Head::load(Arc::clone(&bundle), &Tract)?);
    let model = BundleModel::load(Arc::clone(&bundle), Arc::new(Tract))?;
    if let Some(Ok(picture)) = first.next().map(|frame| frame.picture) {
        // The full network is loaded with the first picture: now, so that no frame waits for it.
        let mut input = Vec::new();
        isthmus_models::Preprocessor::new(&bundle.manifest().input).run(&picture, &mut input);
        model.full_network().context("the bundle has no full network")?.infer(&[&input])?;
    }

    let server = ServerConfig::new(config.bundle.clone(), TlsConfig::InMemory);
    let server = ServerConfig { grpc: None, workers: 1, ..server };
    let server = Server::start_with(server, Registry::new(vec![Arc::new(model)])).await?;
    let path = config.path()?;
    let mut runs = Vec::new();
    for (name, controller) in controllers {
        let source = open_source(config, &bundle)?;
        let stage = Stage { config, server: &server, path: &path, head: &head };
        let progress = |frame: &FrameReport| progress(&name, frame);
        let (frames, summary, link, start) = stage.run(controller, source, progress).await?;
        runs.push(DemoRun { name, frames, summary, link, start });
    }
    server.shutdown().await;
    Ok(DemoResult {
        runs,
        bundle: bundle.name().to_owned(),
        labels: bundle.labels().to_vec(),
        boxes: detects(&bundle),
        uplink: path.uplink,
    })
}

fn controllers(
    config: &DemoConfig,
    bundle: &Bundle,
    point: OperatingPoint,
) -> anyhow::Result<Vec<(String, Box<dyn Controller>)>> {
    let interval = Some(Duration::from_secs_f64(1.0 / config.rate));
    let mpc = MpcConfig { interval, ..MpcConfig::default() };
    let name = match config.controller {
        ControllerKind::Fixed => format!("fixed {}", bundle.describe_point(point)),
        kind => kind.name().to_owned(),
    };
    let mut controllers = Vec::new();
    if config.controller != ControllerKind::Fixed {
        let controller = config.controller.to_controller(bundle, point, mpc, ARMS);
        controllers.push((name, controller.context("--controller")?));
    }
    let fixed = ControllerKind::Fixed.to_controller(bundle, point, mpc, ARMS)?;
    controllers.push((format!("fixed {}", bundle.describe_point(point)), fixed));
    let input = &bundle.manifest().input;
    let side = input.width.max(input.height);
    let image = ImageSpec { format: ImageFormat::Jpeg, side, quality: JPEG_QUALITY };
    let upload = Fixed::new(Run::Image(ImageRun { image, exit: None }));
    controllers.push((format!("upload {image}"), Box::new(upload)));
    Ok(controllers)
}

/// What each of them meets.
struct Stage<'a> {
    config: &'a DemoConfig,
    server: &'a Server,
    path: &'a PathConfig,
    head: &'a Arc<Head>,
}

impl Stage<'_> {
    async fn run(
        &self,
        controller: Box<dyn Controller>,
        source: BoxedSource,
        mut progress: impl FnMut(&FrameReport),
    ) -> anyhow::Result<(Vec<FrameReport>, Summary, Counters, Duration)> {
        let Stage { config, server, path, head } = *self;
        let address = server.quic_addr().context("the server offers no QUIC")?;
        let listen = (Ipv4Addr::LOCALHOST, 0).into();
        let udp = vec![Forward { listen, upstream: address.to_string() }];
        let (path, tcp) = (path.clone(), Vec::new());
        let zero = Instant::now();
        let relay = Relay::start(RelayConfig { path, seed: config.seed, udp, tcp }).await?;
        let (_, relay_address) = relay.addresses().next().context("the relay has no address")?;
        let (host, port) = (relay_address.ip().to_string(), relay_address.port());
        let url = ServerUrl { transport: Transport::Quic, host, port };
        let trust = Trust::Fingerprints(vec![server.fingerprint().to_string().parse()?]);
        let client_config = ClientConfig {
            deadline: config.deadline,
            in_flight: 2,
            pace: Pace::Live,
            require_server: true,
            rate: Some(config.rate),
            connect_timeout: Duration::from_secs(10),
            keep_pictures: detects(head.bundle()),
            ..ClientConfig::new(url, trust)
        };
        let client = Client::connect(client_config, Arc::clone(head), controller).await?;
        let mut frames = Vec::with_capacity(config.frames());
        let shown = SHOWN.map(|at| (at * config.frames() as f64) as u64);
        let start = zero.elapsed();
        let summary = client
            .run(source.take(config.frames()), std::future::pending(), |report| {
                progress(report);
                let mut report = report.clone();
                if !shown.contains(&report.frame) {
                    report.picture = None;
                }
                frames.push(report);
                ControlFlow::Continue(())
            })
            .await?;
        Ok((frames, summary, relay.counters(), start))
    }
}

/// Whether a bundle's first answer is boxes.
fn detects(bundle: &Bundle) -> bool {
    bundle.manifest().decoders.first().is_some_and(|first| first.boxes.is_some())
}

/// The frames of the built-in camera as a source, with what is true of them for a bundle: the sign's class,
/// or its box where the bundle finds signs.
pub fn camera_source(
    config: CameraConfig,
    bundle: &Bundle,
) -> Result<impl Iterator<Item = SourceFrame> + Send + use<>, crate::camera::ConfigError> {
    let place = |sign: Sign| bundle.labels().iter().position(|label| label == sign.label());
    let places: Vec<Option<u16>> =
        Sign::ALL.iter().map(|&sign| u16::try_from(place(sign)?).ok()).collect();
    let covered: Arc<BTreeSet<u16>> = Arc::new(places.iter().flatten().copied().collect());
    let detects = detects(bundle);
    Ok(Camera::new(config)?.map(move |frame| {
        let truth = match (detects, covered.is_empty()) {
            (false, _) => Some(FrameTruth::Class(frame.sign.label().to_owned())),
            (true, true) => None,
            (true, false) => {
                let place = places.get(frame.sign.class()).copied().flatten();
                let boxes = place.map(|class| true_box(class, &frame)).into_iter().collect();
                let covered = Some(Arc::clone(&covered));
                Some(FrameTruth::Boxes(TrueBoxes { boxes, covered }))
            }
        };
        SourceFrame {
            source: format!("camera {}", frame.index),
            truth,
            picture: Picture::new(frame.width, frame.height, frame.rgb)
                .map_err(|error| NoPicture::Bad(error.to_string())),
        }
    }))
}

/// The sign's box, as far as it is in the picture.
fn true_box(class: u16, frame: &LabelledFrame) -> TrueBox {
    let BoundingBox { x, y, width, height } = frame.bounds;
    let (right, bottom) = (frame.width as f32, frame.height as f32);
    TrueBox {
        class,
        x0: x.clamp(0.0, right),
        y0: y.clamp(0.0, bottom),
        x1: (x + width).clamp(0.0, right),
        y1: (y + height).clamp(0.0, bottom),
        crowd: false,
    }
}

fn open_source(config: &DemoConfig, bundle: &Bundle) -> anyhow::Result<BoxedSource> {
    Ok(match (&config.input, &config.truth) {
        (Some(input), Some(TruthFile { file, renamed })) => {
            source::open_with_boxes(input, bundle.labels(), file, renamed)?
        }
        (Some(input), None) => source::open(input, bundle.labels(), None)?,
        (None, _) => {
            let camera = CameraConfig {
                frames_per_second: config.rate as f32,
                seed: config.seed,
                ..CameraConfig::default()
            };
            Box::new(camera_source(camera, bundle)?)
        }
    })
}

/// The results as a table for people.
pub fn table(result: &DemoResult) -> String {
    let mut text = format!(
        "{:<26} {:>9} {:>9} {:>8} {:>7} {:>8} {:>7} {:>7}\n",
        "", "on-time %", "in time %", "missed", "sent", "B/frame", "p50 ms", "p95 ms"
    );
    for row in rows(result) {
        let ms = |ms: Option<f64>| ms.map_or_else(|| "-".into(), |ms| format!("{ms:.0}"));
        text += &format!(
            "{:<26} {:>9} {:>9} {:>8} {:>7} {:>8.0} {:>7} {:>7}\n",
            row.name,
            row.on_time_quality.map_or_else(|| "-".into(), |it| format!("{:.1}", 100.0 * it)),
            row.in_time.map_or_else(|| "-".into(), |it| format!("{:.1}", 100.0 * it)),
            row.missed,
            row.sent,
            row.bytes,
            ms(row.p50_ms),
            ms(row.p95_ms)
        );
    }
    text
}

/// A row of the table.
pub(crate) struct Row<'a> {
    pub(crate) name: &'a str,
    /// Right and in time over all frames; `None` without known truths.
    pub(crate) on_time_quality: Option<f64>,
    /// Answers in time over all frames.
    pub(crate) in_time: Option<f64>,
    pub(crate) missed: usize,
    pub(crate) sent: u64,
    /// Over all frames.
    pub(crate) bytes: f64,
    pub(crate) p50_ms: Option<f64>,
    pub(crate) p95_ms: Option<f64>,
}

pub(crate) fn rows(result: &DemoResult) -> impl Iterator<Item = Row<'_>> {
    result.runs.iter().map(|DemoRun { name, frames, summary, .. }| Row {
        name,
        on_time_quality: summary.on_time_quality,
        in_time: summary.on_time,
        missed: frames.iter().filter(|frame| frame.is_missed()).count(),
        sent: summary.sent,
        bytes: summary.bytes.total as f64 / summary.frames.max(1) as f64,
        p50_ms: summary.capture_to_output_ms.p50,
        p95_ms: summary.capture_to_output_ms.p95,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::link::Schedule;

    #[test]
    fn the_link_has_a_dip_and_an_outage_wherever_the_duration_puts_them() {
        for seconds in [5, 15, 60] {
            let config = DemoConfig {
                bundle: PathBuf::new(),
                input: None,
                truth: None,
                point: None,
                controller: ControllerKind::Mpc,
                duration: Duration::from_secs(seconds),
                rate: 10.0,
                deadline: Duration::from_millis(300),
                link: Bitrate::from_bps(2_000_000),
                delay: Duration::from_millis(20),
                seed: 7,
            };
            let LinkConfig { rate, outages, .. } = config.path().expect("a path").uplink;
            let schedule = Schedule::new(rate, &outages);
            let rate =
                |at: f64| schedule.rate_at(Timestamp::ZERO + config.duration.mul_f64(at)).as_bps();
            assert!((1_000_000..4_000_000).contains(&rate(0.1)), "{}", rate(0.1));
            assert!((150_000..600_000).contains(&rate(0.3)), "{}", rate(0.3));
            assert!((30_000..120_000).contains(&rate(0.5)), "{}", rate(0.5));
            assert_eq!(rate(0.77), 0);
            assert!(rate(0.9) > 1_000_000, "{}", rate(0.9));
        }
    }
}
