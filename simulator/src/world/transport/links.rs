//! One direction of what lies between many devices and the server.

use std::collections::VecDeque;

use isthmus_proto::{Bitrate, DataSize, Timestamp};

use crate::link::chance::scattered;
use crate::link::{Delivered, Link, LinkConfig, LinkCounters};
use crate::world::agenda::Alarms;

/// The links of one direction: one that all devices share, or one for each.
#[derive(Debug)]
pub(super) struct Links<T> {
    links: Vec<Link<T>>,
    alarms: Alarms<usize>,
    dropped: VecDeque<T>,
}

impl<T: Clone> Links<T> {
    /// `count` idle links alike, each with a chance of its own.
    pub(super) fn new(config: &LinkConfig, count: u32, seed: u64) -> Self {
        let seed = |at: u32| if at == 0 { seed } else { scattered(seed ^ u64::from(at)) };
        let links: Vec<_> =
            (0..count.max(1)).map(|at| Link::new(config.clone(), seed(at))).collect();
        Links { links, alarms: Alarms::new(), dropped: VecDeque::new() }
    }

    /// Takes a packet of or for this camera's device.
    pub(super) fn handle_packet(
        &mut self,
        now: Timestamp,
        camera: u32,
        size: DataSize,
        content: T,
    ) {
        let at = self.of(camera);
        self.links[at].handle_packet(now, size, content);
        self.settle(at);
    }

    /// The next packet that has arrived by `now`.
    pub(super) fn poll_delivered(&mut self, now: Timestamp) -> Option<Delivered<T>> {
        while let Some(at) = self.alarms.due(now) {
            let delivered = self.links[at].poll_delivered(now);
            self.settle(at);
            if delivered.is_some() {
                return delivered;
            }
        }
        None
    }

    /// The next packet that will not arrive.
    pub(super) fn poll_dropped(&mut self) -> Option<T> {
        self.dropped.pop_front()
    }

    /// When there is something to do next.
    pub(super) fn poll_timeout(&self) -> Option<Timestamp> {
        self.alarms.next()
    }

    /// What became of the packets of all links together.
    pub(super) fn counters(&self) -> LinkCounters {
        let counters = self.links.iter().map(Link::counters);
        counters.fold(LinkCounters::default(), |sum, it| sum.plus(&it))
    }

    /// The rate of this camera's link, and what waits before it or is being sent.
    pub(super) fn state(&mut self, now: Timestamp, camera: u32) -> (Bitrate, DataSize) {
        let at = self.of(camera);
        let state = (self.links[at].rate_at(now), self.links[at].queued(now));
        self.settle(at);
        state
    }

    fn of(&self, camera: u32) -> usize {
        if self.links.len() == 1 { 0 } else { camera as usize }
    }

    fn settle(&mut self, at: usize) {
        let link = &mut self.links[at];
        self.dropped.extend(std::iter::from_fn(|| link.poll_dropped()));
        self.alarms.set(at, link.poll_timeout());
    }
}
