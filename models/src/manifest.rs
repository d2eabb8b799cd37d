//! `manifest.toml`: what a bundle holds. The format is described in `BUNDLE.md` beside this crate.

mod decoder;
mod format1;

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

pub use self::decoder::{DecoderSpec, OutputSpec, Task};
use self::format1::{FORMAT_1, Manifest1};

/// The bundle format that this crate writes; it reads format 1 as well.
pub const FORMAT: i64 = 2;

/// Largest file a bundle may hold (bytes).
pub const MAX_FILE_BYTES: u64 = 512 << 20;

/// Why a manifest was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// No TOML, a key that is missing, unknown or of the wrong type.
    #[error("{0}")]
    Syntax(String),
    /// Another format than this crate reads.
    #[error("format: this is bundle format {0}; only 1 and {FORMAT} are understood")]
    Format(i64),
    /// A value that cannot be meant.
    #[error("{key}: {problem}")]
    Value {
        /// Path of the key, with lists by position: `splits[0].widths[1].head`.
        key: String,
        /// What was found and what is needed.
        problem: String,
    },
}

/// A bundle's manifest. [`Manifest::parse`] gives only ones that hold together.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Format version, [`FORMAT`].
    pub format: i64,
    /// The bundle's name: letters, digits, `-`, `_`, `.`; at most 64.
    pub name: String,
    /// Version of the weights.
    pub version: String,
    /// The network's input.
    pub input: InputSpec,
    /// The network in one piece.
    pub full: FullSpec,
    /// Where it can be cut: 1 to 16 places.
    pub splits: Vec<SplitSpec>,
    /// What it answers: 1 to 16 tasks. The first is the one that exits answer.
    pub decoders: Vec<DecoderSpec>,
    /// Operating points that were measured.
    #[serde(default)]
    pub points: Vec<PointSpec>,
    /// Every file of the bundle but the manifest and the model card, by its path with `/`.
    pub files: BTreeMap<String, FileSpec>,
}

/// The network's input: f32 `[3, height, width]`, `(v / 255 − mean) / std` of each channel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputSpec {
    /// Width (pixels), 1 to 4096.
    pub width: u32,
    /// Height (pixels), 1 to 4096.
    pub height: u32,
    /// Subtracted from each channel, of 0..=1, in the order of `channels`.
    pub mean: [f32; 3],
    /// Divides each channel, > 0, in the order of `channels`.
    pub std: [f32; 3],
    /// How a picture of another shape is brought to the input's.
    #[serde(default)]
    pub fit: Fit,
    /// The order of the input's channels.
    #[serde(default)]
    pub channels: ChannelOrder,
    /// Red, green and blue of what a letterboxed picture leaves free, 0 to 255.
    #[serde(default = "grey")]
    pub fill: [u8; 3],
}

/// How a picture of another shape is brought to the input's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fit {
    /// The largest centred part of the input's shape is kept.
    #[default]
    Crop,
    /// All of it is kept, in its own shape, in the middle of the input.
    Letterbox,
    /// All of it is kept, in the input's shape.
    Stretch,
}

/// The order of the input's channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChannelOrder {
    /// Red first.
    #[default]
    Rgb,
    /// Blue first.
    Bgr,
}

/// The grey that detectors are commonly trained with.
fn grey() -> [u8; 3] {
    [114; 3]
}

/// The network in one piece.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FullSpec {
    /// ONNX file, picture → the outputs of every decoder, in the decoders' order.
    pub file: String,
    /// Multiply-accumulates for one picture.
    pub macs: u64,
    /// Weights.
    pub parameters: u64,
    /// Mean quality of its answers to validation pictures, 0..=1: for classes the fraction that are
    /// right. 0 where it was not measured.
    #[serde(alias = "accuracy")]
    pub quality: f64,
}

