//! Recorded or drawn rates over time.
//!
//! A [`Trace`] is a rate that is constant piece by piece. [`Trace::read`] takes the formats that
//! measured traces come in; [`Trace::write`] writes them again.

mod parse;
mod write;

use std::path::PathBuf;
use std::time::Duration;

use isthmus_proto::{Bitrate, DataSize};

pub use parse::{Columns, Direction};

/// What one delivery opportunity of a mahimahi trace carries (bytes).
const OPPORTUNITY: u64 = 1_500;

/// Highest rate that a trace may have (bits/s); beyond it somebody mistook a unit.
const MAX_BPS: f64 = 1e12;

/// A format of trace files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum Format {
    /// One whole number a line: milliseconds since the start, of an opportunity to deliver 1,500
    /// bytes; the last one ends the trace. As [mahimahi](http://mahimahi.mit.edu)'s `mm-link`.
    Mahimahi,
    /// `seconds Mbit/s` a line: the rate since the line before; the first line sets the origin. As
    /// [Pensieve](https://github.com/hongzimao/pensieve)'s simulator takes it.
    Pensieve,
    /// Columns under a line of names, one with the time, one with the rate since the row before;
    /// the first row sets the origin. Rows of the same time are averaged.
    Csv,
    /// `{"uplink": {"trace_pattern": [{"duration": ms, "capacity": kbit/s}, …]}}`, as
    /// [AlphaRTC](https://github.com/OpenNetLab/AlphaRTC)'s gym takes it.
    Json,
}

/// Why a trace was refused. Every message names the file, and the line where there is one.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be read.
    #[error("{}: {cause}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// A line that cannot be read, or has an impossible value.
    #[error("{}:{line}: {problem}", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What was found and what was expected.
        problem: String,
    },
    /// The file as a whole cannot be used.
    #[error("{}: {problem}", file.display())]
    Whole {
        /// The file.
        file: PathBuf,
        /// What was found and what was expected.
        problem: String,
    },
}

/// Pieces that are no trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PiecesError {
    /// Nothing at all, or no time in it.
    #[error("it lasts no time; at least one piece of 1 µs is needed")]
    NoTime,
    /// Longer than 2^63 µs, or more bits than can be counted.
    #[error("it is too long")]
    TooLong,
}

/// A rate over time, constant piece by piece, from 0 to [`Trace::duration`].
///
/// ```
/// use std::time::Duration;
/// use isthmus_proto::Bitrate;
/// use isthmus_link::Trace;
///
/// let second = Duration::from_secs(1);
/// let trace = Trace::new([(second, Bitrate::from_bps(8_000)), (second, Bitrate::from_bps(0))])?;
/// assert_eq!(trace.mean_rate(), Bitrate::from_bps(4_000));
/// # Ok::<(), isthmus_link::PiecesError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// In order of start; the first starts at 0, neighbours differ in rate.
    pieces: Vec<Piece>,
    /// End of the last piece (µs), more than 0.
    end: u64,
    /// Capacity of the whole trace.
    total: MicroBits,
}

/// What a link could carry up to some instant, in millionths of a bit: µs × bits/s is a whole number of
/// these, so that nothing is ever rounded before the final instant.
pub(crate) type MicroBits = u128;

/// `size` as an amount of [`MicroBits`].
pub(crate) fn capacity_of(size: DataSize) -> MicroBits {
    MicroBits::from(size.as_bytes()) * 8_000_000
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    /// µs.
    start: u64,
    rate: Bitrate,
    /// Capacity of all pieces before.
    before: MicroBits,
}

impl Trace {
    /// A trace of these pieces, in order. Pieces without time are left out, neighbours of the same
    /// rate become one.
    pub fn new(
        pieces: impl IntoIterator<Item = (Duration, Bitrate)>,
    ) -> Result<Trace, PiecesError> {
        let mut trace = Trace { pieces: Vec::new(), end: 0, total: 0 };
        for (span, rate) in pieces {
            let micros = u64::try_from(span.as_micros()).map_err(|_| PiecesError::TooLong)?;
            if micros == 0 {
                continue;
            }
            if trace.pieces.last().is_none_or(|last| last.rate != rate) {
                trace.pieces.push(Piece { start: trace.end, rate, before: trace.total });
            }
            let end = trace.end.checked_add(micros).filter(|&end| end < 1 << 63);
            trace.end = end.ok_or(PiecesError::TooLong)?;
            // Below 2^63 µs × 2^64 bits/s: no overflow.
            trace.total += MicroBits::from(micros) * MicroBits::from(rate.as_bps());
        }
        match trace.pieces.is_empty() {
            true => Err(PiecesError::NoTime),
            false => Ok(trace),
        }
    }

    /// The same with every rate multiplied by `factor`, rounded to whole bits/s.
    ///
    /// # Panics
    ///
    /// If `factor` is negative or not finite.
    pub fn scaled(&self, factor: f64) -> Trace {
        assert!(factor.is_finite() && factor >= 0.0, "no factor of a rate: {factor}");
        let scale =
            |rate: Bitrate| Bitrate::from_bps((rate.as_bps() as f64 * factor).round() as u64);
        let pieces = self.pieces().map(|(span, rate)| (span, scale(rate)));
        // The spans are those of a trace.
        Trace::new(pieces).unwrap_or_else(|_| self.clone())
    }

