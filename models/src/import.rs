//! A model of one's own, cut and calibrated, written as a bundle.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use isthmus_proto::{
    BundleDigest, CodecError, Envelope, OperatingPoint, QuantiserError, write_packet,
};
use sha2::{Digest, Sha256};

use crate::bundle::{Bundle, BundleError, MANIFEST, PointName};
use crate::calibrate::Calibration;
use crate::classify::top_k;
use crate::cut::{Cut, CutError, Parts, WholeModel};
use crate::engine::{Engine, EngineError, TensorView};
use crate::manifest::{
    FORMAT, FileSpec, FullSpec, InputSpec, Manifest, ManifestError, PointSpec, QuantiserSpec,
    SplitSpec, WidthSpec, check_name,
};
use crate::network::Network;
use crate::outcomes::OUTCOMES;
use crate::photo::Photo;
use crate::picture::PictureError;
use crate::prepared::{LoadError, RunError};
use crate::preprocess::Preprocessor;
use crate::profile::test_picture;
use crate::tail::TailItem;

/// Parts of the channels that may be sent where nothing else is asked for, in quarters.
const QUARTERS: [usize; 4] = [1, 2, 3, 4];

/// Time left in the envelopes that sizes are told with: as many bytes as the default deadline's.
const TIME_LEFT: Duration = Duration::from_millis(100);

/// Name of the only width of a model that was not trained to be slimmed.
const WIDTH: &str = "w100";

