//! Pictures, from compressed bytes or a camera's to upright pixels.

use std::borrow::Cow;
use std::io::Cursor;

use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageReader, Limits};

use isthmus_proto::ImageFormat;

use crate::yuyv;

/// Most pixels that a picture may have; larger ones are refused before memory is taken for them.
pub const MAX_PIXELS: u64 = 64 << 20;

/// Why bytes are no picture.
#[derive(Debug, thiserror::Error)]
pub enum PictureError {
    /// Not JPEG, PNG or WebP, or damaged.
    #[error("the picture cannot be decoded: {0}")]
    Decode(#[from] image::ImageError),
    /// A WebP file from the wire that is not of the simple, lossy form.
    #[error("the picture is no WebP file of the simple, lossy form")]
    NotSimpleWebp,
    /// No frame of AV1 as AVIF's pictures are sent, in the decoder's words.
    #[error("the picture is no AVIF frame that can be decoded: {0}")]
    Avif(String),
    /// A format that this program was built without.
    #[error("this program was built without {}", .0.name())]
    Unsupported(ImageFormat),
    /// Without pixels, or with too many.
    #[error("the picture has {width} × {height} pixels; 1 to {most} are accepted")]
    Size {
        /// Width (pixels).
        width: u32,
        /// Height (pixels).
        height: u32,
        /// Most pixels.
        most: u64,
    },
    /// Pixels given that do not fill the picture.
    #[error("{actual} bytes of pixels given where {expected} are needed")]
    Length {
        /// Needed (bytes).
        expected: usize,
        /// Given (bytes).
        actual: usize,
    },
}

/// An upright picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Picture {
    width: u32,
    height: u32,
    pixels: Pixels,
}

/// What a picture holds. A camera's frames stay as they came until a network wants them: most of
/// what a conversion of all pixels would cost is spared by a crop and a resize before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Pixels {
    /// u8, row by row, three bytes a pixel.
    Rgb(Vec<u8>),
    /// Rows of [`yuyv::row_bytes`], `stride` apart.
    Yuyv { bytes: Vec<u8>, stride: usize },
}

impl Picture {
    /// A picture from its pixels in RGB, `width × height × 3` bytes.
    ///
    /// ```
    /// use isthmus_models::Picture;
    /// assert!(Picture::new(2, 1, vec![0; 6]).is_ok());
    /// assert!(Picture::new(2, 1, vec![0; 5]).is_err());
    /// ```
    pub fn new(width: u32, height: u32, rgb: Vec<u8>) -> Result<Picture, PictureError> {
        let expected = pixels(width, height, MAX_PIXELS)? as usize * 3;
        if rgb.len() != expected {
            return Err(PictureError::Length { expected, actual: rgb.len() });
        }
        Ok(Picture { width, height, pixels: Pixels::Rgb(rgb) })
    }

    /// A picture from a camera's YUYV: two pixels in the four bytes Y, Cb, Y, Cr, BT.601 in limited
    /// range. Rows lie `stride` bytes apart, at least four for every two pixels; bytes behind the
    /// last row are ignored.
    pub fn yuyv(
        width: u32,
        height: u32,
        stride: usize,
        bytes: Vec<u8>,
    ) -> Result<Picture, PictureError> {
        pixels(width, height, MAX_PIXELS)?;
        let row = yuyv::row_bytes(width as usize);
        let expected = stride.max(row).saturating_mul(height as usize - 1).saturating_add(row);
        if stride < row || bytes.len() < expected {
            return Err(PictureError::Length { expected, actual: bytes.len() });
        }
        Ok(Picture { width, height, pixels: Pixels::Yuyv { bytes, stride } })
    }

    /// Decodes JPEG, PNG or WebP; the bytes show the format.
    ///
    /// The EXIF orientation is applied, grey is repeated three times, 16 bits become 8,
    /// transparent pixels are laid over black, and of an animation the first picture is taken.
    pub fn decode(bytes: &[u8]) -> Result<Picture, PictureError> {
        let reader = ImageReader::new(Cursor::new(bytes))
            .with_guessed_format()
            .map_err(image::ImageError::from)?;
        Picture::read(reader, MAX_PIXELS)
    }

    /// Decodes what `reader` holds, of at most `most` pixels by its header; `most` is at most
    /// [`MAX_PIXELS`].
    pub(crate) fn read(
        mut reader: ImageReader<Cursor<&[u8]>>,
        most: u64,
    ) -> Result<Picture, PictureError> {
        let mut limits = Limits::default();
        // In RGBA.
        limits.max_alloc = Some(4 * most);
        reader.limits(limits);
        let mut decoder = reader.into_decoder()?;
        let (width, height) = decoder.dimensions();
        pixels(width, height, most)?;
        // Damaged EXIF costs the orientation, not the picture.
        let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
        let mut image = DynamicImage::from_decoder(decoder)?;
        image.apply_orientation(orientation);
        let (width, height) = (image.width(), image.height());
        let rgb = match image.color().has_alpha() {
            true => over_black(&image.into_rgba8()),
            false => image.into_rgb8().into_raw(),
        };
        Picture::new(width, height, rgb)
    }

    /// Width (pixels), at least 1.
    pub fn width(&self) -> u32 {
        self.width
    }

