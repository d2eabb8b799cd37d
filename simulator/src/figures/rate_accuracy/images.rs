//! Image codecs, each at several picture sizes and qualities.

use std::fmt;

use anyhow::anyhow;
use isthmus_models::{InputSpec, Picture, Preprocessor};
use jpeg_encoder::{ColorType, Encoder};
use webp::WebPConfig;

use super::Family;

/// Sizes of the coded picture over the network's input.
const SCALES: [f32; 4] = [1.0, 0.8, 0.65, 0.5];
const QUALITIES: [u8; 6] = [5, 10, 20, 35, 55, 80];

/// A codec at one size and quality.
pub(super) struct ImageCodec {
    pub(super) family: Family,
    width: u32,
    height: u32,
    quality: u8,
    /// Crops as the network's input is cropped, resizes, and leaves the levels as they are.
    shrink: Preprocessor,
}

impl ImageCodec {
    /// Every codec, size and quality that is tried.
    pub(super) fn settings(input: &InputSpec) -> Vec<ImageCodec> {
        let mut settings = Vec::new();
        for family in [Family::Jpeg, Family::Webp] {
            for scale in SCALES {
                let scaled = |side: u32| (side as f32 * scale).round() as u32;
                let (width, height) = (scaled(input.width), scaled(input.height));
                let raw = InputSpec { width, height, mean: [0.0; 3], std: [1.0 / 255.0; 3] };
                for quality in QUALITIES {
                    let shrink = Preprocessor::new(&raw);
                    settings.push(ImageCodec { family, width, height, quality, shrink });
                }
            }
        }
        settings
    }

    /// `picture`, cropped and resized, as a file.
    pub(super) fn encode(&self, picture: &Picture) -> anyhow::Result<Vec<u8>> {
        let (width, height) = (self.width, self.height);
        let mut planes = Vec::new();
        self.shrink.run(picture, &mut planes);
        let plane = planes.len() / 3;
        let rgb: Vec<u8> =
            (0..planes.len()).map(|at| planes[at % 3 * plane + at / 3].round() as u8).collect();
        match self.family {
            Family::Jpeg => {
                let mut file = Vec::new();
                let mut encoder = Encoder::new(&mut file, self.quality);
                encoder.set_optimized_huffman_tables(true);
                // With such tables the baseline form has a scan for each component, which the
                // decoder misreads where chroma is subsampled (zune-image's issue 422).
                encoder.set_progressive(true);
                encoder.encode(&rgb, width as u16, height as u16, ColorType::Rgb)?;
                Ok(file)
            }
            Family::Webp => {
                let mut config =
                    WebPConfig::new().map_err(|()| anyhow!("libwebp has no defaults"))?;
                config.quality = self.quality.into();
                config.method = 6;
                let file = webp::Encoder::from_rgb(&rgb, width, height).encode_advanced(&config);
                Ok(file.map_err(|error| anyhow!("WebP: {error:?}"))?.to_vec())
            }
            Family::Split => Err(anyhow!("the cut network is no image codec")),
        }
    }
}

impl fmt::Display for ImageCodec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{} q{}", self.width, self.height, self.quality)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fine_picture_comes_back_about_as_it_was() {
        let input = InputSpec { width: 64, height: 64, mean: [0.0; 3], std: [1.0 / 255.0; 3] };
        // A slope of each colour in another direction.
        let rgb = (0..64 * 64).flat_map(|at| {
            let (x, y) = (at % 64, at / 64);
            [x * 4, y * 4, 255 - x * 2 - y * 2].map(|level| level as u8)
        });
        let picture = Picture::new(64, 64, rgb.collect()).expect("64 × 64");
        for codec in ImageCodec::settings(&input) {
            if (codec.width, codec.quality) != (64, 80) {
                continue;
            }
            let back = Picture::decode(&codec.encode(&picture).expect("encodes")).expect("decodes");
            let distance = picture.rgb().iter().zip(back.rgb()).map(|(a, b)| a.abs_diff(*b));
            let mean = distance.map(u32::from).sum::<u32>() / picture.rgb().len() as u32;
            assert!(mean <= 4, "{codec}: {mean} levels off in the mean");
        }
    }
}
