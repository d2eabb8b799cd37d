//! The import of a network from elsewhere: it is cut, calibrated, measured and written as a bundle.

mod card;
mod error;
mod folder;
mod measure;
mod mix;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isthmus_proto::OperatingPoint;

pub use self::error::ImportError;
use self::folder::Folder;
pub use self::mix::Rotate;
use self::mix::{Behind, Candidate, Traced, as_it_is, ratio};
use crate::bundle::Bundle;
use crate::calibrate::{Calibration, ContextTables};
use crate::cut::{Cut, Mix, ModelOutput, Parts, WholeModel};
use crate::detect::BoxesSpec;
use crate::engine::{Engine, TensorView};
use crate::manifest::{
    ChannelOrder, DecoderSpec, FORMAT, Fit, FullSpec, InputSpec, Manifest, OutputSpec,
    QuantiserSpec, SplitSpec, Task, WidthSpec, check_name,
};
use crate::network::Network;
use crate::outcomes::OUTCOMES;
use crate::photo::Photo;
use crate::prepared::RunError;
use crate::preprocess::Preprocessor;
use crate::profile::test_picture;
use crate::truth::Truth;

/// Parts of the channels that may be sent where nothing else is asked for, in quarters.
const QUARTERS: [usize; 4] = [1, 2, 3, 4];

/// Name of the whole model's own width; where it was not trained to be slimmed, of the only one.
const WIDTH: &str = "w100";
/// Pictures on which it is measured what errors of the latents do to the outputs.
const TRACED: usize = 4;
/// Values of whole pictures' channels that contexts are counted on, at most.
const WHOLE_VALUES: usize = 32 << 20;

/// What a bundle is made with, besides the model and the cut.
#[derive(Clone, Debug)]
pub struct Import {
    /// The bundle's name.
    pub name: String,
    /// Version of the weights.
    pub version: String,
    /// The model's origin in words, for the model card.
    pub origin: String,
    /// What the network answers.
    pub task: Task,
    /// Name of each class, no two alike; none where the answer has no classes.
    pub labels: Vec<String>,
    /// Of a detector: how its outputs become boxes.
    pub boxes: Option<BoxesSpec>,
    /// The boxes that are really in the pictures to measure on, in these labels.
    pub truth: Option<Truth>,
    /// How a picture of another shape is brought to the input's.
    pub fit: Fit,
    /// The order of the input's channels, and of `mean` and `std`.
    pub order: ChannelOrder,
    /// Red, green and blue of what a letterboxed picture leaves free.
    pub fill: [u8; 3],
    /// Subtracted from each channel, of 0..=1.
    pub mean: [f32; 3],
    /// Divides each channel, > 0.
    pub std: [f32; 3],
    /// Quantiser depths, 1 to 8.
    pub bits: Vec<u8>,
    /// Channel counts that may be sent, besides all; if empty, a quarter, a half and three. Of sums the
    /// largest count is all.
    pub channels: Vec<u16>,
    /// Whether channels are sent or sums of them.
    pub rotate: Rotate,
    /// Further heads for the same trunk, of other widths.
    pub heads: Vec<OtherHead>,
    /// Pictures to calibrate with.
    pub calibration: Vec<Photo>,
    /// Pictures to measure quality and bytes on; of a classifier those without a class are left out.
    /// Where no truth is known, answers are held against the whole network's.
    pub measuring: Vec<Photo>,
}

