//! The server's part of the network, and the network in one piece.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::bundle::Bundle;
use crate::engine::{Engine, Tensor};
use crate::manifest::DecoderSpec;
use crate::prepared::{Batch, LoadError, Prepared, RunError, Shapes};

/// A network's outputs for one picture: the values of each output (f32, row by row) of each decoder in
/// order. Their shapes are the manifest's.
pub type Outputs = Vec<Vec<f32>>;

/// The adapters and trunks of a bundle, all prepared.
///
/// Frames of different operating points share a batch: each split and width may have its own adapter,
/// but one trunk of each decoder serves every width of a split. What several name in the manifest is
/// there once. Several threads may run one `Tail` at once.
pub struct Tail {
    bundle: Arc<Bundle>,
    /// `None` where the latents are the trunks' features as they are.
    adapters: BTreeMap<(u8, u8), Option<Arc<Prepared>>>,
    /// By split and decoder, in the manifest's order.
    trunks: Vec<Vec<Arc<Prepared>>>,
}

/// One frame of a tail's batch.
#[derive(Clone, Copy, Debug)]
pub struct TailItem<'a> {
    /// Position of the split.
    pub split: u8,
    /// Position of the width.
    pub width: u8,
    /// Dequantised latents: f32 `[C, h, w]`.
    pub latents: &'a [f32],
}

impl Tail {
    /// Loads every adapter and trunk of `bundle`; no heads.
    pub fn load(bundle: Arc<Bundle>, engine: &dyn Engine) -> Result<Tail, LoadError> {
        let (mut adapters, mut trunks) = (BTreeMap::new(), Vec::new());
        let mut loaded = BTreeMap::new();
        let mut load = |file: &str, inputs: Vec<Vec<usize>>, outputs: Vec<Vec<usize>>| {
            let shapes = Shapes { inputs, outputs };
            let key = (file.to_owned(), shapes.clone());
            if let Some(known) = loaded.get(&key) {
                return Ok(Arc::clone(known));
            }
            let part = Arc::new(Prepared::load(&bundle, engine, file, shapes, Batch::Any)?);
            loaded.insert(key, Arc::clone(&part));
            Ok::<_, LoadError>(part)
        };
        for (s, split) in bundle.manifest().splits.iter().enumerate() {
            let latents = split.latent.map(usize::from).to_vec();
            for (w, width) in split.widths.iter().enumerate() {
                let adapter = width.adapter.as_deref();
                let adapter = adapter
                    .map(|file| load(file, vec![latents.clone()], split.features.clone()))
                    .transpose()?;
                adapters.insert((s as u8, w as u8), adapter);
            }
            let decoders = bundle.manifest().decoders.iter();
            let trunk = |decoder: &DecoderSpec| {
                let outputs = decoder.outputs.iter().map(|output| output.shape.clone()).collect();
                // A manifest that was parsed has a trunk of every split.
                load(&decoder.trunk[&split.name], split.features.clone(), outputs)
            };
            trunks.push(decoders.map(trunk).collect::<Result<Vec<_>, _>>()?);
        }
        drop(loaded);
        Ok(Tail { bundle, adapters, trunks })
    }

    /// The network's outputs of each item in order: one adapter call for each split and width that
    /// occurs, then one call of each decoder's trunk for each split.
    pub fn run(&self, items: &[TailItem<'_>]) -> Result<Vec<Outputs>, RunError> {
        let mut splits: BTreeMap<u8, BTreeMap<u8, Vec<usize>>> = BTreeMap::new();
        for (at, &TailItem { split, width, latents }) in items.iter().enumerate() {
            let adapter = self.adapters.get(&(split, width));
            let adapter = adapter.ok_or(RunError::Point { split, width })?;
            let trunks = &self.trunks[usize::from(split)];
            if let Some(first) = adapter.as_ref().or(trunks.first()) {
                first.expect_input(first.input_len(0), latents.len())?;
            }
            splits.entry(split).or_default().entry(width).or_default().push(at);
        }
        let mut answers = vec![Outputs::new(); items.len()];
        for (split, widths) in splits {
            let (mut features, mut order) = (Vec::new(), Vec::new());
            for (width, group) in widths {
                let latents: Vec<f32> =
                    group.iter().flat_map(|&at| items[at].latents).copied().collect();
                let adapted = match &self.adapters[&(split, width)] {
                    Some(adapter) => data(adapter.run(&[&latents])?),
                    None => vec![latents],
                };
                append(&mut features, adapted);
                order.extend(group);
            }
            let features: Vec<&[f32]> = features.iter().map(Vec::as_slice).collect();
            for trunk in &self.trunks[usize::from(split)] {
                let outputs = data(trunk.run(&features)?);
                for (place, &at) in order.iter().enumerate() {
                    answers[at].extend(of_picture(&outputs, order.len(), place));
                }
            }
        }
        Ok(answers)
    }

    /// The bundle it was loaded from.
    pub fn bundle(&self) -> &Arc<Bundle> {
        &self.bundle
    }
}

/// The network in one piece, to be run without a cut.
pub struct Full {
    bundle: Arc<Bundle>,
    graph: Prepared,
}

impl Full {
    /// Loads the full network of `bundle`.
    pub fn load(bundle: Arc<Bundle>, engine: &dyn Engine) -> Result<Full, LoadError> {
        let manifest = bundle.manifest();
        let [_, picture @ ..] = manifest.input.shape();
        let outputs = manifest.output_shapes().into_iter().map(<[usize]>::to_vec).collect();
        let shapes = Shapes { inputs: vec![picture.to_vec()], outputs };
        let graph = Prepared::load(&bundle, engine, &manifest.full.file, shapes, Batch::Any)?;
        Ok(Full { bundle, graph })
    }

    /// The network's outputs of each preprocessed picture, f32 `[3, H, W]`.
    pub fn run(&self, pictures: &[&[f32]]) -> Result<Vec<Outputs>, RunError> {
        for picture in pictures {
            self.graph.expect_input(self.graph.input_len(0), picture.len())?;
        }
        if pictures.is_empty() {
            return Ok(Vec::new());
        }
        let outputs = data(self.graph.run(&[&pictures.concat()])?);
        let count = pictures.len();
        Ok((0..count).map(|at| of_picture(&outputs, count, at).collect()).collect())
    }

    /// The bundle it was loaded from.
    pub fn bundle(&self) -> &Arc<Bundle> {
        &self.bundle
    }
}

fn data(tensors: Vec<Tensor>) -> Vec<Vec<f32>> {
    tensors.into_iter().map(|tensor| tensor.data).collect()
}

/// Appends each tensor's pictures to those before.
fn append(all: &mut Vec<Vec<f32>>, more: Vec<Vec<f32>>) {
    match all.is_empty() {
        true => *all = more,
        false => all.iter_mut().zip(more).for_each(|(all, more)| all.extend(more)),
    }
}

/// One picture's values of each output, of `count` pictures' ones.
fn of_picture(outputs: &[Vec<f32>], count: usize, at: usize) -> impl Iterator<Item = Vec<f32>> {
    outputs.iter().map(move |data| {
        let len = data.len() / count;
        data[at * len..(at + 1) * len].to_vec()
    })
}
