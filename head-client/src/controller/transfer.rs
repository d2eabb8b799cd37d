//! Transfer times: how long the network takes for a frame of a given size, and how certain that is.

use std::time::Duration;

use isthmus_proto::{Bitrate, Timestamp};

use super::decision::LinkEstimate;
use super::statistics::ms;

/// Predicts a frame's time in the network from its size, with its uncertainty.
///
/// `x` kilobytes that find the path free take
///
/// `T(x) = R + b · x + ε`,
///
/// with the round trip R (ms), the slowness b (ms/kB, the inverse of the rate) and noise ε of variance
/// r. A Kalman filter (1960) follows the state (R, b) and its covariance P; a reply observes
/// `h · (R, b)` with `h = (1, x)`, and the prediction for a size has the variance `h · P · h + r`.
/// Where all frames have about the same size only the sum is known, and P says so: predictions for
/// other sizes are less certain. In a time Δt (s) without news R drifts by the variance 0.5 · Δt (ms²)
/// and ln b by 0.05 · Δt.
///
/// Two things that a filter of fixed noise cannot do are added. The noise is measured:
/// `r ← r + (e² − h · P · h − r) / 32` for a residual e. And a residual of more than three standard
/// deviations counts as a change of the rate, not as noise: P grows by as much as explains it. Where
/// the next reply is back to what it was, it was noise after all, and has to be exceeded by half to
/// count again.
///
/// Congestion window over round-trip time is no rate and is not used: it is too high where the
/// application is the limit, and inflated where a queue stands.
///
/// ```
/// use std::time::Duration;
/// use isthmus_head_client::TransferTime;
/// use isthmus_proto::Timestamp;
///
/// let mut transfer = TransferTime::new(Some(Duration::from_millis(40)));
/// for step in 0..50 {
///     // 1 Mbit/s: 8 ms for each 1,000 bytes.
///     let bytes = 500 + 500 * (step % 3);
///     let took = Duration::from_micros(40_000 + 8 * bytes);
///     transfer.on_sample(Timestamp::from_micros(step * 100_000), bytes as usize, took);
/// }
/// let predicted = transfer.predict(Timestamp::from_micros(5_000_000), 2_000);
/// assert!((predicted.mean.as_millis() as i64 - 56).abs() <= 1);
/// ```
#[derive(Clone, Debug)]
pub struct TransferTime {
    /// R: round trip (ms).
    round_trip: f64,
    /// b: time per 1,000 bytes (ms), more than 0.
    slowness: f64,
    /// P: covariance of the two.
    covariance: [[f64; 2]; 2],
    /// r: variance of a sample around its prediction (ms²).
    noise: f64,
    /// Largest residual that was no change of the rate, fading (ms).
    worst_noise: f64,
    /// Residual of the last reply if it was taken for a change that none has confirmed yet (ms).
    unconfirmed: Option<f64>,
    at: Timestamp,
}

/// A predicted time in the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prediction {
    /// Its mean.
    pub mean: Duration,
    /// Its standard deviation.
    pub deviation: Duration,
}

/// Before anything is known: 1 Mbit/s, to a factor of two or so, and a round trip of 100 ms.
const FIRST_SLOWNESS: f64 = 8.0;
const FIRST_ROUND_TRIP: f64 = 100.0;

/// Drift of the round trip (ms² per second) and of the slowness's logarithm (per second).
const ROUND_TRIP_DRIFT: f64 = 0.5;
const SLOWNESS_DRIFT: f64 = 0.05;

/// Bounds of the slowness: 80 Gbit/s and 80 bit/s.
const SLOWNESS: std::ops::RangeInclusive<f64> = 1e-4..=1e5;

/// How many times the estimated rate is assumed at most by an optimistic serialisation time.
const MOST_OPTIMISTIC: f64 = 10.0;

/// Weight of the latest residual in the noise, and the least noise: wire and timers (ms²).
const NOISE_GAIN: f64 = 1.0 / 32.0;
const LEAST_NOISE: f64 = 0.25;

/// Number of standard deviations from which a slower reply, and a faster one, is a change.
const SLOWER: f64 = 3.0;
const FASTER: f64 = -3.0;

/// How many times the worst noise a residual must be to count as a change, and how fast the worst
/// noise fades, per reply.
const BEYOND_WORST: f64 = 1.5;
const WORST_FADES: f64 = 1.0 / 64.0;

/// A packet of QUIC on most paths (bytes); frames of fewer than four show no dispersion.
const PACKET: usize = 1_200;

/// What a packet adds: IPv4 and UDP 28 bytes, QUIC's header, stream frame and tag about 32.
const HEADERS: usize = 60;

