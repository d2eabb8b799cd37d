//! What the controllers make of recorded links, in virtual time and beside the oracle.
//!
//! A cell is one window of one trace under one deadline, frame rate and number of cameras; a family
//! is a group of traces at one scale. Accuracies are the expected ones, which have no luck in them.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use anyhow::Context;

use super::Measurement;
use super::lab::Lab;
use crate::trials::{Cell, Trial};

/// The least share of the oracle's accuracy that every family has to reach.
const LEAST_FAMILY: f64 = 0.97;

/// A gap between the best fixed point and the oracle that is worth closing.
const GAP: f64 = 0.01;

/// The cells of a run over traces.
struct Cells(Vec<Cell>);

/// The Bluetooth case's.
struct Bluetooth(Cell);

/// Means of expected accuracy over the cells of one family.
struct Family {
    mpc: f64,
    oracle: f64,
    /// The best of the fixed points.
    fixed: f64,
}

pub(super) fn oracle_ratio(lab: &Lab) -> anyhow::Result<Measurement> {
    on_traces(lab, |cells| {
        let families = families(cells)?;
        let (least, name) = least(&families, |family| family.mpc / family.oracle)?;
        let (mpc, oracle) = (sum(cells, "mpc")?, sum(cells, "oracle")?);
        let detail = format!(
            "mpc, {} cells in {} families (group/divisor of the rates); least {least:.4} ({name}), \
             which may not be below {LEAST_FAMILY}",
            cells.len(),
            families.len()
        );
        let measured = Measurement::of(mpc / oracle, detail);
        Ok(Measurement { broken: least < LEAST_FAMILY, ..measured })
    })
}

pub(super) fn over_best_fixed(lab: &Lab) -> anyhow::Result<Measurement> {
    on_traces(lab, |cells| {
        let families = families(cells)?;
        let (least, name) = least(&families, |family| family.mpc - family.fixed)?;
        Ok(Measurement::of(least, format!("mpc less the family's best point; least: {name}")))
    })
}

pub(super) fn over_greedy(lab: &Lab) -> anyhow::Result<Measurement> {
    on_traces(lab, |cells| {
        let over = (sum(cells, "mpc")? - sum(cells, "greedy")?) / cells.len() as f64;
        Ok(Measurement::of(over, "mpc less greedy, mean over all cells"))
    })
}

pub(super) fn gap_closed(lab: &Lab) -> anyhow::Result<Measurement> {
    on_traces(lab, |cells| {
        let (mut closed, mut gaps, mut count) = (0.0, 0.0, 0);
        for cell in cells {
            let fixed = cell.fixed().map(|line| line.expected_accuracy).fold(0.0, f64::max);
            let gap = cell.of("oracle")?.expected_accuracy - fixed;
            if gap >= GAP {
                closed += cell.of("mpc")?.expected_accuracy - fixed;
                gaps += gap;
                count += 1;
            }
        }
        if count == 0 {
            return Ok(Measurement::skipped("no cell has a gap of a point"));
        }
        let detail = format!("sums over the {count} cells whose gap is at least a point");
        Ok(Measurement::of(closed / gaps, detail))
    })
}

pub(super) fn miss_rate(lab: &Lab) -> anyhow::Result<Measurement> {
    on_traces(lab, |cells| {
        // Missed and sent.
        let mut by_family: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        for cell in cells {
            let line = cell.of("mpc")?;
            let sent = line.sent * line.frames as f64;
            let family = by_family.entry(&cell.family).or_default();
            *family = (family.0 + sent * line.miss_rate, family.1 + sent);
        }
        let rate = |(missed, sent): (f64, f64)| missed / sent.max(1.0);
        let rates = by_family.iter().map(|(&name, &counts)| (rate(counts), name));
        let (most, name) = rates.max_by(by_value).context("no family")?;
        let all = by_family.values().fold((0.0, 0.0), |all, it| (all.0 + it.0, all.1 + it.1));
        Ok(Measurement::of(rate(all), format!("mpc, of frames sent; most {most:.4} ({name})")))
    })
}

pub(super) fn bluetooth_miss_rate(lab: &Lab) -> anyhow::Result<Measurement> {
    let cell = &bluetooth(lab)?.0;
    let line = cell.of("mpc")?;
    let detail = format!("mpc, {} frames at 0.5 to 1.3 Mbit/s, 300 ms, pi4", line.frames);
    Ok(Measurement::of(line.miss_rate, detail))
}

pub(super) fn bluetooth_oracle_ratio(lab: &Lab) -> anyhow::Result<Measurement> {
    let cell = &bluetooth(lab)?.0;
    let (mpc, oracle) = (cell.of("mpc")?.expected_accuracy, cell.of("oracle")?.expected_accuracy);
    Ok(Measurement::of(mpc / oracle, format!("mpc {mpc:.4}, oracle {oracle:.4}")))
}

fn bluetooth(lab: &Lab) -> anyhow::Result<std::rc::Rc<Bluetooth>> {
    lab.once(|lab| Ok(Bluetooth(Trial::of_bluetooth(lab.bundle().dir())?.run()?)))
}

fn on_traces(
    lab: &Lab,
    measure: impl FnOnce(&[Cell]) -> anyhow::Result<Measurement>,
) -> anyhow::Result<Measurement> {
    let Some((folder, full)) = lab.traces() else {
        return Ok(Measurement::skipped("needs recorded traces with an index.csv: --traces DIR"));
    };
    let run = |lab: &Lab| {
        let trials = Trial::of_traces(lab.bundle().dir(), folder, full)?;
        Ok(Cells(Trial::run_all(&trials)?))
    };
    measure(&lab.once(run)?.0)
}

fn families(cells: &[Cell]) -> anyhow::Result<BTreeMap<String, Family>> {
    let mut by_family: BTreeMap<&str, Vec<&Cell>> = BTreeMap::new();
    for cell in cells {
        by_family.entry(&cell.family).or_default().push(cell);
    }
    let family = |(name, cells): (&str, Vec<&Cell>)| {
        let mean =
            |controller: &str| Ok(sum(cells.iter().copied(), controller)? / cells.len() as f64);
        let points = cells[0].fixed().map(|point| mean(&point.controller));
        let points = points.collect::<anyhow::Result<Vec<f64>>>()?;
        let fixed = points.into_iter().fold(0.0, f64::max);
        Ok((name.to_owned(), Family { mpc: mean("mpc")?, oracle: mean("oracle")?, fixed }))
    };
    by_family.into_iter().map(family).collect()
}

/// Expected accuracies of a controller over `cells` together.
fn sum<'a>(cells: impl IntoIterator<Item = &'a Cell>, controller: &str) -> anyhow::Result<f64> {
    cells.into_iter().map(|cell| Ok(cell.of(controller)?.expected_accuracy)).sum()
}

/// The family of which `value` is least.
fn least(
    families: &BTreeMap<String, Family>,
    value: impl Fn(&Family) -> f64,
) -> anyhow::Result<(f64, &str)> {
    let values = families.iter().map(|(name, family)| (value(family), name.as_str()));
    values.min_by(by_value).context("no family")
}

fn by_value<T>(a: &(f64, T), b: &(f64, T)) -> Ordering {
    a.0.total_cmp(&b.0)
}
