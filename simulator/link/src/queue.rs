//! What waits before a link, and what is dropped of it.

use std::collections::VecDeque;
use std::time::Duration;

use isthmus_proto::{DataSize, Timestamp};

use crate::chance::Chance;

/// A queue's size and what it does when it is full, or before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueueConfig {
    /// Most that waits or is being serialised. What propagates does not count: a long delay holds
    /// no queue.
    pub capacity: Capacity,
    /// Which packets are dropped.
    pub discipline: Discipline,
}

/// The size of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Capacity {
    /// In bytes.
    Bytes(DataSize),
    /// In packets, whatever their size.
    Packets(usize),
}

/// Which packets a queue drops.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Discipline {
    /// The one that arrives when the queue is full.
    #[default]
    DropTail,
    /// The oldest that wait, until the one that arrives has room.
    DropHead,
    /// Controlled delay (RFC 8289); drop-tail when full.
    CoDel {
        /// Standing delay that is accepted; 5 ms there.
        target: Duration,
        /// A round trip that most flows do not exceed; 100 ms there.
        interval: Duration,
    },
    /// Proportional integral controller, enhanced (RFC 8033), with delays told by packets'
    /// timestamps; drop-tail when full.
    Pie {
        /// Delay that it steers to; 15 ms there.
        target: Duration,
    },
}

/// A packet that waits.
#[derive(Debug)]
pub(super) struct Waiting<T> {
    pub(super) size: DataSize,
    pub(super) content: T,
    since: Timestamp,
}

#[derive(Debug)]
pub(super) struct Queue<T> {
    config: QueueConfig,
    waiting: VecDeque<Waiting<T>>,
    bytes: u64,
    codel: CoDel,
    pie: Pie,
}

impl<T> Queue<T> {
    pub(super) fn new(config: QueueConfig, seed: u64) -> Self {
        let (codel, pie) = (CoDel::default(), Pie::new(seed));
        Queue { config, waiting: VecDeque::new(), bytes: 0, codel, pie }
    }

    /// Keeps what waits, even beyond the new capacity.
    pub(super) fn reconfigure(&mut self, config: QueueConfig) {
        self.config = config;
    }

    /// Takes a packet in while one of `serving` bytes is being serialised; `dropped` gets those
    /// that are dropped for it, perhaps itself.
    pub(super) fn enqueue(
        &mut self,
        now: Timestamp,
        size: DataSize,
        content: T,
        serving: Option<DataSize>,
        dropped: &mut impl FnMut(DataSize, T),
    ) {
        if let Discipline::Pie { target } = self.config.discipline {
            let empty = self.waiting.is_empty();
            if self.pie.drops(now, target, self.bytes, empty) {
                return dropped(size, content);
            }
        }
        if self.config.discipline == Discipline::DropHead {
            while !self.has_room(size, serving)
                && let Some(oldest) = self.pop()
            {
                dropped(oldest.size, oldest.content);
            }
        }
        if !self.has_room(size, serving) {
            return dropped(size, content);
        }
        self.bytes += size.as_bytes();
        self.waiting.push_back(Waiting { size, content, since: now });
    }

