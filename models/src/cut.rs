//! Where an ONNX classifier can be cut in two, and the cut itself.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto, attribute_proto, type_proto,
};
use tract_onnx::prelude::*;
use tract_onnx::tract_hir::infer::Factoid;
use tract_onnx::tract_hir::internal::DimLike;

/// Largest latents that a manifest takes: channels, height, width.
const MAX_SHAPE: [usize; 3] = [8192, 1024, 1024];
/// Names shown for one that does not exist.
const NEAREST: usize = 5;

/// Why a model cannot be cut, or not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CutError {
    /// Bytes that are no ONNX model.
    #[error("this is no ONNX model: {0}")]
    NotOnnx(String),
    /// Weights in another file.
    #[error(
        "the weights of {tensor:?} are in another file; save the model as one file \
         (onnx.save(model, path, save_as_external_data=False))"
    )]
    ExternalData {
        /// The first such tensor.
        tensor: String,
    },
    /// More or fewer inputs, or outputs, than one.
    #[error("needs one {what}, has {}: {}", found.len(), found.join(", "))]
    NotOne {
        /// `input` or `output`.
        what: &'static str,
        /// Those there are.
        found: Vec<String>,
    },
    /// An input that is no picture.
    #[error("input {name:?} must be f32 [N, 3, height, width], it is {found}")]
    Input {
        /// The input.
        name: String,
        /// Its type and shape.
        found: String,
    },
    /// An input whose height or width is free, and no size given.
    #[error("input {name:?} is {found}: say at which size to run it (--size WIDTHxHEIGHT)")]
    FreeSize {
        /// The input.
        name: String,
        /// Its shape.
        found: String,
    },
    /// A size that the input does not have.
    #[error("input {name:?} is {found}, it cannot be run at {width}x{height}")]
    Size {
        /// The input.
        name: String,
        /// Its shape.
        found: String,
        /// Width asked for (pixels).
        width: u32,
        /// Height asked for (pixels).
        height: u32,
    },
    /// A node that decides at run time what runs.
    #[error("node {node:?} is {op}: graphs with control flow cannot be cut")]
    ControlFlow {
        /// The node, by its first output.
        node: String,
        /// Its operator.
        op: String,
    },
    /// A tensor that is used before a node makes it, or that none makes.
    #[error("node {node:?} uses {tensor:?}, which no node before it makes")]
    Undefined {
        /// The node, by its first output.
        node: String,
        /// The tensor.
        tensor: String,
    },
    /// Shapes cannot be told.
    #[error("the shapes of the graph cannot be told: {0}")]
    Analysis(String),
    /// An output that is no row of logits.
    #[error("output {name:?} must be f32 [N, classes], it is {found}")]
    Output {
        /// The output.
        name: String,
        /// Its type and shape.
        found: String,
    },
    /// Classes that are not there.
    #[error("there is no output {index}; the network has outputs 0 to {last}")]
    Class {
        /// Asked for.
        index: usize,
        /// The last there is.
        last: usize,
    },
    /// A name that no tensor has.
    #[error("there is no tensor {tensor:?}; the nearest at which to cut are {}", near.join(", "))]
    Unknown {
        /// Asked for.
        tensor: String,
        /// The cuts of the most similar names.
        near: Vec<String>,
    },
    /// A tensor that does not separate the input from the output, or that no bundle can carry.
    #[error(
        "cannot cut at {tensor:?}: {reason}; the cuts around it are {}", around.join(" and ")
    )]
    NoCut {
        /// Asked for.
        tensor: String,
        /// Why not.
        reason: &'static str,
        /// The last cut before it and the first behind it, where there are.
        around: Vec<String>,
    },
}

/// A tensor at which a model can be cut: every path from the picture to the logits leads through
/// it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The tensor's name.
    pub tensor: String,
    /// The operator that makes it.
    pub op: String,
    /// Its shape for one picture: `[C, h, w]`, of a vector `[C, 1, 1]`.
    pub shape: [usize; 3],
    /// Multiply-accumulates before it, for one picture.
    pub head_macs: u64,
    /// Multiply-accumulates behind it.
    pub tail_macs: u64,
    /// Weights before it.
    pub head_parameters: u64,
    /// Position of the node that makes it.
    node: usize,
    /// Whether the model has it as `[N, C]`: a vector to the model, a grid of one place to the
    /// bundle.
    vector: bool,
}

