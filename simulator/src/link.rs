//! One direction of a network path: queue, then serialise, then propagate.

use std::collections::VecDeque;
use std::time::Duration;

use isthmus_proto::{Bitrate, DataSize, Timestamp};

/// A link of constant rate with a drop-tail queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkConfig {
    /// Rate at which packets leave the queue; at zero none does.
    pub rate: Bitrate,
    /// Time from leaving the queue to arriving.
    pub delay: Duration,
    /// Most bytes that wait or are being serialised; a packet that would exceed it is dropped.
    /// Bytes that propagate do not count: a long delay holds no queue.
    pub queue: DataSize,
}

/// What became of the packets; offered = delivered + dropped + those still inside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Packets handed to the link.
    pub offered: u64,
    /// Packets that arrived.
    pub delivered: u64,
    /// Packets that found the queue full.
    pub dropped: u64,
}

/// A link that carries packets of type `T`. Pure: it is told the time and never reads a clock.
///
/// ```
/// use std::time::Duration;
/// use isthmus_proto::{Bitrate, DataSize, Timestamp};
/// use isthmus_simulator::{Link, LinkConfig};
///
/// let mut link = Link::new(LinkConfig {
///     rate: Bitrate::from_bps(1_000_000),
///     delay: Duration::from_millis(20),
///     queue: DataSize::from_bytes(10_000),
/// });
/// link.handle_packet(Timestamp::ZERO, DataSize::from_bytes(1_250), "frame");
/// // An idle link still takes size ÷ rate (10 ms), and then the delay.
/// assert_eq!(link.poll_timeout(), Some(Timestamp::from_micros(30_000)));
/// assert_eq!(link.poll_delivered(Timestamp::from_micros(29_999)), None);
/// assert_eq!(link.poll_delivered(Timestamp::from_micros(30_000)), Some("frame"));
/// ```
#[derive(Debug)]
pub struct Link<T> {
    config: LinkConfig,
    /// In order of departure.
    inside: VecDeque<Packet<T>>,
    counters: LinkCounters,
}

#[derive(Debug)]
struct Packet<T> {
    /// When its last byte has left the queue; `None` if it never does.
    departs: Option<Timestamp>,
    size: DataSize,
    content: T,
}

impl<T> Link<T> {
    /// An idle link.
    pub fn new(config: LinkConfig) -> Self {
        Link { config, inside: VecDeque::new(), counters: LinkCounters::default() }
    }

    /// Takes a packet, or drops and counts it. Instants may not go backwards.
    pub fn handle_packet(&mut self, now: Timestamp, size: DataSize, content: T) {
        self.counters.offered += 1;
        if self.queued(now).as_bytes() + size.as_bytes() > self.config.queue.as_bytes() {
            self.counters.dropped += 1;
            return;
        }
        let free = self.inside.back().map_or(Some(now), |last| last.departs);
        let serialisation = self.config.rate.time_for(size);
        let departs = free
            .filter(|_| serialisation < Duration::MAX)
            .map(|free| free.max(now) + serialisation);
        self.inside.push_back(Packet { departs, size, content });
    }

    /// The next packet that has arrived by `now`, in order.
    pub fn poll_delivered(&mut self, now: Timestamp) -> Option<T> {
        self.poll_timeout().filter(|&arrival| arrival <= now)?;
        self.counters.delivered += 1;
        self.inside.pop_front().map(|packet| packet.content)
    }

    /// When the next packet arrives.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        let departs = self.inside.front()?.departs?;
        Some(departs + self.config.delay)
    }

    /// Bytes that wait or are being serialised at `now`.
    pub fn queued(&self, now: Timestamp) -> DataSize {
        let waiting = |packet: &&Packet<T>| packet.departs.is_none_or(|departs| departs > now);
        let sizes =
            self.inside.iter().rev().take_while(waiting).map(|packet| packet.size.as_bytes());
        DataSize::from_bytes(sizes.sum())
    }

    /// What became of the packets so far.
    pub fn counters(&self) -> LinkCounters {
        self.counters
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn link(bps: u64, delay_ms: u64, queue: u64) -> Link<u64> {
        Link::new(LinkConfig {
            rate: Bitrate::from_bps(bps),
            delay: Duration::from_millis(delay_ms),
            queue: DataSize::from_bytes(queue),
        })
    }

    fn at(micros: u64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    #[test]
    fn below_capacity_nothing_is_lost_and_no_queue_stands() {
        let mut link = link(1_000_000, 500, 3_000);
        for tick in 0..1_000 {
            let now = at(tick * 10_000);
            assert_eq!(link.queued(now), DataSize::default(), "a propagating packet is no queue");
            link.handle_packet(now, DataSize::from_bytes(1_000), tick);
            while link.poll_delivered(now).is_some() {}
        }
        assert_eq!(link.counters().dropped, 0);
    }

    #[test]
    fn above_capacity_it_delivers_its_rate_and_drops_the_rest() {
        let mut link = link(1_000_000, 10, 5_000);
        let mut delivered = 0;
        for tick in 0..1_000 {
            let now = at(tick * 4_000);
            link.handle_packet(now, DataSize::from_bytes(1_000), tick);
            while link.poll_delivered(now).is_some() {
                delivered += 1;
            }
        }
        // 4 s at 125 packets/s.
        assert!((495..=500).contains(&delivered), "{delivered}");
        assert!(link.counters().dropped > 490);
    }

    #[test]
    fn at_rate_zero_nothing_leaves() {
        let mut link = link(0, 10, 1_500);
        link.handle_packet(at(0), DataSize::from_bytes(1_000), 0);
        link.handle_packet(at(1), DataSize::from_bytes(1_000), 1);
        assert_eq!(link.poll_timeout(), None);
        assert_eq!(link.poll_delivered(at(u64::MAX)), None);
        assert_eq!(link.counters(), LinkCounters { offered: 2, delivered: 0, dropped: 1 });
    }

    proptest! {
        #[test]
        fn packets_arrive_in_order_and_none_is_unaccounted_for(
            sends in prop::collection::vec((0u64..20_000, 1u64..1_500), 1..200),
        ) {
            let mut link = link(700_000, 30, 8_000);
            let (mut now, mut got) = (0, Vec::new());
            for (number, (gap, size)) in sends.iter().enumerate() {
                now += gap;
                link.handle_packet(at(now), DataSize::from_bytes(*size), number as u64);
                got.extend(std::iter::from_fn(|| link.poll_delivered(at(now))));
            }
            let inside = std::iter::from_fn(|| link.poll_delivered(at(now + 10_000_000))).collect::<Vec<_>>();
            got.extend(inside);
            prop_assert!(got.windows(2).all(|pair| pair[0] < pair[1]));
            let LinkCounters { offered, delivered, dropped } = link.counters();
            prop_assert_eq!(offered, delivered + dropped);
            prop_assert_eq!(delivered, got.len() as u64);
        }
    }
}
