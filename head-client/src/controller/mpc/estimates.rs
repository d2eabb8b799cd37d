//! What an [`Mpc`](crate::Mpc) has learnt of the network, the server, the device and the camera.

use std::collections::BTreeMap;
use std::time::Duration;

use isthmus_proto::Timestamp;

use super::costs::{Conditions, Lateness, RungCost};
use crate::controller::conformal::Conformal;
use crate::controller::ladder::{Ladder, LadderRung};
use crate::controller::run::{Load, Run};
use crate::controller::statistics::{Smoothed, ms};
use crate::controller::transfer::{Prediction, TransferTime};

/// By what fraction the base round trip is forgotten with every reply: routes change.
const BASE_FORGOTTEN: f64 = 1e-3;

/// A path is unsteady if replies deviate from their prediction by this fraction of the deadline.
const UNSTEADY_NOISE: f64 = 0.01;

/// Longer than any deadline (ms).
const TOO_LONG: f64 = 1e7;

/// The interval between frames before one was seen (ms).
const FIRST_INTERVAL: f64 = 100.0;

/// Estimates of everything that a decision depends on.
#[derive(Debug)]
pub(super) struct Estimates {
    pub(super) transfer: TransferTime,
    pub(super) conformal: Conformal,
    /// Time on the server (ms).
    pub(super) server: Smoothed,
    /// The shortest round trip of a frame without bytes (ms), slowly forgotten.
    base_round_trip: f64,
    /// Time of the runs on the device (ms).
    device: BTreeMap<Load, Smoothed>,
    /// Time between frames: given, or else measured (ms).
    pub(super) given_interval: Option<Duration>,
    interval: Smoothed,
    /// D: the most time left that a frame had, which fresh frames will have.
    pub(super) deadline: Duration,
}

impl Estimates {
    /// Estimates without samples. `target` is the fraction of frames that is to exceed the margin.
    pub(super) fn new(target: f64, given_interval: Option<Duration>) -> Self {
        Estimates {
            transfer: TransferTime::new(None),
            conformal: Conformal::new(target),
            server: Smoothed::default(),
            base_round_trip: f64::INFINITY,
            device: BTreeMap::new(),
            given_interval,
            interval: Smoothed::default(),
            deadline: Duration::ZERO,
        }
    }

    /// Another connection, perhaps over another path: forgets what was learnt of the network.
    pub(super) fn reset_network(&mut self, round_trip: Option<Duration>, target: f64) {
        self.transfer = TransferTime::new(round_trip);
        self.base_round_trip = f64::INFINITY;
        self.conformal = Conformal::new(target);
    }

    /// A frame's turn came `since_last` after the one before, with so much time left.
    pub(super) fn on_turn(&mut self, since_last: Option<Duration>, time_left: Duration) {
        if let Some(since_last) = since_last {
            self.interval.update(ms(since_last));
        }
        self.deadline = self.deadline.max(time_left);
    }

    /// A run took the device so long (ms). What slows one run, such as heat, slows all: the others'
    /// means are scaled alike.
    pub(super) fn on_run(&mut self, load: Load, took: f64) {
        let before = self.device.get(&load).and_then(|known| known.mean);
        let known = self.device.entry(load).or_default();
        known.update(took);
        let (Some(before), Some(after)) = (before, known.mean) else { return };
        for (_, other) in self.device.iter_mut().filter(|(other, _)| **other != load) {
            other.mean = other.mean.map(|mean| mean * after / before.max(1e-3));
        }
    }

    /// A reply to `bytes` came whose transfer took `own`, or at most that if it `is_upper_bound`.
    pub(super) fn on_transfer(
        &mut self,
        now: Timestamp,
        bytes: usize,
        own: Duration,
        is_upper_bound: bool,
        receive_span: Duration,
    ) {
        // An upper bound shows something only if it is less than expected.
        if !is_upper_bound || own < self.transfer.predict(now, bytes).mean {
            self.transfer.on_sample(now, bytes, own);
        }
        let round_trip = ms(self.transfer.round_trip());
        self.base_round_trip = (self.base_round_trip * (1.0 + BASE_FORGOTTEN)).min(round_trip);
        self.transfer.on_dispersion(now, bytes, receive_span);
    }

    /// Mean and standard deviation of the time in the network and on the server (ms).
    pub(super) fn predict(&self, now: Timestamp, bytes: usize) -> (f64, f64) {
        let Prediction { mean, deviation } = self.transfer.predict(now, bytes);
        let mean = ms(mean) + self.server.mean.unwrap_or(0.0);
        (mean, ms(deviation).hypot(self.server.standard_deviation()).max(0.1))
    }

    pub(super) fn lateness(&self) -> Lateness {
        Lateness::new(self.conformal.margin())
    }

    /// The conditions that all rungs share.
    pub(super) fn conditions(&self) -> Conditions {
        let deadline = ms(self.deadline).max(1.0);
        let measured = || self.interval.mean.unwrap_or(FIRST_INTERVAL);
        let queue = (ms(self.transfer.round_trip()) - self.base_round_trip).max(0.0);
        Conditions {
            interval: self.given_interval.map_or_else(measured, ms),
            deadline: ms(self.deadline),
            unsteadiness: (ms(self.transfer.noise()) / (UNSTEADY_NOISE * deadline)).min(1.0),
            queue: (queue / deadline).min(1.0),
            lateness: self.lateness(),
        }
    }

    /// The costs of all rungs to plan with, and their gains where sending costs nothing.
    pub(super) fn costs(&self, ladder: &Ladder, now: Timestamp) -> Vec<RungCost> {
        let lateness = self.lateness();
        let cost = |&at: &usize| {
            let rung = &ladder.rungs()[at];
            let bytes = rung.bytes.ceil() as usize;
            let device = self.device.get(&rung.run.load()).copied().unwrap_or_default();
            let (mean, deviation) = self.predict(now, bytes);
            let device_mean = device.mean.unwrap_or_else(|| self.guess_device_time(ladder, rung));
            let device_deviation = device.standard_deviation().max(1e-3);
            let slack = ms(self.deadline) - device_mean - mean;
            let (quality, sent) = ladder.policy(at, 0.0);
            RungCost {
                rung: at,
                bytes: rung.bytes,
                mean,
                deviation,
                serialisation: ms(self.transfer.serialisation(bytes)),
                charged: ms(self.transfer.optimistic_serialisation(now, bytes)),
                device: device_mean,
                device_deviation,
                is_measured: device.mean.is_some(),
                usually_late: lateness.of_run(slack, deviation, device_deviation),
                quality,
                sent,
                exit: ladder.exit_quality(at, None),
            }
        };
        ladder.planned().iter().map(cost).collect()
    }

    /// A guess at the time of a run that the device has not done yet (ms): zero, so that it is tried;
    /// for the full network its work at the heads' best speed, because trying it would keep the device
    /// busy for long.
    fn guess_device_time(&self, ladder: &Ladder, rung: &LadderRung) -> f64 {
        if rung.run != Run::Local {
            return 0.0;
        }
        let per_mac = |other: &LadderRung| {
            let took = self.device.get(&other.run.load())?.mean?;
            (other.macs > 0).then(|| took / other.macs as f64)
        };
        let best = ladder.rungs().iter().filter_map(per_mac).reduce(f64::min);
        best.map_or(TOO_LONG, |per_mac| (per_mac * rung.macs as f64).min(TOO_LONG))
    }
}
