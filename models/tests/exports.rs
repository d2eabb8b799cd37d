//! Networks as exporters write them: channels last, sizes computed from the number of pictures, and one
//! picture written into the graph. All of them are cut, and run with any number of pictures.

#![cfg(feature = "shell")]

mod graphs;

use isthmus_models::{Engine, Parts, TensorView, Tract, WholeModel};
use tract_onnx::pb::GraphProto;

use self::graphs::{Builder, Window, encode, integers, node, number, numbers};

const SIDE: usize = 16;

fn run(onnx: &[u8], shape: &[usize], data: &[f32]) -> Vec<f32> {
    let graph = Tract.load(onnx, "a part").expect("loads");
    let mut outputs = graph.run(&[TensorView { shape, data }]).expect("runs");
    assert_eq!(outputs.len(), 1);
    outputs.remove(0).data
}

/// Cuts the network everywhere, with its channels turned round: of three pictures head and trunk give
/// what the whole gives of each of them.
fn assert_cuts_hold(graph: GraphProto) -> WholeModel {
    let model = WholeModel::parse(&encode(graph), None).expect("a classifier");
    let picture = 3 * SIDE * SIDE;
    let pictures: Vec<f32> = (0..3 * picture).map(|at| (at as f32 * 0.37).sin()).collect();
    let whole = model.whole();
    let one = |picture: &[f32]| run(&whole, &[1, 3, SIDE, SIDE], picture);
    let expected: Vec<f32> = pictures.chunks(picture).flat_map(one).collect();
    assert!(!model.cuts().is_empty());
    for cut in model.cuts() {
        let [c, h, w] = cut.shape;
        let order: Vec<usize> = (0..c).rev().collect();
        let Parts { head, trunk } = model.cut(&cut.tensor, &order).expect("cut");
        let latents = |picture| run(&head, &[1, 3, SIDE, SIDE], picture);
        let latents: Vec<f32> = pictures.chunks(picture).flat_map(latents).collect();
        let logits = run(&trunk, &[3, c, h, w], &latents);
        assert_eq!(logits.len(), expected.len(), "{}", cut.tensor);
        for (at, (ours, theirs)) in logits.iter().zip(&expected).enumerate() {
            assert!((ours - theirs).abs() < 1e-4, "{}: {at}: {ours}, {theirs}", cut.tensor);
        }
    }
    model
}

#[test]
fn maps_with_channels_last_are_cut_by_channel() {
    let mut net = Builder::new(0, [16, 16], 3);
    net.conv(6, Window::square(3, 2));
    net.add("Transpose", &[], vec![numbers("perm", &[0, 2, 3, 1])]);
    let turned = net.last.clone();
    let scale = net.constant(&[6], 1.0);
    net.add("Mul", &[&scale], vec![]);
    let matrix = net.constant(&[6, 10], 0.5);
    net.add("MatMul", &[&matrix], vec![]);
    let wide = net.last.clone();
    net.channels = 10;
    net.add("Transpose", &[], vec![numbers("perm", &[0, 3, 1, 2])]);
    let back = net.last.clone();
    let model = assert_cuts_hold(net.classify(0, 4));
    for (tensor, shape) in [(turned, [6, 8, 8]), (wide, [10, 8, 8]), (back, [10, 8, 8])] {
        assert_eq!(model.cut_at(&tensor).expect("a cut").shape, shape, "{tensor}");
    }
}

/// As tokens: the places in a row, channels last, and a map again.
#[test]
fn channels_are_followed_through_tokens() {
    let mut net = Builder::new(0, [16, 16], 4);
    net.conv(6, Window::square(3, 2));
    for (name, shape) in [("row", &[0, 6, 64][..]), ("map", &[0, 8, 8, 6])] {
        net.graph.initializer.push(integers(name, shape));
    }
    net.add("Reshape", &["row"], vec![]);
    net.add("Transpose", &[], vec![numbers("perm", &[0, 2, 1])]);
    net.add("Reshape", &["map"], vec![]);
    let map = net.last.clone();
    net.add("Relu", &[], vec![]);
    net.add("Transpose", &[], vec![numbers("perm", &[0, 3, 1, 2])]);
    let model = assert_cuts_hold(net.classify(0, 4));
    assert_eq!(model.cut_at(&map).expect("a cut").shape, [6, 8, 8]);
}

