//! Decides which frames a free worker runs together.
//!
//! The batcher is work-conserving: while a frame waits and a worker is free, [`poll_batch`] has a
//! batch. It never waits for company; frames that arrive while all workers are busy leave together.
//! The earliest deadline goes first, and takes along up to [`BatcherConfig::max_batch`] frames of
//! its [`Lane`], in deadline order. Frames that were cancelled or whose deadline passed never reach
//! a worker; they come out of [`poll_dropped`] with their cause.
//!
//! [`poll_batch`]: Batcher::poll_batch
//! [`poll_dropped`]: Batcher::poll_dropped

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use isthmus_proto::Timestamp;

use crate::counters::Cause;

/// Limits of a [`Batcher`]; all at least 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatcherConfig {
    /// Batches that may run at a time.
    pub workers: usize,
    /// Most jobs in one batch.
    pub max_batch: usize,
    /// Most jobs waiting.
    pub queue: usize,
}

/// Jobs of one lane may run together: they share a trunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lane {
    /// The bundle's position in the registry.
    pub bundle: usize,
    /// The split's position in the bundle; `None` is the full network.
    pub split: Option<u8>,
}

/// A job, numbered in order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(u64);

/// A batch, numbered in order of start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BatchId(u64);

/// Work that waits for a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job<W> {
    /// What it may share a batch with.
    pub lane: Lane,
    /// From this instant on it is worthless.
    pub deadline: Timestamp,
    /// What to run; the batcher does not look at it.
    pub work: W,
}

/// Jobs for one worker to run now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<W> {
    /// To be handed to [`Batcher::handle_worker_free`] when it has run.
    pub id: BatchId,
    /// What its jobs share.
    pub lane: Lane,
    /// Its jobs' work, earliest deadline first; never empty.
    pub work: Vec<W>,
}

/// A job that will not run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped<W> {
    /// Why.
    pub cause: Cause,
    /// What was not run.
    pub work: W,
}

/// The queue is full; here is the work back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Full<W>(pub W);

/// The queue between admission and the workers. Time and compute are the caller's: call a
/// `handle_` method for what happened, then drain [`poll_batch`](Self::poll_batch) and
/// [`poll_dropped`](Self::poll_dropped), then call [`handle_timeout`](Self::handle_timeout) at
/// [`poll_timeout`](Self::poll_timeout).
///
/// ```
/// use isthmus_proto::Timestamp;
/// use isthmus_tail_server::batcher::{Batcher, BatcherConfig, Job, Lane};
///
/// let mut batcher = Batcher::new(BatcherConfig { workers: 1, max_batch: 8, queue: 64 });
/// let lane = Lane { bundle: 0, split: Some(0) };
/// let at = Timestamp::from_micros;
/// for (deadline, work) in [(900, "late"), (500, "soon")] {
///     let job = Job { lane, deadline: at(deadline), work };
///     batcher.handle_arrival(at(0), job).expect("the queue has room");
/// }
/// let batch = batcher.poll_batch(at(10)).expect("a worker is free");
/// assert_eq!(batch.work, ["soon", "late"]);
/// ```
#[derive(Debug)]
pub struct Batcher<W> {
    config: BatcherConfig,
    /// In order of deadline, then of arrival.
    queue: BTreeMap<(Timestamp, JobId), (Lane, W)>,
    /// Deadlines of the queued jobs, to find them by id.
    deadlines: BTreeMap<JobId, Timestamp>,
    running: BTreeMap<BatchId, Running>,
    dropped: VecDeque<Dropped<W>>,
    next_job: u64,
    next_batch: u64,
    batch_time: Smoothed,
    job_time: Smoothed,
}

#[derive(Clone, Copy, Debug)]
struct Running {
    started: Timestamp,
    jobs: u32,
}

impl<W> Batcher<W> {
    /// An idle batcher; zeros in `config` count as 1.
    pub fn new(config: BatcherConfig) -> Self {
        let BatcherConfig { workers, max_batch, queue } = config;
        Batcher {
            config: BatcherConfig {
                workers: workers.max(1),
                max_batch: max_batch.max(1),
                queue: queue.max(1),
            },
            queue: BTreeMap::new(),
            deadlines: BTreeMap::new(),
            running: BTreeMap::new(),
            dropped: VecDeque::new(),
            next_job: 0,
            next_batch: 0,
            batch_time: Smoothed::default(),
            job_time: Smoothed::default(),
        }
    }

    /// Queues a job, unless the queue is full.
    pub fn handle_arrival(&mut self, now: Timestamp, job: Job<W>) -> Result<JobId, Full<W>> {
        self.handle_timeout(now);
        let Job { lane, deadline, work } = job;
        if self.is_full() {
            return Err(Full(work));
        }
        let id = JobId(self.next_job);
        self.next_job += 1;
        self.queue.insert((deadline, id), (lane, work));
        self.deadlines.insert(id, deadline);
        Ok(id)
    }

