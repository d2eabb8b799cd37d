//! What to strive for, and what accuracy is worth in other goods.

/// What an [`super::Mpc`] strives for.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Objective {
    /// As many frames right and in time as can be.
    #[default]
    Accuracy,
    /// As few bytes as can be while `floor` is kept.
    Bytes {
        /// Share of the frames decided on that is expected right and in time, 0 to 1. Where it is out
        /// of reach, all is done for accuracy.
        floor: f64,
    },
    /// As little energy as can be while `floor` is kept.
    Energy {
        /// As for bytes.
        floor: f64,
        /// What the device is declared to need.
        model: EnergyModel,
    },
}

/// What a device needs beyond what it needs when idle. Nothing is measured: it is as good as what its
/// user declares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EnergyModel {
    /// While a network or an encoder runs (W), not negative.
    pub watts: f64,
    /// To send so much (J/MB), not negative.
    pub joules_per_megabyte: f64,
}

impl Objective {
    fn floor(&self) -> Option<f64> {
        match *self {
            Objective::Accuracy => None,
            Objective::Bytes { floor } | Objective::Energy { floor, .. } => Some(floor),
        }
    }
}

/// The exchange rate between accuracy and what is to be spared.
///
/// The least cost at a mean accuracy of at least the floor is the greatest accuracy less the cost at
/// some price (a Lagrangian relaxation). The price is found on the way: it rises while frames are
/// expected to be more accurate than need be, and falls while they are less.
#[derive(Clone, Copy, Debug)]
pub(super) struct Thrift {
    objective: Objective,
    /// Accuracy per kilobyte, or per joule.
    rate: f64,
}

/// The range of the rate, and where it begins: from where nothing is spared to where only what costs
/// nothing is left.
const LEAST: f64 = 1e-3;
const MOST: f64 = 1e2;
const FIRST: f64 = 1e-2;

/// How fast the rate's logarithm follows what accuracy exceeds the floor by, a frame.
const GAIN: f64 = 0.3;

impl Thrift {
    pub(super) fn new(objective: Objective) -> Self {
        Thrift { objective, rate: FIRST }
    }

    /// What a millisecond of the device costs, and a byte (accuracy).
    pub(super) fn prices(&self) -> (f64, f64) {
        match self.objective {
            Objective::Accuracy => (0.0, 0.0),
            Objective::Bytes { .. } => (0.0, self.rate / 1e3),
            Objective::Energy { model, .. } => {
                (self.rate * model.watts / 1e3, self.rate * model.joules_per_megabyte / 1e6)
            }
        }
    }

    /// Learns that a frame is expected to be right and in time with this probability.
    pub(super) fn on_frame(&mut self, expected: f64) {
        if let Some(floor) = self.objective.floor() {
            self.rate = (self.rate * (GAIN * (expected - floor)).exp()).clamp(LEAST, MOST);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_price_settles_where_the_floor_is_kept() {
        let mut thrift = Thrift::new(Objective::Bytes { floor: 0.8 });
        // Of a hundred ways to answer the next byte always gains less than the one before.
        let best = |byte: f64| {
            let ways = (0..100).map(|at| 10.0 * f64::from(at));
            let worth = |bytes: f64| 0.9 * (1.0 - (-bytes / 150.0).exp());
            let of = ways.map(|bytes| (worth(bytes) - byte * bytes, worth(bytes)));
            of.max_by(|a, b| a.0.total_cmp(&b.0)).map_or(0.0, |best| best.1)
        };
        let mut mean = 0.0;
        for frame in 0..2_000 {
            let accuracy = best(thrift.prices().1);
            thrift.on_frame(accuracy);
            mean += if frame >= 1_000 { accuracy / 1_000.0 } else { 0.0 };
        }
        assert!((mean - 0.8).abs() < 0.005, "{mean}");
    }

    #[test]
    fn energy_counts_the_device_and_the_radio_and_accuracy_neither() {
        let model = EnergyModel { watts: 4.0, joules_per_megabyte: 8.0 };
        let (device, byte) = Thrift::new(Objective::Energy { floor: 0.5, model }).prices();
        assert!((device / byte - 4e-3 / 8e-6).abs() < 1e-6);
        let mut thrift = Thrift::new(Objective::Accuracy);
        thrift.on_frame(1.0);
        assert_eq!(thrift.prices(), (0.0, 0.0));
    }
}