/// A head in place of a model's own, narrower or wider.
#[derive(Clone, Debug)]
pub struct OtherHead {
    /// The width's name: `w` and a percentage.
    pub name: String,
    /// A network that has the tensors that are cut at, or whose outputs they are.
    pub model: WholeModel,
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
    /// Cuts `model` at tensors, calibrates a quantiser and tables for each depth, and writes a bundle to the folder `out`, which must not be there yet. Where there is something to measure
    /// on, every operating point is measured with the written bundle and the real codec. `log` gets
    /// a line for every step and for every picture that cannot be read.
    ///
    /// The same model, pictures and engines give the same files.
    pub fn write<S: AsRef<str>>(
        &self,
        model: &WholeModel,
        tensors: &[S],
        engines: ImportEngines<'_>,
        out: &Path,
        log: &mut dyn FnMut(String),
    ) -> Result<Arc<Bundle>, ImportError> {
        let cut = model.cut_at(tensors)?;
        check_name("name", &self.name)?;
        let depths = self.depths()?;
        self.layers(cut.shape[0])?;
        let heads = self.cut_heads(model, &cut)?;
        model.check_batches(engines.engine)?;
        if out.symlink_metadata().is_ok() {
            return Err(ImportError::Exists(out.to_owned()));
        }
        // Written beside its place, so that there is never half a bundle in it.
        let mut partial = out.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        let steps = Steps { import: self, model, cut: &cut, heads, depths, engines };
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

    /// The further heads, cut where they give what the trunk behind `cut` takes.
    fn cut_heads(&self, whole: &WholeModel, cut: &Cut) -> Result<Vec<Cut>, ImportError> {
        let cut_head = |OtherHead { name, model }: &OtherHead| {
            check_name("head", name)?;
            let own = model.cut_at(&cut.tensors).or_else(|_| model.whole_as_head())?;
            let (found, needed) = (own.features(), cut.features());
            if found != needed {
                let problem = format!("head {name}: gives {found:?}, the cut is {needed:?}");
                return Err(ImportError::Value(problem));
            }
            if model.size() != whole.size() {
                let (found, needed) = (model.size(), whole.size());
                let problem = format!("head {name}: takes {found:?}, the network {needed:?}");
                return Err(ImportError::Value(problem));
            }
            Ok(own)
        };
        self.heads.iter().map(cut_head).collect()
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
    /// Of the further heads.
    heads: Vec<Cut>,
    depths: BTreeSet<u8>,
    engines: ImportEngines<'a>,
}

impl Steps<'_> {
    /// Writes the bundle to the folder `root`.
    fn write(&self, root: &Path, log: &mut dyn FnMut(String)) -> Result<(), ImportError> {
        let widths = self.choose(log)?;
        let mut folder = Folder::create(root)?;
        let mut manifest = self.write_graphs(&mut folder, &widths, log)?;
        folder.write_manifest(&mut manifest)?;

        // From here on what was written is used as any other bundle.
        let bundle = Arc::new(Bundle::open(root)?);
        let golden = golden(Arc::clone(&bundle), self.engines.reference)?;
        folder.put("goldens/000.safetensors".into(), &golden)?;
        let network = Network::load(bundle, self.engines.engine)?;
        let Import { measuring, truth, .. } = self.import;
        let outcomes = measure::outcomes(&network, measuring, truth.as_ref(), log)?;
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
        let against_whole = self.import.task != Task::Classification && truth.is_none();
        folder.write_card(&card::text(
            origin,
            calibration.len(),
            self.cut,
            &manifest,
            frames,
            against_whole,
        ))
    }

    fn input(&self) -> InputSpec {
        let [width, height] = self.model.size();
        let Import { mean, std, fit, order, fill, .. } = *self.import;
        InputSpec { mean, std, fit, channels: order, fill, ..InputSpec::new(width, height) }
    }

    /// What is sent, and how: of the model's own width, then of the further heads.
    fn choose(&self, log: &mut dyn FnMut(String)) -> Result<Vec<Width<'_>>, ImportError> {
        let Steps { import, model, cut, engines, .. } = self;
        let behind = Behind::load(model, cut, engines.engine)?;
        let own =
            Width { name: WIDTH, model, cut, sent: self.sent(&behind, model, cut, None, log)? };
        let mut widths = vec![own];
        for (head, cut) in import.heads.iter().zip(&self.heads) {
            let as_own = Some(&widths[0].sent);
            let sent = self.sent(&behind, &head.model, cut, as_own, log)?;
            widths.push(Width { name: &head.name, model: &head.model, cut, sent });
        }
        Ok(widths)
    }

