//! A model from elsewhere: where it can be cut, what its halves do, and the bundle made of it. The
//! model is built here, node by node.

#![cfg(feature = "shell")]

mod graphs;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use image::{Rgb, RgbImage};
use isthmus_models::{
    Bundle, ChannelOrder, Cut, CutError, Engine, Fit, Full, Golden, Head, Import, ImportEngines,
    ImportError, Mix, ModelOptions, OtherHead, Outcomes, Parts, Photo, PhotoError, PlainTract,
    Rotate, Tail, TailItem, Task, TensorView, Tract, WholeModel, find_photos, verify,
};
use tempfile::TempDir;
use tract_onnx::pb::tensor_proto::DataLocation;
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto};

use self::graphs::{encode, node, number, numbers, value_info, weights};

const LABELS: [&str; 3] = ["blue", "green", "red"];

fn conv(input: &str, weights: &str, output: &str, stride: i64) -> NodeProto {
    let attributes = vec![
        numbers("kernel_shape", &[3, 3]),
        numbers("pads", &[1, 1, 1, 1]),
        numbers("strides", &[stride, stride]),
    ];
    node("Conv", &[input, weights], output, attributes)
}

/// Convolution, rectifier, a residual block, pooling, a matrix; it answers which of red, green and
/// blue is the most, because its first three channels carry them through.
fn network() -> GraphProto {
    let centre = |at: usize, inputs: usize| {
        let (tap, channel) = (at % 9, at / 9);
        (tap == 4 && channel % inputs == channel / inputs).then_some(1.0)
    };
    let wave = |at: usize| (at as f32 * 0.7).sin() * 0.05;
    GraphProto {
        name: "network".into(),
        node: vec![
            conv("image", "w1", "c1", 2),
            node("Relu", &["c1"], "r1", vec![]),
            conv("r1", "w2", "c2", 1),
            node("Relu", &["c2"], "r2", vec![]),
            conv("r2", "w3", "c3", 1),
            node("Add", &["c3", "r1"], "sum", vec![]),
            node("Relu", &["sum"], "r3", vec![]),
            node("GlobalAveragePool", &["r3"], "pool", vec![]),
            node("Flatten", &["pool"], "flat", vec![]),
            node("Gemm", &["flat", "w4", "b4"], "scores", vec![number("transB", 1)]),
        ],
        initializer: vec![
            weights("w1", &[4, 3, 3, 3], |at| centre(at, 3).unwrap_or(wave(at))),
            weights("w2", &[4, 4, 3, 3], wave),
            weights("w3", &[4, 4, 3, 3], wave),
            // Blue, green, red.
            weights("w4", &[3, 4], |at| if [2, 5, 8].contains(&at) { 4.0 } else { 0.1 }),
            weights("b4", &[3], |_| 0.0),
        ],
        input: vec![value_info("image", &[0, 3, 16, 16])],
        output: vec![value_info("scores", &[0, 3])],
        ..Default::default()
    }
}

fn model() -> WholeModel {
    WholeModel::parse(&encode(network()), &ModelOptions::default()).expect("a classifier")
}

fn refusal(change: impl FnOnce(&mut GraphProto)) -> CutError {
    let mut graph = network();
    change(&mut graph);
    WholeModel::parse(&encode(graph), &ModelOptions::default()).expect_err("refused")
}

fn no_classifier(change: impl FnOnce(&mut GraphProto)) -> CutError {
    let mut graph = network();
    change(&mut graph);
    let mut model = WholeModel::parse(&encode(graph), &ModelOptions::default()).expect("a network");
    model.classify().expect_err("refused")
}

fn run(onnx: &[u8], shape: &[usize], data: &[f32]) -> Vec<f32> {
    let graph = Tract.load(onnx, "a part").expect("loads");
    let mut outputs = graph.run(&[TensorView { shape, data }]).expect("runs");
    assert_eq!(outputs.len(), 1);
    outputs.remove(0).data
}

