//! What is put at the ends of a network's parts: nodes that reorder and reshape, and their inputs and
//! outputs.

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, NodeProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto, type_proto,
};

/// Nodes that are put before a graph or behind it, and their constants.
#[derive(Default)]
pub(super) struct Ends {
    pub(super) nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
}

impl Ends {
    /// `to` is `from` with these channels, in this order.
    pub(super) fn gather(&mut self, from: &str, to: &str, channels: &[usize]) {
        let channels = channels.iter().map(|&channel| channel as i64).collect();
        let axis = AttributeProto {
            name: "axis".into(),
            r#type: attribute_proto::AttributeType::Int as i32,
            i: 1,
            ..AttributeProto::default()
        };
        self.node("Gather", from, to, Some(channels), vec![axis]);
    }

    /// `to` is `from` with its axes in this order.
    pub(super) fn transpose(&mut self, from: &str, to: &str, axes: &[i64]) {
        let axes = AttributeProto {
            name: "perm".into(),
            r#type: attribute_proto::AttributeType::Ints as i32,
            ints: axes.to_vec(),
            ..AttributeProto::default()
        };
        self.node("Transpose", from, to, None, vec![axes]);
    }

    /// `to` is `from` in this shape, where 0 keeps a dimension as it is.
    pub(super) fn reshape(&mut self, from: &str, to: &str, shape: &[i64]) {
        self.node("Reshape", from, to, Some(shape.to_vec()), Vec::new());
    }

    fn node(
        &mut self,
        op: &str,
        from: &str,
        to: &str,
        constant: Option<Vec<i64>>,
        attribute: Vec<AttributeProto>,
    ) {
        let mut input = vec![from.to_owned()];
        if let Some(constant) = constant {
            let name = format!("{to}_{}", op.to_ascii_lowercase());
            input.push(name.clone());
            self.constants.push(TensorProto {
                name,
                dims: vec![constant.len() as i64],
                data_type: DataType::Int64 as i32,
                int64_data: constant,
                ..TensorProto::default()
            });
        }
        self.nodes.push(NodeProto {
            input,
            output: vec![to.to_owned()],
            name: to.to_owned(),
            op_type: op.to_owned(),
            attribute,
            ..NodeProto::default()
        });
    }

    pub(super) fn append_to(self, graph: &mut GraphProto) {
        graph.node.extend(self.nodes);
        graph.initializer.extend(self.constants);
    }

    /// Puts them before the graph, the last one first.
    pub(super) fn prepend_to(self, graph: &mut GraphProto) {
        graph.node.splice(0..0, self.nodes.into_iter().rev());
        graph.initializer.extend(self.constants);
    }
}

/// An f32 tensor; a dimension without extent is the batch.
pub(super) fn value_info(name: &str, dims: &[Option<i64>]) -> ValueInfoProto {
    let dim = |side: &Option<i64>| Dimension {
        value: Some(match *side {
            Some(side) => dimension::Value::DimValue(side),
            None => dimension::Value::DimParam("N".into()),
        }),
        ..Dimension::default()
    };
    let tensor = type_proto::Tensor {
        elem_type: DataType::Float as i32,
        shape: Some(TensorShapeProto { dim: dims.iter().map(dim).collect() }),
    };
    let value = Some(type_proto::Value::TensorType(tensor));
    let r#type = Some(TypeProto { value, ..TypeProto::default() });
    ValueInfoProto { name: name.to_owned(), r#type, ..ValueInfoProto::default() }
}
