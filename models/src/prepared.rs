//! A graph of a bundle, prepared and held to the shapes that the manifest promises.

use std::sync::Arc;

use crate::bundle::{Bundle, BundleError};
use crate::engine::{Engine, EngineError, Graph, Tensor, TensorView};

/// Why a bundle's graphs could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The bundle has changed on disk since it was opened.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// A graph that the engine refuses, or whose shapes are not the manifest's.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Why a graph could not be run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// There is no such graph in the bundle.
    #[error("the bundle has no split {split} with width {width}")]
    Point {
        /// Position of the split that was asked for.
        split: u8,
        /// Position of the width that was asked for.
        width: u8,
    },
    /// An input of the wrong length.
    #[error("{graph}: {actual} values given where {expected} are needed")]
    Input {
        /// The graph's file.
        graph: String,
        /// Values needed.
        expected: usize,
        /// Values given.
        actual: usize,
    },
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// Whether a graph takes one picture at a time or any number.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Batch {
    One,
    Any,
}

pub(crate) struct Prepared {
    graph: Arc<dyn Graph>,
    /// The graph's file and the bundle's folder, for messages.
    name: String,
    /// Shape of each input for one picture, less the batch dimension.
    inputs: Vec<Vec<usize>>,
    /// Shape of each output for one picture, less the batch dimension.
    outputs: Vec<Vec<usize>>,
}

/// What a graph takes and gives for one picture, less the batch dimension.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Shapes {
    pub(crate) inputs: Vec<Vec<usize>>,
    pub(crate) outputs: Vec<Vec<usize>>,
}

impl Prepared {
    /// Loads `file`, and runs it once on zeros: a graph of other shapes than the manifest says is
    /// refused here and not on the first frame, which then also finds warm memory.
    pub(crate) fn load(
        bundle: &Bundle,
        engine: &dyn Engine,
        file: &str,
        Shapes { inputs, outputs }: Shapes,
        batch: Batch,
    ) -> Result<Prepared, LoadError> {
        let name = bundle.dir().join(file).display().to_string();
        let graph = engine.load(&bundle.read(file)?, &name)?;
        let prepared = Prepared { graph, name, inputs, outputs };
        let pictures = if batch == Batch::Any { 2 } else { 1 };
        let zeros: Vec<Vec<f32>> = (0..prepared.inputs.len())
            .map(|at| vec![0.0; pictures * prepared.input_len(at)])
            .collect();
        let zeros: Vec<&[f32]> = zeros.iter().map(Vec::as_slice).collect();
        prepared.run(&zeros).map_err(|error| match error {
            RunError::Engine(error) => error,
            other => EngineError::Run { name: prepared.name.clone(), reason: other.to_string() },
        })?;
        Ok(prepared)
    }

    /// Values of one picture in an input.
    pub(crate) fn input_len(&self, at: usize) -> usize {
        self.inputs.get(at).map_or(0, |shape| shape.iter().product())
    }

    /// Outputs for as many pictures as the inputs hold, each of the promised shape.
    pub(crate) fn run(&self, inputs: &[&[f32]]) -> Result<Vec<Tensor>, RunError> {
        let pictures = inputs.first().map_or(0, |data| data.len() / self.input_len(0)).max(1);
        if inputs.len() != self.inputs.len() {
            let reason = format!("takes {} inputs, not {}", self.inputs.len(), inputs.len());
            return Err(EngineError::Run { name: self.name.clone(), reason }.into());
        }
        let batch = |shape: &Vec<usize>| [&[pictures], &shape[..]].concat();
        let shapes: Vec<Vec<usize>> = self.inputs.iter().map(batch).collect();
        let mut views = Vec::with_capacity(inputs.len());
        for (at, (data, shape)) in inputs.iter().zip(&shapes).enumerate() {
            self.expect_input(pictures * self.input_len(at), data.len())?;
            views.push(TensorView { shape, data });
        }
        let outputs = self.graph.run(&views)?;
        if outputs.len() != self.outputs.len() {
            let reason = format!("gave {} outputs, not {}", outputs.len(), self.outputs.len());
            return Err(EngineError::Run { name: self.name.clone(), reason }.into());
        }
        for (at, (output, promised)) in outputs.iter().zip(&self.outputs).enumerate() {
            if output.shape.first() != Some(&pictures) || output.shape[1..] != promised[..] {
                return Err(RunError::Engine(EngineError::Shape {
                    name: self.name.clone(),
                    tensor: format!("output {at}"),
                    expected: format!("[{pictures}] + {promised:?}"),
                    actual: output.shape.clone(),
                }));
            }
        }
        Ok(outputs)
    }

    /// Refuses an input of `actual` values.
    pub(crate) fn expect_input(&self, expected: usize, actual: usize) -> Result<(), RunError> {
        match actual == expected {
            true => Ok(()),
            false => Err(RunError::Input { graph: self.name.clone(), expected, actual }),
        }
    }
}