#[test]
fn cuts_are_the_tensors_that_everything_goes_through() {
    let model = model();
    let single: Vec<&Cut> = model.cuts().iter().filter(|cut| cut.tensors.len() == 1).collect();
    let tensors: Vec<&str> = single.iter().map(|cut| cut.tensors[0].as_str()).collect();
    // Not c2, r2 and c3, beside which r1 leads to the sum, nor the scores, which are the output.
    assert_eq!(tensors, ["c1", "r1", "sum", "r3", "pool", "flat"]);
    let shapes: Vec<[usize; 3]> = single.iter().map(|cut| cut.shape).collect();
    assert_eq!(shapes[..4], [[4, 8, 8]; 4]);
    assert_eq!(shapes[4..], [[4, 1, 1]; 2]);

    let r1 = model.cut_at(&["r1"]).expect("a cut");
    let (first, block, last) = (64 * 4 * 27, 2 * 64 * 4 * 36, 12);
    assert_eq!((r1.head_macs, r1.tail_macs), (first, block + last));
    assert_eq!((r1.head_parameters, r1.values(), &*r1.op), (108, 256, "Relu"));
    assert_eq!(model.macs(), first + block + last);
    assert_eq!(model.parameters(), 108 + 2 * 144 + 12 + 3);
}

#[test]
fn head_and_trunk_are_the_whole() {
    let model = model();
    let pictures: Vec<f32> = (0..2 * 768).map(|at| (at as f32 * 0.37).sin()).collect();
    let whole = run(&model.whole(), &[2, 3, 16, 16], &pictures);
    assert_eq!(whole.len(), 6);
    for cut in model.cuts().iter().filter(|cut| cut.tensors.len() == 1) {
        for order in [[0, 1, 2, 3], [2, 0, 3, 1]] {
            let Parts { head, adapter, trunk } = model.cut(cut, &Mix::Order(order.to_vec()));
            let shape = [&[2], &cut.shape[..]].concat();
            let latents: Vec<f32> =
                pictures.chunks(768).flat_map(|it| run(&head, &[1, 3, 16, 16], it)).collect();
            assert_eq!(adapter.is_some(), order != [0, 1, 2, 3]);
            let features = adapter.map(|adapter| run(&adapter, &shape, &latents));
            let logits = run(&trunk, &shape, features.as_ref().unwrap_or(&latents));
            for (ours, theirs) in logits.iter().zip(&whole) {
                assert!((ours - theirs).abs() < 1e-5, "{}: {logits:?}, {whole:?}", cut.name());
            }
        }
    }
}

#[test]
fn selected_classes_are_the_only_ones() {
    let mut model = model();
    let picture: Vec<f32> = (0..768).map(|at| (at as f32 * 0.37).sin()).collect();
    let all = run(&model.whole(), &[1, 3, 16, 16], &picture);
    model.select_classes(&[2, 0]).expect("two of three");
    assert_eq!(run(&model.whole(), &[1, 3, 16, 16], &picture), [all[2], all[0]]);
    assert_eq!(model.select_classes(&[2]), Err(CutError::Class { index: 2, last: 1 }));
}

#[test]
fn a_name_that_is_no_cut_is_answered_with_some_that_are() {
    let model = model();
    let error = model.cut_at(&["r33"]).expect_err("no such tensor").to_string();
    assert!(error.contains("\"r33\"") && error.contains("r3, r1"), "{error}");
    let error = model.cut_at(&["r2"]).expect_err("inside the block").to_string();
    assert!(error.contains("around it") && error.contains("r1 and sum"), "{error}");
    let error = model.cut_at(&["scores"]).expect_err("the output").to_string();
    assert!(error.contains("it is an output"), "{error}");
}

