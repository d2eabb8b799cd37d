//! A graph in the one form that cutting expects: constants are weights, weights are no inputs, and what
//! was reduced to half precision is computed in single.

use std::collections::BTreeSet;

use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto, TensorProto, type_proto};
use tract_onnx::prelude::f16;

use super::graph::used;

/// Values up to which half precision is widened in the file; more are widened where they are used, and
/// stay short in the file.
const FEW: usize = 16;
const HALF: i64 = DataType::Float16 as i64;
const SINGLE: i64 = DataType::Float as i64;

/// Brings a graph into this form.
pub(super) fn normalise(graph: &mut GraphProto) {
    constants_to_weights(graph);
    // Older files list their weights among the inputs.
    let weights: BTreeSet<String> = graph.initializer.iter().map(|it| it.name.clone()).collect();
    graph.input.retain(|input| !weights.contains(&input.name));
    if computes_in_halves(graph) {
        widen(graph);
    }
}

/// A `Constant` node's value becomes a weight, under the name that the node gave it.
fn constants_to_weights(graph: &mut GraphProto) {
    let mut weights = Vec::new();
    graph.node.retain(|node| {
        let value = match (node.op_type.as_str(), node.output.as_slice()) {
            ("Constant", [name]) => value(node, name),
            _ => None,
        };
        let stays = value.is_none();
        weights.extend(value);
        stays
    });
    graph.initializer.extend(weights);
}

fn value(node: &NodeProto, name: &str) -> Option<TensorProto> {
    let [attribute] = node.attribute.as_slice() else { return None };
    let of = |kind: DataType, dims: Vec<i64>| TensorProto {
        name: name.to_owned(),
        data_type: kind as i32,
        dims,
        ..TensorProto::default()
    };
    Some(match attribute.name.as_str() {
        "value" => TensorProto { name: name.to_owned(), ..attribute.t.clone()? },
        "value_float" => {
            TensorProto { float_data: vec![attribute.f], ..of(DataType::Float, vec![]) }
        }
        "value_floats" => {
            let count = attribute.floats.len() as i64;
            TensorProto { float_data: attribute.floats.clone(), ..of(DataType::Float, vec![count]) }
        }
        "value_int" => TensorProto { int64_data: vec![attribute.i], ..of(DataType::Int64, vec![]) },
        "value_ints" => {
            let count = attribute.ints.len() as i64;
            TensorProto { int64_data: attribute.ints.clone(), ..of(DataType::Int64, vec![count]) }
        }
        _ => return None,
    })
}

/// Whether the graph has halves not only as the form in which weights are stored.
fn computes_in_halves(graph: &GraphProto) -> bool {
    let halves: BTreeSet<&str> = graph
        .initializer
        .iter()
        .filter(|it| i64::from(it.data_type) == HALF)
        .map(|it| it.name.as_str())
        .collect();
    graph.node.iter().any(|node| match node.op_type.as_str() {
        "Cast" => node.attribute.iter().any(|it| it.name == "to" && it.i == HALF),
        _ => used(node).any(|tensor| halves.contains(tensor)),
    })
}

/// Has the graph compute in single precision: its engines do not gain by halves, and a cut sends
/// symbols of a few bits in any case.
fn widen(graph: &mut GraphProto) {
    let tensors = graph.input.iter_mut().filter_map(|input| input.r#type.as_mut()?.value.as_mut());
    for kind in tensors {
        if let type_proto::Value::TensorType(tensor) = kind
            && i64::from(tensor.elem_type) == HALF
        {
            tensor.elem_type = SINGLE as i32;
        }
    }
    for attribute in graph.node.iter_mut().flat_map(|node| &mut node.attribute) {
        if ["to", "dtype"].contains(&attribute.name.as_str()) && attribute.i == HALF {
            attribute.i = SINGLE;
        }
        if let Some(tensor) = attribute.t.as_mut() {
            widen_few(tensor);
        }
    }
    let mut casts = Vec::new();
    for weights in &mut graph.initializer {
        if !widen_few(weights) && i64::from(weights.data_type) == HALF {
            let name = weights.name.clone();
            weights.name.push_str("_half");
            let to = AttributeProto {
                name: "to".into(),
                r#type: AttributeType::Int as i32,
                i: SINGLE,
                ..AttributeProto::default()
            };
            casts.push(NodeProto {
                input: vec![weights.name.clone()],
                output: vec![name],
                op_type: "Cast".into(),
                attribute: vec![to],
                ..NodeProto::default()
            });
        }
    }
    graph.node.splice(0..0, casts);
}

/// Widens a tensor of few values; whether it was one.
fn widen_few(tensor: &mut TensorProto) -> bool {
    let values = tensor.dims.iter().fold(1i64, |values, &side| values.saturating_mul(side));
    if i64::from(tensor.data_type) != HALF || values < 0 || values as usize > FEW {
        return false;
    }
    let bits = |two: &[u8]| u16::from_le_bytes([two[0], two[1]]);
    let halves: Vec<u16> = match tensor.raw_data.is_empty() {
        true => tensor.int32_data.iter().map(|&value| value as u16).collect(),
        false => tensor.raw_data.chunks_exact(2).map(bits).collect(),
    };
    tensor.float_data = halves.into_iter().map(|half| f16::from_bits(half).to_f32()).collect();
    tensor.raw_data.clear();
    tensor.int32_data.clear();
    tensor.data_type = SINGLE as i32;
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn half(values: &[f32], raw: bool) -> TensorProto {
        let bits = values.iter().map(|&value| f16::from_f32(value).to_bits());
        let (raw_data, int32_data) = match raw {
            true => (bits.flat_map(u16::to_le_bytes).collect(), vec![]),
            false => (vec![], bits.map(i32::from).collect()),
        };
        let data_type = DataType::Float16 as i32;
        let dims = vec![values.len() as i64];
        TensorProto { dims, data_type, raw_data, int32_data, ..TensorProto::default() }
    }

    #[test]
    fn few_halves_are_widened_in_the_file_and_many_are_not() {
        for raw in [true, false] {
            let mut few = half(&[0.5, -2.0], raw);
            assert!(widen_few(&mut few));
            assert_eq!((few.float_data, few.data_type), (vec![0.5, -2.0], SINGLE as i32));
        }
        assert!(!widen_few(&mut half(&[1.0; FEW + 1], true)));
    }

    #[test]
    fn weights_that_are_only_stored_as_halves_stay_so() {
        let weights = TensorProto { name: "w".into(), ..half(&[1.0], true) };
        let node = |op: &str, input: &str| NodeProto {
            op_type: op.into(),
            input: vec![input.into()],
            ..NodeProto::default()
        };
        let graph = |op: &str| GraphProto {
            node: vec![node(op, "w")],
            initializer: vec![weights.clone()],
            ..GraphProto::default()
        };
        assert!(!computes_in_halves(&graph("Cast")));
        assert!(computes_in_halves(&graph("Relu")));
    }
}
