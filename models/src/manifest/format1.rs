//! Format 1, which knew one task: it is read as a network of one decoder that classifies.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{
    DecoderSpec, FORMAT, FileSpec, FullSpec, InputSpec, Manifest, ManifestError, PointSpec,
    SplitSpec, WidthSpec, ensure,
};

/// The number of the format.
pub(super) const FORMAT_1: i64 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Manifest1 {
    #[serde(rename = "format")]
    _format: i64,
    name: String,
    version: String,
    task: String,
    labels: Vec<String>,
    input: InputSpec,
    full: FullSpec,
    splits: Vec<Split1>,
    #[serde(default)]
    points: Vec<PointSpec>,
    files: BTreeMap<String, FileSpec>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Split1 {
    name: String,
    latent: [u16; 3],
    channels: Vec<u16>,
    features: [u16; 3],
    trunk: String,
    widths: Vec<WidthSpec>,
}

impl Manifest1 {
    /// The same as the current format says it.
    pub(super) fn upgrade(self) -> Result<Manifest, ManifestError> {
        ensure(self.task == "classification", "task", || {
            format!("{:?} is not a task of format 1; only \"classification\" is", self.task)
        })?;
        let trunk = |split: &Split1| (split.name.clone(), split.trunk.clone());
        let decoder = DecoderSpec {
            trunk: self.splits.iter().map(trunk).collect(),
            ..DecoderSpec::classification(self.labels)
        };
        let split = |split: Split1| SplitSpec {
            name: split.name,
            latent: split.latent,
            channels: split.channels,
            features: vec![split.features.map(usize::from).to_vec()],
            widths: split.widths,
        };
        Ok(Manifest {
            format: FORMAT,
            name: self.name,
            version: self.version,
            input: self.input,
            full: self.full,
            splits: self.splits.into_iter().map(split).collect(),
            decoders: vec![decoder],
            points: self.points,
            files: self.files,
        })
    }
}
