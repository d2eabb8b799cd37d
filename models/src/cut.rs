//! The cut of an ONNX network in two, and the places where it can be made.

mod answer;
mod batch;
mod check;
mod ends;
mod error;
mod functions;
mod graph;
mod grid;
mod join;
mod layout;
mod normal;
mod rewrite;
mod shapes;

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto};

pub use self::answer::Probabilities;
use self::answer::{cut_probabilities_off, operators, yes_or_no};
use self::batch::free_batch;
use self::check::Check;
use self::ends::{Ends, integer, of_any, of_one};
pub use self::error::CutError;
use self::graph::{
    PictureInput, check_order, keep_only, label, last_layers, nearest, needed, parameters,
    picture_input, refuse_what_cannot_be_cut, separators, used_by,
};
pub use self::grid::Layout;
use self::grid::Piece;
use self::join::Joint;
pub use self::join::{Linear, Mix};
use self::layout::channel_axes;
use self::rewrite::sizes_to_factors;
use self::shapes::{Shapes, infer, macs};
use crate::engine::Engine;

/// Largest latents that a manifest takes: channels, height, width.
const MAX_SHAPE: [usize; 3] = [8192, 1024, 1024];
/// Sizes that are tried where the one that was asked for does not fit: multiples of these.
const MULTIPLES: [u32; 5] = [8, 16, 32, 64, 128];

/// Tensors that are proposed to be sent together, at most.
const MOST_TENSORS: usize = 8;
/// Parts of a network's operations; in each that no single tensor separates, several are proposed.
const DEPTHS: u64 = 10;

/// Where a model can be cut: at tensors through which every path from the picture to the outputs
/// leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    /// The tensors' names, in the order in which they are made; mostly one.
    pub tensors: Vec<String>,
    /// The operator that makes the last.
    pub op: String,
    /// The shape for one picture: `[C, h, w]`, of a vector `[C, 1, 1]`.
    pub shape: [usize; 3],
    /// Multiply-accumulates before it, for one picture.
    pub head_macs: u64,
    /// Multiply-accumulates behind it.
    pub tail_macs: u64,
    /// Weights before it.
    pub head_parameters: u64,
    /// Position of the node that makes the last.
    node: usize,
    joint: Joint,
}

impl Cut {
    /// The tensors' names, with commas between them.
    pub fn name(&self) -> String {
        self.tensors.join(",")
    }

    /// Values for one picture, which is also their size at 8 bits without entropy coding (bytes).
    pub fn values(&self) -> usize {
        self.joint.pieces.iter().map(|piece| piece.grid.iter().product::<usize>()).sum()
    }

    /// Shape of each of the trunk's inputs, `[C, h, w]`.
    pub fn features(&self) -> Vec<[usize; 3]> {
        self.joint.pieces.iter().map(|piece| piece.grid).collect()
    }

    /// Of each tensor the number of its channels, and how many of the latents' channels each of them
    /// takes where nothing is mixed.
    pub fn shares(&self) -> Vec<(usize, usize)> {
        self.joint.shares().collect()
    }
}

/// What an ONNX file does not say of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelOptions {
    /// Width and height of the picture (pixels), where the model leaves them free.
    pub size: Option<[u32; 2]>,
    /// Tensors to take for the outputs, in place of the file's: what is behind them is left out.
    pub outputs: Vec<String>,
    /// Where the tensors to cut at have their channels, in place of what the operators say.
    pub layout: Option<Layout>,
}

/// An output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelOutput {
    /// The tensor's name.
    pub name: String,
    /// Its shape, without the batch.
    pub shape: Vec<usize>,
}

/// A model's parts, as ONNX files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    /// Picture `[1, 3, H, W]` → latents `[1, C, h, w]`.
    pub head: Vec<u8>,
    /// Latents `[N, C, h, w]` → the trunk's inputs; none where the latents are its only one.
    pub adapter: Option<Vec<u8>>,
    /// One input for each tensor, `[N, C, h, w]` → the outputs.
    pub trunk: Vec<u8>,
}

