//! [`Engine`] by an ONNX Runtime that is installed on the machine and loaded when it is asked for.

use std::env;
use std::error::Error;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ort::LoadDynamicError;
use ort::ep::{CPU, CUDA, ExecutionProvider, ExecutionProviderDispatch, TensorRT, XNNPACK};
use ort::session::builder::GraphOptimizationLevel;
use ort::session::{Session, SessionInputValue};
use ort::value::TensorRef;

use crate::engine::{Engine, EngineError, Graph, OrtProvider, Tensor, TensorView};

/// Names the library; without it the system's loader looks for [`LIBRARY`].
const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";
/// What Linux distributions and the packages of ONNX Runtime call it.
const LIBRARY: &str = "libonnxruntime.so";

/// ONNX Runtime cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OnnxRuntimeError {
    /// It is not installed, or too old.
    #[error(
        "no ONNX Runtime: {0}; install version 1.17 or newer for {arch}, or name its library in \
         {LIBRARY_VARIABLE}",
        arch = env::consts::ARCH
    )]
    Library(String),
    /// The library was built without a provider.
    #[error(
        "the installed ONNX Runtime has no provider {lacking}, only {}; name a library with it in \
         {LIBRARY_VARIABLE}",
        names(present)
    )]
    Provider {
        /// Which.
        lacking: OrtProvider,
        /// Those that it has, of the known ones.
        present: Vec<OrtProvider>,
    },
}

/// ONNX Runtime, one thread a graph, as tract has.
#[derive(Clone, Debug)]
pub struct OnnxRuntime {
    providers: Vec<OrtProvider>,
}

impl OnnxRuntime {
    /// Loads the library that the environment variable `ORT_DYLIB_PATH` names, else
    /// `libonnxruntime.so`. A process has one: later calls keep what the first has loaded.
    ///
    /// Each part of a graph is computed by the first of `providers` that can, and by the CPU where
    /// none can.
    pub fn load(providers: &[OrtProvider]) -> Result<OnnxRuntime, OnnxRuntimeError> {
        let library = env::var_os(LIBRARY_VARIABLE).map_or_else(|| LIBRARY.into(), PathBuf::from);
        let environment = ort::init_from(library).map_err(not_loaded)?;
        // False where an earlier call has made it already.
        environment.commit();
        let mut present = Vec::new();
        for known in OrtProvider::ALL {
            if is_present(known).map_err(|error| OnnxRuntimeError::Library(error.to_string()))? {
                present.push(known);
            }
        }
        match providers.iter().find(|provider| !present.contains(provider)) {
            Some(&lacking) => Err(OnnxRuntimeError::Provider { lacking, present }),
            None => Ok(OnnxRuntime { providers: providers.to_vec() }),
        }
    }
}

impl Engine for OnnxRuntime {
    fn name(&self) -> &'static str {
        "ort"
    }

    fn load(&self, onnx: &[u8], name: &str) -> Result<Arc<dyn Graph>, EngineError> {
        let session = session(onnx, &self.providers)
            .map_err(|reason| EngineError::Load { name: name.to_owned(), reason })?;
        Ok(Arc::new(Prepared { name: name.to_owned(), session: Mutex::new(session) }))
    }
}

fn not_loaded(error: LoadDynamicError) -> OnnxRuntimeError {
    OnnxRuntimeError::Library(match &error {
        // What the system's loader says, with the path.
        LoadDynamicError::Dlopen { error: failed, .. } => {
            failed.source().map_or_else(|| error.to_string(), ToString::to_string)
        }
        _ => error.to_string(),
    })
}

fn session(onnx: &[u8], providers: &[OrtProvider]) -> Result<Session, String> {
    let builder = Session::builder().map_err(|error| error.to_string())?;
    let builder = builder
        .with_optimization_level(GraphOptimizationLevel::All)
        .map_err(|error| error.to_string())?;
    let builder = builder.with_intra_threads(1).map_err(|error| error.to_string())?;
    let providers: Vec<ExecutionProviderDispatch> =
        providers.iter().map(|&provider| dispatch(provider).error_on_failure()).collect();
    let mut builder =
        builder.with_execution_providers(providers).map_err(|error| error.to_string())?;
    builder.commit_from_memory(onnx).map_err(|error| error.to_string())
}

fn is_present(provider: OrtProvider) -> ort::Result<bool> {
    match provider {
        OrtProvider::Cpu => CPU::default().is_available(),
        OrtProvider::Xnnpack => XNNPACK::default().is_available(),
        OrtProvider::Cuda => CUDA::default().is_available(),
        OrtProvider::Tensorrt => TensorRT::default().is_available(),
    }
}

fn dispatch(provider: OrtProvider) -> ExecutionProviderDispatch {
    match provider {
        // As without providers.
        OrtProvider::Cpu => CPU::default().with_arena_allocator(true).build(),
        OrtProvider::Xnnpack => {
            XNNPACK::default().with_intra_op_num_threads(NonZeroUsize::MIN).build()
        }
        OrtProvider::Cuda => CUDA::default().build(),
        OrtProvider::Tensorrt => TensorRT::default().build(),
    }
}

fn names(providers: &[OrtProvider]) -> String {
    providers.iter().map(OrtProvider::to_string).collect::<Vec<_>>().join(", ")
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
