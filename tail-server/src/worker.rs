//! Threads that decode and run the tail.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::{io, thread};

use isthmus_models::{TailItem, top_k};
use isthmus_proto::wire::Score;
use isthmus_proto::{Content, OperatingPoint};

use crate::batcher::{Batch, Lane};
use crate::counters::Cause;
use crate::exchange::{Computed, FrameKey, NoAnswer, TOP, Work};
use crate::gate::{Gate, Orders};
use crate::model::{FullNetwork, Model, ModelError};
use crate::receiver::Received;

/// Starts the threads; they end after [`Gate::stop_workers`].
pub(crate) fn spawn(gate: &Arc<Gate>, workers: usize) -> io::Result<Vec<JoinHandle<()>>> {
    let start = |worker| {
        let gate = Arc::clone(gate);
        let work = move || {
            while let Some(batch) = gate.next_batch() {
                run(&gate, batch);
            }
        };
        thread::Builder::new().name(format!("tail-{worker}")).spawn(work)
    };
    (0..workers).map(start).collect()
}

fn run(gate: &Gate, batch: Batch<Work<Orders>>) {
    let Batch { id, lane, work } = batch;
    // Frames without a result when the worker is free again count as failed.
    if panic::catch_unwind(AssertUnwindSafe(|| compute(gate, lane, work))).is_err() {
        tracing::error!(bundle = lane.bundle, split = lane.split, "the tail panicked");
    }
    gate.tell(|exchange, now| exchange.handle_worker_free(now, id));
}

fn compute(gate: &Gate, lane: Lane, work: Vec<Work<Orders>>) {
    let model = gate.registry.model(lane.bundle).as_ref();
    let started = gate.clock.now();
    let mut jobs = Vec::with_capacity(work.len());
    for Work { frame, received, .. } in work {
        match decode(model, &received) {
            Ok(input) => jobs.push((frame, received, input)),
            Err(why) => finish(gate, frame, Err(why)),
        }
    }
    if jobs.is_empty() {
        return;
    }
    let batch_size = u32::try_from(jobs.len()).unwrap_or(u32::MAX);
    gate.metrics.on_batch(batch_size);
    let decoded = gate.clock.now();
    let result = infer(model, lane, &jobs);
    let finished = gate.clock.now();
    let (decode, tail) = (decoded.saturating_since(started), finished.saturating_since(decoded));
    match result {
        Ok(logits) if logits.len() == jobs.len() => {
            for ((frame, received, _), logits) in jobs.into_iter().zip(logits) {
                let (top, layers) = (best(&logits), received.layers);
                let computed = Computed { top, logits, layers, decode, tail, batch_size };
                finish(gate, frame, Ok(computed));
            }
        }
        Ok(logits) => {
            let error = format!("{} answers to {} frames", logits.len(), jobs.len());
            fail(gate, model, jobs, &error);
        }
        Err(error) => fail(gate, model, jobs, &error),
    }
}

/// A frame, what arrived of it, and what its network is run on.
type Prepared = (FrameKey, Received, Vec<f32>);

/// What a frame's network is run on: latents, or the prepared picture.
fn decode(model: &dyn Model, received: &Received) -> Result<Vec<f32>, NoAnswer> {
    let Received { content, stream, layers, .. } = received;
    match *content {
        Content::Features(point) => {
            model.decode(point, stream, *layers).map_err(|error| failed(model, received, &error))
        }
        Content::Image(format) => full_network(model)
            .map_err(|error| failed(model, received, &error))?
            .decode(format, stream)
            .map_err(|error| NoAnswer::Refused(error.into())),
    }
}

/// Logits of each job, in order. All are of one lane.
fn infer(model: &dyn Model, lane: Lane, jobs: &[Prepared]) -> Result<Vec<Vec<f32>>, ModelError> {
    match lane.split {
        Some(_) => model.infer(&jobs.iter().filter_map(item).collect::<Vec<_>>()),
        None => {
            let inputs: Vec<&[f32]> = jobs.iter().map(|(.., input)| input.as_slice()).collect();
            full_network(model)?.infer(&inputs)
        }
    }
}

fn item((_, received, latents): &Prepared) -> Option<TailItem<'_>> {
    match received.content {
        Content::Features(OperatingPoint { split, width, .. }) => {
            Some(TailItem { split, width, latents })
        }
        Content::Image(_) => None,
    }
}

fn best(logits: &[f32]) -> Vec<Score> {
    let score = |(class, probability)| Score {
        class: u32::try_from(class).unwrap_or(u32::MAX),
        probability,
    };
    top_k(logits, TOP).into_iter().map(score).collect()
}

fn full_network(model: &dyn Model) -> Result<&dyn FullNetwork, ModelError> {
    model.full_network().ok_or_else(|| ModelError::new("it takes no compressed pictures"))
}

fn finish(gate: &Gate, frame: FrameKey, result: Result<Computed, NoAnswer>) {
    gate.tell(|exchange, now| exchange.handle_computed(now, frame, result));
}

fn fail(gate: &Gate, model: &dyn Model, jobs: Vec<Prepared>, error: &dyn std::fmt::Display) {
    for (frame, received, _) in jobs {
        finish(gate, frame, Err(failed(model, &received, error)));
    }
}

fn failed(model: &dyn Model, received: &Received, error: &dyn std::fmt::Display) -> NoAnswer {
    let content = received.content;
    tracing::error!(bundle = model.name(), ?content, "the network failed: {error}");
    NoAnswer::Dropped(Cause::Failed)
}
