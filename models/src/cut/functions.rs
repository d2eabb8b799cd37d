//! Functions that an ONNX file defines for itself, put in the place of their calls: no engine need know
//! of them, and a cut can lie within one.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use tract_onnx::pb::{AttributeProto, ModelProto, NodeProto, OperatorSetIdProto};

use super::error::CutError;
use super::graph::label;

/// Calls within calls: a file whose functions call each other in a circle has no end.
const MOST_CALLS: usize = 64;
/// Nodes of a graph, once every call is replaced.
const MOST_NODES: usize = 1 << 18;

/// A model's functions with their attributes' usual values, which tract's schema leaves out.
#[derive(Clone, PartialEq, Message)]
struct WithFunctions {
    #[prost(message, repeated, tag = "25")]
    functions: Vec<Function>,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, repeated, tag = "4")]
    inputs: Vec<String>,
    #[prost(string, repeated, tag = "5")]
    outputs: Vec<String>,
    #[prost(message, repeated, tag = "7")]
    nodes: Vec<NodeProto>,
    #[prost(message, repeated, tag = "9")]
    operators: Vec<OperatorSetIdProto>,
    #[prost(string, tag = "10")]
    domain: String,
    /// Attributes with the values that they have where a call gives none.
    #[prost(message, repeated, tag = "11")]
    defaults: Vec<AttributeProto>,
}

/// Replaces every call of one of the file's own functions in `proto`, which was read from `onnx`.
pub(super) fn inline(onnx: &[u8], proto: &mut ModelProto) -> Result<(), CutError> {
    let read = WithFunctions::decode(onnx).map_err(|error| CutError::NotOnnx(error.to_string()))?;
    let Some(graph) = proto.graph.as_mut().filter(|_| !read.functions.is_empty()) else {
        return Ok(());
    };
    let functions: BTreeMap<(&str, &str), &Function> =
        read.functions.iter().map(|it| ((it.domain.as_str(), it.name.as_str()), it)).collect();
    let calls =
        |node: &NodeProto| functions.get(&(node.domain.as_str(), node.op_type.as_str())).copied();

    let mut prefix = "in_function".to_owned();
    let taken = |prefix: &str| {
        let tensors = graph.node.iter().flat_map(|node| node.input.iter().chain(&node.output));
        tensors.chain(graph.initializer.iter().map(|it| &it.name)).any(|it| it.starts_with(prefix))
    };
    while taken(&prefix) {
        prefix.push('_');
    }
    let (mut nodes, mut called, mut operators) = (Vec::new(), 0, Vec::new());
    // The last is next, so that a call's nodes take its place.
    let mut open: Vec<(NodeProto, usize)> =
        graph.node.drain(..).rev().map(|node| (node, 0)).collect();
    while let Some((node, depth)) = open.pop() {
        let Some(function) = calls(&node) else {
            nodes.push(node);
            continue;
        };
        if depth == MOST_CALLS || nodes.len() + open.len() + function.nodes.len() > MOST_NODES {
            return Err(CutError::Functions { node: label(&node), function: node.op_type });
        }
        called += 1;
        operators.extend(function.operators.iter().map(|set| (function, set)));
        let body = body(function, &node, &format!("{prefix}{called}/"));
        open.extend(body.into_iter().rev().map(|node| (node, depth + 1)));
    }
    graph.node = nodes;
    proto.functions.clear();
    for (function, set) in operators {
        import(proto, &function.name, set)?;
    }
    Ok(())
}

/// Has the model know the operators that a function knows.
fn import(
    proto: &mut ModelProto,
    function: &str,
    set: &OperatorSetIdProto,
) -> Result<(), CutError> {
    // The empty name and this one are the same.
    let domain = |set: &OperatorSetIdProto| match set.domain.as_str() {
        "ai.onnx" => String::new(),
        domain => domain.to_owned(),
    };
    match proto.opset_import.iter().find(|it| domain(it) == domain(set)) {
        None => proto.opset_import.push(set.clone()),
        Some(known) if known.version == set.version => {}
        Some(known) => {
            return Err(CutError::FunctionVersion {
                function: function.to_owned(),
                version: set.version,
                graph: known.version,
            });
        }
    }
    Ok(())
}

/// A function's nodes with the names and attributes of a call; what is inside alone gets `prefix`.
fn body(function: &Function, call: &NodeProto, prefix: &str) -> Vec<NodeProto> {
    let outside = |inside: &[String], outside: &[String]| -> BTreeMap<String, String> {
        // One that the call leaves out has no name.
        let given = outside.iter().cloned().chain(std::iter::repeat(String::new()));
        inside.iter().cloned().zip(given).collect()
    };
    let inputs = outside(&function.inputs, &call.input);
    let mut outputs = outside(&function.outputs, &call.output);
    outputs.retain(|_, name| !name.is_empty());
    let passed: BTreeSet<String> =
        outputs.keys().filter(|name| inputs.contains_key(*name)).cloned().collect();
    let name = |inside: &String| match (inside.as_str(), inputs.get(inside), outputs.get(inside)) {
        ("", ..) => String::new(),
        (_, Some(name), _) | (_, None, Some(name)) => name.clone(),
        _ => format!("{prefix}{inside}"),
    };
    let attribute = |attribute: &AttributeProto| match attribute.ref_attr_name.as_str() {
        "" => Some(attribute.clone()),
        of => {
            let given = call.attribute.iter().chain(&function.defaults).find(|it| it.name == of)?;
            Some(AttributeProto { name: attribute.name.clone(), ..given.clone() })
        }
    };
    let inner = function.nodes.iter().map(|node| NodeProto {
        input: node.input.iter().map(name).collect(),
        output: node.output.iter().map(name).collect(),
        // None of the calls' may have the same.
        name: String::new(),
        attribute: node.attribute.iter().filter_map(attribute).collect(),
        ..node.clone()
    });
    // An output that is one of the inputs as it is.
    let same = passed.iter().map(|it| NodeProto {
        input: vec![inputs[it].clone()],
        output: vec![outputs[it].clone()],
        op_type: "Identity".into(),
        ..NodeProto::default()
    });
    inner.chain(same).collect()
}
