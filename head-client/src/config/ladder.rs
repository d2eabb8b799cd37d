//! A bundle's ladder, from the bundle's file of outcomes.

use isthmus_models::{Bundle, BundleError, OUTCOMES, Outcomes, OutcomesError};

use crate::controller::{Arms, Filter, FilterError, Ladder, OutcomesLadderError};

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
    /// Its outcomes do not make a filter.
    #[error("--filter-recall: {0}")]
    Filter(#[from] FilterError),
}

impl Ladder {
    /// Reads a bundle's outcomes, if it has any, and makes its [ladder](Ladder::of_outcomes) of them.
    pub fn of_bundle(bundle: &Bundle, arms: Arms) -> Result<Ladder, BundleLadderError> {
        Ok(Ladder::of_outcomes(bundle, outcomes(bundle)?.as_ref(), arms)?)
    }
}

impl Filter {
    /// Reads a bundle's outcomes, and makes its [filter](Filter::of_outcomes) of them.
    pub fn of_bundle(bundle: &Bundle, recall: f64) -> Result<Filter, BundleLadderError> {
        Ok(Filter::of_outcomes(bundle, outcomes(bundle)?.as_ref(), recall)?)
    }
}

/// A bundle's outcomes, if it has any.
fn outcomes(bundle: &Bundle) -> Result<Option<Outcomes>, BundleLadderError> {
    match bundle.read(OUTCOMES) {
        Ok(packed) => Ok(Some(Outcomes::unpack(&packed)?)),
        Err(BundleError::Unlisted { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