impl Cut {
    /// Values for one picture, which is also their size at 8 bits without entropy coding (bytes).
    pub fn values(&self) -> usize {
        self.shape.iter().product()
    }
}

/// A model's two parts, as ONNX files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Picture `[1, 3, H, W]` → latents `[1, C, h, w]`.
    pub head: Vec<u8>,
    /// Latents `[N, C, h, w]` → logits `[N, K]`.
    pub trunk: Vec<u8>,
}

/// An ONNX classifier in one piece, and where it can be cut.
///
/// Shapes are tract's, for one picture. Multiply-accumulates are those of `Conv`, `ConvTranspose`,
/// `Gemm` and `MatMul`.
#[derive(Clone, Debug)]
pub struct WholeModel {
    /// Everything but the graph.
    proto: ModelProto,
    graph: GraphProto,
    input: String,
    output: String,
    size: [u32; 2],
    classes: usize,
    /// By node.
    macs: Vec<u64>,
    cuts: Vec<Cut>,
}

impl WholeModel {
    /// Reads an ONNX file. `size`, width and height in pixels, is needed where the model leaves
    /// them free.
    ///
    /// ```
    /// use isthmus_models::{CutError, WholeModel};
    /// assert!(matches!(WholeModel::parse(b"no model", None), Err(CutError::NotOnnx(_))));
    /// ```
    pub fn parse(onnx: &[u8], size: Option<[u32; 2]>) -> Result<WholeModel, CutError> {
        let mut proto =
            ModelProto::decode(onnx).map_err(|error| CutError::NotOnnx(error.to_string()))?;
        let Some(graph) = proto.graph.as_mut().filter(|graph| !graph.node.is_empty()) else {
            return Err(CutError::NotOnnx("it holds no graph".into()));
        };
        // What is said of other shapes would contradict those of one picture.
        graph.value_info.clear();
        refuse_what_cannot_be_cut(graph)?;
        let (input, size) = picture_input(graph, size)?;
        let output = match graph.output.as_slice() {
            [output] => output.name.clone(),
            outputs => {
                let found = outputs.iter().map(|output| output.name.clone()).collect();
                return Err(CutError::NotOne { what: "output", found });
            }
        };
        check_order(graph)?;
        let shapes = infer(&proto, &input, size)
            .map_err(|error| CutError::Analysis(format!("{error:#}")))?;
        let graph = proto.graph.take().unwrap_or_default();
        let macs = graph.node.iter().map(|node| macs(node, &shapes)).collect();
        let mut model =
            WholeModel { proto, graph, input, output, size, classes: 0, macs, cuts: Vec::new() };
        model.flatten_output(&shapes)?;
        model.find_cuts(&shapes);
        Ok(model)
    }

    /// The cuts, from the picture to the logits.
    pub fn cuts(&self) -> &[Cut] {
        &self.cuts
    }

    /// The picture's width and height (pixels).
    pub fn size(&self) -> [u32; 2] {
        self.size
    }

    /// Logits.
    pub fn classes(&self) -> usize {
        self.classes
    }

    /// Multiply-accumulates of the whole model for one picture.
    pub fn macs(&self) -> u64 {
        self.macs.iter().sum()
    }

    /// Weights of the whole model.
    pub fn parameters(&self) -> u64 {
        parameters(&self.graph, &needed(&self.graph, &self.output, None))
    }

    /// Makes these outputs, in this order, the only ones.
    pub fn select_classes(&mut self, outputs: &[usize]) -> Result<(), CutError> {
        let last = self.classes.saturating_sub(1);
        if let Some(&index) = outputs.iter().find(|&&index| index > last) {
            return Err(CutError::Class { index, last });
        }
        let selected = self.fresh("selected");
        let mut ends = Ends::default();
        ends.gather(&self.output, &selected, outputs);
        self.append(ends, selected);
        self.classes = outputs.len();
        Ok(())
    }

