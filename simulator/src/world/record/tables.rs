//! A record's names and outcomes by number.

use std::collections::{BTreeMap, BTreeSet};

use isthmus_head_client::Measured;
use isthmus_models::{ImageSpec, Outcome, Outcomes, PointName, PointOutcomes, RecordedPoint};
use isthmus_proto::OperatingPoint;

use super::RecordError;

/// Most bytes of a frame: 128 packets.
pub(super) const MAX_FRAME: u32 = 128 * 1_200;

/// The names of a record in order: splits as they come, which is the bundle's order, widths and bit
/// depths by the number in their name, channel counts as layers.
#[derive(Default)]
struct Numbering {
    splits: Vec<String>,
    widths: BTreeMap<String, BTreeSet<(u32, String)>>,
    channels: BTreeMap<String, BTreeSet<u16>>,
}

impl Numbering {
    fn new(outcomes: &Outcomes) -> Numbering {
        let mut numbering = Numbering::default();
        for PointOutcomes { point, .. } in outcomes.points() {
            match point {
                RecordedPoint::Full | RecordedPoint::Image(_) => {}
                RecordedPoint::Exit { split, width } => numbering.add(split, width),
                RecordedPoint::Split(name) => {
                    let channels = numbering.channels.entry(name.split.clone()).or_default();
                    channels.insert(name.channels);
                    numbering.add(&name.split, &name.width);
                }
            }
        }
        numbering
    }

    fn add(&mut self, split: &str, width: &str) {
        let number = |name: &str| -> (u32, String) {
            let digits: String = name.chars().filter(char::is_ascii_digit).collect();
            (digits.parse().unwrap_or(0), name.to_owned())
        };
        if !self.splits.iter().any(|known| known == split) {
            self.splits.push(split.to_owned());
        }
        self.widths.entry(split.to_owned()).or_default().insert(number(width));
    }

    /// A head by split and width.
    fn head(&self, split: &str, width: &str) -> Result<(u8, u8), RecordError> {
        let at_split = self.splits.iter().position(|name| name == split);
        let widths = self.widths.get(split);
        let at_width = widths.and_then(|widths| widths.iter().position(|(_, name)| name == width));
        Ok((number(at_split)?, number(at_width)?))
    }

    fn point(&self, name: &PointName) -> Result<OperatingPoint, RecordError> {
        let (split, width) = self.head(&name.split, &name.width)?;
        let channels = self.channels.get(&name.split);
        let layer = channels.and_then(|all| all.iter().position(|&it| it == name.channels));
        Ok(OperatingPoint { split, width, layers: number(layer)? + 1, bits: name.bits })
    }
}

/// A place as an operating point numbers it.
fn number(at: Option<usize>) -> Result<u8, RecordError> {
    at.and_then(|at| u8::try_from(at).ok()).filter(|&at| at < 16).ok_or(RecordError::Many)
}

/// What was recorded of every frame.
#[derive(Clone, Debug, Default)]
pub(super) struct Tables {
    pub(super) points: BTreeMap<OperatingPoint, Vec<Outcome>>,
    pub(super) images: BTreeMap<ImageSpec, Vec<Outcome>>,
    /// Of the full network, where the device may run it.
    pub(super) full: Option<Vec<Outcome>>,
    pub(super) exits: BTreeMap<(u8, u8), Vec<Outcome>>,
    pub(super) names: BTreeMap<OperatingPoint, PointName>,
    pub(super) heads: BTreeMap<(u8, u8), String>,
}

impl Tables {
    /// The full network's outcomes count where the device may run it (`with_full`).
    pub(super) fn new(outcomes: &Outcomes, with_full: bool) -> Result<Tables, RecordError> {
        let numbering = Numbering::new(outcomes);
        let mut tables = Tables::default();
        for recorded @ PointOutcomes { point, frames } in outcomes.points() {
            match point {
                RecordedPoint::Full => tables.full = with_full.then(|| frames.clone()),
                RecordedPoint::Image(image) => {
                    check_sizes(recorded)?;
                    tables.images.insert(*image, frames.clone());
                }
                RecordedPoint::Exit { split, width } => {
                    let head = numbering.head(split, width)?;
                    tables.exits.insert(head, frames.clone());
                    tables.heads.insert(head, format!("{split}/{width}"));
                }
                RecordedPoint::Split(name) => {
                    let point = numbering.point(name)?;
                    check_sizes(recorded)?;
                    tables.points.insert(point, frames.clone());
                    tables.names.insert(point, name.clone());
                }
            }
        }
        if tables.points.is_empty() {
            return Err(RecordError::NoPoint);
        }
        for (point, name) in &tables.names {
            if !tables.exits.contains_key(&(point.split, point.width)) {
                return Err(RecordError::NoExit(name.split.clone(), name.width.clone()));
            }
        }
        Ok(tables)
    }

    /// The even frames: what a controller may know.
    pub(super) fn known(&self) -> Measured {
        let even =
            |frames: &[Outcome]| -> Vec<Outcome> { frames.iter().step_by(2).copied().collect() };
        let mut known = Measured::default();
        known.exits.extend(self.exits.iter().map(|(&head, frames)| (head, even(frames))));
        let points = self.points.iter().map(|(&point, frames)| (point.into(), even(frames)));
        known.runs.extend(points);
        let full = self.full.as_ref().map(|frames| (isthmus_head_client::Run::Local, even(frames)));
        known.runs.extend(full);
        self.images.iter().for_each(|(&image, frames)| known.add_image(image, &even(frames)));
        known
    }
}

/// An error if a frame of what is sent is too large or too small to be simulated.
fn check_sizes(PointOutcomes { point, frames }: &PointOutcomes) -> Result<(), RecordError> {
    match frames.iter().position(|it| !(1..=MAX_FRAME).contains(&it.bytes)) {
        None => Ok(()),
        Some(frame) => {
            let (point, bytes) = (point.to_string(), frames[frame].bytes);
            Err(RecordError::Size { point, frame, bytes })
        }
    }
}
