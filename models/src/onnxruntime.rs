//! [`Engine`] by an ONNX Runtime that is installed on the machine and loaded when it is asked for.

use std::env;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ort::session::builder::GraphOptimizationLevel;
use ort::session::{Session, SessionInputValue};
use ort::value::TensorRef;

use crate::engine::{Engine, EngineError, Graph, Tensor, TensorView};

/// Names the library; without it the system's loader looks for [`LIBRARY`].
const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";
/// What Linux distributions and the packages of ONNX Runtime call it.
const LIBRARY: &str = "libonnxruntime.so";

/// ONNX Runtime cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "no ONNX Runtime: {0}; install version 1.17 or newer, or name its library in {LIBRARY_VARIABLE}"
)]
pub struct OnnxRuntimeError(String);

/// ONNX Runtime on the CPU, one thread a graph, as tract has.
#[derive(Clone, Copy, Debug)]
pub struct OnnxRuntime {
    _loaded: (),
}

impl OnnxRuntime {
    /// Loads the library that the environment variable `ORT_DYLIB_PATH` names, else
    /// `libonnxruntime.so`. A process has one: later calls keep what the first has loaded.
    pub fn load() -> Result<OnnxRuntime, OnnxRuntimeError> {
        let library = env::var_os(LIBRARY_VARIABLE).map_or_else(|| LIBRARY.into(), PathBuf::from);
        let environment =
            ort::init_from(library).map_err(|error| OnnxRuntimeError(error.to_string()))?;
        // False where an earlier call has made it already.
        environment.commit();
        Ok(OnnxRuntime { _loaded: () })
    }
}

impl Engine for OnnxRuntime {
    fn name(&self) -> &'static str {
        "ort"
    }

    fn load(&self, onnx: &[u8], name: &str) -> Result<Arc<dyn Graph>, EngineError> {
        let session =
            session(onnx).map_err(|reason| EngineError::Load { name: name.to_owned(), reason })?;
        Ok(Arc::new(Prepared { name: name.to_owned(), session: Mutex::new(session) }))
    }
}

fn session(onnx: &[u8]) -> Result<Session, String> {
    let builder = Session::builder().map_err(|error| error.to_string())?;
    let builder = builder
        .with_optimization_level(GraphOptimizationLevel::All)
        .map_err(|error| error.to_string())?;
    let mut builder = builder.with_intra_threads(1).map_err(|error| error.to_string())?;
    builder.commit_from_memory(onnx).map_err(|error| error.to_string())
}

struct Prepared {
    name: String,
    /// One run at a time: the binding asks for it.
    session: Mutex<Session>,
}

impl Graph for Prepared {
    fn run(&self, inputs: &[TensorView<'_>]) -> Result<Vec<Tensor>, EngineError> {
        self.run_session(inputs).map_err(|error| EngineError::Run {
            name: self.name.clone(),
            reason: error.to_string(),
        })
    }
}

impl Prepared {
    fn run_session(&self, inputs: &[TensorView<'_>]) -> ort::Result<Vec<Tensor>> {
        let tensors = inputs
            .iter()
            .map(|input| Ok(TensorRef::from_array_view((input.shape, input.data))?.into()))
            .collect::<ort::Result<Vec<SessionInputValue<'_>>>>()?;
        // A run that panicked leaves nothing behind in a session.
        let mut session = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        let outputs = session.run(&tensors[..])?;
        outputs
            .values()
            .map(|output| {
                let (shape, data) = output.try_extract_tensor::<f32>()?;
                // Extents of a tensor that exists are not negative.
                let shape = shape.iter().map(|&extent| extent as usize).collect();
                Ok(Tensor { shape, data: data.to_vec() })
            })
            .collect()
    }
}
