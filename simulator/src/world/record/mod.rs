//! A record of outcomes as a world uses it: what every run makes of every frame, and what a
//! controller may know of that.

mod control_variate;
mod expected;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use isthmus_head_client::{HeadRun, ImageRun, Ladder, LadderError, Load, Run};
use isthmus_models::{ImageSpec, Outcome, Outcomes, PointName};
use isthmus_proto::OperatingPoint;

use expected::Expected;
use tables::Tables;

pub use control_variate::ControlVariate;

/// How large networks are, where it is known: what a record does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Macs {
    /// Multiply-accumulates of heads by name, such as `s16/w100`.
    pub heads: BTreeMap<String, u64>,
    /// Of the full network; 0 keeps it off the device.
    pub full: u64,
}

/// Why a record cannot be simulated.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// There is nothing to send.
    #[error("the record has no operating point; at least one like s16/w100/c16/b6 is needed")]
    NoPoint,
    /// A head whose exit was not recorded.
    #[error("the record has no {0}/{1}/exit, though points of that head")]
    NoExit(String, String),
    /// A frame too large for a simulated one.
    #[error(
        "{point}: frame {frame} has {bytes} bytes; a simulated one has 1 to {}",
        tables::MAX_FRAME
    )]
    Size {
        /// The point.
        point: String,
        /// The frame.
        frame: usize,
        /// Its size (bytes).
        bytes: u32,
    },
    /// Too few to keep what is known apart from what is drawn.
    #[error(
        "the record has {0} frames; at least 64 are needed: half to calibrate, half to simulate"
    )]
    Few(usize),
    /// More names than an operating point can number.
    #[error("the record has more than 16 splits, widths or channel counts")]
    Many,
    /// No ladder can be made.
    #[error(transparent)]
    Ladder(#[from] LadderError),
}

/// A record by what is run.
///
/// Its frames are divided: controllers know what the even ones say on average ([`Record::ladder`]),
/// the odd ones are drawn ([`Record::played`]), so that nobody is judged by what it learnt from.
/// What the even ones say of an odd one, at its exit's confidence, is what can be expected of it.
#[derive(Clone, Debug)]
pub struct Record {
    labels: Vec<u32>,
    tables: Tables,
    expected: Expected,
    control_variates: BTreeMap<Load, Vec<ControlVariate>>,
    ladder: Arc<Ladder>,
}

impl Record {
    /// Numbers the record's names as their bundle does: splits as they come, widths and bit depths in
    /// order of the number in their name, channel counts as layers.
    pub fn new(outcomes: &Outcomes, macs: &Macs) -> Result<Record, RecordError> {
        if outcomes.frames() < 64 {
            return Err(RecordError::Few(outcomes.frames()));
        }
        let tables = Tables::new(outcomes, macs.full > 0)?;
        let macs = |run: Run| match run.head().and_then(|head| tables.heads.get(&head)) {
            Some(head) => macs.heads.get(head).copied().unwrap_or(0),
            None => macs.full,
        };
        let ladder = Ladder::measured(&tables.known(), macs)?;
        let expected = Expected::new(&tables, &ladder, outcomes.frames() / 2);
        let mut record = Record {
            labels: outcomes.labels().to_vec(),
            tables,
            expected,
            control_variates: BTreeMap::new(),
            ladder: Arc::new(ladder.thinned()),
        };
        let size = |run, at| record.run_outcome(run, at).map_or(0, |outcome| outcome.bytes);
        let Expected { runs, exits } = &record.expected;
        record.control_variates =
            control_variate::control_variates(&record.ladder, runs, exits, size);
        Ok(record)
    }

    /// What a controller may know and choose from: sizes and qualities by confidence, over the
    /// even frames, of what is worth a place.
    pub fn ladder(&self) -> &Arc<Ladder> {
        &self.ladder
    }

    /// Frames that can be drawn: the odd ones.
    pub fn played(&self) -> usize {
        self.labels.len() / 2
    }

    /// True class of the `at`-th frame that can be drawn.
    pub fn label(&self, at: usize) -> usize {
        self.labels[2 * at + 1] as usize
    }

    /// What a point made of it.
    pub fn outcome(&self, point: OperatingPoint, at: usize) -> Option<Outcome> {
        self.tables.points.get(&point).map(|frames| frames[2 * at + 1])
    }

    /// What the full network made of it, compressed in this way.
    pub fn image_outcome(&self, image: ImageSpec, at: usize) -> Option<Outcome> {
        self.tables.images.get(&image).map(|frames| frames[2 * at + 1])
    }

    /// Its outcome where all of a run was sent, or the full network ran on the device.
    pub fn run_outcome(&self, run: Run, at: usize) -> Option<Outcome> {
        match run {
            Run::Head(run) => self.outcome(run.point(run.layers), at),
            Run::Image(run) => self.image_outcome(run.image, at),
            Run::Local => self.tables.full.as_ref().map(|frames| frames[2 * at + 1]),
        }
    }

