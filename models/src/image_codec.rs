//! Pictures compressed by image codecs: the arm of a device that sends pictures, and the baseline of
//! the split network.

use std::fmt;
use std::io::Cursor;
use std::str::FromStr;

use image::ImageReader;
use isthmus_proto::ImageFormat;

use crate::manifest::InputSpec;
use crate::picture::{MAX_PIXELS, Picture, PictureError};
use crate::placement::Placement;
#[cfg(feature = "image-encoders")]
use crate::{manifest::Fit, preprocess::Preprocessor};

/// A compressed picture may have up to so many times the sides of the network's input.
pub const MAX_IMAGE_SCALE: u32 = 4;

/// How a picture is compressed; shown as `webp/160/q35`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageSpec {
    /// Codec.
    pub format: ImageFormat,
    /// Longer side of the compressed picture (pixels), from 1 to [`MAX_IMAGE_SCALE`] times the longer
    /// side of the network's input, whose aspect ratio it has. Where pictures are letterboxed it is
    /// the longer side of the box that the picture fits into: bars are not sent.
    pub side: u32,
    /// The codec's own quality, 1 to 100.
    pub quality: u8,
}

impl ImageSpec {
    /// Width and height (pixels) of the compressed picture, or of the box that it fits into, for a network
    /// with `input`.
    pub fn size(&self, input: &InputSpec) -> (u32, u32) {
        let longer = input.width.max(input.height).max(1);
        let scaled = |side: u32| {
            let (side, scale) = (u64::from(side), u64::from(self.side));
            // Rounded.
            let scaled = (2 * side * scale + u64::from(longer)) / (2 * u64::from(longer));
            u32::try_from(scaled).unwrap_or(u32::MAX).max(1)
        };
        (scaled(input.width), scaled(input.height))
    }

    /// Where a picture of `width × height` pixels lies in the compressed one.
    fn place(&self, input: &InputSpec, (width, height): (u32, u32)) -> Placement {
        let (box_width, box_height) = self.size(input);
        let boxed = InputSpec { width: box_width, height: box_height, ..input.clone() };
        let mut placed = Placement::new(&boxed, width, height);
        (placed.to.left, placed.to.top) = (0, 0);
        placed
    }
}

/// The way of a picture into the network's input, to find boxes of the input in the picture again.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// Of what reached the network.
    last: Placement,
    /// Of the picture in what was sent, where that was another one.
    sent: Option<Placement>,
    /// Width and height of the picture (pixels).
    size: (u32, u32),
    input: (u32, u32),
}

impl View {
    /// Of a picture of `size`, width and height (pixels), that a network with `input` saw as it is, or
    /// compressed as `image` says.
    ///
    /// ```
    /// use isthmus_models::{Fit, InputSpec, View};
    /// let input = InputSpec { fit: Fit::Letterbox, ..InputSpec::new(416, 416) };
    /// let half: isthmus_models::ImageSpec = "webp/208/q50".parse()?;
    /// let [seen, sent] = [None, Some(half)].map(|image| View::new(&input, image, (832, 416)));
    /// let edges = [0.0, 104.0, 208.0, 312.0];
    /// assert_eq!(seen.to_picture(edges), [0.0, 0.0, 416.0, 416.0]);
    /// assert_eq!(sent.to_picture(edges), seen.to_picture(edges));
    /// # Ok::<(), isthmus_models::ImageSpecError>(())
    /// ```
    pub fn new(input: &InputSpec, image: Option<ImageSpec>, size: (u32, u32)) -> View {
        let sent = image.map(|image| image.place(input, size));
        let (width, height) = sent.map_or(size, |sent| (sent.to.width, sent.to.height));
        let last = Placement::new(input, width, height);
        View { last, sent, size, input: (input.width, input.height) }
    }

    /// Left, top, right and bottom edge (pixels) in the picture of what has these in the input.
    pub fn to_picture(&self, edges: [f32; 4]) -> [f32; 4] {
        let edges = self.last.to_picture(edges);
        self.sent.map_or(edges, |sent| sent.to_picture(edges))
    }

    /// Width and height of the picture (pixels).
    pub fn picture(&self) -> (u32, u32) {
        self.size
    }

    /// Width and height of the network's input (pixels).
    pub fn input(&self) -> (u32, u32) {
        self.input
    }