    /// What one head sends: of the same kind as another if there is one, else what was asked for or
    /// is cheaper.
    fn sent(
        &self,
        behind: &Behind<'_>,
        model: &WholeModel,
        cut: &Cut,
        other: Option<&Candidate>,
        log: &mut dyn FnMut(String),
    ) -> Result<Candidate, ImportError> {
        let Calibrating { calibration, traced, whole } = self.calibrate(behind, model, cut, log)?;
        let most = match other {
            Some(other) => Some(other.mix.latents() as u16),
            None => self.import.channels.iter().copied().max(),
        };
        let rotate = match other.map(|other| &other.mix) {
            Some(Mix::Linear(_)) => Rotate::Yes,
            Some(Mix::Order(_)) => Rotate::No,
            None => self.import.rotate,
        };
        let [mut plain, mut rotated] = behind.candidates(&calibration, most);
        let mut taken = match rotate {
            Rotate::Yes => rotated,
            Rotate::No => plain,
            Rotate::Auto => {
                behind.measure(&mut plain, &traced)?;
                behind.measure(&mut rotated, &traced)?;
                let times = ratio(&rotated, &plain);
                let (name, taken) = match times > 1.0 {
                    true => ("sums of channels", rotated),
                    false => ("channels as they are", plain),
                };
                log(format!("{name}: without sums {times:.2} times the bytes at the same error"));
                taken
            }
        };
        taken.count_on(&whole);
        Ok(taken)
    }

    /// Runs a head on every picture to calibrate with, and the trunk on some.
    fn calibrate(
        &self,
        behind: &Behind<'_>,
        model: &WholeModel,
        cut: &Cut,
        log: &mut dyn FnMut(String),
    ) -> Result<Calibrating, ImportError> {
        let Steps { import, engines, .. } = self;
        let [channels, height, width] = cut.shape;
        let head = model.cut(cut, &as_it_is(cut)).head;
        let head = engines.engine.load(&head, &format!("the head up to {}", cut.name()))?;
        let input = self.input();
        let preprocessor = Preprocessor::new(&input);
        let mut calibration = Calibration::new(channels, height * width, import.calibration.len());
        let every = (import.calibration.len() / TRACED).max(1);
        let room = (WHOLE_VALUES / (channels * height * width).max(1)).max(1);
        let every_whole = import.calibration.len().div_ceil(room).max(1);
        let (mut data, mut used) = (Vec::new(), 0);
        let (mut traced, mut whole) = (Vec::new(), Vec::new());
        for photo in &import.calibration {
            match photo.read() {
                Ok(picture) => preprocessor.run(&picture, &mut data),
                Err(problem) => {
                    log(format!("{}: {problem}", photo.path.display()));
                    continue;
                }
            }
            let outputs = head.run(&[TensorView { shape: &input.shape(), data: &data }])?;
            let latents = outputs.into_iter().next().map(|it| it.data).unwrap_or_default();
            calibration.add(&latents);
            if used % every_whole == 0 {
                whole.push(latents.clone());
            }
            if used % every == 0 && traced.len() < TRACED {
                traced.push(behind.trace(latents)?);
            }
            used += 1;
        }
        log(format!("calibrated on {used} pictures"));
        match used {
            0 => Err(ImportError::NothingToCalibrate(import.calibration.len())),
            _ => Ok(Calibrating { calibration, traced, whole }),
        }
    }

