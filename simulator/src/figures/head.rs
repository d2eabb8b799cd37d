//! What the device's part costs, and how well it answers alone.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::Context;
use isthmus_models::{EngineKind, Head, Preprocessor, SplitSpec};

use super::Measurement;
use super::accuracy::{is_right, not_of_classes};
use super::footprint::status_field;
use super::lab::Lab;
use crate::link::statistics::{median, quantile};

/// Sides (pixels) of the input at which heads are compared.
const SIDE: f64 = 160.0;
/// Multiply-accumulates that the narrowest head may take at that input.
const NARROW_MACS: f64 = 4e6;
/// Parameters that an exit may have beside its head's.
const EXIT_PARAMETERS: u64 = 10_000;
/// Switches from one head to another that are timed.
const SWITCHES: usize = 600;
/// Runs of each head in each engine, turn by turn.
const RUNS: usize = 200;
/// Copies of all heads that memory is measured on, so that what was free before counts little.
const COPIES: usize = 32;

pub(super) fn macs(lab: &Lab) -> anyhow::Result<Measurement> {
    let input = &lab.bundle().manifest().input;
    let scale = SIDE * SIDE / (f64::from(input.width) * f64::from(input.height));
    let widths = &first_split(lab)?.widths;
    let counted: Vec<f64> = widths.iter().map(|width| width.head_macs as f64 * scale).collect();
    let (narrow, wide) = counted.first().zip(counted.last()).context("a split without widths")?;
    let detail = format!(
        "multiply-accumulates up to the latents at {SIDE} x {SIDE}, from the manifest's at {} x {} \
         by area; the narrowest of {} widths has {narrow:.3e} (at most {NARROW_MACS:.0e})",
        input.width,
        input.height,
        widths.len(),
    );
    Ok(Measurement { broken: *narrow > NARROW_MACS, ..Measurement::of(*wide, detail) })
}

pub(super) fn parameters(lab: &Lab) -> anyhow::Result<Measurement> {
    let widest = first_split(lab)?.widths.last().context("a split without widths")?;
    let detail = format!(
        "of {}, up to the latents; its exit has {} beside them (at most {EXIT_PARAMETERS})",
        widest.name, widest.exit_parameters
    );
    let broken = widest.exit_parameters > EXIT_PARAMETERS;
    Ok(Measurement { broken, ..Measurement::of(widest.head_parameters as f64, detail) })
}

pub(super) fn time_over_onnxruntime(lab: &Lab) -> anyhow::Result<Measurement> {
    let installed = match EngineKind::Ort.open(&[]) {
        Ok(installed) => installed,
        Err(missing) => return Ok(Measurement::skipped(missing.to_string())),
    };
    let (ours, theirs) = (lab.head()?, Head::load(lab.bundle().clone(), &*installed)?);
    let manifest = lab.bundle().manifest();
    let input = vec![0.1; 3 * manifest.input.width as usize * manifest.input.height as usize];
    let (mut worst, mut parts) = (0.0, Vec::new());
    for (split, spec) in (0..).zip(&manifest.splits) {
        for (at, width) in (0..).zip(&spec.widths) {
            let mut times = [Vec::new(), Vec::new()];
            for _ in 0..RUNS {
                for (head, times) in [&*ours, &theirs].into_iter().zip(&mut times) {
                    let start = Instant::now();
                    head.run(split, at, &input)?;
                    times.push(start.elapsed().as_secs_f64() * 1e3);
                }
            }
            let [ours, theirs] = times.map(|times| median(&times));
            worst = f64::max(worst, ours / theirs);
            parts.push(format!("{}/{} {ours:.2} ms over {theirs:.2} ms", spec.name, width.name));
        }
    }
    let detail = format!("the worst of: {}; one thread, medians of {RUNS}", parts.join(", "));
    Ok(Measurement::of(worst, detail))
}