impl TransferTime {
    /// An estimate without samples, given at most the round trip of small packets.
    pub fn new(round_trip: Option<Duration>) -> Self {
        let (round_trip, known) = match round_trip {
            Some(round_trip) => (ms(round_trip), 0.1),
            None => (FIRST_ROUND_TRIP, 0.5),
        };
        let variance = (round_trip * known).max(2.0).powi(2);
        TransferTime {
            round_trip,
            slowness: FIRST_SLOWNESS,
            covariance: [[variance, 0.0], [0.0, FIRST_SLOWNESS * FIRST_SLOWNESS]],
            noise: 4.0,
            worst_noise: 0.0,
            unconfirmed: None,
            at: Timestamp::ZERO,
        }
    }

    /// Learns that `bytes` took `network`, waiting behind earlier frames not included.
    pub fn on_sample(&mut self, now: Timestamp, bytes: usize, network: Duration) {
        self.drift(now);
        self.update([1.0, kilobytes(bytes)], ms(network), self.noise, true);
    }

    /// Learns the rate from the dispersion of a frame: the time from its first to its last byte at the
    /// receiver, on its clock alone. Frames of fewer than four packets show none.
    pub fn on_dispersion(&mut self, now: Timestamp, bytes: usize, span: Duration) {
        if bytes >= 4 * PACKET {
            self.drift(now);
            // A reader wakes a little late, once.
            let noise = self.noise.min(4.0);
            self.update([0.0, kilobytes(bytes - PACKET)], ms(span), noise, false);
        }
    }

    /// Learns that `bytes` would have taken longer than `waited`: a censored sample.
    pub fn on_timeout(&mut self, now: Timestamp, bytes: usize, waited: Duration) {
        self.drift(now);
        // The mean of what lies beyond is unknown; a quarter more is a beginning, and the next
        // timeout adds to it.
        let least = 1.25 * ms(waited);
        if self.round_trip + self.slowness * kilobytes(bytes) < least {
            self.update([1.0, kilobytes(bytes)], least, self.noise, true);
        }
    }

    /// The time that `bytes` will take if sent at `now` on a free path.
    pub fn predict(&self, now: Timestamp, bytes: usize) -> Prediction {
        let mut later = self.clone();
        later.drift(now);
        let x = kilobytes(bytes);
        let mean = later.round_trip + later.slowness * x;
        let variance = later.variance([1.0, x]) + later.noise;
        Prediction { mean: from_ms(mean), deviation: from_ms(variance.sqrt()) }
    }

    /// Standard deviation of replies around their prediction, √r.
    pub fn noise(&self) -> Duration {
        from_ms(self.noise.sqrt())
    }

    /// The rate at which bytes pass, and the round trip of a frame without any.
    pub fn estimate(&self) -> LinkEstimate {
        let rate = Bitrate::from_bps((8e6 / self.slowness) as u64);
        LinkEstimate { rate, round_trip: self.round_trip() }
    }

    /// The time that `bytes` occupy the path: `b · x`.
    pub fn serialisation(&self, bytes: usize) -> Duration {
        from_ms(self.slowness * kilobytes(bytes))
    }

    /// The time that `bytes` occupy the path if it is faster than estimated, by one standard deviation
    /// and at most tenfold: `max(b − σ_b, b / 10) · x`.
    pub fn optimistic_serialisation(&self, now: Timestamp, bytes: usize) -> Duration {
        let mut later = self.clone();
        later.drift(now);
        let deviation = later.covariance[1][1].sqrt();
        let slowness = (later.slowness - deviation).max(later.slowness / MOST_OPTIMISTIC);
        from_ms(slowness * kilobytes(bytes))
    }

    /// The rate by the dispersion of a frame of `bytes`, whose first and last byte reached the receiver
    /// `span` apart; `None` where the frame is too small to show it.
    pub fn dispersion(bytes: usize, span: Duration) -> Option<Bitrate> {
        let is_shown = bytes >= 4 * PACKET && !span.is_zero();
        let bits = 8.0 * bytes.saturating_sub(PACKET) as f64;
        is_shown.then(|| Bitrate::from_bps((bits / span.as_secs_f64()) as u64))
    }

    /// The round trip of a frame without bytes, R.
    pub fn round_trip(&self) -> Duration {
        from_ms(self.round_trip)
    }

    /// Uncertainty grows as time passes, up to a relative error of 1.
    fn drift(&mut self, now: Timestamp) {
        let seconds = now.saturating_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        let [[rr, _], [_, bb]] = &mut self.covariance;
        let (most_rr, most_bb) = (self.round_trip.max(1.0).powi(2), self.slowness.powi(2));
        *rr = (*rr + ROUND_TRIP_DRIFT * seconds).min(most_rr.max(*rr));
        *bb = (*bb + SLOWNESS_DRIFT * seconds * most_bb).min(most_bb.max(*bb));
    }

