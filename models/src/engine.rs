//! The engines that run a bundle's graphs: a trait, and which of its implementations to use.

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

/// The engine that runs the networks.
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

/// An execution provider of ONNX Runtime: the code that computes for it.
#[cfg(feature = "tract")]
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OrtProvider {
    /// Its own code for processors.
    Cpu,
    /// XNNPACK, code for Arm and x86 processors.
    Xnnpack,
    /// An NVIDIA GPU.
    Cuda,
    /// An NVIDIA GPU by TensorRT.
    Tensorrt,
}

/// Why an engine cannot be opened.
#[cfg(feature = "tract")]
#[derive(Debug, thiserror::Error)]
pub enum EngineKindError {
    /// None of the names.
    #[error("unknown engine {0:?}; expected auto, tract or ort")]
    Name(String),
    /// None of the providers' names.
    #[error("unknown provider {0:?}; expected cpu, xnnpack, cuda or tensorrt")]
    Provider(String),
    /// Providers for an engine that has none.
    #[error("tract has no providers: they are for the engines ort and auto")]
    ProvidersOfTract,
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
impl OrtProvider {
    /// All of them.
    pub const ALL: [OrtProvider; 4] =
        [OrtProvider::Cpu, OrtProvider::Xnnpack, OrtProvider::Cuda, OrtProvider::Tensorrt];

    /// Its name, for options.
    pub const fn name(self) -> &'static str {
        match self {
            OrtProvider::Cpu => "cpu",
            OrtProvider::Xnnpack => "xnnpack",
            OrtProvider::Cuda => "cuda",
            OrtProvider::Tensorrt => "tensorrt",
        }
    }
}

#[cfg(feature = "tract")]
impl std::fmt::Display for OrtProvider {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(feature = "tract")]
impl std::str::FromStr for OrtProvider {
    type Err = EngineKindError;

    fn from_str(name: &str) -> Result<Self, EngineKindError> {
        let known = OrtProvider::ALL.into_iter().find(|provider| provider.name() == name);
        known.ok_or_else(|| EngineKindError::Provider(name.to_owned()))
    }
}

#[cfg(feature = "tract")]
impl EngineKind {
    /// The engine; an ONNX Runtime computes by `providers`, the first that can.
    ///
    /// `Auto` always has an engine, and logs why it is tract, but where providers are named that has
    /// to be an ONNX Runtime with them.
    pub fn open(self, providers: &[OrtProvider]) -> Result<Box<dyn Engine>, EngineKindError> {
        match self {
            EngineKind::Tract if providers.is_empty() => Ok(Box::new(crate::Tract)),
            EngineKind::Tract => Err(EngineKindError::ProvidersOfTract),
            EngineKind::Auto if providers.is_empty() => onnx_runtime(providers).or_else(|error| {
                tracing::warn!(%error, "tract runs the network in place of an ONNX Runtime");
                EngineKind::Tract.open(providers)
            }),
            EngineKind::Auto | EngineKind::Ort => onnx_runtime(providers),
        }
    }
}

#[cfg(feature = "ort")]
fn onnx_runtime(providers: &[OrtProvider]) -> Result<Box<dyn Engine>, EngineKindError> {
    Ok(Box::new(crate::OnnxRuntime::load(providers)?))
}

#[cfg(all(feature = "tract", not(feature = "ort")))]
fn onnx_runtime(_: &[OrtProvider]) -> Result<Box<dyn Engine>, EngineKindError> {
    Err(EngineKindError::NotBuiltIn)
}

#[cfg(all(test, feature = "tract"))]
mod tests {
    use super::*;

    #[test]
    fn providers_have_names_and_tract_has_none() {
        for provider in OrtProvider::ALL {
            assert_eq!(provider.name().parse::<OrtProvider>().expect("known"), provider);
        }
        let unknown = "rocm".parse::<OrtProvider>().expect_err("unknown").to_string();
        assert!(unknown.contains("rocm") && unknown.contains("cuda"), "{unknown}");
        assert!(EngineKind::Tract.open(&[]).is_ok());
        let refused = EngineKind::Tract.open(&[OrtProvider::Cpu]);
        assert!(matches!(refused.err(), Some(EngineKindError::ProvidersOfTract)));
    }
}
