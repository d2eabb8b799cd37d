//! A check that a network gives of several pictures at once what it gives of each alone.

use tract_onnx::pb::{GraphProto, ModelProto};

use super::answer::depending;
use super::ends::{of_any, of_one};
use super::error::CutError;
use super::graph::label;
use super::shapes::Shapes;
use crate::engine::{Engine, EngineError, Tensor, TensorView};

/// Numbers of pictures that are tried.
const COUNTS: [usize; 2] = [2, 3];
/// How far two results may be apart, relative to a tensor's greatest value: with more pictures a sum is
/// added up in another order.
const TOLERANCE: f32 = 1e-3;
/// Tensors that one run is asked for when the node is sought that is to blame.
const AT_ONCE: usize = 24;

/// What a check looks at: a model for any number of pictures, its input, and its tensors' shapes.
pub(super) struct Check<'a> {
    pub(super) proto: &'a ModelProto,
    pub(super) graph: &'a GraphProto,
    pub(super) input: &'a str,
    pub(super) size: [u32; 2],
    pub(super) shapes: &'a Shapes,
}

impl Check<'_> {
    /// Runs `whole`, the model's file, with 1, 2 and 3 pictures.
    pub(super) fn run(&self, whole: &[u8], engine: &dyn Engine) -> Result<(), CutError> {
        let name = "the whole network";
        let failed = |pictures: usize| {
            move |error: EngineError| CutError::Batch { pictures, reason: error.to_string() }
        };
        let graph = engine.load(whole, name).map_err(failed(2))?;
        let pictures = self.pictures();
        let [width, height] = self.size.map(|side| side as usize);
        let run = |count: usize, data: &[f32]| {
            graph.run(&[TensorView { shape: &[count, 3, height, width], data }])
        };
        let alone: Result<Vec<Vec<Tensor>>, EngineError> =
            pictures.iter().map(|picture| run(1, picture)).collect();
        let alone = alone.map_err(failed(1))?;
        for count in COUNTS {
            let together = run(count, &pictures[..count].concat());
            let fits = together
                .as_ref()
                .is_ok_and(|together| difference(&alone[..count], together).is_none());
            if !fits {
                return Err(self.blame(count, engine, together.err()));
            }
        }
        Ok(())
    }

    /// Three pictures that have little in common.
    fn pictures(&self) -> Vec<Vec<f32>> {
        let [width, height] = self.size.map(|side| side as usize);
        let values = 3 * width * height;
        let picture = |picture: usize| {
            let period = 0.11 + 0.23 * picture as f32;
            (0..values).map(|at| (at as f32 * period).sin()).collect()
        };
        (0..3).map(picture).collect()
    }

    /// The first node whose result differs, or fails, of `count` pictures at once.
    fn blame(&self, count: usize, engine: &dyn Engine, failure: Option<EngineError>) -> CutError {
        let float = |tensor: &str| self.shapes.get(tensor).is_some_and(|(_, float)| *float);
        let tensors: Vec<(usize, &str)> =
            depending(self.graph, self.input).into_iter().filter(|(_, it)| float(it)).collect();
        let pictures = self.pictures();
        for group in tensors.chunks(AT_ONCE) {
            let names: Vec<&str> = group.iter().map(|(_, name)| *name).collect();
            let alone = pictures[..count].iter().map(|it| self.values(1, it, &names, engine));
            let Ok(alone) = alone.collect::<Result<Vec<_>, _>>() else { continue };
            let found = match self.values(count, &pictures[..count].concat(), &names, engine) {
                Ok(together) => {
                    difference(&alone, &together).map(|(at, problem)| (group[at].0, problem))
                }
                Err(_) => self.first_failure(count, group, engine),
            };
            if let Some((node, problem)) = found {
                let node = &self.graph.node[node];
                let op = node.op_type.clone();
                return CutError::NotAlone { pictures: count, node: label(node), op, problem };
            }
        }
        let reason = failure.map_or("its outputs differ".into(), |error| error.to_string());
        CutError::Batch { pictures: count, reason }
    }

    /// The first of these nodes that `count` pictures at once do not run through.
    fn first_failure(
        &self,
        count: usize,
        group: &[(usize, &str)],
        engine: &dyn Engine,
    ) -> Option<(usize, String)> {
        let pictures = self.pictures()[..count].concat();
        group.iter().find_map(|&(node, name)| {
            let failed = self.values(count, &pictures, &[name], engine).err()?;
            Some((node, failed.to_string()))
        })
    }

    /// What the network has for these tensors.
    fn values(
        &self,
        count: usize,
        pictures: &[f32],
        names: &[&str],
        engine: &dyn Engine,
    ) -> Result<Vec<Tensor>, EngineError> {
        let [width, height] = self.size.map(|side| side as usize);
        let shape = [3, height, width];
        let mut graph = self.graph.clone();
        graph.input = vec![match count {
            1 => of_one(self.input, &shape),
            _ => of_any(self.input, &shape),
        }];
        graph.output = names.iter().map(|name| super::ends::of_unknown(name)).collect();
        let model = ModelProto { graph: Some(graph), ..self.proto.clone() };
        let graph = engine.load(&prost::Message::encode_to_vec(&model), "a part of it")?;
        graph.run(&[TensorView { shape: &[count, 3, height, width], data: pictures }])
    }
}

/// The first output that is not what each picture alone gives, and why.
fn difference(alone: &[Vec<Tensor>], together: &[Tensor]) -> Option<(usize, String)> {
    together.iter().enumerate().find_map(|(at, together)| {
        let alone: Vec<&Tensor> = alone.iter().filter_map(|outputs| outputs.get(at)).collect();
        // Where the pictures are not the first axis of an inner tensor, its order is not known.
        let first = alone.first()?;
        let mut expected = first.shape.clone();
        *expected.first_mut()? *= alone.len();
        if together.shape != expected {
            let values: usize = alone.iter().map(|it| it.data.len()).sum();
            let problem = format!("{:?} of one, {:?} of all", first.shape, together.shape);
            return (values != together.data.len()).then_some((at, problem));
        }
        let expected = alone.iter().flat_map(|it| &it.data);
        let scale = together.data.iter().fold(1e-6f32, |scale, value| scale.max(value.abs()));
        let differs = |(alone, together): &(&f32, &f32)| {
            let apart = (*alone - *together).abs();
            apart > TOLERANCE * scale || alone.is_nan() != together.is_nan()
        };
        let (alone, together) = expected.zip(&together.data).find(differs)?;
        Some((at, format!("{together} in place of {alone}")))
    })
}
