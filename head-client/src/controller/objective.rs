//! The objective of a controller, and the price of bytes or energy where they are to be saved.

/// What an [`Mpc`](super::Mpc) optimises.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Objective {
    /// The most frames right and in time.
    #[default]
    Quality,
    /// The fewest bytes at which `floor` is kept.
    Bytes {
        /// Fraction of the frames decided on that is expected right and in time, 0 to 1. Where it
        /// cannot be reached, bytes cost next to nothing and quality is all that counts.
        floor: f64,
    },
    /// The least energy at which `floor` is kept.
    Energy {
        /// As for bytes.
        floor: f64,
        /// What the device consumes, as its user declares it.
        model: EnergyModel,
    },
}

/// What a device consumes beyond its idle consumption. Nothing is measured: the model is as good as
/// the user's declaration.
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
            Objective::Quality => None,
            Objective::Bytes { floor } | Objective::Energy { floor, .. } => Some(floor),
        }
    }
}

/// The weight of the cost to be saved (bytes or energy) against quality, which is the Lagrange
/// multiplier of the quality floor.
///
/// To minimise the mean cost C under a mean quality of at least A* is to maximise `A − μ · C` for some
/// price μ (Everett 1963). The price is found online by dual ascent, multiplicatively, so that it
/// stays positive: after every frame with expected quality a,
///
/// `μ ← clamp(μ · exp(η · (a − A*)), 10⁻³, 10²)`.
///
/// It rises while frames are more accurate than the floor demands, and falls while they are less.
#[derive(Clone, Copy, Debug)]
pub(super) struct CostWeight {
    objective: Objective,
    /// μ: quality per kilobyte, or per joule.
    price: f64,
}

/// Least and greatest price, and the first: at the least almost nothing is saved, at the greatest only
/// what costs nothing is left.
const LEAST_PRICE: f64 = 1e-3;
const GREATEST_PRICE: f64 = 1e2;
const FIRST_PRICE: f64 = 1e-2;

/// η: how fast the price's logarithm follows the quality in excess of the floor, per frame.
const STEP: f64 = 0.3;

impl CostWeight {
    pub(super) fn new(objective: Objective) -> Self {
        CostWeight { objective, price: FIRST_PRICE }
    }

    /// The price of a millisecond of the device's computing, and of a byte (quality).
    pub(super) fn prices(&self) -> (f64, f64) {
        match self.objective {
            Objective::Quality => (0.0, 0.0),
            Objective::Bytes { .. } => (0.0, self.price / 1e3),
            Objective::Energy { model, .. } => {
                (self.price * model.watts / 1e3, self.price * model.joules_per_megabyte / 1e6)
            }
        }
    }

    /// Learns that a frame is expected to be right and in time with this probability.
    pub(super) fn on_frame(&mut self, expected: f64) {
        if let Some(floor) = self.objective.floor() {
            let price = self.price * (STEP * (expected - floor)).exp();
            self.price = price.clamp(LEAST_PRICE, GREATEST_PRICE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_price_settles_where_the_floor_is_kept() {
        let mut weight = CostWeight::new(Objective::Bytes { floor: 0.8 });
        // Of a hundred choices the next byte always gains less than the one before.
        let best = |byte: f64| {
            let choices = (0..100).map(|at| 10.0 * f64::from(at));
            let worth = |bytes: f64| 0.9 * (1.0 - (-bytes / 150.0).exp());
            let of = choices.map(|bytes| (worth(bytes) - byte * bytes, worth(bytes)));
            of.max_by(|a, b| a.0.total_cmp(&b.0)).map_or(0.0, |best| best.1)
        };
        let mut mean = 0.0;
        for frame in 0..2_000 {
            let quality = best(weight.prices().1);
            weight.on_frame(quality);
            mean += if frame >= 1_000 { quality / 1_000.0 } else { 0.0 };
        }
        assert!((mean - 0.8).abs() < 0.005, "{mean}");
    }

    #[test]
    fn energy_counts_the_device_and_the_radio_and_quality_neither() {
        let model = EnergyModel { watts: 4.0, joules_per_megabyte: 8.0 };
        let (device, byte) = CostWeight::new(Objective::Energy { floor: 0.5, model }).prices();
        assert!((device / byte - 4e-3 / 8e-6).abs() < 1e-6);
        let mut weight = CostWeight::new(Objective::Quality);
        weight.on_frame(1.0);
        assert_eq!(weight.prices(), (0.0, 0.0));
    }
}
