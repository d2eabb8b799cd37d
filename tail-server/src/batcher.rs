//! Decides which frames a free worker runs together.
//!
//! The batcher is work-conserving: while a frame waits and a worker is free, [`poll_batch`] has a
//! batch. It never waits for company; frames that arrive while all workers are busy leave together.
//! The earliest deadline goes first, and takes along up to [`BatcherConfig::max_batch`] frames of
//! its [`Lane`], in deadline order. Frames that were cancelled or whose deadline passed never reach
//! a worker; they come out of [`poll_dropped`] with their cause.
//!
//! Deadlines decide among flows that had about as much of the workers as each other, because a
//! device may name any deadline. What each [`Flow`] had is charged to it when its jobs run, as in
//! start-time fair queueing (Goyal, Vin and Cheng, 1996), and one that is more than a batch ahead
//! of the one that had least waits. In a full queue the flow with most jobs makes room: the one
//! with its latest deadline is displaced.
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

/// Whose jobs share what is fair between flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow(pub u64);

/// What a job is charged to its flow, where another flow's may cost more or less.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cost(u64);

impl Cost {
    /// What most jobs cost.
    pub const ONE: Cost = Cost(1 << 16);

    /// A job of a flow that has one of so many parts of a share, from 1 to 65,536.
    pub fn of_share(parts: usize) -> Cost {
        Cost(Cost::ONE.0 * parts.clamp(1, 1 << 16) as u64)
    }
}

/// Work that waits for a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job<W> {
    /// What it may share a batch with.
    pub lane: Lane,
    /// Whose it is.
    pub flow: Flow,
    /// What it is charged.
    pub cost: Cost,
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
/// use isthmus_tail_server::batcher::{Batcher, BatcherConfig, Cost, Flow, Job, Lane};
///
/// let mut batcher = Batcher::new(BatcherConfig { workers: 1, max_batch: 8, queue: 64 });
/// let lane = Lane { bundle: 0, split: Some(0) };
/// let at = Timestamp::from_micros;
/// for (deadline, work) in [(900, "late"), (500, "soon")] {
///     let job = Job { lane, flow: Flow(0), cost: Cost::ONE, deadline: at(deadline), work };
///     batcher.handle_arrival(at(0), job).expect("the queue has room");
/// }
/// let batch = batcher.poll_batch(at(10)).expect("a worker is free");
/// assert_eq!(batch.work, ["soon", "late"]);
/// ```
#[derive(Debug)]
pub struct Batcher<W> {
    config: BatcherConfig,
    /// In order of deadline, then of arrival.
    queue: BTreeMap<(Timestamp, JobId), Queued<W>>,
    /// Deadlines of the queued jobs, to find them by id.
    deadlines: BTreeMap<JobId, Timestamp>,
    flows: BTreeMap<Flow, Had>,
    /// The least that a flow had which waited when the latest batch began.
    floor: u64,
    running: BTreeMap<BatchId, Running>,
    dropped: VecDeque<Dropped<W>>,
    next_job: u64,
    next_batch: u64,
    batch_time: Smoothed,
    job_time: Smoothed,
}

#[derive(Debug)]
struct Queued<W> {
    lane: Lane,
    flow: Flow,
    cost: Cost,
    work: W,
}

