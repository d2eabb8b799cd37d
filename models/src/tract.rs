//! [`Engine`] by tract: pure Rust, no system library.

use std::io::Cursor;
use std::sync::{Arc, Mutex, PoisonError};

use tract_onnx::prelude::*;
use tract_onnx::tract_core::model::TypedModelPatch;
use tract_onnx::tract_core::ops::cast::Cast;

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
        let plan = prepare(onnx)
            .map_err(|error| EngineError::Load { name: name.to_owned(), reason: reason(&error) })?;
        Ok(Arc::new(Plan { name: name.to_owned(), plan, idle: Mutex::default() }))
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
                let data = output.to_plain_array_view::<f32>()?.iter().copied().collect();
                Ok(Tensor { shape: output.shape().to_vec(), data })
            })
            .collect()
    }
}

fn prepare(onnx: &[u8]) -> TractResult<Arc<TypedSimplePlan>> {
    let model = tract_onnx::onnx().model_for_read(&mut Cursor::new(onnx))?;
    let mut model = model.into_typed()?;
    widen_weights(&mut model)?;
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
        let Some(stored) = &model.outlet_fact(node.inputs[0])?.konst else { continue };
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