    /// Writes graphs and tables, and gives the manifest that describes them.
    fn write_graphs(
        &self,
        folder: &mut Folder,
        widths: &[Width<'_>],
        log: &mut dyn FnMut(String),
    ) -> Result<Manifest, ImportError> {
        let Steps { import, model, cut, .. } = self;
        let Parts { trunk, .. } = model.cut(cut, &as_it_is(cut));
        let input = self.input();
        let latents = widths.first().map_or(0, |width| width.sent.mix.latents());
        let split = format!("s{}", stride(&input, cut));
        let specs = widths.iter().map(|width| self.write_width(folder, &split, width, log));
        let widths = specs.collect::<Result<Vec<WidthSpec>, _>>()?;
        let [_, height, width] = cut.shape.map(|side| side as u16);
        let split = SplitSpec {
            latent: [latents as u16, height, width],
            channels: import.layers(latents)?,
            features: cut.features().iter().map(|shape| shape.to_vec()).collect(),
            widths,
            name: split,
        };
        let trunk = folder.put(format!("onnx/trunk_{}.onnx", split.name), &trunk)?;
        let trunk = [(split.name.clone(), trunk)].into();
        let decoder = self.decoder(trunk);
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

    /// What the manifest says of the network's answer.
    fn decoder(&self, trunk: BTreeMap<String, String>) -> DecoderSpec {
        let Steps { import, model, .. } = self;
        if import.task == Task::Classification {
            return DecoderSpec {
                trunk,
                ..DecoderSpec::classification(import.labels.iter().cloned())
            };
        }
        let output =
            |ModelOutput { name, shape }: &ModelOutput| OutputSpec::f32(name, shape.clone());
        DecoderSpec {
            name: import.task.name().into(),
            task: import.task,
            labels: import.labels.clone(),
            trunk,
            outputs: model.outputs().iter().map(output).collect(),
            boxes: import.boxes.clone(),
        }
    }

    /// Writes a width's graphs and tables.
    fn write_width(
        &self,
        folder: &mut Folder,
        split: &str,
        width: &Width<'_>,
        log: &mut dyn FnMut(String),
    ) -> Result<WidthSpec, ImportError> {
        let Width { name, model, cut, sent } = width;
        let tag = format!("{split}_{name}");
        let Parts { head, adapter, .. } = model.cut(cut, &sent.mix);
        let mut quantisers = Vec::new();
        for &bits in self.depths.iter().rev() {
            let calibrated = sent.calibrate(bits)?;
            let contexts = sent.contexts([cut.shape[1], cut.shape[2]], bits, &calibrated)?;
            if let Some(ContextTables { saved, .. }) = &contexts {
                log(format!(
                    "{name} at {bits} bits: contexts save {:.0}% of the bytes",
                    100.0 * saved
                ));
            }
            let contexts = contexts
                .map(|tables| folder.put(format!("tables/{tag}_b{bits}.ctx"), &tables.file));
            quantisers.push(QuantiserSpec {
                bits,
                scale: calibrated.scale,
                zero_point: calibrated.zero_point,
                prior_mean: calibrated.prior_mean,
                tables: folder.put(format!("tables/{tag}_b{bits}.cdf"), &calibrated.tables)?,
                contexts: contexts.transpose()?,
            });
        }
        let adapter =
            adapter.map(|adapter| folder.put(format!("onnx/adapter_{tag}.onnx"), &adapter));
        let (macs, parameters) = match &sent.mix {
            Mix::Order(_) => (0, 0),
            Mix::Linear(linear) => {
                let values = linear.forth.len() + linear.forth_bias.len();
                (linear.forth.len() * cut.shape[1] * cut.shape[2], values)
            }
        };
        Ok(WidthSpec {
            name: (*name).into(),
            head: folder.put(format!("onnx/head_{tag}.onnx"), &head)?,
            adapter: adapter.transpose()?,
            exit: false,
            head_macs: cut.head_macs + macs as u64,
            head_parameters: cut.head_parameters + parameters as u64,
            exit_parameters: 0,
            exit_quality: 0.0,
            quantisers,
        })
    }
}

/// What is known of a cut's channels from the pictures to calibrate with.
struct Calibrating {
    calibration: Calibration,
    traced: Vec<Traced>,
    /// All channels of some pictures, `[C, h, w]` each.
    whole: Vec<Vec<f32>>,
}

/// A width of the bundle: a head, and what it sends.
struct Width<'a> {
    name: &'a str,
    model: &'a WholeModel,
    cut: &'a Cut,
    sent: Candidate,
}

/// Pixels of the picture per place of a cut's grid: of a column of tokens as if it were a grid.
fn stride(input: &InputSpec, cut: &Cut) -> u32 {
    let [_, height, width] = cut.shape;
    match width {
        1 if height > 1 => {
            let pixels = f64::from(input.height) * f64::from(input.width);
            (pixels / height as f64).sqrt().round() as u32
        }
        _ => (input.height as usize).div_ceil(height) as u32,
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
