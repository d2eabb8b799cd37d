//! The cut of an ONNX classifier in two, and the places where it can be made.

mod ends;
mod error;
mod graph;
mod layout;
mod rewrite;
mod shapes;

use std::collections::BTreeSet;

use prost::Message;
use strsim::levenshtein;
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto};

use self::ends::{Ends, value_info};
pub use self::error::CutError;
use self::graph::{
    PictureInput, check_order, needed, parameters, picture_input, refuse_what_cannot_be_cut,
    separators, used_by,
};
use self::layout::channel_axes;
use self::rewrite::{free_batch, sizes_to_factors};
use self::shapes::{Shapes, infer, macs};

/// Largest latents that a manifest takes: channels, height, width.
const MAX_SHAPE: [usize; 3] = [8192, 1024, 1024];
/// Names shown for one that does not exist.
const NEAREST: usize = 5;

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
    layout: Layout,
}

impl Cut {
    /// Values for one picture, which is also their size at 8 bits without entropy coding (bytes).
    pub fn values(&self) -> usize {
        self.shape.iter().product()
    }
}

/// How a model has a tensor that is `[N, C, h, w]` to the bundle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// `[N, C, h, w]`.
    Map,
    /// `[N, h, w, C]`.
    ChannelsLast,
    /// `[N, C]`: a grid of one place.
    Vector,
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
        let PictureInput { name: input, size, for_one } = picture_input(graph, size)?;
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
        let mut graph = proto.graph.take().unwrap_or_default();
        sizes_to_factors(&mut graph, &shapes);
        if for_one {
            free_batch(&mut graph, &shapes);
        }
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
            let mut near: Vec<(usize, &str)> = self
                .cuts
                .iter()
                .map(|cut| (levenshtein(&cut.tensor, tensor), &*cut.tensor))
                .collect();
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
        let &Cut { shape: [channels, height, width], layout, .. } = self.cut_at(tensor)?;
        let mut inverse = vec![channels; channels];
        for (at, &channel) in order.iter().enumerate() {
            inverse[channel] = at;
        }
        assert!(!inverse.contains(&channels) && order.len() == channels, "order: {order:?}");
        let reorder = order.iter().enumerate().any(|(at, &channel)| at != channel);

        let mut head = self.part(tensor, None);
        let (mut ends, mut last) = (Ends::default(), tensor.to_owned());
        if layout != Layout::Map {
            let next = self.fresh("latent_grid");
            match layout {
                Layout::Vector => ends.reshape(&last, &next, &[0, channels as i64, 1, 1]),
                _ => ends.transpose(&last, &next, &[0, 3, 1, 2]),
            }
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
        if layout != Layout::Map {
            let grid = self.fresh("feature_grid");
            match layout {
                Layout::Vector => ends.reshape(&grid, &first, &[0, channels as i64]),
                _ => ends.transpose(&grid, &first, &[0, 2, 3, 1]),
            }
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
        let axes = channel_axes(&self.graph, &self.input, shapes);
        let macs_of = |nodes: &[bool]| -> u64 {
            self.macs.iter().zip(nodes).filter(|(_, needed)| **needed).map(|(macs, _)| macs).sum()
        };
        let cut = |(node, tensor): (usize, &str)| {
            let (shape, true) = shapes.get(tensor)? else { return None };
            let (shape, layout) = match **shape {
                [1, h, w, c] if axes.get(tensor) == Some(&Some(3)) => {
                    ([c, h, w], Layout::ChannelsLast)
                }
                [1, c, h, w] => ([c, h, w], Layout::Map),
                [1, c] => ([c, 1, 1], Layout::Vector),
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
                layout,
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