/// A place where the network is cut.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitSpec {
    /// Name: `s` and the stride of the latent grid.
    pub name: String,
    /// Shape of the latents: `[C, h, w]`.
    pub latent: [u16; 3],
    /// Latent channels that may be sent, increasing to C: layer *i* holds those from the count
    /// before it up to `channels[i]`.
    pub channels: Vec<u16>,
    /// Shape of each tensor that the decoders' trunks take, without the batch's dimension: 1 to 16 of
    /// 1 to 4 dimensions. The adapter gives them in this order.
    pub features: Vec<Vec<usize>>,
    /// Encoder widths: 1 to 16.
    pub widths: Vec<WidthSpec>,
}

/// One width of a split's encoder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WidthSpec {
    /// Name: `w` and the percentage of the encoder's channels.
    pub name: String,
    /// ONNX file, picture → latents and, where there is an exit, its logits: one for each label of the
    /// first decoder.
    pub head: String,
    /// ONNX file, latents → features; without one the latents are the features.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<String>,
    /// Whether the head has an early exit. Without one, `exit_parameters` and `exit_quality` are 0,
    /// and a frame that the server does not answer stays without an answer.
    #[serde(default = "has_exit", skip_serializing_if = "Clone::clone")]
    pub exit: bool,
    /// Multiply-accumulates of the head for one picture.
    pub head_macs: u64,
    /// Weights of the head without its exit.
    pub head_parameters: u64,
    /// Weights of the exit.
    pub exit_parameters: u64,
    /// Mean quality of the exit's answers to validation pictures, 0..=1.
    #[serde(alias = "exit_accuracy")]
    pub exit_quality: f64,
    /// One quantiser for each bit depth.
    pub quantisers: Vec<QuantiserSpec>,
}

/// A quantiser and its entropy coder's tables.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantiserSpec {
    /// Bits of a symbol, 1 to 8.
    pub bits: u8,
    /// Step of each channel.
    pub scale: Vec<f32>,
    /// Symbol that stands for zero, of each channel.
    pub zero_point: Vec<i32>,
    /// Value of a channel that was not sent, of each channel.
    pub prior_mean: Vec<f32>,
    /// File of frequencies, one table a channel.
    pub tables: String,
    /// File of frequencies by context, which then code the symbols in place of `tables`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contexts: Option<String>,
}

/// A measured operating point.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PointSpec {
    /// A split's name.
    pub split: String,
    /// A width's name.
    pub width: String,
    /// Latent channels sent, one of the split's `channels`.
    pub channels: u16,
    /// Bit depth of one of the width's quantisers.
    pub bits: u8,
    /// Mean quality of the answers to validation pictures, 0..=1.
    #[serde(alias = "accuracy")]
    pub quality: f64,
    /// Mean length of the coded stream (bytes).
    pub bytes_mean: f64,
    /// Median length (bytes).
    pub bytes_p50: f64,
    /// 99th percentile of the length (bytes).
    pub bytes_p99: f64,
}

/// What fixes a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Length (bytes), at most [`MAX_FILE_BYTES`].
    pub bytes: u64,
    /// SHA-256: 64 hexadecimal digits.
    pub sha256: String,
}

impl Manifest {
    /// Reads and checks a manifest.
    ///
    /// ```
    /// use isthmus_models::{Manifest, ManifestError};
    /// let error = Manifest::parse("format = 3").unwrap_err();
    /// assert_eq!(error, ManifestError::Format(3));
    /// ```
    pub fn parse(text: &str) -> Result<Manifest, ManifestError> {
        // The version comes first: another format's keys are not this one's to judge.
        let table: toml::Table = text.parse().map_err(syntax)?;
        let manifest = match table.get("format") {
            Some(toml::Value::Integer(FORMAT)) => toml::from_str(text).map_err(syntax)?,
            Some(toml::Value::Integer(FORMAT_1)) => {
                toml::from_str::<Manifest1>(text).map_err(syntax)?.upgrade()?
            }
            Some(toml::Value::Integer(other)) => return Err(ManifestError::Format(*other)),
            _ => return Err(value("format", format!("must be there and be 1 or {FORMAT}"))),
        };
        manifest.check()?;
        Ok(manifest)
    }

