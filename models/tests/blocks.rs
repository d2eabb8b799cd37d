//! Networks made of the blocks that real ones are made of, drawn at random: the engine against tract
//! without any rewriting, against ONNX Runtime where it is installed, and cut in two at any place
//! against the network in one piece.

#![cfg(feature = "shell")]

mod graphs;

use std::sync::{Arc, Once};

use isthmus_models::{
    Engine, EngineKind, Graph, Mix, ModelOptions, Parts, PlainTract, Tensor, TensorView, Tract,
    WholeModel,
};
use proptest::prelude::*;
use tract_onnx::pb::GraphProto;

use self::graphs::{Builder, Window, encode, inverted_residual, number, weights};

/// Relative to a tensor's greatest value: engines add up in different orders.
const TOLERANCE: f32 = 1e-4;
const CLASSES: i64 = 5;

#[derive(Clone, Copy, Debug)]
enum Activation {
    None,
    Relu,
    Relu6,
    HardSwish,
}

#[derive(Clone, Copy, Debug)]
enum Groups {
    One,
    Two,
    Depthwise,
}

/// 1×1 up, k×k, squeeze, 1×1 down, and what went in added where it fits.
#[derive(Clone, Debug)]
struct Block {
    /// Channels between the two products.
    inner: i64,
    channels: i64,
    kernel: [i64; 2],
    strides: [i64; 2],
    dilations: [i64; 2],
    pads: [i64; 4],
    groups: Groups,
    activation: Activation,
    squeeze: bool,
    residual: bool,
}

#[derive(Clone, Debug)]
struct Case {
    /// 0 leaves it free.
    batch: i64,
    sides: [i64; 2],
    stem_stride: i64,
    blocks: Vec<Block>,
    seed: usize,
}

fn blocks() -> impl Strategy<Value = Block> {
    let activation = prop::sample::select(vec![
        Activation::None,
        Activation::Relu,
        Activation::Relu6,
        Activation::HardSwish,
    ]);
    let groups = prop::sample::select(vec![Groups::One, Groups::Two, Groups::Depthwise]);
    let (inner, channels) = (prop::sample::select(vec![6, 8, 16, 24]), (1..=6i64));
    // Padding that keeps the sides (so that a residual fits), and any other.
    let pads = prop_oneof![Just(None), [0..=3i64, 0..=3, 0..=3, 0..=3].prop_map(Some)];
    let window = ([1..=5i64, 1..=5], [1..=2i64, 1..=2], [1..=2i64, 1..=2], pads);
    (inner, channels, window, groups, activation, any::<[bool; 3]>()).prop_map(
        |(inner, channels, (kernel, strides, dilations, pads), groups, activation, flags)| {
            let [squeeze, residual, plain] = flags;
            let around = [0, 1].map(|at| dilations[at] * (kernel[at] - 1));
            let before = around.map(|around| around / 2);
            let after = [around[0] - before[0], around[1] - before[1]];
            let same = [before[0], before[1], after[0], after[1]];
            Block {
                inner,
                channels: 2 * channels,
                kernel,
                strides: if plain { [1; 2] } else { strides },
                dilations,
                pads: if plain { same } else { pads.unwrap_or(same) },
                groups,
                activation,
                squeeze,
                residual,
            }
        },
    )
}

fn cases() -> impl Strategy<Value = Case> {
    let sides = [12..=20i64, 12..=20];
    let blocks = prop::collection::vec(blocks(), 1..=2);
    (0..=1i64, sides, 1..=2i64, blocks, any::<u16>()).prop_map(
        |(batch, sides, stem_stride, blocks, seed)| Case {
            batch,
            sides,
            stem_stride,
            blocks,
            seed: seed.into(),
        },
    )
}

