//! Paths by name, and as TOML files.
//!
//! A [`PathSpec`] is a file as it is written; checked, with its traces read and everything random drawn
//! from a seed, it becomes a [`PathConfig`].

mod build;
mod spec;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use isthmus_proto::Timestamp;

use crate::LinkConfig;
use crate::trace::TraceError;

pub use spec::{
    DisciplineSpec, JitterSpec, LinkSpec, LossSpec, OutageSpec, PathSpec, QueueSpec, RateSpec,
    RebindingSpec, StateSpec,
};

/// The built-in links, by name.
pub const BUILT_IN: [(&str, &str); 9] = [
    ("wifi", include_str!("../../../../configs/links/wifi.toml")),
    ("wifi-weak", include_str!("../../../../configs/links/wifi-weak.toml")),
    ("lte-driving", include_str!("../../../../configs/links/lte-driving.toml")),
    ("umts-driving", include_str!("../../../../configs/links/umts-driving.toml")),
    ("nr-walking", include_str!("../../../../configs/links/nr-walking.toml")),
    ("bluetooth", include_str!("../../../../configs/links/bluetooth.toml")),
    ("satellite", include_str!("../../../../configs/links/satellite.toml")),
    ("nb-iot", include_str!("../../../../configs/links/nb-iot.toml")),
    ("lora", include_str!("../../../../configs/links/lora.toml")),
];

/// Why a link cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Neither a built-in link nor a file.
    #[error("unknown link {name}; expected one of {}, or the path of a TOML file", names())]
    Unknown {
        /// What was asked for.
        name: String,
    },
    /// The file cannot be read.
    #[error("{}: {cause}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// No TOML, or a key that is missing, unknown or of the wrong type.
    #[error("{file}: {cause}")]
    Syntax {
        /// The file or name.
        file: String,
        /// Where and what.
        cause: Box<toml::de::Error>,
    },
    /// A value out of its range.
    #[error("{key}: {problem}")]
    Value {
        /// Path of the key.
        key: String,
        /// What was found and what is expected.
        problem: String,
    },
    /// The rate's trace is unusable.
    #[error(transparent)]
    Trace(#[from] TraceError),
}

/// A path ready to be simulated.
#[derive(Clone, Debug, PartialEq)]
pub struct PathConfig {
    /// From the device to the server.
    pub uplink: LinkConfig,
    /// From the server to the device.
    pub downlink: LinkConfig,
    /// When the device's address changes, as the server sees it.
    pub rebindings: Rebindings,
}

/// When a device's address changes, as the server sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rebindings {
    /// At these times, in order.
    at: Vec<Timestamp>,
    /// And so often; more than zero.
    every: Option<Duration>,
}

impl Rebindings {
    /// The first one after `now`.
    pub fn after(&self, now: Timestamp) -> Option<Timestamp> {
        let named = self.at.get(self.at.partition_point(|&at| at <= now)).copied();
        let regular = self.every.map(|every| {
            let every = every.as_micros() as u64;
            Timestamp::from_micros((now.as_micros() / every + 1).saturating_mul(every))
        });
        named.into_iter().chain(regular).min()
    }
}

impl PathSpec {
    /// The built-in link of this name, or that of the TOML file at this path.
    pub fn find(name: &str) -> Result<(PathSpec, PathBuf), ProfileError> {
        if let Some((_, text)) = BUILT_IN.iter().find(|(built_in, _)| *built_in == name) {
            return Ok((Self::parse(text, name)?, PathBuf::new()));
        }
        let file = Path::new(name);
        if !name.ends_with(".toml") && !file.exists() {
            return Err(ProfileError::Unknown { name: name.to_owned() });
        }
        let text = fs::read_to_string(file)
            .map_err(|cause| ProfileError::Io { file: file.to_owned(), cause })?;
        let folder = file.parent().unwrap_or(Path::new("")).to_owned();
        Ok((Self::parse(&text, name)?, folder))
    }

    fn parse(text: &str, file: &str) -> Result<PathSpec, ProfileError> {
        toml::from_str(text).map_err(|cause| {
            let cause = Box::new(cause);
            ProfileError::Syntax { file: file.to_owned(), cause }
        })
    }
}

fn names() -> String {
    BUILT_IN.map(|(name, _)| name).join(", ")
}