pub(super) fn exit_top1(lab: &Lab) -> anyhow::Result<Measurement> {
    if let Some(reason) = not_of_classes(lab) {
        return Ok(reason);
    }
    let (head, bundle, widths) = (lab.head()?, lab.bundle(), &first_split(lab)?.widths);
    let exits: Vec<usize> = (0..widths.len()).filter(|&at| widths[at].exit).collect();
    if exits.is_empty() {
        return Ok(Measurement::skipped("no head of the bundle has an exit"));
    }
    let preprocessor = Preprocessor::new(&bundle.manifest().input);
    let rows = lab.each_labelled(|picture, truth| {
        let mut input = Vec::new();
        preprocessor.run(picture, &mut input);
        let right = |&width: &usize| {
            let logits = head.run(0, width as u8, &input)?.exit.context("an exit is missing")?;
            Ok(is_right(bundle, &[logits], truth))
        };
        exits.iter().map(right).collect::<anyhow::Result<Vec<bool>>>()
    })?;
    let accuracy = |at: usize| rows.iter().filter(|row| row[at]).count() as f64 / rows.len() as f64;
    let parts: Vec<String> = exits
        .iter()
        .enumerate()
        .map(|(at, &width)| format!("{} {:.4}", widths[width].name, accuracy(at)))
        .collect();
    let detail = format!("of the widest head, {} pictures; {}", rows.len(), parts.join(", "));
    Ok(Measurement::of(accuracy(exits.len() - 1), detail))
}

pub(super) fn switch_p99_ms(lab: &Lab) -> anyhow::Result<Measurement> {
    let (head, pictures) = (lab.head()?, lab.pictures()?);
    let widths = first_split(lab)?.widths.len();
    if widths < 2 {
        return Ok(Measurement::skipped("the bundle has one head: there is nothing to switch"));
    }
    let preprocessor = Preprocessor::new(&lab.bundle().manifest().input);
    let inputs: Vec<Vec<f32>> = pictures
        .iter()
        .take(16)
        .map(|picture| {
            let mut input = Vec::new();
            preprocessor.run(picture, &mut input);
            input
        })
        .collect();
    let (mut first, mut next) = (Vec::new(), Vec::new());
    for (switch, input) in inputs.iter().cycle().take(SWITCHES).enumerate() {
        let width = (switch % widths) as u8;
        for times in [&mut first, &mut next] {
            let start = Instant::now();
            head.run(0, width, input)?;
            times.push(start.elapsed().as_secs_f64() * 1e3);
        }
    }
    let slower: Vec<f64> = first.iter().zip(&next).map(|(first, next)| first - next).collect();
    let (pairs, median) = (quantile(&slower, 0.99), median(&slower));
    // Each pair's difference holds what else the machine did in between; at the same percentile of
    // both that cancels.
    let (first, next) = (quantile(&first, 0.99), quantile(&next, 0.99));
    let detail = format!(
        "99th percentiles of the first frame after a switch, {first:.3} ms, less of the next at the \
         same width, {next:.3} ms; {SWITCHES} switches between {widths} widths; of the difference in \
         each pair median {median:.3} ms, 99th percentile {pairs:.3} ms"
    );
    Ok(Measurement::of(first - next, detail))
}

pub(super) fn points_resident_bytes(lab: &Lab) -> anyhow::Result<Measurement> {
    let status = Path::new("/proc/self/status");
    if !status.exists() {
        return Ok(Measurement::skipped("memory is read from /proc, which this system lacks"));
    }
    let resident = || anyhow::Ok(status_field(&fs::read_to_string(status)?, "VmRSS")?);
    let load = || Ok(Head::load(lab.bundle().clone(), lab.engine())?);
    // The first maps the program's own pages.
    let warm: Head = load()?;
    let before = resident()?;
    let copies = (0..COPIES).map(|_| load()).collect::<anyhow::Result<Vec<Head>>>()?;
    let bytes = resident()?.saturating_sub(before) as f64 / COPIES as f64;
    drop((warm, copies));
    let widths: usize = lab.bundle().manifest().splits.iter().map(|split| split.widths.len()).sum();
    let detail = format!(
        "growth of VmRSS a copy, {COPIES} copies of all {widths} heads, run once each; the coder's \
         tables are the bundle's and apart"
    );
    Ok(Measurement::of(bytes, detail))
}

fn first_split(lab: &Lab) -> anyhow::Result<&SplitSpec> {
    lab.bundle().manifest().splits.first().context("the bundle has no split")
}