/// The drawn network; blocks whose kernel the picture has become too small for are left out.
fn network(case: &Case) -> GraphProto {
    let mut net = Builder::new(case.batch, case.sides, case.seed);
    for (name, bound) in [("zero", 0.0), ("six", 6.0)] {
        net.graph.initializer.push(weights(name, &[], |_| bound));
    }
    let stem = Window::square(3, case.stem_stride);
    let mut sides = stem.output(case.sides);
    net.conv(4, stem);
    net.add("Relu", &[], vec![]);
    for block in &case.blocks {
        let groups = match block.groups {
            Groups::One => 1,
            Groups::Two => 2,
            Groups::Depthwise => block.inner,
        };
        let Block { kernel, strides, dilations, pads, .. } = *block;
        let window = Window { kernel, strides, dilations, pads, groups };
        let seen = [0, 1].map(|at| dilations[at] * (kernel[at] - 1) + 1);
        if (0..2).any(|at| sides[at] + pads[at] + pads[at + 2] < seen[at]) {
            continue;
        }
        add_block(&mut net, block, window, sides);
        sides = window.output(sides);
    }
    net.classify(case.batch, CLASSES)
}

fn add_block(net: &mut Builder, block: &Block, window: Window, sides: [i64; 2]) {
    let entry = net.last.clone();
    let fits = window.output(sides) == sides;
    let channels = if block.residual && fits { net.channels } else { block.channels };
    net.conv(block.inner, Window::square(1, 1));
    activate(net, block.activation);
    net.conv(block.inner, window);
    activate(net, block.activation);
    if block.squeeze {
        let whole = net.last.clone();
        net.add("GlobalAveragePool", &[], vec![]);
        net.conv(2, Window::square(1, 1));
        net.add("Relu", &[], vec![]);
        net.conv(block.inner, Window::square(1, 1));
        net.add("Sigmoid", &[], vec![]);
        net.add("Mul", &[&whole], vec![]);
    }
    net.conv(channels, Window::square(1, 1));
    if block.residual && fits {
        net.add("Add", &[&entry], vec![]);
    }
}

fn activate(net: &mut Builder, activation: Activation) {
    match activation {
        Activation::None => {}
        Activation::Relu => net.add("Relu", &[], vec![]),
        Activation::Relu6 => net.add("Clip", &["zero", "six"], vec![]),
        Activation::HardSwish => net.add("HardSwish", &[], vec![]),
    }
}

/// ONNX Runtime, if this program was built with it and it is installed.
fn onnx_runtime() -> Option<Box<dyn Engine>> {
    static TOLD: Once = Once::new();
    match EngineKind::Ort.open(&[]) {
        Ok(engine) => Some(engine),
        Err(missing) => {
            TOLD.call_once(|| eprintln!("SKIPPED: blocks by ONNX Runtime: {missing}"));
            None
        }
    }
}

fn pictures(count: usize, [height, width]: [i64; 2]) -> Vec<f32> {
    (0..count * 3 * (height * width) as usize).map(|at| (at as f32 * 0.37).sin()).collect()
}

/// What a graph with one output makes of `data`.
fn run(graph: &Arc<dyn Graph>, shape: &[usize], data: &[f32]) -> Tensor {
    let mut outputs = graph.run(&[TensorView { shape, data }]).expect("runs");
    assert_eq!(outputs.len(), 1);
    outputs.remove(0)
}

/// What a graph makes of several inputs.
fn run_all(graph: &Arc<dyn Graph>, inputs: &[Tensor]) -> Vec<Tensor> {
    let views = inputs.iter().map(|Tensor { shape, data }| TensorView { shape, data });
    graph.run(&views.collect::<Vec<_>>()).expect("runs")
}

#[track_caller]
fn assert_close(ours: &Tensor, theirs: &Tensor, what: &str) {
    assert_eq!(ours.shape, theirs.shape, "{what}");
    let scale = theirs.data.iter().fold(1f32, |scale, value| scale.max(value.abs()));
    for (at, (a, b)) in ours.data.iter().zip(&theirs.data).enumerate() {
        assert!((a - b).abs() <= TOLERANCE * scale, "{what}: value {at} is {a}, not {b}");
    }
}

