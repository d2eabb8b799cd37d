//! What the controllers make of recorded links, in virtual time and beside the oracle.
//!
//! An experiment is one window of one trace under one deadline, frame rate and number of cameras; a
//! family is a group of traces at one scale. Qualities are the expected ones, from which a control
//! variate took the chance of the pictures.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use anyhow::Context;

use super::Measurement;
use super::experiment::{Experiment, ExperimentResult};
use super::lab::Lab;

/// The least part of the oracle's quality that every family has to reach.
const LEAST_FAMILY: f64 = 0.97;

/// A gap between the best fixed point and the oracle that is worth closing.
const GAP: f64 = 0.01;

/// The results on traces.
struct OnTraces(Vec<ExperimentResult>);

/// That of the Bluetooth scenario.
struct Bluetooth(ExperimentResult);

/// Means of expected quality over the experiments of one family.
struct Family {
    mpc: f64,
    oracle: f64,
    /// The best of the fixed points.
    fixed: f64,
}

pub(super) fn oracle_ratio(lab: &Lab) -> anyhow::Result<Measurement> {
    on_traces(lab, |results| {
        let families = families(results)?;
        let (least, name) = least(&families, |family| family.mpc / family.oracle)?;
        let (mpc, oracle) = (sum(results, "mpc")?, sum(results, "oracle")?);
        let detail = format!(
            "mpc, {} experiments in {} families (group/divisor of the rates); least {least:.4} ({name}), \
             which may not be below {LEAST_FAMILY}",
            results.len(),
            families.len()
        );
        let measured = Measurement::of(mpc / oracle, detail);
        Ok(Measurement { broken: least < LEAST_FAMILY, ..measured })
    })
}

pub(super) fn over_best_fixed(lab: &Lab) -> anyhow::Result<Measurement> {
    on_traces(lab, |results| {
        let families = families(results)?;
        let (least, name) = least(&families, |family| family.mpc - family.fixed)?;
        Ok(Measurement::of(least, format!("mpc less the family's best point; least: {name}")))
    })
}

pub(super) fn over_greedy(lab: &Lab) -> anyhow::Result<Measurement> {
    on_traces(lab, |results| {
        let over = (sum(results, "mpc")? - sum(results, "greedy")?) / results.len() as f64;
        Ok(Measurement::of(over, "mpc less greedy, mean over all experiments"))
    })
}

pub(super) fn gap_closed(lab: &Lab) -> anyhow::Result<Measurement> {
    on_traces(lab, |results| {
        let (mut closed, mut gaps, mut count) = (0.0, 0.0, 0);
        for result in results {
            let fixed = result.fixed().map(|line| line.expected_quality).fold(0.0, f64::max);
            let gap = result.of("oracle")?.expected_quality - fixed;
            if gap >= GAP {
                closed += result.of("mpc")?.expected_quality - fixed;
                gaps += gap;
                count += 1;
            }
        }
        if count == 0 {
            return Ok(Measurement::skipped("no experiment has a gap of a point"));
        }
        let detail = format!("sums over the {count} experiments whose gap is at least a point");
        Ok(Measurement::of(closed / gaps, detail))
    })
}

pub(super) fn miss_rate(lab: &Lab) -> anyhow::Result<Measurement> {
    on_traces(lab, |results| {
        // Missed and sent.
        let mut by_family: BTreeMap<&str, (f64, f64)> = BTreeMap::new();
        for result in results {
            let line = result.of("mpc")?;
            let sent = line.sent * line.frames as f64;
            let family = by_family.entry(&result.family).or_default();
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
    let result = &bluetooth(lab)?.0;
    let line = result.of("mpc")?;
    let detail = format!("mpc, {} frames at 0.5 to 1.3 Mbit/s, 300 ms, pi4", line.frames);
    Ok(Measurement::of(line.miss_rate, detail))
}

pub(super) fn bluetooth_oracle_ratio(lab: &Lab) -> anyhow::Result<Measurement> {
    let result = &bluetooth(lab)?.0;
    let (mpc, oracle) = (result.of("mpc")?.expected_quality, result.of("oracle")?.expected_quality);
    Ok(Measurement::of(mpc / oracle, format!("mpc {mpc:.4}, oracle {oracle:.4}")))
}

fn bluetooth(lab: &Lab) -> anyhow::Result<std::rc::Rc<Bluetooth>> {
    lab.once(|lab| Ok(Bluetooth(Experiment::of_scenario("bluetooth", lab.bundle().dir())?.run()?)))
}

fn on_traces(
    lab: &Lab,
    measure: impl FnOnce(&[ExperimentResult]) -> anyhow::Result<Measurement>,
) -> anyhow::Result<Measurement> {
    let Some((folder, full)) = lab.traces() else {
        return Ok(Measurement::skipped("needs recorded traces: --traces DIR"));
    };
    let run = |lab: &Lab| {
        let experiments = Experiment::of_traces(lab.bundle().dir(), folder, full)?;
        Ok(OnTraces(Experiment::run_all(&experiments)?))
    };
    measure(&lab.once(run)?.0)
}

fn families(results: &[ExperimentResult]) -> anyhow::Result<BTreeMap<String, Family>> {
    let mut by_family: BTreeMap<&str, Vec<&ExperimentResult>> = BTreeMap::new();
    for result in results {
        by_family.entry(&result.family).or_default().push(result);
    }
    let family = |(name, results): (&str, Vec<&ExperimentResult>)| {
        let mean =
            |controller: &str| Ok(sum(results.iter().copied(), controller)? / results.len() as f64);
        let points = results[0].fixed().map(|point| mean(&point.controller));
        let points = points.collect::<anyhow::Result<Vec<f64>>>()?;
        let fixed = points.into_iter().fold(0.0, f64::max);
        Ok((name.to_owned(), Family { mpc: mean("mpc")?, oracle: mean("oracle")?, fixed }))
    };
    by_family.into_iter().map(family).collect()
}

/// Expected qualities of a controller over `results` together.
fn sum<'a>(
    results: impl IntoIterator<Item = &'a ExperimentResult>,
    controller: &str,
) -> anyhow::Result<f64> {
    results.into_iter().map(|result| Ok(result.of(controller)?.expected_quality)).sum()
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
