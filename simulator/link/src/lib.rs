//! A model of a network path: what becomes of packets between two ends, in injected time.
//!
//! A [`Link`] is one direction of a path. It has a queue, a rate that may follow a recorded or drawn
//! [`Trace`], outages, a delay with jitter, loss, duplication and corruption. A [`profile`] is a path
//! in both directions as a TOML file, such as those in `configs/links`, which are built in.
//!
//! Nothing here reads a clock, opens a socket or starts a thread; all that is random is drawn from
//! a seed ([`chance`]). Files are read by [`Trace::read`] and [`PathSpec::find`] alone.
//!
//! Read [`Link`] first.

#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

pub mod chance;
mod channel;
pub mod duration;
mod link;
#[allow(clippy::disallowed_methods)]
pub mod profile;
mod queue;
mod rate;
pub mod statistics;
#[cfg(test)]
mod tests;
#[allow(clippy::disallowed_methods)]
pub mod trace;

pub use channel::{Delay, Jitter, Loss};
pub use link::{Delivered, Link, LinkConfig, LinkCounters, Tally};
pub use profile::{PathConfig, PathSpec, ProfileError, Rebindings};
pub use queue::{Capacity, Discipline, QueueConfig};
pub use rate::{AtEnd, MarkovRate, Outage, Playback, Rate, Schedule};
pub use trace::{Columns, Direction, Format, PiecesError, Trace, TraceError};
