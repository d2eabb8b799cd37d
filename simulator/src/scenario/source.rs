//! Where a scenario's frames come from: a bundle's record of outcomes, or a record by itself.

use std::fs;
use std::path::{Path, PathBuf};

use isthmus_models::{Bundle, InputSpec, OUTCOMES, Outcomes};

use super::check::Checker;
use super::{Scenario, ScenarioError};
use crate::bundles;
use crate::digest::digest;
use crate::world::{DeviceSpec, Macs, Record};

/// A record of outcomes, and what only a bundle knows.
pub(super) struct Source {
    pub(super) record: Record,
    /// SHA-256 of the record's file.
    pub(super) digest: String,
    pub(super) macs: Macs,
    /// The networks' input; without it, pictures are taken to be square.
    pub(super) input: Option<InputSpec>,
}

impl Source {
    /// Reads what `scenario` names, from `folder`. The full network may run on a `device` that is
    /// known to be done with it before the deadline.
    pub(super) fn read(
        scenario: &Scenario,
        folder: &Path,
        device: &DeviceSpec,
        check: Checker<'_>,
    ) -> Result<Source, ScenarioError> {
        let (packed, file, mut macs, input) = match (&scenario.bundle, &scenario.record) {
            (Some(bundle), None) => {
                let dir = bundles::find_near(bundle, folder)?;
                let unusable = |error| ScenarioError::Bundle(Box::new(error));
                let bundle = Bundle::open(&dir).map_err(unusable)?;
                let packed = bundle.read(OUTCOMES).map_err(unusable)?;
                let input = bundle.manifest().input.clone();
                (packed, dir.join(OUTCOMES), macs(&bundle), Some(input))
            }
            (None, Some(record)) => {
                let file = folder.join(record);
                (read(&file)?, file, Macs::default(), None)
            }
            _ => return Err(check.bad("bundle", "exactly one of bundle and record is needed")),
        };
        let local = device.full_time(macs.full);
        macs.full = match local.is_some_and(|time| time < scenario.deadline_ms) {
            true => macs.full.max(1),
            false => 0,
        };
        let outcomes = Outcomes::unpack(&packed)
            .map_err(|cause| ScenarioError::Outcomes { file: file.clone(), cause })?;
        let record = Record::new(&outcomes, &macs)
            .map_err(|cause| ScenarioError::Record { file: file.clone(), cause })?;
        Ok(Source { record, digest: digest(&packed), macs, input })
    }
}

fn read(file: &PathBuf) -> Result<Vec<u8>, ScenarioError> {
    fs::read(file).map_err(|cause| ScenarioError::Io { file: file.clone(), cause })
}

/// Multiply-accumulates of a bundle's networks.
fn macs(bundle: &Bundle) -> Macs {
    let manifest = bundle.manifest();
    let heads = manifest.splits.iter().flat_map(|split| {
        let name = |width: &str| format!("{}/{width}", split.name);
        split.widths.iter().map(move |width| (name(&width.name), width.head_macs))
    });
    Macs { heads: heads.collect(), full: manifest.full.macs }
}
