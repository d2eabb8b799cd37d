//! Every bundle of the project against the values that its exporter computed with ONNX Runtime
//! and a codec of its own.

#![cfg(feature = "tract")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use isthmus_models::{Bundle, Engine, EngineKind, OrtProvider, Tail, TailItem, Verified, verify};

/// Two engines add up in different orders.
const TOLERANCE: f32 = 1e-3;

#[test]
fn rust_and_the_exporter_agree_on_every_golden() {
    let bundles = bundles();
    assert!(bundles.len() >= 2, "models/bundles holds {bundles:?}, not photos and street");
    for dir in bundles {
        let bundle = Arc::new(Bundle::open(&dir).unwrap_or_else(|error| panic!("{error}")));
        for engine in engines() {
            let checked = check_bundle(&bundle, &*engine);
            assert!(checked > 0, "{}: no golden", dir.display());
        }
    }
}

/// Every engine that is here.
fn engines() -> Vec<Box<dyn Engine>> {
    let mut engines = vec![EngineKind::Tract.open(&[]).expect("embedded")];
    for providers in [&[][..], &[OrtProvider::Cpu]] {
        match EngineKind::Ort.open(providers) {
            Ok(installed) => engines.push(installed),
            Err(missing) => skip(&missing),
        }
    }
    engines
}

/// ONNX Runtime may be missing, but not where the environment says which library to take.
fn skip(missing: &dyn std::fmt::Display) {
    let named = cfg!(feature = "ort") && std::env::var_os("ORT_DYLIB_PATH").is_some();
    assert!(!named, "ORT_DYLIB_PATH names no usable ONNX Runtime: {missing}");
    eprintln!("SKIPPED: ONNX Runtime: {missing}");
}

#[cfg(feature = "ort")]
#[test]
fn a_provider_that_the_library_lacks_is_named_beside_those_it_has() {
    use isthmus_models::{EngineKindError, OnnxRuntimeError};
    for provider in OrtProvider::ALL {
        for kind in [EngineKind::Ort, EngineKind::Auto] {
            match kind.open(&[OrtProvider::Cpu, provider]) {
                Ok(_) => eprintln!("this ONNX Runtime has {provider}"),
                Err(EngineKindError::OnnxRuntime(OnnxRuntimeError::Library(missing))) => {
                    return skip(&missing);
                }
                Err(error) => {
                    let error = error.to_string();
                    let lacks = format!("has no provider {provider}, only cpu");
                    assert!(error.contains(&lacks), "{error}");
                }
            }
        }
    }
}

fn bundles() -> Vec<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("bundles");
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
fn check_bundle(bundle: &Arc<Bundle>, engine: &dyn Engine) -> usize {
    let verified = verify(bundle, engine).unwrap_or_else(|error| panic!("{error}"));
    let Verified { goldens, symbols, differing, .. } = verified;
    assert!(
        differing * 1000 <= symbols,
        "{}: {differing} of {symbols} symbols differ, more than 0.1%",
        bundle.name()
    );
    let tail = Tail::load(Arc::clone(bundle), engine).expect("tail");
    check_batches(bundle, &tail);
    goldens
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
        assert_close(&together.concat(), &alone.concat(), &format!("{}: batch", bundle.name()));
    }
}

fn assert_close(ours: &[f32], theirs: &[f32], what: &str) {
    assert_eq!(ours.len(), theirs.len(), "{what}");
    for (at, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        assert!((ours - theirs).abs() <= TOLERANCE, "{what}: value {at} is {ours}, not {theirs}");
    }
}
