//! Every bundle of the project against the values that its exporter computed with ONNX Runtime
//! and a codec of its own.

#![cfg(feature = "tract")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use isthmus_models::{Bundle, Full, Golden, Head, Preprocessor, Tail, TailItem, Tract, top_k};

/// Two engines add up in different orders.
const TOLERANCE: f32 = 1e-3;

#[test]
fn rust_and_the_exporter_agree_on_every_golden() {
    let bundles = bundles();
    if bundles.is_empty() {
        eprintln!("SKIPPED: models/bundles holds no bundle, so no golden was checked");
        return;
    }
    for dir in bundles {
        let bundle = Bundle::open(&dir).unwrap_or_else(|error| panic!("{error}"));
        let checked = check_bundle(Arc::new(bundle));
        assert!(checked > 0, "{}: no golden", dir.display());
    }
}

fn bundles() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("bundles");
    if !dir.exists() {
        return Vec::new();
    }
    let entries =
        std::fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut bundles: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a folder's entry").path())
        .filter(|path| path.join(isthmus_models::MANIFEST).is_file())
        .collect();
    bundles.sort();
    bundles
}

/// Gives the number of goldens.
fn check_bundle(bundle: Arc<Bundle>) -> usize {
    let head = Head::load(Arc::clone(&bundle), &Tract).expect("heads");
    let tail = Tail::load(Arc::clone(&bundle), &Tract).expect("tail");
    let full = Full::load(Arc::clone(&bundle), &Tract).expect("full");
    let (mut symbols, mut differing, mut goldens) = (0, 0, 0);
    for file in bundle.golden_files() {
        let name = format!("{}: {file}", bundle.name());
        let golden = Golden::parse(&bundle.read(file).expect("golden")).expect(&name);
        let point = bundle.parse_point(&golden.point.to_string()).expect(&name);
        assert!(bundle.has_point(&point), "{name}");
        let codec = bundle.codec(point.split, point.width, point.bits).expect(&name);
        let layers = usize::from(point.layers);

        check_preprocessing(&bundle, &golden, &name);

        let output = head.run(point.split, point.width, &golden.input).expect(&name);
        assert_close(&output.latents, &golden.latents, &format!("{name}: latents"));
        assert_close(&output.exit, &golden.exit, &format!("{name}: exit"));

        // The quantiser alone is exact; behind another engine's head it may round otherwise.
        assert_eq!(codec.quantise(&golden.latents, layers).expect(&name), golden.symbols, "{name}");
        let ours = codec.quantise(&output.latents, layers).expect(&name);
        assert_eq!(ours.len(), golden.symbols.len(), "{name}");
        for (ours, theirs) in ours.iter().zip(&golden.symbols) {
            assert!(ours.abs_diff(*theirs) <= 1, "{name}: symbol {ours} for {theirs}");
            differing += usize::from(ours != theirs);
        }
        symbols += ours.len();

        let coded = codec.encode(&golden.symbols).expect(&name);
        assert_eq!(coded.stream, golden.stream, "{name}: stream");
        let mut end = 0;
        for (layer, &bytes) in golden.layer_bytes.iter().enumerate() {
            end += bytes as usize;
            assert_eq!(coded.layer_ends[layer], end, "{name}: end of layer {layer}");
            let decoded = codec.decode(&golden.stream[..end], layer + 1).expect(&name);
            assert!(golden.symbols.starts_with(&decoded), "{name}: layers to {layer}");
        }
        assert_eq!(codec.decode(&golden.stream, layers).expect(&name), golden.symbols, "{name}");

        let mut latents = Vec::new();
        codec.dequantise(&golden.symbols, &mut latents).expect(&name);
        let item = TailItem { split: point.split, width: point.width, latents: &latents };
        let logits = tail.run(&[item]).expect(&name).remove(0);
        assert_close(&logits, &golden.logits, &format!("{name}: logits"));
        assert_same_answer(&logits, &golden.logits, &name);

        let logits = full.run(&[&golden.input]).expect(&name).remove(0);
        assert_close(&logits, &golden.full_logits, &format!("{name}: full"));
        assert_same_answer(&logits, &golden.full_logits, &name);
        goldens += 1;
    }
    assert!(goldens > 0, "{}: the bundle has no goldens", bundle.name());
    assert!(
        differing * 1000 <= symbols,
        "{}: {differing} of {symbols} symbols differ, more than 0.1%",
        bundle.name()
    );
    check_batches(&bundle, &tail);
    goldens
}

fn check_preprocessing(bundle: &Bundle, golden: &Golden, name: &str) {
    let input = &bundle.manifest().input;
    let mut ours = Vec::new();
    Preprocessor::new(input).run(&golden.picture, &mut ours);
    assert_eq!(ours.len(), golden.input.len(), "{name}: input");
    // The same levels: what is left is the rounding of the normalisation in f32.
    for (at, (ours, theirs)) in ours.iter().zip(&golden.input).enumerate() {
        assert!((ours - theirs).abs() <= 1e-6, "{name}: input {at}: {ours} for {theirs}");
    }
}

/// A frame's answer does not depend on the frames that share its batch.
fn check_batches(bundle: &Bundle, tail: &Tail) {
    let mut frames = Vec::new();
    for (s, split) in bundle.manifest().splits.iter().enumerate() {
        for w in 0..split.widths.len() {
            let values = 0..split.latent_shape().iter().product();
            let latents =
                |step: f32| values.clone().map(|at: usize| (at as f32 * step).sin()).collect();
            frames.push((s as u8, w as u8, latents(0.7)));
            frames.push((s as u8, w as u8, latents(1.3)));
        }
    }
    let items = frames.iter().map(|(split, width, latents): &(u8, u8, Vec<f32>)| TailItem {
        split: *split,
        width: *width,
        latents,
    });
    // Neighbours of one split and width do not stand together.
    let items: Vec<TailItem<'_>> =
        items.clone().step_by(2).chain(items.skip(1).step_by(2)).collect();
    let together = tail.run(&items).expect("batch");
    for (item, together) in items.iter().zip(&together) {
        let alone = tail.run(&[*item]).expect("alone").remove(0);
        assert_close(together, &alone, &format!("{}: batch", bundle.name()));
    }
}

fn assert_close(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (at, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        assert!((ours - theirs).abs() <= TOLERANCE, "{what}: value {at} is {ours}, not {theirs}");
    }
}

fn assert_same_answer(ours: &[f32], theirs: &[f32], name: &str) {
    assert_eq!(top_k(ours, 1)[0].0, top_k(theirs, 1)[0].0, "{name}: answer");
}
