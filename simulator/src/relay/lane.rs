//! One direction: a link that datagrams enter as they come, and streams as it has room for them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use isthmus_proto::{DataSize, Timestamp};

use crate::link::{Delivered, Link, LinkConfig, LinkCounters, Tally};

/// What a sender waits beyond a round trip, on a path without delay too.
const PATIENCE: Duration = Duration::from_millis(1);

/// Counters of what entered one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct LaneCounters {
    /// In the link, segments sent again counted each time.
    #[serde(flatten)]
    pub link: LinkCounters,
    /// In the link now: waiting, being sent or on the way.
    pub inside: Tally,
    /// Segments of streams that the link lost, and that were sent again; a part of those offered.
    pub sent_again: Tally,
    /// Segments that wait before the link until it has room; not yet offered.
    pub waiting: Tally,
}

/// One direction, pure as its link is: `T` is what a packet carries.
///
/// A datagram that the link drops is gone. A segment is not: it is sent again a round trip later,
/// and the segments of one stream arrive once and in order. Streams take turns to enter, and only
/// while less than half of the queue is taken: a sender that probes for its rate would fill it and
/// back off, and in the mean leaves others room.
#[derive(Debug)]
pub(super) struct Lane<T> {
    link: Link<Packet<T>>,
    /// From entering to arriving, and from there back to the sender, without queues.
    there: Duration,
    back: Duration,
    streams: BTreeMap<u64, Stream<T>>,
    /// Streams with segments that wait.
    turns: VecDeque<u64>,
    /// Segments to send again, by when; the number orders those of one instant.
    again: BTreeMap<(Timestamp, u64), Packet<T>>,
    missed: u64,
    arrived: VecDeque<T>,
    sent_again: Tally,
}

#[derive(Clone, Debug)]
struct Packet<T> {
    size: DataSize,
    /// Stream and position in it, of a segment.
    place: Option<(u64, u64)>,
    content: T,
}

#[derive(Debug)]
struct Stream<T> {
    waiting: VecDeque<Packet<T>>,
    /// Position of the next segment that comes in.
    next: u64,
    /// Position of the next one that may come out, and those that arrived before it.
    expected: u64,
    early: BTreeMap<u64, T>,
}

impl<T: Clone> Lane<T> {
    /// An idle direction whose answers take `back` to return.
    pub(super) fn new(config: LinkConfig, back: Duration, seed: u64) -> Self {
        Lane {
            there: config.delay.base,
            back,
            link: Link::new(config, seed),
            streams: BTreeMap::new(),
            turns: VecDeque::new(),
            again: BTreeMap::new(),
            missed: 0,
            arrived: VecDeque::new(),
            sent_again: Tally::default(),
        }
    }

    pub(super) fn reconfigure(&mut self, now: Timestamp, config: LinkConfig, back: Duration) {
        (self.there, self.back) = (config.delay.base, back);
        self.link.reconfigure(now, config);
        self.admit(now);
    }

    pub(super) fn handle_datagram(&mut self, now: Timestamp, size: DataSize, content: T) {
        self.link.handle_packet(now, size, Packet { size, place: None, content });
        self.note_missing(now, self.there.saturating_add(self.back));
    }

    /// Takes the next segment of a stream.
    pub(super) fn handle_segment(
        &mut self,
        now: Timestamp,
        stream: u64,
        size: DataSize,
        content: T,
    ) {
        let entry = self.streams.entry(stream).or_default();
        let place = Some((stream, entry.next));
        entry.next += 1;
        entry.waiting.push_back(Packet { size, place, content });
        if entry.waiting.len() == 1 {
            self.turns.push_back(stream);
        }
        self.admit(now);
    }

    /// Forgets a stream; what is left of it takes its time on the link and then vanishes.
    pub(super) fn forget(&mut self, stream: u64) {
        self.streams.remove(&stream);
        self.turns.retain(|&other| other != stream);
    }

    /// The next thing to hand over by `now`. A damaged segment fails its checksum and is sent again;
    /// a damaged datagram is handed over.
    pub(super) fn poll_delivered(&mut self, now: Timestamp) -> Option<Delivered<T>> {
        self.send_again(now);
        loop {
            if let Some(content) = self.arrived.pop_front() {
                return Some(Delivered { content, corrupted: false });
            }
            let delivered = self.link.poll_delivered(now);
            self.note_missing(now, self.back);
            self.admit(now);
            let Delivered { content: packet, corrupted } = delivered?;
            match packet.place {
                None => return Some(Delivered { content: packet.content, corrupted }),
                Some(_) if corrupted => self.miss(now + self.back, packet),
                Some((stream, position)) => self.reorder(stream, position, packet.content),
            }
        }
    }

