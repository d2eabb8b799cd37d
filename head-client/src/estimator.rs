//! The network's part of a deadline, by which a frame's time left on the server is set.

use std::time::Duration;

/// Shortest time left that is ever stamped on a frame. An estimate that has become too high must not
/// make the server refuse frames it could still answer, because only replies bring the estimate down
/// again.
const FLOOR: Duration = Duration::from_millis(10);

/// Least margin for what is not measured: the wire's whole milliseconds and timers.
const LEAST_MARGIN: Duration = Duration::from_millis(1);

/// Smoothed time that a frame spends outside the server, as RFC 6298 (2) smooths round trips.
///
/// A sample is `reply − send − (receive span + queue + decode + tail)`, all on the device's clock
/// or durations: what is left is the path there until the first byte and the path back. The server
/// counts a frame's time left from that first byte, so
///
/// `time left = answer by − now − (S + max(2 · V, 1 ms))`, but at least 10 ms,
///
/// with `S ← 7/8 · S + 1/8 · sample` and `V ← 3/4 · V + 1/4 · |S − sample|`; the first sample sets
/// `S = sample`, `V = sample / 2`. Two deviations, not RFC 6298's four: being a little wrong costs
/// one late answer here, not a retransmission.
///
/// ```
/// use std::time::Duration;
/// use isthmus_head_client::NetworkTime;
///
/// let mut network = NetworkTime::default();
/// network.on_sample(Duration::from_millis(40));
/// let before_deadline = Duration::from_millis(290);
/// assert_eq!(network.time_left(before_deadline), Duration::from_millis(290 - 40 - 2 * 20));
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct NetworkTime {
    estimate: Option<Estimate>,
}

#[derive(Clone, Copy, Debug)]
struct Estimate {
    smoothed: Duration,
    deviation: Duration,
}

impl NetworkTime {
    /// An estimate that starts from a round trip seen while connecting.
    pub fn starting_at(round_trip: Duration) -> Self {
        let mut network = NetworkTime::default();
        network.on_sample(round_trip);
        network
    }

    /// Learns from a reply.
    pub fn on_sample(&mut self, sample: Duration) {
        self.estimate = Some(match self.estimate {
            None => Estimate { smoothed: sample, deviation: sample / 2 },
            Some(Estimate { smoothed, deviation }) => Estimate {
                deviation: deviation * 3 / 4 + smoothed.abs_diff(sample) / 4,
                smoothed: smoothed * 7 / 8 + sample / 8,
            },
        });
    }

    /// The smoothed time, once there was a sample.
    pub fn smoothed(&self) -> Option<Duration> {
        self.estimate.map(|estimate| estimate.smoothed)
    }

    /// The time that the server may take for a frame which has to be answered `before_deadline` from
    /// now.
    pub fn time_left(&self, before_deadline: Duration) -> Duration {
        let Some(Estimate { smoothed, deviation }) = self.estimate else {
            return before_deadline.max(FLOOR);
        };
        let outside = smoothed + (deviation * 2).max(LEAST_MARGIN);
        before_deadline.saturating_sub(outside).max(FLOOR)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_steady_network_is_known_to_the_millisecond() {
        let mut network = NetworkTime::default();
        (0..40).for_each(|_| network.on_sample(ms(80)));
        assert_eq!(network.smoothed(), Some(ms(80)));
        assert_eq!(network.time_left(ms(300)), ms(300 - 80 - 1));
    }

    #[test]
    fn the_first_samples_follow_rfc_6298() {
        let mut network = NetworkTime::starting_at(ms(100));
        network.on_sample(ms(60));
        let estimate = network.estimate.expect("two samples");
        assert_eq!(estimate.smoothed, ms(95));
        assert_eq!(estimate.deviation, Duration::from_micros(47_500));
    }

    #[test]
    fn time_left_never_falls_below_the_floor() {
        let network = NetworkTime::starting_at(Duration::from_secs(20));
        assert_eq!(network.time_left(ms(300)), FLOOR);
        assert_eq!(NetworkTime::default().time_left(Duration::ZERO), FLOOR);
    }
}
