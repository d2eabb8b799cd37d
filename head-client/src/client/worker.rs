//! The compute thread: it makes features and their bytes, a compressed picture, or an answer of a
//! picture.

use std::any::Any;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use isthmus_models::{
    Answer, Bundle, Full, Head, HeadOutput, ImageEncoder, Outputs, Picture, Preprocessor,
};
use isthmus_proto::{Coded, FrameId};
use tokio::sync::mpsc as tokio_mpsc;

use crate::config::ClientConfig;
use crate::controller::{HeadRun, ImageRun, Run};

pub(crate) struct Job {
    pub(crate) frame: FrameId,
    pub(crate) picture: Arc<Picture>,
    pub(crate) run: Run,
}

pub(crate) struct Done {
    pub(crate) frame: FrameId,
    pub(crate) computed: Result<Computed, ComputeError>,
}

/// What the compute thread made of a picture.
#[derive(Clone, Debug)]
pub struct Computed {
    /// What was answered here: by the exit, where a head ran that has one, for the bundle's first decoder;
    /// or by the full network, where that ran.
    pub exit: Option<Here>,
    /// The layers; a compressed picture is one, and what the full network makes has none.
    pub coded: Coded,
    /// Time that preprocessing and the head, or the full network, took.
    pub head: Duration,
    /// Time that quantising and coding took, or compressing the picture.
    pub encode: Duration,
}

/// An answer that was computed on the device.
#[derive(Clone, Debug, PartialEq)]
pub struct Here {
    /// Of each decoder that is answered, in the bundle's order.
    pub answers: Vec<Answer>,
    /// How sure the first one is, 0 to 1.
    pub confidence: f32,
}

/// Why nothing was made of a picture.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ComputeError(pub String);

/// What the compute thread does: the bundle's networks, or something that stands for them.
pub trait Compute: Send {
    /// Does what `run` says; as long as this takes, the device is busy.
    fn compute(
        &mut self,
        frame: FrameId,
        picture: &Picture,
        run: Run,
    ) -> Result<Computed, ComputeError>;
}

/// The thread's two ends. It ends when this is dropped.
pub(crate) struct Worker {
    pub(crate) jobs: mpsc::Sender<Job>,
    pub(crate) done: tokio_mpsc::UnboundedReceiver<Done>,
}

impl Worker {
    /// Starts the thread.
    pub(crate) fn start(mut compute: Box<dyn Compute>) -> io::Result<Self> {
        let (jobs, orders) = mpsc::channel::<Job>();
        let (results, done) = tokio_mpsc::unbounded_channel();
        thread::Builder::new().name("head".into()).spawn(move || {
            for Job { frame, picture, run } in orders {
                let work = || compute.compute(frame, &picture, run);
                // What is left of the networks is only scratch memory, which each run fills anew.
                let computed =
                    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|cause| {
                        Err(ComputeError(format!("the head panicked: {}", words(&*cause))))
                    });
                if results.send(Done { frame, computed }).is_err() {
                    return;
                }
            }
        })?;
        Ok(Worker { jobs, done })
    }
}

/// What a panic says.
pub(super) fn words(cause: &(dyn Any + Send)) -> &str {
    let text = cause.downcast_ref::<&str>().copied();
    text.or_else(|| cause.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a word")
}

/// The bundle's networks and codecs, on this machine's processor.
pub(crate) struct Networks {
    bundle: Arc<Bundle>,
    head: Arc<Head>,
    full: Option<Arc<Full>>,
    preprocessor: Preprocessor,
    input: Vec<f32>,
    /// Of boxes; none for the bundle's own.
    min_confidence: Option<f32>,
    /// Labels that an exit looks for; none for all.
    filter_classes: Option<Vec<usize>>,
}

impl Compute for Networks {
    fn compute(
        &mut self,
        _: FrameId,
        picture: &Picture,
        run: Run,
    ) -> Result<Computed, ComputeError> {
        self.work(picture, run).map_err(ComputeError)
    }
}

impl Networks {
    /// Without `full`, the full network cannot be run.
    pub(crate) fn new(head: Arc<Head>, full: Option<Arc<Full>>, config: &ClientConfig) -> Self {
        let bundle = Arc::clone(head.bundle());
        let preprocessor = Preprocessor::new(&bundle.manifest().input);
        Networks {
            bundle,
            head,
            full,
            preprocessor,
            input: Vec::new(),
            min_confidence: config.min_confidence,
            filter_classes: config.filter_classes.clone(),
        }
    }

    fn work(&mut self, picture: &Picture, run: Run) -> Result<Computed, String> {
        let start = Instant::now();
        let output = run.head().map(|head| self.run_head(picture, head)).transpose()?;
        let local = (run == Run::Local).then(|| self.run_full(picture)).transpose()?;
        let ran = Instant::now();
        let coded = match (run, &output) {
            (Run::Head(run), Some(output)) => self.encode(run, &output.latents)?,
            (Run::Head(_), None) => return Err("a head gave nothing".into()),
            (Run::Image(run), _) => self.compress(run, picture)?,
            (Run::Local, _) => Coded::default(),
        };
        let (head, encode) = (ran - start, ran.elapsed());
        let exit = match (local, output.and_then(|output| output.exit)) {
            (Some(outputs), _) => Some(self.answer_locally(outputs)?),
            (None, Some(logits)) => {
                let of = self.filter_classes.as_deref();
                let exit = self.bundle.decoders().exit_answer(logits, of);
                exit.map(|(answer, confidence)| Here { answers: vec![answer], confidence })
            }
            (None, None) => None,
        };
        Ok(Computed { exit, coded, head, encode })
    }

    fn run_head(
        &mut self,
        picture: &Picture,
        (split, width): (u8, u8),
    ) -> Result<HeadOutput, String> {
        self.preprocessor.run(picture, &mut self.input);
        self.head.run(split, width, &self.input).map_err(|error| error.to_string())
    }

    /// The full network's outputs.
    fn run_full(&mut self, picture: &Picture) -> Result<Outputs, String> {
        let full = self.full.as_ref().ok_or("the full network was not loaded")?;
        self.preprocessor.run(picture, &mut self.input);
        let outputs = full.run(&[&self.input]).map_err(|error| error.to_string())?;
        outputs.into_iter().next().ok_or_else(|| "the full network gave nothing".into())
    }

    fn answer_locally(&self, outputs: Outputs) -> Result<Here, String> {
        let answers = self.bundle.decoders().answers(outputs, self.min_confidence);
        let answers = answers.map_err(|error| error.to_string())?;
        let first = answers.first();
        let confidence = first.map_or(0.0, |it| self.bundle.decoders().confidence(0, it));
        Ok(Here { answers, confidence })
    }

    fn encode(&self, run: HeadRun, latents: &[f32]) -> Result<Coded, String> {
        let HeadRun { split, width, bits, layers } = run;
        let codec = self.bundle.codec(split, width, bits);
        let codec = codec.ok_or_else(|| format!("the bundle has no codec for {run:?}"))?;
        let symbols = codec.quantise(latents, layers.into()).map_err(|error| error.to_string())?;
        codec.encode(&symbols).map_err(|error| error.to_string())
    }

    fn compress(&self, run: ImageRun, picture: &Picture) -> Result<Coded, String> {
        let encoder = ImageEncoder::new(run.image, &self.bundle.manifest().input);
        let file = encoder.encode(picture).map_err(|error| error.to_string())?;
        Ok(Coded { layer_ends: vec![file.len()], stream: file })
    }
}