    /// Where in the input a place of the picture (pixels from its left and top) is seen; `None` if it is
    /// cropped away.
    pub fn to_input(&self, [x, y]: [f32; 2]) -> Option<[f32; 2]> {
        let within = |placed: &Placement, [x, y]: [f32; 2]| {
            let [left, top, width, height] = placed.kept().map(|side| side as f32);
            let inside = (left..=left + width).contains(&x) && (top..=top + height).contains(&y);
            let [x, y, ..] = placed.to_input([x, y, x, y]);
            inside.then_some([x, y])
        };
        let seen = match &self.sent {
            Some(sent) => within(sent, [x, y])?,
            None => [x, y],
        };
        within(&self.last, seen)
    }
}

impl fmt::Display for ImageSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ImageSpec { format, side, quality } = self;
        write!(f, "{}/{side}/q{quality}", format.name())
    }
}

/// A text that does not name a compressed picture.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a compressed picture is named by format, longer side and quality (1 to 100), as \
     webp/160/q35, not {0:?}"
)]
pub struct ImageSpecError(String);

impl FromStr for ImageSpec {
    type Err = ImageSpecError;

    fn from_str(text: &str) -> Result<Self, ImageSpecError> {
        let parse = || {
            let mut parts = text.split('/');
            let format = parts.next()?.parse().ok()?;
            let side = parts.next()?.parse().ok().filter(|&side| side > 0)?;
            let quality = parts.next()?.strip_prefix('q')?.parse().ok();
            let quality = quality.filter(|quality| (1..=100).contains(quality))?;
            parts.next().is_none().then_some(ImageSpec { format, side, quality })
        };
        parse().ok_or_else(|| ImageSpecError(text.to_owned()))
    }
}

/// Whether this program was built with a format: AVIF needs the cargo feature `avif`.
pub fn has_image_format(format: ImageFormat) -> bool {
    cfg!(feature = "avif") || format != ImageFormat::Avif
}

/// The formats that this program was built with.
pub fn image_formats() -> impl Iterator<Item = ImageFormat> {
    ImageFormat::ALL.into_iter().filter(|&format| has_image_format(format))
}

/// Most pixels of a compressed picture for a network with `input`.
pub fn max_image_pixels(input: &InputSpec) -> u64 {
    let scale = u64::from(MAX_IMAGE_SCALE);
    (scale * u64::from(input.width) * scale * u64::from(input.height)).min(MAX_PIXELS)
}

/// Decompresses a picture that a stranger may have sent: it has to be of `format`, and to have at
/// most `max_pixels` by its header, which is looked at before memory is taken for any pixel.
///
/// Of WebP only the simple, lossy form is taken: in the extended one a canvas announces a size, and
/// the frames on it may be larger.
pub fn decode_image(
    format: ImageFormat,
    file: &[u8],
    max_pixels: u64,
) -> Result<Picture, PictureError> {
    let format = match format {
        ImageFormat::Jpeg => image::ImageFormat::Jpeg,
        ImageFormat::Webp if file.get(12..16) == Some(b"VP8 ") => image::ImageFormat::WebP,
        ImageFormat::Webp => return Err(PictureError::NotSimpleWebp),
        #[cfg(feature = "avif")]
        ImageFormat::Avif => return crate::avif::decode(file, max_pixels.min(MAX_PIXELS)),
        #[cfg(not(feature = "avif"))]
        ImageFormat::Avif => return Err(PictureError::Unsupported(format)),
    };
    Picture::read(ImageReader::with_format(Cursor::new(file), format), max_pixels.min(MAX_PIXELS))
}

/// Why a picture could not be compressed.
#[cfg(feature = "image-encoders")]
#[derive(Debug, thiserror::Error)]
pub enum ImageEncodeError {
    /// The JPEG encoder failed.
    #[error("JPEG: {0}")]
    Jpeg(#[from] jpeg_encoder::EncodingError),
    /// The WebP encoder failed, in its own words.
    #[error("WebP: {0}")]
    Webp(String),
    /// The AVIF encoder failed, in its own words.
    #[error("AVIF: {0}")]
    Avif(String),
    /// A format that this program was built without.
    #[error("this program was built without {}", .0.name())]
    Unsupported(ImageFormat),
    /// A side that the format cannot have.
    #[error("{width} × {height} pixels are too many for {}", format.name())]
    Size {
        /// Width (pixels).
        width: u32,
        /// Height (pixels).
        height: u32,
        /// Codec.
        format: ImageFormat,
    },
}

/// Compresses pictures to one format, size and quality.
///
/// They are cropped or stretched as the network's input is, and resized to the compressed picture's
/// size; of one that is letterboxed, only the picture is compressed.
#[cfg(feature = "image-encoders")]
#[derive(Clone, Debug)]
pub struct ImageEncoder {
    spec: ImageSpec,
    input: InputSpec,
}

#[cfg(feature = "image-encoders")]
impl ImageEncoder {
    /// An encoder for pictures that a network with `input` shall see.
    pub fn new(spec: ImageSpec, input: &InputSpec) -> ImageEncoder {
        ImageEncoder { spec, input: input.clone() }
    }

