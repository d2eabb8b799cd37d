//! What runs a graph: a trait, so that another engine can take tract's place.

use std::sync::Arc;

/// Why a graph could not be prepared or run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The file is no graph that this engine can run.
    #[error("{name}: the engine cannot prepare this graph: {reason}")]
    Load {
        /// The graph, as its loader named it.
        name: String,
        /// The engine's own words.
        reason: String,
    },
    /// A prepared graph failed on its inputs.
    #[error("{name}: the engine failed to run this graph: {reason}")]
    Run {
        /// The graph, as its loader named it.
        name: String,
        /// The engine's own words.
        reason: String,
    },
    /// A tensor of another shape than the graph or its bundle promised.
    #[error("{name}: {tensor} has shape {actual:?} where {expected} is needed")]
    Shape {
        /// The graph, as its loader named it.
        name: String,
        /// Which tensor.
        tensor: String,
        /// The shape needed.
        expected: String,
        /// The shape found.
        actual: Vec<usize>,
    },
}

/// Prepares ONNX graphs for running.
pub trait Engine: Send + Sync {
    /// The engine's name, for profiles.
    fn name(&self) -> &'static str;

    /// Prepares the graph whose ONNX file holds `onnx`; `name` is for error messages. Nothing of
    /// `onnx` is kept. A graph may leave its first dimension free: it then runs at any batch size.
    fn load(&self, onnx: &[u8], name: &str) -> Result<Arc<dyn Graph>, EngineError>;
}

/// A prepared graph. Several threads may run it at once.
pub trait Graph: Send + Sync {
    /// Outputs in the graph's order, for `inputs` in the graph's order.
    fn run(&self, inputs: &[TensorView<'_>]) -> Result<Vec<Tensor>, EngineError>;
}

/// A borrowed tensor: f32, row-major.
#[derive(Clone, Copy, Debug)]
pub struct TensorView<'a> {
    /// Extent of each dimension.
    pub shape: &'a [usize],
    /// As many values as the shape has places.
    pub data: &'a [f32],
}

/// A tensor: f32, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Extent of each dimension.
    pub shape: Vec<usize>,
    /// As many values as the shape has places.
    pub data: Vec<f32>,
}
