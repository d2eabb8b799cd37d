//! The project's trained bundles.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use isthmus_models::{Bundle, Engine, Golden, Tail, TailItem, Tract, Wanted};
use isthmus_proto::{Coded, Envelope, write_packet};
use isthmus_tail_server::Registry;

use crate::device::{LONG, answer, hello, start_with};

/// Largest difference of a logit between the tail here and ONNX Runtime's, which sum in another
/// order.
const TOLERANCE: f32 = 1e-2;

#[tokio::test]
async fn goldens_are_answered_as_the_exporter_and_the_bare_tail_do() {
    let repository = repository();
    let engine: Arc<dyn Engine> = Arc::new(Tract);
    let registry = Registry::open(&repository, &engine).expect("the bundles are good");
    let directories = std::fs::read_dir(&repository).expect("models/bundles, which is in git");
    let setup = start_with(registry, |_| {}).await;
    let mut checked = 0;
    for directory in directories {
        let directory = directory.expect("an entry").path();
        if directory.join(isthmus_models::MANIFEST).is_file() {
            checked += check(&setup, &directory).await;
        }
    }
    assert!(checked > 0, "no bundle has a golden");
}

async fn check(setup: &crate::device::Setup, directory: &Path) -> usize {
    let bundle = Arc::new(Bundle::open(directory).expect("a good bundle"));
    let tail = Tail::load(Arc::clone(&bundle), &Tract).expect("a good bundle");
    let device = setup.device_for(hello(bundle.digest())).await;
    let mut checked = 0;
    for file in bundle.golden_files() {
        let golden = Golden::parse(&bundle.read(file).expect("a file"), bundle.manifest())
            .expect("a golden");
        let point = bundle.parse_point(&golden.point.to_string()).expect("a point");
        let ends = golden.layer_bytes.iter().scan(0, |end, &bytes| {
            *end += bytes as usize;
            Some(*end)
        });
        let coded = Coded { stream: golden.stream, layer_ends: ends.collect() };
        let mut frame = Vec::new();
        Envelope { frame: 1, time_left: LONG, probe: false }.write(&mut frame);
        write_packet(&mut frame, 0, &bundle.digest(), point, &coded);
        let reply = device.ask(&frame).await;
        let said = answer(&reply);

        let codec = bundle.codec(point.split, point.width, point.bits).expect("a codec");
        let mut latents = Vec::new();
        codec.dequantise(&golden.symbols, &mut latents).expect("symbols");
        let item = TailItem { split: point.split, width: point.width, latents: &latents };
        let bare = tail.run(&[item]).expect("it runs").remove(0);
        let off = difference(&bare.concat(), &golden.outputs.concat());
        assert!(off <= TOLERANCE, "{file}: differs by {off}");
        // Of classes all logits, of boxes those over the bundle's threshold.
        if said.logits.is_empty() {
            let answers = bundle.decoders().answers(bare, None).expect("an answer");
            let wanted = Wanted { logits: true, min_confidence: None };
            let bare = bundle.decoders().to_wire(answers, wanted).remove(0);
            assert_eq!(said.boxes, bare.boxes, "{file}: the server differs from the bare tail");
        } else {
            let off = difference(&said.logits, &bare.concat());
            assert!(off <= 1e-4, "{file}: the server differs from the bare tail by {off}");
        }
        checked += 1;
    }
    checked
}

/// The greatest difference of two values.
fn difference(some: &[f32], others: &[f32]) -> f32 {
    assert_eq!(some.len(), others.len());
    some.iter().zip(others).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/bundles")
}
