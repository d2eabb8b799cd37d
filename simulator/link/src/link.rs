//! A link carries packets in one direction: it queues them, serialises them and propagates them.

use std::collections::VecDeque;
use std::fmt;
use std::mem;
use std::time::Duration;

use isthmus_proto::{Bitrate, DataSize, Timestamp};

use crate::channel::{Channel, ChannelOutcome, Delay, Loss};
use crate::queue::{Capacity, Discipline, Queue, QueueConfig};
use crate::rate::{Outage, Rate, Schedule};
use crate::trace::{MicroBits, capacity_of};

/// An instant that never comes.
const NEVER: Timestamp = Timestamp::from_micros(u64::MAX);

/// What a link is like.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkConfig {
    /// How fast packets leave the queue.
    pub rate: Rate,
    /// When none does.
    pub outages: Vec<Outage>,
    /// What waits before it.
    pub queue: QueueConfig,
    /// Time from leaving the queue to arriving.
    pub delay: Delay,
    /// Packets that leave and never arrive.
    pub loss: Loss,
    /// Probability that a packet arrives twice.
    pub duplication: f64,
    /// Probability that a packet arrives damaged.
    pub corruption: f64,
}

impl LinkConfig {
    /// Constant rate and delay, and a drop-tail queue of `queue`; nothing else goes wrong.
    pub const fn constant(rate: Bitrate, delay: Duration, queue: DataSize) -> Self {
        LinkConfig {
            rate: Rate::Constant(rate),
            outages: Vec::new(),
            queue: QueueConfig {
                capacity: Capacity::Bytes(queue),
                discipline: Discipline::DropTail,
            },
            delay: Delay::constant(delay),
            loss: Loss::None,
            duplication: 0.0,
            corruption: 0.0,
        }
    }
}

impl fmt::Display for LinkConfig {
    /// Rate and delay, such as `2.00 Mbit/s, 20 ms`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rate {
            Rate::Constant(rate) => write!(f, "{rate}")?,
            Rate::Trace(playback) => write!(f, "{} in the mean", playback.trace.mean_rate())?,
        }
        write!(f, ", {} ms", self.delay.base.as_millis())
    }
}

/// Packets and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Tally {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

impl Tally {
    /// Counts a packet of this size.
    pub fn count(&mut self, size: DataSize) {
        self.packets += 1;
        self.bytes += size.as_bytes();
    }

    fn uncount(&mut self, size: DataSize) {
        self.packets -= 1;
        self.bytes -= size.as_bytes();
    }

    fn plus(self, other: Tally) -> Tally {
        Tally { packets: self.packets + other.packets, bytes: self.bytes + other.bytes }
    }
}

/// Counters of a link's packets; `offered + duplicated = delivered + dropped + lost + inside`, in
/// packets as in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LinkCounters {
    /// Handed to the link.
    pub offered: Tally,
    /// Second copies that the link made.
    pub duplicated: Tally,
    /// Arrived, damaged ones among them.
    pub delivered: Tally,
    /// Arrived damaged; a part of those delivered.
    pub corrupted: Tally,
    /// Dropped by the queue.
    pub dropped: Tally,
    /// Sent, and lost on the path.
    pub lost: Tally,
}

impl LinkCounters {
    /// Waiting, being sent or on the way.
    pub fn inside(&self) -> Tally {
        let LinkCounters { offered, duplicated, delivered, dropped, lost, .. } = *self;
        let entered = offered.plus(duplicated);
        let left = delivered.plus(dropped).plus(lost);
        Tally { packets: entered.packets - left.packets, bytes: entered.bytes - left.bytes }
    }

    /// Both together.
    pub fn plus(&self, other: &LinkCounters) -> LinkCounters {
        LinkCounters {
            offered: self.offered.plus(other.offered),
            duplicated: self.duplicated.plus(other.duplicated),
            delivered: self.delivered.plus(other.delivered),
            corrupted: self.corrupted.plus(other.corrupted),
            dropped: self.dropped.plus(other.dropped),
            lost: self.lost.plus(other.lost),
        }
    }
}

/// A packet that arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Delivered<T> {
    /// What it carries.
    pub content: T,
    /// Whether it was damaged on the way.
    pub corrupted: bool,
}

