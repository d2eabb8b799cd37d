//! What is put at the ends of a network's parts: nodes that reorder, reshape and rotate, and their
//! inputs and outputs.

use std::collections::BTreeSet;

use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, NodeProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, type_proto,
};

/// Nodes that are put before a graph or behind it, and their constants. Each method adds a node and
/// gives the name of what it makes.
pub(super) struct Ends {
    /// What no name in the graph starts with.
    prefix: String,
    made: usize,
    pub(super) nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
}

impl Ends {
    /// Nodes for `graph`, none of whose names they take.
    pub(super) fn new(graph: &GraphProto, prefix: &str) -> Ends {
        let tensors = graph.node.iter().flat_map(|node| node.input.iter().chain(&node.output));
        let weights = graph.initializer.iter().map(|weights| &weights.name);
        let inputs = graph.input.iter().map(|input| &input.name);
        let taken: BTreeSet<&String> = tensors.chain(weights).chain(inputs).collect();
        let mut prefix = prefix.to_owned();
        while taken.iter().any(|name| name.starts_with(&prefix)) {
            prefix.push('_');
        }
        Ends { prefix, made: 0, nodes: Vec::new(), constants: Vec::new() }
    }

    /// These channels of `from`, in this order.
    pub(super) fn gather(&mut self, from: &str, channels: &[usize]) -> String {
        let channels: Vec<i64> = channels.iter().map(|&channel| channel as i64).collect();
        let channels = self.integers(&channels);
        self.node("Gather", &[from, &channels], vec![integer("axis", 1)])
    }

    /// `from` with its axes in this order.
    pub(super) fn transpose(&mut self, from: &str, axes: &[usize]) -> String {
        let axes: Vec<i64> = axes.iter().map(|&axis| axis as i64).collect();
        self.node("Transpose", &[from], vec![integers("perm", &axes)])
    }

    /// `from` in this shape, for as many pictures as there are.
    pub(super) fn reshape(&mut self, from: &str, shape: &[usize]) -> String {
        let shape: Vec<i64> = shape.iter().map(|&side| side as i64).collect();
        let shape = self.integers(&[&[-1], &shape[..]].concat());
        self.node("Reshape", &[from, &shape], vec![])
    }

    /// `from` with this many rows and columns of zeros behind its own.
    pub(super) fn pad(
        &mut self,
        from: &str,
        [rows, columns]: [usize; 2],
        operators: i64,
    ) -> String {
        let pads = [0, 0, 0, 0, 0, 0, rows as i64, columns as i64];
        match operators < 11 {
            true => self.node("Pad", &[from], vec![integers("pads", &pads)]),
            false => {
                let pads = self.integers(&pads);
                self.node("Pad", &[from, &pads], vec![])
            }
        }
    }

    /// The first `count` of `from` along an axis.
    pub(super) fn first(&mut self, from: &str, axis: usize, count: usize) -> String {
        let [axis, count] = [axis, count].map(|it| it as i64);
        let places: Vec<i64> = (0..count).collect();
        let places = self.integers(&places);
        self.node("Gather", &[from, &places], vec![integer("axis", axis)])
    }

    /// Each place's channels of `from`, times a matrix of this many rows and columns, plus a bias.
    pub(super) fn product(
        &mut self,
        from: &str,
        [rows, columns]: [usize; 2],
        matrix: &[f32],
        bias: &[f32],
    ) -> String {
        let floats = |dims: &[usize], values: &[f32]| TensorProto {
            dims: dims.iter().map(|&side| side as i64).collect(),
            data_type: DataType::Float as i32,
            raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect(),
            ..TensorProto::default()
        };
        let matrix = self.constant(floats(&[rows, columns, 1, 1], matrix));
        let bias = self.constant(floats(&[rows], bias));
        self.node("Conv", &[from, &matrix, &bias], vec![integers("kernel_shape", &[1, 1])])
    }

    /// A node with one output.
    pub(super) fn node(
        &mut self,
        op: &str,
        inputs: &[&str],
        attribute: Vec<AttributeProto>,
    ) -> String {
        let name = format!("{}{}", self.prefix, self.made);
        self.made += 1;
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|&input| input.to_owned()).collect(),
            output: vec![name.clone()],
            name: name.clone(),
            op_type: op.to_owned(),
            attribute,
            ..NodeProto::default()
        });
        name
    }

    /// A constant of whole numbers.
    pub(super) fn integers(&mut self, values: &[i64]) -> String {
        self.constant(TensorProto {
            dims: vec![values.len() as i64],
            data_type: DataType::Int64 as i32,
            int64_data: values.to_vec(),
            ..TensorProto::default()
        })
    }

    fn constant(&mut self, constant: TensorProto) -> String {
        let name = format!("{}c{}", self.prefix, self.constants.len());
        self.constants.push(TensorProto { name: name.clone(), ..constant });
        name
    }

    /// Calls what the last node makes `name`.
    pub(super) fn name_last(&mut self, name: &str) {
        if let Some(last) = self.nodes.last_mut() {
            last.output = vec![name.to_owned()];
        }
    }

    /// A name for an input, which no node makes.
    pub(super) fn unmade(&self, at: usize) -> String {
        format!("{}_in{at}", self.prefix)
    }

    pub(super) fn append_to(self, graph: &mut GraphProto) {
        graph.node.extend(self.nodes);
        graph.initializer.extend(self.constants);
    }

    pub(super) fn prepend_to(self, graph: &mut GraphProto) {
        graph.node.splice(0..0, self.nodes);
        graph.initializer.extend(self.constants);
    }
}

/// An attribute of one whole number.
pub(super) fn integer(name: &str, i: i64) -> AttributeProto {
    let r#type = AttributeType::Int as i32;
    AttributeProto { name: name.into(), r#type, i, ..AttributeProto::default() }
}

/// An attribute of several whole numbers.
pub(super) fn integers(name: &str, ints: &[i64]) -> AttributeProto {
    let r#type = AttributeType::Ints as i32;
    AttributeProto { name: name.into(), r#type, ints: ints.to_vec(), ..AttributeProto::default() }
}

/// An f32 tensor for any number of pictures; `shape` is one's.
pub(super) fn of_any(name: &str, shape: &[usize]) -> ValueInfoProto {
    value_info(name, dimension::Value::DimParam("N".into()), shape)
}

/// An f32 tensor for one picture.
pub(super) fn of_one(name: &str, shape: &[usize]) -> ValueInfoProto {
    value_info(name, dimension::Value::DimValue(1), shape)
}

/// A tensor of which only the name is known.
pub(super) fn of_unknown(name: &str) -> ValueInfoProto {
    ValueInfoProto { name: name.to_owned(), ..ValueInfoProto::default() }
}

fn value_info(name: &str, batch: dimension::Value, shape: &[usize]) -> ValueInfoProto {
    let sides = shape.iter().map(|&side| dimension::Value::DimValue(side as i64));
    let dim = std::iter::once(batch).chain(sides);
    let dim = dim.map(|value| Dimension { value: Some(value), ..Dimension::default() }).collect();
    let shape = Some(TensorShapeProto { dim });
    let tensor = type_proto::Tensor { elem_type: DataType::Float as i32, shape };
    let value = Some(type_proto::Value::TensorType(tensor));
    let r#type = Some(TypeProto { value, ..TypeProto::default() });
    ValueInfoProto { name: name.to_owned(), r#type, ..ValueInfoProto::default() }
}
