//! Resizing by factors in place of sizes, among which an exporter has the number of pictures.

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, TensorProto};

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