    /// Files that the manifest's other parts name, with the key that names them.
    pub fn referenced_files(&self) -> Vec<(String, &str)> {
        let mut files = vec![("full.file".to_owned(), self.full.file.as_str())];
        for (s, split) in self.splits.iter().enumerate() {
            for (w, width) in split.widths.iter().enumerate() {
                let key = format!("splits[{s}].widths[{w}]");
                files.push((format!("{key}.head"), &width.head));
                if let Some(adapter) = &width.adapter {
                    files.push((format!("{key}.adapter"), adapter));
                }
                for (q, quantiser) in width.quantisers.iter().enumerate() {
                    let key = format!("{key}.quantisers[{q}]");
                    files.push((format!("{key}.tables"), &quantiser.tables));
                    let contexts = quantiser.contexts.iter();
                    files.extend(contexts.map(|file| (format!("{key}.contexts"), file.as_str())));
                }
            }
        }
        for (d, decoder) in self.decoders.iter().enumerate() {
            let trunks = decoder.trunk.iter();
            files.extend(
                trunks.map(|(split, file)| (format!("decoders[{d}].trunk.{split}"), file.as_str())),
            );
        }
        files
    }

    /// Shape of every output of the full network, without the batch's dimension.
    pub fn output_shapes(&self) -> Vec<&[usize]> {
        let outputs = self.decoders.iter().flat_map(|decoder| &decoder.outputs);
        outputs.map(|output| output.shape.as_slice()).collect()
    }

    fn check(&self) -> Result<(), ManifestError> {
        check_name("name", &self.name)?;
        self.input.check()?;
        check_fraction("full.quality", self.full.quality)?;
        check_count("splits", self.splits.len())?;
        check_distinct("splits", self.splits.iter().map(|split| split.name.as_str()))?;
        for (s, split) in self.splits.iter().enumerate() {
            split.check(&format!("splits[{s}]"))?;
        }
        check_count("decoders", self.decoders.len())?;
        check_distinct("decoders", self.decoders.iter().map(|decoder| decoder.name.as_str()))?;
        let splits: Vec<&str> = self.splits.iter().map(|split| split.name.as_str()).collect();
        for (d, decoder) in self.decoders.iter().enumerate() {
            decoder.check(&format!("decoders[{d}]"), &splits)?;
        }
        self.check_exits()?;
        for (p, point) in self.points.iter().enumerate() {
            self.check_point(&format!("points[{p}]"), point)?;
        }
        self.check_files()
    }

    /// An exit answers by the labels of the first decoder.
    fn check_exits(&self) -> Result<(), ManifestError> {
        let labelled = self.decoders.first().is_some_and(|first| !first.labels.is_empty());
        for (s, split) in self.splits.iter().enumerate() {
            for (w, width) in split.widths.iter().enumerate() {
                ensure(labelled || !width.exit, &format!("splits[{s}].widths[{w}].exit"), || {
                    "must be false where the first decoder has no labels".into()
                })?;
            }
        }
        Ok(())
    }

    fn check_point(&self, key: &str, point: &PointSpec) -> Result<(), ManifestError> {
        let split = self.splits.iter().find(|split| split.name == point.split);
        let split = split.ok_or_else(|| {
            value(&format!("{key}.split"), format!("unknown split {:?}", point.split))
        })?;
        let width = split.widths.iter().find(|width| width.name == point.width);
        let width = width.ok_or_else(|| {
            let problem = format!("split {} has no width {:?}", split.name, point.width);
            value(&format!("{key}.width"), problem)
        })?;
        ensure(split.channels.contains(&point.channels), &format!("{key}.channels"), || {
            format!("must be one of {:?}, not {}", split.channels, point.channels)
        })?;
        let known = width.quantisers.iter().any(|quantiser| quantiser.bits == point.bits);
        ensure(known, &format!("{key}.bits"), || {
            format!(
                "split {}, width {} has no {}-bit quantiser",
                split.name, width.name, point.bits
            )
        })?;
        check_fraction(&format!("{key}.quality"), point.quality)?;
        for (name, bytes) in [
            ("bytes_mean", point.bytes_mean),
            ("bytes_p50", point.bytes_p50),
            ("bytes_p99", point.bytes_p99),
        ] {
            ensure(bytes.is_finite() && bytes >= 0.0, &format!("{key}.{name}"), || {
                format!("must be a length in bytes, not {bytes}")
            })?;
        }
        Ok(())
    }

