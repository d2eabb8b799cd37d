//! The flows of a UDP proxy: one for each client's address, until it has been idle for long.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use isthmus_proto::Timestamp;

/// Flows with what belongs to each. Pure: the time is an argument.
#[derive(Debug)]
pub(super) struct FlowTable<V> {
    flows: BTreeMap<SocketAddr, (Timestamp, V)>,
    idle: Duration,
    most: usize,
}

impl<V> FlowTable<V> {
    /// Holds at most `most` flows, each until nothing has passed it for `idle`.
    pub(super) fn new(idle: Duration, most: usize) -> Self {
        FlowTable { flows: BTreeMap::new(), idle, most }
    }

    /// The flow of `client`, which is in use at `now`.
    pub(super) fn touch(&mut self, now: Timestamp, client: SocketAddr) -> Option<&V> {
        let (last, flow) = self.flows.get_mut(&client)?;
        *last = now.max(*last);
        Some(flow)
    }

    pub(super) fn insert(&mut self, now: Timestamp, client: SocketAddr, flow: V) {
        self.flows.insert(client, (now, flow));
    }

    /// Gives every flow something else, made by `make`; those for which it makes nothing are over.
    pub(super) fn replace(&mut self, mut make: impl FnMut(SocketAddr) -> Option<V>) {
        self.flows.retain(|&client, (_, flow)| match make(client) {
            Some(other) => {
                *flow = other;
                true
            }
            None => false,
        });
    }

    /// Removes what has been idle for too long, and returns how many flows that were.
    pub(super) fn expire(&mut self, now: Timestamp) -> u64 {
        let before = self.flows.len();
        let idle = self.idle;
        self.flows.retain(|_, (last, _)| now.saturating_since(*last) < idle);
        (before - self.flows.len()) as u64
    }

    pub(super) fn is_full(&self) -> bool {
        self.flows.len() >= self.most
    }

    /// When the next flow expires.
    pub(super) fn poll_timeout(&self) -> Option<Timestamp> {
        self.flows.values().map(|(last, _)| *last + self.idle).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flow_lives_while_it_is_used() {
        let at = |seconds: u64| Timestamp::from_micros(seconds * 1_000_000);
        let client = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let mut table = FlowTable::new(Duration::from_secs(60), 2);
        table.insert(at(0), client(1), "one");
        table.insert(at(10), client(2), "two");
        assert!(table.is_full());
        assert_eq!(table.poll_timeout(), Some(at(60)));
        assert_eq!(table.touch(at(50), client(1)), Some(&"one"));
        assert_eq!(table.touch(at(50), client(3)), None);
        assert_eq!((table.expire(at(69)), table.expire(at(70))), (0, 1));
        table.replace(|client| (client.port() == 1).then_some("other"));
        assert_eq!(table.poll_timeout(), Some(at(110)), "it was used at 50 s");
        assert_eq!(table.touch(at(70), client(2)), None);
        assert_eq!(table.touch(at(50), client(1)), Some(&"other"));
        assert_eq!(table.poll_timeout(), Some(at(110)));
        assert_eq!((table.expire(at(110)), table.poll_timeout()), (1, None));
    }
}
