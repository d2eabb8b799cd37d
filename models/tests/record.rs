//! What one machine recorded, replayed on it and on one that computes otherwise.

#![cfg(feature = "shell")]

use std::io::Cursor;
use std::path::Path;
use std::sync::Arc;

use image::{ImageFormat, RgbImage};
use isthmus_models::{
    Bundle, Engine, EngineError, Golden, Graph, Recorder, ReplayError, Tensor, TensorView, Tract,
    replay,
};

const FRAMES: usize = 5;

fn bundle(name: &str) -> Arc<Bundle> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("bundles").join(name);
    Arc::new(Bundle::open(&dir).unwrap_or_else(|error| panic!("{error}")))
}

/// A picture of the bundle's as a PNG file.
fn picture(bundle: &Bundle) -> Vec<u8> {
    let golden = bundle.golden_files().next().expect("a golden");
    let golden =
        Golden::parse(&bundle.read(golden).expect("read"), bundle.manifest()).expect("a golden");
    let picture = golden.picture;
    let image = RgbImage::from_raw(picture.width(), picture.height(), picture.rgb().to_vec());
    let mut png = Cursor::new(Vec::new());
    image.expect("filled").write_to(&mut png, ImageFormat::Png).expect("encoded");
    png.into_inner()
}

/// Adds a little to what every head gives.
struct Drifting(f32);

struct Drifted(Arc<dyn Graph>, f32);

impl Engine for Drifting {
    fn name(&self) -> &'static str {
        "drifting"
    }

    fn load(&self, onnx: &[u8], name: &str) -> Result<Arc<dyn Graph>, EngineError> {
        let drift = if name.contains("head") { self.0 } else { 0.0 };
        Ok(Arc::new(Drifted(Tract.load(onnx, name)?, drift)))
    }
}

impl Graph for Drifted {
    fn run(&self, inputs: &[TensorView<'_>]) -> Result<Vec<Tensor>, EngineError> {
        let mut outputs = self.0.run(inputs)?;
        outputs.iter_mut().flat_map(|output| &mut output.data).for_each(|value| *value += self.1);
        Ok(outputs)
    }
}

#[test]
fn a_record_tells_machines_apart() {
    let street = bundle("street");
    let picture = picture(&street);
    let mut record = Vec::new();
    let mut recorder = Recorder::start(Arc::clone(&street), &Tract, &mut record).expect("started");
    assert!(recorder.add(b"no picture".to_vec()).is_err());
    for _ in 0..FRAMES {
        recorder.add(picture.clone()).expect("recorded");
    }
    assert_eq!(recorder.finish().expect("finished"), FRAMES);

    let same = replay(Arc::clone(&street), &Tract, &*record).expect("replayed");
    assert!(same.holds(), "{same:?}");
    assert_eq!((same.frames, same.points.len(), same.decoded_alike), (FRAMES, FRAMES, FRAMES));
    assert_eq!((same.full_frames, same.same_full_answers), (1, 1));
    assert_eq!((same.coded_alike, same.differing, same.logit_difference), (FRAMES, 0, 0.0));
    assert!(same.machine.ends_with(", tract"), "{}", same.machine);

    // Another head is known by its symbols; the codec, which sees the recorded features, is alike.
    let other = replay(Arc::clone(&street), &Drifting(0.5), &*record).expect("replayed");
    assert!(!other.holds(), "{other:?}");
    assert_eq!((other.coded_alike, other.decoded_alike), (FRAMES, FRAMES));
    assert!(other.differing * 1000 > other.symbols, "{other:?}");

    let photos = replay(bundle("photos"), &Tract, &*record).expect_err("another bundle");
    let error = photos.to_string();
    assert!(error.contains("recorded of street") && error.contains("photos"), "{error}");
    let cut = replay(Arc::clone(&street), &Tract, &record[..record.len() - 9]);
    assert!(matches!(cut, Err(ReplayError::Read(_))), "{cut:?}");
}

#[test]
fn what_is_no_record_is_refused() {
    let street = bundle("street");
    let replay = |bytes: &[u8]| replay(Arc::clone(&street), &Tract, bytes);
    assert!(matches!(replay(b"no record"), Err(ReplayError::Read(_))));
    let packed = |bytes: &[u8]| zstd::encode_all(bytes, 3).expect("memory takes everything");
    assert!(matches!(replay(&packed(b"")), Err(ReplayError::Empty)));
    assert!(matches!(replay(&packed(&[0xff; 64])), Err(ReplayError::Format(_))));
    let mut empty = Vec::new();
    let recorder = Recorder::start(Arc::clone(&street), &Tract, &mut empty).expect("started");
    assert_eq!(recorder.finish().expect("finished"), 0);
    assert!(matches!(replay(&empty), Err(ReplayError::Empty)));
}