    fn check_files(&self) -> Result<(), ManifestError> {
        for (path, file) in &self.files {
            let key = format!("files.{path:?}");
            check_path(&key, path)?;
            ensure(file.bytes <= MAX_FILE_BYTES, &format!("{key}.bytes"), || {
                format!("must be at most {MAX_FILE_BYTES}, not {}", file.bytes)
            })?;
            let hex = file.sha256.len() == 64 && file.sha256.bytes().all(|b| b.is_ascii_hexdigit());
            ensure(hex, &format!("{key}.sha256"), || "must be 64 hexadecimal digits".into())?;
        }
        for (key, path) in self.referenced_files() {
            check_path(&key, path)?;
            ensure(self.files.contains_key(path), &key, || {
                format!("{path:?} is not listed under [files]")
            })?;
        }
        Ok(())
    }
}

impl InputSpec {
    /// An input of these sides (pixels) whose values are a picture's levels as fractions of 255; pictures
    /// are cropped.
    pub fn new(width: u32, height: u32) -> InputSpec {
        InputSpec {
            width,
            height,
            mean: [0.0; 3],
            std: [1.0; 3],
            fit: Fit::default(),
            channels: ChannelOrder::default(),
            fill: grey(),
        }
    }

    /// The channel that holds a colour: 0 for red, 1 for green, 2 for blue.
    pub(crate) fn channel_of(&self, colour: usize) -> usize {
        match self.channels {
            ChannelOrder::Rgb => colour,
            ChannelOrder::Bgr => 2 - colour,
        }
    }

    /// Shape of one prepared picture: `[1, 3, height, width]`.
    pub fn shape(&self) -> [usize; 4] {
        [1, 3, self.height as usize, self.width as usize]
    }

    fn check(&self) -> Result<(), ManifestError> {
        for (key, side) in [("input.width", self.width), ("input.height", self.height)] {
            ensure((1..=4096).contains(&side), key, || format!("must be 1 to 4096, not {side}"))?;
        }
        let finite = self.mean.iter().all(|mean| mean.is_finite());
        ensure(finite, "input.mean", || format!("must be finite, not {:?}", self.mean))?;
        let positive = self.std.iter().all(|std| std.is_normal() && *std > 0.0);
        ensure(positive, "input.std", || format!("must be greater than 0, not {:?}", self.std))
    }
}

impl SplitSpec {
    /// Shape of one picture's latents: `[1, C, h, w]`.
    pub fn latent_shape(&self) -> [usize; 4] {
        let [c, h, w] = self.latent.map(usize::from);
        [1, c, h, w]
    }

    /// Whether the latents are the trunks' features as they are, so that no adapter is needed.
    pub fn latents_are_features(&self) -> bool {
        self.features == [self.latent.map(usize::from)]
    }

    fn check(&self, key: &str) -> Result<(), ManifestError> {
        check_name(&format!("{key}.name"), &self.name)?;
        let shape = self.latent;
        let sane = shape[0] <= 8192 && shape[1] <= 1024 && shape[2] <= 1024;
        ensure(sane && !shape.contains(&0), &format!("{key}.latent"), || {
            format!("must be 1 to 8192 channels of 1 to 1024 × 1024 places, not {shape:?}")
        })?;
        check_count(&format!("{key}.features"), self.features.len())?;
        for (f, shape) in self.features.iter().enumerate() {
            check_shape(&format!("{key}.features[{f}]"), shape)?;
        }
        let channels = &self.channels;
        let increasing = channels.first().is_some_and(|&first| first > 0)
            && channels.windows(2).all(|pair| pair[0] < pair[1])
            && channels.last() == Some(&self.latent[0]);
        ensure(increasing, &format!("{key}.channels"), || {
            format!(
                "must increase from above 0 to {} (latent's first), not {channels:?}",
                self.latent[0]
            )
        })?;
        check_count(&format!("{key}.channels"), channels.len())?;
        check_count(&format!("{key}.widths"), self.widths.len())?;
        let names = self.widths.iter().map(|width| width.name.as_str());
        check_distinct(&format!("{key}.widths"), names)?;
        for (w, width) in self.widths.iter().enumerate() {
            let key = format!("{key}.widths[{w}]");
            width.check(&key)?;
            let adapted = width.adapter.is_some() || self.latents_are_features();
            ensure(adapted, &format!("{key}.adapter"), || {
                let SplitSpec { latent, features, .. } = self;
                format!("is needed where latent, {latent:?}, and features, {features:?}, differ")
            })?;
        }
        Ok(())
    }
}

