//! Networks as exporters write them: channels last, sizes computed from the number of pictures, and one
//! picture written into the graph. All of them are cut, and run with any number of pictures.

#![cfg(feature = "shell")]

mod graphs;

use isthmus_models::{
    Cut, CutError, Engine, Linear, Mix, ModelOptions, Parts, Probabilities, Tensor, TensorView,
    Tract, WholeModel,
};
use proptest::prelude::*;
use prost::Message;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{
    AttributeProto, FunctionProto, GraphProto, ModelProto, OperatorSetIdProto, TensorProto,
};
use tract_onnx::prelude::f16;

use self::graphs::{Builder, Window, encode, integers, node, number, numbers, value_info, weights};

const SIDE: usize = 16;

fn run(onnx: &[u8], shape: &[usize], data: &[f32]) -> Vec<f32> {
    let graph = Tract.load(onnx, "a part").expect("loads");
    let mut outputs = graph.run(&[TensorView { shape, data }]).expect("runs");
    assert_eq!(outputs.len(), 1);
    outputs.remove(0).data
}

/// The outputs for `count` pictures' latents.
fn behind(parts: &Parts, cut: &Cut, count: usize, latents: &[f32]) -> Vec<Vec<f32>> {
    let [_, h, w] = cut.shape;
    let shape = [count, latents.len() / count / h / w, h, w];
    let load = |onnx| Tract.load(onnx, "a part").expect("loads");
    let arrived = [TensorView { shape: &shape, data: latents }];
    let features: Vec<Tensor> = match &parts.adapter {
        Some(adapter) => load(adapter).run(&arrived).expect("runs"),
        None => vec![Tensor { shape: shape.to_vec(), data: latents.to_vec() }],
    };
    let views = features.iter().map(|Tensor { shape, data }| TensorView { shape, data });
    let outputs = load(&parts.trunk).run(&views.collect::<Vec<_>>()).expect("runs");
    outputs.into_iter().map(|output| output.data).collect()
}

fn parse(graph: GraphProto) -> WholeModel {
    WholeModel::parse(&encode(graph), &ModelOptions::default()).expect("a network")
}

/// What the whole network makes of one picture.
fn answer(model: &WholeModel) -> Vec<f32> {
    let picture: Vec<f32> = (0..3 * SIDE * SIDE).map(|at| (at as f32 * 0.37).sin()).collect();
    run(&model.whole(), &[1, 3, SIDE, SIDE], &picture)
}

#[track_caller]
fn assert_close(ours: &[f32], theirs: &[f32], tolerance: f32) {
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(theirs) {
        assert!((ours - theirs).abs() < tolerance, "{ours}, {theirs}");
    }
}

