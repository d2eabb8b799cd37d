//! Questions to an ONNX graph: whether it can be cut, where, and what each part of it needs.

use std::collections::{BTreeMap, BTreeSet};

use strsim::levenshtein;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, NodeProto, TensorProto, ValueInfoProto, type_proto,
};

use super::error::CutError;

/// Names shown for one that does not exist.
const NEAREST: usize = 5;

/// Refuses weights in other files, and control flow.
pub(super) fn refuse_what_cannot_be_cut(graph: &GraphProto) -> Result<(), CutError> {
    let external = |tensor: &TensorProto| {
        tensor.data_location == Some(DataLocation::External as i32)
            || !tensor.external_data.is_empty()
    };
    let attributes = || graph.node.iter().flat_map(|node| &node.attribute);
    let constants = attributes().flat_map(|attribute| attribute.t.iter().chain(&attribute.tensors));
    if let Some(tensor) = graph.initializer.iter().chain(constants).find(|tensor| external(tensor))
    {
        return Err(CutError::ExternalData { tensor: tensor.name.clone() });
    }
    let branches =
        |attribute: &AttributeProto| attribute.g.is_some() || !attribute.graphs.is_empty();
    match graph.node.iter().find(|node| node.attribute.iter().any(branches)) {
        None => Ok(()),
        Some(node) => Err(CutError::ControlFlow {
            node: label(node),
            op: node.op_type.clone(),
            before: last_layers(graph, &used(node).collect()),
        }),
    }
}

/// Leaves in `graph` what these outputs need, and makes them its only ones.
pub(super) fn keep_only(graph: &mut GraphProto, outputs: &[String]) -> Result<(), CutError> {
    let made = |name: &str| graph.node.iter().any(|node| node.output.iter().any(|it| it == name));
    if let Some(tensor) = outputs.iter().find(|name| !made(name)) {
        let near = nearest(tensor, graph.node.iter().flat_map(|node| &node.output));
        return Err(CutError::Unknown { tensor: tensor.clone(), near });
    }
    if !outputs.is_empty() {
        let output =
            |name: &String| ValueInfoProto { name: name.clone(), ..ValueInfoProto::default() };
        graph.output = outputs.iter().map(output).collect();
    }
    let names = graph.output.iter().map(|output| output.name.as_str()).collect();
    let needed = needed(graph, &names, &BTreeSet::new());
    let mut needed = needed.into_iter();
    graph.node.retain(|_| needed.next().unwrap_or(true));
    let used: BTreeSet<String> = graph.node.iter().flat_map(used).map(str::to_owned).collect();
    graph.initializer.retain(|weights| used.contains(&weights.name));
    Ok(())
}

/// The names that are the most like `name`.
pub(super) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a String>) -> Vec<String> {
    let mut near: Vec<(usize, &String)> = names.map(|it| (levenshtein(it, name), it)).collect();
    near.sort();
    near.into_iter().take(NEAREST).map(|(_, name)| name.clone()).collect()
}

/// The input of a graph that takes pictures.
#[derive(Clone)]
pub(super) struct PictureInput {
    pub(super) name: String,
    /// Width and height (pixels).
    pub(super) size: [u32; 2],
    /// Whether the graph has pictures of any size.
    pub(super) free_size: bool,
}

/// The input of `graph`, at this size where the graph leaves it free.
pub(super) fn picture_input(
    graph: &GraphProto,
    size: Option<[u32; 2]>,
) -> Result<PictureInput, CutError> {
    let [input] = graph.input.as_slice() else {
        let found = graph.input.iter().map(|input| input.name.clone()).collect();
        return Err(CutError::NotOne { what: "input", found });
    };
    let name = input.name.clone();
    let Some(type_proto::Value::TensorType(tensor)) =
        input.r#type.as_ref().and_then(|kind| kind.value.as_ref())
    else {
        return Err(CutError::Input { name, found: "of no known type".into() });
    };
    let dims: Vec<Option<u32>> =
        tensor.shape.iter().flat_map(|shape| &shape.dim).map(side).collect();
    let sides: Vec<String> =
        dims.iter().map(|side| side.map_or("?".into(), |side| side.to_string())).collect();
    let kind = match DataType::try_from(tensor.elem_type) {
        Ok(DataType::Float) => "f32".to_owned(),
        Ok(other) => other.as_str_name().to_ascii_lowercase(),
        Err(_) => "of no known type".to_owned(),
    };
    let found = format!("{kind} [{}]", sides.join(", "));
    let [None | Some(1), Some(3), height, width] = *dims else {
        return Err(CutError::Input { name, found });
    };
    if kind != "f32" {
        return Err(CutError::Input { name, found });
    }
    let size = match (height.zip(width), size) {
        (Some((height, width)), None) => [width, height],
        (None, None) => return Err(CutError::FreeSize { name, found }),
        (_, Some([w, h])) => {
            let fits =
                height.is_none_or(|height| height == h) && width.is_none_or(|width| width == w);
            if !fits || !(1..=4096).contains(&w) || !(1..=4096).contains(&h) {
                return Err(CutError::Size { name, found, width: w, height: h });
            }
            [w, h]
        }
    };
    let free_size = height.is_none() || width.is_none();
    Ok(PictureInput { name, size, free_size })
}

