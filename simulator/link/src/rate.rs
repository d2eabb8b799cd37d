//! How fast a link sends, over time.

use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::{Bitrate, DataSize, Timestamp};

use crate::chance::Chance;
use crate::trace::{MicroBits, PiecesError, Trace, capacity_of};

/// How fast a link sends.
#[derive(Clone, Debug, PartialEq)]
pub enum Rate {
    /// Always the same; at zero nothing leaves.
    Constant(Bitrate),
    /// By a trace.
    Trace(Playback),
}

/// A trace that a link plays.
#[derive(Clone, Debug, PartialEq)]
pub struct Playback {
    /// The trace.
    pub trace: Arc<Trace>,
    /// Where in the trace the link's time zero is; over the end it goes round.
    pub offset: Duration,
    /// What comes after the end.
    pub at_end: AtEnd,
}

/// What comes after a trace's end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AtEnd {
    /// Its start.
    #[default]
    Loop,
    /// Its last rate, for ever.
    Once,
}

/// A span in which a link sends nothing, in the link's time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// From when.
    pub start: Timestamp,
    /// For how long.
    pub length: Duration,
}

/// A rate that jumps between states: it stays in one for an exponential time and then moves to
/// another by the weights.
#[derive(Clone, Debug, PartialEq)]
pub struct MarkovRate {
    /// Rate of each state, and the mean time in it.
    pub states: Vec<(Bitrate, Duration)>,
    /// For each state, the weights with which each other state follows; with no weights at all,
    /// every other state is as likely.
    pub moves: Vec<Vec<f64>>,
}

impl MarkovRate {
    /// Draws a path of `duration`, from the first state on. It is a trace like any other, so that
    /// whoever has to know the whole of it, such as an oracle, can.
    ///
    /// # Panics
    ///
    /// If there is no state.
    pub fn draw(&self, duration: Duration, seed: u64) -> Result<Trace, PiecesError> {
        let mut chance = Chance::new(seed, 0x6d_61_72_6b);
        let mut pieces = Vec::new();
        let (mut state, mut rest) = (0, duration);
        while !rest.is_zero() {
            let (rate, mean) = self.states[state];
            // A dwell of less than a millisecond is a burst that no link knows.
            let dwell = mean.mul_f64(chance.exponential()).max(Duration::from_millis(1)).min(rest);
            pieces.push((dwell, rate));
            rest -= dwell;
            state = self.after(state, &mut chance);
        }
        Trace::new(pieces)
    }

    fn after(&self, state: usize, chance: &mut Chance) -> usize {
        let even: Vec<f64>;
        let weights = match self.moves.get(state) {
            Some(weights) => weights,
            None => {
                even =
                    (0..self.states.len()).map(|at| if at == state { 0.0 } else { 1.0 }).collect();
                &even
            }
        };
        if weights.iter().sum::<f64>() > 0.0 { chance.weighted(weights) } else { state }
    }
}

impl Rate {
    /// The rate at `at`, outages apart.
    pub fn at(&self, at: Timestamp) -> Bitrate {
        match self {
            Rate::Constant(rate) => *rate,
            Rate::Trace(playback) => playback.trace.rate_at(playback.position(at)),
        }
    }

    /// What the link could send until `at`, from its time zero or that of its trace.
    fn capacity_until(&self, at: Timestamp) -> MicroBits {
        match self {
            Rate::Constant(rate) => {
                MicroBits::from(at.as_micros()) * MicroBits::from(rate.as_bps())
            }
            Rate::Trace(playback) => {
                let Playback { trace, offset, at_end } = playback;
                let offset = micros(*offset);
                let end = micros(trace.duration());
                let position = offset.saturating_add(at.as_micros());
                match at_end {
                    AtEnd::Once if position >= end => {
                        let last = MicroBits::from(trace.rate_at(end - 1).as_bps());
                        trace.capacity_until(end) + MicroBits::from(position - end) * last
                    }
                    _ => trace.capacity_until(position),
                }
            }
        }
    }

