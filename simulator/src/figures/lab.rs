//! What figures are measured with.

use std::any::{Any, TypeId};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use isthmus_head_client::config::{ClientConfig, ServerUrl, Transport};
use isthmus_head_client::source::{self, BoxedSource, FrameTruth, SourceFrame};
use isthmus_head_client::tls::Trust;
use isthmus_head_client::{Client, Controller, FrameReport, Pace, Summary};
use isthmus_models::{Bundle, Engine, Full, Head, Picture, Task, TrueBoxes, on_all_cores};
use isthmus_proto::OperatingPoint;
use isthmus_proto::wire::Detail;
use isthmus_tail_server::model::BundleModel;
use isthmus_tail_server::{Registry, Server, ServerConfig, TlsConfig};
use rand::RngExt as _;
use rand_pcg::Pcg32;
use tokio::runtime::{self, Runtime};

use crate::camera::CameraConfig;
use crate::demo::camera_source;

/// Most bytes (mean) that the bundle's best point may take on the wire.
pub(super) const BEST_POINT_BYTES: f64 = 2000.0;

/// Seed of every random choice that a figure makes.
const SEED: u64 = 7;
/// Pictures that a figure is measured on, but for accuracy.
const PICTURES: usize = 512;
/// Every `STRIDE`th frame of the camera is taken, so that neighbours differ.
const STRIDE: usize = 5;
/// Long enough that a busy machine loses no frame, and as many bytes in the envelope as the
/// default deadline's.
const DEADLINE: Duration = Duration::from_secs(10);

/// Where the true boxes of pictures stand.
#[derive(Clone, Debug)]
pub struct TruthFile {
    /// A COCO JSON file, or the names of classes where YOLO's text files lie by the pictures.
    pub file: PathBuf,
    /// The bundle's labels of categories that are called otherwise; an empty one leaves a category out.
    pub renamed: BTreeMap<String, String>,
}

/// One bundle, the pictures to try it on, and what earlier figures have left for later ones.
pub struct Lab {
    bundle: Arc<Bundle>,
    engine: Arc<dyn Engine>,
    images: Option<PathBuf>,
    limit: Option<usize>,
    traces: Option<(PathBuf, bool)>,
    dedicated: Vec<PathBuf>,
    truth: Option<TruthFile>,
    empty: Option<PathBuf>,
    kept: RefCell<BTreeMap<TypeId, Rc<dyn Any>>>,
}

impl Lab {
    /// A lab for `bundle` run by `engine`. Pictures come from the folder `images`, which is sorted
    /// by class, or else from the built-in camera; accuracy is measured on `limit` of the folder's,
    /// or on all.
    pub fn new(
        bundle: Arc<Bundle>,
        engine: Arc<dyn Engine>,
        images: Option<PathBuf>,
        limit: Option<usize>,
    ) -> Self {
        Lab {
            bundle,
            engine,
            images,
            limit,
            traces: None,
            dedicated: Vec::new(),
            truth: None,
            empty: None,
            kept: RefCell::default(),
        }
    }

    /// The same with what is really in the pictures, for networks that find boxes.
    #[must_use]
    pub fn with_truth(self, truth: TruthFile) -> Self {
        Lab { truth: Some(truth), ..self }
    }

    /// The same with a folder of pictures in which nothing is to be found.
    #[must_use]
    pub fn with_empty(self, folder: PathBuf) -> Self {
        Lab { empty: Some(folder), ..self }
    }

    /// The same with a folder of recorded traces: controllers are run under every condition on one
    /// trace of each group, or on all of them if `full`.
    #[must_use]
    pub fn with_traces(self, folder: PathBuf, full: bool) -> Self {
        Lab { traces: Some((folder, full)), ..self }
    }

    /// The same with the folders of bundles whose networks were trained for one width.
    #[must_use]
    pub fn with_dedicated(self, dedicated: Vec<PathBuf>) -> Self {
        Lab { dedicated, ..self }
    }

