//! A scenario with what a command changes about it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use isthmus_models::on_all_cores;

use crate::bundles;
use crate::results::{Cell, Origin, Results};
use crate::scenario::{NamedController, Prepared, Scenario};
use crate::world::TransportKind;

/// A scenario of a sweep.
pub struct Subject {
    prepared: Prepared,
    origin: Origin,
    command: String,
}

/// What to change about a scenario.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selection {
    /// Only these controllers, by name or by its first word; all if it is empty.
    pub controllers: Vec<String>,
    /// These seeds; the scenario's if it is empty.
    pub seeds: Vec<u64>,
    /// What carries frames; as the scenario says if it is none.
    pub transport: Option<TransportKind>,
    /// For how long frames are captured; as the scenario says if it is none.
    pub duration: Option<Duration>,
    /// This bundle, by name or folder; the scenario's if it is none.
    pub bundle: Option<PathBuf>,
}

impl Subject {
    /// Reads a scenario, a file or a built-in one, and all it names; `command` makes its results again.
    pub fn read(file: &Path, selection: &Selection, command: String) -> anyhow::Result<Subject> {
        let text = Scenario::text(file)?;
        let mut scenario = Scenario::parse(&text, file)?;
        if let Some(bundle) = &selection.bundle {
            // It counts from the current folder, not from the scenario's.
            let bundle = bundles::find(bundle).context("--bundle")?;
            scenario.bundle = Some(bundle.canonicalize().context("--bundle")?);
        }
        if !selection.seeds.is_empty() {
            scenario.seeds.clone_from(&selection.seeds);
        }
        if let Some(duration) = selection.duration {
            scenario.seconds = duration.as_secs_f64();
        }
        scenario.transport = selection.transport.unwrap_or(scenario.transport);
        let mut prepared = scenario.prepare(file)?;
        if !selection.controllers.is_empty() {
            prepared.keep(&selection.controllers).context("--controllers")?;
        }
        let origin = Origin::new(file, &text, &prepared);
        Ok(Subject { prepared, origin, command })
    }

    /// Where it is from.
    pub(super) fn origin(&self) -> &Origin {
        &self.origin
    }

    /// The scenario.
    pub fn prepared(&self) -> &Prepared {
        &self.prepared
    }

    /// Every controller, the oracle (`None`) first for it takes longest, with every seed.
    pub(super) fn cells(&self) -> impl Iterator<Item = (Option<&NamedController>, u64)> {
        let Scenario { seeds, oracle, .. } = self.prepared.scenario();
        let controllers = self.prepared.controllers().iter().map(Some);
        let all = oracle.then_some(None).into_iter().chain(controllers);
        all.flat_map(move |controller| seeds.iter().map(move |&seed| (controller, seed)))
    }

    /// Runs all cells on all cores, and gives `progress` the controller of each that is done.
    pub fn run(&self, progress: impl Fn(&str) + Sync) -> anyhow::Result<Results> {
        let cells = on_all_cores(self.cells(), |(controller, seed)| {
            let cell = Cell::compute(&self.prepared, controller, seed)?;
            progress(&cell.controller);
            anyhow::Ok(cell)
        })?;
        Ok(self.results(cells))
    }

    pub(super) fn results(&self, cells: Vec<Cell>) -> Results {
        Results::new(self.origin.clone(), self.command.clone(), cells)
    }
}