    /// Drops a job, unless it is already running or gone.
    pub fn handle_cancel(&mut self, id: JobId) {
        if let Some(deadline) = self.deadlines.get(&id) {
            self.drop_job((*deadline, id), Cause::Cancelled);
        }
    }

    /// Drops the jobs whose deadline is not later than `now`.
    pub fn handle_timeout(&mut self, now: Timestamp) {
        while let Some((&key, _)) = self.queue.first_key_value() {
            if key.0 > now {
                break;
            }
            self.drop_job(key, Cause::Expired);
        }
    }

    /// A batch has run and its worker is free.
    pub fn handle_worker_free(&mut self, now: Timestamp, id: BatchId) {
        if let Some(Running { started, jobs }) = self.running.remove(&id) {
            let took = now.saturating_since(started);
            self.batch_time.update(took);
            self.job_time.update(took / jobs);
        }
    }

    /// A batch to start now, if a worker is free and a job waits.
    pub fn poll_batch(&mut self, now: Timestamp) -> Option<Batch<W>> {
        self.handle_timeout(now);
        if self.running.len() >= self.config.workers {
            return None;
        }
        let (_, &(lane, _)) = self.queue.first_key_value()?;
        let same_lane = self.queue.iter().filter(|(_, (other, _))| *other == lane);
        let keys: Vec<_> = same_lane.map(|(&key, _)| key).take(self.config.max_batch).collect();
        let work: Vec<W> = keys.into_iter().filter_map(|key| self.take(key)).collect();
        let id = BatchId(self.next_batch);
        self.next_batch += 1;
        let jobs = u32::try_from(work.len()).unwrap_or(u32::MAX);
        self.running.insert(id, Running { started: now, jobs });
        Some(Batch { id, lane, work })
    }

    /// The next job that will not run, with its cause.
    pub fn poll_dropped(&mut self) -> Option<Dropped<W>> {
        self.dropped.pop_front()
    }

    /// The next instant at which a waiting job expires.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.queue.first_key_value().map(|(&(deadline, _), _)| deadline)
    }

    /// Jobs waiting.
    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    /// Whether another job would be turned away.
    pub fn is_full(&self) -> bool {
        self.queue.len() >= self.config.queue
    }

    /// How long a job that arrives now will wait for a worker, judged by the measured service rate;
    /// zero before the first batch has run.
    pub fn expected_wait(&self) -> Duration {
        if self.queue.is_empty() && self.running.len() < self.config.workers {
            return Duration::ZERO;
        }
        let ahead = u32::try_from(self.queue.len() + 1).unwrap_or(u32::MAX);
        let workers = u32::try_from(self.config.workers).unwrap_or(u32::MAX);
        self.job_time.value().saturating_mul(ahead) / workers
    }

    /// How long a batch runs; zero before the first one has.
    pub fn expected_run(&self) -> Duration {
        self.batch_time.value()
    }

    fn take(&mut self, key: (Timestamp, JobId)) -> Option<W> {
        self.deadlines.remove(&key.1);
        self.queue.remove(&key).map(|(_, work)| work)
    }

    fn drop_job(&mut self, key: (Timestamp, JobId), cause: Cause) {
        if let Some(work) = self.take(key) {
            self.dropped.push_back(Dropped { cause, work });
        }
    }
}

/// An exponentially weighted mean with the gain of RFC 6298's smoothed round-trip time.
#[derive(Clone, Copy, Debug, Default)]
struct Smoothed(Option<Duration>);

impl Smoothed {
    fn update(&mut self, sample: Duration) {
        self.0 = Some(match self.0 {
            None => sample,
            Some(mean) => (mean * 7 + sample) / 8,
        });
    }