#[test]
fn a_resize_to_sizes_computed_from_the_batch_runs_with_any_number_of_pictures() {
    let mut net = Builder::new(0, [16, 16], 5);
    net.conv(4, Window::square(3, 2));
    let small = net.last.clone();
    net.graph.initializer.push(integers("first", &[0]));
    net.graph.initializer.push(integers("second", &[2]));
    net.graph.initializer.push(integers("sides", &[13, 16]));
    net.add("Shape", &[], vec![]);
    net.add("Slice", &["first", "second"], vec![]);
    net.add("Concat", &["sides"], vec![number("axis", 0)]);
    let sizes = net.last.clone();
    net.graph.node.push(node("Resize", &[&small, "", "", &sizes], "large", vec![]));
    net.last = "large".into();
    let model = assert_cuts_hold(net.classify(0, 4));
    assert_eq!(model.cut_at("large").expect("a cut").shape, [4, 13, 16]);
}

#[test]
fn channels_are_followed_where_they_are_merged() {
    let mut net = Builder::new(0, [16, 16], 7);
    net.conv(6, Window::square(3, 2));
    for (name, shape) in [("pairs", &[0, 4, 2, 4, 2, 6][..]), ("merged", &[0, 4, 4, 24])] {
        net.graph.initializer.push(integers(name, shape));
    }
    net.add("Transpose", &[], vec![numbers("perm", &[0, 2, 3, 1])]);
    net.add("Reshape", &["pairs"], vec![]);
    net.add("Transpose", &[], vec![numbers("perm", &[0, 1, 3, 2, 4, 5])]);
    net.add("Reshape", &["merged"], vec![]);
    let merged = net.last.clone();
    let matrix = net.constant(&[24, 10], 0.5);
    net.add("MatMul", &[&matrix], vec![]);
    let wide = net.last.clone();
    net.channels = 10;
    net.add("Transpose", &[], vec![numbers("perm", &[0, 3, 1, 2])]);
    let model = assert_cuts_hold(net.classify(0, 4));
    assert_eq!(model.cut_at(&merged).expect("a cut").shape, [24, 4, 4]);
    assert_eq!(model.cut_at(&wide).expect("a cut").shape, [10, 4, 4]);
}

/// The picture's extents are written into the graph, or computed from what is written there; windows
/// of the map are taken for pictures.
#[test]
fn a_network_exported_for_one_picture_runs_with_any_number() {
    let mut net = Builder::new(1, [16, 16], 6);
    net.conv(4, Window::square(3, 2));
    for (name, shape) in [
        ("row", &[1, 4, 64][..]),
        ("split", &[1, 4, 2, 4, 2, 4]),
        ("windows", &[4, 4, 4, 4]),
        ("joined", &[1, 2, 2, 4, 4, 4]),
        ("one", &[1]),
        ("map", &[4, 8, 8]),
    ] {
        net.graph.initializer.push(integers(name, shape));
    }
    let windows = || vec![numbers("perm", &[0, 2, 4, 1, 3, 5])];
    let map = || vec![numbers("perm", &[0, 3, 1, 4, 2, 5])];
    net.graph.node.push(node("Concat", &["one", "map"], "shape", vec![number("axis", 0)]));
    net.add("Reshape", &["row"], vec![]);
    net.add("Relu", &[], vec![]);
    net.add("Reshape", &["split"], vec![]);
    net.add("Transpose", &[], windows());
    net.add("Reshape", &["windows"], vec![]);
    net.add("Sigmoid", &[], vec![]);
    net.add("Reshape", &["joined"], vec![]);
    net.add("Transpose", &[], map());
    net.add("Reshape", &["shape"], vec![]);
    assert_cuts_hold(net.classify(1, 4));
}
