//! The axis along which each tensor of a network has its channels: the second, as ONNX's convolutions
//! have them, or the last, as transformers' layers do.

use std::collections::BTreeMap;

use tract_onnx::pb::{GraphProto, NodeProto};

use super::graph::used;
use super::shapes::Shapes;

/// The channels' axis of each tensor that depends on the picture; `None` where the operators do not say
/// which it is.
///
/// The picture has them second, and so has whatever a convolution or a pooling makes. Products with a
/// matrix of weights make new ones along the last axis. All else keeps the axis that it is given, or
/// moves it as it says.
pub(super) fn channel_axes<'a>(
    graph: &'a GraphProto,
    input: &'a str,
    shapes: &Shapes,
) -> BTreeMap<&'a str, Option<usize>> {
    let mut axes = BTreeMap::from([(input, Some(1))]);
    for node in &graph.node {
        let from = used(node).find_map(|input| Some((input, *axes.get(input)?)));
        if let Some((from, axis)) = from {
            let axis = channel_axis(node, from, axis, shapes);
            axes.extend(node.output.iter().map(|output| (output.as_str(), axis)));
        }
    }
    axes
}

/// The channels' axis of a node's outputs; `from` is the first of its inputs that depends on the
/// picture, and has them along `axis`.
fn channel_axis(
    node: &NodeProto,
    from: &str,
    axis: Option<usize>,
    shapes: &Shapes,
) -> Option<usize> {
    let (output, _) = shapes.get(node.output.first()?)?;
    let (input, _) = shapes.get(from)?;
    match &*node.op_type {
        "Conv"
        | "ConvTranspose"
        | "MaxPool"
        | "AveragePool"
        | "LpPool"
        | "GlobalAveragePool"
        | "GlobalMaxPool"
        | "BatchNormalization"
        | "InstanceNormalization"
        | "Resize"
        | "Upsample"
        | "DepthToSpace"
        | "SpaceToDepth" => Some(1),
        "MatMul" | "Gemm" => match node.input.first() {
            // A matrix of weights from the left makes new rows.
            Some(left) if left != from => output.len().checked_sub(2),
            _ => output.len().checked_sub(1),
        },
        "Transpose" => permutation(node, output.len()).iter().position(|&it| Some(it) == axis),
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" => reshaped(axis?, input, output),
        // Sums and the like, of operands that are aligned at their last axes.
        _ => (axis? + output.len()).checked_sub(input.len()),
    }
}

/// The order of a transposition's axes: as given, else reversed.
pub(super) fn permutation(node: &NodeProto, rank: usize) -> Vec<usize> {
    let given = node.attribute.iter().find(|attribute| attribute.name == "perm");
    match given {
        Some(given) => given.ints.iter().map(|&axis| axis as usize).collect(),
        None => (0..rank).rev().collect(),
    }
}

/// Where an axis of the shape `from` is in the shape `to` of the same values, if it still is one: with
/// the same extent, and as many values within one of its places; or merged with axes before it, both
/// times as the last.
fn reshaped(axis: usize, from: &[usize], to: &[usize]) -> Option<usize> {
    let product = |sides: &[usize]| sides.iter().product::<usize>();
    let extent = *from.get(axis)?;
    let same =
        |&at: &usize| to[at] == extent && product(&to[at + 1..]) == product(&from[axis + 1..]);
    // Of several, one more has an extent of 1: the nearest is meant.
    let kept = (0..to.len()).filter(same).min_by_key(|&at| at.abs_diff(axis));
    let merged = || {
        let last = *to.last()?;
        let whole = axis + 1 == from.len() && (0..axis).any(|at| product(&from[at..]) == last);
        whole.then_some(to.len() - 1)
    };
    kept.or_else(merged)
}