/// Why no bundle was written.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Something is where the bundle should go.
    #[error("{}: is there already", .0.display())]
    Exists(PathBuf),
    /// A file or folder that cannot be read or written.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file or folder.
        file: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Pictures, but none to calibrate with.
    #[error("none of the {0} pictures to calibrate with can be read")]
    NothingToCalibrate(usize),
    /// Depths or channel counts that no bundle can have.
    #[error("{0}")]
    Value(String),
    /// The cut is not there.
    #[error(transparent)]
    Cut(#[from] CutError),
    /// The head does not load or run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A name or label that no manifest can have.
    #[error("{MANIFEST}: {0}")]
    Manifest(#[from] ManifestError),
    /// The manifest has no form in TOML.
    #[error("{MANIFEST}: {0}")]
    Toml(#[from] toml::ser::Error),
    /// Latents that no quantiser can take.
    #[error("calibration: {0}")]
    Quantiser(#[from] QuantiserError),
    /// The written bundle does not open.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// One of its graphs does not load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// One of its graphs does not run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Its codec does not take what its head gives.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// No picture for the reference values.
    #[error(transparent)]
    Picture(#[from] PictureError),
}

/// What a bundle is made with, besides the model and the cut.
#[derive(Clone, Debug)]
pub struct Import {
    /// The bundle's name.
    pub name: String,
    /// Version of the weights.
    pub version: String,
    /// The model's origin in words, for the model card.
    pub origin: String,
    /// Name of each class; no two alike.
    pub labels: Vec<String>,
    /// Subtracted from each channel, of 0..=1.
    pub mean: [f32; 3],
    /// Divides each channel, > 0.
    pub std: [f32; 3],
    /// Quantiser depths, 1 to 8.
    pub bits: Vec<u8>,
    /// Channel counts that may be sent, besides all; if empty, a quarter, a half and three.
    pub channels: Vec<u16>,
    /// Pictures to calibrate with.
    pub calibration: Vec<Photo>,
    /// Pictures to measure accuracy and bytes on; those without a class are left out.
    pub measuring: Vec<Photo>,
}

impl Import {
    /// Cuts `model` at `tensor`, calibrates a quantiser and tables for each depth, and writes a
    /// bundle to the folder `out`, which must not be there yet. Where there is something to measure
    /// on, every operating point is measured with the written bundle and the real codec. `log` gets
    /// a line for every step and for every picture that cannot be read.
    ///
    /// The same model, pictures and engine give the same files.
    pub fn write(
        &self,
        model: &WholeModel,
        tensor: &str,
        engine: &dyn Engine,
        out: &Path,
        log: &mut dyn FnMut(String),
    ) -> Result<Arc<Bundle>, ImportError> {
        let cut = model.cut_at(tensor)?;
        check_name("name", &self.name)?;
        let depths: BTreeSet<u8> = self.bits.iter().copied().collect();
        if depths.is_empty() || depths.iter().any(|bits| !(1..=8).contains(bits)) {
            return Err(ImportError::Value(format!("bits must be 1 to 8, not {:?}", self.bits)));
        }
        let layers = self.layers(cut.shape[0])?;
        if out.symlink_metadata().is_ok() {
            return Err(ImportError::Exists(out.to_owned()));
        }
        // Written beside its place, so that there is never half a bundle in it.
        let mut partial = out.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let written = self.write_to(&partial, model, cut, &depths, layers, engine, log);
        let moved = written.and_then(|()| {
            fs::rename(&partial, out).map_err(|source| ImportError::Io { file: out.into(), source })
        });
        if let Err(error) = moved {
            // What is left of it helps nobody; that it cannot be removed is not the failure to tell.
            let _ = fs::remove_dir_all(&partial);
            return Err(error);
        }
        Ok(Arc::new(Bundle::open(out)?))
    }

    #[expect(clippy::too_many_arguments, reason = "the steps of one procedure")]
    fn write_to(
        &self,
        root: &Path,
        model: &WholeModel,
        cut: &Cut,
        depths: &BTreeSet<u8>,
        layers: Vec<u16>,
        engine: &dyn Engine,
        log: &mut dyn FnMut(String),
    ) -> Result<(), ImportError> {
        let [width, height] = model.size();
        let input = InputSpec { width, height, mean: self.mean, std: self.std };
        let calibration = self.calibrate(model, cut, &input, engine, log)?;
        let order = calibration.order();
        let Parts { head, trunk } = model.cut(&cut.tensor, &order)?;

        let mut folder = Folder::create(root)?;
        let split = format!("s{}", (height as usize).div_ceil(cut.shape[1]));
        let tag = format!("{split}_{WIDTH}");
        let latent = cut.shape.map(|side| side as u16);
        let mut quantisers = Vec::new();
        for &bits in depths.iter().rev() {
            let calibrated = calibration.calibrate(bits, &order)?;
            quantisers.push(QuantiserSpec {
                bits,
                scale: calibrated.scale,
                zero_point: calibrated.zero_point,
                prior_mean: calibrated.prior_mean,
                tables: folder.put(format!("tables/{tag}_b{bits}.cdf"), &calibrated.tables)?,
                contexts: None,
            });
        }
        let width = WidthSpec {
            name: WIDTH.into(),
            head: folder.put(format!("onnx/head_{tag}.onnx"), &head)?,
            adapter: None,
            exit: false,
            head_macs: cut.head_macs,
            head_parameters: cut.head_parameters,
            exit_parameters: 0,
            exit_accuracy: 0.0,
            quantisers,
        };
        let split = SplitSpec {
            latent,
            channels: layers,
            features: latent,
            trunk: folder.put(format!("onnx/trunk_{split}.onnx"), &trunk)?,
            widths: vec![width],
            name: split,
        };
        let mut manifest = Manifest {
            format: FORMAT,
            name: self.name.clone(),
            version: self.version.clone(),
            task: "classification".into(),
            labels: self.labels.clone(),
            input,
            full: FullSpec {
                file: folder.put("onnx/full.onnx".into(), &model.whole())?,
                macs: model.macs(),
                parameters: model.parameters(),
                accuracy: 0.0,
            },
            splits: vec![split],
            points: Vec::new(),
            files: BTreeMap::new(),
        };
        folder.write_manifest(&mut manifest)?;

        // From here on what was written is used as any other bundle.
        let bundle = Arc::new(Bundle::open(root)?);
        let network = Network::load(bundle, engine)?;
        // Reference values at the deepest quantiser with all channels.
        let point = network.points().next_back();
        let point = point.ok_or(RunError::Point { split: 0, width: 0 })?;
        let golden = network.golden::<ImportError>(point, test_picture(320, 240)?, true)?;
        let golden = golden.to_bytes(&manifest);
        folder.put("goldens/000.safetensors".into(), &golden)?;
        let measured = network.measure(&self.measuring, log)?;
        if let Some(Measured { outcomes, accuracy, points, .. }) = &measured {
            folder.put(OUTCOMES.into(), outcomes)?;
            manifest.full.accuracy = *accuracy;
            manifest.points.clone_from(points);
        }
        folder.write_manifest(&mut manifest)?;
        let frames = measured.map_or(0, |measured| measured.frames);
        let card = self.card(&manifest, cut, frames);
        let file = root.join("MODEL_CARD.md");
        fs::write(&file, card).map_err(|source| ImportError::Io { file, source })
    }

    /// The channel counts that may be sent, of `all`.
    fn layers(&self, all: usize) -> Result<Vec<u16>, ImportError> {
        let wrong = |&count: &u16| count == 0 || usize::from(count) > all;
        if let Some(count) = self.channels.iter().copied().find(wrong) {
            let problem = format!("channels must be 1 to {all}, the cut's, not {count}");
            return Err(ImportError::Value(problem));
        }
        let mut layers: BTreeSet<u16> = match self.channels.is_empty() {
            true => QUARTERS.iter().map(|quarter| (all * quarter).div_ceil(4) as u16).collect(),
            false => self.channels.iter().copied().collect(),
        };
        layers.insert(all as u16);
        let most = usize::from(OperatingPoint::MAX_LAYERS);
        match layers.len() <= most {
            true => Ok(layers.into_iter().collect()),
            false => Err(ImportError::Value(format!("at most {most} channel counts"))),
        }
    }

    fn calibrate(
        &self,
        model: &WholeModel,
        cut: &Cut,
        input: &InputSpec,
        engine: &dyn Engine,
        log: &mut dyn FnMut(String),
    ) -> Result<Calibration, ImportError> {
        let [channels, height, width] = cut.shape;
        let unordered: Vec<usize> = (0..channels).collect();
        let head = model.cut(&cut.tensor, &unordered)?.head;
        let head = engine.load(&head, &format!("the head up to {}", cut.tensor))?;
        let preprocessor = Preprocessor::new(input);
        let mut calibration = Calibration::new(channels, height * width, self.calibration.len());
        let (mut data, mut used) = (Vec::new(), 0);
        for photo in &self.calibration {
            match photo.read() {
                Ok(picture) => preprocessor.run(&picture, &mut data),
                Err(problem) => {
                    log(format!("{}: {problem}", photo.path.display()));
                    continue;
                }
            }
            let outputs = head.run(&[TensorView { shape: &input.shape(), data: &data }])?;
            calibration.add(outputs.first().map_or(&[], |latents| &latents.data));
            used += 1;
        }
        log(format!("calibrated on {used} pictures"));
        match used {
            0 => Err(ImportError::NothingToCalibrate(self.calibration.len())),
            _ => Ok(calibration),
        }
    }

    fn card(&self, manifest: &Manifest, cut: &Cut, frames: usize) -> String {
        let Manifest { name, version, full, .. } = manifest;
        let Cut { tensor, op, head_macs, tail_macs, .. } = cut;
        let mut card = format!(
            "# {name} {version}\n\n{}, cut at `{tensor}` ({op}): {:.1} MMAC before it, {:.1} MMAC \
             behind it. Its weights are as they were; the quantiser was calibrated on {} pictures. \
             The head has no early exit.\n",
            self.origin,
            *head_macs as f64 / 1e6,
            *tail_macs as f64 / 1e6,
            self.calibration.len(),
        );
        if frames == 0 {
            return card + "\nNothing was measured: no picture's class was known.\n";
        }
        card += &format!(
            "\n## Measured\n\nOn {frames} pictures, with the real codec; bytes with header and \
             envelope. The uncut network is right on {:.2}%.\n\n\
             | point | right % | mean bytes | p50 | p99 |\n|---|---|---|---|---|\n",
            100.0 * full.accuracy
        );
        for point in &manifest.points {
            let PointSpec { split, width, channels, bits, accuracy, .. } = point;
            card += &format!(
                "| {split}/{width}/c{channels}/b{bits} | {:.2} | {} | {} | {} |\n",
                100.0 * accuracy,
                point.bytes_mean,
                point.bytes_p50,
                point.bytes_p99
            );
        }
        card
    }
}

/// A bundle's folder while it is written.
struct Folder {
    root: PathBuf,
    files: BTreeMap<String, FileSpec>,
}

impl Folder {
    fn create(root: &Path) -> Result<Folder, ImportError> {
        let io = |source| ImportError::Io { file: root.to_owned(), source };
        match fs::remove_dir_all(root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        for folder in ["onnx", "tables", "goldens"] {
            fs::create_dir_all(root.join(folder)).map_err(io)?;
        }
        Ok(Folder { root: root.to_owned(), files: BTreeMap::new() })
    }

    /// Writes a file and gives its name.
    fn put(&mut self, name: String, bytes: &[u8]) -> Result<String, ImportError> {
        let file = self.root.join(&name);
        fs::write(&file, bytes).map_err(|source| ImportError::Io { file, source })?;
        let sha256 = BundleDigest(Sha256::digest(bytes).into()).to_string();
        self.files.insert(name.clone(), FileSpec { bytes: bytes.len() as u64, sha256 });
        Ok(name)
    }

    fn write_manifest(&self, manifest: &mut Manifest) -> Result<(), ImportError> {
        manifest.files.clone_from(&self.files);
        let text = toml::to_string(manifest)?;
        Manifest::parse(&text)?;
        let file = self.root.join(MANIFEST);
        fs::write(&file, text).map_err(|source| ImportError::Io { file, source })
    }
}

/// What operating points did on pictures whose class is known.
struct Measured {
    frames: usize,
    /// Of the uncut network.
    accuracy: f64,
    points: Vec<PointSpec>,
    /// The bundle's file of outcomes.
    outcomes: Vec<u8>,
}

/// What one operating point did.
#[derive(Default)]
struct Tally {
    right: usize,
    bytes: Vec<usize>,
}

/// What is measured of a bundle of one split and one width.
impl Network {
    /// Answers every picture of known class whole and at every point; `None` if there is none.
    fn measure(
        &self,
        photos: &[Photo],
        log: &mut dyn FnMut(String),
    ) -> Result<Option<Measured>, ImportError> {
        let points: Vec<(OperatingPoint, PointName)> =
            self.points().map(|point| (point, self.bundle.describe_point(point))).collect();
        let preprocessor = Preprocessor::new(&self.bundle.manifest().input);
        let (mut full, mut tallies) = (0, BTreeMap::<&PointName, Tally>::new());
        let (mut frames, mut input) = (0, Vec::new());
        let mut rows = "frame,label,point,bytes,right,confidence\n".to_owned();
        for photo in photos {
            let Some(label) = photo.class else { continue };
            match photo.read() {
                Ok(picture) => preprocessor.run(&picture, &mut input),
                Err(problem) => {
                    log(format!("{}: {problem}", photo.path.display()));
                    continue;
                }
            }
            let mut row = |point: &dyn std::fmt::Display, bytes: usize, logits: &[f32]| {
                let (class, confidence) = top_k(logits, 1).first().copied().unwrap_or((0, 0.0));
                let right = class == label;
                // A network that gives NaN is sure of nothing.
                let confidence = if confidence.is_finite() { confidence } else { 0.0 };
                rows += &format!(
                    "{frames},{label},{point},{bytes},{},{confidence:.4}\n",
                    u8::from(right)
                );
                right
            };
            let (sizes, latents) = self.send(&points, &input, frames)?;
            let item = |latents| TailItem { split: 0, width: 0, latents };
            let items: Vec<TailItem<'_>> = latents.iter().map(|it| item(it.as_slice())).collect();
            let answers = self.tail.run(&items)?;
            for (((_, name), bytes), logits) in points.iter().zip(sizes).zip(&answers) {
                let tally = tallies.entry(name).or_default();
                tally.right += usize::from(row(name, bytes, logits));
                tally.bytes.push(bytes);
            }
            let logits = self.full.run(&[&input])?;
            full += usize::from(row(&"full", 0, logits.first().map_or(&[], Vec::as_slice)));
            frames += 1;
        }
        log(format!("measured on {frames} pictures of known class"));
        if frames == 0 {
            return Ok(None);
        }
        let share = |right: usize| (1e5 * right as f64 / frames as f64).round() / 1e5;
        let spec = |(name, mut tally): (&PointName, Tally)| {
            tally.bytes.sort_unstable();
            let rank = |percent: usize| tally.bytes[(frames * percent).div_ceil(100) - 1] as f64;
            let mean = tally.bytes.iter().sum::<usize>() as f64 / frames as f64;
            PointSpec {
                split: name.split.clone(),
                width: name.width.clone(),
                channels: name.channels,
                bits: name.bits,
                accuracy: share(tally.right),
                bytes_mean: (10.0 * mean).round() / 10.0,
                bytes_p50: rank(50),
                bytes_p99: rank(99),
            }
        };
        let outcomes = zstd::encode_all(rows.as_bytes(), 19);
        let outcomes =
            outcomes.map_err(|source| ImportError::Io { file: OUTCOMES.into(), source })?;
        let points = tallies.into_iter().map(spec).collect();
        Ok(Some(Measured { frames, accuracy: share(full), points, outcomes }))
    }

    /// Runs the head on a picture and codes it at every point: bytes sent, and the latents that the
    /// server has then.
    fn send(
        &self,
        points: &[(OperatingPoint, PointName)],
        input: &[f32],
        frame: usize,
    ) -> Result<(Vec<usize>, Vec<Vec<f32>>), ImportError> {
        let latents = self.head.run(0, 0, input)?.latents;
        let mut envelope = Vec::new();
        Envelope { frame: frame as u16, time_left: TIME_LEFT, probe: false }.write(&mut envelope);
        let (mut sizes, mut arrived) = (Vec::new(), Vec::new());
        let mut packet = Vec::new();
        for &(point, _) in points {
            let codec = self.codec(point)?;
            let symbols = codec.quantise(&latents, point.layers.into())?;
            let coded = codec.encode(&symbols)?;
            packet.clone_from(&envelope);
            write_packet(&mut packet, 0, &self.bundle.digest(), point, &coded);
            sizes.push(packet.len());
            let mut decoded = Vec::new();
            codec.dequantise(&symbols, &mut decoded)?;
            arrived.push(decoded);
        }
        Ok((sizes, arrived))
    }

    /// Every point, by layers, then by depth.
    fn points(&self) -> impl DoubleEndedIterator<Item = OperatingPoint> {
        let split = &self.bundle.manifest().splits[0];
        let mut depths: Vec<u8> = split.widths[0].quantisers.iter().map(|q| q.bits).collect();
        depths.sort_unstable();
        (1..=split.channels.len() as u8).flat_map(move |layers| {
            let point = move |bits| OperatingPoint { split: 0, width: 0, layers, bits };
            depths.clone().into_iter().map(point)
        })
    }
}
