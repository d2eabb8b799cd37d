//! How fast and how faithful worlds are with the real transport, and how large they may become.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use isthmus_head_client::{Fixed, Histogram};
use isthmus_proto::OperatingPoint;

use super::Measurement;
use super::charged;
use super::decisions::{one_camera, record, speed};
use super::experiment::Experiment;
use super::footprint::status_field;
use super::lab::Lab;
use crate::world::{self, Record, RunResult, TransportKind, WorldConfig};

/// Frames that both clocks are compared over, and time between them.
const FRAMES: u32 = 2_100;
const INTERVAL: Duration = Duration::from_millis(50);

/// Runs of one seed that have to be equal.
const EQUAL_RUNS: usize = 20;

/// Most memory of a fleet (bytes).
const FLEET_MEMORY: f64 = 1e9;

/// Quantiles of capture to output on both clocks.
struct Fidelity {
    virtual_time: Histogram,
    ideal: Histogram,
    real_time: Histogram,
    frames: u64,
}

pub(super) fn virtual_speed_quic(lab: &Lab) -> anyhow::Result<Measurement> {
    let (mut config, record) = one_camera(lab)?;
    config.transport = TransportKind::Quic;
    let point = best(&record)?;
    let run = |config: &WorldConfig| world::run(config, &record, |_| Box::new(Fixed::new(point)));
    let measured = speed(&config, || run(&config))?;
    config.duration = Duration::from_secs(60);
    let first = run(&config);
    let differ = (1..EQUAL_RUNS).filter(|_| run(&config) != first).count();
    let detail =
        format!("{}; {differ} of {EQUAL_RUNS} runs of 60 s differ from the first", measured.detail);
    Ok(Measurement { detail, broken: differ > 0, ..measured })
}

pub(super) fn real_time_fidelity_p50(lab: &Lab) -> anyhow::Result<Measurement> {
    fidelity(lab, 0.5)
}

pub(super) fn real_time_fidelity_p95(lab: &Lab) -> anyhow::Result<Measurement> {
    fidelity(lab, 0.95)
}

pub(super) fn fleet_seconds(lab: &Lab) -> anyhow::Result<Measurement> {
    let record = record(lab)?;
    let Experiment { scenario, .. } = Experiment::of_scenario("fleet", lab.bundle().dir())?;
    let seed = scenario.seeds.first().copied().unwrap_or_default();
    let config = scenario.prepare("fleet".as_ref())?.world(seed)?;
    let point = best(&record)?;
    let started = Instant::now();
    let RunResult { frames, missed, sent, .. } =
        world::run(&config, &record, |_| Box::new(Fixed::new(point)));
    let took = started.elapsed().as_secs_f64();
    let resident = peak_resident_bytes();
    let memory = resident.map_or_else(|| "unknown here".into(), |it| format!("{:.0} MB", it / 1e6));
    let detail = format!(
        "{} devices, {frames} frames in {} s of virtual time, {missed} of {sent} sent missed; peak \
         memory of the process {memory}, which may not exceed 1 GB",
        config.cameras,
        config.duration.as_secs()
    );
    let measured = Measurement::of(took, detail);
    Ok(Measurement { broken: resident.is_some_and(|it| it > FLEET_MEMORY), ..measured })
}

fn fidelity(lab: &Lab, q: f64) -> anyhow::Result<Measurement> {
    let runs = lab.once(compare)?;
    let at = |latency: &Histogram| {
        let micros = latency.quantile(q).context("no frame was answered")?;
        anyhow::Ok(micros as f64 / 1e3)
    };
    let (virtual_time, ideal) = (at(&runs.virtual_time)?, at(&runs.ideal)?);
    let real_time = at(&runs.real_time)?;
    let detail = format!(
        "capture to output of {} frames: real time {real_time:.2} ms, virtual time with QUIC \
         {virtual_time:.2} ms, with the ideal transport {ideal:.2} ms ({:+.1}%)",
        runs.frames,
        100.0 * (ideal / virtual_time - 1.0)
    );
    Ok(Measurement::of((virtual_time / real_time - 1.0).abs(), detail))
}

/// One camera on a mobile link, on all clocks.
fn compare(lab: &Lab) -> anyhow::Result<Fidelity> {
    let (mut config, record) = one_camera(lab)?;
    let record = Arc::new(record);
    (config.interval, config.duration) = (INTERVAL, INTERVAL * FRAMES);
    let point = best(&record)?;
    let simulated = |transport| {
        let config = WorldConfig { transport, ..config.clone() };
        world::run(&config, &record, |_| Box::new(Fixed::new(point))).latency
    };
    let (virtual_time, ideal) = (simulated(TransportKind::Quic), simulated(TransportKind::Ideal));
    let real = charged::run(&config, &record, lab.head()?, Box::new(Fixed::new(point)))?;
    ensure!(real.frames >= 2_000, "only {} frames were captured", real.frames);
    Ok(Fidelity { virtual_time, ideal, real_time: real.latency, frames: real.frames })
}

fn best(record: &Record) -> anyhow::Result<OperatingPoint> {
    record.largest_point().context("the ladder has no operating point")
}

/// The most memory that this process has held (bytes), where the system says so.
fn peak_resident_bytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    Some(status_field(&status, "VmHWM").ok()? as f64)
}
