//! How often the networks are right about real pictures, and at what cost in bytes.

use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::{Context, anyhow, ensure};
use isthmus_head_client::Fixed;
use isthmus_head_client::config::Transport;
use isthmus_head_client::source::{BoxedSource, SourceFrame};
use isthmus_models::{Full, Preprocessor, top_k};
use isthmus_proto::wire::Detail;

use super::Measurement;
use super::lab::{Lab, Talk};

/// What the best point may lose against the uncut network.
const LOSS: f64 = 0.02;
/// Pictures in one run of the uncut network.
const BATCH: usize = 8;
/// Frames unanswered at a time, so that head and tails are busy at once.
const IN_FLIGHT: usize = 8;

pub(super) fn full_top1(lab: &Lab) -> anyhow::Result<Measurement> {
    if lab.images().is_none() {
        return Ok(skipped());
    }
    let uncut = lab.once(Uncut::measure)?;
    let Uncut { right, pictures } = *uncut;
    let detail = format!("the uncut network is right about {right} of {pictures} pictures");
    Ok(Measurement::of(uncut.share(), detail))
}

pub(super) fn best_point_top1(lab: &Lab) -> anyhow::Result<Measurement> {
    if lab.images().is_none() {
        return Ok(skipped());
    }
    let (full, best) = (lab.once(Uncut::measure)?.share(), lab.once(BestPoint::measure)?);
    let detail = format!(
        "{}, cut and sent over QUIC, {} pictures; {full:.4} uncut",
        best.name, best.pictures
    );
    Ok(Measurement::of(best.accuracy, detail).against(full - LOSS))
}

pub(super) fn best_point_bytes(lab: &Lab) -> anyhow::Result<Measurement> {
    if lab.images().is_none() {
        return Ok(skipped());
    }
    let best = lab.once(BestPoint::measure)?;
    let detail = format!(
        "mean of envelope and packet at {}, {} pictures; 99th percentile {}",
        best.name, best.pictures, best.bytes_p99
    );
    Ok(Measurement::of(best.bytes, detail))
}

fn skipped() -> Measurement {
    Measurement::skipped("needs pictures of the bundle's classes: --images DIR")
}

/// The uncut network's answers.
#[derive(Default)]
struct Uncut {
    right: u64,
    pictures: u64,
}

impl Uncut {
    fn measure(lab: &Lab) -> anyhow::Result<Uncut> {
        let (full, source) = (lab.full()?, Mutex::new(lab.labelled()?));
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let uncut = thread::scope(|scope| {
            let start = |_| scope.spawn(|| Uncut::of(&full, &source));
            let started: Vec<_> = (0..threads).map(start).collect();
            started.into_iter().try_fold(Uncut::default(), |sum, thread| {
                let part = thread.join().map_err(|_| anyhow!("a thread panicked"))??;
                let (right, pictures) = (sum.right + part.right, sum.pictures + part.pictures);
                anyhow::Ok(Uncut { right, pictures })
            })
        })?;
        ensure!(uncut.pictures > 0, "no picture lies in a folder that is named like a class");
        Ok(uncut)
    }

    /// Answers batch after batch until `source` ends.
    fn of(full: &Full, source: &Mutex<BoxedSource>) -> anyhow::Result<Uncut> {
        let bundle = full.bundle();
        let preprocessor = Preprocessor::new(&bundle.manifest().input);
        let mut uncut = Uncut::default();
        loop {
            let mut source_lock = source.lock().unwrap_or_else(PoisonError::into_inner);
            let frames: Vec<SourceFrame> = source_lock.by_ref().take(BATCH).collect();
            drop(source_lock);
            if frames.is_empty() {
                return Ok(uncut);
            }
            let (mut inputs, mut truths) = (Vec::new(), Vec::new());
            for SourceFrame { source, truth, picture } in frames {
                // As the client does, what has no known class is left out.
                let Some(truth) = truth else { continue };
                let mut input = Vec::new();
                preprocessor
                    .run(&picture.map_err(|error| anyhow!("{source}: {error}"))?, &mut input);
                inputs.push(input);
                truths.push(truth);
            }
            let views: Vec<&[f32]> = inputs.iter().map(Vec::as_slice).collect();
            for (logits, truth) in full.run(&views)?.iter().zip(truths) {
                let best = top_k(logits, 1).first().and_then(|best| bundle.labels().get(best.0));
                uncut.right += u64::from(best == Some(&truth));
                uncut.pictures += 1;
            }
        }
    }

    fn share(&self) -> f64 {
        self.right as f64 / self.pictures as f64
    }
}

/// The best point's answers through client, wire and server.
struct BestPoint {
    name: String,
    accuracy: f64,
    pictures: u64,
    /// Mean of envelope and packet.
    bytes: f64,
    bytes_p99: u64,
}

impl BestPoint {
    fn measure(lab: &Lab) -> anyhow::Result<BestPoint> {
        let point = lab.best_point();
        let talk = Talk {
            transport: Transport::Quic,
            detail: Detail::Top,
            in_flight: IN_FLIGHT,
            controller: Box::new(Fixed(point)),
        };
        let summary = lab.serve()?.answer(lab.head()?, talk, lab.labelled()?, |_| Ok(()))?;
        ensure!(summary.bad_pictures == 0, "{} pictures are unreadable", summary.bad_pictures);
        let none = "no picture lies in a folder that is named like a class";
        Ok(BestPoint {
            name: lab.bundle().describe_point(point).to_string(),
            accuracy: summary.accuracy.context(none)?,
            pictures: summary.with_truth,
            bytes: summary.bytes.mean.context(none)?,
            bytes_p99: summary.bytes.p99.context(none)?,
        })
    }
}