/// An ONNX network in one piece, and where it can be cut.
///
/// Shapes are tract's, for one picture. Multiply-accumulates are those of `Conv`, `ConvTranspose`,
/// `Gemm` and `MatMul`.
#[derive(Clone, Debug)]
pub struct WholeModel {
    /// Everything but the graph.
    proto: ModelProto,
    graph: GraphProto,
    input: String,
    outputs: Vec<ModelOutput>,
    size: [u32; 2],
    layout: Option<Layout>,
    shapes: Shapes,
    /// By node.
    macs: Vec<u64>,
    cuts: Vec<Cut>,
}

impl WholeModel {
    /// Reads an ONNX file.
    ///
    /// ```
    /// use isthmus_models::{CutError, ModelOptions, WholeModel};
    /// let read = WholeModel::parse(b"no model", &ModelOptions::default());
    /// assert!(matches!(read, Err(CutError::NotOnnx(_))));
    /// ```
    pub fn parse(onnx: &[u8], options: &ModelOptions) -> Result<WholeModel, CutError> {
        let mut proto =
            ModelProto::decode(onnx).map_err(|error| CutError::NotOnnx(error.to_string()))?;
        functions::inline(onnx, &mut proto)?;
        let Some(graph) = proto.graph.as_mut().filter(|graph| !graph.node.is_empty()) else {
            return Err(CutError::NotOnnx("it holds no graph".into()));
        };
        // What is said of other shapes would contradict those of one picture.
        graph.value_info.clear();
        normal::normalise(graph);
        keep_only(graph, &options.outputs)?;
        refuse_what_cannot_be_cut(graph)?;
        let picture = picture_input(graph, options.size)?;
        let PictureInput { name: input, size, .. } = picture.clone();
        check_order(graph)?;
        let shapes = inferred(&proto, &picture)?;
        let mut graph = proto.graph.take().unwrap_or_default();
        sizes_to_factors(&mut graph, &shapes);
        free_batch(&mut graph, &input, &shapes);
        let macs = graph.node.iter().map(|node| macs(node, &shapes)).collect();
        // Since version 4 weights need not be listed among the inputs.
        proto.ir_version = proto.ir_version.max(4);
        let layout = options.layout;
        let (outputs, cuts) = (Vec::new(), Vec::new());
        let mut model =
            WholeModel { proto, graph, input, outputs, size, layout, shapes, macs, cuts };
        model.find_outputs()?;
        model.find_cuts();
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

    /// What the network answers, in its order.
    pub fn outputs(&self) -> &[ModelOutput] {
        &self.outputs
    }

    /// Multiply-accumulates of the whole model for one picture.
    pub fn macs(&self) -> u64 {
        self.macs.iter().sum()
    }

    /// Weights of the whole model.
    pub fn parameters(&self) -> u64 {
        parameters(&self.graph, &needed(&self.graph, &self.output_names(), &BTreeSet::new()))
    }

    /// Refuses a network that gives of several pictures at once something else than of each alone.
    pub fn check_batches(&self, engine: &dyn Engine) -> Result<(), CutError> {
        let WholeModel { proto, graph, input, size, shapes, .. } = self;
        Check { proto, graph, input, size: *size, shapes }.run(&self.whole(), engine)
    }

    /// Holds the network to be a classifier: one output, a row of logits. Probabilities become logits
    /// again; how they were made of them is told.
    pub fn classify(&mut self) -> Result<Option<Probabilities>, CutError> {
        let [ModelOutput { name, shape }] = self.outputs.as_slice() else {
            let found = self.outputs.iter().map(|output| output.name.clone()).collect();
            return Err(CutError::NotOne { what: "output of a classifier", found });
        };
        let (name, shape) = (name.clone(), shape.clone());
        let Some((&classes, rest)) =
            shape.split_first().filter(|(_, rest)| rest.iter().all(|&it| it == 1))
        else {
            return Err(CutError::Output { name, found: format!("f32 [N, {}]", listed(&shape)) });
        };
        let operators = operators(&self.proto.opset_import);
        let cut_off = cut_probabilities_off(&mut self.graph, &name, &self.shapes, operators);
        if !rest.is_empty() {
            let mut ends = Ends::new(&self.graph, "logits");
            let row = ends.reshape(&name, &[classes]);
            self.append(ends, &[(row, vec![classes])]);
        }
        if cut_off == Some(Probabilities::YesOrNo) {
            let (ends, both) = yes_or_no(&self.graph, &self.outputs[0].name);
            self.append(ends, &[(both, vec![2])]);
        }
        self.find_cuts();
        Ok(cut_off)
    }

    /// Logits of a classifier.
    pub fn classes(&self) -> usize {
        match self.outputs.as_slice() {
            [ModelOutput { shape, .. }] => shape.iter().product(),
            _ => 0,
        }
    }

    /// Makes these of a classifier's outputs, in this order, the only ones.
    pub fn select_classes(&mut self, outputs: &[usize]) -> Result<(), CutError> {
        let last = self.classes().saturating_sub(1);
        if let Some(&index) = outputs.iter().find(|&&index| index > last) {
            return Err(CutError::Class { index, last });
        }
        let mut ends = Ends::new(&self.graph, "selected");
        if let Some(output) = self.outputs.first() {
            let selected = ends.gather(&output.name, outputs);
            self.append(ends, &[(selected, vec![outputs.len()])]);
        }
        Ok(())
    }

    /// The cut at a tensor, or at several that are sent together.
    pub fn cut_at<S: AsRef<str>>(&self, tensors: &[S]) -> Result<Cut, CutError> {
        let names: BTreeSet<&str> = tensors.iter().map(AsRef::as_ref).collect();
        let listed = |cut: &&Cut| {
            cut.tensors.len() == names.len() && cut.tensors.iter().all(|it| names.contains(&**it))
        };
        if let Some(cut) = self.cuts.iter().find(listed) {
            return Ok(cut.clone());
        }
        let outputs = self.output_names();
        let refused = |tensor: &str, reason| CutError::NoCut {
            tensor: tensor.to_owned(),
            reason,
            around: self.around(tensor),
        };
        let mut last = 0;
        for tensor in &names {
            let made = |node: &NodeProto| node.output.iter().any(|output| output == tensor);
            let Some(at) = self.graph.node.iter().position(made) else {
                let all = self.cuts.iter().flat_map(|cut| &cut.tensors);
                return Err(CutError::Unknown {
                    tensor: (*tensor).into(),
                    near: nearest(tensor, all),
                });
            };
            if outputs.contains(tensor) {
                return Err(refused(tensor, "it is an output"));
            }
            last = last.max(at);
        }
        let behind = needed(&self.graph, &outputs, &names);
        let used = used_by(&self.graph, &behind);
        let first = names.first().copied().unwrap_or_default();
        if used.contains(self.input.as_str()) || names.is_empty() {
            let reason = "other tensors lead around it from the input to the output";
            return Err(refused(first, reason));
        }
        if let Some(unused) = names.iter().find(|name| !used.contains(*name)) {
            return Err(refused(unused, "nothing behind the others needs it"));
        }
        let axes = channel_axes(&self.graph, &self.input, &self.shapes);
        let pieces: Result<Vec<Piece>, CutError> = self
            .in_order(&names)
            .into_iter()
            .map(|name| {
                let reason = "it is not f32 [N, C, h, w], [N, C] or the like of a size that a bundle \
                              can carry";
                self.piece(name, &axes).ok_or_else(|| refused(name, reason))
            })
            .collect();
        let reason = "the tensors have no grid in common that a bundle can carry";
        let joint = Joint::new(pieces?, MAX_SHAPE[0]).ok_or_else(|| refused(first, reason))?;
        Ok(self.cut_of(last, joint))
    }

    /// The model as a head: the cut is where its outputs are.
    pub fn whole_as_head(&self) -> Result<Cut, CutError> {
        let axes = channel_axes(&self.graph, &self.input, &self.shapes);
        let pieces = self.outputs.iter().map(|output| self.piece(&output.name, &axes));
        let joint = pieces.collect::<Option<Vec<Piece>>>();
        let joint = joint.and_then(|pieces| Joint::new(pieces, MAX_SHAPE[0]));
        match joint {
            Some(joint) => Ok(self.cut_of(self.graph.node.len() - 1, joint)),
            None => Err(CutError::NoCut {
                tensor: self.outputs.iter().map(|it| it.name.clone()).collect::<Vec<_>>().join(","),
                reason: "the head's outputs have no grid that a bundle can carry",
                around: Vec::new(),
            }),
        }
    }

    /// The cuts before and behind a tensor.
    fn around(&self, tensor: &str) -> Vec<String> {
        let made = |node: &NodeProto| node.output.iter().any(|output| output == tensor);
        let at = self.graph.node.iter().position(made).unwrap_or_default();
        let mut single = self.cuts.iter().filter(|cut| cut.tensors.len() == 1);
        let before = single.clone().rfind(|cut| cut.node < at);
        let behind = single.find(|cut| cut.node > at);
        before.into_iter().chain(behind).map(Cut::name).collect()
    }

    /// Cuts at tensors of this model. `mix` says what is sent of their channels.
    pub fn cut(&self, cut: &Cut, mix: &Mix) -> Parts {
        let operators = operators(&self.proto.opset_import);
        let names: BTreeSet<&str> = cut.tensors.iter().map(String::as_str).collect();
        let Cut { joint, shape: [_, height, width], .. } = cut;

        let mut head = self.part(&names, &BTreeSet::new());
        let mut ends = Ends::new(&self.graph, "latents");
        let last = joint.to_latents(&mut ends, mix, operators);
        ends.append_to(&mut head);
        head.input = vec![of_one(&self.input, &self.picture())];
        head.output = vec![of_one(&last, &[mix.latents(), *height, *width])];

        let mut trunk = self.part(&self.output_names(), &names);
        let mut ends = Ends::new(&self.graph, "features");
        for (at, piece) in joint.pieces.iter().enumerate() {
            let mut first = piece.tensor.clone();
            if !piece.is_grid() {
                first = ends.unmade(at);
                piece.to_tensor(&mut ends, &first);
                ends.name_last(&piece.tensor);
            }
            trunk.input.push(of_any(&first, &piece.grid));
        }
        ends.prepend_to(&mut trunk);
        trunk.output = self.outputs.iter().map(|it| of_any(&it.name, &it.shape)).collect();

        let adapter = joint.adapted(mix).then(|| joint.adapter(mix, &self.proto));
        let adapter = adapter.map(|model| model.encode_to_vec());
        Parts { head: self.encode(head), adapter, trunk: self.encode(trunk) }
    }

    /// The model in one piece, for any number of pictures: `[N, 3, H, W]` → its outputs.
    pub fn whole(&self) -> Vec<u8> {
        let mut graph = self.part(&self.output_names(), &BTreeSet::new());
        graph.input = vec![of_any(&self.input, &self.picture())];
        graph.output = self.outputs.iter().map(|it| of_any(&it.name, &it.shape)).collect();
        self.encode(graph)
    }

    /// One picture's shape, without the batch.
    fn picture(&self) -> [usize; 3] {
        let [width, height] = self.size.map(|side| side as usize);
        [3, height, width]
    }

    fn output_names(&self) -> BTreeSet<&str> {
        self.outputs.iter().map(|output| output.name.as_str()).collect()
    }

    /// Finds the outputs' shapes, and has all of them be f32.
    fn find_outputs(&mut self) -> Result<(), CutError> {
        let names: Vec<String> = self.graph.output.iter().map(|it| it.name.clone()).collect();
        let mut ends = Ends::new(&self.graph, "output");
        for name in names {
            let open = |problem: String| {
                let before = last_layers(&self.graph, &BTreeSet::from([name.as_str()]));
                CutError::OpenOutput { name: name.clone(), problem, before }
            };
            let known = self.shapes.get(&name);
            let known = known
                .ok_or_else(|| open("has a shape that depends on what is in the picture".into()));
            let (shape, float) = known?;
            let [1, of_one @ ..] = shape.as_slice() else {
                let shape = listed(shape);
                return Err(open(format!(
                    "is [{shape}] of one picture, without pictures in front"
                )));
            };
            let mut output = match float {
                true => name.clone(),
                false => ends.node("Cast", &[&name], vec![integer("to", 1)]),
            };
            let mut shape = of_one.to_vec();
            if shape.is_empty() {
                // One value for each picture: a list of one.
                shape = vec![1];
                output = ends.reshape(&output, &shape);
            }
            self.outputs.push(ModelOutput { name: output, shape });
        }
        if self.outputs.is_empty() {
            return Err(CutError::NotOne { what: "output or more", found: Vec::new() });
        }
        self.macs.resize(self.macs.len() + ends.nodes.len(), 0);
        ends.append_to(&mut self.graph);
        Ok(())
    }

    /// Appends nodes behind the outputs, which make these in their place.
    fn append(&mut self, ends: Ends, outputs: &[(String, Vec<usize>)]) {
        self.macs.resize(self.macs.len() + ends.nodes.len(), 0);
        ends.append_to(&mut self.graph);
        let output = |(name, shape): &(String, Vec<usize>)| ModelOutput {
            name: name.clone(),
            shape: shape.clone(),
        };
        self.outputs = outputs.iter().map(output).collect();
    }

    fn find_cuts(&mut self) {
        let outputs = self.output_names();
        let axes = channel_axes(&self.graph, &self.input, &self.shapes);
        let separators = separators(&self.graph, &self.input, &outputs);
        let single = |(node, open): &(usize, BTreeSet<&str>)| {
            let (1, Some(&tensor)) = (open.len(), open.first()) else { return None };
            let joint = Joint::new(vec![self.piece(tensor, &axes)?], MAX_SHAPE[0])?;
            (!outputs.contains(tensor)).then(|| self.cut_of(*node, joint))
        };
        let mut cuts: Vec<Cut> = separators.iter().filter_map(single).collect();
        // What stays open from node to node is named once, where it is made.
        cuts.dedup_by(|next, cut| next.tensors == cut.tensors);
        let sets = self.find_sets(&separators, &axes, &cuts);
        cuts.extend(sets);
        cuts.sort_by_key(|cut| cut.node);
        self.cuts = cuts;
    }

    /// In every part of the network's operations that no single tensor separates, of two tensors, of three
    /// and so on those of fewest values that do so together; of equals the last, behind a rectifier.
    fn find_sets(
        &self,
        separators: &[(usize, BTreeSet<&str>)],
        axes: &BTreeMap<&str, Option<usize>>,
        single: &[Cut],
    ) -> Vec<Cut> {
        let outputs = self.output_names();
        let whole = self.macs().max(1);
        let depth = |macs: u64| (macs * DEPTHS / whole).min(DEPTHS - 1);
        let taken: BTreeSet<u64> = single.iter().map(|cut| depth(cut.head_macs)).collect();
        let mut best: BTreeMap<(u64, usize), (usize, usize, Joint)> = BTreeMap::new();
        for (node, open) in separators {
            if !(2..=MOST_TENSORS).contains(&open.len()) || !open.is_disjoint(&outputs) {
                continue;
            }
            let open_in_order = self.in_order(open).into_iter();
            let pieces: Option<Vec<Piece>> = open_in_order.map(|it| self.piece(it, axes)).collect();
            let joint = pieces.and_then(|pieces| Joint::new(pieces, MAX_SHAPE[0]));
            let Some(joint) = joint else { continue };
            let values = joint.pieces.iter().map(|it| it.grid.iter().product::<usize>()).sum();
            let depth = depth(self.macs_of(&needed(&self.graph, open, &BTreeSet::new())));
            let part = (depth, open.len());
            let fewer = best.get(&part).is_none_or(|(least, ..)| values <= *least);
            if fewer && !taken.contains(&depth) {
                best.insert(part, (values, *node, joint));
            }
        }
        best.into_values().map(|(_, node, joint)| self.cut_of(node, joint)).collect()
    }

    /// Tensors in the order in which they are made.
    fn in_order<'a>(&self, names: &BTreeSet<&'a str>) -> Vec<&'a str> {
        let made = self.graph.node.iter().flat_map(|node| &node.output);
        made.filter_map(|output| names.get(output.as_str()).copied()).collect()
    }

    /// A tensor as a grid that a bundle can carry, if it is one.
    fn piece(&self, tensor: &str, axes: &BTreeMap<&str, Option<usize>>) -> Option<Piece> {
        let (shape, true) = self.shapes.get(tensor)? else { return None };
        let axis = match self.layout {
            None => axes.get(tensor).copied().flatten(),
            Some(Layout::ChannelsFirst) => Some(1),
            Some(Layout::ChannelsLast) => shape.len().checked_sub(1),
        };
        let piece = Piece::new(tensor, shape, axis, self.size)?;
        let carried =
            MAX_SHAPE.iter().zip(piece.grid).all(|(max, side)| (1..=*max).contains(&side));
        carried.then_some(piece)
    }

    /// The cut at the tensors of a grid, the last of which this node makes.
    fn cut_of(&self, node: usize, joint: Joint) -> Cut {
        let names: BTreeSet<&str> = joint.pieces.iter().map(|it| it.tensor.as_str()).collect();
        let before = needed(&self.graph, &names, &BTreeSet::new());
        let behind = needed(&self.graph, &self.output_names(), &names);
        Cut {
            tensors: joint.pieces.iter().map(|piece| piece.tensor.clone()).collect(),
            op: self.graph.node[node].op_type.clone(),
            shape: joint.grid,
            head_macs: self.macs_of(&before),
            tail_macs: self.macs_of(&behind),
            head_parameters: parameters(&self.graph, &before),
            node,
            joint,
        }
    }

    fn macs_of(&self, nodes: &[bool]) -> u64 {
        self.macs.iter().zip(nodes).filter(|(_, needed)| **needed).map(|(macs, _)| macs).sum()
    }

    /// The nodes and weights that `outputs` need of those behind `from`, or of all.
    fn part(&self, outputs: &BTreeSet<&str>, from: &BTreeSet<&str>) -> GraphProto {
        let graph = &self.graph;
        let keep = needed(graph, outputs, from);
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
}