#[test]
fn what_is_no_classifier_of_pictures_is_refused() {
    for rubbish in [&b""[..], b"GIF89a, not ONNX", &encode(GraphProto::default())] {
        let error = WholeModel::parse(rubbish, &ModelOptions::default()).expect_err("rubbish");
        assert!(matches!(error, CutError::NotOnnx(_)), "{error}");
    }
    let whole = encode(network());
    for length in (0..whole.len()).step_by(97) {
        assert!(WholeModel::parse(&whole[..length], &ModelOptions::default()).is_err());
    }

    let error = refusal(|graph| {
        graph.initializer[1].data_location = Some(DataLocation::External as i32);
    });
    assert_eq!(error, CutError::ExternalData { tensor: "w2".into() });

    let error = refusal(|graph| graph.input.push(value_info("mask", &[0, 1, 16, 16])));
    let found = vec!["image".into(), "mask".into()];
    assert_eq!(error, CutError::NotOne { what: "input", found });
    let error = no_classifier(|graph| graph.output.push(value_info("pool", &[0, 4, 1, 1])));
    assert!(error.to_string().contains("classifier, found 2: scores, pool"), "{error}");

    let error = refusal(|graph| graph.input[0] = value_info("image", &[0, 16, 16, 3]));
    assert!(error.to_string().contains("is f32 [?, 16, 16, 3]"), "{error}");
    let error = refusal(|graph| graph.input[0] = value_info("image", &[2, 3, 16, 16]));
    assert!(error.to_string().contains("is f32 [2, 3, 16, 16]"), "{error}");
    let error = no_classifier(|graph| graph.output[0] = value_info("r3", &[0, 4, 8, 8]));
    assert!(matches!(error, CutError::Output { .. }), "{error}");

    let error = refusal(|graph| graph.node.swap(0, 1));
    assert_eq!(error, CutError::Undefined { node: "r1".into(), tensor: "c1".into() });
    let error = refusal(|graph| {
        let g = Some(GraphProto::default());
        let branch = AttributeProto { name: "then_branch".into(), g, ..Default::default() };
        graph.node[1] = node("If", &["c1"], "r1", vec![branch]);
    });
    assert!(matches!(error, CutError::ControlFlow { .. }), "{error}");
    assert!(error.to_string().ends_with("--outputs c1"), "{error}");
}

#[test]
fn weights_may_be_listed_among_the_inputs() {
    let mut graph = network();
    graph.input.insert(0, value_info("w1", &[4, 3, 3, 3]));
    let model = WholeModel::parse(&encode(graph), &ModelOptions::default())
        .expect("as older exporters write it");
    assert_eq!(model.cuts(), self::model().cuts());
}

#[test]
fn a_free_size_has_to_be_said() {
    let mut graph = network();
    graph.input[0] = value_info("image", &[0, 3, 0, 0]);
    let free = encode(graph);
    let error = WholeModel::parse(&free, &ModelOptions::default()).expect_err("at which size?");
    assert!(error.to_string().contains("--size WIDTHxHEIGHT"), "{error}");
    let model =
        WholeModel::parse(&free, &ModelOptions { size: Some([32, 16]), ..Default::default() })
            .expect("at this one");
    assert_eq!(model.cut_at(&["r1"]).expect("a cut").shape, [4, 8, 16]);

    let error = WholeModel::parse(
        &encode(network()),
        &ModelOptions { size: Some([32, 16]), ..Default::default() },
    )
    .expect_err("it is 16x16");
    assert!(matches!(error, CutError::Size { width: 32, .. }), "{error}");
}

/// Pictures of one colour each, some in folders of the classes' names.
fn pictures(folder: &Path) {
    for (channel, class) in [2, 1, 0].into_iter().zip(LABELS) {
        fs::create_dir_all(folder.join(class)).expect("folder");
        for number in 0..6u8 {
            let picture = RgbImage::from_fn(20, 16, |x, y| {
                let mut rgb = [40 + number * 5 + (x % 7) as u8; 3];
                rgb[channel] = 160 + number * 8 + (y % 5) as u8;
                Rgb(rgb)
            });
            picture.save(folder.join(class).join(format!("{number}.png"))).expect("picture");
        }
    }
}

fn import(photos: Vec<Photo>) -> Import {
    Import {
        name: "own".into(),
        version: "1".into(),
        origin: "own.onnx".into(),
        task: Task::Classification,
        labels: LABELS.map(str::to_owned).to_vec(),
        boxes: None,
        truth: None,
        fit: Fit::Crop,
        order: ChannelOrder::Rgb,
        fill: [114; 3],
        mean: [0.5; 3],
        std: [0.5; 3],
        bits: vec![4, 8],
        channels: vec![2],
        rotate: Rotate::No,
        heads: vec![],
        calibration: photos.clone(),
        measuring: photos,
    }
}

fn write(import: &Import, tensor: &str, out: &Path) -> Result<Arc<Bundle>, ImportError> {
    let engines = ImportEngines { engine: &Tract, reference: &PlainTract };
    import.write(&model(), &[tensor], engines, out, &mut |_| {})
}