/// What a flow had of the workers, in costs, and what it has in the queue.
#[derive(Clone, Copy, Debug, Default)]
struct Had {
    charged: u64,
    /// Costs of its queued jobs.
    waiting: u64,
    jobs: usize,
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
            flows: BTreeMap::new(),
            floor: 0,
            running: BTreeMap::new(),
            dropped: VecDeque::new(),
            next_job: 0,
            next_batch: 0,
            batch_time: Smoothed::default(),
            job_time: Smoothed::default(),
        }
    }

    /// Queues a job, unless the queue is full and no other flow's makes room.
    pub fn handle_arrival(&mut self, now: Timestamp, job: Job<W>) -> Result<JobId, Full<W>> {
        self.handle_timeout(now);
        let Job { lane, flow, cost, deadline, work } = job;
        if self.queue.len() >= self.config.queue {
            let Some(key) = self.displaced_by(flow, cost, deadline) else { return Err(Full(work)) };
            self.drop_job(key, Cause::Displaced);
        }
        let id = JobId(self.next_job);
        self.next_job += 1;
        let floor = self.floor;
        let had = self.flows.entry(flow).or_default();
        if had.jobs == 0 {
            had.charged = had.charged.max(floor);
        }
        had.jobs += 1;
        had.waiting += cost.0;
        self.queue.insert((deadline, id), Queued { lane, flow, cost, work });
        self.deadlines.insert(id, deadline);
        Ok(id)
    }

    /// Drops a job for this cause, unless it is already running or gone.
    pub fn handle_drop(&mut self, id: JobId, cause: Cause) {
        if let Some(deadline) = self.deadlines.get(&id) {
            self.drop_job((*deadline, id), cause);
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
        let least = self.flows.values().filter(|had| had.jobs > 0).map(|had| had.charged).min()?;
        let most = least + self.config.max_batch as u64 * Cost::ONE.0;
        let mut lane = None;
        let mut keys = Vec::with_capacity(self.config.max_batch);
        for (&key, job) in &self.queue {
            let Some(had) = self.flows.get_mut(&job.flow) else { continue };
            if lane.is_some_and(|lane| lane != job.lane) || had.charged > most {
                continue;
            }
            lane = Some(job.lane);
            had.charged += job.cost.0;
            keys.push(key);
            if keys.len() == self.config.max_batch {
                break;
            }
        }
        let lane = lane?;
        let work: Vec<W> = keys.into_iter().filter_map(|key| self.take(key)).collect();
        self.floor = self.floor.max(least);
        // What is behind the floor starts there anyway.
        let floor = self.floor;
        self.flows.retain(|_, had| had.jobs > 0 || had.charged > floor);
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

    /// Whether a job of a flow would be turned away now.
    pub fn is_full_for(&self, flow: Flow, cost: Cost, deadline: Timestamp) -> bool {
        self.queue.len() >= self.config.queue && self.displaced_by(flow, cost, deadline).is_none()
    }

    /// How long a job of a flow that arrives now will wait for a worker, judged by the measured
    /// service rate; zero before the first batch has run.
    pub fn expected_wait(&self, flow: Flow) -> Duration {
        if self.queue.is_empty() && self.running.len() < self.config.workers {
            return Duration::ZERO;
        }
        let own = self.flows.get(&flow).map_or(0, |had| had.jobs);
        // While its own leave, another flow has a turn for each of them, and may be a batch ahead.
        let fair = own + 1 + self.config.max_batch;
        let others = self.flows.iter().filter(|(other, _)| **other != flow);
        let ahead = own + 1 + others.map(|(_, had)| had.jobs.min(fair)).sum::<usize>();
        let ahead = u32::try_from(ahead).unwrap_or(u32::MAX);
        let workers = u32::try_from(self.config.workers).unwrap_or(u32::MAX);
        self.job_time.value().saturating_mul(ahead) / workers
    }

    /// When the batch began that runs longest.
    pub fn longest_running(&self) -> Option<Timestamp> {
        self.running.values().map(|running| running.started).min()
    }

    /// How long a batch runs; zero before the first one has.
    pub fn expected_run(&self) -> Duration {
        self.batch_time.value()
    }

    /// Of a full queue the job that makes room for one of `flow`: that with the latest deadline, of
    /// the flow that would have most; or of its own, if that is later than `deadline`.
    fn displaced_by(
        &self,
        flow: Flow,
        cost: Cost,
        deadline: Timestamp,
    ) -> Option<(Timestamp, JobId)> {
        let own = self.flows.get(&flow).map_or(0, |had| had.waiting) + cost.0;
        let others = self.flows.iter().filter(|(other, had)| **other != flow && had.jobs > 0);
        // Of flows that have as much as each other, the one that came last.
        let heaviest = others.max_by_key(|(flow, had)| (had.waiting, **flow));
        let from = heaviest.filter(|(_, had)| had.waiting > own).map_or(flow, |(other, _)| *other);
        let (&key, _) = self.queue.iter().rev().find(|(_, job)| job.flow == from)?;
        (from != flow || key.0 > deadline).then_some(key)
    }

    fn take(&mut self, key: (Timestamp, JobId)) -> Option<W> {
        self.deadlines.remove(&key.1);
        let Queued { flow, cost, work, .. } = self.queue.remove(&key)?;
        if let Some(had) = self.flows.get_mut(&flow) {
            had.jobs -= 1;
            had.waiting -= cost.0;
        }
        Some(work)
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
        job_of(0, deadline, work)
    }

    fn job_of(flow: u64, deadline: u64, work: u64) -> Job<u64> {
        Job { lane: LANE, flow: Flow(flow), cost: Cost::ONE, deadline: at(deadline), work }
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
            let job = Job { lane, ..job(deadline, work) };
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
        batcher.handle_drop(id, Cause::Cancelled);
        batcher.handle_drop(id, Cause::Cancelled);
        assert_eq!(batcher.poll_batch(at(1)), None);
        assert_eq!(batcher.poll_dropped(), Some(Dropped { cause: Cause::Cancelled, work: 1 }));
        assert_eq!(batcher.poll_dropped(), None);
    }

    #[test]
    fn the_expected_wait_follows_the_measured_rate() {
        let mut batcher = batcher(1, 1, 8);
        assert_eq!(batcher.expected_wait(Flow(0)), Duration::ZERO);
        for work in 0..4 {
            batcher.handle_arrival(at(0), job(1_000_000, work)).expect("room");
        }
        let batch = batcher.poll_batch(at(0)).expect("free");
        batcher.handle_worker_free(at(1_000), batch.id);
        assert_eq!(batcher.expected_run(), Duration::from_millis(1));
        assert_eq!(batcher.expected_wait(Flow(0)), Duration::from_millis(4));
        // Another flow waits for its turn, not for all that the first one brought.
        assert_eq!(batcher.expected_wait(Flow(1)), Duration::from_millis(3));
        assert_eq!(batcher.longest_running(), None);
    }

    #[test]
    fn a_flood_of_urgent_jobs_leaves_each_other_flow_its_turn() {
        let mut batcher = batcher(1, 4, 64);
        for work in 0..40 {
            batcher.handle_arrival(at(0), job_of(1, 50 + work, work)).expect("room");
        }
        batcher.handle_arrival(at(0), job_of(2, 5_000, 100)).expect("room");
        let mut before = 0;
        loop {
            let batch = batcher.poll_batch(at(1)).expect("free");
            if batch.work.contains(&100) {
                break;
            }
            before += batch.work.len();
            batcher.handle_worker_free(at(1), batch.id);
        }
        assert!(before <= 8, "{before} ran first");
    }

    #[test]
    fn a_flow_with_half_a_share_gets_half_as_much() {
        let mut batcher = batcher(1, 1, 200);
        for work in 0..100 {
            let half = Job { cost: Cost::of_share(2), ..job_of(1, 10_000, work) };
            batcher.handle_arrival(at(0), half).expect("room");
            batcher.handle_arrival(at(0), job_of(2, 10_000, 1_000 + work)).expect("room");
        }
        let mut of_first = 0;
        for _ in 0..60 {
            let batch = batcher.poll_batch(at(1)).expect("free");
            of_first += usize::from(batch.work[0] < 1_000);
            batcher.handle_worker_free(at(1), batch.id);
        }
        assert!((19..=22).contains(&of_first), "{of_first} of 60");
    }

    #[test]
    fn in_a_full_queue_the_flow_with_most_makes_room() {
        let mut batcher = batcher(1, 1, 4);
        for (deadline, work) in [(40, 1), (20, 2), (30, 3), (10, 4)] {
            batcher.handle_arrival(at(0), job_of(1, deadline, work)).expect("room");
        }
        assert!(batcher.is_full_for(Flow(1), Cost::ONE, at(50)));
        assert!(!batcher.is_full_for(Flow(1), Cost::ONE, at(35)));
        assert!(!batcher.is_full_for(Flow(2), Cost::ONE, at(50)));
        assert!(batcher.handle_arrival(at(0), job_of(2, 60, 5)).is_ok());
        assert_eq!(batcher.poll_dropped(), Some(Dropped { cause: Cause::Displaced, work: 1 }));
        // Of its own jobs, an earlier one takes the place of the latest.
        assert!(batcher.handle_arrival(at(0), job_of(1, 25, 6)).is_ok());
        assert_eq!(batcher.poll_dropped(), Some(Dropped { cause: Cause::Displaced, work: 3 }));
        assert!(batcher.handle_arrival(at(0), job_of(2, 70, 7)).is_ok());
        assert_eq!(batcher.poll_dropped(), Some(Dropped { cause: Cause::Displaced, work: 6 }));
        // Two each: nobody has more.
        assert_eq!(batcher.handle_arrival(at(0), job_of(2, 80, 8)), Err(Full(8)));
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        Arrive { lane: Option<u8>, flow: u64, time_left: u64 },
        Cancel { job: usize },
        Free,
        Wait { micros: u64 },
        Poll,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (prop::option::of(0u8..2), 0u64..4, 0u64..200)
                .prop_map(|(lane, flow, time_left)| Step::Arrive { lane, flow, time_left }),
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
                    Step::Arrive { lane, flow, time_left } => {
                        let work = arrived;
                        arrived += 1;
                        deadlines.insert(work, (now + time_left, lane));
                        let lane = Lane { bundle: 0, split: lane };
                        let job = Job { lane, ..job_of(flow, now + time_left, work) };
                        match batcher.handle_arrival(at(now), job) {
                            Ok(id) => ids.push((id, work)),
                            Err(Full(_)) => refused += 1,
                        }
                    }
                    Step::Cancel { job } => {
                        if let Some(&(id, work)) = ids.get(job) {
                            batcher.handle_drop(id, Cause::Cancelled);
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
