//! The device's side of Isthmus.
//!
//! A device runs a network's head, sends its coded features to a server and takes the server's
//! answer, or the head's own early exit when the network has none in time; or it sends the picture,
//! compressed. This crate holds what decides and what carries that out:
//!
//! - The pure core: [`Session`], a state machine that follows every frame from capture to its one
//!   outcome, the [`Controller`]s that choose what to run and what to send, the
//!   [estimate](NetworkTime) of the network's part of the deadline, and the [exchange] of frames
//!   with a server. It reads no clock, socket, thread or random source; the simulator drives the
//!   very same code in virtual time.
//! - The shell, behind feature `shell`: QUIC and gRPC links, the check of the server's identity,
//!   the compute thread, picture sources, [`Client`], which drives a session with them, and the
//!   [view](live) of a run on a terminal.
//!
//! It knows nothing of simulated links, and it never compares clocks of two machines.
//!
//! Read [`Session`] and [`Controller`] first.

#![forbid(unsafe_code)]
// The modules of the shell are named below.
#![deny(clippy::disallowed_methods)]

mod controller;
mod estimator;
pub mod exchange;
mod histogram;
mod outcome;
mod session;

pub use controller::{
    Arms, Calibration, Choice, Conformal, Controller, ControllerKind, ControllerSpec, EnergyModel,
    Filter, FilterError, Filtered, Fixed, Greedy, HeadDecision, HeadRun, HeadView, ImageRun,
    Ladder, LadderError, LadderRung, LinUcb, LinkEstimate, LinkView, Load, Measured, Mpc,
    MpcConfig, NetworkSample, NetworkTimeout, Objective, OutcomesLadderError, Prediction, Run,
    SendDecision, SendView, Sending, TransferTime,
};
pub use estimator::NetworkTime;
pub use exchange::{FIRST_PAUSE, LONGEST_PAUSE};
pub use histogram::Histogram;
pub use outcome::{DropCause, Fallback, FrameOutcome, Reason, Timing, Verdict};
pub use session::{
    Counters, GUARD, HeadOutcome, Input, Output, Pace, ServerReply, Session, SessionConfig,
};

#[cfg(feature = "shell")]
pub mod cli;
#[cfg(feature = "shell")]
#[allow(clippy::disallowed_methods)]
mod client;
#[cfg(feature = "shell")]
#[allow(clippy::disallowed_methods)]
pub mod config;
#[cfg(feature = "shell")]
#[allow(clippy::disallowed_methods)]
pub mod drawn;
#[cfg(feature = "shell")]
#[allow(clippy::disallowed_methods)]
pub mod live;
#[cfg(feature = "shell")]
mod metrics;
#[cfg(feature = "shell")]
#[allow(clippy::disallowed_methods)]
mod prober;
#[cfg(feature = "shell")]
mod report;
#[cfg(feature = "shell")]
#[allow(clippy::disallowed_methods)]
pub mod source;
#[cfg(feature = "shell")]
pub mod text;
#[cfg(feature = "shell")]
#[allow(clippy::disallowed_methods)]
mod transport;

#[cfg(feature = "shell")]
pub use client::{Client, Compute, ComputeError, Computed, Here, RunError};
#[cfg(feature = "shell")]
pub use config::BundleLadderError;
#[cfg(feature = "shell")]
pub use prober::{Heard, Prober};
#[cfg(feature = "shell")]
pub use report::{
    Found, FrameReport, MapSummary, Quantiles, Said, Stages, Summary, SummaryBuilder,
};
#[cfg(feature = "shell")]
pub use transport::{ConnectError, Unconnected, quic, tls};