    /// What `make` gives, made once for all figures that need it.
    pub(super) fn once<T: 'static>(
        &self,
        make: impl FnOnce(&Lab) -> anyhow::Result<T>,
    ) -> anyhow::Result<Rc<T>> {
        let key = TypeId::of::<T>();
        let kept = self.kept.borrow().get(&key).cloned();
        if let Some(kept) = kept.and_then(|kept| kept.downcast().ok()) {
            return Ok(kept);
        }
        let made = Rc::new(make(self)?);
        self.kept.borrow_mut().insert(key, made.clone());
        Ok(made)
    }

    /// The folder of recorded traces, if there is one, and whether all of them are to be run.
    pub(super) fn traces(&self) -> Option<(&Path, bool)> {
        self.traces.as_ref().map(|(folder, full)| (folder.as_path(), *full))
    }

    /// Folders of bundles whose networks were trained for one width.
    pub(super) fn dedicated(&self) -> &[PathBuf] {
        &self.dedicated
    }

    pub(super) fn bundle(&self) -> &Arc<Bundle> {
        &self.bundle
    }

    /// What runs the networks.
    pub(super) fn engine(&self) -> &dyn Engine {
        &*self.engine
    }

    /// The device's part.
    pub(super) fn head(&self) -> anyhow::Result<Arc<Head>> {
        let load = |lab: &Lab| Ok(Arc::new(Head::load(Arc::clone(&lab.bundle), &*lab.engine)?));
        self.once(load).map(|head| Arc::clone(&head))
    }

    /// The server's part.
    pub(super) fn model(&self) -> anyhow::Result<Arc<BundleModel>> {
        let load = |lab: &Lab| {
            let (bundle, engine) = (Arc::clone(&lab.bundle), Arc::clone(&lab.engine));
            Ok(Arc::new(BundleModel::load(bundle, engine)?))
        };
        self.once(load).map(|model| Arc::clone(&model))
    }

    /// The full network.
    pub(super) fn full(&self) -> anyhow::Result<Full> {
        Ok(Full::load(Arc::clone(&self.bundle), &*self.engine)?)
    }

    /// The most accurate point that takes at most [`BEST_POINT_BYTES`]; the bundle's default where
    /// there is none.
    pub(super) fn best_point(&self) -> OperatingPoint {
        let rungs = self.bundle.points().iter().filter(|rung| rung.bytes_mean <= BEST_POINT_BYTES);
        let best = rungs.max_by(|a, b| {
            a.quality.total_cmp(&b.quality).then(b.bytes_mean.total_cmp(&a.bytes_mean))
        });
        best.map_or_else(|| self.bundle.default_point(), |rung| rung.point)
    }

    /// Every operating point of the bundle, in random order.
    pub(super) fn shuffled_points(&self) -> Vec<OperatingPoint> {
        let points = self.bundle.all_points();
        let count = points.len();
        sample(points.into_iter(), count)
    }

    /// Some hundred pictures: a sample of the folder's, or frames of the camera.
    pub(super) fn pictures(&self) -> anyhow::Result<Arc<Vec<Picture>>> {
        let pictures = self.once(|lab| {
            let frames: Vec<SourceFrame> = match &lab.images {
                Some(images) => sample(source::open(images, lab.bundle.labels(), None)?, PICTURES),
                None => {
                    let camera = CameraConfig { seed: SEED, ..CameraConfig::default() };
                    camera_source(camera, &lab.bundle)?.step_by(STRIDE).take(PICTURES).collect()
                }
            };
            let picture = |frame: SourceFrame| {
                frame.picture.map_err(|error| anyhow!("{}: {error}", frame.source))
            };
            let pictures = frames.into_iter().map(picture).collect::<anyhow::Result<Vec<_>>>()?;
            ensure!(!pictures.is_empty(), "there are no pictures");
            Ok(Arc::new(pictures))
        })?;
        Ok(Arc::clone(&pictures))
    }

    /// Where the pictures come from, in words.
    pub(super) fn origin(&self) -> &'static str {
        if self.images.is_some() { "given pictures" } else { "camera frames" }
    }

    /// The folder of pictures, if there is one.
    pub(super) fn images(&self) -> Option<&Path> {
        self.images.as_deref()
    }

    /// Whether the network's first answer is boxes.
    pub(super) fn detects(&self) -> bool {
        self.bundle.manifest().decoders.first().is_some_and(|first| first.boxes.is_some())
    }

    /// Whether the network's first answer is a class.
    pub(super) fn classifies(&self) -> bool {
        let first = self.bundle.manifest().decoders.first();
        first.is_some_and(|first| first.task == Task::Classification)
    }

    /// An error where accuracy cannot be measured for want of a fitting truth.
    pub fn check_truth(&self) -> anyhow::Result<()> {
        ensure!(
            self.classifies() || self.detects(),
            "the bundle's first answer is neither a class nor boxes"
        );
        ensure!(
            self.detects() == self.truth.is_some(),
            match self.detects() {
                true => "the bundle's network finds boxes: --truth FILE says what is really there",
                false =>
                    "the bundle's network finds no boxes, so that --truth has nothing to judge",
            }
        );
        Ok(())
    }

    /// Whether there are pictures whose true boxes are known.
    pub(super) fn has_true_boxes(&self) -> bool {
        self.images.is_some() && self.truth.is_some()
    }

    /// The folder of pictures in which nothing is to be found, if there is one.
    pub(super) fn empty(&self) -> Option<&Path> {
        self.empty.as_deref()
    }

    /// The pictures to measure accuracy on.
    pub(super) fn labelled(&self) -> anyhow::Result<BoxedSource> {
        let images = self.images().context("there is no folder of pictures")?;
        let labels = self.bundle.labels();
        let source = match &self.truth {
            Some(TruthFile { file, renamed }) => {
                source::open_with_boxes(images, labels, file, renamed)?
            }
            None => source::open(images, labels, None)?,
        };
        Ok(match self.limit {
            Some(limit) => Box::new(sample(source, limit).into_iter()),
            None => source,
        })
    }

    /// What `work` makes of each of these pictures and its class, in their order, by all cores. As the
    /// client does, what has no known class is left out; what cannot be read is an error.
    pub(super) fn each_labelled<T: Send>(
        &self,
        work: impl Fn(&Picture, &str) -> anyhow::Result<T> + Sync,
    ) -> anyhow::Result<Vec<T>> {
        let done = on_all_cores(self.labelled()?, |frame| {
            let Some(truth) = frame.truth.and_then(FrameTruth::into_class) else { return Ok(None) };
            let picture = frame.picture.map_err(|error| anyhow!("{}: {error}", frame.source))?;
            work(&picture, &truth).map(Some)
        })?;
        let done: Vec<T> = done.into_iter().flatten().collect();
        ensure!(!done.is_empty(), "no picture lies in a folder that is named like a class");
        Ok(done)
    }

    /// The same of each picture whose true boxes are known.
    pub(super) fn each_boxed<T: Send>(
        &self,
        work: impl Fn(&Picture, &TrueBoxes) -> anyhow::Result<T> + Sync,
    ) -> anyhow::Result<Vec<T>> {
        let done = on_all_cores(self.labelled()?, |frame| {
            let picture = frame.picture.map_err(|error| anyhow!("{}: {error}", frame.source))?;
            let truth = frame.truth.and_then(FrameTruth::into_boxes);
            truth.map(|truth| work(&picture, &truth)).transpose()
        })?;
        let done: Vec<T> = done.into_iter().flatten().collect();
        ensure!(!done.is_empty(), "there is no picture whose true boxes are known");
        Ok(done)
    }

    /// Starts a real server of the bundle.
    pub(super) fn serve(&self) -> anyhow::Result<Serving> {
        // As many threads as the server's program has.
        let runtime =
            runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let config = ServerConfig::new("unused".into(), TlsConfig::InMemory);
        let registry = Registry::new(vec![self.model()?]);
        let server = runtime.block_on(Server::start_with(config, registry))?;
        Ok(Serving { server, runtime })
    }
}

