//! Everything that is known of one scenario, brought together from files.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::cell::{Cell, Outcome, SimulatedRun};
use super::file::{Origin, Results};
use super::place;
use crate::scenario::{Line, ORACLE, Role};
use crate::world::RunResult;
use crate::world::oracle::Plan;

/// All that is known of one scenario.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// The scenario.
    pub scenario: Origin,
    /// Commits of the programs that made it, and commands that make it again, each once.
    pub commits: Vec<String>,
    /// See `commits`.
    pub commands: Vec<String>,
    cells: BTreeMap<(String, u64), (Cell, PathBuf)>,
    /// Controllers in the order in which they were first met.
    order: Vec<String>,
}

/// What one controller came to.
#[derive(Clone, Debug)]
pub struct Summary {
    /// Its numbers, over all seeds.
    pub line: Line,
    /// Seeds it was simulated with.
    pub seeds: Vec<u64>,
    /// Its runs together; `None` for the oracle.
    pub run: Option<SimulatedRun>,
}

/// Why a file that was read is not counted.
#[derive(Debug, thiserror::Error)]
#[error(
    "{}: {controller} with seed {seed} of {scenario} differs from that in {}, which counts", 
    file.display(), counted.display()
)]
pub struct Conflict {
    file: PathBuf,
    counted: PathBuf,
    scenario: String,
    controller: String,
    seed: u64,
}

impl Comparison {
    /// Brings together what belongs together, scenarios in the order in which they are met. A cell
    /// that is there twice counts once; if the second differs, it is a conflict.
    pub fn gather(files: Vec<(PathBuf, Results)>) -> (Vec<Comparison>, Vec<Conflict>) {
        let (mut all, mut conflicts) = (Vec::<Comparison>::new(), Vec::new());
        for (file, results) in files {
            let Results { commit, command, scenario, cells, .. } = results;
            let known = all.iter().position(|known| known.scenario == scenario);
            let at = known.unwrap_or_else(|| {
                all.push(Comparison::new(scenario));
                all.len() - 1
            });
            let comparison = &mut all[at];
            place(&mut comparison.commits, &commit);
            place(&mut comparison.commands, &command);
            conflicts.extend(cells.into_iter().filter_map(|cell| comparison.add(cell, &file)));
        }
        (all, conflicts)
    }

    fn new(scenario: Origin) -> Comparison {
        let (commits, commands) = (Vec::new(), Vec::new());
        Comparison { scenario, commits, commands, cells: BTreeMap::new(), order: Vec::new() }
    }

    /// Adds a cell of `file`, unless it is known; a conflict if it is known otherwise.
    fn add(&mut self, cell: Cell, file: &Path) -> Option<Conflict> {
        place(&mut self.order, &cell.controller);
        let key = (cell.controller.clone(), cell.seed);
        let Some((known, counted)) = self.cells.get(&key) else {
            self.cells.insert(key, (cell, file.to_owned()));
            return None;
        };
        (*known != cell).then(|| Conflict {
            file: file.to_owned(),
            counted: counted.clone(),
            scenario: self.scenario.name.clone(),
            controller: cell.controller,
            seed: cell.seed,
        })
    }

    /// Every cell, by controller and seed.
    pub fn cells(&self) -> impl Iterator<Item = &Cell> {
        let of = |name: &String| {
            let cells = self.cells.iter().filter(move |((controller, _), _)| controller == name);
            cells.map(|(_, (cell, _))| cell).collect::<Vec<_>>()
        };
        self.order.iter().flat_map(of).collect::<Vec<_>>().into_iter()
    }

    /// A run of `controller`, the one with the least seed.
    pub fn first_run(&self, controller: &str) -> Option<(u64, &SimulatedRun)> {
        self.cells().filter(|cell| cell.controller == controller).find_map(|cell| {
            match &cell.outcome {
                Outcome::Run(run) => Some((cell.seed, &**run)),
                Outcome::Plan(_) => None,
            }
        })
    }

    /// Every controller with all its seeds together, the oracle last.
    pub fn summaries(&self) -> Vec<Summary> {
        let names = self.order.iter().filter(|name| *name != ORACLE);
        let oracle = self.order.iter().filter(|name| *name == ORACLE);
        names.chain(oracle).map(|name| self.summary(name)).collect()
    }

    /// The numbers of every controller, the oracle's last.
    pub fn lines(&self) -> Vec<Line> {
        self.summaries().into_iter().map(|summary| summary.line).collect()
    }

    fn summary(&self, controller: &str) -> Summary {
        let (mut seeds, mut plan, mut role) = (Vec::new(), Plan::default(), Role::default());
        let mut all: Option<SimulatedRun> = None;
        for cell in self.cells().filter(|cell| cell.controller == controller) {
            seeds.push(cell.seed);
            role = cell.role;
            match &cell.outcome {
                Outcome::Plan(other) => plan = plan.plus(*other),
                Outcome::Run(run) => {
                    let all = all.get_or_insert_default();
                    all.result.merge(&self.controlled(cell.seed, &run.result));
                    for (cause, count) in &run.misses {
                        *all.misses.entry(cause.clone()).or_default() += count;
                    }
                }
            }
        }
        let line = match &all {
            Some(all) => Line::of_run(controller, role, &all.result),
            None => Line::of_plan(&plan),
        };
        Summary { line, seeds, run: all }
    }

    /// One cell's numbers.
    pub fn line(&self, cell: &Cell) -> Line {
        match &cell.outcome {
            Outcome::Plan(plan) => Line::of_plan(plan),
            Outcome::Run(run) => {
                let result = self.controlled(cell.seed, &run.result);
                Line::of_run(&cell.controller, cell.role, &result)
            }
        }
    }

    /// The result with its control variate taken off.
    fn controlled(&self, seed: u64, result: &RunResult) -> RunResult {
        // Where there is no plan, any price is as good in the mean.
        result.clone().less_control_variate(self.plan(seed).map_or(0, |plan| plan.price_level))
    }

    fn plan(&self, seed: u64) -> Option<&Plan> {
        match &self.cells.get(&(ORACLE.to_owned(), seed))?.0.outcome {
            Outcome::Plan(plan) => Some(plan),
            Outcome::Run(_) => None,
        }
    }
}
