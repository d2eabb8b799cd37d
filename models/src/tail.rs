//! The server's part of the network, and the network in one piece.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::bundle::Bundle;
use crate::engine::{Engine, Tensor};
use crate::prepared::{Batch, LoadError, Prepared, RunError};

/// The adapters and trunks of a bundle, all prepared.
///
/// Frames of different operating points share a batch: each split and width may have its own adapter,
/// but one trunk serves every width of a split. What several name in the manifest is there once.
/// Several threads may run one `Tail` at once.
pub struct Tail {
    bundle: Arc<Bundle>,
    /// `None` where the latents are the trunk's features as they are.
    adapters: BTreeMap<(u8, u8), Option<Arc<Prepared>>>,
    /// In the manifest's order of splits.
    trunks: Vec<Arc<Prepared>>,
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
        let classes = [bundle.labels().len()];
        let mut loaded = BTreeMap::new();
        let mut load = |file, input: [usize; 4], output: &[usize]| {
            let key = (file, input, output.to_vec());
            if let Some(known) = loaded.get(&key) {
                return Ok(Arc::clone(known));
            }
            let part = Prepared::load(&bundle, engine, file, input, &[output], Batch::Any)?;
            let part = Arc::new(part);
            loaded.insert(key, Arc::clone(&part));
            Ok::<_, LoadError>(part)
        };
        for (s, split) in bundle.manifest().splits.iter().enumerate() {
            let (latents, features) = (split.latent_shape(), split.features_shape());
            for (w, width) in split.widths.iter().enumerate() {
                let adapter = width.adapter.as_deref();
                let adapter =
                    adapter.map(|file| load(file, latents, &features[1..])).transpose()?;
                adapters.insert((s as u8, w as u8), adapter);
            }
            trunks.push(load(split.trunk.as_str(), features, &classes)?);
        }
        drop(loaded);
        Ok(Tail { bundle, adapters, trunks })
    }

    /// Logits, f32 `[K]`, of each item in order: one adapter call for each split and width that
    /// occurs, then one trunk call for each split.
    pub fn run(&self, items: &[TailItem<'_>]) -> Result<Vec<Vec<f32>>, RunError> {
        let mut splits: BTreeMap<u8, BTreeMap<u8, Vec<usize>>> = BTreeMap::new();
        for (at, &TailItem { split, width, latents }) in items.iter().enumerate() {
            let adapter = self.adapters.get(&(split, width));
            let adapter = adapter.ok_or(RunError::Point { split, width })?;
            let first = adapter.as_ref().unwrap_or(&self.trunks[usize::from(split)]);
            first.expect_input(first.picture_len(), latents.len())?;
            splits.entry(split).or_default().entry(width).or_default().push(at);
        }
        let mut logits = vec![Vec::new(); items.len()];
        for (split, widths) in splits {
            let (mut features, mut order) = (Vec::new(), Vec::new());
            for (width, group) in widths {
                let latents: Vec<f32> =
                    group.iter().flat_map(|&at| items[at].latents).copied().collect();
                let adapted = match &self.adapters[&(split, width)] {
                    Some(adapter) => only(adapter.run(&latents)?),
                    None => latents,
                };
                if features.is_empty() {
                    features = adapted;
                } else {
                    features.extend(adapted);
                }
                order.extend(group);
            }
            let answers = only(self.trunks[usize::from(split)].run(&features)?);
            for (at, answer) in order.into_iter().zip(answers.chunks_exact(self.classes())) {
                logits[at] = answer.to_vec();
            }
        }
        Ok(logits)
    }

    /// The bundle it was loaded from.
    pub fn bundle(&self) -> &Arc<Bundle> {
        &self.bundle
    }

    fn classes(&self) -> usize {
        self.bundle.labels().len()
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
        let (input, classes) = (manifest.input.shape(), [bundle.labels().len()]);
        let graph =
            Prepared::load(&bundle, engine, &manifest.full.file, input, &[&classes], Batch::Any)?;
        Ok(Full { bundle, graph })
    }

    /// Logits, f32 `[K]`, of each preprocessed picture, f32 `[3, H, W]`.
    pub fn run(&self, pictures: &[&[f32]]) -> Result<Vec<Vec<f32>>, RunError> {
        for picture in pictures {
            self.graph.expect_input(self.graph.picture_len(), picture.len())?;
        }
        if pictures.is_empty() {
            return Ok(Vec::new());
        }
        let logits = only(self.graph.run(&pictures.concat())?);
        Ok(logits.chunks_exact(self.bundle.labels().len()).map(<[f32]>::to_vec).collect())
    }

    /// The bundle it was loaded from.
    pub fn bundle(&self) -> &Arc<Bundle> {
        &self.bundle
    }
}

/// The data of a graph's single output; `Prepared` has checked that there is one.
fn only(outputs: Vec<Tensor>) -> Vec<f32> {
    outputs.into_iter().next().map(|output| output.data).unwrap_or_default()
}
