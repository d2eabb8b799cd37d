//! A decoder: one of the questions that a network answers.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{ManifestError, check_count, check_distinct, check_name, check_shape, ensure};
use crate::detect::BoxesSpec;

/// Most labels of a decoder: a box names its class in 16 bits.
const MAX_LABELS: usize = 1 << 16;
/// Most classes of a map: a place names its class in a byte.
const MAX_MAP_LABELS: usize = 1 << 8;

/// What a decoder's answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Task {
    /// One of several classes. Output: logits `[K]`.
    Classification,
    /// Boxes with a class each.
    Detection,
    /// A class for every place. Output: logits `[K, h, w]`.
    Segmentation,
    /// A value for every place, such as a depth in metres. Output: `[h, w]` or `[1, h, w]`.
    Regression,
    /// The outputs as they come.
    Tensors,
}

impl Task {
    /// Its name in a manifest.
    pub const fn name(self) -> &'static str {
        match self {
            Task::Classification => "classification",
            Task::Detection => "detection",
            Task::Segmentation => "segmentation",
            Task::Regression => "regression",
            Task::Tensors => "tensors",
        }
    }
}

/// One of the questions that a network answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecoderSpec {
    /// The decoder's name, by which answers are told apart.
    pub name: String,
    /// What its answer is.
    pub task: Task,
    /// Name of each class, no two alike; none where the answer has no classes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// ONNX file of each split: features → this decoder's outputs.
    pub trunk: BTreeMap<String, String>,
    /// The trunks' outputs, in their order: 1 to 16.
    pub outputs: Vec<OutputSpec>,
    /// Of a detection: how the outputs become boxes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boxes: Option<BoxesSpec>,
}

/// An output of a trunk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSpec {
    /// Its name; a graph's outputs are known by their order.
    pub name: String,
    /// Extents without the batch's.
    pub shape: Vec<usize>,
    /// Type of its values: `f32`.
    pub dtype: String,
}

impl OutputSpec {
    /// An output of 32-bit floats.
    pub fn f32(name: &str, shape: Vec<usize>) -> OutputSpec {
        OutputSpec { name: name.to_owned(), shape, dtype: "f32".into() }
    }

    /// Values for one picture.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no values; a manifest that was parsed has no such output.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl DecoderSpec {
    /// A decoder named `class` that classifies by these labels, without trunks.
    pub fn classification(labels: impl IntoIterator<Item = String>) -> DecoderSpec {
        let labels: Vec<String> = labels.into_iter().collect();
        DecoderSpec {
            name: "class".into(),
            task: Task::Classification,
            trunk: BTreeMap::new(),
            outputs: vec![OutputSpec::f32("logits", vec![labels.len()])],
            labels,
            boxes: None,
        }
    }

    /// Confidence from which boxes count, 0..=1; 0 where the answer has no boxes.
    pub fn confidence(&self) -> f32 {
        self.boxes.as_ref().map_or(0.0, |boxes| boxes.confidence)
    }

    /// Checks the decoder at `key` of a network with these splits.
    pub(super) fn check(&self, key: &str, splits: &[&str]) -> Result<(), ManifestError> {
        check_name(&format!("{key}.name"), &self.name)?;
        check_distinct(&format!("{key}.labels"), self.labels.iter().map(String::as_str))?;
        for split in splits {
            ensure(self.trunk.contains_key(*split), &format!("{key}.trunk"), || {
                format!("names no file for split {split:?}")
            })?;
        }
        let unknown = self.trunk.keys().find(|split| !splits.contains(&split.as_str()));
        ensure(unknown.is_none(), &format!("{key}.trunk"), || {
            format!("there is no split {:?}", unknown.map_or("", String::as_str))
        })?;
        check_count(&format!("{key}.outputs"), self.outputs.len())?;
        for (o, output) in self.outputs.iter().enumerate() {
            let key = format!("{key}.outputs[{o}]");
            ensure(output.dtype == "f32", &format!("{key}.dtype"), || {
                format!("must be \"f32\", not {:?}", output.dtype)
            })?;
            check_shape(&format!("{key}.shape"), &output.shape)?;
        }
        self.check_task(key)
    }

    /// Labels and outputs have to be what the task needs.
    fn check_task(&self, key: &str) -> Result<(), ManifestError> {
        let (labels, classes) = (format!("{key}.labels"), self.labels.len());
        let most = match self.task {
            Task::Classification | Task::Detection => MAX_LABELS,
            Task::Segmentation => MAX_MAP_LABELS,
            Task::Regression | Task::Tensors => 0,
        };
        ensure(classes <= most, &labels, || {
            format!("a {} has at most {most} labels, not {classes}", self.task.name())
        })?;
        ensure(classes > 0 || most == 0, &labels, || "needs at least one label".into())?;
        ensure(
            self.boxes.is_some() == (self.task == Task::Detection),
            &format!("{key}.boxes"),
            || "is what a detection has, and no other task".into(),
        )?;
        let fits = |shape: &[usize]| match (self.task, shape) {
            (Task::Classification, &[k]) | (Task::Segmentation, &[k, _, _]) => k == classes,
            (Task::Regression, &[_, _] | &[1, _, _]) => true,
            (Task::Detection | Task::Tensors, _) => true,
            _ => false,
        };
        let dense = matches!(self.task, Task::Detection | Task::Tensors);
        ensure(dense || self.outputs.len() == 1, &format!("{key}.outputs"), || {
            format!("a {} has one output, not {}", self.task.name(), self.outputs.len())
        })?;
        let odd = self.outputs.iter().position(|output| !fits(&output.shape));
        let Some(at) = odd else { return Ok(()) };
        ensure(false, &format!("{key}.outputs[{at}].shape"), || {
            let expected = match self.task {
                Task::Classification => format!("[{classes}], one value a label"),
                Task::Segmentation => format!("[{classes}, height, width], a map a label"),
                _ => "[height, width]".to_owned(),
            };
            format!("must be {expected}, not {:?}", self.outputs[at].shape)
        })
    }
}
