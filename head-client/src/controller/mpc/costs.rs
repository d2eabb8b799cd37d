//! What each rung costs and gains: predicted times, the probability to be late, expected quality.

/// The probability that the margin κ is exceeded.
const BEYOND_MARGIN: f64 = 0.01;

/// So many deviations, or margins, away an outcome is certain.
pub(super) const CERTAIN: f64 = 4.0;

/// Cost of a late frame beside its answer, as a fraction of a right one. It is small, because misses
/// are held to their target by the margin, which widens with them.
pub(super) const MISS_PENALTY: f64 = 0.3;

/// The conditions that all rungs share at the time of a decision.
#[derive(Clone, Copy, Debug)]
pub(super) struct Conditions {
    /// Δ: time between frames (ms).
    pub(super) interval: f64,
    /// D: the time that a fresh frame has (ms).
    pub(super) deadline: f64,
    /// u: from 0, where every reply comes as predicted, to 1, where the path is unsteady.
    pub(super) unsteadiness: f64,
    /// q: the standing queue on the path, as a fraction of the deadline.
    pub(super) queue: f64,
    pub(super) lateness: Lateness,
}

/// The probability that a frame is late.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lateness {
    /// κ ([`Conformal`](crate::Conformal)).
    margin: f64,
}

impl Lateness {
    pub(super) fn new(margin: f64) -> Self {
        Lateness { margin }
    }

    /// The probability that a transfer of standard deviation σ exceeds its prediction by more than
    /// `slack` (ms):
    ///
    /// `P(slack, σ) = 0.01 ^ (max(slack, 0) / (κ · σ))`.
    ///
    /// It is 0.01 at the margin, whatever the target, which the margin follows by itself; the tail on
    /// both sides of it is taken to be exponential.
    pub(super) fn of_transfer(self, slack: f64, deviation: f64) -> f64 {
        let margins = slack.max(0.0) / (self.margin * deviation);
        BEYOND_MARGIN.powf(margins)
    }

    /// The same behind a run whose duration has the standard deviation s, `device_deviation`: the mean
    /// of `P(slack − ξ, σ)` over a normal ξ, by Gauss–Hermite quadrature with three nodes,
    ///
    /// `4/6 · P(slack, σ) + 1/6 · P(slack − √3 · s, σ) + 1/6 · P(slack + √3 · s, σ)`.
    ///
    /// The two deviations are not added up, because the margin is learnt from the network and says
    /// nothing about the device.
    pub(super) fn of_run(self, slack: f64, deviation: f64, device_deviation: f64) -> f64 {
        let off = 3f64.sqrt() * device_deviation;
        if slack - off > CERTAIN * self.margin * deviation {
            return 0.0;
        }
        if slack + off <= 0.0 {
            return 1.0;
        }
        let late = |slack| self.of_transfer(slack, deviation);
        (4.0 * late(slack) + late(slack - off) + late(slack + off)) / 6.0
    }
}

/// What a rung costs, in ms, and gains, in quality.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RungCost {
    /// Its position in the ladder.
    pub(super) rung: usize,
    pub(super) bytes: f64,
    /// Network and server: mean and standard deviation.
    pub(super) mean: f64,
    pub(super) deviation: f64,
    /// How long it occupies the path: as estimated, and optimistically, which is what is charged.
    pub(super) serialisation: f64,
    pub(super) charged: f64,
    /// Device: mean and standard deviation.
    pub(super) device: f64,
    pub(super) device_deviation: f64,
    /// Whether the device's time was measured; else it is a guess.
    pub(super) is_measured: bool,
    /// Probability that a frame is late which has the whole deadline.
    pub(super) usually_late: f64,
    /// Mean quality if frames are sent where that pays, the fraction of frames that then are sent, and
    /// the exit's mean quality.
    pub(super) quality: f64,
    pub(super) sent: f64,
    pub(super) exit: f64,
}

impl RungCost {
    /// The expected gain in quality over the exit, if a frame is late with the probability p:
    /// `(1 − p) · (a − e) − p · sent · 0.3`.
    pub(super) fn gain(&self, late: f64) -> f64 {
        (1.0 - late) * (self.quality - self.exit) - late * self.sent * MISS_PENALTY
    }

    /// The gain for a frame that has the whole deadline, at least 0.
    pub(super) fn usual_gain(&self) -> f64 {
        self.gain(self.usually_late).max(0.0)
    }
}