    /// Its outcome where the first `layers` of a point arrived, and on how many it rests: what
    /// was not recorded is as good as the next less that was.
    pub fn outcome_of_layers(
        &self,
        point: OperatingPoint,
        layers: u8,
        at: usize,
    ) -> Option<(Outcome, u8)> {
        let known = |layers| Some((self.outcome(OperatingPoint { layers, ..point }, at)?, layers));
        (1..=layers).rev().find_map(known)
    }

    /// What a head's exit made of it.
    pub fn exit(&self, split: u8, width: u8, at: usize) -> Option<Outcome> {
        self.tables.exits.get(&(split, width)).map(|frames| frames[2 * at + 1])
    }

    /// How likely it is right about the `at`-th frame where all of a run is sent, as far as can be
    /// known.
    pub fn expected(&self, run: impl Into<Run>, at: usize) -> Option<f64> {
        self.expected.runs.get(&run.into()).map(|frames| frames[at])
    }

    /// How likely a head's exit is right about it, as far as can be known.
    pub fn expected_exit(&self, split: u8, width: u8, at: usize) -> Option<f64> {
        self.expected.exits.get(&(split, width)).map(|frames| frames[at])
    }

    /// By how much it is easier than frames are on average, for whoever runs `load`.
    pub fn control_variate(&self, load: Load, at: usize) -> ControlVariate {
        self.control_variates.get(&load).map_or_else(ControlVariate::default, |frames| frames[at])
    }

    /// Sizes up to and with each layer that `run` codes, envelope and header included. A layer at
    /// which nothing was recorded is as large as the next one that was.
    pub fn layer_ends(&self, run: HeadRun, at: usize) -> Vec<usize> {
        let mut ends = vec![0; usize::from(run.layers)];
        let mut next = 0;
        for layers in (1..=run.layers).rev() {
            if let Some(outcome) = self.outcome(run.point(layers), at) {
                next = outcome.bytes as usize;
            }
            ends[usize::from(layers) - 1] = next;
        }
        ends
    }

    /// The operating points, in order.
    pub fn points(&self) -> impl Iterator<Item = OperatingPoint> + '_ {
        self.tables.points.keys().copied()
    }

    /// The compressions of pictures that were recorded, in order.
    pub fn images(&self) -> impl Iterator<Item = ImageSpec> + '_ {
        self.tables.images.keys().copied()
    }

    /// The run of this name: an operating point such as `s16/w100/c16/b6`, a picture without a head
    /// such as `image/webp/160/q35`, or `local`.
    pub fn run(&self, name: &str) -> Option<Run> {
        if name == "local" {
            return self.tables.full.as_ref().map(|_| Run::Local);
        }
        if let Some(image) = name.strip_prefix("image/") {
            let image = self.images().find(|it| it.to_string() == image)?;
            return Some(Run::Image(ImageRun { image, exit: None }));
        }
        let point = self.tables.names.iter().find(|(_, known)| known.to_string() == name);
        point.map(|(point, _)| (*point).into())
    }

    /// The names of all that can be run.
    pub fn run_names(&self) -> Vec<String> {
        let points = self.tables.names.values().map(PointName::to_string);
        let images = self.images().map(|image| format!("image/{image}"));
        let full = self.tables.full.iter().map(|_| "local".to_owned());
        points.chain(images).chain(full).collect()
    }

    /// A run's name; that of a picture has the exit that is its fallback.
    pub fn name(&self, run: impl Into<Run>) -> String {
        match run.into() {
            Run::Head(run) => {
                let point = run.point(run.layers);
                self.tables
                    .names
                    .get(&point)
                    .map_or_else(|| point.to_string(), PointName::to_string)
            }
            Run::Image(ImageRun { image, exit }) => {
                let head = exit.and_then(|head| self.tables.heads.get(&head));
                let behind = head.map(|head| format!(" or {head}/exit")).unwrap_or_default();
                format!("image/{image}{behind}")
            }
            Run::Local => "local".into(),
        }
    }

    /// The largest of the ladder's points.
    pub fn largest_point(&self) -> Option<OperatingPoint> {
        let point = |run| match run {
            Run::Head(run) => Some(run.point(run.layers)),
            Run::Image(_) | Run::Local => None,
        };
        self.ladder.rungs().iter().rev().find_map(|rung| point(rung.run))
    }

    /// The heads of the ladder, each with the run of its smallest point.
    pub fn ladder_heads(&self) -> BTreeMap<(u8, u8), HeadRun> {
        let heads: BTreeSet<_> =
            self.ladder.rungs().iter().filter_map(|rung| rung.run.head()).collect();
        let first = |head: (u8, u8)| {
            let point = self.tables.points.keys().find(|point| (point.split, point.width) == head);
            point.map(|&point| (head, point.into()))
        };
        heads.into_iter().filter_map(first).collect()
    }

    /// The heads, by split and width, with their names such as `s16/w100`.
    pub fn heads(&self) -> &BTreeMap<(u8, u8), String> {
        &self.tables.heads
    }
}
