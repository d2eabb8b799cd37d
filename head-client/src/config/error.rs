//! Why options are not a configuration.

use std::path::PathBuf;

use isthmus_proto::ImageFormat;

use super::ladder::BundleLadderError;
use super::objective::ObjectiveError;
use crate::tls::FingerprintError;

/// Why options are not a configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be read.
    #[error("{path}: {source}", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The configuration file is malformed or has unknown keys.
    #[error("{path}: {source}", path = .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line.
        source: Box<toml::de::Error>,
    },
    /// A required option is missing.
    #[error("{0} is needed")]
    Missing(&'static str),
    /// Pictures in a format that this program cannot write.
    #[error("image_format: this program was built without {}", .0.name())]
    ImageFormat(ImageFormat),
    /// There is no way to check the server's identity.
    #[error(
        "the server's identity has to be checked: give --server-fingerprint HEX (the server prints \
         it when it starts) or --ca FILE (the authorities that vouch for it)"
    )]
    NoTrust,
    /// Two ways to check the server's identity, in one file.
    #[error("server_fingerprint and ca exclude each other")]
    TwoTrusts,
    /// A text that is not a fingerprint.
    #[error("--server-fingerprint: {0}")]
    Fingerprint(#[from] FingerprintError),
    /// A class that the bundle does not have.
    #[error("--filter-classes: unknown class {class:?}; expected {labels}")]
    FilterClass {
        /// The class.
        class: String,
        /// What there is, joined by commas.
        labels: String,
    },
    /// What is not of the form `CATEGORY=LABEL`.
    #[error("--relabel: expected CATEGORY=LABEL, found {0:?}")]
    Relabel(String),
    /// Truth for frames that come and go.
    #[error("--truth needs --input FILE or DIR: it is of pictures by their names")]
    TruthOfStream,
    /// Several arms, or none, for a controller that does not choose.
    #[error("--controller fixed takes exactly one --arm, not {0:?}")]
    OneArm(String),
    /// Arms without the one whose exits are the fallback.
    #[error(
        "--arm {0} must include split unless --controller is fixed: a head's exit is the fallback of \
         the other arms"
    )]
    NoSplit(String),
    /// A collector for a program that cannot reach one.
    #[error("--otlp-endpoint needs a program that is built with the cargo feature `otel`")]
    WithoutOtel,
    /// Options that do not make an objective.
    #[error(transparent)]
    Objective(#[from] ObjectiveError),
    /// An objective for a controller that has none.
    #[error(
        "--objective {objective} needs --controller mpc: {controller} always optimises quality"
    )]
    ObjectiveOfAnother {
        /// The objective.
        objective: &'static str,
        /// The controller.
        controller: &'static str,
    },
    /// No ladder for a controller that needs one.
    #[error("--controller {controller}: {source}")]
    Ladder {
        /// The controller.
        controller: &'static str,
        /// Why.
        source: BundleLadderError,
    },
    /// A number out of its range.
    #[error("{name} must be {range}, not {value}")]
    Range {
        /// The option.
        name: &'static str,
        /// What it may be.
        range: String,
        /// What it is.
        value: String,
    },
}

/// `value`, if it is in the range.
pub(super) fn within(
    name: &'static str,
    value: u64,
    low: u64,
    high: u64,
) -> Result<u64, ConfigError> {
    match (low..=high).contains(&value) {
        true => Ok(value),
        false => {
            let range = format!("{low} to {high}");
            Err(ConfigError::Range { name, range, value: value.to_string() })
        }
    }
}
