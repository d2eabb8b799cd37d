//! Quantities whose unit is in the type.

use std::fmt;
use std::ops::{Add, Sub};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// An instant: microseconds since a zero that its owner chose.
///
/// The pure core never reads a clock; whoever drives it passes instants in. Instants of two
/// machines are never compared.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timestamp(u64);

impl Timestamp {
    /// The owner's zero.
    pub const ZERO: Timestamp = Timestamp(0);

    /// An instant `micros` µs after zero.
    pub const fn from_micros(micros: u64) -> Self {
        Timestamp(micros)
    }

    /// Microseconds since zero.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Time passed since `earlier`; zero if `earlier` is later.
    pub const fn saturating_since(self, earlier: Timestamp) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Timestamp {
    type Output = Timestamp;

    fn add(self, span: Duration) -> Timestamp {
        Timestamp(self.0.saturating_add(micros(span)))
    }
}

impl Sub<Duration> for Timestamp {
    type Output = Timestamp;

    /// Stops at zero.
    fn sub(self, span: Duration) -> Timestamp {
        Timestamp(self.0.saturating_sub(micros(span)))
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06} s", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

/// A rate of data (bits/s).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Bitrate(u64);

impl Bitrate {
    /// A rate of `bps` bits/s.
    pub const fn from_bps(bps: u64) -> Self {
        Bitrate(bps)
    }

    /// Bits per second.
    pub const fn as_bps(self) -> u64 {
        self.0
    }

    /// The serialisation time of `size`, rounded up to a microsecond; [`Duration::MAX`] at rate
    /// zero.
    ///
    /// ```
    /// use isthmus_proto::{Bitrate, DataSize};
    /// let time = Bitrate::from_bps(2_000_000).time_for(DataSize::from_bytes(1_250));
    /// assert_eq!(time.as_micros(), 5_000);
    /// ```
    pub fn time_for(self, size: DataSize) -> Duration {
        if self.0 == 0 {
            return Duration::MAX;
        }
        let micros = (u128::from(size.0) * 8_000_000).div_ceil(u128::from(self.0));
        u64::try_from(micros).map_or(Duration::MAX, Duration::from_micros)
    }
}

impl fmt::Display for Bitrate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            bps if bps >= 1_000_000 => write!(f, "{:.2} Mbit/s", bps as f64 / 1e6),
            bps if bps >= 1_000 => write!(f, "{:.1} kbit/s", bps as f64 / 1e3),
            bps => write!(f, "{bps} bit/s"),
        }
    }
}

/// An amount of data (bytes).
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct DataSize(u64);

impl DataSize {
    /// An amount of `bytes` bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        DataSize(bytes)
    }

    /// Bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for DataSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} B", self.0)
    }
}

fn micros(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_saturate_instead_of_wrapping() {
        let early = Timestamp::from_micros(5);
        assert_eq!(early - Duration::from_secs(1), Timestamp::ZERO);
        assert_eq!(early.saturating_since(Timestamp::from_micros(9)), Duration::ZERO);
        assert_eq!((early + Duration::MAX).as_micros(), u64::MAX);
    }

    #[test]
    fn serialisation_time_rounds_up_and_is_endless_at_rate_zero() {
        let size = DataSize::from_bytes(1);
        assert_eq!(Bitrate::from_bps(3_000_000).time_for(size), Duration::from_micros(3));
        assert_eq!(Bitrate::from_bps(0).time_for(size), Duration::MAX);
    }
}