/// Cuts the network everywhere, with its channels turned round: of three pictures head and trunk give
/// what the whole gives of each of them.
fn assert_cuts_hold(graph: GraphProto) -> WholeModel {
    let model = parse(graph);
    model.check_batches(&Tract).expect("any number of pictures");
    let picture = 3 * SIDE * SIDE;
    let pictures: Vec<f32> = (0..3 * picture).map(|at| (at as f32 * 0.37).sin()).collect();
    let whole = model.whole();
    let one = |picture: &[f32]| run(&whole, &[1, 3, SIDE, SIDE], picture);
    let expected: Vec<f32> = pictures.chunks(picture).flat_map(one).collect();
    assert!(!model.cuts().is_empty());
    for cut in model.cuts() {
        let latents = |parts: &Parts, picture| run(&parts.head, &[1, 3, SIDE, SIDE], picture);
        let parts = model.cut(cut, &Mix::Order((0..cut.shape[0]).rev().collect()));
        let latents: Vec<f32> =
            pictures.chunks(picture).flat_map(|picture| latents(&parts, picture)).collect();
        let logits = behind(&parts, cut, 3, &latents).remove(0);
        assert_eq!(logits.len(), expected.len(), "{}", cut.name());
        for (at, (ours, theirs)) in logits.iter().zip(&expected).enumerate() {
            assert!((ours - theirs).abs() < 1e-4, "{}: {at}: {ours}, {theirs}", cut.name());
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
        assert_eq!(model.cut_at(&[&tensor]).expect("a cut").shape, shape, "{tensor}");
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
    assert_eq!(model.cut_at(&[map]).expect("a cut").shape, [6, 8, 8]);
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
    assert_eq!(model.cut_at(&["large"]).expect("a cut").shape, [4, 13, 16]);
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
    assert_eq!(model.cut_at(&[merged]).expect("a cut").shape, [24, 4, 4]);
    assert_eq!(model.cut_at(&[wide]).expect("a cut").shape, [10, 4, 4]);
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

/// As DeiT: tokens of a map, and one of the network's own in front of them, which an exporter has
/// written into the graph once.
#[test]
fn tokens_are_cut_and_a_class_token_joins_every_picture() {
    let mut net = Builder::new(1, [16, 16], 8);
    net.conv(6, Window::square(3, 2));
    net.graph.initializer.push(integers("row", &[1, 6, 64]));
    net.add("Reshape", &["row"], vec![]);
    net.add("Transpose", &[], vec![numbers("perm", &[0, 2, 1])]);
    let tokens = net.last.clone();
    let class = net.constant(&[1, 1, 6], 1.0);
    net.graph.node.push(node("Concat", &[&class, &tokens], "all", vec![number("axis", 1)]));
    net.last = "all".into();
    let matrix = net.constant(&[6, 10], 0.5);
    net.add("MatMul", &[&matrix], vec![]);
    let wide = net.last.clone();
    net.add("Softmax", &[], vec![number("axis", 1)]);
    net.add("ReduceMean", &[], vec![numbers("axes", &[1]), number("keepdims", 0)]);
    let matrix = net.constant(&[10, 4], 1.0);
    net.add("MatMul", &[&matrix], vec![]);
    net.graph.output = vec![value_info(&net.last, &[1, 4])];
    let model = assert_cuts_hold(net.graph);
    for (tensor, shape) in [(&tokens, [6, 8, 8]), (&"all".into(), [6, 65, 1]), (&wide, [10, 65, 1])]
    {
        assert_eq!(model.cut_at(&[&tensor]).expect("a cut").shape, shape, "{tensor}");
    }
}

/// As attention that has its batch second: heads are taken for pictures and given back.
#[test]
fn pictures_that_are_not_in_front_are_followed() {
    let mut net = Builder::new(1, [16, 16], 9);
    net.conv(6, Window::square(3, 2));
    for (name, shape) in [("row", &[1, 6, 64][..]), ("heads", &[64, 3, 2]), ("joined", &[64, 1, 6])]
    {
        net.graph.initializer.push(integers(name, shape));
    }
    net.add("Reshape", &["row"], vec![]);
    net.add("Transpose", &[], vec![numbers("perm", &[2, 0, 1])]);
    net.add("Reshape", &["heads"], vec![]);
    net.add("Transpose", &[], vec![numbers("perm", &[1, 0, 2])]);
    net.add("Softmax", &[], vec![number("axis", 1)]);
    net.add("Transpose", &[], vec![numbers("perm", &[1, 0, 2])]);
    net.add("Reshape", &["joined"], vec![]);
    net.add("Transpose", &[], vec![numbers("perm", &[1, 2, 0])]);
    net.add("ReduceMax", &[], vec![numbers("axes", &[2]), number("keepdims", 0)]);
    let matrix = net.constant(&[6, 4], 1.0);
    net.add("MatMul", &[&matrix], vec![]);
    net.graph.output = vec![value_info(&net.last, &[1, 4])];
    parse(net.graph).check_batches(&Tract).expect("any number of pictures");
}

#[test]
fn a_network_that_mixes_pictures_is_refused_by_the_node_that_does() {
    let mut net = Builder::new(0, [16, 16], 10);
    net.conv(4, Window::square(3, 2));
    let map = net.last.clone();
    net.add("ReduceMax", &[], vec![numbers("axes", &[0]), number("keepdims", 1)]);
    let mixed = net.last.clone();
    net.graph.node.push(node("Mul", &[&map, &mixed], "product", vec![]));
    net.last = "product".into();
    let error = parse(net.classify(0, 4)).check_batches(&Tract).expect_err("mixed");
    assert!(matches!(&error, CutError::NotAlone { node, .. } if *node == mixed), "{error}");

    // Written for one picture in a way that nothing is known of.
    let mut net = Builder::new(1, [16, 16], 10);
    net.conv(4, Window::square(3, 2));
    net.graph.initializer.push(integers("first", &[0]));
    net.add("Gather", &["first"], vec![number("axis", 0)]);
    let taken = net.last.clone();
    let error = parse(net.classify(1, 4)).check_batches(&Tract).expect_err("one alone");
    assert!(error.to_string().contains(&taken), "{error}");
}

#[test]
fn functions_of_the_file_are_put_in_the_place_of_their_calls() {
    let reference = |name: &str, of: &str| AttributeProto {
        name: name.into(),
        ref_attr_name: of.into(),
        ..number(name, 0)
    };
    let function = |name: &str, input: &[&str], nodes| FunctionProto {
        name: Some(name.into()),
        domain: Some("own".into()),
        input: input.iter().map(|&it| it.into()).collect(),
        output: vec!["y".into()],
        node: nodes,
        ..Default::default()
    };
    let call = |op: &str, inputs: &[&str], output: &str, attributes| {
        let mut call = node(op, inputs, output, attributes);
        call.domain = "own".into();
        call
    };
    let shares = vec![
        node("Softmax", &["x"], "t", vec![reference("axis", "along")]),
        node("Mul", &["t", "f"], "y", vec![]),
    ];
    let twice = vec![
        call("Shares", &["a", "b"], "t", vec![number("along", 1)]),
        call("Shares", &["t", "b"], "y", vec![number("along", 3)]),
    ];
    let mut net = Builder::new(0, [16, 16], 11);
    net.conv(4, Window::square(3, 2));
    let before = net.last.clone();
    let factor = net.constant(&[4, 1, 1], 1.0);
    let mut plain = net.clone();
    for (axis, from, to) in [(1, before.as_str(), "t"), (3, "u", "v")] {
        plain.graph.node.push(node("Softmax", &[from], to, vec![number("axis", axis)]));
        let out = if to == "t" { "u" } else { "end" };
        plain.graph.node.push(node("Mul", &[to, &factor], out, vec![]));
    }
    plain.last = "end".into();
    let expected = answer(&parse(plain.classify(0, 4)));
    net.graph.node.push(call("Twice", &[&before, &factor], "end", vec![]));
    net.last = "end".into();
    let model = |functions| ModelProto {
        functions,
        ..ModelProto::decode(&encode(net.clone().classify(0, 4))[..]).expect("a model")
    };
    let functions =
        vec![function("Shares", &["x", "f"], shares), function("Twice", &["a", "b"], twice)];
    let file = model(functions.clone()).encode_to_vec();
    let parsed = WholeModel::parse(&file, &ModelOptions::default()).expect("inlined");
    assert_close(&answer(&parsed), &expected, 1e-6);
    // Between the two calls within the call.
    assert!(parsed.cuts().len() >= 6, "{:?}", parsed.cuts());

    let endless = function("Twice", &["a", "b"], vec![call("Twice", &["a", "b"], "y", vec![])]);
    let error = WholeModel::parse(&model(vec![endless]).encode_to_vec(), &ModelOptions::default());
    assert!(matches!(error, Err(CutError::Functions { .. })), "{error:?}");
    let mut newer = functions;
    newer[0].opset_import = vec![OperatorSetIdProto { version: 99, ..Default::default() }];
    let error = WholeModel::parse(&model(newer).encode_to_vec(), &ModelOptions::default());
    assert!(matches!(error, Err(CutError::FunctionVersion { version: 99, .. })), "{error:?}");
}

/// What converters to half precision write: all in halves but the input and the output.
#[test]
fn a_network_in_half_precision_is_cut_as_one_in_single() {
    let mut net = Builder::new(0, [16, 16], 12);
    net.conv(4, Window::square(3, 2));
    net.add("Relu", &[], vec![]);
    let graph = net.classify(0, 4);
    let single = parse(graph.clone());
    let mut half = graph;
    for tensor in &mut half.initializer {
        let values = std::mem::take(&mut tensor.float_data);
        let bits = values.iter().flat_map(|&value| f16::from_f32(value).to_bits().to_le_bytes());
        tensor.raw_data = bits.collect();
        tensor.data_type = DataType::Float16 as i32;
    }
    let logits = half.output[0].name.clone();
    for node in &mut half.node {
        let ends = node.input.iter_mut().chain(&mut node.output);
        ends.filter(|name| **name == "image" || **name == logits)
            .for_each(|name| name.push_str("_half"));
    }
    half.node.insert(0, node("Cast", &["image"], "image_half", vec![number("to", 10)]));
    half.node.push(node("Cast", &[&format!("{logits}_half")], &logits, vec![number("to", 1)]));
    let model = assert_cuts_hold(half);
    assert!(model.cuts().len() >= single.cuts().len());
    assert_close(&answer(&model), &answer(&single), 1e-2);
}

#[test]
fn constants_may_be_nodes() {
    let mut net = Builder::new(0, [16, 16], 13);
    net.conv(4, Window::square(3, 2));
    net.add("Relu", &[], vec![]);
    let mut graph = net.classify(0, 4);
    let expected = parse(graph.clone());
    let constants: Vec<TensorProto> = graph.initializer.drain(..).collect();
    for constant in constants {
        let value = AttributeProto {
            name: "value".into(),
            r#type: 4,
            t: Some(TensorProto { name: String::new(), ..constant.clone() }),
            ..Default::default()
        };
        graph.node.insert(0, node("Constant", &[], &constant.name, vec![value]));
    }
    let model = assert_cuts_hold(graph);
    assert_eq!(model.cuts(), expected.cuts());
    assert_eq!(model.parameters(), expected.parameters());
}

/// Probabilities at the end: of classes that exclude each other, of one that is or is not, of several
/// that are or are not.
#[test]
fn probabilities_become_logits_again() {
    let network = |classes: i64| {
        let mut net = Builder::new(0, [16, 16], 14);
        net.conv(4, Window::square(3, 2));
        net.classify(0, classes)
    };
    let ending = |op: &str, classes: i64, attributes| {
        let mut graph = network(classes);
        let logits = graph.output[0].name.clone();
        graph.node.push(node(op, &[&logits], "shares", attributes));
        graph.output = vec![value_info("shares", &[0, classes])];
        let mut model = parse(graph);
        let made = model.classify().expect("a classifier");
        (made, answer(&model))
    };
    let logits = answer(&parse(network(5)));
    for op in ["Softmax", "LogSoftmax"] {
        assert_eq!(
            ending(op, 5, vec![number("axis", 1)]),
            (Some(Probabilities::Softmax), logits.clone())
        );
    }
    assert_eq!(ending("Sigmoid", 5, vec![]), (Some(Probabilities::Sigmoids), logits));
    let one = answer(&parse(network(1)));
    assert_eq!(ending("Sigmoid", 1, vec![]), (Some(Probabilities::YesOrNo), vec![0.0, one[0]]));
    assert_eq!(ending("Relu", 5, vec![]).0, None);
    // Over the pictures: this is no step from logits to probabilities.
    assert_eq!(ending("Softmax", 5, vec![number("axis", 0)]).0, None);
}

#[test]
fn outputs_of_any_shape_and_number_are_kept() {
    let mut net = Builder::new(1, [16, 16], 15);
    net.conv(4, Window::square(3, 2));
    let shared = net.last.clone();
    net.conv(2, Window::square(3, 1));
    let map = net.last.clone();
    net.graph.initializer.push(integers("table", &[1, 2, 64]));
    net.add("Reshape", &["table"], vec![]);
    let table = net.last.clone();
    net.graph.node.push(node("ArgMax", &[&map], "best", vec![number("axis", 1)]));
    net.graph.output = vec![
        value_info(&map, &[1, 2, 8, 8]),
        value_info(&table, &[1, 2, 64]),
        value_info("best", &[1, 1, 8, 8]),
    ];
    let model = parse(net.graph.clone());
    let shapes: Vec<&[usize]> = model.outputs().iter().map(|it| it.shape.as_slice()).collect();
    assert_eq!(shapes, [&[2, 8, 8][..], &[2, 64], &[1, 8, 8]]);
    model.check_batches(&Tract).expect("any number of pictures");
    // The map is an output too, so that the only tensor that all leads through is the first.
    let cuts: Vec<&str> = model.cuts().iter().map(|cut| cut.tensors[0].as_str()).collect();
    assert_eq!(cuts, [shared.as_str()]);

    let outputs = |names: &[&str]| ModelOptions {
        outputs: names.iter().map(|&name| name.into()).collect(),
        ..Default::default()
    };
    let file = encode(net.graph);
    let model = WholeModel::parse(&file, &outputs(&[&table])).expect("one of them");
    assert_eq!((model.outputs().len(), model.cuts().len()), (1, 2));
    let error = WholeModel::parse(&file, &outputs(&["tabel"])).expect_err("none of them");
    assert!(matches!(error, CutError::Unknown { .. }), "{error}");
}

/// Two maps are added that have the same size only where the picture's is a multiple of four.
#[test]
fn a_size_that_does_not_fit_is_answered_with_one_that_does() {
    let mut net = Builder::new(0, [0, 0], 16);
    net.conv(4, Window::square(3, 2));
    let fine = net.last.clone();
    net.conv(4, Window::square(3, 2));
    net.graph.initializer.push(weights("factors", &[4], |at| if at < 2 { 1.0 } else { 2.0 }));
    net.graph.node.push(node("Resize", &[&net.last, "", "factors"], "large", vec![]));
    net.graph.node.push(node("Add", &["large", &fine], "sum", vec![]));
    net.last = "sum".into();
    let file = encode(net.classify(0, 4));
    let size = |size| ModelOptions { size: Some(size), ..Default::default() };
    let error = WholeModel::parse(&file, &size([18, 30])).expect_err("does not fit");
    assert!(error.to_string().ends_with("it can at 24x32"), "{error}");
    assert!(WholeModel::parse(&file, &size([24, 32])).is_ok());
}

/// A network of the form of a letter U, or of a pyramid: maps of several sizes are needed to the end.
fn pyramid(sides: [i64; 2], widths: [i64; 3], strides: [i64; 2]) -> (GraphProto, Vec<String>) {
    let mut net = Builder::new(0, sides, 17);
    net.conv(4, Window::square(3, 1));
    let mut taps = Vec::new();
    for (width, stride) in widths.into_iter().zip([1, strides[0], strides[1]]) {
        net.conv(width, Window::square(3, stride));
        net.add("Relu", &[], vec![]);
        taps.push((net.last.clone(), net.channels));
    }
    let mut pooled = Vec::new();
    for (tap, channels) in &taps {
        (net.last, net.channels) = (tap.clone(), *channels);
        net.conv(3, Window::square(3, 1));
        net.add("GlobalAveragePool", &[], vec![]);
        pooled.push(net.last.clone());
    }
    let others: Vec<&str> = pooled.iter().map(String::as_str).collect();
    net.graph.node.push(node("Concat", &others, "together", vec![number("axis", 1)]));
    (net.last, net.channels) = ("together".into(), 9);
    let graph = net.classify(0, 4);
    (graph, taps.into_iter().map(|(tap, _)| tap).collect())
}

#[test]
fn tensors_that_only_together_separate_are_proposed_and_cut_together() {
    let (graph, taps) = pyramid([16, 16], [4, 6, 8], [2, 2]);
    let model = parse(graph);
    let set = model.cuts().iter().find(|cut| cut.tensors.len() > 1).expect("a set");
    assert!(set.op == "Relu" || set.op == "Conv", "{set:?}");
    let cut = model.cut_at(&taps).expect("a set");
    assert_eq!(cut.tensors, taps);
    // 4 channels of 4 × 4 places, 6 of 2 × 2, and 8.
    assert_eq!(cut.shape, [64 + 24 + 8, 4, 4]);
    assert_eq!(cut.features(), [[4, 16, 16], [6, 8, 8], [8, 4, 4]]);
    assert_eq!(cut.values(), 4 * 256 + 6 * 64 + 8 * 16);
    assert_eq!(cut.head_macs + cut.tail_macs, model.macs());

    let error = model.cut_at(&taps[1..]).expect_err("one is missing").to_string();
    assert!(error.contains("lead around it"), "{error}");
    let more = [&taps[..], &["together".to_owned()]].concat();
    let error = model.cut_at(&more).expect_err("one too many").to_string();
    assert!(error.contains("needs it"), "{error}");
    assert!(model.cut_at::<&str>(&[]).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(12) })]

    /// Of any sizes, multiples of each other or not: head, adapter and trunk are the whole, with every
    /// channel sent and with sums of all of them.
    #[test]
    fn any_pyramid_is_cut_at_its_taps(
        sides in [9..=20i64, 9..=20],
        widths in [1..=5i64, 1..=5, 1..=5],
        strides in [1..=3i64, 1..=3],
    ) {
        let (graph, taps) = pyramid(sides, widths, strides);
        let model = parse(graph);
        let cut = model.cut_at(&taps).expect("a set");
        let [height, width] = sides.map(|side| side as usize);
        let values = 3 * height * width;
        let pictures: Vec<f32> = (0..2 * values).map(|at| (at as f32 * 0.37).sin()).collect();
        let expected = run(&model.whole(), &[2, 3, height, width], &pictures);
        let channels = cut.shape[0];
        let turned = Mix::Order((0..channels).rev().collect());
        // One is added, and each is told by its difference to the next.
        let step = |row: usize, column: usize, near: f32| match row.abs_diff(column) {
            0 => 1.0,
            1 if column > row => near,
            _ => 0.0,
        };
        let matrix = |value: &dyn Fn(usize, usize) -> f32| -> Vec<f32> {
            (0..channels).flat_map(|row| (0..channels).map(move |column| (row, column)))
                .map(|(row, column)| value(row, column)).collect()
        };
        let sums = Mix::Linear(Linear {
            channels,
            latents: channels,
            forth: matrix(&|row, column| step(row, column, -1.0)),
            forth_bias: vec![1.0; channels],
            back: matrix(&|row, column| if column >= row { 1.0 } else { 0.0 }),
            back_bias: (0..channels).map(|row| row as f32 - channels as f32).collect(),
        });
        for mix in [turned, sums] {
            let parts = model.cut(&cut, &mix);
            let latents: Vec<f32> = pictures
                .chunks(values)
                .flat_map(|picture| run(&parts.head, &[1, 3, height, width], picture))
                .collect();
            let ours = behind(&parts, &cut, 2, &latents).remove(0);
            prop_assert_eq!(ours.len(), expected.len());
            for (ours, theirs) in ours.iter().zip(&expected) {
                prop_assert!((ours - theirs).abs() < 1e-2, "{}, {}", ours, theirs);
            }
        }
    }
}
