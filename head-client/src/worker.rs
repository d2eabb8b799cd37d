//! The compute thread: picture → features → bytes.

use std::io;
use std::sync::Arc;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use isthmus_models::{Bundle, Head, Picture, Preprocessor, top_k};
use isthmus_proto::{Coded, FrameId};
use tokio::sync::mpsc as tokio_mpsc;

use crate::controller::HeadRun;
use crate::outcome::Answer;

pub(crate) struct Job {
    pub(crate) frame: FrameId,
    pub(crate) picture: Picture,
    pub(crate) run: HeadRun,
}

pub(crate) struct Done {
    pub(crate) frame: FrameId,
    pub(crate) computed: Result<Computed, String>,
}

pub(crate) struct Computed {
    pub(crate) exit: Option<Answer>,
    pub(crate) coded: Coded,
    pub(crate) head: Duration,
    pub(crate) encode: Duration,
}

/// The thread's two ends. It ends when this is dropped.
pub(crate) struct Worker {
    pub(crate) jobs: mpsc::Sender<Job>,
    pub(crate) done: tokio_mpsc::UnboundedReceiver<Done>,
}

impl Worker {
    /// Starts the thread.
    pub(crate) fn start(head: Arc<Head>) -> io::Result<Self> {
        let (jobs, orders) = mpsc::channel::<Job>();
        let (results, done) = tokio_mpsc::unbounded_channel();
        let mut bench = Bench::new(head);
        thread::Builder::new().name("head".into()).spawn(move || {
            for Job { frame, picture, run } in orders {
                let computed = bench.compute(&picture, run);
                if results.send(Done { frame, computed }).is_err() {
                    return;
                }
            }
        })?;
        Ok(Worker { jobs, done })
    }
}

struct Bench {
    bundle: Arc<Bundle>,
    head: Arc<Head>,
    preprocessor: Preprocessor,
    input: Vec<f32>,
}

impl Bench {
    fn new(head: Arc<Head>) -> Self {
        let bundle = Arc::clone(head.bundle());
        let preprocessor = Preprocessor::new(&bundle.manifest().input);
        Bench { bundle, head, preprocessor, input: Vec::new() }
    }

    fn compute(&mut self, picture: &Picture, run: HeadRun) -> Result<Computed, String> {
        let HeadRun { split, width, bits, layers } = run;
        let start = Instant::now();
        self.preprocessor.run(picture, &mut self.input);
        let output = self.head.run(split, width, &self.input).map_err(|error| error.to_string())?;
        let ran = Instant::now();
        let codec = self.bundle.codec(split, width, bits);
        let codec = codec.ok_or_else(|| format!("the bundle has no codec for {run:?}"))?;
        let symbols =
            codec.quantise(&output.latents, layers.into()).map_err(|error| error.to_string())?;
        let coded = codec.encode(&symbols).map_err(|error| error.to_string())?;
        let (head, encode) = (ran - start, ran.elapsed());
        let exit = output.exit.and_then(|logits| top_k(&logits, 1).first().copied());
        let exit = exit
            .filter(|(_, confidence)| confidence.is_finite())
            .map(|(class, confidence)| Answer { class, confidence });
        Ok(Computed { exit, coded, head, encode })
    }
}