    /// `h · P · h`.
    fn variance(&self, h: [f64; 2]) -> f64 {
        let [[rr, rb], [_, bb]] = self.covariance;
        h[0] * h[0] * rr + 2.0 * h[0] * h[1] * rb + h[1] * h[1] * bb
    }

    /// The filter's update with the observation `value = h · (R, b) + ε`, where ε has the variance
    /// `noise`.
    fn update(&mut self, h: [f64; 2], value: f64, noise: f64, measures_noise: bool) {
        let residual = value - (h[0] * self.round_trip + h[1] * self.slowness);
        let expected = self.variance(h) + noise;
        let score = residual / expected.sqrt();
        let slower = score > SLOWER && residual > BEYOND_WORST * self.worst_noise;
        let faster = score < FASTER;
        if faster && let Some(residual) = self.unconfirmed {
            self.worst_noise = self.worst_noise.max(residual);
        }
        self.unconfirmed = slower.then_some(residual);
        if (slower || faster) && h[1] > 0.0 {
            // Be as uncertain of the rate as explains all of it.
            self.covariance[1][1] += (residual / h[1]).powi(2);
        } else if measures_noise {
            self.worst_noise = (self.worst_noise * (1.0 - WORST_FADES)).max(residual);
            let fresh = (residual * residual - self.variance(h)).max(0.0);
            self.noise = (self.noise + NOISE_GAIN * (fresh - self.noise)).max(LEAST_NOISE);
        }
        let [[rr, rb], [_, bb]] = self.covariance;
        let s = self.variance(h) + noise;
        let gain = [(rr * h[0] + rb * h[1]) / s, (rb * h[0] + bb * h[1]) / s];
        self.round_trip = (self.round_trip + gain[0] * residual).max(0.0);
        let slowness = self.slowness + gain[1] * residual;
        // A rate never falls below zero, nor is it trusted to rise more than fourfold at once.
        let slowness = slowness.max(self.slowness / 4.0);
        self.slowness = slowness.clamp(*SLOWNESS.start(), *SLOWNESS.end());
        // Joseph's form keeps the covariance positive semi-definite (Bucy and Joseph 1968).
        let [a, b] = [1.0 - gain[0] * h[0], -gain[0] * h[1]];
        let [c, d] = [-gain[1] * h[0], 1.0 - gain[1] * h[1]];
        let new_rr = a * a * rr + 2.0 * a * b * rb + b * b * bb + gain[0] * gain[0] * noise;
        let new_rb = a * c * rr + (a * d + b * c) * rb + b * d * bb + gain[0] * gain[1] * noise;
        let new_bb = c * c * rr + 2.0 * c * d * rb + d * d * bb + gain[1] * gain[1] * noise;
        self.covariance = [[new_rr, new_rb], [new_rb, new_bb]];
    }
}

/// At most a day, at least zero.
fn from_ms(ms: f64) -> Duration {
    Duration::from_micros((ms.clamp(0.0, 86_400_000.0) * 1e3) as u64)
}

