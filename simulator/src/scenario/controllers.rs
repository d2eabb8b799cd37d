//! The controllers that a scenario compares: each has a name of its own and a role.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use isthmus_head_client::config::{ControllerKind, ObjectiveKind};
use isthmus_head_client::{Controller, ControllerSpec, Fixed, ImageRun, Ladder, MpcConfig, Run};
use serde::{Deserialize, Serialize};

use super::check::Checker;
use super::{ControllerTable, Scenario, ScenarioError};
use crate::world::Record;

/// The name of the oracle among the controllers.
pub const ORACLE: &str = "oracle";

/// What a line of results stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// A controller that adapts.
    #[default]
    Adaptive,
    /// One that always does the same.
    Fixed,
    /// The bound on what could have been reached.
    Oracle,
}

/// A controller that is compared.
#[derive(Clone, Debug)]
pub struct NamedController {
    /// Its name without a number.
    kind_name: String,
    name: String,
    pub(super) spec: ControllerSpec,
}

impl NamedController {
    /// Its name, such as `mpc` or `fixed s16/w100/c16/b6`; no two of a scenario have the same.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it adapts.
    pub fn role(&self) -> Role {
        if self.spec.kind() == ControllerKind::Fixed { Role::Fixed } else { Role::Adaptive }
    }

    /// Whether `name` is its name, or the first word of it.
    pub(super) fn answers_to(&self, name: &str) -> bool {
        self.name == name || self.name.split(' ').next() == Some(name)
    }

    /// One that has decided nothing yet.
    pub(super) fn build(&self, ladder: &Arc<Ladder>) -> Box<dyn Controller> {
        let ladder = || Ok::<_, Infallible>(Arc::clone(ladder));
        let Ok(controller) = self.spec.build(ladder);
        controller
    }
}

/// The controllers of a scenario, and what they may run, which the oracle may run as well.
pub(super) struct Controllers {
    pub(super) list: Vec<NamedController>,
    pub(super) runs: Vec<Run>,
}

impl Controllers {
    /// Those that `scenario` names, of what `record` knows.
    pub(super) fn new(
        scenario: &Scenario,
        record: &Record,
        check: Checker<'_>,
    ) -> Result<Controllers, ScenarioError> {
        let runs = record.ladder().rungs().iter().map(|rung| rung.run).collect();
        let mut controllers = Controllers { list: Vec::new(), runs };
        for (at, table) in scenario.controllers.iter().enumerate() {
            let key = format!("controllers[{at}]");
            if let Some(idle) = table.idle_key() {
                let problem = format!("says nothing to a controller of kind {}", table.kind.name());
                return Err(check.bad(&format!("{key}.{idle}"), problem));
            }
            match (table.kind, &table.point, &table.exit) {
                (ControllerKind::Fixed, None, None) => controllers.add_ladder(record),
                (ControllerKind::Fixed, None, Some(_)) => {
                    let problem = "is only valid with an image as point, whose fallback it is";
                    return Err(check.bad(&format!("{key}.exit"), problem));
                }
                (ControllerKind::Fixed, Some(point), exit) => {
                    let run = fixed_run(point, exit.as_deref(), record, &key, check)?;
                    controllers.add_fixed(run, record);
                    controllers.runs.push(run);
                }
                (kind, ..) => {
                    let name = match table.objective.unwrap_or_default() {
                        ObjectiveKind::Quality => kind.name().to_owned(),
                        spared => format!("{} {}", kind.name(), spared.name()),
                    };
                    let config = mpc_config(table, scenario.frames_per_second, &key, check)?;
                    // The run is the fixed one's alone.
                    controllers.add(name, kind.with(Run::Local, config));
                }
            }
        }
        Ok(controllers)
    }

    /// Every rung of the ladder that is worth planning with, and every exit of its heads.
    fn add_ladder(&mut self, record: &Record) {
        let ladder = record.ladder();
        for &rung in ladder.planned() {
            self.add_fixed(ladder.rungs()[rung].run, record);
        }
        for (head, run) in record.ladder_heads() {
            let name = format!("fixed {}/exit", record.heads()[&head]);
            self.add(name, ControllerSpec::Fixed(Fixed::exit(run)));
        }
    }

    fn add_fixed(&mut self, run: Run, record: &Record) {
        self.add(format!("fixed {}", record.name(run)), ControllerSpec::Fixed(Fixed::new(run)));
    }

    /// Adds one; the second of a name is numbered 2.
    fn add(&mut self, kind_name: String, spec: ControllerSpec) {
        let alike = self.list.iter().filter(|other| other.kind_name == kind_name).count();
        let name = match alike {
            0 => kind_name.clone(),
            _ => format!("{kind_name} ({})", alike + 1),
        };
        self.list.push(NamedController { kind_name, name, spec });
    }
}

/// The run of a named point, with the exit that is its fallback.
fn fixed_run(
    point: &str,
    exit: Option<&str>,
    record: &Record,
    key: &str,
    check: Checker<'_>,
) -> Result<Run, ScenarioError> {
    let unknown = |part: &str, name: &str, known: Vec<String>| {
        let problem = format!("{name} was not recorded; expected one of {}", known.join(", "));
        check.bad(&format!("{key}.{part}"), problem)
    };
    let run = record.run(point).ok_or_else(|| unknown("point", point, record.run_names()))?;
    match (run, exit) {
        (run, None) => Ok(run),
        (Run::Image(ImageRun { image, .. }), Some(exit)) => {
            let heads = record.heads();
            let head = heads.iter().find(|(_, known)| *known == exit);
            let known = || heads.values().cloned().collect();
            let (head, _) = head.ok_or_else(|| unknown("exit", exit, known()))?;
            Ok(Run::Image(ImageRun { image, exit: Some(*head) }))
        }
        (Run::Head(_) | Run::Local, Some(_)) => {
            let problem = format!("is only valid when point is an image, and {point} is not");
            Err(check.bad(&format!("{key}.exit"), problem))
        }
    }
}

/// The settings of model-predictive control.
fn mpc_config(
    table: &ControllerTable,
    frames_per_second: f64,
    key: &str,
    check: Checker<'_>,
) -> Result<MpcConfig, ScenarioError> {
    let default = MpcConfig::default();
    let ControllerTable { quality_floor, watts, joules_per_megabyte, .. } = *table;
    let objective = table.objective.unwrap_or_default();
    let objective = objective.with(quality_floor, watts, joules_per_megabyte);
    let config = MpcConfig {
        target_miss: table.target_miss.unwrap_or(default.target_miss),
        horizon: table.horizon.unwrap_or(default.horizon),
        interval: Some(Duration::from_secs_f64(1.0 / frames_per_second)),
        objective: objective.map_err(|error| check.bad(key, error.to_string()))?,
    };
    check.within(&format!("{key}.target_miss"), config.target_miss, 0.001, 0.5)?;
    check.within(&format!("{key}.horizon"), config.horizon as f64, 1.0, 16.0)?;
    Ok(config)
}
