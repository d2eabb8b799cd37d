//! What happens to a packet on its way: delay, loss, duplication, corruption.

use std::time::Duration;

use isthmus_proto::Timestamp;

use crate::chance::Chance;
use crate::statistics::normal_cdf;

/// The time from leaving the queue to arriving.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delay {
    /// The least, or with [`Jitter::Uniform`] and [`Jitter::Normal`] the middle.
    pub base: Duration,
    /// How it varies; the delay itself is never negative.
    pub jitter: Jitter,
    /// Correlation of a packet's jitter with that of the packet before, −1 to 1, of the normal
    /// variables behind it.
    pub correlation: f64,
    /// Whether a packet may overtake another; if not, it arrives no earlier than the one before.
    pub reordering: bool,
}

/// How a delay varies.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Jitter {
    /// Not at all.
    #[default]
    None,
    /// Evenly, up to so much less or more.
    Uniform(Duration),
    /// Normally, with this standard deviation.
    Normal(Duration),
    /// Exponentially on top of the base, with this mean.
    Exponential(Duration),
}

impl Delay {
    /// Always the same delay.
    pub const fn constant(base: Duration) -> Self {
        Delay { base, jitter: Jitter::None, correlation: 0.0, reordering: false }
    }
}

/// How packets get lost after they were sent: a lost packet has used its time on the link.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Loss {
    /// None does.
    #[default]
    None,
    /// Each with the same probability.
    Uniform(f64),
    /// In bursts: a chain of two states that moves before each packet (Gilbert 1960, Elliott 1963).
    GilbertElliott {
        /// Probability of moving from the good state to the bad one.
        to_bad: f64,
        /// Probability of moving back; the mean burst is its inverse, in packets.
        to_good: f64,
        /// Probability of loss in the good state.
        good_loss: f64,
        /// Probability of loss in the bad state.
        bad_loss: f64,
    },
}

/// The state of a link's way.
#[derive(Clone, Debug)]
pub(super) struct Channel {
    delay: Delay,
    loss: Loss,
    duplication: f64,
    corruption: f64,
    bad: bool,
    /// One source each, so that switching one effect on does not shift another.
    losses: Chance,
    delays: Chance,
    duplicates: Chance,
    corruptions: Chance,
}

/// What happens to one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ChannelOutcome {
    pub(super) arrival: Timestamp,
    pub(super) lost: bool,
    pub(super) duplicated: bool,
    pub(super) corrupted: bool,
}

impl Channel {
    pub(super) fn new(
        delay: Delay,
        loss: Loss,
        duplication: f64,
        corruption: f64,
        seed: u64,
    ) -> Self {
        let [losses, delays, duplicates, corruptions] =
            [1, 2, 3, 4].map(|purpose| Chance::new(seed, purpose));
        let bad = false;
        Channel {
            delay,
            loss,
            duplication,
            corruption,
            bad,
            losses,
            delays,
            duplicates,
            corruptions,
        }
    }

    /// Becomes another way; chance goes on where it is.
    pub(super) fn reconfigure(
        &mut self,
        delay: Delay,
        loss: Loss,
        duplication: f64,
        corruption: f64,
    ) {
        (self.delay, self.loss) = (delay, loss);
        (self.duplication, self.corruption) = (duplication, corruption);
    }

    /// The passage of the packet that leaves at `departure`.
    pub(super) fn pass(&mut self, departure: Timestamp) -> ChannelOutcome {
        ChannelOutcome {
            arrival: departure + self.draw_delay(),
            lost: self.draw_loss(),
            duplicated: self.duplicates.happens(self.duplication),
            corrupted: self.corruptions.happens(self.corruption),
        }
    }

    fn draw_delay(&mut self) -> Duration {
        let Delay { base, jitter, correlation, .. } = self.delay;
        if jitter == Jitter::None {
            return base;
        }
        // Whatever the distribution, a correlated normal drives it (a Gaussian copula), so that
        // the correlation does not change the distribution.
        let z = self.delays.correlated_normal(correlation);
        let seconds = |time: Duration| time.as_secs_f64();
        let delay = seconds(base)
            + match jitter {
                Jitter::None => 0.0,
                Jitter::Uniform(most) => seconds(most) * (2.0 * normal_cdf(z) - 1.0),
                Jitter::Normal(deviation) => seconds(deviation) * z,
                Jitter::Exponential(mean) => {
                    seconds(mean) * -(1.0 - normal_cdf(z)).max(f64::MIN_POSITIVE).ln()
                }
            };
        Duration::from_micros((delay.max(0.0) * 1e6).round() as u64)
    }

