//! A cell of a comparison: one controller, or the oracle, with one seed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::timeline::{Recorder, Timeline};
use crate::scenario::{NamedController, ORACLE, Prepared, Role, ScenarioError};
use crate::world::oracle::Plan;
use crate::world::{FrameEnd, RunResult};

/// One run, or the oracle's plan for it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cell {
    /// The controller, or `oracle`.
    pub controller: String,
    /// What that stands for; files from before it was written down say nothing of it.
    #[serde(default)]
    pub role: Role,
    /// Decided everything random.
    pub seed: u64,
    /// SHA-256 of all that the run follows from: record, world and controller.
    pub inputs: String,
    /// What it came to.
    pub outcome: Outcome,
}

/// What a cell came to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Of a controller.
    Run(Box<SimulatedRun>),
    /// Of the oracle.
    Plan(Plan),
}

/// A run of a controller.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimulatedRun {
    /// What was counted.
    pub result: RunResult,
    /// Frames sent without a network answer in time, by how they ended; late answers are `late`.
    pub misses: BTreeMap<String, u64>,
    /// Frame by frame.
    pub timeline: Timeline,
}

impl Cell {
    /// Simulates a controller of `prepared` with a seed; without one the oracle plans.
    pub fn compute(
        prepared: &Prepared,
        controller: Option<&NamedController>,
        seed: u64,
    ) -> Result<Cell, ScenarioError> {
        let outcome = match controller {
            None => Outcome::Plan(prepared.plan(seed)?),
            Some(controller) => {
                let mut recorder = Recorder::new(prepared);
                let mut observer = |end: &FrameEnd<'_>| recorder.on_end(end);
                let result = prepared.simulate(controller, seed, Some(&mut observer))?;
                let Recorder { misses, timeline, .. } = recorder;
                Outcome::Run(Box::new(SimulatedRun { result, misses, timeline }))
            }
        };
        let inputs = prepared.digest(controller, seed)?;
        let role = controller.map_or(Role::Oracle, NamedController::role);
        let controller = controller.map_or(ORACLE, NamedController::name).to_owned();
        Ok(Cell { controller, role, seed, inputs, outcome })
    }
}
