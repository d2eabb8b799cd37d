//! Isthmus without boards: a camera with true labels, an emulated link and a demonstration that
//! runs the real client and server over it.
//!
//! It holds no second copy of the session, the controller, the codec or the batcher: it drives
//! those of the other crates. The [`camera`] renders frames; a [`Link`] is a model of one direction
//! of a network; a [`relay`] puts two of them between real sockets, and a
//! [`world`] puts them between devices and a server in virtual time, as a [`scenario`] says. A [`sweep`]
//! runs many of those, [`results`] keeps what they came to, and a [`report`] shows it. A [`survey`]
//! measures a real path, to be simulated here; [`figures`] measure what the project claims.
//!
//! Read [`camera::Camera`] and [`Link`] first.

#![forbid(unsafe_code)]

pub mod bundles;
mod csv_table;
pub mod demo;
mod digest;
pub mod figures;
pub mod plot;
pub mod relay;
pub mod report;
pub mod results;
pub mod scenario;
pub mod survey;
pub mod sweep;
mod whole_file;
#[deny(clippy::disallowed_methods)]
pub mod world;

pub use isthmus_camera as camera;
pub use isthmus_link as link;
pub use isthmus_link::{
    Columns, Direction, Format, Link, LinkConfig, LinkCounters, PathConfig, PathSpec, PiecesError,
    ProfileError, Rebindings, Trace, TraceError, profile, trace,
};
pub use whole_file::WholeFile;