/// The shapes of all tensors for one picture, or a size at which there would be some.
fn inferred(proto: &ModelProto, picture: &PictureInput) -> Result<Shapes, CutError> {
    let PictureInput { name, size, free_size, .. } = picture;
    let found = |size| infer(proto, name, size).map_err(|error| format!("{error:#}"));
    let shapes = found(*size);
    let nodes = || proto.graph.iter().flat_map(|graph| &graph.node);
    // Shapes that contradict each other may also be left out.
    let left_out = |shapes: &Shapes| {
        let known =
            |node: &&NodeProto| node.output.iter().all(|output| shapes.contains_key(output));
        nodes().filter(|node| !known(node)).map(label).collect::<Vec<String>>()
    };
    let (missing, reason) = match &shapes {
        Ok(shapes) => {
            let missing = left_out(shapes);
            let first = missing.first().map(|node| format!("{node:?} has no shape"));
            (missing.len(), first.unwrap_or_default())
        }
        Err(error) => (usize::MAX, error.clone()),
    };
    let near = |multiple: u32| size.map(|side| side.div_ceil(multiple) * multiple);
    let mut near = MULTIPLES.map(near).into_iter().filter(|near| *free_size && near != size);
    let fewer =
        |near: &[u32; 2]| found(*near).is_ok_and(|shapes| left_out(&shapes).len() < missing);
    match if missing > 0 { near.find(fewer) } else { None } {
        None => shapes.map_err(CutError::Analysis),
        Some(near) => {
            let [width, height] = *size;
            Err(CutError::Contradiction { width, height, reason, near })
        }
    }
}

/// Extents as a list for people.
fn listed(shape: &[usize]) -> String {
    let sides: Vec<String> = shape.iter().map(ToString::to_string).collect();
    sides.join(", ")
}
