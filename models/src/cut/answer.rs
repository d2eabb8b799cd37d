//! What a network's answers are: rows of logits if it is a classifier, which may end in what turns them
//! into probabilities.

use std::collections::BTreeSet;

use tract_onnx::pb::{GraphProto, NodeProto};

use super::ends::{Ends, integer};
use super::shapes::Shapes;

/// What turned a classifier's logits into probabilities, and was cut off: a bundle's classifiers answer
/// with logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probabilities {
    /// Softmax: its probabilities come out as they were.
    Softmax,
    /// The logistic function of one value: yes or no. The value is the second of two logits, the first
    /// is zero, and the probabilities are as they were.
    YesOrNo,
    /// The logistic function of each of several values: the classes do not exclude each other, so the
    /// likeliest stays, but its share of all is not the probability that it had.
    Sigmoids,
}

/// Takes the last step of a classifier of `classes` classes away where it makes probabilities of
/// logits; `output` is its output.
pub(super) fn cut_probabilities_off(
    graph: &mut GraphProto,
    output: &str,
    shapes: &Shapes,
    operators: i64,
) -> Option<Probabilities> {
    let mut name = output.to_owned();
    let at = loop {
        let at = graph.node.iter().position(|node| node.output.contains(&name))?;
        let node = &graph.node[at];
        match node.op_type.as_str() {
            "Identity" | "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" | "Dropout" | "Cast" => {
                name.clone_from(node.input.first()?);
            }
            "Softmax" | "LogSoftmax" | "Sigmoid" => break at,
            _ => return None,
        }
    };
    // What comes with it elsewhere stays as it is.
    let users = graph.node.iter().filter(|node| node.input.contains(&name)).count();
    let (shape, _) = shapes.get(&name)?;
    let classes: usize = shape.iter().product();
    let node = &graph.node[at];
    if users > 1 || (node.op_type != "Sigmoid" && !over_classes(node, shape, operators)) {
        return None;
    }
    let sigmoid = node.op_type == "Sigmoid";
    let node = &mut graph.node[at];
    node.op_type = "Identity".into();
    node.attribute.clear();
    Some(match (sigmoid, classes) {
        (false, _) => Probabilities::Softmax,
        (true, 1) => Probabilities::YesOrNo,
        (true, _) => Probabilities::Sigmoids,
    })
}

/// Whether a softmax takes all classes of this shape (for one picture) together.
fn over_classes(node: &NodeProto, shape: &[usize], operators: i64) -> bool {
    let usual = if operators < 13 { 1 } else { -1 };
    let axis = node.attribute.iter().find(|it| it.name == "axis").map_or(usual, |it| it.i);
    let axis = if axis < 0 { axis + shape.len() as i64 } else { axis };
    let Ok(axis) = usize::try_from(axis) else { return false };
    // Until version 12 the axes from this one on were taken together.
    let taken: usize = match operators < 13 {
        true => shape.iter().skip(axis).product(),
        false => shape.get(axis).copied().unwrap_or(0),
    };
    taken == shape.iter().product::<usize>()
}

/// Puts a zero in front of the one value of `output`: with softmax the two are its logistic function.
pub(super) fn yes_or_no(graph: &GraphProto, output: &str) -> (Ends, String) {
    let mut ends = Ends::new(graph, "logits");
    let zero = ends.node("Sub", &[output, output], vec![]);
    let both = ends.node("Concat", &[&zero, output], vec![integer("axis", 1)]);
    (ends, both)
}

/// The version of ONNX's own operators that a model is written in.
pub(super) fn operators(sets: &[tract_onnx::pb::OperatorSetIdProto]) -> i64 {
    let own = sets.iter().filter(|set| set.domain.is_empty() || set.domain == "ai.onnx");
    own.map(|set| set.version).max().unwrap_or_default()
}

/// The tensors that the nodes of a graph make and that depend on the picture, in their order.
pub(super) fn depending<'a>(graph: &'a GraphProto, input: &'a str) -> Vec<(usize, &'a str)> {
    let (mut depends, mut found) = (BTreeSet::from([input]), Vec::new());
    for (at, node) in graph.node.iter().enumerate() {
        if node.input.iter().any(|tensor| depends.contains(tensor.as_str())) {
            depends.extend(node.output.iter().map(String::as_str));
            found.extend(node.output.iter().map(|output| (at, output.as_str())));
        }
    }
    found
}
