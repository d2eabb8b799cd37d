//! Frames as one stream of bytes with their labels, as cameras and `ffmpeg` write them.

use super::{CameraConfig, LabelledFrame};
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use std::io::{self, Write};

/// Good enough that the coding costs a network nothing that it could see.
const JPEG_QUALITY: u8 = 95;

/// How frames follow each other in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum StreamFormat {
    /// JPEGs one after the other; each has its label in a comment, `label=stop`.
    Mjpeg,
    /// YUV4MPEG2 of 8 bits, 4:4:4, full range; each frame's header has its label, `XLABEL=stop`.
    Y4m,
}

/// Writes frames of one camera.
///
/// ```
/// use isthmus_simulator::camera::{Camera, CameraConfig, Stream, StreamFormat};
///
/// let config = CameraConfig::default();
/// let mut bytes = Vec::new();
/// let mut stream = Stream::new(&mut bytes, StreamFormat::Y4m, config)?;
/// for frame in Camera::new(config)?.take(2) {
///     stream.write(&frame)?;
/// }
/// assert!(bytes.starts_with(b"YUV4MPEG2 W320 H240 "));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Stream<W> {
    out: W,
    format: StreamFormat,
}

impl<W: Write> Stream<W> {
    /// Begins a stream of the frames of a camera with this configuration.
    ///
    /// # Errors
    ///
    /// Where `out` cannot be written to.
    pub fn new(mut out: W, format: StreamFormat, config: CameraConfig) -> io::Result<Self> {
        if format == StreamFormat::Y4m {
            let CameraConfig { width, height, frames_per_second, .. } = config;
            let rate = (f64::from(frames_per_second) * 1e3).round();
            writeln!(
                out,
                "YUV4MPEG2 W{width} H{height} F{rate}:1000 Ip A1:1 C444 XCOLORRANGE=FULL"
            )?;
        }
        Ok(Stream { out, format })
    }

    /// Writes a frame through to the reader.
    ///
    /// # Errors
    ///
    /// Where `out` cannot be written to; of the kind `BrokenPipe` where nobody reads any more.
    pub fn write(&mut self, frame: &LabelledFrame) -> io::Result<()> {
        match self.format {
            StreamFormat::Mjpeg => self.out.write_all(&jpeg(frame)?)?,
            StreamFormat::Y4m => {
                writeln!(self.out, "FRAME XLABEL={}", frame.sign)?;
                self.out.write_all(&planes(&frame.rgb))?;
            }
        }
        self.out.flush()
    }
}

fn jpeg(frame: &LabelledFrame) -> io::Result<Vec<u8>> {
    let mut picture = Vec::new();
    JpegEncoder::new_with_quality(&mut picture, JPEG_QUALITY)
        .encode(&frame.rgb, frame.width, frame.height, ExtendedColorType::Rgb8)
        .map_err(io::Error::other)?;
    let label = format!("label={}", frame.sign);
    // A comment right behind the start of the picture (ITU-T T.81, B.2.4.5); no label is long.
    let [high, low] = (label.len() as u16 + 2).to_be_bytes();
    let comment = [&[0xff, 0xfe, high, low], label.as_bytes()].concat();
    picture.splice(2..2, comment);
    Ok(picture)
}

/// Luma and both chroma planes by BT.601 in full range, in 16.16 fixed point.
fn planes(rgb: &[u8]) -> Vec<u8> {
    let places = rgb.len() / 3;
    let mut planes = vec![0; 3 * places];
    for (at, pixel) in rgb.chunks_exact(3).enumerate() {
        let [red, green, blue] = [pixel[0], pixel[1], pixel[2]].map(i32::from);
        let byte = |value: i32| ((value + 32_768) >> 16).clamp(0, 255) as u8;
        let middle = 128 << 16;
        planes[at] = byte(19_595 * red + 38_470 * green + 7_471 * blue);
        planes[places + at] = byte(middle - 11_059 * red - 21_709 * green + 32_768 * blue);
        planes[2 * places + at] = byte(middle + 32_768 * red - 27_439 * green - 5_329 * blue);
    }
    planes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::camera::{Camera, Sign};
    use isthmus_head_client::source;

    /// Streams `count` frames to the client's own reader, which is to see them with a difference
    /// of `mean` at most.
    fn read_back(format: StreamFormat, count: usize, mean: f64) {
        let config = CameraConfig { width: 97, height: 64, ..CameraConfig::default() };
        let frames: Vec<_> = Camera::new(config).expect("valid").step_by(9).take(count).collect();
        let mut bytes = Vec::new();
        let mut stream = Stream::new(&mut bytes, format, config).expect("memory");
        frames.iter().for_each(|frame| stream.write(frame).expect("memory"));

        let labels: Vec<_> = Sign::ALL.iter().map(|sign| sign.label().to_owned()).collect();
        let read: Vec<_> = source::open_stream(io::Cursor::new(bytes), &labels)
            .unwrap_or_else(|error| panic!("{error}"))
            .collect();
        assert_eq!(read.len(), count);
        for (frame, read) in frames.iter().zip(read) {
            assert_eq!(read.truth.as_deref(), Some(frame.sign.label()));
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
}
