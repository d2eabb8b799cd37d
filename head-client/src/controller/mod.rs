//! Controllers: what decides, for every frame, what the device runs and what it sends.
//!
//! [`Controller`] is the interface. [`Fixed`], [`Greedy`], [`LinUcb`] and [`Mpc`] implement it, and
//! [`ControllerSpec`] makes them. All but the first choose from a [`Ladder`] of ways to answer a
//! frame, and reckon with a [`TransferTime`] or a throughput. `docs/controller.md` has the model
//! with its symbols, its formulas and where they come from.

mod backoff;
mod calibration;
mod conformal;
mod decision;
mod filter;
mod fixed;
mod greedy;
mod ladder;
mod linucb;
mod measured;
mod mpc;
mod objective;
mod outage;
mod path;
mod proven_size;
mod run;
mod spec;
mod statistics;
mod transfer;

pub use calibration::Calibration;
pub use conformal::Conformal;
pub use decision::{
    Choice, Controller, HeadDecision, HeadView, LinkEstimate, LinkView, NetworkSample,
    NetworkTimeout, SendDecision, SendView, Sending,
};
pub use filter::{Filter, FilterError, Filtered};
pub use fixed::Fixed;
pub use greedy::Greedy;
pub use ladder::{Ladder, LadderError, LadderRung};
pub use linucb::LinUcb;
pub use measured::{Arms, Measured, OutcomesLadderError};
pub use mpc::{Mpc, MpcConfig};
pub use objective::{EnergyModel, Objective};
pub use run::{HeadRun, ImageRun, Load, Run};
pub use spec::{ControllerKind, ControllerSpec};
pub use transfer::{Prediction, TransferTime};