    fn draw_loss(&mut self) -> bool {
        match self.loss {
            Loss::None => false,
            Loss::Uniform(probability) => self.losses.happens(probability),
            Loss::GilbertElliott { to_bad, to_good, good_loss, bad_loss } => {
                let leaves = if self.bad { to_good } else { to_bad };
                self.bad ^= self.losses.happens(leaves);
                self.losses.happens(if self.bad { bad_loss } else { good_loss })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passages(delay: Delay, loss: Loss, seed: u64) -> Vec<ChannelOutcome> {
        let mut channel = Channel::new(delay, loss, 0.0, 0.0, seed);
        (0..50_000).map(|_| channel.pass(Timestamp::ZERO)).collect()
    }

    fn delays(jitter: Jitter, correlation: f64) -> Vec<f64> {
        let base = Duration::from_millis(50);
        let delay = Delay { base, jitter, correlation, reordering: true };
        let passages = passages(delay, Loss::None, 1);
        passages.iter().map(|passage| passage.arrival.as_micros() as f64 / 1e3).collect()
    }

    fn mean_and_deviation(values: &[f64]) -> (f64, f64) {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let square = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
        (mean, (square / values.len() as f64).sqrt())
    }

    #[test]
    fn jitter_has_its_distribution_whatever_its_correlation() {
        let ms = Duration::from_millis(10);
        for correlation in [0.0, 0.8] {
            for (jitter, mean, deviation) in [
                (Jitter::Uniform(ms), 50.0, 10.0 / 3f64.sqrt()),
                (Jitter::Normal(ms), 50.0, 10.0),
                (Jitter::Exponential(ms), 60.0, 10.0),
            ] {
                let delays = delays(jitter, correlation);
                let (m, d) = mean_and_deviation(&delays);
                assert!((m - mean).abs() < 0.6, "{jitter:?} {correlation}: mean {m}");
                assert!((d - deviation).abs() < 0.6, "{jitter:?} {correlation}: deviation {d}");
                let lag: f64 = delays.windows(2).map(|two| (two[0] - m) * (two[1] - m)).sum();
                let lag = lag / delays.len() as f64 / (d * d);
                assert!((lag - correlation).abs() < 0.1, "{jitter:?} {correlation}: lag {lag}");
            }
        }
    }

    #[test]
    fn a_delay_is_never_negative() {
        let base = Duration::from_millis(1);
        let jitter = Jitter::Normal(Duration::from_millis(100));
        let delay = Delay { base, jitter, correlation: 0.0, reordering: true };
        let departure = Timestamp::from_micros(500_000);
        let mut channel = Channel::new(delay, Loss::None, 0.0, 0.0, 1);
        assert!((0..1_000).all(|_| channel.pass(departure).arrival >= departure));
    }

    #[test]
    fn gilbert_and_elliott_s_losses_come_in_bursts() {
        let loss =
            Loss::GilbertElliott { to_bad: 0.01, to_good: 0.2, good_loss: 0.0, bad_loss: 1.0 };
        let lost: Vec<bool> =
            passages(Delay::constant(Duration::ZERO), loss, 7).iter().map(|p| p.lost).collect();
        let count = lost.iter().filter(|&&lost| lost).count();
        let bursts = lost.windows(2).filter(|two| !two[0] && two[1]).count();
        let (share, burst) = (count as f64 / lost.len() as f64, count as f64 / bursts as f64);
        // The chain's stationary share of bad states is 0.01 / 0.21; the mean burst is 1 / 0.2.
        assert!((share - 0.0476).abs() < 0.006, "{share}");
        assert!((burst - 5.0).abs() < 0.4, "{burst}");
        let even = passages(Delay::constant(Duration::ZERO), Loss::Uniform(0.05), 7);
        let count = even.iter().filter(|passage| passage.lost).count();
        assert!((2_300..2_700).contains(&count), "{count}");
    }
}
