//! The device's part of the network.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::bundle::Bundle;
use crate::engine::Engine;
use crate::prepared::{Batch, LoadError, Prepared, RunError, Shapes};

/// The heads of a bundle, one for each split and width, all prepared.
///
/// To switch between them is to look up another: nothing is loaded or compiled after
/// [`Head::load`]. Several threads may run one `Head` at once.
pub struct Head {
    bundle: Arc<Bundle>,
    graphs: BTreeMap<(u8, u8), Prepared>,
}

/// What a head makes of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct HeadOutput {
    /// The bottleneck's latents: f32 `[C, h, w]`.
    pub latents: Vec<f32>,
    /// Logits of the early exit, if the head has one: f32 `[K]`, one for each label of the bundle's
    /// first decoder.
    pub exit: Option<Vec<f32>>,
}

impl Head {
    /// Loads every head of `bundle`; neither adapters nor trunks.
    pub fn load(bundle: Arc<Bundle>, engine: &dyn Engine) -> Result<Head, LoadError> {
        let mut graphs = BTreeMap::new();
        let [_, picture @ ..] = bundle.manifest().input.shape();
        for (s, split) in bundle.manifest().splits.iter().enumerate() {
            for (w, width) in split.widths.iter().enumerate() {
                let mut outputs = vec![split.latent.map(usize::from).to_vec()];
                if width.exit {
                    outputs.push(vec![bundle.labels().len()]);
                }
                let shapes = Shapes { inputs: vec![picture.to_vec()], outputs };
                let graph = Prepared::load(&bundle, engine, &width.head, shapes, Batch::One)?;
                graphs.insert((s as u8, w as u8), graph);
            }
        }
        Ok(Head { bundle, graphs })
    }

    /// Runs one head on one preprocessed picture, f32 `[3, H, W]`.
    pub fn run(&self, split: u8, width: u8, input: &[f32]) -> Result<HeadOutput, RunError> {
        let graph = self.graphs.get(&(split, width)).ok_or(RunError::Point { split, width })?;
        graph.expect_input(graph.input_len(0), input.len())?;
        let mut outputs = graph.run(&[input])?.into_iter().map(|tensor| tensor.data);
        // `Prepared` has checked that there are as many as the manifest says.
        Ok(HeadOutput { latents: outputs.next().unwrap_or_default(), exit: outputs.next() })
    }

    /// The bundle it was loaded from.
    pub fn bundle(&self) -> &Arc<Bundle> {
        &self.bundle
    }
}