/// Every engine's answers to one picture and, where the batch is free, to three.
fn assert_engines_agree(onnx: &[u8], free: bool, sides: [i64; 2]) {
    let load = |engine: &dyn Engine| engine.load(onnx, "network").expect("loads");
    let (ours, plain) = (load(&Tract), load(&PlainTract));
    let runtime = onnx_runtime().map(|engine| load(&*engine));
    let [height, width] = sides.map(|side| side as usize);
    for count in if free { vec![1, 3] } else { vec![1] } {
        let (shape, data) = ([count, 3, height, width], pictures(count, sides));
        let actual = run(&ours, &shape, &data);
        assert_eq!(actual.shape, [count, CLASSES as usize]);
        assert_close(&actual, &run(&plain, &shape, &data), "tract as it is");
        if let Some(runtime) = &runtime {
            assert_close(&actual, &run(runtime, &shape, &data), "ONNX Runtime");
        }
    }
}

/// Head and trunk of every `step`th cut give together what the whole gives.
fn assert_cuts_are_the_whole(onnx: &[u8], sides: [i64; 2], step: usize) {
    let model = WholeModel::parse(onnx, &ModelOptions::default()).expect("a classifier");
    let [height, width] = sides.map(|side| side as usize);
    let (shape, data) = ([1, 3, height, width], pictures(1, sides));
    let whole = PlainTract.load(&model.whole(), "the whole").expect("loads");
    let expected = run(&whole, &shape, &data);
    for cut in model.cuts().iter().step_by(step) {
        let order: Vec<usize> = (0..cut.shape[0]).rev().collect();
        let Parts { head, adapter, trunk } = model.cut(cut, &Mix::Order(order));
        let load = |part: &[u8]| Tract.load(part, &cut.name()).expect("loads");
        let mut features = vec![run(&load(&head), &shape, &data)];
        assert_eq!(features[0].shape, [&[1], &cut.shape[..]].concat());
        if let Some(adapter) = adapter {
            features = run_all(&load(&adapter), &features);
        }
        let logits = run_all(&load(&trunk), &features).remove(0);
        assert_close(&logits, &expected, &cut.name());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(48) })]

    #[test]
    fn every_engine_says_the_same_of_any_blocks(case in cases()) {
        let onnx = encode(network(&case));
        assert_engines_agree(&onnx, case.batch == 0, case.sides);
        assert_cuts_are_the_whole(&onnx, case.sides, 3);
    }
}

#[test]
fn a_depthwise_convolution_between_products_is_computed_in_any_batch() {
    let onnx = encode(inverted_residual(CLASSES));
    assert_engines_agree(&onnx, true, [32, 32]);
    assert_cuts_are_the_whole(&onnx, [32, 32], 1);
}

/// tract's optimiser fails on it; the engine runs it all the same.
#[test]
fn a_graph_that_the_optimiser_fails_on_runs_without_it() {
    let mut net = Builder::new(0, [12, 12], 3);
    net.conv(4, Window::square(3, 1));
    net.add("Relu", &[], vec![]);
    net.conv(6, Window::square(1, 1));
    net.conv(6, Window::square(1, 2));
    let onnx = encode(net.classify(0, CLASSES));
    assert_engines_agree(&onnx, true, [12, 12]);
    assert_cuts_are_the_whole(&onnx, [12, 12], 1);
}

/// The bottleneck of ResNets: with the batch fixed, tract drops its axis around the 3×3.
#[test]
fn a_convolution_between_products_is_computed_in_any_batch() {
    for batch in [0, 1] {
        let mut net = Builder::new(batch, [16, 16], 2);
        net.conv(8, Window::square(3, 2));
        net.add("Relu", &[], vec![]);
        let residual = net.last.clone();
        net.conv(4, Window::square(1, 1));
        net.add("Relu", &[], vec![]);
        net.conv(4, Window::square(3, 1));
        net.add("Relu", &[], vec![]);
        net.conv(8, Window::square(1, 1));
        net.add("Add", &[&residual], vec![]);
        net.add("Softmax", &[], vec![number("axis", 1)]);
        let onnx = encode(net.classify(batch, CLASSES));
        assert_engines_agree(&onnx, batch == 0, [16, 16]);
        assert_cuts_are_the_whole(&onnx, [16, 16], 1);
    }
}
