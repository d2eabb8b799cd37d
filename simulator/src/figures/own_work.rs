//! What the client does itself for a frame, beside the head: from a camera's frame to the network's
//! input, and from latents to the bytes that go to the link.

use std::hint::black_box;
use std::time::{Duration, Instant};

use isthmus_models::{Picture, Preprocessor};
use isthmus_proto::{Envelope, OperatingPoint, write_packet};

use super::Measurement;
use super::codec::codec_of;
use super::lab::Lab;
use crate::camera::{Camera, CameraConfig};
use crate::link::statistics::{median, quantile};

/// The camera's frames (pixels).
const SIZE: (u32, u32) = (640, 480);
/// Frames that are gone round in.
const FRAMES: usize = 16;
/// Frames that are timed, after one round that is not.
const RUNS: usize = 1000;
/// What a frame's time is made of.
const PARTS: [&str; 5] =
    ["copying", "scaling and conversion", "quantising", "entropy coding", "framing"];

pub(super) fn client_own_work_ms(lab: &Lab) -> anyhow::Result<Measurement> {
    let config = CameraConfig { width: SIZE.0, height: SIZE.1, ..CameraConfig::default() };
    let frames: Vec<Vec<u8>> =
        Camera::new(config)?.take(FRAMES).map(|frame| to_yuyv(&frame.rgb)).collect();
    let point = lab.best_point();
    let OperatingPoint { split, width, layers, .. } = point;
    let (head, codec, digest) = (lab.head()?, codec_of(lab, point)?, lab.bundle().digest());
    let preprocessor = Preprocessor::new(&lab.bundle().manifest().input);
    let (mut input, mut symbols_of_all) = (Vec::new(), 0);
    let mut times: [Vec<f64>; PARTS.len()] = Default::default();
    let mut sums = Vec::new();
    for run in 0..FRAMES + RUNS {
        // As from memory that is shared with the driver.
        let (copied, copying) = timed(|| frames[run % FRAMES].to_vec());
        let picture = Picture::yuyv(SIZE.0, SIZE.1, 2 * SIZE.0 as usize, copied)?;
        let ((), scaling) = timed(|| preprocessor.run(&picture, &mut input));
        // Not timed, but between the two halves as it is in the client, with its own use of caches.
        let latents = head.run(split, width, &input)?.latents;
        let (symbols, quantising) = timed(|| codec.quantise(&latents, layers.into()));
        let symbols = symbols?;
        let (coded, coding) = timed(|| codec.encode(&symbols));
        let coded = coded?;
        let (frame, framing) = timed(|| {
            let mut frame = Vec::with_capacity(coded.stream.len() + 64);
            let time_left = Duration::from_millis(300);
            Envelope { frame: run as u16, time_left, probe: false }.write(&mut frame);
            write_packet(&mut frame, 0, &digest, point, &coded);
            frame
        });
        black_box(frame);
        if run < FRAMES {
            continue;
        }
        symbols_of_all = symbols.len();
        let parts = [copying, scaling, quantising, coding, framing];
        parts.iter().zip(&mut times).for_each(|(part, times)| times.push(*part));
        sums.push(parts.iter().sum::<f64>());
    }
    let p99 = quantile(&sums, 0.99);
    let parts: Vec<String> = PARTS
        .iter()
        .zip(&times)
        .map(|(part, times)| format!("{part} {:.3}", median(times)))
        .collect();
    let input = &lab.bundle().manifest().input;
    let detail = format!(
        "median of {RUNS} frames of {} x {} in YUYV to {} x {} and {symbols_of_all} symbols at {}, one \
         thread, 99th percentile {p99:.3} ms; medians of the parts: {} ms",
        SIZE.0,
        SIZE.1,
        input.width,
        input.height,
        lab.bundle().describe_point(point),
        parts.join(", "),
    );
    Ok(Measurement::of(median(&sums), detail))
}

/// What `work` gives, and how long it took (milliseconds).
fn timed<T>(work: impl FnOnce() -> T) -> (T, f64) {
    let start = Instant::now();
    let done = work();
    (done, start.elapsed().as_secs_f64() * 1e3)
}

/// RGB as a camera would send it: BT.601 in limited range, the chroma of two pixels being that of
/// their mean.
fn to_yuyv(rgb: &[u8]) -> Vec<u8> {
    let (pairs, _) = rgb.as_chunks::<6>();
    let pairs = pairs.iter().flat_map(|pair| {
        let level = |at: usize| f32::from(pair[at]) / 255.0;
        let luma = |[r, g, b]: [f32; 3]| 0.299 * r + 0.587 * g + 0.114 * b;
        let (left, right) = ([level(0), level(1), level(2)], [level(3), level(4), level(5)]);
        let mean: [f32; 3] = std::array::from_fn(|at| (left[at] + right[at]) / 2.0);
        let cb = 128.0 + 224.0 * (mean[2] - luma(mean)) / 1.772;
        let cr = 128.0 + 224.0 * (mean[0] - luma(mean)) / 1.402;
        [16.0 + 219.0 * luma(left), cb, 16.0 + 219.0 * luma(right), cr].map(|it| it.round() as u8)
    });
    pairs.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_survive_the_way_to_yuyv_and_back() {
        for rgb in [[0, 0, 0], [255, 255, 255], [200, 40, 90], [10, 250, 30]] {
            let picture = Picture::yuyv(2, 1, 4, to_yuyv(&[rgb, rgb].concat())).expect("a pair");
            let back = picture.rgb();
            let furthest = rgb.iter().zip(&*back).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(furthest <= Some(2), "{rgb:?} became {back:?}");
        }
    }
}
