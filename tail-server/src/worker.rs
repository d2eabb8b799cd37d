//! Threads that decode and run the tail.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::{io, thread};

use isthmus_models::{Outputs, TailItem, Wanted};
use isthmus_proto::{Content, OperatingPoint};

use crate::batcher::{Batch, Lane};
use crate::counters::Cause;
use crate::exchange::{Computed, FrameKey, NoAnswer, Work};
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
    for Work { frame, received, wanted, .. } in work {
        match decode(model, &received) {
            Ok(input) => jobs.push(Prepared { frame, received, wanted, input }),
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
        Ok(outputs) if outputs.len() == jobs.len() => {
            for (job, outputs) in jobs.into_iter().zip(outputs) {
                let layers = job.received.layers;
                // One frame's outputs that are no answer fail no other.
                let computed = model
                    .answers(outputs, job.wanted)
                    .map(|answers| Computed { answers, layers, decode, tail, batch_size })
                    .map_err(|error| failed(model, &job.received, &error));
                finish(gate, job.frame, computed);
            }
        }
        Ok(outputs) => {
            let error = format!("{} answers to {} frames", outputs.len(), jobs.len());
            fail(gate, model, jobs, &error);
        }
        Err(error) => fail(gate, model, jobs, &error),
    }
}

/// A frame that a network can be run on.
struct Prepared {
    frame: FrameKey,
    received: Received,
    wanted: Wanted,
    /// Latents, or the prepared picture.
    input: Vec<f32>,
}

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

/// The outputs of each job, in order. All are of one lane.
fn infer(model: &dyn Model, lane: Lane, jobs: &[Prepared]) -> Result<Vec<Outputs>, ModelError> {
    match lane.split {
        Some(_) => model.infer(&jobs.iter().filter_map(item).collect::<Vec<_>>()),
        None => {
            let inputs: Vec<&[f32]> = jobs.iter().map(|job| job.input.as_slice()).collect();
            full_network(model)?.infer(&inputs)
        }
    }
}

fn item(job: &Prepared) -> Option<TailItem<'_>> {
    match job.received.content {
        Content::Features(OperatingPoint { split, width, .. }) => {
            Some(TailItem { split, width, latents: &job.input })
        }
        Content::Image(_) => None,
    }
}

fn full_network(model: &dyn Model) -> Result<&dyn FullNetwork, ModelError> {
    model.full_network().ok_or_else(|| ModelError::new("it takes no compressed pictures"))
}

fn finish(gate: &Gate, frame: FrameKey, result: Result<Computed, NoAnswer>) {
    gate.tell(|exchange, now| exchange.handle_computed(now, frame, result));
}

fn fail(gate: &Gate, model: &dyn Model, jobs: Vec<Prepared>, error: &dyn std::fmt::Display) {
    for Prepared { frame, received, .. } in jobs {
        finish(gate, frame, Err(failed(model, &received, error)));
    }
}

fn failed(model: &dyn Model, received: &Received, error: &dyn std::fmt::Display) -> NoAnswer {
    let content = received.content;
    tracing::error!(bundle = model.name(), ?content, "the network failed: {error}");
    NoAnswer::Dropped(Cause::Failed)
}
