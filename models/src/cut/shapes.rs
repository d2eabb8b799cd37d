//! The shapes of a network's tensors for one picture, and the arithmetic that follows from them.

use std::collections::BTreeMap;

use tract_onnx::pb::{ModelProto, NodeProto};
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::Factoid;
use tract_onnx::tract_hir::internal::DimLike;

/// For one picture: shape, and whether the values are f32.
pub(super) type Shapes = BTreeMap<String, (Vec<usize>, bool)>;

/// Shapes of all tensors whose shape does not depend on a picture's values.
pub(super) fn infer(
    proto: &ModelProto,
    input: &str,
    [width, height]: [u32; 2],
) -> TractResult<Shapes> {
    let mut parsed = tract_onnx::onnx().parse(proto, None)?;
    let [width, height] = [width, height].map(|side| side as usize);
    let picture = InferenceFact::dt_shape(f32::datum_type(), tvec!(1, 3, height, width));
    if let Some(&outlet) = parsed.outlets_by_name.get(input) {
        parsed.model.set_outlet_fact(outlet, picture)?;
    }
    parsed.model.analyse(false)?;
    let mut shapes = Shapes::new();
    for (name, &outlet) in &parsed.outlets_by_name {
        let fact = parsed.model.outlet_fact(outlet)?;
        let Some(shape) = fact.shape.concretize() else { continue };
        let shape: Option<Vec<usize>> = shape.iter().map(|side| side.to_usize().ok()).collect();
        let float = fact.datum_type.concretize() == Some(f32::datum_type());
        shapes.extend(shape.map(|shape| (name.clone(), (shape, float))));
    }
    Ok(shapes)
}

/// Multiply-accumulates of a node.
pub(super) fn macs(node: &NodeProto, shapes: &Shapes) -> u64 {
    let shape = |tensor: Option<&String>| {
        tensor.and_then(|tensor| shapes.get(tensor)).map_or(&[][..], |(shape, _)| shape)
    };
    let product = |sides: &[usize]| {
        sides.iter().fold(1, |product: u64, &side| product.saturating_mul(side as u64))
    };
    let (first, second) = (shape(node.input.first()), shape(node.input.get(1)));
    let output = shape(node.output.first());
    if first.is_empty() || second.is_empty() || output.is_empty() {
        return 0;
    }
    let flag = |name: &str| node.attribute.iter().any(|it| it.name == name && it.i != 0);
    match &*node.op_type {
        "Conv" => product(output).saturating_mul(product(&second[1..])),
        "ConvTranspose" => product(first).saturating_mul(product(&second[1..])),
        "Gemm" if flag("transA") => product(output).saturating_mul(first[0] as u64),
        "Gemm" | "MatMul" => product(output).saturating_mul(first[first.len() - 1] as u64),
        _ => 0,
    }
}
