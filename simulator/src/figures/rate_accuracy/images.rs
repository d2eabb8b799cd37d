//! Image codecs, each at several picture sizes and qualities.

use isthmus_models::{ImageSpec, InputSpec, image_formats};

/// Sizes of the coded picture over the network's input.
const SCALES: [f32; 4] = [1.0, 0.8, 0.65, 0.5];
const QUALITIES: [u8; 6] = [5, 10, 20, 35, 55, 80];

/// Every codec that was built in, size and quality that is tried.
pub(crate) fn settings(input: &InputSpec) -> Vec<ImageSpec> {
    let mut settings = Vec::new();
    for format in image_formats() {
        for scale in SCALES {
            let side = (input.width.max(input.height) as f32 * scale).round() as u32;
            settings.extend(QUALITIES.map(|quality| ImageSpec { format, side, quality }));
        }
    }
    settings
}
