//! ONNX graphs built node by node, for tests that need a network and no file.

#![allow(dead_code, reason = "no test needs all of it")]

use prost::Message;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

/// An attribute of one whole number.
pub fn number(name: &str, i: i64) -> AttributeProto {
    let r#type = AttributeType::Int as i32;
    AttributeProto { name: name.into(), r#type, i, ..Default::default() }
}

/// An attribute of several whole numbers.
pub fn numbers(name: &str, ints: &[i64]) -> AttributeProto {
    let r#type = AttributeType::Ints as i32;
    AttributeProto { name: name.into(), r#type, ints: ints.to_vec(), ..Default::default() }
}

/// A node with one output.
pub fn node(op: &str, inputs: &[&str], output: &str, attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto {
        op_type: op.into(),
        input: inputs.iter().map(|&input| input.into()).collect(),
        output: vec![output.into()],
        attribute,
        ..Default::default()
    }
}

/// An f32 constant; `value` gives each of its values by position.
pub fn weights(name: &str, dims: &[i64], value: impl Fn(usize) -> f32) -> TensorProto {
    let count = dims.iter().product::<i64>() as usize;
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: DataType::Float as i32,
        float_data: (0..count).map(value).collect(),
        ..Default::default()
    }
}

/// A constant of whole numbers.
pub fn integers(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: vec![values.len() as i64],
        data_type: DataType::Int64 as i32,
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

/// An f32 tensor; a dimension of 0 is free.
pub fn value_info(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = |&side: &i64| Dimension {
        value: Some(match side {
            0 => dimension::Value::DimParam("free".into()),
            side => dimension::Value::DimValue(side),
        }),
        ..Default::default()
    };
    let shape = Some(TensorShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor = type_proto::Tensor { elem_type: DataType::Float as i32, shape };
    let value = Some(type_proto::Value::TensorType(tensor));
    let r#type = Some(TypeProto { value, ..Default::default() });
    ValueInfoProto { name: name.into(), r#type, ..Default::default() }
}

/// The file of a graph.
pub fn encode(graph: GraphProto) -> Vec<u8> {
    // The first with HardSwish.
    let opset = OperatorSetIdProto { version: 14, ..Default::default() };
    let graph = Some(graph);
    ModelProto { ir_version: 8, opset_import: vec![opset], graph, ..Default::default() }
        .encode_to_vec()
}

/// A convolution's extents.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub kernel: [i64; 2],
    pub strides: [i64; 2],
    pub dilations: [i64; 2],
    /// Above, left, below, right.
    pub pads: [i64; 4],
    pub groups: i64,
}

impl Window {
    /// A square kernel that keeps height and width at stride 1.
    pub fn square(side: i64, stride: i64) -> Window {
        Window {
            kernel: [side; 2],
            strides: [stride; 2],
            dilations: [1; 2],
            pads: [side / 2; 4],
            groups: 1,
        }
    }

    /// The outputs of this many rows and columns.
    pub fn output(&self, sides: [i64; 2]) -> [i64; 2] {
        [0, 1].map(|at| {
            let seen = self.dilations[at] * (self.kernel[at] - 1) + 1;
            (sides[at] + self.pads[at] + self.pads[at + 2] - seen) / self.strides[at] + 1
        })
    }
}

/// A network while it is put together: what was added last, and its channels.
#[derive(Clone, Debug, Default)]
pub struct Builder {
    pub graph: GraphProto,
    /// Tells weights of one network from those of another.
    pub seed: usize,
    pub last: String,
    pub channels: i64,
}

impl Builder {
    /// A network of pictures `[N, 3, height, width]`; a batch of 0 is free.
    pub fn new(batch: i64, [height, width]: [i64; 2], seed: usize) -> Builder {
        let input = vec![value_info("image", &[batch, 3, height, width])];
        let graph = GraphProto { name: "network".into(), input, ..Default::default() };
        Builder { graph, seed, last: "image".into(), channels: 3 }
    }

    /// A node that takes what was added last before `others`.
    pub fn add(&mut self, op: &str, others: &[&str], attribute: Vec<AttributeProto>) {
        let output = format!("{}{}", op.to_ascii_lowercase(), self.graph.node.len());
        let inputs = [&[&*self.last][..], others].concat();
        let node = node(op, &inputs, &output, attribute);
        self.graph.node.push(node);
        self.last = output;
    }

    /// A constant with values between −`scale` and `scale`; gives its name.
    pub fn constant(&mut self, dims: &[i64], scale: f32) -> String {
        let at = self.graph.initializer.len();
        let name = format!("w{at}");
        let first = (self.seed * 31 + at) * 7919;
        let value = |place: usize| {
            let hash = (first + place).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
            (hash as f32 / (1 << 23) as f32 - 1.0) * scale
        };
        self.graph.initializer.push(weights(&name, dims, value));
        name
    }

    /// A convolution with a bias, whose weights keep values about as large as they are.
    pub fn conv(&mut self, channels: i64, window: Window) {
        let Window { kernel, strides, dilations, pads, groups } = window;
        let depth = self.channels / groups;
        let scale = (3.0 / (depth * kernel[0] * kernel[1]) as f32).sqrt();
        let dims = [channels, depth, kernel[0], kernel[1]];
        let (weights, bias) = (self.constant(&dims, scale), self.constant(&[channels], 0.1));
        let attributes = vec![
            numbers("kernel_shape", &kernel),
            numbers("strides", &strides),
            numbers("dilations", &dilations),
            numbers("pads", &pads),
            number("group", groups),
        ];
        self.add("Conv", &[&weights, &bias], attributes);
        self.channels = channels;
    }

    /// Mean over all places, a matrix, and logits `[N, classes]`.
    pub fn classify(mut self, batch: i64, classes: i64) -> GraphProto {
        self.add("GlobalAveragePool", &[], vec![]);
        self.add("Flatten", &[], vec![]);
        let matrix = self.constant(&[classes, self.channels], 1.0);
        let bias = self.constant(&[classes], 0.1);
        self.add("Gemm", &[&matrix, &bias], vec![number("transB", 1)]);
        self.graph.output = vec![value_info(&self.last, &[batch, classes])];
        self.graph
    }
}

/// A network around one inverted residual of MobileNetV2: a depthwise convolution between two
/// products, and what went in added to what comes out.
pub fn inverted_residual(classes: i64) -> GraphProto {
    let mut net = Builder::new(0, [32, 32], 1);
    net.conv(16, Window::square(3, 2));
    net.add("Relu", &[], vec![]);
    let residual = net.last.clone();
    net.conv(64, Window::square(1, 1));
    net.add("Relu", &[], vec![]);
    net.conv(64, Window { groups: 64, ..Window::square(3, 1) });
    net.add("Relu", &[], vec![]);
    net.conv(16, Window::square(1, 1));
    net.add("Add", &[&residual], vec![]);
    net.conv(32, Window::square(3, 2));
    net.add("Relu", &[], vec![]);
    net.classify(0, classes)
}