    /// The packet to serialise next; `dropped` gets those dropped before it.
    pub(super) fn dequeue(
        &mut self,
        now: Timestamp,
        dropped: &mut impl FnMut(DataSize, T),
    ) -> Option<Waiting<T>> {
        match self.config.discipline {
            Discipline::DropTail | Discipline::DropHead => self.pop(),
            Discipline::CoDel { target, interval } => {
                self.dequeue_codel(now, target, interval, dropped)
            }
            Discipline::Pie { target } => {
                let packet = self.pop()?;
                let sojourn = now.saturating_since(packet.since);
                self.pie.on_dequeue(now, target, sojourn);
                Some(packet)
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Whether at least half of the capacity is taken by what waits.
    pub(super) fn is_half_full(&self) -> bool {
        match self.config.capacity {
            Capacity::Packets(most) => self.waiting.len() * 2 >= most.max(1),
            Capacity::Bytes(most) => self.bytes.saturating_mul(2) >= most.as_bytes().max(1),
        }
    }

    /// Bytes that wait.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether a packet fits while one of `serving` bytes is being serialised.
    pub(super) fn has_room(&self, size: DataSize, serving: Option<DataSize>) -> bool {
        match self.config.capacity {
            Capacity::Packets(most) => self.waiting.len() + usize::from(serving.is_some()) < most,
            Capacity::Bytes(most) => {
                let held = self.bytes + serving.map_or(0, DataSize::as_bytes);
                held.saturating_add(size.as_bytes()) <= most.as_bytes()
            }
        }
    }

    fn pop(&mut self) -> Option<Waiting<T>> {
        let packet = self.waiting.pop_front()?;
        self.bytes -= packet.size.as_bytes();
        Some(packet)
    }

    /// `deque` of RFC 8289, 5.5.
    fn dequeue_codel(
        &mut self,
        now: Timestamp,
        target: Duration,
        interval: Duration,
        dropped: &mut impl FnMut(DataSize, T),
    ) -> Option<Waiting<T>> {
        let (mut packet, mut too_long) = self.pop_judged(now, target, interval);
        if self.codel.dropping {
            self.codel.dropping = too_long;
            while self.codel.dropping && now >= self.codel.drop_next {
                if let Some(Waiting { size, content, .. }) = packet {
                    dropped(size, content);
                }
                self.codel.count += 1;
                (packet, too_long) = self.pop_judged(now, target, interval);
                self.codel.dropping = too_long;
                if too_long {
                    self.codel.drop_next =
                        control_law(self.codel.drop_next, interval, self.codel.count);
                }
            }
        } else if too_long {
            if let Some(Waiting { size, content, .. }) = packet {
                dropped(size, content);
            }
            (packet, _) = self.pop_judged(now, target, interval);
            let CoDel { count, last_count, drop_next, .. } = self.codel;
            // Soon after the last time, start from the drop rate that was needed then.
            let delta = count - last_count;
            let recent = now.saturating_since(drop_next) < interval * 16;
            let count = if delta > 1 && recent { delta } else { 1 };
            let drop_next = control_law(now, interval, count);
            let first_above = self.codel.first_above;
            self.codel = CoDel { dropping: true, count, last_count: count, drop_next, first_above };
        }
        packet
    }

    /// `dodequeue` of RFC 8289, 5.6: the oldest packet, and whether the delay has been above target
    /// for an interval.
    fn pop_judged(
        &mut self,
        now: Timestamp,
        target: Duration,
        interval: Duration,
    ) -> (Option<Waiting<T>>, bool) {
        let packet = self.pop();
        let sojourn = packet.as_ref().map(|packet| now.saturating_since(packet.since));
        let standing = sojourn.is_some_and(|sojourn| sojourn >= target) && self.bytes > MTU;
        let too_long = match (standing, self.codel.first_above) {
            (false, _) => {
                self.codel.first_above = None;
                false
            }
            (true, None) => {
                self.codel.first_above = Some(now + interval);
                false
            }
            (true, Some(first_above)) => now >= first_above,
        };
        (packet, too_long)
    }
}

/// Largest packet (bytes); a queue of less is no standing queue.
const MTU: u64 = 1_500;

#[derive(Debug, Default)]
struct CoDel {
    first_above: Option<Timestamp>,
    dropping: bool,
    count: u32,
    last_count: u32,
    drop_next: Timestamp,
}

fn control_law(from: Timestamp, interval: Duration, count: u32) -> Timestamp {
    from + interval.div_f64(f64::from(count.max(1)).sqrt())
}

/// State of RFC 8033; the names are the RFC's.
#[derive(Debug)]
struct Pie {
    chance: Chance,
    drop_prob: f64,
    accu_prob: f64,
    burst_allowance: Duration,
    qdelay: Duration,
    qdelay_old: Duration,
    next_update: Timestamp,
}

/// How often the drop probability is updated (T_UPDATE).
const PIE_UPDATE: Duration = Duration::from_millis(15);
/// For how long a burst passes untouched (MAX_BURST).
const PIE_BURST: Duration = Duration::from_millis(150);
/// Updates after which an idle queue has forgotten everything: 0.98^600 is 5e-6.
const PIE_FORGOTTEN: u64 = 600;

impl Pie {
    fn new(seed: u64) -> Self {
        Pie {
            chance: Chance::new(seed, 0x70_69_65),
            drop_prob: 0.0,
            accu_prob: 0.0,
            burst_allowance: PIE_BURST,
            qdelay: Duration::ZERO,
            qdelay_old: Duration::ZERO,
            next_update: Timestamp::ZERO + PIE_UPDATE,
        }
    }

    /// `enqueue` of RFC 8033, appendix A.
    fn drops(&mut self, now: Timestamp, target: Duration, bytes: u64, empty: bool) -> bool {
        self.update(now, target);
        if empty {
            self.qdelay = Duration::ZERO;
        }
        if self.burst_allowance > Duration::ZERO {
            return false;
        }
        let calm = self.qdelay_old < target / 2 && self.drop_prob < 0.2;
        if calm || bytes <= 2 * MTU {
            return false;
        }
        if self.drop_prob == 0.0 {
            self.accu_prob = 0.0;
        }
        self.accu_prob += self.drop_prob;
        let drops = match self.accu_prob {
            accu if accu < 0.85 => false,
            accu if accu >= 8.5 => true,
            _ => self.chance.happens(self.drop_prob),
        };
        if drops {
            self.accu_prob = 0.0;
        }
        drops
    }

    fn on_dequeue(&mut self, now: Timestamp, target: Duration, sojourn: Duration) {
        self.update(now, target);
        self.qdelay = sojourn;
    }

    /// Carries out the updates that are due; between packets nothing is measured anew.
    fn update(&mut self, now: Timestamp, target: Duration) {
        let missed = now.saturating_since(self.next_update).as_micros() / PIE_UPDATE.as_micros();
        let missed = u64::try_from(missed).unwrap_or(u64::MAX);
        if missed > PIE_FORGOTTEN {
            let skipped = u32::try_from(missed - PIE_FORGOTTEN).unwrap_or(u32::MAX);
            self.next_update = self.next_update + PIE_UPDATE * skipped;
        }
        while self.next_update <= now {
            self.next_update = self.next_update + PIE_UPDATE;
            self.calculate_drop_prob(target);
        }
    }

    /// `calculate_drop_prob` of RFC 8033, appendix A.
    fn calculate_drop_prob(&mut self, target: Duration) {
        let seconds = |time: Duration| time.as_secs_f64();
        let (qdelay, old) = (seconds(self.qdelay), seconds(self.qdelay_old));
        let mut p = 0.125 * (qdelay - seconds(target)) + 1.25 * (qdelay - old);
        p /= match self.drop_prob {
            prob if prob < 0.000_001 => 2048.0,
            prob if prob < 0.000_01 => 512.0,
            prob if prob < 0.000_1 => 128.0,
            prob if prob < 0.001 => 32.0,
            prob if prob < 0.01 => 8.0,
            prob if prob < 0.1 => 2.0,
            _ => 1.0,
        };
        if self.drop_prob >= 0.1 && p > 0.02 {
            p = 0.02;
        }
        self.drop_prob += p;
        if self.qdelay.is_zero() && self.qdelay_old.is_zero() {
            self.drop_prob *= 0.98;
        }
        self.drop_prob = self.drop_prob.clamp(0.0, 1.0);
        self.burst_allowance = self.burst_allowance.saturating_sub(PIE_UPDATE);
        let calm = self.qdelay < target / 2 && self.qdelay_old < target / 2;
        if self.drop_prob == 0.0 && calm {
            self.burst_allowance = PIE_BURST;
        }
        self.qdelay_old = self.qdelay;
    }
}
