//! Isthmus without boards: a camera with true labels, an emulated link and a demonstration that
//! runs the real client and server over it.
//!
//! It holds no second copy of the session, the controller, the codec or the batcher: it drives
//! those of the other crates. The [`camera`] renders frames; a [`Link`] is a pure model of one
//! direction of a network, driven in injected time, perhaps by a [`Trace`]; a [`relay`] puts two of
//! them between real sockets, and a [`world`] puts them between devices and a server in virtual
//! time, as a [`scenario`] says. A [`survey`] measures a real path, to be played here.
//!
//! Read [`camera::Camera`] and [`Link`] first.

#![forbid(unsafe_code)]

pub mod camera;
mod charged;
pub mod demo;
pub mod figures;
pub mod link;
pub mod plot;
pub mod profile;
pub mod recorder;
pub mod relay;
pub mod report;
pub mod results;
pub mod scenario;
pub mod survey;
pub mod sweep;
mod trace;
mod trials;
mod whole_file;
pub mod world;

pub use link::{Link, LinkConfig, LinkCounters};
pub use profile::{PathConfig, PathSpec, ProfileError, Rebindings};
pub use trace::{Columns, Direction, Format, PiecesError, Trace, TraceError};
pub use whole_file::WholeFile;
