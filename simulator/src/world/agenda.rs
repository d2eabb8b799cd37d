//! What is to happen, in order of time.

use std::cmp::{Ordering, Reverse};
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use isthmus_proto::Timestamp;

/// Things to come; of those at one instant the one that was planned first comes first.
#[derive(Debug)]
pub(super) struct Agenda<T> {
    items: BinaryHeap<Item<T>>,
    planned: u64,
}

/// Ordered by its place alone, the earliest greatest.
#[derive(Debug)]
struct Item<T> {
    place: Reverse<(Timestamp, u64)>,
    content: T,
}

impl<T> Agenda<T> {
    pub(super) fn new() -> Self {
        Agenda { items: BinaryHeap::new(), planned: 0 }
    }

    pub(super) fn plan(&mut self, at: Timestamp, content: T) {
        self.items.push(Item { place: Reverse((at, self.planned)), content });
        self.planned += 1;
    }

    /// When the next thing happens.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.items.peek().map(|item| item.place.0.0)
    }

    /// The next thing that happens by `now`.
    pub(super) fn poll(&mut self, now: Timestamp) -> Option<T> {
        self.next().filter(|&at| at <= now)?;
        self.items.pop().map(|item| item.content)
    }
}

/// One alarm for each of many, which can be moved.
#[derive(Debug)]
pub(super) struct Alarms<K> {
    due: BTreeMap<K, Timestamp>,
    order: BTreeSet<(Timestamp, K)>,
}

impl<K: Copy + Ord> Alarms<K> {
    pub(super) fn new() -> Self {
        Alarms { due: BTreeMap::new(), order: BTreeSet::new() }
    }

    /// Moves the alarm of `key`, or takes it away.
    pub(super) fn set(&mut self, key: K, at: Option<Timestamp>) {
        let before = match at {
            Some(at) => self.due.insert(key, at),
            None => self.due.remove(&key),
        };
        if before != at {
            before.map(|before| self.order.remove(&(before, key)));
            at.map(|at| self.order.insert((at, key)));
        }
    }

    /// When the next one goes off.
    pub(super) fn next(&self) -> Option<Timestamp> {
        self.order.first().map(|&(at, _)| at)
    }

    /// Whose goes off by `now`; it stays until it is moved.
    pub(super) fn due(&self, now: Timestamp) -> Option<K> {
        self.order.first().filter(|(at, _)| *at <= now).map(|&(_, key)| key)
    }
}

impl<T> PartialEq for Item<T> {
    fn eq(&self, other: &Self) -> bool {
        self.place == other.place
    }
}

impl<T> Eq for Item<T> {}

impl<T> PartialOrd for Item<T> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Item<T> {
    fn cmp(&self, other: &Self) -> Ordering {
        self.place.cmp(&other.place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_planned_first_comes_first_at_one_instant() {
        let at = Timestamp::from_micros;
        let mut agenda = Agenda::new();
        for (us, what) in [(5, 'b'), (9, 'd'), (5, 'c'), (1, 'a')] {
            agenda.plan(at(us), what);
        }
        let by_five: String = std::iter::from_fn(|| agenda.poll(at(5))).collect();
        assert_eq!((by_five.as_str(), agenda.next()), ("abc", Some(at(9))));
    }

    #[test]
    fn an_alarm_goes_off_where_it_was_moved_to() {
        let at = Timestamp::from_micros;
        let mut alarms = Alarms::new();
        alarms.set('a', Some(at(5)));
        alarms.set('b', Some(at(7)));
        alarms.set('a', Some(at(9)));
        assert_eq!((alarms.next(), alarms.due(at(6))), (Some(at(7)), None));
        assert_eq!(alarms.due(at(9)), Some('b'));
        alarms.set('b', None);
        assert_eq!(alarms.due(at(9)), Some('a'));
    }
}