/// A server on the loopback interface.
pub(super) struct Serving {
    // Dropped before the runtime that it runs on.
    server: Server,
    #[allow(dead_code)] // keeps the server running
    runtime: Runtime,
}

/// How a client talks to a server.
pub(super) struct Talk {
    pub(super) transport: Transport,
    pub(super) detail: Detail,
    /// Boxes of at least this confidence are asked for; `None` for the bundle's own threshold.
    pub(super) min_confidence: Option<f32>,
    pub(super) in_flight: usize,
    pub(super) controller: Box<dyn Controller>,
}

impl Serving {
    /// Where the server listens, and what makes it the right one.
    pub(super) fn address(&self, transport: Transport) -> anyhow::Result<(ServerUrl, String)> {
        let address = match transport {
            Transport::Quic => self.server.quic_addr(),
            Transport::Grpc => self.server.grpc_addr(),
        };
        let address = address.with_context(|| format!("no {} here", transport.scheme()))?;
        let url = ServerUrl { transport, host: address.ip().to_string(), port: address.port() };
        Ok((url, self.server.fingerprint().to_string()))
    }

    /// Has a real client answer every frame of `source`; an error if the server did not answer all
    /// of those that could be read.
    pub(super) fn answer(
        &self,
        head: Arc<Head>,
        talk: Talk,
        source: impl Iterator<Item = SourceFrame> + Send + 'static,
        mut sink: impl FnMut(&FrameReport) -> anyhow::Result<()>,
    ) -> anyhow::Result<Summary> {
        let Talk { transport, detail, min_confidence, in_flight, controller } = talk;
        let (server, fingerprint) = self.address(transport)?;
        let config = ClientConfig {
            server,
            trust: Trust::Fingerprints(vec![fingerprint.parse()?]),
            further_servers: Vec::new(),
            require_server: true,
            deadline: DEADLINE,
            in_flight,
            pace: Pace::EveryFrame,
            rate: None,
            connect_timeout: DEADLINE,
            detail,
            min_confidence,
            filter_classes: None,
            keep_pictures: false,
            metrics: None,
            traces: None,
        };
        let mut sunk = Ok(());
        // One thread, as the client's program has.
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let summary = runtime.block_on(async {
            let client = Client::connect(config, head, controller).await?;
            let sink = |report: &FrameReport| {
                sunk = sink(report);
                if sunk.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
            };
            anyhow::Ok(client.run(source, std::future::pending(), sink).await?)
        })?;
        sunk?;
        let Summary { frames, bad_pictures, ref answered, ref fallbacks, ref dropped, .. } =
            summary;
        let by_server = answered.get("split").copied().unwrap_or(0);
        ensure!(
            by_server + bad_pictures == frames,
            "the server answered {by_server} of {frames} frames: {fallbacks:?}, {dropped:?}"
        );
        Ok(summary)
    }
}

