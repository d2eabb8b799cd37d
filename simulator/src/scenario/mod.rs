//! A scenario says what to simulate: devices, a link, a server and the controllers to compare.
//!
//! [`Scenario`] is a scenario's file, [`Prepared`] the same once everything it names was found and
//! checked; that simulates runs, and a [`Line`] is what a controller came to.

mod check;
mod controllers;
mod file;
mod line;
mod prepared;
mod source;
#[cfg(test)]
pub(crate) mod tests;

use std::path::PathBuf;

use isthmus_models::{BundleError, OutcomesError};

use crate::bundles::UnknownBundle;
use crate::profile::ProfileError;
use crate::world::{DeviceError, RecordError};

pub use controllers::{NamedController, ORACLE, Role};
pub use file::{BUILT_IN, ControllerTable, Scenario, ServerSpec, SlowdownSpec};
pub(crate) use line::COLUMNS;
pub use line::{Line, csv, table};
pub use prepared::{Prepared, UnknownController};

/// Why a scenario cannot be run. Every message names the file or the key.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// Neither a file nor a built-in scenario.
    #[error(
        "unknown scenario {name}; expected the path of a TOML file or one of {}",
        file::names()
    )]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// A file cannot be read.
    #[error("{}: {cause}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// No TOML, or a key that is missing, unknown or of the wrong type.
    #[error("{}: {cause}", file.display())]
    Syntax {
        /// The file.
        file: PathBuf,
        /// Where and what.
        cause: Box<toml::de::Error>,
    },
    /// A value out of its range.
    #[error("{}: {key}: {problem}", file.display())]
    Value {
        /// The file.
        file: PathBuf,
        /// The key.
        key: String,
        /// What was found and what is expected.
        problem: String,
    },
    /// The link.
    #[error("link: {0}")]
    Link(ProfileError),
    /// The device.
    #[error("device: {0}")]
    Device(DeviceError),
    /// The bundle's name.
    #[error("bundle: {0}")]
    Name(#[from] UnknownBundle),
    /// The bundle.
    #[error("bundle: {0}")]
    Bundle(Box<BundleError>),
    /// The record of outcomes.
    #[error("{}: {cause}", file.display())]
    Outcomes {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        cause: OutcomesError,
    },
    /// The record does not suit.
    #[error("{}: {cause}", file.display())]
    Record {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        cause: RecordError,
    },
}