    /// Height (pixels), at least 1.
    pub fn height(&self) -> u32 {
        self.height
    }

    /// Pixels: u8 `[height, width, 3]`.
    pub fn rgb(&self) -> Cow<'_, [u8]> {
        match &self.pixels {
            Pixels::Rgb(rgb) => Cow::Borrowed(rgb),
            Pixels::Yuyv { bytes, stride } => {
                let rows = bytes.chunks(*stride).take(self.height as usize);
                let width = self.width as usize;
                Cow::Owned(rows.flat_map(|row| yuyv::row_to_rgb(row, width)).flatten().collect())
            }
        }
    }

    /// What it holds.
    pub(crate) fn pixels(&self) -> &Pixels {
        &self.pixels
    }
}

fn pixels(width: u32, height: u32, most: u64) -> Result<u64, PictureError> {
    let pixels = u64::from(width) * u64::from(height);
    match (1..=most).contains(&pixels) {
        true => Ok(pixels),
        false => Err(PictureError::Size { width, height, most }),
    }
}

fn over_black(rgba: &[u8]) -> Vec<u8> {
    let mut rgb = Vec::with_capacity(rgba.len() / 4 * 3);
    for pixel in rgba.chunks_exact(4) {
        let alpha = u32::from(pixel[3]);
        rgb.extend(pixel[..3].iter().map(|&v| {
            // v · alpha / 255, rounded, without a division.
            let scaled = u32::from(v) * alpha + 128;
            ((scaled + (scaled >> 8)) >> 8) as u8
        }));
    }
    rgb
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, ImageFormat, Luma, Rgb, RgbImage, Rgba, RgbaImage};

    fn encode(image: impl Into<DynamicImage>, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.into().write_to(&mut bytes, format).expect("encodes");
        bytes.into_inner()
    }

    /// Two pixels, red then blue, with an EXIF block that says to turn it a quarter clockwise.
    fn lying_jpeg() -> Vec<u8> {
        let image = RgbImage::from_fn(32, 16, |x, _| match x < 16 {
            true => Rgb([255, 0, 0]),
            false => Rgb([0, 0, 255]),
        });
        let jpeg = encode(image, ImageFormat::Jpeg);
        let tiff = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0";
        let length = (2 + 6 + tiff.len()) as u16;
        let mut bytes = jpeg[..2].to_vec();
        bytes.extend([0xff, 0xe1]);
        bytes.extend(length.to_be_bytes());
        bytes.extend(b"Exif\0\0");
        bytes.extend(tiff);
        bytes.extend(&jpeg[2..]);
        bytes
    }

    #[test]
    fn orientation_is_applied() {
        let picture = Picture::decode(&lying_jpeg()).expect("decodes");
        assert_eq!((picture.width(), picture.height()), (16, 32));
        let rgb = picture.rgb();
        let (top, bottom) = (&rgb[..3], &rgb[rgb.len() - 3..]);
        assert!(top[0] > 200 && top[2] < 50, "red comes up, not {top:?}");
        assert!(bottom[2] > 200 && bottom[0] < 50, "blue goes down, not {bottom:?}");
    }

    #[test]
    fn grey_deep_and_transparent_pictures_become_rgb() {
        let grey =
            Picture::decode(&encode(GrayImage::from_pixel(1, 1, Luma([7])), ImageFormat::Png));
        assert_eq!(*grey.expect("grey").rgb(), [7, 7, 7]);

        let deep = image::ImageBuffer::from_pixel(1, 1, Luma([0x1234u16]));
        let deep = Picture::decode(&encode(deep, ImageFormat::Png)).expect("16 bit");
        assert_eq!(*deep.rgb(), [0x12, 0x12, 0x12]);

        for format in [ImageFormat::Png, ImageFormat::WebP] {
            let half = RgbaImage::from_pixel(1, 1, Rgba([200, 100, 255, 128]));
            let half = Picture::decode(&encode(half, format)).expect("transparent");
            assert_eq!(*half.rgb(), [100, 50, 128], "{format:?}");
        }
    }

    #[test]
    fn rubbish_and_cut_pictures_are_errors() {
        assert!(matches!(Picture::decode(b""), Err(PictureError::Decode(_))));
        assert!(matches!(Picture::decode(b"no picture"), Err(PictureError::Decode(_))));
        for format in [ImageFormat::Png, ImageFormat::WebP] {
            let bytes = encode(RgbImage::new(64, 64), format);
            let cut = Picture::decode(&bytes[..bytes.len() - 14]);
            assert!(matches!(cut, Err(PictureError::Decode(_))), "{format:?}");
        }
    }

    #[test]
    fn huge_pictures_are_refused_by_their_header() {
        let mut png = encode(RgbImage::new(1, 1), ImageFormat::Png);
        png[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]); // 65536 × 65536
        let crc = crc32(&png[12..29]);
        png[29..33].copy_from_slice(&crc.to_be_bytes());
        let error = Picture::decode(&png).expect_err("4 gigapixels");
        assert!(matches!(error, PictureError::Size { width: 65536, .. } | PictureError::Decode(_)));
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |crc, _| {
                (crc >> 1) ^ (0xedb8_8320 & 0u32.wrapping_sub(crc & 1))
            })
        })
    }
}
