//! Changes to a graph as it was exported, so that it runs with any number of pictures: what an exporter
//! has computed for one picture, or lets the graph compute of their number, is said without it.

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, NodeProto, TensorProto};

use super::shapes::Shapes;

/// Has every `Resize` resize by factors instead of to sizes, among which is the number of pictures.
pub(super) fn sizes_to_factors(graph: &mut GraphProto, shapes: &Shapes) {
    let mut factors = Vec::new();
    for node in graph.node.iter_mut().filter(|node| node.op_type == "Resize") {
        // Factors for some axes alone, or fitted to a ratio, are another matter.
        let special = ["axes", "keep_aspect_ratio_policy"];
        let plain = node.attribute.iter().all(|it| !special.contains(&&*it.name));
        let [from, _, _, sizes] = node.input.as_slice() else { continue };
        let known = shapes.get(from).zip(node.output.first().and_then(|it| shapes.get(it)));
        let Some(((from, _), (to, _))) = known.filter(|_| plain && !sizes.is_empty()) else {
            continue;
        };
        if from.len() != to.len() || from.contains(&0) {
            continue;
        }
        let name = format!("{}_factors", node.output[0]);
        node.input[2].clone_from(&name);
        node.input.truncate(3);
        factors.push(TensorProto {
            name,
            dims: vec![from.len() as i64],
            data_type: DataType::Float as i32,
            float_data: from.iter().zip(to).map(|(&from, &to)| factor(from, to)).collect(),
            ..TensorProto::default()
        });
    }
    graph.initializer.extend(factors);
}

/// The factor by which `from` becomes `to` when what is beyond a whole number is cut off.
fn factor(from: usize, to: usize) -> f32 {
    let factor = to as f32 / from as f32;
    if (from as f32 * factor) < to as f32 { factor.next_up() } else { factor }
}

/// Has every `Reshape` to one picture reshape to as many as there are.
pub(super) fn free_batch(graph: &mut GraphProto, shapes: &Shapes) {
    let GraphProto { node: nodes, initializer, .. } = graph;
    let mut constants = Vec::new();
    for at in 0..nodes.len() {
        let Some(mut shape) = fixed_shape(&nodes[at], nodes, initializer) else { continue };
        let from = nodes[at].input.first().and_then(|from| shapes.get(from));
        let Some((from, _)) = from else { continue };
        match (shape.as_mut_slice(), from.first()) {
            // As many as come in.
            ([first @ 1, _, ..], Some(1)) => *first = 0,
            // As many as are left over.
            ([first @ 1, rest @ ..], Some(_)) if rest.iter().all(|&side| side > 0) => *first = -1,
            _ => continue,
        }
        let name = format!("{}_shape", nodes[at].output[0]);
        nodes[at].input[1].clone_from(&name);
        constants.push(TensorProto {
            name,
            dims: vec![shape.len() as i64],
            data_type: DataType::Int64 as i32,
            int64_data: shape,
            ..TensorProto::default()
        });
    }
    initializer.extend(constants);
}

/// The shape that a node reshapes to, if that is a constant.
fn fixed_shape(
    node: &NodeProto,
    nodes: &[NodeProto],
    initializers: &[TensorProto],
) -> Option<Vec<i64>> {
    let zeros = node.attribute.iter().any(|it| it.name == "allowzero" && it.i != 0);
    if node.op_type != "Reshape" || zeros {
        return None;
    }
    let [_, shape] = node.input.as_slice() else { return None };
    let constant = || {
        let made = nodes.iter().find(|node| node.output.first() == Some(shape));
        made.filter(|node| node.op_type == "Constant")?.attribute.first()?.t.as_ref()
    };
    let tensor = initializers.iter().find(|it| it.name == *shape).or_else(constant)?;
    let raw = tensor.raw_data.as_chunks::<8>().0.iter().map(|&word| i64::from_le_bytes(word));
    match tensor.int64_data.as_slice() {
        [] => Some(raw.collect()),
        values => Some(values.to_vec()),
    }
}
