//! The ranges of a scenario's values.

use std::path::Path;

use isthmus_proto::Timestamp;

use super::{Scenario, ScenarioError, SlowdownSpec};

/// Checks values of one file, so that errors name it.
#[derive(Clone, Copy)]
pub(super) struct Checker<'a> {
    pub(super) file: &'a Path,
}

impl Checker<'_> {
    /// A value of `key` that cannot be used.
    pub(super) fn bad(&self, key: &str, problem: impl Into<String>) -> ScenarioError {
        let (file, key) = (self.file.to_owned(), key.to_owned());
        ScenarioError::Value { file, key, problem: problem.into() }
    }

    /// An error unless `value` is within `low` to `high`.
    pub(super) fn within(
        &self,
        key: &str,
        value: f64,
        low: f64,
        high: f64,
    ) -> Result<(), ScenarioError> {
        match (low..=high).contains(&value) {
            true => Ok(()),
            false => Err(self.bad(key, format!("{value} is not within {low} to {high}"))),
        }
    }

    /// Checks everything that needs no other file.
    pub(super) fn scenario(&self, scenario: &Scenario) -> Result<(), ScenarioError> {
        self.within("cameras", f64::from(scenario.cameras), 1.0, 100_000.0)?;
        self.within("frames_per_second", scenario.frames_per_second, 0.001, 1_000.0)?;
        self.within("deadline_ms", scenario.deadline_ms, 1.0, 3.6e6)?;
        self.within("seconds", scenario.seconds, 0.001, 1e6)?;
        self.within("in_flight", scenario.in_flight as f64, 1.0, 4_096.0)?;
        if scenario.seeds.is_empty() {
            return Err(self.bad("seeds", "at least one is needed"));
        }
        if scenario.own_links && scenario.oracle {
            return Err(self.bad("oracle", "with own_links it has to be false"));
        }
        if scenario.controllers.is_empty() {
            return Err(self.bad("controllers", "at least one is needed"));
        }
        self.within("server.workers", scenario.server.workers as f64, 1.0, 65_536.0)?;
        for (name, time) in scenario.server.times() {
            self.within(&format!("server.{name}"), time, 0.0, 1e6)?;
        }
        Ok(())
    }

    /// Slowdowns in order of time.
    pub(super) fn slowdowns(
        &self,
        specs: &[SlowdownSpec],
    ) -> Result<Vec<(Timestamp, f64)>, ScenarioError> {
        let mut slowdowns = Vec::new();
        for (at, SlowdownSpec { from_s, factor }) in specs.iter().enumerate() {
            self.within(&format!("slowdowns[{at}].from_s"), *from_s, 0.0, 1e6)?;
            self.within(&format!("slowdowns[{at}].factor"), *factor, 0.01, 100.0)?;
            slowdowns.push((Timestamp::from_micros((from_s * 1e6) as u64), *factor));
        }
        slowdowns.sort_by_key(|(from, _)| *from);
        Ok(slowdowns)
    }
}
