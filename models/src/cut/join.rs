//! How the tensors of a cut become one grid of latents, and one grid becomes the tensors again.
//!
//! The grid is that of the coarsest tensor. A finer one is cut into blocks, as large as a place of the
//! grid, whose values become channels of it (space to depth); where its sides are no multiples they are
//! filled up with zeros.

use tract_onnx::pb::{GraphProto, ModelProto};

use super::ends::{Ends, integer, of_any};
use super::grid::Piece;

/// Places of a tensor along one side of a place of the grid, at most.
const MOST_PLACES: usize = 16;

/// Tensors that are sent together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Joint {
    pub(super) pieces: Vec<Piece>,
    /// Channels, height and width of the grid of all.
    pub(super) grid: [usize; 3],
}

/// What the channels of a cut become before they are sent, and how they are had again.
#[derive(Clone, Debug, PartialEq)]
pub enum Mix {
    /// These channels, in this order.
    Order(Vec<usize>),
    /// Sums of them.
    Linear(Linear),
}

/// A linear map of a place's channels to latents, and one back.
#[derive(Clone, Debug, PartialEq)]
pub struct Linear {
    /// Channels of a place.
    pub channels: usize,
    /// Latents of a place, at most as many.
    pub latents: usize,
    /// By latent, then by channel.
    pub forth: Vec<f32>,
    /// Added to each latent.
    pub forth_bias: Vec<f32>,
    /// By channel, then by latent.
    pub back: Vec<f32>,
    /// Added to each channel.
    pub back_bias: Vec<f32>,
}

impl Mix {
    /// Whether the channels are sent as they are.
    fn is_nothing(&self) -> bool {
        matches!(self, Mix::Order(order) if order.iter().enumerate().all(|(at, &it)| at == it))
    }

    /// Latents of a place.
    pub fn latents(&self) -> usize {
        match self {
            Mix::Order(order) => order.len(),
            Mix::Linear(linear) => linear.latents,
        }
    }
}

impl Joint {
    /// The grid of these tensors together; `None` if there is none, or it has more channels than
    /// `most`.
    pub(super) fn new(pieces: Vec<Piece>, most: usize) -> Option<Joint> {
        let side = |at: usize| pieces.iter().map(|piece| piece.grid[at]).min();
        let (height, width) = (side(1)?, side(2)?);
        let mut joint = Joint { pieces, grid: [0, height, width] };
        let blocks = joint.pieces.iter().map(|piece| joint.block(piece));
        let mut channels = 0usize;
        for (block, piece) in blocks.zip(&joint.pieces) {
            if block.iter().any(|side| *side > MOST_PLACES) {
                return None;
            }
            channels = channels.checked_add(piece.grid[0].checked_mul(block[0] * block[1])?)?;
        }
        joint.grid[0] = channels;
        (1..=most).contains(&channels).then_some(joint)
    }

    /// Places of a tensor within one of the grid: rows and columns.
    fn block(&self, piece: &Piece) -> [usize; 2] {
        let [_, rows, columns] = piece.grid;
        let [_, height, width] = self.grid;
        [rows.div_ceil(height), columns.div_ceil(width)]
    }

    /// Channels of the grid that each tensor's channels take: of every tensor its channels, and the
    /// number of the grid's channels for each of them.
    pub(super) fn shares(&self) -> impl Iterator<Item = (usize, usize)> {
        self.pieces.iter().map(|piece| {
            let [rows, columns] = self.block(piece);
            (piece.grid[0], rows * columns)
        })
    }

    /// Whether the tensors need an adapter behind what is sent: there are several, or they are mixed.
    pub(super) fn adapted(&self, mix: &Mix) -> bool {
        self.pieces.len() > 1 || !mix.is_nothing()
    }

    /// The latents of the tensors.
    pub(super) fn to_latents(&self, ends: &mut Ends, mix: &Mix, operators: i64) -> String {
        let [channels, height, width] = self.grid;
        let mut grids = Vec::new();
        for piece in &self.pieces {
            let mut last = piece.to_grid(ends, &piece.tensor);
            let ([c, h, w], [rows, columns]) = (piece.grid, self.block(piece));
            if [rows, columns] != [1, 1] {
                let missing = [height * rows - h, width * columns - w];
                if missing != [0, 0] {
                    last = ends.pad(&last, missing, operators);
                }
                last = ends.reshape(&last, &[c, height, rows, width, columns]);
                last = ends.transpose(&last, &[0, 1, 3, 5, 2, 4]);
                last = ends.reshape(&last, &[c * rows * columns, height, width]);
            }
            grids.push(last);
        }
        let mut last = match grids.as_slice() {
            [one] => one.clone(),
            all => {
                let all: Vec<&str> = all.iter().map(String::as_str).collect();
                ends.node("Concat", &all, vec![integer("axis", 1)])
            }
        };
        if !mix.is_nothing() {
            last = match mix {
                Mix::Order(order) => ends.gather(&last, order),
                Mix::Linear(Linear { latents, forth, forth_bias, .. }) => {
                    ends.product(&last, [*latents, channels], forth, forth_bias)
                }
            };
        }
        last
    }

    /// The graph of the adapter: latents to the tensors' own grids. `model` says which operators it is
    /// written in.
    pub(super) fn adapter(&self, mix: &Mix, model: &ModelProto) -> ModelProto {
        let [channels, height, width] = self.grid;
        let input = "latents";
        let mut graph = GraphProto { name: "adapter".into(), ..GraphProto::default() };
        graph.input = vec![of_any(input, &[mix.latents(), height, width])];
        let mut ends = Ends::new(&graph, "t");
        let mut all = input.to_owned();
        if !mix.is_nothing() {
            all = match mix {
                Mix::Order(order) => ends.gather(&all, &inverse(order, channels)),
                Mix::Linear(Linear { latents, back, back_bias, .. }) => {
                    ends.product(&all, [channels, *latents], back, back_bias)
                }
            };
        }
        let mut first = 0;
        for piece in &self.pieces {
            let ([c, h, w], [rows, columns]) = (piece.grid, self.block(piece));
            let own = c * rows * columns;
            let mut last = all.clone();
            if own != channels {
                let channels: Vec<usize> = (first..first + own).collect();
                last = ends.gather(&last, &channels);
            }
            first += own;
            if [rows, columns] != [1, 1] {
                last = ends.reshape(&last, &[c, rows, columns, height, width]);
                last = ends.transpose(&last, &[0, 1, 4, 2, 5, 3]);
                last = ends.reshape(&last, &[c, height * rows, width * columns]);
                for (axis, (side, filled)) in
                    [(h, height * rows), (w, width * columns)].into_iter().enumerate()
                {
                    if side != filled {
                        last = ends.first(&last, axis + 2, side);
                    }
                }
            }
            graph.output.push(of_any(&last, &piece.grid));
        }
        ends.append_to(&mut graph);
        ModelProto { graph: Some(graph), ..model.clone() }
    }
}

/// Where each of `channels` channels is in an order.
fn inverse(order: &[usize], channels: usize) -> Vec<usize> {
    let mut inverse = vec![0; channels];
    for (at, &channel) in order.iter().enumerate() {
        if let Some(place) = inverse.get_mut(channel) {
            *place = at;
        }
    }
    inverse
}
