//! A bundle's ladder, from the bundle's file of outcomes.

use isthmus_models::{Bundle, BundleError, OUTCOMES, Outcomes, OutcomesError};

use crate::controller::{Arms, Ladder, OutcomesLadderError};

/// Why a bundle gives no ladder.
#[derive(Debug, thiserror::Error)]
pub enum BundleLadderError {
    /// Its file of outcomes cannot be read.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// Its file of outcomes is malformed.
    #[error("{OUTCOMES}: {0}")]
    Outcomes(#[from] OutcomesError),
    /// Its outcomes do not make a ladder.
    #[error(transparent)]
    Ladder(#[from] OutcomesLadderError),
}

impl Ladder {
    /// Reads a bundle's outcomes, if it has any, and makes its [ladder](Ladder::of_outcomes) of them.
    pub fn of_bundle(bundle: &Bundle, arms: Arms) -> Result<Ladder, BundleLadderError> {
        let outcomes = match bundle.read(OUTCOMES) {
            Ok(packed) => Some(Outcomes::unpack(&packed)?),
            Err(BundleError::Unlisted { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Ladder::of_outcomes(bundle, outcomes.as_ref(), arms)?)
    }
}
