//! A graph that was exported for one picture, changed so that it runs with any number.
//!
//! Where a tensor has the pictures is followed from the input on: one axis, whose extent for one picture
//! may be more than one (windows of a map that stand behind each other), the pictures outermost in it.
//! Every reshape and expansion then has that axis take what there is, and a constant that is joined
//! with what depends on a picture is repeated for each.

use std::collections::BTreeMap;

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, NodeProto, TensorProto};

use super::ends::{Ends, integer};
use super::graph::used;
use super::layout::permutation;
use super::shapes::Shapes;

/// Of each tensor that depends on the picture the axis of the pictures, if it has one that is known.
type Axes = BTreeMap<String, Option<usize>>;

/// Changes `graph`. One that left the number of pictures free needs to compute no shape with it then,
/// which would lead around its cuts.
pub(super) fn free_batch(graph: &mut GraphProto, input: &str, shapes: &Shapes) {
    let axes = batch_axes(graph, input, shapes);
    let mut ends = Ends::new(graph, "for_all");
    let mut nodes = Vec::new();
    for mut node in std::mem::take(&mut graph.node) {
        match node.op_type.as_str() {
            "Reshape" | "Expand" => {
                if let Some(shape) = free_shape(&node, &axes, shapes)
                    && let Some(target) = node.input.get_mut(1)
                {
                    *target = ends.integers(&shape);
                    node.attribute.retain(|attribute| attribute.name != "allowzero");
                }
            }
            "Concat" => repeat_constants(&mut node, &axes, shapes, &mut ends),
            _ => {}
        }
        nodes.append(&mut ends.nodes);
        nodes.push(node);
    }
    graph.node = nodes;
    ends.append_to(graph);
}

/// The target of a reshape or an expansion, with the pictures' extent left open.
fn free_shape(node: &NodeProto, axes: &Axes, shapes: &Shapes) -> Option<Vec<i64>> {
    let from = node.input.first()?;
    let output = node.output.first()?;
    let ((from_shape, _), (to, _)) = (shapes.get(from)?, shapes.get(output)?);
    let (at, to_at) = ((*axes.get(from)?)?, (*axes.get(output)?)?);
    if to.contains(&0) {
        return None;
    }
    let mut shape: Vec<i64> = to.iter().map(|&side| side as i64).collect();
    shape[to_at] = match node.op_type.as_str() {
        // An extent of 1 takes what is there.
        "Expand" => (from_shape[at] == to[to_at]).then_some(1)?,
        _ if at == to_at && from_shape[at] == to[to_at] => 0,
        _ => -1,
    };
    Some(shape)
}

/// Has a constant operand of a concatenation repeated for every picture.
fn repeat_constants(node: &mut NodeProto, axes: &Axes, shapes: &Shapes, ends: &mut Ends) {
    let depends = node.input.iter().find(|it| axes.contains_key(*it)).cloned();
    let Some((of, Some(at))) = depends.as_ref().and_then(|of| Some((of, *axes.get(of)?))) else {
        return;
    };
    let along = node.attribute.iter().find(|it| it.name == "axis").map_or(0, |it| it.i);
    let Some(rank) = shapes.get(of).map(|(shape, _)| shape.len()) else { return };
    let along = if along < 0 { along + rank as i64 } else { along };
    if along == at as i64 {
        return;
    }
    for operand in &mut node.input {
        let shape = match shapes.get(operand) {
            Some((shape, _)) if shape.get(at) == Some(&1) => shape,
            _ => continue,
        };
        if axes.contains_key(operand) {
            continue;
        }
        let (all, first, second) = (ends.node("Shape", &[of], vec![]), at as i64, at as i64 + 1);
        let [first, second] = [first, second].map(|it| ends.integers(&[it]));
        let count = ends.node("Slice", &[&all, &first, &second], vec![]);
        let sides: Vec<i64> = shape.iter().map(|&side| side as i64).collect();
        let [before, behind] =
            [&sides[..at], &sides[at + 1..]].map(|sides| (!sides.is_empty()).then_some(sides));
        let before = before.map(|sides| ends.integers(sides));
        let behind = behind.map(|sides| ends.integers(sides));
        let parts: Vec<&str> =
            before.iter().chain([&count]).chain(&behind).map(String::as_str).collect();
        let target = ends.node("Concat", &parts, vec![integer("axis", 0)]);
        *operand = ends.node("Expand", &[operand, &target], vec![]);
    }
}

fn batch_axes(graph: &GraphProto, input: &str, shapes: &Shapes) -> Axes {
    let mut axes = Axes::from([(input.to_owned(), Some(0))]);
    for node in &graph.node {
        let from = used(node).filter_map(|input| Some((input, *axes.get(input)?)));
        // Of several operands the first whose pictures are known; of all of them, the first.
        let mut from: Vec<(String, Option<usize>)> =
            from.map(|(name, axis)| (name.to_owned(), axis)).collect();
        from.sort_by_key(|(_, axis)| axis.is_none());
        let Some((from, axis)) = from.into_iter().next() else { continue };
        let axis = axis.and_then(|axis| batch_axis(node, graph, &from, axis, shapes));
        axes.extend(node.output.iter().map(|output| (output.clone(), axis)));
    }
    axes
}

