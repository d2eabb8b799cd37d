//! [`Engine`] by tract: pure Rust, no system library.

mod convolution;

use std::hint::black_box;
use std::io::Cursor;
use std::sync::{Arc, Mutex, Once, PoisonError};

use tract_onnx::prelude::*;
use tract_onnx::tract_core::internal::TractErrorContext;
use tract_onnx::tract_core::model::TypedModelPatch;
use tract_onnx::tract_core::ops::cast::Cast;

use self::convolution::{channels_at_once, direct_convolutions};
use crate::engine::{Engine, EngineError, Graph, Tensor, TensorView};

/// The embedded engine.
///
/// A graph is optimised once, when it is loaded. Where its batch dimension is free it stays a
/// symbol in the plan, so one plan and one copy of the packed weights serve every batch size.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tract;

impl Engine for Tract {
    fn name(&self) -> &'static str {
        "tract"
    }

    fn load(&self, onnx: &[u8], name: &str) -> Result<Arc<dyn Graph>, EngineError> {
        keep_freed_memory();
        // tract's optimiser has its faults: one is a 1×1 convolution with a stride behind another.
        let plan = prepare(onnx).or_else(|error| match plain(onnx) {
            Ok(plain) => {
                let reason = reason(&error);
                tracing::warn!(name, reason, "tract's optimiser fails: the graph runs without it");
                Ok(plain)
            }
            // What is no graph to the one is none to the other.
            Err(_) => Err(error),
        });
        Plan::load(plan, name)
    }
}

/// tract without its optimiser and without our rewrites, for reference values.
///
/// Each node of the ONNX graph is computed by itself, in the order and layout of the file: no
/// convolution takes in what stands around it, none is a [`Tract`]'s direct one, and no axis is
/// moved or dropped. It is slow.
#[derive(Clone, Copy, Debug, Default)]
pub struct PlainTract;

impl Engine for PlainTract {
    fn name(&self) -> &'static str {
        "tract-plain"
    }

    fn load(&self, onnx: &[u8], name: &str) -> Result<Arc<dyn Graph>, EngineError> {
        Plan::load(plain(onnx), name)
    }
}

struct Plan {
    name: String,
    plan: Arc<TypedSimplePlan>,
    /// States of past runs: a state carries a run's intermediate values and is costly to make.
    idle: Mutex<Vec<TypedSimpleState>>,
}

impl Graph for Plan {
    fn run(&self, inputs: &[TensorView<'_>]) -> Result<Vec<Tensor>, EngineError> {
        self.run_plan(inputs)
            .map_err(|error| EngineError::Run { name: self.name.clone(), reason: reason(&error) })
    }
}

impl Plan {
    /// A graph of this plan, or why there is none.
    fn load(
        plan: TractResult<Arc<TypedSimplePlan>>,
        name: &str,
    ) -> Result<Arc<dyn Graph>, EngineError> {
        let name = name.to_owned();
        match plan {
            Ok(plan) => Ok(Arc::new(Plan { name, plan, idle: Mutex::default() })),
            Err(error) => Err(EngineError::Load { name, reason: reason(&error) }),
        }
    }

    fn run_plan(&self, inputs: &[TensorView<'_>]) -> TractResult<Vec<Tensor>> {
        let values = inputs
            .iter()
            .map(|input| {
                Ok(tract_onnx::prelude::Tensor::from_shape(input.shape, input.data)?.into())
            })
            .collect::<TractResult<_>>()?;
        let reused = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut state = match reused {
            Some(state) => state,
            None => self.plan.spawn()?,
        };
        let outputs = state.run(values)?;
        // A state that failed may hold half a run, so only one that came this far is kept.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(state);
        outputs
            .into_iter()
            .map(|output| {
                let values = output.to_plain_array_view::<f32>()?;
                let data = values.as_slice().context("not row-major")?.to_vec();
                Ok(Tensor { shape: output.shape().to_vec(), data })
            })
            .collect()
    }
}

/// Has glibc keep what is freed.
///
/// Intermediate values come and go by the megabyte in every run, and are returned to the system
/// and faulted in again page by page as soon as twice the largest block that was ever mapped by
/// itself lies free. To free one of almost the largest such size, untouched, raises that for good.
/// Other allocators don't mind.
fn keep_freed_memory() {
    static DONE: Once = Once::new();
    DONE.call_once(|| drop(black_box(Vec::<u8>::with_capacity(31 << 20))));
}

/// The nodes of an ONNX file, with the shapes and types of all their values.
fn read(onnx: &[u8]) -> TractResult<TypedModel> {
    tract_onnx::onnx().model_for_read(&mut Cursor::new(onnx))?.into_typed()
}

fn plain(onnx: &[u8]) -> TractResult<Arc<TypedSimplePlan>> {
    read(onnx)?.into_runnable()
}

fn prepare(onnx: &[u8]) -> TractResult<Arc<TypedSimplePlan>> {
    let mut model = read(onnx)?;
    widen_weights(&mut model)?;
    // Only then has a convolution taken in what else it can: a padding, a factor for each channel.
    let mut model = model.into_decluttered()?;
    direct_convolutions(&mut model, channels_at_once())?;
    model.into_optimized()?.into_runnable()
}

/// Turns weights that are stored in half precision into f32 constants.
///
/// tract folds constants too, but not where the result exceeds a few megabytes: such a weight
/// would be widened again in every run.
fn widen_weights(model: &mut TypedModel) -> TractResult<()> {
    for id in 0..model.nodes.len() {
        let node = &model.nodes[id];
        let Some(cast) = node.op_as::<Cast>() else { continue };
        let &[input] = &*node.inputs else { continue };
        let Some(stored) = &model.outlet_fact(input)?.konst else { continue };
        let widened = stored.cast_to_dt(cast.to)?.into_owned();
        let mut patch = TypedModelPatch::default();
        let constant = patch.add_const(&node.name, widened)?;
        patch.shunt_outside(model, id.into(), constant)?;
        patch.apply(model)?;
    }
    Ok(())
}

/// An error's causes in one line.
fn reason(error: &TractError) -> String {
    format!("{error:#}")
}

#[cfg(all(test, target_os = "linux", target_env = "gnu"))]
mod tests {
    use std::fs;

    use super::*;

    /// Pages that the system had to give this thread so far.
    fn faults() -> u64 {
        let stat = fs::read_to_string("/proc/thread-self/stat").expect("Linux tells");
        let (_, fields) = stat.rsplit_once(") ").expect("a name in brackets");
        fields.split(' ').nth(7).expect("minflt").parse().expect("a number")
    }

    #[test]
    fn values_of_one_run_have_the_pages_of_the_last() {
        keep_freed_memory();
        let run = || drop([(); 8].map(|()| black_box(vec![1u8; 1 << 20])));
        run();
        let before = faults();
        (0..10).for_each(|_| run());
        assert!(faults() - before < 256, "{} pages of 20480", faults() - before);
    }
}