    /// The same with no rate above `most`.
    pub fn capped(&self, most: Bitrate) -> Trace {
        let pieces = self.pieces().map(|(span, rate)| (span, rate.min(most)));
        // The spans are those of a trace.
        Trace::new(pieces).unwrap_or_else(|_| self.clone())
    }

    /// The pieces, in order.
    pub fn pieces(&self) -> impl Iterator<Item = (Duration, Bitrate)> + '_ {
        let ends = self.pieces.iter().skip(1).map(|piece| piece.start).chain([self.end]);
        let spans = self.pieces.iter().zip(ends);
        spans.map(|(piece, end)| (Duration::from_micros(end - piece.start), piece.rate))
    }

    /// From its start to its end.
    pub fn duration(&self) -> Duration {
        Duration::from_micros(self.end)
    }

    /// Mean over its duration.
    pub fn mean_rate(&self) -> Bitrate {
        let bps = self.total / MicroBits::from(self.end);
        Bitrate::from_bps(u64::try_from(bps).unwrap_or(u64::MAX))
    }

    /// The rate at `at` (µs) of an endless repetition.
    pub(crate) fn rate_at(&self, at: u64) -> Bitrate {
        self.pieces[self.piece_at(at % self.end)].rate
    }

    /// The capacity from the start to `at` (µs) of an endless repetition.
    pub(crate) fn capacity_until(&self, at: u64) -> MicroBits {
        let (rounds, at) = (at / self.end, at % self.end);
        let piece = &self.pieces[self.piece_at(at)];
        let within = MicroBits::from(at - piece.start) * MicroBits::from(piece.rate.as_bps());
        MicroBits::from(rounds) * self.total + piece.before + within
    }

    /// The first instant (µs) at which an endless repetition has reached `capacity`; `None` if it
    /// never does.
    pub(crate) fn time_of(&self, capacity: MicroBits) -> Option<u64> {
        if capacity == 0 {
            return Some(0);
        }
        if self.total == 0 {
            return None;
        }
        // The end of a round belongs to it: it is the first instant of that capacity.
        let rounds = (capacity - 1) / self.total;
        let rest = capacity - rounds * self.total;
        let piece = self.pieces.partition_point(|piece| piece.before < rest) - 1;
        let Piece { start, rate, before } = self.pieces[piece];
        let within = (rest - before).div_ceil(MicroBits::from(rate.as_bps()));
        let at = rounds * MicroBits::from(self.end) + MicroBits::from(start) + within;
        u64::try_from(at).ok()
    }

    fn piece_at(&self, at: u64) -> usize {
        self.pieces.partition_point(|piece| piece.start <= at) - 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn trace(pieces: &[(u64, u64)]) -> Trace {
        let pieces =
            pieces.iter().map(|&(us, bps)| (Duration::from_micros(us), Bitrate::from_bps(bps)));
        Trace::new(pieces).expect("pieces with time")
    }

    #[test]
    fn no_time_is_no_trace() {
        assert_eq!(Trace::new([]), Err(PiecesError::NoTime));
        let nothing = [(Duration::ZERO, Bitrate::from_bps(9))];
        assert_eq!(Trace::new(nothing), Err(PiecesError::NoTime));
        let long = [(Duration::from_micros(1 << 62), Bitrate::from_bps(1)); 2];
        assert_eq!(Trace::new(long), Err(PiecesError::TooLong));
    }

    #[test]
    fn capacity_runs_on_over_the_end() {
        let trace = trace(&[(10, 3), (5, 0), (10, 2)]);
        assert_eq!(trace.capacity_until(12), 30);
        assert_eq!(trace.capacity_until(25 + 4), 50 + 12);
        assert_eq!(trace.time_of(30), Some(10), "and not only after the pause");
        assert_eq!(trace.time_of(31), Some(16));
        assert_eq!(trace.time_of(50), Some(25));
        assert_eq!(trace.time_of(51), Some(26));
        assert_eq!((trace.rate_at(24).as_bps(), trace.rate_at(25).as_bps()), (2, 3));
    }

    #[test]
    fn a_dead_trace_never_carries_anything() {
        assert_eq!(trace(&[(10, 0)]).time_of(1), None);
    }

    #[test]
    fn scaling_changes_rates_and_no_times() {
        let half = trace(&[(10, 3_000), (5, 1_000)]).scaled(0.5);
        assert_eq!(half, trace(&[(10, 1_500), (5, 500)]));
    }

    proptest! {
        #[test]
        fn time_and_capacity_are_inverse(
            pieces in prop::collection::vec((1u64..50, 0u64..9), 1..20),
            capacity in 1u128..5_000,
        ) {
            let trace = trace(&pieces);
            if let Some(at) = trace.time_of(capacity) {
                prop_assert!(trace.capacity_until(at) >= capacity);
                prop_assert!(trace.capacity_until(at - 1) < capacity);
            } else {
                prop_assert!(pieces.iter().all(|&(_, bps)| bps == 0));
            }
        }
    }
}
