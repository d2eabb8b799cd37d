//! The import of a network from elsewhere: it is cut, calibrated, measured and written as a bundle.

mod card;
mod error;
mod folder;
mod measure;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isthmus_proto::OperatingPoint;

pub use self::error::ImportError;
use self::folder::Folder;
use crate::bundle::Bundle;
use crate::calibrate::Calibration;
use crate::cut::{Cut, Parts, WholeModel};
use crate::engine::{Engine, TensorView};
use crate::manifest::{
    DecoderSpec, FORMAT, FullSpec, InputSpec, Manifest, QuantiserSpec, SplitSpec, WidthSpec,
    check_name,
};
use crate::network::Network;
use crate::outcomes::OUTCOMES;
use crate::photo::Photo;
use crate::prepared::RunError;
use crate::preprocess::Preprocessor;
use crate::profile::test_picture;

/// Parts of the channels that may be sent where nothing else is asked for, in quarters.
const QUARTERS: [usize; 4] = [1, 2, 3, 4];

/// Name of the only width of a model that was not trained to be slimmed.
const WIDTH: &str = "w100";

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

/// The engines that an import computes with.
#[derive(Clone, Copy)]
pub struct ImportEngines<'a> {
    /// Calibrates and measures.
    pub engine: &'a dyn Engine,
    /// Computes the reference values that the bundle is verified against: they say something of an
    /// engine only if another computed them.
    pub reference: &'a dyn Engine,
}

impl Import {
    /// Cuts `model` at `tensor`, calibrates a quantiser and tables for each depth, and writes a
    /// bundle to the folder `out`, which must not be there yet. Where there is something to measure
    /// on, every operating point is measured with the written bundle and the real codec. `log` gets
    /// a line for every step and for every picture that cannot be read.
    ///
    /// The same model, pictures and engines give the same files.
    pub fn write(
        &self,
        model: &WholeModel,
        tensor: &str,
        engines: ImportEngines<'_>,
        out: &Path,
        log: &mut dyn FnMut(String),
    ) -> Result<Arc<Bundle>, ImportError> {
        let cut = model.cut_at(tensor)?;
        check_name("name", &self.name)?;
        let depths = self.depths()?;
        let layers = self.layers(cut.shape[0])?;
        if out.symlink_metadata().is_ok() {
            return Err(ImportError::Exists(out.to_owned()));
        }
        // Written beside its place, so that there is never half a bundle in it.
        let mut partial = out.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let steps = Steps { import: self, model, cut, depths, layers, engines };
        let moved = steps.write(&partial, log).and_then(|()| {
            fs::rename(&partial, out).map_err(|source| ImportError::Io { file: out.into(), source })
        });
        if let Err(error) = moved {
            // What is left of it helps nobody, and why it cannot be removed is not the failure to
            // report.
            let _ = fs::remove_dir_all(&partial);
            return Err(error);
        }
        Ok(Arc::new(Bundle::open(out)?))
    }

    /// The quantiser depths, each once.
    fn depths(&self) -> Result<BTreeSet<u8>, ImportError> {
        let depths: BTreeSet<u8> = self.bits.iter().copied().collect();
        match depths.is_empty() || depths.iter().any(|bits| !(1..=8).contains(bits)) {
            false => Ok(depths),
            true => Err(ImportError::Value(format!("bits must be 1 to 8, not {:?}", self.bits))),
        }
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
}

/// An import whose values have been checked, step by step.
struct Steps<'a> {
    import: &'a Import,
    model: &'a WholeModel,
    cut: &'a Cut,
    depths: BTreeSet<u8>,
    /// Channel counts that may be sent.
    layers: Vec<u16>,
    engines: ImportEngines<'a>,
}

