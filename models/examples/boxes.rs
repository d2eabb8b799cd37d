//! Runs a detector on pictures and prints its boxes, one line of JSON a picture.
//!
//! `cargo run --release -p isthmus-models --example boxes -- NETWORK.onnx DETECTOR.toml PICTURE…`
//!
//! Pictures must be of the network's size already: nothing is cropped or resized here. The second
//! file says what goes in and how boxes come out:
//!
//! ```toml
//! mean = [0.485, 0.456, 0.406] # of 0..=1
//! std = [0.229, 0.224, 0.225]
//! channels = "rgb"             # or "bgr", in which mean and std are then
//! classes = 80
//! [boxes]                      # as `[decoders.boxes]` of a bundle's manifest
//! layout = "yolov8"
//! confidence = 0.3
//! iou = 0.6
//! ```

use std::fs;
use std::io::Write;

use isthmus_models::{
    BoxesDecoder, BoxesSpec, Detection, Engine, Photo, Picture, Tensor, TensorView, Tract,
};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Detector {
    mean: [f32; 3],
    std: [f32; 3],
    channels: Channels,
    classes: u16,
    boxes: BoxesSpec,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Channels {
    Rgb,
    Bgr,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let network = arguments.next().ok_or("which network?")?;
    let detector = arguments.next().ok_or("which file says what its tensors are?")?;
    let detector: Detector = toml::from_str(&fs::read_to_string(detector)?)?;
    let graph = Tract.load(&fs::read(&network)?, &network)?;
    let mut stdout = std::io::stdout().lock();
    for path in arguments {
        let picture = Photo::new(path.clone().into(), &[]).read()?;
        let (width, height) = (picture.width(), picture.height());
        let data = prepared(&picture, &detector);
        let shape = [1, 3, height as usize, width as usize];
        let outputs = graph.run(&[TensorView { shape: &shape, data: &data }])?;
        let boxes = decode(&outputs, &detector, (width, height))?;
        let rows: Vec<_> = boxes
            .iter()
            .map(|found| {
                let Detection { class, confidence, x0, y0, x1, y1 } = found;
                json!([class, confidence, x0, y0, x1, y1])
            })
            .collect();
        writeln!(stdout, "{}", json!({ "picture": path, "boxes": rows }))?;
    }
    Ok(())
}

/// The network's input: f32 `[3, height, width]`.
fn prepared(picture: &Picture, detector: &Detector) -> Vec<f32> {
    let rgb = picture.rgb();
    let plane = |channel: usize| {
        let at = match detector.channels {
            Channels::Rgb => channel,
            Channels::Bgr => 2 - channel,
        };
        let (mean, std) = (detector.mean[channel], detector.std[channel]);
        rgb.chunks_exact(3).map(move |pixel| (f32::from(pixel[at]) / 255.0 - mean) / std)
    };
    (0..3).flat_map(plane).collect()
}

/// The boxes of one picture, whose outputs are named by their place.
fn decode(
    outputs: &[Tensor],
    detector: &Detector,
    input: (u32, u32),
) -> Result<Vec<Detection>, Box<dyn std::error::Error>> {
    let names: Vec<String> = (0..outputs.len()).map(|at| at.to_string()).collect();
    let shape = |output: &Tensor| output.shape.get(1..).unwrap_or_default().to_vec();
    let shapes: Vec<Vec<usize>> = outputs.iter().map(shape).collect();
    let named: Vec<(&str, &[usize])> =
        names.iter().map(String::as_str).zip(shapes.iter().map(Vec::as_slice)).collect();
    let decoder = BoxesDecoder::new(&detector.boxes, &named, input, detector.classes)?;
    let data: Vec<&[f32]> = outputs.iter().map(|output| output.data.as_slice()).collect();
    Ok(decoder.decode(&data, None)?)
}
