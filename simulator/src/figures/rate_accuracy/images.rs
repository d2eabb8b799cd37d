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
    side: u32,
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
                let (side, height) = (scaled(input.width), scaled(input.height));
                let raw = InputSpec { width: side, height, mean: [0.0; 3], std: [1.0 / 255.0; 3] };
                for quality in QUALITIES {
                    let shrink = Preprocessor::new(&raw);
                    settings.push(ImageCodec { family, side, height, quality, shrink });
                }
            }
        }
        settings
    }

    /// `picture`, cropped and resized, as a file.
    pub(super) fn encode(&self, picture: &Picture) -> anyhow::Result<Vec<u8>> {
        let (side, height) = (self.side, self.height);
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
                encoder.encode(&rgb, side as u16, height as u16, ColorType::Rgb)?;
                Ok(file)
            }
            Family::Webp => {
                let mut config =
                    WebPConfig::new().map_err(|()| anyhow!("libwebp has no defaults"))?;
                config.quality = self.quality.into();
                config.method = 6;
                let file = webp::Encoder::from_rgb(&rgb, side, height).encode_advanced(&config);
                Ok(file.map_err(|error| anyhow!("WebP: {error:?}"))?.to_vec())
            }
            Family::Split => Err(anyhow!("the cut network is no image codec")),
        }
    }
}

impl fmt::Display for ImageCodec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{} q{}", self.side, self.height, self.quality)
    }
}
