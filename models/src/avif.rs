//! AVIF's picture: a still frame of AV1 (AV1 Bitstream & Decoding Process Specification, 2019), without
//! the boxes that a file has around it, which are as long as a small picture.
//!
//! Eight bits, chroma as fine as luma, full range: what the encoder writes, and all that is taken. The
//! matrix is BT.601's, whatever a frame says of it.

use re_rav1d::dav1d::{Decoder, Error, PixelLayout, PlanarImageComponent, Settings, pixel};

use crate::picture::{Picture, PictureError};

/// The picture in `frame`, of at most `most` pixels by its header, which is looked at before memory is
/// taken for them.
pub(crate) fn decode(frame: &[u8], most: u64) -> Result<Picture, PictureError> {
    let fail = |error: Error| PictureError::Avif(error.to_string());
    let mut settings = Settings::new();
    settings.set_n_threads(1);
    settings.set_max_frame_delay(1);
    settings.set_frame_size_limit(u32::try_from(most).unwrap_or(u32::MAX).max(1));
    let mut decoder = Decoder::with_settings(&settings).map_err(fail)?;
    if frame.is_empty() {
        return Err(PictureError::Avif("it is empty".into()));
    }
    decoder.send_data(frame.to_vec(), None, None, None).map_err(fail)?;
    let decoded = decoder.get_picture().map_err(fail)?;
    let ours = decoded.bit_depth() == 8
        && decoded.pixel_layout() == PixelLayout::I444
        && decoded.color_range() == pixel::YUVRange::Full;
    if !ours {
        return Err(PictureError::Avif("it is not of 8 bits, 4:4:4 and full range".into()));
    }
    let (width, height) = (decoded.width(), decoded.height());
    if u64::from(width) * u64::from(height) > most {
        return Err(PictureError::Size { width, height, most });
    }
    let planes = [PlanarImageComponent::Y, PlanarImageComponent::U, PlanarImageComponent::V]
        .map(|component| (decoded.plane(component), decoded.stride(component) as usize));
    let mut rgb = Vec::with_capacity(3 * width as usize * height as usize);
    for row in 0..height as usize {
        let [y, cb, cr] = planes.each_ref().map(|(plane, stride)| &plane[row * stride..]);
        let row = y.iter().zip(cb).zip(cr).take(width as usize);
        rgb.extend(row.flat_map(|((&y, &cb), &cr)| to_rgb([y, cb, cr])));
    }
    Picture::new(width, height, rgb)
}

/// BT.601's conversion from luma and colour differences in full range (ITU-R BT.601-7, 2.5).
fn to_rgb([y, cb, cr]: [u8; 3]) -> [u8; 3] {
    let (y, cb, cr) = (f32::from(y), f32::from(cb) - 128.0, f32::from(cr) - 128.0);
    let rgb = [y + 1.402 * cr, y - 0.344_136 * cb - 0.714_136 * cr, y + 1.772 * cb];
    // `as` saturates.
    rgb.map(|level| (level + 0.5) as u8)
}

#[cfg(feature = "image-encoders")]
pub(crate) use encoder::encode;

#[cfg(feature = "image-encoders")]
mod encoder {
    use ravif::{BitDepth, Encoder, Img, RGB8};

    /// From 1, the slowest, to 10. Slower ones save few bytes of a small picture.
    const SPEED: u8 = 6;

    /// `rgb`, three bytes a pixel, as a frame of AV1; in the encoder's words why not.
    pub(crate) fn encode(
        rgb: &[u8],
        width: u32,
        height: u32,
        quality: u8,
    ) -> Result<Vec<u8>, String> {
        let pixels: Vec<RGB8> =
            rgb.as_chunks().0.iter().map(|&[r, g, b]| RGB8 { r, g, b }).collect();
        let encoder = Encoder::new()
            .with_quality(quality.clamp(1, 100).into())
            .with_speed(SPEED)
            .with_bit_depth(BitDepth::Eight)
            .with_num_threads(Some(1));
        let picture = Img::new(&pixels[..], width as usize, height as usize);
        let file = encoder.encode_rgb(picture).map_err(|error| error.to_string())?.avif_file;
        media_data(&file).map(<[u8]>::to_vec).ok_or_else(|| "its file has no media data".into())
    }

    /// What the box `mdat` of a file holds (ISO/IEC 14496-12, 4.2 and 8.1.1); the encoder writes one,
    /// with the frame alone in it.
    fn media_data(mut file: &[u8]) -> Option<&[u8]> {
        loop {
            let (length, rest) = file.split_first_chunk::<4>()?;
            let (kind, _) = rest.split_first_chunk::<4>()?;
            let length = match u32::from_be_bytes(*length) {
                0 => file.len(),
                length => length as usize,
            };
            let content = file.get(8..length)?;
            if kind == b"mdat" {
                return Some(content);
            }
            file = &file[length..];
        }
    }
}
