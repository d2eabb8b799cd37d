//! An outside detector on street photos, where they are at hand: its boxes reach the precision that
//! other programs reach with it. Photos and weights are not part of this repository: put them in
//! `../shared/data` beside it, or name the folder above `data` in `ISTHMUS_SHARED`.

#![cfg(feature = "shell")]

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use isthmus_models::{
    AveragePrecision, BoxesDecoder, BoxesSpec, Detection, Engine, Graph, MeanAveragePrecision,
    Photo, Picture, TensorView, Tract, Truth, on_all_cores,
};

const SIDE: u32 = 416;

/// Classes of COCO that the photos' boxes have, by their place among COCO's eighty.
const LABELS: [(usize, &str); 5] =
    [(0, "person"), (2, "car"), (3, "motorcycle"), (5, "bus"), (7, "truck")];

fn shared() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let shared = env::var_os("ISTHMUS_SHARED").map_or_else(beside, PathBuf::from);
    Some(shared.join("data")).filter(|data| data.join("highway/val.json").is_file())
}

#[test]
fn a_detector_reaches_its_precision_on_street_photos() {
    let Some(data) = shared() else {
        // Past the test's capture, so that it is seen.
        let _ = writeln!(
            io::stderr(),
            "SKIPPED a_detector_reaches_its_precision_on_street_photos: no shared photos; set \
             ISTHMUS_SHARED to the folder that holds data/highway"
        );
        return;
    };
    let mut labels: Vec<String> = (0..80).map(|class| format!("other {class}")).collect();
    LABELS.iter().for_each(|(class, name)| labels[*class] = (*name).to_owned());
    let renamed = BTreeMap::from([("motorbike".to_owned(), "motorcycle".to_owned())]);
    let truth = Truth::coco(&data.join("highway/val.json"), &data.join("highway/val"));
    let truth = truth.and_then(|truth| truth.with_labels(&labels, &renamed)).expect("boxes");
    assert!(LABELS.iter().all(|(class, _)| truth.covers(*class as u16)) && !truth.covers(1));

    let onnx = fs::read(data.join("weights/picodet_xs/picodet_xs_416.onnx")).expect("weights");
    let graph = Tract.load(&onnx, "picodet_xs_416.onnx").expect("a graph");
    let pictures: Vec<&Path> = truth.pictures().collect();
    let found = on_all_cores(pictures.iter(), |path| {
        let picture = Photo::new(path.to_path_buf(), &[]).read()?;
        Ok::<_, String>((detect(graph.as_ref(), &picture), picture))
    });
    let mut precision = MeanAveragePrecision::default();
    for (path, (found, picture)) in pictures.iter().zip(found.expect("photos")) {
        let boxes = truth.boxes(path, picture.width(), picture.height()).expect("of this size");
        precision.add(&found, &boxes);
    }
    let AveragePrecision { mean, at_50, .. } = precision.summary().expect("objects");
    println!("mAP {mean:.4}, AP50 {at_50:.4} on {} photos", pictures.len());
    // What ONNX Runtime, the kit's reference decoder and pycocotools say of the same photos; the
    // decoders of JPEG differ in single levels.
    assert!((mean - 0.422).abs() < 0.005, "mAP {mean}");
    assert!((at_50 - 0.571).abs() < 0.005, "AP50 {at_50}");
}

/// The boxes in a picture of at most [`SIDE`] pixels a side, in its pixels.
fn detect(graph: &dyn Graph, picture: &Picture) -> Vec<Detection> {
    let (width, height) = (picture.width(), picture.height());
    assert!(width <= SIDE && height <= SIDE, "the photos need not be made smaller");
    let (left, top) = ((SIDE - width) / 2, (SIDE - height) / 2);
    let (mean, std) = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]);
    let rgb = picture.rgb();
    let mut data = Vec::with_capacity(3 * (SIDE * SIDE) as usize);
    for channel in 0..3 {
        for (y, x) in (0..SIDE).flat_map(|y| (0..SIDE).map(move |x| (y, x))) {
            let (row, column) = (y.wrapping_sub(top), x.wrapping_sub(left));
            let level = match row < height && column < width {
                true => rgb[3 * (row * width + column) as usize + channel],
                false => 114,
            };
            data.push((f32::from(level) / 255.0 - mean[channel]) / std[channel]);
        }
    }
    let shape = [1, 3, SIDE as usize, SIDE as usize];
    let outputs = graph.run(&[TensorView { shape: &shape, data: &data }]).expect("runs");
    let spec = "layout = 'distribution'\nstrides = [8, 16, 32, 64]\nbins = 8\nconfidence = 0.01\n\
                iou = 0.6";
    let spec: BoxesSpec = toml::from_str(spec).expect("a specification");
    let shapes: Vec<(&str, &[usize])> =
        outputs.iter().map(|output| ("output", &output.shape[1..])).collect();
    let decoder = BoxesDecoder::new(&spec, &shapes, (SIDE, SIDE), 80).expect("shapes");
    let values: Vec<&[f32]> = outputs.iter().map(|output| output.data.as_slice()).collect();
    let found = decoder.decode(&values, None).expect("boxes");
    let back = |found: &Detection| Detection {
        x0: (found.x0 - left as f32).clamp(0.0, width as f32),
        y0: (found.y0 - top as f32).clamp(0.0, height as f32),
        x1: (found.x1 - left as f32).clamp(0.0, width as f32),
        y1: (found.y1 - top as f32).clamp(0.0, height as f32),
        ..*found
    };
    let inside = |found: &Detection| found.x0 < found.x1 && found.y0 < found.y1;
    found.iter().map(back).filter(inside).collect()
}