/// `count` frames that go round in `pictures`.
pub(super) fn frames_of(
    pictures: &Arc<Vec<Picture>>,
    count: usize,
) -> impl Iterator<Item = SourceFrame> + Send + 'static {
    let pictures = Arc::clone(pictures);
    (0..count).map(move |number| SourceFrame {
        source: format!("sample {number}"),
        truth: None,
        picture: Ok(pictures[number % pictures.len()].clone()),
    })
}

/// At most `count` of `items` in random order, each as likely as any other (a reservoir, after
/// Vitter's algorithm R).
fn sample<T>(items: impl Iterator<Item = T>, count: usize) -> Vec<T> {
    let mut dice = Pcg32::new(SEED, 0);
    let mut kept = Vec::new();
    for (seen, item) in items.enumerate() {
        // Of those seen so far, this one takes any place with equal chance.
        let place = dice.random_range(0..=seen);
        if kept.len() < count {
            kept.push(item);
            let last = kept.len() - 1;
            kept.swap(place, last);
        } else if place < count {
            kept[place] = item;
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_repeats_has_no_item_twice_and_reaches_the_end() {
        let sampled = sample(0..1000, 100);
        assert_eq!(sampled, sample(0..1000, 100));
        let mut sorted = sampled.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), 100);
        assert!(sorted.iter().any(|&item| item < 100) && sorted.iter().any(|&item| item >= 900));
        assert_ne!(sampled, sorted);
        assert_eq!(sample(0..3, 100).len(), 3);
    }
}
