//! Resizing by factors in place of sizes, among which an exporter has the number of pictures.

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, NodeProto, TensorProto};

use super::ends::{Ends, integer};
use super::shapes::Shapes;

/// Has every `Resize` resize by factors instead of to sizes.
pub(super) fn sizes_to_factors(graph: &mut GraphProto, shapes: &Shapes) {
    let mut ends = Ends::new(graph, "resized");
    let mut factors = Vec::new();
    let mut nodes = Vec::new();
    for mut node in std::mem::take(&mut graph.node) {
        if let Some((from, to)) = sides(&node, shapes) {
            if repeats(&node, &from, &to) {
                repeat(&node, &from, &to, &mut ends);
                nodes.append(&mut ends.nodes);
                continue;
            }
            let name = format!("{}_factors", node.output[0]);
            node.input[2].clone_from(&name);
            node.input.truncate(3);
            factors.push(TensorProto {
                name,
                dims: vec![from.len() as i64],
                data_type: DataType::Float as i32,
                float_data: from.iter().zip(&to).map(|(&from, &to)| factor(from, to)).collect(),
                ..TensorProto::default()
            });
        }
        nodes.push(node);
    }
    graph.node = nodes;
    graph.initializer.extend(factors);
    ends.append_to(graph);
}

/// The shapes before and behind a `Resize` to sizes, if it is one that can be changed.
fn sides(node: &NodeProto, shapes: &Shapes) -> Option<(Vec<usize>, Vec<usize>)> {
    // Factors for some axes alone, or fitted to a ratio, are another matter.
    let special = ["axes", "keep_aspect_ratio_policy"];
    let plain = node.attribute.iter().all(|it| !special.contains(&&*it.name));
    let [from, _, _, sizes] = node.input.as_slice() else { return None };
    let (from, _) = shapes.get(from)?;
    let (to, _) = shapes.get(node.output.first()?)?;
    let changes = node.op_type == "Resize" && plain && !sizes.is_empty();
    (changes && from.len() == to.len() && !from.contains(&0)).then(|| (from.clone(), to.clone()))
}

/// Whether values are only repeated, of maps, by factors that have no exact float: what is rounded
/// where a value begins anew would be another's.
fn repeats(node: &NodeProto, from: &[usize], to: &[usize]) -> bool {
    let is = |name: &str, usual: &str, wanted: &str| {
        let given = node.attribute.iter().find(|it| it.name == name);
        given.map_or(usual.as_bytes(), |it| it.s.as_slice()) == wanted.as_bytes()
    };
    is("mode", "nearest", "nearest")
        && is("coordinate_transformation_mode", "half_pixel", "asymmetric")
        && is("nearest_mode", "round_prefer_floor", "floor")
        && from.len() == 4
        && from[..2] == to[..2]
        && from.iter().zip(to).any(|(from, to)| to % from != 0)
}

/// Takes rows and columns by their positions.
fn repeat(node: &NodeProto, from: &[usize], to: &[usize], ends: &mut Ends) {
    let mut last = node.input[0].clone();
    for axis in [2, 3] {
        let places: Vec<i64> =
            (0..to[axis]).map(|at| (at * from[axis] / to[axis]) as i64).collect();
        let places = ends.integers(&places);
        last = ends.node("Gather", &[&last, &places], vec![integer("axis", axis as i64)]);
    }
    ends.name_last(&node.output[0]);
}

/// The factor by which `from` becomes `to` when what is beyond a whole number is cut off, in single
/// precision or double.
fn factor(from: usize, to: usize) -> f32 {
    let factor = to as f32 / from as f32;
    if (from as f64 * f64::from(factor)) < to as f64 { factor.next_up() } else { factor }
}

#[cfg(test)]
mod tests {
    use super::factor;

    #[test]
    fn a_factor_gives_the_size() {
        for (from, to) in (1..80).flat_map(|from| (1..80).map(move |to| (from, to))) {
            let factor = factor(from, to);
            assert_eq!((from as f32 * factor).floor(), to as f32, "{from}, {to}");
            assert_eq!((from as f64 * f64::from(factor)).floor(), to as f64, "{from}, {to}");
        }
    }
}
