//! The client reads the camera's streams.

use std::io::Cursor;

use isthmus_camera::{Camera, CameraConfig, Sign, Stream, StreamFormat};
use isthmus_head_client::source::{self, FrameTruth};

/// Streams `count` frames to the client's own reader, which is to see them with a difference
/// of `mean` at most.
fn read_back(format: StreamFormat, count: usize, mean: f64) {
    let config = CameraConfig { width: 97, height: 64, ..CameraConfig::default() };
    let frames: Vec<_> = Camera::new(config).expect("valid").step_by(9).take(count).collect();
    let mut bytes = Vec::new();
    let mut stream = Stream::new(&mut bytes, format, config).expect("memory");
    frames.iter().for_each(|frame| stream.write(frame).expect("memory"));

    let labels: Vec<_> = Sign::ALL.iter().map(|sign| sign.label().to_owned()).collect();
    let read: Vec<_> = source::open_stream(Cursor::new(bytes), &labels)
        .unwrap_or_else(|error| panic!("{error}"))
        .collect();
    assert_eq!(read.len(), count);
    for (frame, read) in frames.iter().zip(read) {
        let class = read.truth.and_then(FrameTruth::into_class);
        assert_eq!(class.as_deref(), Some(frame.sign.label()));
        let picture = read.picture.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((picture.width(), picture.height()), (97, 64));
        let rgb = picture.rgb();
        let pairs = rgb.iter().zip(&frame.rgb);
        let sum: u64 = pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        let off = sum as f64 / frame.rgb.len() as f64;
        assert!(off <= mean, "{format:?} is off by {off}");
    }
}

#[test]
fn the_client_reads_what_the_camera_streams_with_its_labels() {
    read_back(StreamFormat::Y4m, 4, 1.0);
    read_back(StreamFormat::Mjpeg, 4, 6.0);
}