/// A link that carries packets of type `T`. Pure: it is told the time and never reads a clock.
///
/// Feed packets with [`Link::handle_packet`]; at [`Link::poll_timeout`], drain
/// [`Link::poll_delivered`] and [`Link::poll_dropped`]. Instants never decrease from call to call.
///
/// ```
/// use std::time::Duration;
/// use isthmus_proto::{Bitrate, DataSize, Timestamp};
/// use isthmus_link::{Link, LinkConfig};
///
/// let rate = Bitrate::from_bps(1_000_000);
/// let queue = DataSize::from_bytes(10_000);
/// let config = LinkConfig::constant(rate, Duration::from_millis(20), queue);
/// let mut link = Link::new(config, 1);
/// link.handle_packet(Timestamp::ZERO, DataSize::from_bytes(1_250), "frame");
/// // An idle link still takes size ÷ rate (10 ms), and then the delay.
/// let arrival = Timestamp::from_micros(30_000);
/// assert_eq!(link.poll_timeout(), Some(arrival));
/// assert_eq!(link.poll_delivered(Timestamp::from_micros(29_999)), None);
/// assert_eq!(link.poll_delivered(arrival).map(|packet| packet.content), Some("frame"));
/// ```
#[derive(Debug)]
pub struct Link<T> {
    schedule: Schedule,
    reordering: bool,
    queue: Queue<T>,
    channel: Channel,
    /// When the latest packet that was taken from the queue has left, and its size.
    busy_until: Timestamp,
    serving: DataSize,
    /// Since when it has been sent under the present schedule, and what was left of it then.
    serving_since: Timestamp,
    serving_rest: MicroBits,
    /// Taken from the queue and not yet arrived, in order of arrival.
    under_way: VecDeque<UnderWay<T>>,
    latest_arrival: Timestamp,
    dropped: VecDeque<T>,
    counters: LinkCounters,
}

#[derive(Debug)]
struct UnderWay<T> {
    departure: Timestamp,
    outcome: ChannelOutcome,
    size: DataSize,
    content: T,
}

impl<T: Clone> Link<T> {
    /// An idle link. Everything random in it hangs from `seed`.
    pub fn new(config: LinkConfig, seed: u64) -> Self {
        let LinkConfig { rate, outages, queue, delay, loss, duplication, corruption } = config;
        Link {
            schedule: Schedule::new(rate, &outages),
            reordering: delay.reordering,
            queue: Queue::new(queue, seed),
            channel: Channel::new(delay, loss, duplication, corruption, seed),
            busy_until: Timestamp::ZERO,
            serving: DataSize::default(),
            serving_since: Timestamp::ZERO,
            serving_rest: 0,
            under_way: VecDeque::new(),
            latest_arrival: Timestamp::ZERO,
            dropped: VecDeque::new(),
            counters: LinkCounters::default(),
        }
    }

    /// Takes a packet.
    pub fn handle_packet(&mut self, now: Timestamp, size: DataSize, content: T) {
        self.advance(now);
        self.counters.offered.count(size);
        let idle = self.busy_until <= now;
        let serving = (!idle).then_some(self.serving);
        let (counters, drops) = (&mut self.counters.dropped, &mut self.dropped);
        let mut drop = |size, content| {
            counters.count(size);
            drops.push_back(content);
        };
        self.queue.enqueue(now, size, content, serving, &mut drop);
        if idle {
            self.serve_next(now);
        }
    }

    /// Becomes another link from `now` on. What waits goes on waiting, what is being sent goes on at
    /// the new rate, and what has left arrives as it would have. Time and chance go on.
    pub fn reconfigure(&mut self, now: Timestamp, config: LinkConfig) {
        self.advance(now);
        let LinkConfig { rate, outages, queue, delay, loss, duplication, corruption } = config;
        let before = mem::replace(&mut self.schedule, Schedule::new(rate, &outages));
        self.reordering = delay.reordering;
        self.queue.reconfigure(queue);
        self.channel.reconfigure(delay, loss, duplication, corruption);
        if self.busy_until <= now {
            return;
        }
        let sent = before.capacity_between(self.serving_since, now);
        self.serving_rest = self.serving_rest.saturating_sub(sent);
        let (left, mut serving): (VecDeque<_>, VecDeque<_>) =
            self.under_way.drain(..).partition(|packet| packet.departure <= now);
        self.under_way = left;
        self.latest_arrival =
            self.under_way.back().map_or(now, |last| last.outcome.arrival).max(now);
        if let Some(UnderWay { size, content, .. }) = serving.pop_front() {
            if !serving.is_empty() {
                self.counters.duplicated.uncount(size);
            }
            self.send(now, size, content);
        }
    }