    /// The cut at a tensor.
    pub fn cut_at(&self, tensor: &str) -> Result<&Cut, CutError> {
        if let Some(cut) = self.cuts.iter().find(|cut| cut.tensor == tensor) {
            return Ok(cut);
        }
        let made = |node: &NodeProto| node.output.iter().any(|output| output == tensor);
        let Some(at) = self.graph.node.iter().position(made) else {
            let mut near: Vec<(usize, &str)> =
                self.cuts.iter().map(|cut| (distance(&cut.tensor, tensor), &*cut.tensor)).collect();
            near.sort();
            let near = near.into_iter().take(NEAREST).map(|(_, name)| name.to_owned()).collect();
            return Err(CutError::Unknown { tensor: tensor.to_owned(), near });
        };
        let before = self.cuts.iter().rfind(|cut| cut.node < at);
        let behind = self.cuts.iter().find(|cut| cut.node > at);
        let around = before.into_iter().chain(behind).map(|cut| cut.tensor.clone()).collect();
        let separators = separators(&self.graph, &self.input, &self.output);
        let separates = separators.iter().any(|(_, name)| *name == tensor);
        let reason = if separates {
            "it is not f32 [N, C, h, w] or [N, C] of a size that a bundle can carry"
        } else if tensor == self.output {
            "it is the output"
        } else {
            "other tensors lead around it from the input to the output"
        };
        Err(CutError::NoCut { tensor: tensor.to_owned(), reason, around })
    }

    /// Cuts at a tensor. `order` lists its channels as the latents are to have them; the trunk puts
    /// them back.
    ///
    /// # Panics
    ///
    /// If `order` is not a permutation of the cut's channels.
    pub fn cut(&self, tensor: &str, order: &[usize]) -> Result<Parts, CutError> {
        let &Cut { shape: [channels, height, width], vector, .. } = self.cut_at(tensor)?;
        let mut inverse = vec![channels; channels];
        for (at, &channel) in order.iter().enumerate() {
            inverse[channel] = at;
        }
        assert!(!inverse.contains(&channels) && order.len() == channels, "order: {order:?}");
        let reorder = order.iter().enumerate().any(|(at, &channel)| at != channel);

        let mut head = self.part(tensor, None);
        let (mut ends, mut last) = (Ends::default(), tensor.to_owned());
        if vector {
            let next = self.fresh("latent_grid");
            ends.reshape(&last, &next, &[0, channels as i64, 1, 1]);
            last = next;
        }
        if reorder {
            let next = self.fresh("latents");
            ends.gather(&last, &next, order);
            last = next;
        }
        ends.append_to(&mut head);
        let [w, h] = self.size.map(i64::from);
        head.input = vec![value_info(&self.input, &[Some(1), Some(3), Some(h), Some(w)])];
        let [c, h, w] = [channels, height, width].map(|side| Some(side as i64));
        head.output = vec![value_info(&last, &[Some(1), c, h, w])];

        let mut trunk = self.part(&self.output, Some(tensor));
        let (mut ends, mut first) = (Ends::default(), tensor.to_owned());
        if vector {
            let grid = self.fresh("feature_grid");
            ends.reshape(&grid, &first, &[0, channels as i64]);
            first = grid;
        }
        if reorder {
            let next = self.fresh("features");
            ends.gather(&next, &first, &inverse);
            first = next;
        }
        ends.prepend_to(&mut trunk);
        trunk.input = vec![value_info(&first, &[None, c, h, w])];
        trunk.output = vec![value_info(&self.output, &[None, Some(self.classes as i64)])];
        Ok(Parts { head: self.encode(head), trunk: self.encode(trunk) })
    }

    /// The model in one piece, for any number of pictures: `[N, 3, H, W]` → `[N, K]`.
    pub fn whole(&self) -> Vec<u8> {
        let mut graph = self.part(&self.output, None);
        let [w, h] = self.size.map(|side| Some(i64::from(side)));
        graph.input = vec![value_info(&self.input, &[None, Some(3), h, w])];
        graph.output = vec![value_info(&self.output, &[None, Some(self.classes as i64)])];
        self.encode(graph)
    }

