//! Objectives by name, and the options that each of them takes.

use serde::{Deserialize, Serialize};

use crate::controller::{EnergyModel, Objective};

/// An objective by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ObjectiveKind {
    /// The most frames right and in time.
    #[default]
    #[serde(alias = "accuracy")]
    #[value(alias = "accuracy")]
    Quality,
    /// The fewest bytes at a floor of quality.
    Bytes,
    /// The least energy at a floor of quality, as declared.
    Energy,
}

/// Why options do not make an objective.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ObjectiveError {
    /// An option that the objective needs is missing.
    #[error("objective {0} needs {1}")]
    Missing(&'static str, &'static str),
    /// An option that the objective does not take.
    #[error("{0} cannot be combined with objective {1}")]
    Useless(&'static str, &'static str),
    /// A number outside its range.
    #[error("{name} must be {range}, not {value}")]
    Range {
        /// The option.
        name: &'static str,
        /// What it may be.
        range: &'static str,
        /// What it is.
        value: f64,
    },
}

impl ObjectiveKind {
    /// Its name as users write it.
    pub fn name(self) -> &'static str {
        match self {
            ObjectiveKind::Quality => "quality",
            ObjectiveKind::Bytes => "bytes",
            ObjectiveKind::Energy => "energy",
        }
    }

    /// The objective with its options: a floor of quality (0 to 1), and for energy what the device
    /// consumes while it computes (W) and to send (J/MB).
    pub fn with(
        self,
        floor: Option<f64>,
        watts: Option<f64>,
        joules_per_megabyte: Option<f64>,
    ) -> Result<Objective, ObjectiveError> {
        let given = |option: &'static str, value: Option<f64>, most: f64, range| {
            let value = value.ok_or(ObjectiveError::Missing(self.name(), option))?;
            let ok = (0.0..=most).contains(&value);
            ok.then_some(value).ok_or(ObjectiveError::Range { name: option, range, value })
        };
        let useless = |option: &'static str, value: Option<f64>| match value {
            Some(_) => Err(ObjectiveError::Useless(option, self.name())),
            None => Ok(()),
        };
        if self == ObjectiveKind::Quality {
            useless("quality_floor", floor)?;
        }
        if self != ObjectiveKind::Energy {
            useless("watts", watts)?;
            useless("joules_per_megabyte", joules_per_megabyte)?;
        }
        let floor = || given("quality_floor", floor, 1.0, "from 0 to 1");
        Ok(match self {
            ObjectiveKind::Quality => Objective::Quality,
            ObjectiveKind::Bytes => Objective::Bytes { floor: floor()? },
            ObjectiveKind::Energy => {
                let floor = floor()?;
                let watts = given("watts", watts, 1e3, "from 0 to 1000 W")?;
                let range = "from 0 to 1000000 J";
                let joules = given("joules_per_megabyte", joules_per_megabyte, 1e6, range)?;
                let model = EnergyModel { watts, joules_per_megabyte: joules };
                Objective::Energy { floor, model }
            }
        })
    }
}
