//! What a user may choose: options from a file, the environment and the command line, and what they
//! mean once they are checked.
//!
//! [`Options`] are what was given. They make a [`ClientConfig`] and a
//! [controller](Options::to_controller).

mod client;
mod controllers;
mod duration;
mod error;
mod ladder;
mod list;
mod objective;
mod options;
mod server_url;

pub use self::client::{
    ClientConfig, MEASURED_CONFIDENCE, SourceConfigError, TraceConfig, renamed,
};
pub use self::error::ConfigError;
pub use self::ladder::BundleLadderError;
pub use self::objective::{ObjectiveError, ObjectiveKind};
pub use self::options::{ArmKind, Format, Options};
pub use self::server_url::{ServerUrl, Transport, UrlError};
pub use crate::controller::ControllerKind;