    fn value(&self) -> Duration {
        self.0.unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    const LANE: Lane = Lane { bundle: 0, split: Some(0) };

    fn at(micros: u64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    fn batcher(workers: usize, max_batch: usize, queue: usize) -> Batcher<u64> {
        Batcher::new(BatcherConfig { workers, max_batch, queue })
    }

    fn job(deadline: u64, work: u64) -> Job<u64> {
        Job { lane: LANE, deadline: at(deadline), work }
    }

    #[test]
    fn a_full_queue_gives_the_work_back() {
        let mut batcher = batcher(1, 1, 2);
        assert!(batcher.handle_arrival(at(0), job(10, 1)).is_ok());
        assert!(batcher.handle_arrival(at(0), job(20, 2)).is_ok());
        assert_eq!(batcher.handle_arrival(at(0), job(30, 3)), Err(Full(3)));
        // The first one expires and makes room.
        assert!(batcher.handle_arrival(at(10), job(30, 4)).is_ok());
        assert_eq!(batcher.poll_dropped(), Some(Dropped { cause: Cause::Expired, work: 1 }));
    }

    #[test]
    fn a_batch_holds_one_lane_in_deadline_order() {
        let mut batcher = batcher(2, 8, 8);
        let other = Lane { bundle: 0, split: None };
        for (lane, deadline, work) in [(LANE, 30, 1), (other, 20, 2), (LANE, 10, 3)] {
            let job = Job { lane, deadline: at(deadline), work };
            batcher.handle_arrival(at(0), job).expect("room");
        }
        assert_eq!(batcher.poll_batch(at(1)).expect("free").work, [3, 1]);
        assert_eq!(batcher.poll_batch(at(1)).expect("free").work, [2]);
        assert_eq!(batcher.poll_batch(at(1)), None);
    }

    #[test]
    fn a_cancelled_job_never_runs() {
        let mut batcher = batcher(1, 8, 8);
        let id = batcher.handle_arrival(at(0), job(10, 1)).expect("room");
        batcher.handle_cancel(id);
        batcher.handle_cancel(id);
        assert_eq!(batcher.poll_batch(at(1)), None);
        assert_eq!(batcher.poll_dropped(), Some(Dropped { cause: Cause::Cancelled, work: 1 }));
        assert_eq!(batcher.poll_dropped(), None);
    }

    #[test]
    fn the_expected_wait_follows_the_measured_rate() {
        let mut batcher = batcher(1, 1, 8);
        assert_eq!(batcher.expected_wait(), Duration::ZERO);
        for work in 0..4 {
            batcher.handle_arrival(at(0), job(1_000_000, work)).expect("room");
        }
        let batch = batcher.poll_batch(at(0)).expect("free");
        batcher.handle_worker_free(at(1_000), batch.id);
        assert_eq!(batcher.expected_run(), Duration::from_millis(1));
        assert_eq!(batcher.expected_wait(), Duration::from_millis(4));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Arrive { lane: Option<u8>, time_left: u64 },
        Cancel { job: usize },
        Free,
        Wait { micros: u64 },
        Poll,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (prop::option::of(0u8..2), 0u64..200).prop_map(|(lane, time_left)| Step::Arrive { lane, time_left }),
            1 => (0usize..100).prop_map(|job| Step::Cancel { job }),
            2 => Just(Step::Free),
            2 => (0u64..50).prop_map(|micros| Step::Wait { micros }),
            3 => Just(Step::Poll),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        #[test]
        fn invariants_hold_under_random_operations(
            steps in steps(),
            workers in 1usize..4,
            max_batch in 1usize..5,
            capacity in 1usize..20,
        ) {
            let mut batcher = batcher(workers, max_batch, capacity);
            let mut now = 0;
            let (mut arrived, mut refused, mut ran, mut dropped) = (0, 0, 0, 0);
            let mut ids = Vec::new();
            let mut deadlines = BTreeMap::new();
            let mut cancelled = BTreeSet::new();
            let mut running = VecDeque::new();
            for step in steps {
                match step {
                    Step::Arrive { lane, time_left } => {
                        let work = arrived;
                        arrived += 1;
                        deadlines.insert(work, (now + time_left, lane));
                        let lane = Lane { bundle: 0, split: lane };
                        let job = Job { lane, deadline: at(now + time_left), work };
                        match batcher.handle_arrival(at(now), job) {
                            Ok(id) => ids.push((id, work)),
                            Err(Full(_)) => refused += 1,
                        }
                    }
                    Step::Cancel { job } => {
                        if let Some(&(id, work)) = ids.get(job) {
                            batcher.handle_cancel(id);
                            cancelled.insert(work);
                        }
                    }
                    Step::Free => {
                        if let Some(id) = running.pop_front() {
                            batcher.handle_worker_free(at(now), id);
                        }
                    }
                    Step::Wait { micros } => now += micros,
                    Step::Poll => {
                        while let Some(batch) = batcher.poll_batch(at(now)) {
                            prop_assert!((1..=max_batch).contains(&batch.work.len()));
                            let mut previous = 0;
                            for work in &batch.work {
                                let (deadline, lane) = deadlines[work];
                                prop_assert!(deadline > now, "an expired job runs");
                                prop_assert!(!cancelled.contains(work), "a cancelled job runs");
                                prop_assert_eq!(lane, batch.lane.split);
                                prop_assert!(previous <= deadline);
                                previous = deadline;
                            }
                            ran += batch.work.len() as u64;
                            running.push_back(batch.id);
                        }
                        prop_assert!(running.len() <= workers);
                        // Work-conserving: what still waits, waits because all workers are busy.
                        prop_assert!(batcher.queued() == 0 || running.len() == workers);
                    }
                }
                while batcher.poll_dropped().is_some() {
                    dropped += 1;
                }
                prop_assert!(batcher.queued() <= capacity);
                prop_assert_eq!(arrived, refused + ran + dropped + batcher.queued() as u64);
            }
        }
    }
}