/// A dimension's extent, if it is fixed.
fn side(dim: &Dimension) -> Option<u32> {
    match dim.value {
        Some(dimension::Value::DimValue(side)) => u32::try_from(side).ok().filter(|&side| side > 0),
        _ => None,
    }
}

/// Every tensor is made before it is used, so that one pass from front to back sees all of it.
pub(super) fn check_order(graph: &GraphProto) -> Result<(), CutError> {
    let named = graph.input.iter().map(|input| &input.name);
    let weights = graph.initializer.iter().map(|weights| &weights.name);
    let mut made: BTreeSet<&str> = named.chain(weights).map(String::as_str).collect();
    for node in &graph.node {
        let missing = used(node).find(|input| !made.contains(input));
        if let Some(tensor) = missing {
            return Err(CutError::Undefined { node: label(node), tensor: tensor.to_owned() });
        }
        made.extend(node.output.iter().map(String::as_str));
    }
    Ok(())
}

/// What depends on the picture and is still needed, behind every node that it depends on: the node's
/// position, and tensors that together are all that later nodes and the outputs need of the picture.
///
/// Where there is one, every path from the picture to an output leads through it.
pub(super) fn separators<'a>(
    graph: &'a GraphProto,
    input: &'a str,
    outputs: &BTreeSet<&'a str>,
) -> Vec<(usize, BTreeSet<&'a str>)> {
    let needed = needed(graph, outputs, &BTreeSet::new());
    let (mut depends, mut live) = (BTreeSet::from([input]), Vec::new());
    for (at, node) in graph.node.iter().enumerate() {
        if needed[at] && used(node).any(|tensor| depends.contains(tensor)) {
            depends.extend(node.output.iter().map(String::as_str));
            live.push(at);
        }
    }
    let mut last_use: BTreeMap<&str, usize> = BTreeMap::new();
    for &at in &live {
        last_use.extend(used(&graph.node[at]).map(|tensor| (tensor, at)));
    }
    last_use.extend(outputs.iter().map(|output| (*output, usize::MAX)));
    let (mut open, mut separators) = (BTreeSet::from([input]), Vec::new());
    for at in live {
        let made = graph.node[at].output.iter().map(String::as_str);
        open.extend(made.filter(|tensor| last_use.contains_key(tensor)));
        open.retain(|tensor| last_use.get(tensor).is_some_and(|&last| last > at));
        separators.push((at, open.clone()));
    }
    separators
}

/// Which nodes `outputs` need, looking no further back than `from`.
pub(super) fn needed(
    graph: &GraphProto,
    outputs: &BTreeSet<&str>,
    from: &BTreeSet<&str>,
) -> Vec<bool> {
    let mut wanted = outputs.clone();
    let mut needed = vec![false; graph.node.len()];
    for (node, needed) in graph.node.iter().zip(&mut needed).rev() {
        let wants = |tensor: &str| wanted.contains(tensor) && !from.contains(tensor);
        if node.output.iter().any(|tensor| wants(tensor)) {
            *needed = true;
            wanted.extend(used(node));
        }
    }
    needed
}

/// The layers with weights that `tensor` is computed from and behind which there is no other: what a
/// network ends in, where something that is no network follows.
pub(super) fn last_layers(graph: &GraphProto, tensors: &BTreeSet<&str>) -> Vec<String> {
    let mut wanted = tensors.clone();
    let mut layers = Vec::new();
    for node in graph.node.iter().rev() {
        if !node.output.iter().any(|tensor| wanted.contains(tensor.as_str())) {
            continue;
        }
        match node.op_type.as_str() {
            "Conv" | "ConvTranspose" | "Gemm" | "MatMul" => {
                layers.extend(node.output.first().cloned())
            }
            _ => wanted.extend(used(node)),
        }
    }
    layers.reverse();
    layers
}

/// The tensors that a node uses; one that it leaves out has no name.
pub(super) fn used(node: &NodeProto) -> impl Iterator<Item = &str> {
    node.input.iter().map(String::as_str).filter(|tensor| !tensor.is_empty())
}

/// The tensors that these nodes use.
pub(super) fn used_by<'a>(graph: &'a GraphProto, keep: &[bool]) -> BTreeSet<&'a str> {
    graph
        .node
        .iter()
        .zip(keep)
        .filter(|(_, keep)| **keep)
        .flat_map(|(node, _)| used(node))
        .collect()
}

/// Values of the float tensors of one dimension or more that these nodes use.
pub(super) fn parameters(graph: &GraphProto, keep: &[bool]) -> u64 {
    let used = used_by(graph, keep);
    let floats = [DataType::Float, DataType::Float16, DataType::Double].map(|kind| kind as i32);
    let weights = graph.initializer.iter().filter(|weights| {
        !weights.dims.is_empty()
            && floats.contains(&weights.data_type)
            && used.contains(&*weights.name)
    });
    let values = |weights: &TensorProto| {
        weights.dims.iter().fold(1, |values: u64, &side| values.saturating_mul(side.max(0) as u64))
    };
    weights.map(values).sum()
}

/// What a node is called in messages: few have a name, all have an output.
pub(super) fn label(node: &NodeProto) -> String {
    node.output.first().unwrap_or(&node.name).clone()
}
