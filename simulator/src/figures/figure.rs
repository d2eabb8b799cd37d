//! A figure: one claim, what was measured of it, and how that is printed.

use serde::Serialize;

use super::lab::Lab;

/// One claim.
pub struct Figure {
    /// Its name, for the command line.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// What is claimed, where it does not hang on another measurement; nothing of some.
    pub target: Option<f64>,
    /// Which side of the target is good.
    pub better: Better,
    pub(super) measure: fn(&Lab) -> anyhow::Result<Measurement>,
}

/// Which side of its target a value has to be on; the target itself is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// At most the target.
    Lower,
    /// At least the target.
    Higher,
}

/// What was measured of a figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// The value; `None` where it cannot be measured with what there is.
    pub value: Option<f64>,
    /// The target, where it hangs on what was measured.
    pub target: Option<f64>,
    /// How the value came about, or why there is none.
    pub detail: String,
    /// Whether a condition beside the target is broken; `detail` says which.
    pub broken: bool,
}

impl Measurement {
    pub(super) fn of(value: f64, detail: impl Into<String>) -> Self {
        Measurement { value: Some(value), target: None, detail: detail.into(), broken: false }
    }

    pub(super) fn skipped(reason: impl Into<String>) -> Self {
        Measurement { value: None, target: None, detail: reason.into(), broken: false }
    }

    pub(super) fn against(self, target: f64) -> Self {
        Measurement { target: Some(target), ..self }
    }
}

impl Figure {
    fn target_of(&self, measurement: &Measurement) -> Option<f64> {
        measurement.target.or(self.target)
    }

    pub(super) fn is_met(&self, measurement: &Measurement) -> Option<bool> {
        let target = self.target_of(measurement)?;
        let value = measurement.value?;
        let reached = match self.better {
            Better::Lower => value <= target,
            Better::Higher => value >= target,
        };
        Some(reached && !measurement.broken)
    }

    pub(super) fn text(&self, measurement: &Measurement) -> String {
        let met = match self.is_met(measurement) {
            None => "-",
            Some(true) => "yes",
            Some(false) => "NO",
        };
        let sign = match self.better {
            Better::Lower => "≤",
            Better::Higher => "≥",
        };
        let value = measurement.value.map_or("-".into(), number);
        let target = self.target_of(measurement);
        let target = target.map_or("-".into(), |target| format!("{sign} {}", number(target)));
        row([self.name, &value, self.unit, &target, met, &measurement.detail])
    }

    pub(super) fn json(&self, measurement: &Measurement) -> serde_json::Result<String> {
        #[derive(Serialize)]
        struct Line<'a> {
            name: &'a str,
            value: Option<f64>,
            unit: &'a str,
            target: Option<f64>,
            better: Better,
            detail: &'a str,
        }
        serde_json::to_string(&Line {
            name: self.name,
            value: measurement.value,
            unit: self.unit,
            target: self.target_of(measurement),
            better: self.better,
            detail: &measurement.detail,
        })
    }
}

pub(super) fn row([name, value, unit, target, met, detail]: [&str; 6]) -> String {
    format!("{name:<30} {value:>11} {unit:<9} {target:>12}  {met:<4} {detail}")
}

/// About four digits, whatever the size.
pub(super) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        large if large >= 1e3 => format!("{value:.0}"),
        small if small < 1e-2 => format!("{value:.2e}"),
        _ => format!("{value:.4}"),
    }
}