    /// Gives logits that come as `[N, K, 1, 1]` their plain shape.
    fn flatten_output(&mut self, shapes: &Shapes) -> Result<(), CutError> {
        let known = shapes.get(&self.output);
        let row = known.filter(|(shape, float)| {
            *float && shape.len() >= 2 && shape[0] == 1 && shape[2..].iter().all(|&side| side == 1)
        });
        let Some((shape, _)) = row else {
            let found = known.map_or("not known".into(), |(shape, _)| format!("{shape:?}"));
            return Err(CutError::Output { name: self.output.clone(), found });
        };
        self.classes = shape[1];
        if shape.len() > 2 {
            let row = self.fresh("logits");
            let mut ends = Ends::default();
            ends.reshape(&self.output, &row, &[0, shape[1] as i64]);
            self.append(ends, row);
        }
        Ok(())
    }

    /// Appends nodes behind the output, the last of which makes `output`.
    fn append(&mut self, ends: Ends, output: String) {
        self.macs.resize(self.macs.len() + ends.nodes.len(), 0);
        ends.append_to(&mut self.graph);
        self.output = output;
    }

    fn find_cuts(&mut self, shapes: &Shapes) {
        let all = needed(&self.graph, &self.output, None);
        let macs_of = |nodes: &[bool]| -> u64 {
            self.macs.iter().zip(nodes).filter(|(_, needed)| **needed).map(|(macs, _)| macs).sum()
        };
        let cut = |(node, tensor): (usize, &str)| {
            let (shape, vector) = match shapes.get(tensor) {
                Some((shape, true)) => match **shape {
                    [1, c, h, w] => ([c, h, w], false),
                    [1, c] => ([c, 1, 1], true),
                    _ => return None,
                },
                _ => return None,
            };
            let carried = MAX_SHAPE.iter().zip(shape).all(|(max, side)| (1..=*max).contains(&side));
            let before = needed(&self.graph, tensor, None);
            let head_macs = macs_of(&before);
            carried.then(|| Cut {
                tensor: tensor.to_owned(),
                op: self.graph.node[node].op_type.clone(),
                shape,
                head_macs,
                tail_macs: macs_of(&all).saturating_sub(head_macs),
                head_parameters: parameters(&self.graph, &before),
                node,
                vector,
            })
        };
        let separators = separators(&self.graph, &self.input, &self.output);
        self.cuts = separators.into_iter().filter_map(cut).collect();
    }

    /// The nodes and weights that `output` needs of those behind `from`, or of all.
    fn part(&self, output: &str, from: Option<&str>) -> GraphProto {
        let graph = &self.graph;
        let keep = needed(graph, output, from);
        let used = used_by(graph, &keep);
        let nodes = graph.node.iter().zip(&keep).filter(|(_, keep)| **keep);
        GraphProto {
            name: graph.name.clone(),
            node: nodes.map(|(node, _)| node.clone()).collect(),
            initializer: graph
                .initializer
                .iter()
                .filter(|weights| used.contains(&*weights.name))
                .cloned()
                .collect(),
            ..GraphProto::default()
        }
    }

    fn encode(&self, graph: GraphProto) -> Vec<u8> {
        ModelProto { graph: Some(graph), ..self.proto.clone() }.encode_to_vec()
    }

    /// A name that no tensor has.
    fn fresh(&self, name: &str) -> String {
        let graph = &self.graph;
        let taken: BTreeSet<&str> = graph
            .node
            .iter()
            .flat_map(|node| node.input.iter().chain(&node.output))
            .chain(graph.initializer.iter().map(|weights| &weights.name))
            .map(String::as_str)
            .collect();
        let mut name = name.to_owned();
        while taken.contains(&*name) {
            name.push('_');
        }
        name
    }
}

/// For one picture: shape, and whether the values are f32.
type Shapes = BTreeMap<String, (Vec<usize>, bool)>;

fn refuse_what_cannot_be_cut(graph: &GraphProto) -> Result<(), CutError> {
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
        Some(node) => Err(CutError::ControlFlow { node: label(node), op: node.op_type.clone() }),
    }
}

