//! Places for connections: how many there are in all and for one origin, and which connection makes
//! room for a new one.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use isthmus_proto::Timestamp;

use crate::batcher::Cost;

/// Without a hello for so long, a connection makes room for a new one.
const GREETED_WITHIN: Duration = Duration::from_secs(2);
/// Without a frame for so long, a connection makes room for a new one.
const IDLE: Duration = Duration::from_secs(5);

/// Whose connections share one limit: an IPv4 address, or the 64 bits of an IPv6 network that a
/// provider gives one customer.
///
/// ```
/// use std::net::IpAddr;
/// use isthmus_tail_server::exchange::Origin;
///
/// let origin = |text: &str| Origin::from(text.parse::<IpAddr>().expect("an address"));
/// assert_eq!(origin("2001:db8:0:1::5"), origin("2001:db8:0:1:a:b:c:d"));
/// assert_ne!(origin("2001:db8:0:1::5"), origin("2001:db8:0:2::5"));
/// assert_eq!(origin("::ffff:192.0.2.1"), origin("192.0.2.1"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Origin(IpAddr);

impl From<IpAddr> for Origin {
    fn from(address: IpAddr) -> Self {
        Origin(match address.to_canonical() {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        })
    }
}

/// Who has a place: how many there are in all and for one origin, and who makes room for a new one.
#[derive(Debug)]
pub(crate) struct Places<I> {
    most: usize,
    most_of_origin: usize,
    taken: BTreeMap<I, Taken>,
    origins: BTreeMap<Origin, usize>,
}

#[derive(Clone, Copy, Debug)]
struct Taken {
    origin: Origin,
    /// When it came, or was last busy.
    active: Timestamp,
    greeted: bool,
    /// What it has under way.
    busy: usize,
}

impl<I: Copy + Ord> Places<I> {
    /// So many places, and so many for one origin.
    pub(crate) fn new(most: usize, most_of_origin: usize) -> Self {
        let (taken, origins) = (BTreeMap::new(), BTreeMap::new());
        Places { most, most_of_origin, taken, origins }
    }

    /// Takes a place, if there is one or somebody idle makes room, who is yielded; `None` if not.
    pub(crate) fn take(&mut self, now: Timestamp, id: I, origin: Origin) -> Option<Option<I>> {
        let evicted = match self.of(origin) >= self.most_of_origin {
            true => Some(self.idlest(now, |other| other == origin)?),
            false if self.taken.len() >= self.most => Some(self.idlest(now, |_| true)?),
            false => None,
        };
        evicted.into_iter().for_each(|id| self.free(id));
        *self.origins.entry(origin).or_default() += 1;
        self.taken.insert(id, Taken { origin, active: now, greeted: false, busy: 0 });
        Some(evicted)
    }

    /// Whoever has this place leaves.
    pub(crate) fn free(&mut self, id: I) {
        let Some(Taken { origin, .. }) = self.taken.remove(&id) else { return };
        if let Some(taken) = self.origins.get_mut(&origin) {
            *taken -= 1;
            if *taken == 0 {
                self.origins.remove(&origin);
            }
        }
    }

    /// Whoever has this place has said who it is.
    pub(crate) fn greet(&mut self, id: I) {
        if let Some(taken) = self.taken.get_mut(&id) {
            taken.greeted = true;
        }
    }

    /// Whoever has this place has one thing more under way.
    pub(crate) fn begin(&mut self, now: Timestamp, id: I) {
        if let Some(taken) = self.taken.get_mut(&id) {
            taken.active = now;
            taken.busy += 1;
        }
    }

    /// One of the things is over that were under way.
    pub(crate) fn end(&mut self, now: Timestamp, id: I) {
        if let Some(taken) = self.taken.get_mut(&id) {
            taken.active = taken.active.max(now);
            taken.busy = taken.busy.saturating_sub(1);
        }
    }

    /// What a job costs one of an origin: they share one part of the workers.
    pub(crate) fn cost(&self, origin: Origin) -> Cost {
        Cost::of_share(self.of(origin))
    }

    /// Places that an origin has taken.
    fn of(&self, origin: Origin) -> usize {
        self.origins.get(&origin).copied().unwrap_or(0)
    }

    /// Whether half of the places are taken.
    pub(crate) fn is_crowded(&self) -> bool {
        self.taken.len() >= self.most / 2
    }

    /// Of the origin with most, the one that has been idle longest.
    fn idlest(&self, now: Timestamp, whose: impl Fn(Origin) -> bool) -> Option<I> {
        let may_leave = |taken: &Taken| {
            let patience = if taken.greeted { IDLE } else { GREETED_WITHIN };
            taken.busy == 0 && now.saturating_since(taken.active) >= patience
        };
        let idle = self.taken.iter().filter(|(_, taken)| whose(taken.origin) && may_leave(taken));
        idle.max_by_key(|(_, it)| (self.of(it.origin), now.saturating_since(it.active)))
            .map(|(&id, _)| id)
    }
}
