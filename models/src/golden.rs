//! Goldens: reference values in a bundle, which another engine computed.

use std::io::{self, Read};

use safetensors::{Dtype, SafeTensorError, SafeTensors};

use crate::bundle::PointName;
use crate::manifest::{Manifest, Task};
use crate::picture::{Picture, PictureError};
use crate::tail::Outputs;

/// What a packed file starts with (RFC 8878, section 3.1.1): as a safetensors header's length it
/// would be four gigabytes.
const ZSTD_MAGIC: [u8; 4] = 0xFD2F_B528u32.to_le_bytes();
/// Of a packed file's contents (bytes): more than any picture and its tensors take.
const MOST_BYTES: u64 = 256 << 20;

/// Why bytes are no golden.
#[derive(Debug, thiserror::Error)]
pub enum GoldenError {
    /// It starts as zstd does and goes on otherwise, or holds too much.
    #[error("golden: zstd: {0}")]
    Packed(#[from] io::Error),
    /// No safetensors file, or a tensor is missing.
    #[error("golden: {0}")]
    Format(#[from] SafeTensorError),
    /// A metadata entry that is missing or no number.
    #[error("golden: metadata {0:?} is missing or not of its kind")]
    Metadata(&'static str),
    /// A tensor of another type or rank than the format says.
    #[error("golden: tensor {name:?} is {dtype:?} {shape:?}, not {expected}")]
    Tensor {
        /// The tensor.
        name: String,
        /// Its type.
        dtype: Dtype,
        /// Its shape.
        shape: Vec<usize>,
        /// What is needed.
        expected: String,
    },
    /// Pixels that are no picture.
    #[error("golden: {0}")]
    Picture(#[from] PictureError),
}

/// One picture's path through a bundle, as an engine computed it that is not the one under test: ONNX
/// Runtime and a codec of its own in the training kit, [`PlainTract`](crate::PlainTract) or ONNX
/// Runtime in `bundle cut`.
#[derive(Clone, Debug)]
pub struct Golden {
    /// Name of the engine that computed the values; the kit's goldens do not have it.
    pub engine: Option<String>,
    /// The operating point.
    pub point: PointName,
    /// Before preprocessing.
    pub picture: Picture,
    /// After preprocessing: f32 `[3, H, W]`.
    pub input: Vec<f32>,
    /// The head's latents: f32 `[C, h, w]`.
    pub latents: Vec<f32>,
    /// The exit's logits, if the head has one: f32 `[K]`.
    pub exit: Option<Vec<f32>>,
    /// Quantised latents of the channels sent: u8 `[c, h, w]`.
    pub symbols: Vec<u8>,
    /// Length of each layer in the stream (bytes).
    pub layer_bytes: Vec<u32>,
    /// The entropy-coded stream.
    pub stream: Vec<u8>,
    /// The tail's outputs on those symbols.
    pub outputs: Outputs,
    /// The full network's outputs.
    pub full_outputs: Outputs,
}

/// The names in a golden of the tail's outputs and of the full network's, in their order.
fn output_names(manifest: &Manifest) -> Vec<(String, String)> {
    if let [only] = manifest.decoders.as_slice()
        && only.task == Task::Classification
    {
        return vec![("logits".into(), "full_logits".into())];
    }
    let decoders = manifest.decoders.iter();
    let names = decoders.flat_map(|decoder| {
        let outputs = decoder.outputs.iter();
        outputs.map(|output| format!("{}.{}", decoder.name, output.name))
    });
    names.map(|name| (format!("output.{name}"), format!("full.{name}"))).collect()
}

impl Golden {
    /// Reads one of the [`golden_files`](crate::Bundle::golden_files) of the bundle with this manifest:
    /// safetensors, as they are or in zstd.
    pub fn parse(bytes: &[u8], manifest: &Manifest) -> Result<Golden, GoldenError> {
        if bytes.starts_with(&ZSTD_MAGIC) {
            let mut unpacked = Vec::new();
            let read =
                zstd::Decoder::new(bytes)?.take(MOST_BYTES + 1).read_to_end(&mut unpacked)?;
            if read as u64 > MOST_BYTES {
                let problem = format!("more than {MOST_BYTES} bytes in it");
                return Err(GoldenError::Packed(io::Error::other(problem)));
            }
            return Golden::unpacked(&unpacked, manifest);
        }
        Golden::unpacked(bytes, manifest)
    }

    fn unpacked(bytes: &[u8], manifest: &Manifest) -> Result<Golden, GoldenError> {
        let tensors = SafeTensors::deserialize(bytes)?;
        let (_, metadata) = SafeTensors::read_metadata(bytes)?;
        let text = |key| {
            let value = metadata.metadata().as_ref().and_then(|texts| texts.get(key));
            value.map(String::as_str).ok_or(GoldenError::Metadata(key))
        };
        let point = PointName {
            split: text("split")?.to_owned(),
            width: text("width")?.to_owned(),
            channels: text("channels")?.parse().map_err(|_| GoldenError::Metadata("channels"))?,
            bits: text("bits")?.parse().map_err(|_| GoldenError::Metadata("bits"))?,
        };
        let (shape, pixels) = tensor(&tensors, "picture", Dtype::U8, 3)?;
        let side = |at: usize| u32::try_from(shape[at]).unwrap_or(u32::MAX);
        let picture = Picture::new(side(1), side(0), pixels.to_vec())?;
        let names = output_names(manifest);
        let outputs = names.iter().map(|(tail, _)| values(&tensors, tail));
        let full_outputs = names.iter().map(|(_, full)| values(&tensors, full));
        Ok(Golden {
            outputs: outputs.collect::<Result<_, _>>()?,
            full_outputs: full_outputs.collect::<Result<_, _>>()?,
            engine: text("engine").ok().map(str::to_owned),
            point,
            picture,
            input: floats(&tensors, "input", 3)?,
            latents: floats(&tensors, "latents", 3)?,
            exit: match tensors.tensor("exit") {
                Err(SafeTensorError::TensorNotFound(_)) => None,
                _ => Some(floats(&tensors, "exit", 1)?),
            },
            symbols: tensor(&tensors, "symbols", Dtype::U8, 3)?.1.to_vec(),
            layer_bytes: words(tensor(&tensors, "layer_bytes", Dtype::U32, 1)?.1)
                .map(u32::from_le_bytes)
                .collect(),
            stream: tensor(&tensors, "stream", Dtype::U8, 1)?.1.to_vec(),
        })
    }
}

impl Golden {
    /// The file that [`Golden::parse`] reads: the same bytes for the same values, which a map in
    /// the library's order would not give.
    #[cfg(feature = "shell")]
    pub(crate) fn to_bytes(&self, bundle: &crate::Manifest) -> Vec<u8> {
        let PointName { split, width, channels, bits } = &self.point;
        let [_, input @ ..] = bundle.input.shape();
        let spec = bundle.splits.iter().find(|spec| spec.name == *split);
        let [c, h, w] = spec.map_or([0; 3], |spec| spec.latent.map(usize::from));
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let sides = [self.picture.height(), self.picture.width()].map(|side| side as usize);
        let layers = self.layer_bytes.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut tensors: Vec<(&str, &str, Vec<usize>, Vec<u8>)> = vec![
            ("picture", "U8", vec![sides[0], sides[1], 3], self.picture.rgb().into_owned()),
            ("input", "F32", input.to_vec(), bytes(&self.input)),
            ("latents", "F32", vec![c, h, w], bytes(&self.latents)),
            ("symbols", "U8", vec![usize::from(*channels), h, w], self.symbols.clone()),
            ("layer_bytes", "U32", vec![self.layer_bytes.len()], layers),
            ("stream", "U8", vec![self.stream.len()], self.stream.clone()),
        ];
        let names = output_names(bundle);
        for (at, (tail, full)) in names.iter().enumerate() {
            for (name, outputs) in [(tail, &self.outputs), (full, &self.full_outputs)] {
                let values = outputs.get(at).map_or(&[][..], Vec::as_slice);
                tensors.push((name, "F32", vec![values.len()], bytes(values)));
            }
        }
        if let Some(exit) = &self.exit {
            tensors.push(("exit", "F32", vec![exit.len()], bytes(exit)));
        }
        // What is aligned to four bytes comes first.
        tensors.sort_by_key(|(_, dtype, ..)| *dtype == "U8");
        // Names of engines, splits and widths need no escape.
        let engine = self.engine.as_ref().map(|name| format!("\"engine\":\"{name}\","));
        let mut header = format!(
            "{{\"__metadata__\":{{\"bits\":\"{bits}\",\"channels\":\"{channels}\",{}\
             \"split\":\"{split}\",\"width\":\"{width}\"}}",
            engine.unwrap_or_default()
        );
        let mut start = 0;
        for (name, dtype, shape, data) in &tensors {
            let end = start + data.len();
            header += &format!(
                ",\"{name}\":{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\
                 \"data_offsets\":[{start},{end}]}}"
            );
            start = end;
        }
        header.push('}');
        header += &" ".repeat(header.len().next_multiple_of(8) - header.len());
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header.into_bytes());
        file.extend(tensors.into_iter().flat_map(|(.., data)| data));
        file
    }
}

/// The values of an output, whatever its shape.
fn values(tensors: &SafeTensors<'_>, name: &str) -> Result<Vec<f32>, GoldenError> {
    let rank = tensors.tensor(name)?.shape().len();
    floats(tensors, name, rank)
}

fn floats(tensors: &SafeTensors<'_>, name: &str, rank: usize) -> Result<Vec<f32>, GoldenError> {
    let (_, bytes) = tensor(tensors, name, Dtype::F32, rank)?;
    Ok(words(bytes).map(f32::from_le_bytes).collect())
}

fn tensor<'a>(
    tensors: &SafeTensors<'a>,
    name: &str,
    dtype: Dtype,
    rank: usize,
) -> Result<(Vec<usize>, &'a [u8]), GoldenError> {
    let view = tensors.tensor(name)?;
    if view.dtype() != dtype || view.shape().len() != rank {
        return Err(GoldenError::Tensor {
            name: name.to_owned(),
            dtype: view.dtype(),
            shape: view.shape().to_vec(),
            expected: format!("{dtype:?} of {rank} dimensions"),
        });
    }
    Ok((view.shape().to_vec(), view.data()))
}

fn words(bytes: &[u8]) -> impl Iterator<Item = [u8; 4]> {
    bytes.chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]])
}
