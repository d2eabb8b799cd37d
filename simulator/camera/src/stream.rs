//! Frames as one stream of bytes with their labels, as cameras and `ffmpeg` write them.

use super::{CameraConfig, LabelledFrame};
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use std::io::{self, Write};

/// Good enough that the coding costs a network nothing that it could see.
const JPEG_QUALITY: u8 = 95;

/// How frames follow each other in a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "clap", derive(clap::ValueEnum))]
pub enum StreamFormat {
    /// JPEGs one after the other; each has its label in a comment, `label=stop`.
    Mjpeg,
    /// YUV4MPEG2 of 8 bits, 4:4:4, full range; each frame's header has its label, `XLABEL=stop`.
    Y4m,
}

/// Writes frames of one camera.
///
/// ```
/// use isthmus_camera::{Camera, CameraConfig, Stream, StreamFormat};
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
