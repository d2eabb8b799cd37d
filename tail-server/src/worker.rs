//! Threads that decode and run the tail, and the queue before them.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{io, thread};

use isthmus_models::TailItem;
use isthmus_proto::wire::Feedback;
use isthmus_proto::{Content, OperatingPoint, Timestamp};
use tokio::sync::oneshot;

use crate::admission::Refused;
use crate::batcher::{self, Batch, Batcher, BatcherConfig, JobId, Lane};
use crate::counters::Cause;
use crate::metrics::Metrics;
use crate::model::{Model, ModelError, Uncut};
use crate::receiver::Received;

/// Microseconds since the server started.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Clock(Instant::now())
    }

    pub(crate) fn now(&self) -> Timestamp {
        Timestamp::ZERO + self.0.elapsed()
    }

    /// Time from now to `instant`; zero if it passed.
    pub(crate) fn until(&self, instant: Timestamp) -> Duration {
        instant.saturating_since(self.now())
    }
}

/// One received frame and where its outcome goes.
pub(crate) struct Job {
    pub(crate) received: Received,
    outcome: oneshot::Sender<Outcome>,
}

/// What became of a job.
pub(crate) type Outcome = Result<Computed, NoAnswer>;

/// Why an accepted frame gets no answer.
pub(crate) enum NoAnswer {
    Dropped(Cause),
    /// What arrived whole turned out to be no picture, or too large a one.
    Refused(Refused),
}

/// A network's output.
pub(crate) struct Computed {
    /// f32, one per class.
    pub(crate) logits: Vec<f32>,
    /// Layers that were decoded.
    pub(crate) layers: usize,
    pub(crate) feedback: Feedback,
}

/// A job on its way.
pub(crate) struct Ticket {
    pub(crate) id: JobId,
    pub(crate) deadline: Timestamp,
    pub(crate) outcome: oneshot::Receiver<Outcome>,
}

/// The batcher, shared by the transports that fill it and the threads that empty it.
pub(crate) struct Dispatcher {
    state: Mutex<State>,
    wake: Condvar,
    clock: Clock,
    models: Vec<Arc<dyn Model>>,
    metrics: Arc<Metrics>,
}

struct State {
    batcher: Batcher<Job>,
    stopping: bool,
}

impl Dispatcher {
    pub(crate) fn new(
        config: BatcherConfig,
        models: &[Arc<dyn Model>],
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        Dispatcher {
            state: Mutex::new(State { batcher: Batcher::new(config), stopping: false }),
            wake: Condvar::new(),
            clock,
            models: models.to_vec(),
            metrics,
        }
    }

    /// Starts the threads; they end after [`stop`](Self::stop).
    pub(crate) fn spawn(self: &Arc<Self>, workers: usize) -> io::Result<Vec<JoinHandle<()>>> {
        let start = |worker| {
            let dispatcher = Arc::clone(self);
            let name = format!("tail-{worker}");
            thread::Builder::new().name(name).spawn(move || dispatcher.work())
        };
        (0..workers).map(start).collect()
    }

    /// Queues a frame; `None` if the queue is full.
    pub(crate) fn submit(&self, lane: Lane, received: Received) -> Option<Ticket> {
        let (sender, outcome) = oneshot::channel();
        let deadline = received.deadline;
        let job = batcher::Job { lane, deadline, work: Job { received, outcome: sender } };
        // A full queue gives the job back, and here it ends.
        let id = self.with_batcher(|batcher, now| batcher.handle_arrival(now, job).ok())?;
        self.wake.notify_one();
        Some(Ticket { id, deadline, outcome })
    }

    /// Drops a queued job whose answer nobody wants.
    pub(crate) fn cancel(&self, id: JobId) {
        self.with_batcher(|batcher, _| batcher.handle_cancel(id));
    }

    /// Drops the queued jobs whose deadline passed.
    pub(crate) fn expire(&self) {
        self.with_batcher(|batcher, now| batcher.handle_timeout(now));
    }

    /// Whether the queue is full, and how long a frame that comes now will wait and then run.
    pub(crate) fn load(&self) -> (bool, Duration, Duration) {
        let state = self.lock();
        let batcher = &state.batcher;
        (batcher.is_full(), batcher.expected_wait(), batcher.expected_run())
    }

    /// Frames that wait for a worker.
    pub(crate) fn queued(&self) -> usize {
        self.lock().batcher.queued()
    }

    /// Lets the threads end when the queue is empty.
    pub(crate) fn stop(&self) {
        self.lock().stopping = true;
        self.wake.notify_all();
    }