    /// The first instant by which that is `capacity`.
    fn time_of(&self, capacity: MicroBits) -> Option<Timestamp> {
        let micros = match self {
            Rate::Constant(rate) => {
                let rate = MicroBits::from(rate.as_bps());
                if rate == 0 && capacity > 0 {
                    return None;
                }
                u64::try_from(capacity.div_ceil(rate.max(1))).ok()
            }
            Rate::Trace(playback) => {
                let Playback { trace, offset, at_end } = playback;
                let offset = micros(*offset);
                let end = micros(trace.duration());
                let whole = trace.capacity_until(end);
                match at_end {
                    AtEnd::Once if capacity > whole => {
                        let last = MicroBits::from(trace.rate_at(end - 1).as_bps());
                        if last == 0 {
                            return None;
                        }
                        let beyond = u64::try_from((capacity - whole).div_ceil(last)).ok()?;
                        Some(end.saturating_add(beyond).saturating_sub(offset))
                    }
                    _ => trace.time_of(capacity).map(|at| at.saturating_sub(offset)),
                }
            }
        };
        micros.map(Timestamp::from_micros)
    }
}

impl Playback {
    fn position(&self, at: Timestamp) -> u64 {
        let position = micros(self.offset).saturating_add(at.as_micros());
        match self.at_end {
            AtEnd::Loop => position,
            AtEnd::Once => position.min(micros(self.trace.duration()) - 1),
        }
    }
}

/// A rate with outages: when a link is done with a packet.
#[derive(Clone, Debug, PartialEq)]
pub struct Schedule {
    rate: Rate,
    /// In order, none touching another.
    outages: Vec<(Timestamp, Timestamp)>,
}

impl Schedule {
    /// `rate`, but for `outages`, which may overlap.
    pub fn new(rate: Rate, outages: &[Outage]) -> Self {
        let mut spans: Vec<_> =
            outages.iter().map(|outage| (outage.start, outage.start + outage.length)).collect();
        spans.sort();
        let mut outages: Vec<(Timestamp, Timestamp)> = Vec::new();
        for (start, end) in spans {
            match outages.last_mut() {
                Some((_, last)) if start <= *last => *last = end.max(*last),
                _ => outages.push((start, end)),
            }
        }
        Schedule { rate, outages }
    }

    /// The rate at `at`.
    pub fn rate_at(&self, at: Timestamp) -> Bitrate {
        let next = self.outages.partition_point(|&(_, end)| end <= at);
        match self.outages.get(next) {
            Some(&(start, _)) if start <= at => Bitrate::default(),
            _ => self.rate.at(at),
        }
    }

    /// When a packet of `size` whose first bit leaves no earlier than `start` has left; `None` if
    /// it never does.
    pub fn departure(&self, start: Timestamp, size: DataSize) -> Option<Timestamp> {
        self.time_to_send(start, capacity_of(size))
    }

    /// When `rest` of a packet has left that is being sent at `start`.
    pub(super) fn time_to_send(&self, start: Timestamp, rest: MicroBits) -> Option<Timestamp> {
        let (mut at, mut rest) = (start, rest);
        let from = self.outages.partition_point(|&(_, end)| end <= start);
        for &(outage, end) in &self.outages[from..] {
            let departure = self.rate.time_of(self.rate.capacity_until(at) + rest);
            if departure.is_some_and(|departure| departure <= outage) {
                return departure.map(|departure| departure.max(start));
            }
            if at < outage {
                rest -= self.rate.capacity_until(outage) - self.rate.capacity_until(at);
            }
            at = end;
        }
        let departure = self.rate.time_of(self.rate.capacity_until(at) + rest)?;
        Some(departure.max(start))
    }