/// Name of the picture's input, its width and its height.
fn picture_input(
    graph: &GraphProto,
    size: Option<[u32; 2]>,
) -> Result<(String, [u32; 2]), CutError> {
    // Older models list their weights among the inputs.
    let weights: BTreeSet<&str> = graph.initializer.iter().map(|it| it.name.as_str()).collect();
    let inputs: Vec<&ValueInfoProto> =
        graph.input.iter().filter(|input| !weights.contains(&*input.name)).collect();
    let &[input] = inputs.as_slice() else {
        let found = inputs.iter().map(|input| input.name.clone()).collect();
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
    let kind = if tensor.elem_type == DataType::Float as i32 { "f32" } else { "not f32 but" };
    let found = format!("{kind} [{}]", sides.join(", "));
    match *dims {
        [_, Some(3), height, width] if kind == "f32" => match (height.zip(width), size) {
            (Some((height, width)), None) => Ok((name, [width, height])),
            (None, None) => Err(CutError::FreeSize { name, found }),
            (_, Some([w, h])) => {
                let fits =
                    height.is_none_or(|height| height == h) && width.is_none_or(|width| width == w);
                match fits && (1..=4096).contains(&w) && (1..=4096).contains(&h) {
                    true => Ok((name, [w, h])),
                    false => Err(CutError::Size { name, found, width: w, height: h }),
                }
            }
        },
        _ => Err(CutError::Input { name, found }),
    }
}

/// A dimension's extent, if it is fixed.
fn side(dim: &Dimension) -> Option<u32> {
    match dim.value {
        Some(dimension::Value::DimValue(side)) => u32::try_from(side).ok().filter(|&side| side > 0),
        _ => None,
    }
}

/// Every tensor is made before it is used, so that one pass from front to back sees all of it.
fn check_order(graph: &GraphProto) -> Result<(), CutError> {
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

/// Shapes of all tensors whose shape does not depend on a picture's values.
fn infer(proto: &ModelProto, input: &str, [width, height]: [u32; 2]) -> TractResult<Shapes> {
    let mut parsed = tract_onnx::onnx().parse(proto, None)?;
    let [width, height] = [width, height].map(|side| side as usize);
    let picture = InferenceFact::dt_shape(f32::datum_type(), tvec!(1, 3, height, width));
    if let Some(&outlet) = parsed.outlets_by_name.get(input) {
        parsed.model.set_outlet_fact(outlet, picture)?;
    }
    parsed.model.analyse(false)?;
    let mut shapes = Shapes::new();
    for (name, &outlet) in &parsed.outlets_by_name {
        let fact = parsed.model.outlet_fact(outlet)?;
        let Some(shape) = fact.shape.concretize() else { continue };
        let shape: Option<Vec<usize>> = shape.iter().map(|side| side.to_usize().ok()).collect();
        let float = fact.datum_type.concretize() == Some(f32::datum_type());
        shapes.extend(shape.map(|shape| (name.clone(), (shape, float))));
    }
    Ok(shapes)
}

/// The tensors, with the nodes that make them, through which every path from `input` to `output`
/// leads.
///
/// In a sorted graph they are those that, once made, are all that later nodes still need of what
/// depends on the input.
fn separators<'a>(graph: &'a GraphProto, input: &'a str, output: &str) -> Vec<(usize, &'a str)> {
    let needed = needed(graph, output, None);
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
    let (mut open, mut separators) = (BTreeSet::from([input]), Vec::new());
    for at in live {
        let made = graph.node[at].output.iter().map(String::as_str);
        open.extend(made.filter(|tensor| last_use.contains_key(tensor)));
        open.retain(|tensor| last_use.get(tensor).is_some_and(|&last| last > at));
        if let (1, Some(&tensor)) = (open.len(), open.first())
            && tensor != output
        {
            separators.push((at, tensor));
        }
    }
    separators
}

/// Which nodes `output` needs, looking no further back than `from`.
fn needed(graph: &GraphProto, output: &str, from: Option<&str>) -> Vec<bool> {
    let mut wanted = BTreeSet::from([output]);
    let mut needed = vec![false; graph.node.len()];
    for (node, needed) in graph.node.iter().zip(&mut needed).rev() {
        let wants = |tensor: &str| wanted.contains(tensor) && Some(tensor) != from;
        if node.output.iter().any(|tensor| wants(tensor)) {
            *needed = true;
            wanted.extend(used(node));
        }
    }
    needed
}

/// The tensors that a node uses; one that it leaves out has no name.
fn used(node: &NodeProto) -> impl Iterator<Item = &str> {
    node.input.iter().map(String::as_str).filter(|tensor| !tensor.is_empty())
}

fn used_by<'a>(graph: &'a GraphProto, keep: &[bool]) -> BTreeSet<&'a str> {
    graph
        .node
        .iter()
        .zip(keep)
        .filter(|(_, keep)| **keep)
        .flat_map(|(node, _)| used(node))
        .collect()
}