impl WidthSpec {
    fn check(&self, key: &str) -> Result<(), ManifestError> {
        check_name(&format!("{key}.name"), &self.name)?;
        check_fraction(&format!("{key}.exit_quality"), self.exit_quality)?;
        let nothing = self.exit_parameters == 0 && self.exit_quality == 0.0;
        ensure(self.exit || nothing, &format!("{key}.exit"), || {
            "is false, so exit_parameters and exit_quality must be 0".into()
        })?;
        let depths: BTreeSet<u8> = self.quantisers.iter().map(|q| q.bits).collect();
        let distinct = depths.len() == self.quantisers.len() && !depths.is_empty();
        ensure(distinct, &format!("{key}.quantisers"), || {
            "needs at least one quantiser, and no two of the same bits".into()
        })
    }
}

fn has_exit() -> bool {
    true
}

fn syntax(error: toml::de::Error) -> ManifestError {
    ManifestError::Syntax(error.to_string().trim_end().to_owned())
}

fn value(key: &str, problem: String) -> ManifestError {
    ManifestError::Value { key: key.to_owned(), problem }
}

fn ensure(holds: bool, key: &str, problem: impl FnOnce() -> String) -> Result<(), ManifestError> {
    if holds { Ok(()) } else { Err(value(key, problem())) }
}

/// Names end up in paths, on command lines and, joined by `/`, in the names of points.
pub(crate) fn check_name(key: &str, name: &str) -> Result<(), ManifestError> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    let sane = plain && (1..=64).contains(&name.len()) && !name.starts_with('.');
    ensure(sane, key, || {
        format!(
            "must be 1 to 64 letters, digits, '-', '_' or '.', not beginning with '.'; it is {name:?}"
        )
    })
}

/// Most values of one tensor of one picture.
const MAX_TENSOR_VALUES: usize = 64 << 20;

/// Tensors that a trunk takes or gives, without the batch's dimension.
fn check_shape(key: &str, shape: &[usize]) -> Result<(), ManifestError> {
    let values = shape.iter().try_fold(1usize, |values, &side| values.checked_mul(side));
    let sane = values.is_some_and(|values| (1..=MAX_TENSOR_VALUES).contains(&values));
    ensure(sane && (1..=4).contains(&shape.len()), key, || {
        format!("must be 1 to 4 extents of at most {MAX_TENSOR_VALUES} values, not {shape:?}")
    })
}

/// Splits, widths and layers have four bits each of a packet's header.
fn check_count(key: &str, count: usize) -> Result<(), ManifestError> {
    ensure((1..=16).contains(&count), key, || format!("must have 1 to 16 entries, not {count}"))
}

fn check_distinct<'a>(
    key: &str,
    names: impl Iterator<Item = &'a str>,
) -> Result<(), ManifestError> {
    let mut seen = BTreeSet::new();
    for name in names {
        ensure(seen.insert(name), key, || format!("{name:?} is there twice"))?;
    }
    Ok(())
}

fn check_fraction(key: &str, fraction: f64) -> Result<(), ManifestError> {
    ensure((0.0..=1.0).contains(&fraction), key, || format!("must be 0 to 1, not {fraction}"))
}

/// A bundle's files lie inside it: nothing may lead out of its folder.
fn check_path(key: &str, path: &str) -> Result<(), ManifestError> {
    let inside = path.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    let plain = !path.contains(['\\', ':', '\0']);
    ensure(inside && plain && path.len() <= 255, key, || {
        format!("{path:?} must be a relative path inside the bundle, without '.' or '..'")
    })
}