    /// What can be sent between two instants.
    pub(super) fn capacity_between(&self, start: Timestamp, end: Timestamp) -> MicroBits {
        let capacity = |from: Timestamp, to: Timestamp| {
            self.rate.capacity_until(to).saturating_sub(self.rate.capacity_until(from))
        };
        let held = self.outages.iter().map(|&(from, to)| capacity(from.max(start), to.min(end)));
        capacity(start, end).saturating_sub(held.sum())
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(micros: u64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    fn bytes(bytes: u64) -> DataSize {
        DataSize::from_bytes(bytes)
    }

    fn playback(pieces: &[(u64, u64)], offset: u64, at_end: AtEnd) -> Rate {
        let piece = |&(us, bps): &(u64, u64)| (Duration::from_micros(us), Bitrate::from_bps(bps));
        let trace = Arc::new(Trace::new(pieces.iter().map(piece)).expect("pieces"));
        Rate::Trace(Playback { trace, offset: Duration::from_micros(offset), at_end })
    }

    #[test]
    fn a_looped_trace_starts_again_and_a_single_one_holds_its_last_rate() {
        // 1 byte takes 1 µs in the first half, 2 µs in the second.
        let pieces = [(10, 8_000_000), (10, 4_000_000)];
        let looped = Schedule::new(playback(&pieces, 0, AtEnd::Loop), &[]);
        assert_eq!(looped.departure(at(8), bytes(4)), Some(at(14)));
        assert_eq!(looped.departure(at(18), bytes(3)), Some(at(22)));
        let once = Schedule::new(playback(&pieces, 0, AtEnd::Once), &[]);
        assert_eq!(once.departure(at(18), bytes(3)), Some(at(24)));
        assert_eq!(once.departure(at(1_000), bytes(3)), Some(at(1_006)));
        assert_eq!(once.rate_at(at(1_000)).as_bps(), 4_000_000);
    }

    #[test]
    fn an_offset_starts_within_the_trace() {
        let pieces = [(10, 8_000_000), (10, 4_000_000)];
        let late = Schedule::new(playback(&pieces, 15, AtEnd::Loop), &[]);
        assert_eq!(late.rate_at(at(4)).as_bps(), 4_000_000);
        assert_eq!(late.rate_at(at(5)).as_bps(), 8_000_000);
        assert_eq!(late.departure(at(0), bytes(2)), Some(at(4)));
    }

    #[test]
    fn an_outage_holds_what_is_being_sent() {
        let rate = Rate::Constant(Bitrate::from_bps(8_000_000));
        let outage =
            |start, length| Outage { start: at(start), length: Duration::from_micros(length) };
        let schedule = Schedule::new(rate, &[outage(40, 10), outage(10, 5), outage(12, 8)]);
        assert_eq!(schedule.departure(at(0), bytes(10)), Some(at(10)));
        assert_eq!(schedule.departure(at(5), bytes(10)), Some(at(25)));
        assert_eq!(schedule.departure(at(13), bytes(20)), Some(at(40)));
        assert_eq!(schedule.departure(at(13), bytes(21)), Some(at(51)));
        assert_eq!(
            (schedule.rate_at(at(19)).as_bps(), schedule.rate_at(at(20)).as_bps()),
            (0, 8_000_000)
        );
    }

    #[test]
    fn a_markov_rate_spends_its_mean_times() {
        let ms = Duration::from_millis;
        let states = vec![(Bitrate::from_bps(1_000), ms(300)), (Bitrate::from_bps(0), ms(100))];
        let markov = MarkovRate { states, moves: Vec::new() };
        let trace = markov.draw(Duration::from_secs(2_000), 5).expect("a trace");
        let mean = trace.mean_rate().as_bps();
        assert!((730..=770).contains(&mean), "{mean}");
        assert_eq!(markov.draw(Duration::from_secs(9), 5), markov.draw(Duration::from_secs(9), 5));
        assert_ne!(markov.draw(Duration::from_secs(9), 5), markov.draw(Duration::from_secs(9), 6));
    }

    proptest! {
        #[test]
        fn what_was_sent_is_the_rate_over_the_time(
            pieces in prop::collection::vec((1u64..2_000, 0u64..50_000_000), 1..10),
            offset in 0u64..10_000,
            once in any::<bool>(),
            start in 0u64..20_000,
            size in 1u64..3_000,
            outages in prop::collection::vec((0u64..30_000, 1u64..3_000), 0..4),
        ) {
            let at_end = if once { AtEnd::Once } else { AtEnd::Loop };
            let outages: Vec<_> = outages.iter()
                .map(|&(start, us)| Outage { start: at(start), length: Duration::from_micros(us) })
                .collect();
            let schedule = Schedule::new(playback(&pieces, offset, at_end), &outages);
            let Some(end) = schedule.departure(at(start), bytes(size)) else { return Ok(()) };
            // Summed µs by µs, as slowly as the definition; bounded, for rates of a few bits/s.
            prop_assume!(end.as_micros() < 200_000);
            let sent = |until: u64| -> u128 {
                (start..until).map(|us| u128::from(schedule.rate_at(at(us)).as_bps())).sum()
            };
            let needed = u128::from(size) * 8_000_000;
            prop_assert!(sent(end.as_micros()) >= needed);
            prop_assert!(sent(end.as_micros() - 1) < needed);
        }
    }
}