#[test]
fn a_cut_model_is_a_bundle_as_any_other() {
    let dir = TempDir::new().expect("temporary folder");
    pictures(&dir.path().join("pictures"));
    let labels = LABELS.map(str::to_owned);
    let photos = find_photos(&dir.path().join("pictures"), &labels).expect("pictures");
    assert_eq!(photos.len(), 18);
    for (tensor, split) in [("r1", "s2"), ("flat", "s16")] {
        let out = dir.path().join(split);
        let bundle = write(&import(photos.clone()), tensor, &out).expect(tensor);
        let width = &bundle.manifest().splits[0].widths[0];
        assert!(!width.exit);
        assert_eq!(bundle.manifest().full.quality, 1.0);
        let names: Vec<String> = bundle
            .points()
            .iter()
            .map(|rung| bundle.describe_point(rung.point).to_string())
            .collect();
        let expected = ["c2/b4", "c2/b8", "c4/b4", "c4/b8"].map(|it| format!("{split}/w100/{it}"));
        assert_eq!(names, expected);
        let best = &bundle.points()[3];
        assert_eq!(best.quality, 1.0);
        assert!(best.bytes_mean > 8.0 && best.bytes_p50 <= best.bytes_p99);

        let verified = verify(&bundle, &Tract).expect("verifies");
        assert_eq!((verified.goldens, verified.differing), (1, 0));
        assert!(verified.references.contains("tract-plain"), "{:?}", verified.references);
        let packed = bundle.read("outcomes.csv.zst").expect("outcomes");
        let outcomes = Outcomes::unpack(&packed).expect("a record");
        assert_eq!((outcomes.frames(), outcomes.points().len()), (18, 5));

        // Without a quantiser between them, head and tail are the whole.
        let head = Head::load(Arc::clone(&bundle), &Tract).expect("head");
        let tail = Tail::load(Arc::clone(&bundle), &Tract).expect("tail");
        let full = Full::load(Arc::clone(&bundle), &Tract).expect("full");
        let input: Vec<f32> = (0..768).map(|at| (at as f32 * 0.37).sin()).collect();
        let output = head.run(0, 0, &input).expect("runs");
        assert_eq!(output.exit, None);
        let item = TailItem { split: 0, width: 0, latents: &output.latents };
        let (cut, whole) =
            (tail.run(&[item, item]).expect("runs"), full.run(&[&input]).expect("runs"));
        for (cut, whole) in cut[1][0].iter().zip(&whole[0][0]) {
            assert!((cut - whole).abs() < 1e-5);
        }
        let short = TailItem { latents: &output.latents[1..], ..item };
        assert!(tail.run(&[short]).is_err());

        let again =
            write(&import(photos.clone()), tensor, &dir.path().join("again")).expect("again");
        assert_eq!(again.digest(), bundle.digest(), "the same input gives the same bytes");
        fs::remove_dir_all(again.dir()).expect("removed");
    }
}

#[test]
fn an_altered_golden_is_named() {
    let dir = TempDir::new().expect("temporary folder");
    pictures(dir.path());
    let photos = find_photos(dir.path(), &[]).expect("pictures");
    let out = dir.path().join("bundle");
    let bundle = write(&import(photos), "r1", &out).expect("written");
    assert!(bundle.points().is_empty(), "no class is known");

    let golden = out.join("goldens/000.safetensors");
    let mut bytes = fs::read(&golden).expect("golden");
    let packed = zstd::encode_all(&bytes[..], 3).expect("packed");
    let [plain, unpacked] =
        [&bytes, &packed].map(|b| Golden::parse(b, bundle.manifest()).expect("a golden"));
    assert_eq!((plain.input, plain.stream), (unpacked.input, unpacked.stream));
    let torn = Golden::parse(&packed[..packed.len() / 2], bundle.manifest())
        .expect_err("torn")
        .to_string();
    assert!(torn.starts_with("golden: zstd: "), "{torn}");

    // The golden of another model, listed with its own digest.
    let header = u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes")) as usize;
    bytes[8 + header + 3 * 16 * 16 * 4 + 3] ^= 0x40; // the first latent, by a power of two
    fs::write(&golden, &bytes).expect("written");
    let error = Bundle::open(&out).expect_err("altered").to_string();
    assert!(error.contains("000.safetensors: altered"), "{error}");
    let manifest = fs::read_to_string(out.join("manifest.toml")).expect("manifest");
    let digest = |text: &str, sha256: &str| {
        let old = text.find("goldens/000.safetensors\"]").expect("listed");
        let at = old + text[old..].find("sha256 = \"").expect("digest") + 10;
        format!("{}{sha256}{}", &text[..at], &text[at + 64..])
    };
    let actual = error.split("SHA-256 is ").nth(1).expect("the digest")[..64].to_owned();
    fs::write(out.join("manifest.toml"), digest(&manifest, &actual)).expect("written");
    let bundle = Arc::new(Bundle::open(&out).expect("consistent"));
    let error = verify(&bundle, &Tract).expect_err("another model's").to_string();
    assert!(error.contains("goldens/000.safetensors: latents: value 0"), "{error}");
}

