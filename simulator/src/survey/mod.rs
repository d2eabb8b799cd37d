//! Measures a real path to a server, with probes over a client's own connection.
//!
//! A [`Survey`] says when to send how much, and keeps what is heard of it; [`measure`] carries that out,
//! and [`link_file`] writes the result as a link that can be simulated. Two workloads are measured, one
//! after the other. The *light* one is a small probe ten times a second: how a path behaves that nobody
//! fills. The *heavy* one keeps as many bytes in flight as fill the path and [`STANDING`] of its queue,
//! in probes of [`TRAIN`] each, back to back: the rate that the path carries.

mod link_file;
mod measure;
mod probes;
#[cfg(test)]
mod tests;

pub use link_file::link_file;
pub use measure::measure;
pub use probes::{Measured, Probe, STANDING, Survey, TIMEOUT, TRAIN, Workload};