/// Size of a frame or probe on the path, headers included.
fn kilobytes(bytes: usize) -> f64 {
    (bytes + HEADERS * bytes.div_ceil(PACKET).max(1)) as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_micros(ms * 1_000)
    }

    fn took(bytes: usize, kbits: f64) -> Duration {
        from_ms(40.0 + bytes as f64 * 8.0 / kbits)
    }

    fn learn(transfer: &mut TransferTime, from: u64, count: u64, kbits: f64) {
        for step in 0..count {
            let bytes = 400 + 300 * (step as usize % 4);
            transfer.on_sample(at(from + step * 100), bytes, took(bytes, kbits));
        }
    }

    fn close(prediction: Prediction, expected: Duration, tolerance: f64) -> bool {
        (ms(prediction.mean) - ms(expected)).abs() <= tolerance * ms(expected)
    }

    fn fresh() -> TransferTime {
        TransferTime::new(Some(Duration::from_millis(40)))
    }

    #[test]
    fn sizes_beyond_those_seen_are_predicted_and_less_certain() {
        let mut transfer = fresh();
        learn(&mut transfer, 0, 60, 500.0);
        let (small, large) = (transfer.predict(at(6_000), 800), transfer.predict(at(6_000), 5_000));
        assert!(close(small, took(800, 500.0), 0.02) && close(large, took(5_000, 500.0), 0.05));
        assert!(large.deviation > 2 * small.deviation, "{small:?} {large:?}");
    }

    #[test]
    fn a_fall_to_a_tenth_is_believed_at_once() {
        let mut transfer = fresh();
        learn(&mut transfer, 0, 60, 2_000.0);
        transfer.on_sample(at(6_000), 1_000, took(1_000, 200.0));
        assert!(close(transfer.predict(at(6_100), 1_000), took(1_000, 200.0), 0.1));
    }

    #[test]
    fn a_timeout_is_believed_at_once_and_a_long_wait_for_nothing_too() {
        let mut transfer = fresh();
        learn(&mut transfer, 0, 60, 2_000.0);
        transfer.on_timeout(at(6_300), 1_000, Duration::from_millis(300));
        let after = transfer.predict(at(6_300), 1_000);
        assert!(after.mean > Duration::from_millis(300), "{after:?}");
        // A wait shorter than the prediction shows nothing.
        transfer.on_timeout(at(6_400), 1_000, Duration::from_millis(100));
        let same = transfer.predict(at(6_400), 1_000);
        assert_eq!(same.mean, after.mean);
    }

    #[test]
    fn a_rise_is_believed_within_two_seconds() {
        let mut transfer = fresh();
        learn(&mut transfer, 0, 60, 200.0);
        learn(&mut transfer, 6_000, 20, 2_000.0);
        assert!(close(transfer.predict(at(8_000), 2_400), took(2_400, 2_000.0), 0.15));
    }

    #[test]
    fn a_late_reply_now_and_then_is_no_change_of_the_rate() {
        let mut transfer = fresh();
        let mut wrong = 0;
        for step in 0..400u64 {
            let late = if step % 20 == 19 { 25.0 } else { (step * 7 % 5) as f64 };
            let took = took(800, 2_000.0) + from_ms(late);
            transfer.on_sample(at(step * 100), 800, took);
            let predicted = ms(transfer.predict(at(step * 100), 2_400).mean);
            wrong += u32::from(step >= 100 && predicted > 80.0);
        }
        assert_eq!(wrong, 0);
    }

    #[test]
    fn dispersion_shows_the_rate_without_the_round_trip() {
        let mut transfer = TransferTime::new(None);
        for step in 0..30 {
            // 10,000 bytes at 4 Mbit/s, 8,800 after the first packet.
            transfer.on_dispersion(at(step * 100), 10_000, Duration::from_micros(17_600));
            transfer.on_dispersion(at(step * 100), 3_000, Duration::from_micros(1));
        }
        let time = transfer.serialisation(10_000);
        assert!((ms(time) - 20.0).abs() < 1.0, "{time:?}");
    }

    #[test]
    fn certainty_fades_without_news() {
        let mut transfer = fresh();
        learn(&mut transfer, 0, 60, 1_000.0);
        let (soon, late) =
            (transfer.predict(at(6_000), 1_000), transfer.predict(at(60_000), 1_000));
        assert_eq!(soon.mean, late.mean);
        assert!(late.deviation > 2 * soon.deviation);
        let optimistic =
            [6_000, 60_000].map(|now| transfer.optimistic_serialisation(at(now), 1_000));
        let mean = transfer.serialisation(1_000);
        assert!(optimistic[0] > mean.mul_f64(0.8) && optimistic[1] < optimistic[0] / 4);
        let never = transfer.predict(at(1 << 40), 1_000);
        assert!(never.deviation <= 2 * late.mean, "up to ignorance: {never:?}");
    }

    proptest! {
        #[test]
        fn whatever_comes_predictions_stay_sane(
            steps in prop::collection::vec((0u64..2_000, 1usize..50_000, 0u64..20_000_000, 0u8..3), 1..200),
        ) {
            let mut transfer = fresh();
            let mut now = 0;
            for (gap, bytes, micros, kind) in steps {
                now += gap;
                let took = Duration::from_micros(micros);
                match kind {
                    0 => transfer.on_sample(at(now), bytes, took),
                    1 => transfer.on_timeout(at(now), bytes, took),
                    _ => transfer.on_dispersion(at(now), bytes, took),
                }
                let [[rr, rb], [_, bb]] = transfer.covariance;
                prop_assert!(rr >= 0.0 && bb >= 0.0 && rb * rb <= rr * bb * (1.0 + 1e-6) + 1e-9);
                prop_assert!(transfer.slowness.is_finite() && transfer.noise.is_finite());
                let (small, large) = (transfer.predict(at(now), 100), transfer.predict(at(now), 9_000));
                prop_assert!(small.mean <= large.mean);
            }
        }
    }
}