#[test]
fn without_pictures_there_is_no_bundle() {
    let dir = TempDir::new().expect("temporary folder");
    let error = find_photos(dir.path(), &[]).expect_err("empty").to_string();
    assert!(error.contains("no picture"), "{error}");
    assert!(matches!(
        find_photos(&dir.path().join("none"), &[]),
        Err(PhotoError::Unreadable { .. })
    ));

    let path = dir.path().join("bad.jpg");
    fs::write(&path, "no picture").expect("written");
    let out = dir.path().join("bundle");
    let bad = import(vec![Photo { path, class: None }]);
    let error = write(&bad, "r1", &out).expect_err("unreadable");
    assert!(matches!(error, ImportError::NothingToCalibrate(1)), "{error}");
    assert_eq!(fs::read_dir(dir.path()).expect("folder").count(), 1, "nothing is left behind");

    for (wrong, part) in [
        (Import { bits: vec![9], ..bad.clone() }, "bits must be 1 to 8"),
        (Import { channels: vec![5], ..bad.clone() }, "channels must be 1 to 4"),
        (Import { name: "a/b".into(), ..bad.clone() }, "name: must be"),
    ] {
        let error = write(&wrong, "r1", &out).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    }
    let error = write(&bad, "r1", dir.path()).expect_err("in the way");
    assert!(matches!(error, ImportError::Exists(_)), "{error}");
}

/// The same trunk behind the model's own head and behind half of one: a whole network, or its head
/// alone.
#[test]
fn further_heads_are_further_widths() {
    let dir = TempDir::new().expect("temporary folder");
    pictures(&dir.path().join("pictures"));
    let labels = LABELS.map(str::to_owned);
    let photos = find_photos(&dir.path().join("pictures"), &labels).expect("pictures");
    let mut half = network();
    half.initializer[0].float_data.iter_mut().for_each(|value| *value *= 0.5);
    let mut alone = half.clone();
    alone.output = vec![value_info("r1", &[0, 4, 8, 8])];
    let other = |name: &str, graph: &GraphProto| OtherHead {
        name: name.into(),
        model: WholeModel::parse(&encode(graph.clone()), &ModelOptions::default()).expect("a head"),
    };
    for rotate in [Rotate::No, Rotate::Yes, Rotate::Auto] {
        let heads = vec![other("w50", &half), other("w25", &alone)];
        let import = Import { rotate, heads, bits: vec![8], ..import(photos.clone()) };
        let out = dir.path().join(format!("{rotate:?}"));
        let bundle = write(&import, "r1", &out).expect("written");
        let widths = &bundle.manifest().splits[0].widths;
        let names: Vec<&str> = widths.iter().map(|width| width.name.as_str()).collect();
        assert_eq!(names, ["w100", "w50", "w25"]);
        let verified = verify(&bundle, &Tract).expect("verifies");
        assert_eq!(verified.goldens, 1);
        // Half the head's weights: other latents, but the same kind of picture is told apart.
        let latent = bundle.manifest().splits[0].latent;
        assert_eq!(latent[1..], [8, 8]);
    }
    let import = Import { heads: vec![other("w25", &alone)], ..import(photos) };
    let error = write(&import, "flat", &dir.path().join("wide")).expect_err("another shape");
    assert!(error.to_string().contains("head w25: gives [[4, 8, 8]]"), "{error}");
}

/// With all sums kept and eight bits the answers are those of the channels.
#[test]
fn sums_of_channels_answer_as_the_channels_do() {
    let dir = TempDir::new().expect("temporary folder");
    pictures(&dir.path().join("pictures"));
    let labels = LABELS.map(str::to_owned);
    let photos = find_photos(&dir.path().join("pictures"), &labels).expect("pictures");
    let import = Import { rotate: Rotate::Yes, bits: vec![8], channels: vec![], ..import(photos) };
    let bundle = write(&import, "r1", &dir.path().join("sums")).expect("written");
    let width = &bundle.manifest().splits[0].widths[0];
    assert!(width.adapter.is_some());
    let scale = &width.quantisers[0].scale;
    assert!(scale.iter().all(|step| step == &scale[0]), "one step for all: {scale:?}");
    let best = bundle.points().last().expect("measured");
    assert_eq!((best.point.layers, best.quality), (4, 1.0));
    let fewer = bundle.points().iter().map(|rung| rung.bytes_mean);
    assert!(fewer.clone().is_sorted(), "{:?}", fewer.collect::<Vec<_>>());
}