    /// The next packet that has arrived by `now`, in order of arrival.
    pub fn poll_delivered(&mut self, now: Timestamp) -> Option<Delivered<T>> {
        self.advance(now);
        loop {
            let arrived = |next: &UnderWay<T>| next.outcome.arrival <= now.min(NEVER - TICK);
            self.under_way.front().filter(|next| arrived(next))?;
            let UnderWay { outcome, size, content, .. } = self.under_way.pop_front()?;
            if outcome.lost {
                self.counters.lost.count(size);
                self.dropped.push_back(content);
                continue;
            }
            self.counters.delivered.count(size);
            if outcome.corrupted {
                self.counters.corrupted.count(size);
            }
            return Some(Delivered { content, corrupted: outcome.corrupted });
        }
    }

    /// The next packet that will not arrive: one that the queue dropped, or one that would have
    /// arrived by the latest [`Link::poll_delivered`] and was lost. They are kept until drained.
    pub fn poll_dropped(&mut self) -> Option<T> {
        self.dropped.pop_front()
    }

    /// When there is something to do next.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let arrival = self.under_way.front().map(|next| next.outcome.arrival);
        let departure = (!self.queue.is_empty()).then_some(self.busy_until);
        arrival.into_iter().chain(departure).min().filter(|&next| next < NEVER)
    }

    /// Bytes that wait or are being serialised at `now`.
    pub fn queued(&mut self, now: Timestamp) -> DataSize {
        self.advance(now);
        let serving = if self.busy_until > now { self.serving.as_bytes() } else { 0 };
        DataSize::from_bytes(self.queue.bytes() + serving)
    }

    /// Whether a packet of `size` has room at `now` while less than half of the queue's capacity
    /// waits; an idle link takes any. A sender that keeps to it leaves others the other half.
    pub fn has_headroom(&mut self, now: Timestamp, size: DataSize) -> bool {
        self.advance(now);
        let fits = self.queue.has_room(size, Some(self.serving));
        self.busy_until <= now || fits && (self.queue.is_empty() || !self.queue.is_half_full())
    }

    /// When the packet that is being sent has left, if one is and it ever does; before that, what
    /// has no room gets none.
    pub fn poll_departure(&self) -> Option<Timestamp> {
        Some(self.busy_until).filter(|&departure| departure < NEVER)
    }

    /// The rate at `at`.
    pub fn rate_at(&self, at: Timestamp) -> Bitrate {
        self.schedule.rate_at(at)
    }

    /// The counters so far.
    pub fn counters(&self) -> LinkCounters {
        self.counters
    }

    /// Serialises what could be by `now`.
    fn advance(&mut self, now: Timestamp) {
        while self.busy_until <= now && !self.queue.is_empty() {
            self.serve_next(self.busy_until);
        }
    }

    /// Takes the next packet from the queue, at an instant when the link is free.
    fn serve_next(&mut self, now: Timestamp) {
        let (counters, drops) = (&mut self.counters.dropped, &mut self.dropped);
        let mut drop = |size, content| {
            counters.count(size);
            drops.push_back(content);
        };
        let Some(packet) = self.queue.dequeue(now, &mut drop) else { return };
        self.serving = packet.size;
        self.serving_rest = capacity_of(packet.size);
        self.send(now, packet.size, packet.content);
    }

    /// Sends what is left of a packet, and decides how it arrives.
    fn send(&mut self, now: Timestamp, size: DataSize, content: T) {
        self.serving_since = now;
        let departure = self.schedule.time_to_send(now, self.serving_rest).unwrap_or(NEVER);
        self.busy_until = departure;
        let mut outcome = self.channel.pass(departure);
        if !self.reordering {
            outcome.arrival = outcome.arrival.max(self.latest_arrival);
        }
        self.latest_arrival = self.latest_arrival.max(outcome.arrival);
        if outcome.duplicated && !outcome.lost {
            self.counters.duplicated.count(size);
            let content = content.clone();
            self.put_under_way(UnderWay { departure, outcome, size, content });
        }
        self.put_under_way(UnderWay { departure, outcome, size, content });
    }

    fn put_under_way(&mut self, packet: UnderWay<T>) {
        let arrival = packet.outcome.arrival;
        let later = self.under_way.iter().rev().take_while(|other| other.outcome.arrival > arrival);
        let at = self.under_way.len() - later.count();
        self.under_way.insert(at, packet);
    }
}

/// The least time.
const TICK: Duration = Duration::from_micros(1);