/// Values of the float tensors of one dimension or more that these nodes use.
fn parameters(graph: &GraphProto, keep: &[bool]) -> u64 {
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

fn macs(node: &NodeProto, shapes: &Shapes) -> u64 {
    let shape = |tensor: Option<&String>| {
        tensor.and_then(|tensor| shapes.get(tensor)).map_or(&[][..], |(shape, _)| shape)
    };
    let product = |sides: &[usize]| {
        sides.iter().fold(1, |product: u64, &side| product.saturating_mul(side as u64))
    };
    let (first, second) = (shape(node.input.first()), shape(node.input.get(1)));
    let output = shape(node.output.first());
    if first.is_empty() || second.is_empty() || output.is_empty() {
        return 0;
    }
    let flag = |name: &str| node.attribute.iter().any(|it| it.name == name && it.i != 0);
    match &*node.op_type {
        "Conv" => product(output).saturating_mul(product(&second[1..])),
        "ConvTranspose" => product(first).saturating_mul(product(&second[1..])),
        "Gemm" if flag("transA") => product(output).saturating_mul(first[0] as u64),
        "Gemm" | "MatMul" => product(output).saturating_mul(first[first.len() - 1] as u64),
        _ => 0,
    }
}

/// Nodes that are put before a graph or behind it, and their constants.
#[derive(Default)]
struct Ends {
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
}

impl Ends {
    /// `to` is `from` with these channels, in this order.
    fn gather(&mut self, from: &str, to: &str, channels: &[usize]) {
        let channels = channels.iter().map(|&channel| channel as i64).collect();
        let axis = AttributeProto {
            name: "axis".into(),
            r#type: attribute_proto::AttributeType::Int as i32,
            i: 1,
            ..AttributeProto::default()
        };
        self.node("Gather", from, to, channels, vec![axis]);
    }

    /// `to` is `from` in this shape, where 0 keeps a dimension as it is.
    fn reshape(&mut self, from: &str, to: &str, shape: &[i64]) {
        self.node("Reshape", from, to, shape.to_vec(), Vec::new());
    }

    fn node(
        &mut self,
        op: &str,
        from: &str,
        to: &str,
        constant: Vec<i64>,
        attribute: Vec<AttributeProto>,
    ) {
        let name = format!("{to}_{}", op.to_ascii_lowercase());
        self.constants.push(TensorProto {
            name: name.clone(),
            dims: vec![constant.len() as i64],
            data_type: DataType::Int64 as i32,
            int64_data: constant,
            ..TensorProto::default()
        });
        self.nodes.push(NodeProto {
            input: vec![from.to_owned(), name],
            output: vec![to.to_owned()],
            name: to.to_owned(),
            op_type: op.to_owned(),
            attribute,
            ..NodeProto::default()
        });
    }

    fn append_to(self, graph: &mut GraphProto) {
        graph.node.extend(self.nodes);
        graph.initializer.extend(self.constants);
    }

    /// Puts them before the graph, the last one first.
    fn prepend_to(self, graph: &mut GraphProto) {
        graph.node.splice(0..0, self.nodes.into_iter().rev());
        graph.initializer.extend(self.constants);
    }
}

/// An f32 tensor; a dimension without extent is the batch.
fn value_info(name: &str, dims: &[Option<i64>]) -> ValueInfoProto {
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

/// What a node is called in messages: few have a name, all have an output.
fn label(node: &NodeProto) -> String {
    node.output.first().unwrap_or(&node.name).clone()
}

/// How many characters have to be put in, taken out or replaced (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, x) in (1..).zip(a.chars()) {
        let mut diagonal = std::mem::replace(&mut row[0], i);
        for (j, y) in (1..).zip(b.chars()) {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j];
            row[j] = replaced.min(diagonal + 1).min(row[j - 1] + 1);
        }
    }
    row[row.len() - 1]
}