/// Two maps of different sizes that are both needed to the end, and three outputs of different forms.
fn forked() -> GraphProto {
    let mut graph = network();
    graph.node.truncate(7);
    graph.node.extend([
        conv("r3", "w2", "low", 2),
        node("Relu", &["low"], "low_r", vec![]),
        conv("low_r", "w3", "coarse", 1),
        conv("r3", "w3", "fine", 1),
        node("GlobalAveragePool", &["coarse"], "mean", vec![]),
    ]);
    graph.output = vec![
        value_info("fine", &[0, 4, 8, 8]),
        value_info("coarse", &[0, 4, 4, 4]),
        value_info("mean", &[0, 4, 1, 1]),
    ];
    graph
}

#[test]
fn a_network_of_several_outputs_is_a_bundle_that_answers_with_tensors() {
    let dir = TempDir::new().expect("temporary folder");
    pictures(&dir.path().join("pictures"));
    let photos = find_photos(&dir.path().join("pictures"), &[]).expect("pictures");
    let model = WholeModel::parse(&encode(forked()), &ModelOptions::default()).expect("a network");
    let engines = ImportEngines { engine: &Tract, reference: &PlainTract };
    for rotate in [Rotate::No, Rotate::Yes, Rotate::Auto] {
        let tensors = Import {
            task: Task::Tensors,
            labels: vec![],
            rotate,
            channels: vec![],
            ..import(photos.clone())
        };
        let out = dir.path().join(format!("{rotate:?}"));
        let log = &mut |_: String| {};
        let written = tensors.write(&model, &["low_r", "r3"], engines, &out, log);
        let bundle = written.expect("written");
        let manifest = bundle.manifest();
        let split = &manifest.splits[0];
        assert_eq!(split.features, [vec![4, 8, 8], vec![4, 4, 4]]);
        // 4 channels of 2 × 2 places, and 4.
        assert_eq!(split.latent, [20, 4, 4]);
        assert!(split.widths[0].adapter.is_some());
        let shapes: Vec<&[usize]> =
            manifest.decoders[0].outputs.iter().map(|output| output.shape.as_slice()).collect();
        assert_eq!(shapes, [&[4, 8, 8][..], &[4, 4, 4], &[4, 1, 1]]);
        assert_eq!(verify(&bundle, &Tract).expect("verifies").goldens, 1);
        // Held against the whole network's answers, which the whole network gives.
        assert_eq!(manifest.full.quality, 1.0);
        let best = bundle.points().iter().map(|rung| rung.quality).fold(0.0, f64::max);
        assert!(best > 0.95, "{rotate:?}: {best}");
    }
}

#[test]
fn a_map_of_logits_is_a_segmentation() {
    let dir = TempDir::new().expect("temporary folder");
    pictures(&dir.path().join("pictures"));
    let photos = find_photos(&dir.path().join("pictures"), &[]).expect("pictures");
    let mut graph = forked();
    graph.output.truncate(1);
    let model = WholeModel::parse(&encode(graph), &ModelOptions::default()).expect("a network");
    let engines = ImportEngines { engine: &Tract, reference: &PlainTract };
    let labels: Vec<String> = (0..4).map(|class| class.to_string()).collect();
    let map = Import { task: Task::Segmentation, labels, channels: vec![], ..import(photos) };
    let out = dir.path().join("map");
    let bundle = map.write(&model, &["r3"], engines, &out, &mut |_| {}).expect("written");
    assert_eq!(bundle.manifest().decoders[0].name, "segmentation");
    assert!(bundle.points().iter().all(|rung| (0.0..=1.0).contains(&rung.quality)));
    let boxes = Import { task: Task::Detection, ..map };
    let error = boxes.write(&model, &["r3"], engines, &dir.path().join("boxes"), &mut |_| {});
    let error = error.expect_err("boxes of what?").to_string();
    assert!(error.contains("boxes"), "{error}");
}