    /// When there is something to do next.
    pub(super) fn poll_timeout(&self) -> Option<Timestamp> {
        let again = self.again.keys().next().map(|&(due, _)| due);
        // Segments wait only while a packet is being sent.
        let room = self.link.poll_departure().filter(|_| !self.turns.is_empty());
        self.link.poll_timeout().into_iter().chain(again).chain(room).min()
    }

    pub(super) fn counters(&self) -> LaneCounters {
        let mut waiting = Tally::default();
        for packet in self.streams.values().flat_map(|stream| &stream.waiting) {
            waiting.count(packet.size);
        }
        let link = self.link.counters();
        LaneCounters { link, inside: link.inside(), sent_again: self.sent_again, waiting }
    }

    /// Lets waiting segments in, stream by stream, while there is room.
    fn admit(&mut self, now: Timestamp) {
        while let Some(id) = self.turns.pop_front() {
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            let Some(packet) = stream.waiting.pop_front() else { continue };
            if !self.link.has_headroom(now, packet.size) {
                stream.waiting.push_front(packet);
                self.turns.push_front(id);
                return;
            }
            if !stream.waiting.is_empty() {
                self.turns.push_back(id);
            }
            self.link.handle_packet(now, packet.size, packet);
            self.note_missing(now, self.there.saturating_add(self.back));
        }
    }

    /// Plans to send again what the link dropped, as soon as its sender can have missed it.
    fn note_missing(&mut self, now: Timestamp, notice: Duration) {
        while let Some(packet) = self.link.poll_dropped() {
            self.miss(now + notice, packet);
        }
    }

    fn miss(&mut self, noticed: Timestamp, packet: Packet<T>) {
        if packet.place.is_some() {
            self.missed += 1;
            self.again.insert((noticed + PATIENCE, self.missed), packet);
        }
    }

    /// Puts what is due before its stream's other segments.
    fn send_again(&mut self, now: Timestamp) {
        while let Some(entry) = self.again.first_entry()
            && entry.key().0 <= now
        {
            let packet = entry.remove();
            let Some((id, position)) = packet.place else { continue };
            let Some(stream) = self.streams.get_mut(&id) else { continue };
            // A copy that the link made may have come through.
            if position < stream.expected || stream.early.contains_key(&position) {
                continue;
            }
            self.sent_again.count(packet.size);
            stream.waiting.push_front(packet);
            if stream.waiting.len() == 1 {
                self.turns.push_back(id);
            }
        }
        self.admit(now);
    }

    fn reorder(&mut self, stream: u64, position: u64, content: T) {
        let Some(stream) = self.streams.get_mut(&stream) else { return };
        if position < stream.expected {
            return;
        }
        stream.early.insert(position, content);
        while let Some(next) = stream.early.remove(&stream.expected) {
            self.arrived.push_back(next);
            stream.expected += 1;
        }
    }
}

impl<T> Default for Stream<T> {
    fn default() -> Self {
        Stream { waiting: VecDeque::new(), next: 0, expected: 0, early: BTreeMap::new() }
    }
}

#[cfg(test)]
mod tests {
    use isthmus_proto::Bitrate;
    use proptest::prelude::*;

    use super::*;
    use crate::link::{Delay, Jitter, Loss};

    const MS: Duration = Duration::from_millis(1);

    fn at(millis: u64) -> Timestamp {
        Timestamp::ZERO + MS * millis as u32
    }

    /// 1,000 bytes take 1 ms, the way 20 ms.
    fn config(queue: u64) -> LinkConfig {
        let rate = Bitrate::from_bps(8_000_000);
        LinkConfig::constant(rate, 20 * MS, DataSize::from_bytes(queue))
    }

    fn kilobyte() -> DataSize {
        DataSize::from_bytes(1_000)
    }

    fn drain(lane: &mut Lane<u64>) -> Vec<(u64, Timestamp)> {
        let mut arrived = Vec::new();
        while let Some(next) = lane.poll_timeout() {
            while let Some(delivered) = lane.poll_delivered(next) {
                arrived.push((delivered.content, next));
            }
        }
        arrived
    }