impl Steps<'_> {
    /// Writes the bundle to the folder `root`.
    fn write(&self, root: &Path, log: &mut dyn FnMut(String)) -> Result<(), ImportError> {
        let calibration = self.calibrate(log)?;
        let mut folder = Folder::create(root)?;
        let mut manifest = self.write_graphs(&mut folder, &calibration)?;
        folder.write_manifest(&mut manifest)?;

        // From here on what was written is used as any other bundle.
        let bundle = Arc::new(Bundle::open(root)?);
        let golden = golden(Arc::clone(&bundle), self.engines.reference)?;
        folder.put("goldens/000.safetensors".into(), &golden)?;
        let network = Network::load(bundle, self.engines.engine)?;
        let outcomes = measure::outcomes(&network, &self.import.measuring, log)?;
        if let Some(outcomes) = &outcomes {
            let packed = outcomes.pack();
            let packed =
                packed.map_err(|source| ImportError::Io { file: OUTCOMES.into(), source })?;
            folder.put(OUTCOMES.into(), &packed)?;
            outcomes.describe(&mut manifest);
        }
        folder.write_manifest(&mut manifest)?;
        let frames = outcomes.map_or(0, |outcomes| outcomes.frames());
        let Import { origin, calibration, .. } = self.import;
        folder.write_card(&card::text(origin, calibration.len(), self.cut, &manifest, frames))
    }

    fn input(&self) -> InputSpec {
        let [width, height] = self.model.size();
        InputSpec { mean: self.import.mean, std: self.import.std, ..InputSpec::new(width, height) }
    }

    /// Runs the head on every picture to calibrate with.
    fn calibrate(&self, log: &mut dyn FnMut(String)) -> Result<Calibration, ImportError> {
        let Steps { import, model, cut, engines, .. } = self;
        let [channels, height, width] = cut.shape;
        let unordered: Vec<usize> = (0..channels).collect();
        let head = model.cut(&cut.tensor, &unordered)?.head;
        let head = engines.engine.load(&head, &format!("the head up to {}", cut.tensor))?;
        let input = self.input();
        let preprocessor = Preprocessor::new(&input);
        let mut calibration = Calibration::new(channels, height * width, import.calibration.len());
        let (mut data, mut used) = (Vec::new(), 0);
        for photo in &import.calibration {
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
            0 => Err(ImportError::NothingToCalibrate(import.calibration.len())),
            _ => Ok(calibration),
        }
    }

    /// Writes graphs and tables, and gives the manifest that describes them.
    fn write_graphs(
        &self,
        folder: &mut Folder,
        calibration: &Calibration,
    ) -> Result<Manifest, ImportError> {
        let Steps { import, model, cut, .. } = self;
        let order = calibration.order();
        let Parts { head, trunk } = model.cut(&cut.tensor, &order)?;
        let input = self.input();
        let split = format!("s{}", (input.height as usize).div_ceil(cut.shape[1]));
        let tag = format!("{split}_{WIDTH}");
        let latent = cut.shape.map(|side| side as u16);
        let mut quantisers = Vec::new();
        for &bits in self.depths.iter().rev() {
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
            exit_quality: 0.0,
            quantisers,
        };
        let split = SplitSpec {
            latent,
            channels: self.layers.clone(),
            features: vec![cut.shape.to_vec()],
            widths: vec![width],
            name: split,
        };
        let trunk = folder.put(format!("onnx/trunk_{}.onnx", split.name), &trunk)?;
        let decoder = DecoderSpec {
            trunk: [(split.name.clone(), trunk)].into(),
            ..DecoderSpec::classification(import.labels.iter().cloned())
        };
        Ok(Manifest {
            format: FORMAT,
            name: import.name.clone(),
            version: import.version.clone(),
            decoders: vec![decoder],
            input,
            full: FullSpec {
                file: folder.put("onnx/full.onnx".into(), &model.whole())?,
                macs: model.macs(),
                parameters: model.parameters(),
                quality: 0.0,
            },
            splits: vec![split],
            points: Vec::new(),
            files: BTreeMap::new(),
        })
    }
}

/// The file of reference values of a bundle: of one picture, at the deepest quantiser with all
/// channels.
fn golden(bundle: Arc<Bundle>, reference: &dyn Engine) -> Result<Vec<u8>, ImportError> {
    let point = bundle.all_points().pop().ok_or(RunError::Point { split: 0, width: 0 })?;
    let network = Network::load(Arc::clone(&bundle), reference)?;
    let golden = network.golden::<ImportError>(point, test_picture(320, 240)?, true)?;
    Ok(golden.to_bytes(bundle.manifest()))
}
