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

/// Which engine runs the networks.
#[cfg(feature = "tract")]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// ONNX Runtime where it is built in and installed, else tract.
    Auto,
    /// The embedded one.
    #[default]
    Tract,
    /// An installed ONNX Runtime; needs the cargo feature `ort`.
    Ort,
}

/// Why there is no such engine.
#[cfg(feature = "tract")]
#[derive(Debug, thiserror::Error)]
pub enum EngineKindError {
    /// None of the names.
    #[error("there is no engine {0:?}; there are auto, tract and ort")]
    Name(String),
    /// This program was built without ONNX Runtime.
    #[error("this program was built without ONNX Runtime: build it with the cargo feature `ort`")]
    NotBuiltIn,
    /// ONNX Runtime is not installed, or too old.
    #[cfg(feature = "ort")]
    #[error(transparent)]
    OnnxRuntime(#[from] crate::OnnxRuntimeError),
}

#[cfg(feature = "tract")]
impl std::str::FromStr for EngineKind {
    type Err = EngineKindError;

    fn from_str(name: &str) -> Result<Self, EngineKindError> {
        match name {
            "auto" => Ok(EngineKind::Auto),
            "tract" => Ok(EngineKind::Tract),
            "ort" => Ok(EngineKind::Ort),
            _ => Err(EngineKindError::Name(name.to_owned())),
        }
    }
}

#[cfg(feature = "tract")]
impl EngineKind {
    /// The engine; `Auto` always has one.
    pub fn open(self) -> Result<Box<dyn Engine>, EngineKindError> {
        match self {
            EngineKind::Tract => Ok(Box::new(crate::Tract)),
            EngineKind::Ort => onnx_runtime(),
            EngineKind::Auto => onnx_runtime().or_else(|_| EngineKind::Tract.open()),
        }
    }
}

#[cfg(feature = "ort")]
fn onnx_runtime() -> Result<Box<dyn Engine>, EngineKindError> {
    Ok(Box::new(crate::OnnxRuntime::load()?))
}

#[cfg(all(feature = "tract", not(feature = "ort")))]
fn onnx_runtime() -> Result<Box<dyn Engine>, EngineKindError> {
    Err(EngineKindError::NotBuiltIn)
}