    fn work(&self) {
        let mut state = self.lock();
        loop {
            let batch = state.batcher.poll_batch(self.clock.now());
            settle(&mut state.batcher);
            if let Some(batch) = batch {
                drop(state);
                let id = batch.id;
                self.run(batch);
                state = self.lock();
                state.batcher.handle_worker_free(self.clock.now(), id);
            } else if state.stopping {
                return;
            } else {
                state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }

    fn run(&self, batch: Batch<Job>) {
        let lane = batch.lane;
        let work = AssertUnwindSafe(|| self.compute(batch));
        // The jobs are dropped by the unwinding, which tells their frames that they failed.
        if panic::catch_unwind(work).is_err() {
            tracing::error!(bundle = lane.bundle, split = lane.split, "the tail panicked");
        }
    }

    fn compute(&self, batch: Batch<Job>) {
        let model = &self.models[batch.lane.bundle];
        let started = self.clock.now();
        let mut jobs = Vec::with_capacity(batch.work.len());
        for job in batch.work {
            match decode(model.as_ref(), &job.received) {
                Ok(input) => jobs.push((job, input)),
                // Fails when the connection is gone, which its frame counts.
                Err(ended) => drop(job.outcome.send(Err(ended))),
            }
        }
        if jobs.is_empty() {
            return;
        }
        let batch_size = u32::try_from(jobs.len()).unwrap_or(u32::MAX);
        self.metrics.on_batch(batch_size);
        let decoded = self.clock.now();
        let result = infer(model.as_ref(), batch.lane, &jobs);
        let finished = self.clock.now();
        match result {
            Ok(logits) if logits.len() == jobs.len() => {
                for ((job, _), logits) in jobs.into_iter().zip(logits) {
                    let Received { received_at, receive_span, layers, .. } = job.received;
                    let feedback = Feedback {
                        receive_span_us: micros(receive_span),
                        queue_us: micros(started.saturating_since(received_at)),
                        decode_us: micros(decoded.saturating_since(started)),
                        tail_us: micros(finished.saturating_since(decoded)),
                        batch_size,
                    };
                    // Fails when the connection is gone, which its frame counts.
                    let _ = job.outcome.send(Ok(Computed { logits, layers, feedback }));
                }
            }
            Ok(logits) => {
                let error = format!("{} answers to {} frames", logits.len(), jobs.len());
                jobs.into_iter().for_each(|(job, _)| fail(model.as_ref(), job, &error));
            }
            Err(error) => jobs.into_iter().for_each(|(job, _)| fail(model.as_ref(), job, &error)),
        }
    }

    fn with_batcher<T>(&self, f: impl FnOnce(&mut Batcher<Job>, Timestamp) -> T) -> T {
        let mut state = self.lock();
        let result = f(&mut state.batcher, self.clock.now());
        settle(&mut state.batcher);
        result
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that may panic runs while it is held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a frame's network is run on: latents, or the prepared picture.
fn decode(model: &dyn Model, received: &Received) -> Result<Vec<f32>, NoAnswer> {
    let Received { content, stream, layers, .. } = received;
    match *content {
        Content::Features(point) => {
            model.decode(point, stream, *layers).map_err(|error| failed(model, received, &error))
        }
        Content::Image(format) => uncut(model)
            .map_err(|error| failed(model, received, &error))?
            .decode(format, stream)
            .map_err(|error| NoAnswer::Refused(error.into())),
    }
}

/// Logits of each job, in order. All are of one lane.
fn infer(
    model: &dyn Model,
    lane: Lane,
    jobs: &[(Job, Vec<f32>)],
) -> Result<Vec<Vec<f32>>, ModelError> {
    match lane.split {
        Some(_) => model.infer(&jobs.iter().filter_map(item).collect::<Vec<_>>()),
        None => {
            let inputs: Vec<&[f32]> = jobs.iter().map(|(_, input)| input.as_slice()).collect();
            uncut(model)?.infer(&inputs)
        }
    }
}

fn item((job, latents): &(Job, Vec<f32>)) -> Option<TailItem<'_>> {
    match job.received.content {
        Content::Features(OperatingPoint { split, width, .. }) => {
            Some(TailItem { split, width, latents })
        }
        Content::Image(_) => None,
    }
}

fn uncut(model: &dyn Model) -> Result<&dyn Uncut, ModelError> {
    model.uncut().ok_or_else(|| ModelError::new("it takes no compressed pictures"))
}

pub(crate) fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

fn settle(batcher: &mut Batcher<Job>) {
    while let Some(dropped) = batcher.poll_dropped() {
        let _ = dropped.work.outcome.send(Err(NoAnswer::Dropped(dropped.cause)));
    }
}

fn fail(model: &dyn Model, job: Job, error: &dyn std::fmt::Display) {
    let ended = failed(model, &job.received, error);
    let _ = job.outcome.send(Err(ended));
}

fn failed(model: &dyn Model, received: &Received, error: &dyn std::fmt::Display) -> NoAnswer {
    let content = received.content;
    tracing::error!(bundle = model.name(), ?content, "the network failed: {error}");
    NoAnswer::Dropped(Cause::Failed)
}