/// Where a node's outputs have the pictures that its input `from` has along `axis`.
fn batch_axis(
    node: &NodeProto,
    graph: &GraphProto,
    from: &str,
    axis: usize,
    shapes: &Shapes,
) -> Option<usize> {
    let (input, _) = shapes.get(from)?;
    let output =
        node.output.first().and_then(|output| shapes.get(output)).map(|(shape, _)| shape)?;
    let number = |name: &str| node.attribute.iter().find(|it| it.name == name).map(|it| it.i);
    let along = |axis: i64, rank: usize| {
        usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok()
    };
    match node.op_type.as_str() {
        "Shape" | "Size" | "NonZero" => None,
        "Transpose" => permutation(node, input.len()).iter().position(|&it| it == axis),
        "Reshape" | "Flatten" => reshaped(axis, input, output),
        "Squeeze" | "Unsqueeze" => {
            let longer = input.len().max(output.len());
            let listed = listed_axes(node, graph)?;
            let listed: Option<Vec<usize>> = listed.iter().map(|&it| along(it, longer)).collect();
            let listed = listed?;
            if node.op_type == "Squeeze" {
                let before = listed.iter().filter(|&&it| it < axis).count();
                return (!listed.contains(&axis)).then_some(axis - before);
            }
            (0..longer).filter(|at| !listed.contains(at)).nth(axis)
        }
        "Gather" => {
            let at = along(number("axis").unwrap_or(0), input.len())?;
            let more = output.len() + 1;
            match at.cmp(&axis) {
                std::cmp::Ordering::Equal => None,
                std::cmp::Ordering::Greater => Some(axis),
                std::cmp::Ordering::Less => (axis + more).checked_sub(input.len() + 1),
            }
        }
        "Einsum" => {
            let equation = node.attribute.iter().find(|it| it.name == "equation")?;
            let equation: String =
                String::from_utf8_lossy(&equation.s).chars().filter(|it| *it != ' ').collect();
            let (operands, result) = equation.split_once("->")?;
            let operand = node.input.iter().position(|it| it == from)?;
            let letter = operands.split(',').nth(operand)?.chars().nth(axis)?;
            result.chars().position(|it| it == letter)
        }
        op if op.starts_with("Reduce") || op.starts_with("Arg") => {
            if number("keepdims") != Some(0) {
                return Some(axis);
            }
            let listed = number("axis").map(|it| vec![it]).or_else(|| listed_axes(node, graph));
            let listed = listed?.into_iter().map(|it| along(it, input.len()));
            let listed = listed.collect::<Option<Vec<usize>>>()?;
            let before = listed.iter().filter(|&&it| it < axis).count();
            (!listed.contains(&axis)).then_some(axis - before)
        }
        // Sums and the like, of operands that are aligned at their last axes.
        _ => (axis + output.len()).checked_sub(input.len()),
    }
}

/// The axes that a node names in an attribute or, since operator set 13, in its second input.
fn listed_axes(node: &NodeProto, graph: &GraphProto) -> Option<Vec<i64>> {
    if let Some(axes) = node.attribute.iter().find(|it| it.name == "axes") {
        return Some(axes.ints.clone());
    }
    let name = node.input.get(1)?;
    graph.initializer.iter().find(|it| it.name == *name).and_then(whole_numbers)
}

/// The values of a small constant of 64-bit whole numbers.
fn whole_numbers(tensor: &TensorProto) -> Option<Vec<i64>> {
    if tensor.data_type != DataType::Int64 as i32 {
        return None;
    }
    let eight = |bytes: &[u8]| <[u8; 8]>::try_from(bytes).ok().map(i64::from_le_bytes);
    match tensor.raw_data.is_empty() {
        true => Some(tensor.int64_data.clone()),
        false => tensor.raw_data.chunks_exact(8).map(eight).collect(),
    }
}

/// The axis of the shape `to` that takes the pictures of an axis of the shape `from` of the same
/// values: the one with as many values before it, of several one of extent 1, the nearest.
fn reshaped(axis: usize, from: &[usize], to: &[usize]) -> Option<usize> {
    let before = |shape: &[usize], at: usize| shape[..at].iter().product::<usize>();
    let same = (0..to.len()).filter(|&at| before(to, at) == before(from, axis));
    same.min_by_key(|&at| (from[axis] == 1 && to[at] != 1, at.abs_diff(axis)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_found_behind_a_reshape() {
        // Tokens of a map, windows of a map, windows joined, heads split off.
        assert_eq!(reshaped(0, &[1, 6, 8, 8], &[1, 6, 64]), Some(0));
        assert_eq!(reshaped(0, &[1, 2, 2, 4, 4, 6], &[4, 16, 6]), Some(0));
        assert_eq!(reshaped(0, &[4, 16, 6], &[1, 2, 2, 4, 4, 6]), Some(0));
        assert_eq!(reshaped(0, &[1, 6], &[1, 1, 6]), Some(0));
        // Places first, as attention with its batch second has them: heads go to the pictures.
        assert_eq!(reshaped(1, &[16, 1, 6], &[16, 3, 2]), Some(1));
        assert_eq!(reshaped(1, &[16, 3, 2], &[16, 1, 6]), Some(1));
        assert_eq!(reshaped(1, &[16, 1, 6], &[96]), None);
    }
}