    /// How it compresses.
    pub fn spec(&self) -> ImageSpec {
        self.spec
    }

    /// `picture` as a file.
    pub fn encode(&self, picture: &Picture) -> Result<Vec<u8>, ImageEncodeError> {
        let ImageSpec { format, quality, .. } = self.spec;
        let placed = self.spec.place(&self.input, (picture.width(), picture.height()));
        let (width, height) = (placed.to.width, placed.to.height);
        // Without bars a letterboxed picture fills all of what it is resized to.
        let fit = match self.input.fit {
            Fit::Crop => Fit::Crop,
            Fit::Letterbox | Fit::Stretch => Fit::Stretch,
        };
        let shrink = Preprocessor::new(&InputSpec { width, height, fit, ..self.input.clone() });
        let rgb = shrink.resize(picture).into_flattened();
        match format {
            ImageFormat::Jpeg => {
                let side = |side| u16::try_from(side).ok();
                let (Some(w), Some(h)) = (side(width), side(height)) else {
                    return Err(ImageEncodeError::Size { width, height, format });
                };
                let mut file = Vec::new();
                let mut encoder = jpeg_encoder::Encoder::new(&mut file, quality.clamp(1, 100));
                encoder.set_optimized_huffman_tables(true);
                // With such tables the baseline form has a scan for each component, which the
                // decoder misreads where chroma is subsampled (zune-image's issue 422).
                encoder.set_progressive(true);
                encoder.encode(&rgb, w, h, jpeg_encoder::ColorType::Rgb)?;
                Ok(file)
            }
            ImageFormat::Webp => {
                let most = 16_383;
                if width > most || height > most {
                    return Err(ImageEncodeError::Size { width, height, format });
                }
                let mut config = webp::WebPConfig::new()
                    .map_err(|()| ImageEncodeError::Webp("libwebp has no defaults".into()))?;
                config.quality = quality.clamp(1, 100).into();
                // The smallest files for the quality.
                config.method = 6;
                let encoder = webp::Encoder::from_rgb(&rgb, width, height);
                let file = encoder.encode_advanced(&config);
                let file = file.map_err(|error| ImageEncodeError::Webp(format!("{error:?}")))?;
                Ok(file.to_vec())
            }
            #[cfg(feature = "avif")]
            ImageFormat::Avif => {
                crate::avif::encode(&rgb, width, height, quality).map_err(ImageEncodeError::Avif)
            }
            #[cfg(not(feature = "avif"))]
            ImageFormat::Avif => Err(ImageEncodeError::Unsupported(format)),
        }
    }
}

#[cfg(all(test, feature = "image-encoders"))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn input(width: u32, height: u32) -> InputSpec {
        InputSpec::new(width, height)
    }

    /// A slope of each colour in another direction.
    fn slopes(side: u32) -> Picture {
        let rgb = (0..side * side).flat_map(|at| {
            let (x, y) = (at % side * 64 / side, at / side * 64 / side);
            [x * 4, y * 4, 255 - x * 2 - y * 2].map(|level| level as u8)
        });
        Picture::new(side, side, rgb.collect()).expect("pixels")
    }

    fn file(format: ImageFormat, side: u32) -> Vec<u8> {
        let spec = ImageSpec { format, side, quality: 80 };
        ImageEncoder::new(spec, &input(64, 64)).encode(&slopes(64)).expect("encodes")
    }

    #[test]
    fn a_fine_picture_comes_back_about_as_it_was() {
        for format in image_formats() {
            let back = decode_image(format, &file(format, 64), 64 * 64).expect("decodes");
            let original = slopes(64);
            let (original, back) = (original.rgb(), back.rgb());
            let distance = original.iter().zip(&*back).map(|(a, b)| a.abs_diff(*b));
            let mean = distance.map(u32::from).sum::<u32>() / (3 * 64 * 64);
            assert!(mean <= 4, "{format:?}: {mean} levels off in the mean");
        }
    }

    #[test]
    fn the_longer_side_is_the_one_asked_for() {
        let spec = ImageSpec { format: ImageFormat::Jpeg, side: 100, quality: 50 };
        assert_eq!(spec.size(&input(320, 180)), (100, 56));
        assert_eq!(spec.size(&input(180, 320)), (56, 100));
        assert_eq!(ImageSpec { side: 1, ..spec }.size(&input(4096, 1)), (1, 1));
        assert_eq!(spec.to_string(), "jpeg/100/q50");
        assert_eq!("jpeg/100/q50".parse(), Ok(spec));
        for bad in ["jpeg/100", "gif/100/q50", "jpeg/0/q50", "jpeg/100/q0", "jpeg/100/q50/x"] {
            assert_eq!(bad.parse::<ImageSpec>(), Err(ImageSpecError(bad.into())));
        }
    }

    #[test]
    fn pictures_of_too_many_pixels_are_refused_by_their_header() {
        for format in [ImageFormat::Jpeg, ImageFormat::Webp] {
            let bytes = file(format, 64);
            let error = decode_image(format, &bytes, 64 * 64 - 1).expect_err("one too many");
            let PictureError::Size { width: 64, height: 64, most: 4095 } = error else {
                panic!("{error}");
            };
        }
        // Only the header says so: there is nothing behind it.
        let mut jpeg = file(ImageFormat::Jpeg, 64);
        let frame = jpeg.windows(2).position(|it| it == [0xff, 0xc2]).expect("a frame header");
        jpeg[frame + 5..frame + 9].fill(0xff);
        let error = decode_image(ImageFormat::Jpeg, &jpeg, 1 << 20).expect_err("4 gigapixels");
        assert!(matches!(error, PictureError::Size { width: 65535, .. }), "{error}");
        let mut webp = file(ImageFormat::Webp, 64);
        webp[26..30].copy_from_slice(&[0xff, 0x3f, 0xff, 0x3f]);
        let error = decode_image(ImageFormat::Webp, &webp, 1 << 20).expect_err("268 megapixels");
        assert!(matches!(error, PictureError::Size { width: 16383, .. }), "{error}");
    }

    #[cfg(feature = "avif")]
    #[test]
    fn a_frame_of_av1_is_refused_by_its_size_and_what_is_none_by_its_bytes() {
        let bytes = file(ImageFormat::Avif, 64);
        assert!(decode_image(ImageFormat::Avif, &bytes, 64 * 64).is_ok());
        for (bytes, most) in [(&bytes[..], 64 * 64 - 1), (&bytes[..40], 1 << 20), (b"", 1 << 20)] {
            let error = decode_image(ImageFormat::Avif, bytes, most).expect_err("no picture");
            assert!(matches!(error, PictureError::Avif(_)), "{error}");
        }
        let webp = file(ImageFormat::Webp, 64);
        assert!(decode_image(ImageFormat::Avif, &webp, 1 << 20).is_err());
    }

    #[cfg(not(feature = "avif"))]
    #[test]
    fn a_format_that_was_left_out_is_named() {
        let error = decode_image(ImageFormat::Avif, b"", 1 << 20).expect_err("not built in");
        assert_eq!(error.to_string(), "this program was built without avif");
    }

    #[test]
    fn other_formats_than_the_one_announced_are_refused() {
        let (jpeg, webp) = (file(ImageFormat::Jpeg, 64), file(ImageFormat::Webp, 64));
        for (format, bytes) in [
            (ImageFormat::Jpeg, &webp[..]),
            (ImageFormat::Webp, &jpeg[..]),
            (ImageFormat::Jpeg, b""),
            (ImageFormat::Webp, b""),
            (ImageFormat::Jpeg, &jpeg[..40]),
            (ImageFormat::Webp, &webp[..40]),
        ] {
            assert!(decode_image(format, bytes, 1 << 20).is_err(), "{format:?}");
        }
        // A canvas of one pixel around the same frame.
        let mut extended = b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
        extended.extend_from_slice(&webp[12..]);
        let length = extended.len() as u32 - 8;
        extended[4..8].copy_from_slice(&length.to_le_bytes());
        let error = decode_image(ImageFormat::Webp, &extended, 1).expect_err("extended");
        assert!(matches!(error, PictureError::NotSimpleWebp), "{error}");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn damaged_files_are_small_pictures_or_errors(
            format in prop::sample::select(image_formats().collect::<Vec<_>>()),
            damage in prop::collection::vec((0.0..1.0f64, any::<u8>()), 1..8),
            cut in 0.0..1.0f64,
        ) {
            let mut bytes = file(format, 32);
            for (at, value) in damage {
                let at = (at * bytes.len() as f64) as usize;
                bytes[at] = value;
            }
            if cut < 0.5 {
                bytes.truncate((bytes.len() as f64 * 2.0 * cut) as usize);
            }
            if let Ok(picture) = decode_image(format, &bytes, 4096) {
                prop_assert!(picture.width() * picture.height() <= 4096);
            }
        }
    }
}