    #[test]
    fn a_stream_waits_for_room_where_datagrams_are_dropped() {
        let mut lane = Lane::new(config(4_000), 20 * MS, 1);
        (0..10).for_each(|number| lane.handle_segment(at(0), 7, kilobyte(), number));
        let before = lane.counters();
        assert_eq!((before.inside.packets, before.waiting.packets), (3, 7));
        (100..110).for_each(|number| lane.handle_datagram(at(0), kilobyte(), number));
        assert_eq!(lane.counters().link.dropped.packets, 9, "one has room beside the stream");
        let arrived = drain(&mut lane);
        let stream: Vec<u64> = arrived.iter().map(|it| it.0).filter(|&it| it < 100).collect();
        assert_eq!(stream, (0..10).collect::<Vec<_>>());
        assert_eq!(arrived.last().map(|it| it.1), Some(at(11 + 20)), "the link was never idle");
    }

    #[test]
    fn a_queue_of_one_packet_carries_a_stream_without_a_drop() {
        let mut lane = Lane::new(config(1_500), 20 * MS, 1);
        (0..3).for_each(|number| lane.handle_segment(at(0), 7, kilobyte(), number));
        assert_eq!(drain(&mut lane), [(0, at(21)), (1, at(22)), (2, at(23))]);
        assert_eq!(lane.counters().link.dropped.packets, 0);
    }

    #[test]
    fn streams_take_turns() {
        let mut lane = Lane::new(config(4_000), 20 * MS, 1);
        (0..8).for_each(|number| lane.handle_segment(at(0), 1, kilobyte(), number));
        (10..13).for_each(|number| lane.handle_segment(at(0), 2, kilobyte(), number));
        let order: Vec<u64> = drain(&mut lane).into_iter().map(|it| it.0).collect();
        assert_eq!(order, [0, 1, 2, 3, 10, 4, 11, 5, 12, 6, 7]);
    }

    #[test]
    fn a_lost_segment_is_sent_again_a_round_trip_later_and_holds_the_ones_behind() {
        let lossy = LinkConfig { loss: Loss::Uniform(1.0), ..config(64_000) };
        let mut lane = Lane::new(lossy, 30 * MS, 1);
        lane.handle_segment(at(0), 1, kilobyte(), 0);
        lane.handle_segment(at(0), 1, kilobyte(), 1);
        // The first has left and is lost; the second is still being sent and is not.
        lane.reconfigure(at(1), config(64_000), 30 * MS);
        // Missed at 21, noticed the way back and 1 ms later, there again after 21.
        let there = at(21 + 30 + 1 + 21);
        assert_eq!(drain(&mut lane), [(0, there), (1, there)]);
        let counters = lane.counters();
        assert_eq!((counters.sent_again.packets, counters.link.lost.packets), (1, 1));
        assert_eq!(counters.link.offered.packets, 3);
    }

    #[test]
    fn what_is_left_of_a_forgotten_stream_vanishes() {
        let mut lane = Lane::new(config(4_000), 20 * MS, 1);
        (0..10).for_each(|number| lane.handle_segment(at(0), 7, kilobyte(), number));
        lane.forget(7);
        assert_eq!(drain(&mut lane), []);
        assert_eq!(lane.counters().waiting, Tally::default());
    }

    proptest! {
        #[test]
        fn streams_arrive_once_and_in_order_over_any_link(
            loss in 0.0..0.5f64,
            corruption in 0.0..0.3f64,
            duplication in 0.0..0.5f64,
            seed in any::<u64>(),
            sends in prop::collection::vec((0u64..5, 0u64..3), 1..100),
        ) {
            let jitter = Jitter::Uniform(15 * MS);
            let delay = Delay { jitter, reordering: true, ..Delay::constant(20 * MS) };
            let loss = Loss::Uniform(loss);
            let link = LinkConfig { delay, loss, corruption, duplication, ..config(5_000) };
            let mut lane = Lane::new(link, 20 * MS, seed);
            let (mut now, mut arrived) = (0, Vec::new());
            for (number, &(gap, stream)) in sends.iter().enumerate() {
                now += gap;
                lane.handle_segment(at(now), stream, kilobyte(), number as u64);
                arrived.extend(std::iter::from_fn(|| lane.poll_delivered(at(now)))
                    .map(|it| it.content));
            }
            arrived.extend(drain(&mut lane).into_iter().map(|it| it.0));
            for stream in 0..3 {
                let of_stream = |&number: &u64| sends[number as usize].1 == stream;
                let sent: Vec<u64> = (0..sends.len() as u64).filter(of_stream).collect();
                let got: Vec<u64> = arrived.iter().copied().filter(of_stream).collect();
                prop_assert_eq!(sent, got);
            }
            let LaneCounters { link, inside, sent_again, .. } = lane.counters();
            prop_assert_eq!(inside, Tally::default());
            prop_assert_eq!(link.offered.packets, sends.len() as u64 + sent_again.packets);
        }
    }
}
