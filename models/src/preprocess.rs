//! Preprocessing: crop, resize and normalise a picture to a network's input.

use crate::manifest::InputSpec;
use crate::picture::{Picture, Pixels};
use crate::taps::Taps;
use crate::yuyv;

/// Prepares pictures as the network was trained on them: centre crop, antialiased bilinear resize
/// in u8, normalisation.
///
/// The crop is the largest box of the input's aspect ratio, in whole pixels: of a picture `w × h`
/// that is too wide for an input `W × H`, `max(1, ⌊h·W / H⌋)` columns from column
/// `⌊(w − columns) / 2⌋` on are kept; of one that is too high, rows likewise. It is cut out before
/// the resize, so that nothing outside it leaks in.
///
/// ```
/// use isthmus_models::{InputSpec, Picture, Preprocessor};
///
/// let input = InputSpec { width: 1, height: 1, mean: [0.5; 3], std: [0.5; 3] };
/// let picture = Picture::new(3, 1, vec![9, 9, 9, 255, 0, 51, 9, 9, 9])?;
/// let mut prepared = Vec::new();
/// Preprocessor::new(&input).run(&picture, &mut prepared);
/// assert_eq!(prepared, [1.0, -1.0, -0.6]); // the middle pixel
/// # Ok::<(), isthmus_models::PictureError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Preprocessor {
    width: u32,
    height: u32,
    /// What each u8 level becomes, for each channel.
    levels: [[f32; 256]; 3],
}

impl Preprocessor {
    /// A preprocessor for a bundle's input.
    pub fn new(input: &InputSpec) -> Preprocessor {
        let level = |channel: usize, v: usize| {
            (v as f32 / 255.0 - input.mean[channel]) / input.std[channel]
        };
        let levels = std::array::from_fn(|channel| std::array::from_fn(|v| level(channel, v)));
        Preprocessor { width: input.width, height: input.height, levels }
    }

    /// Replaces `out` by the network's input for `picture`: f32 `[3, height, width]`.
    pub fn run(&self, picture: &Picture, out: &mut Vec<f32>) {
        let pixels = self.width as usize * self.height as usize;
        out.resize(3 * pixels, 0.0);
        let (red, rest) = out.split_at_mut(pixels);
        let (green, blue) = rest.split_at_mut(pixels);
        let [red_levels, green_levels, blue_levels] = &self.levels;
        self.each_pixel(picture, |at, pixel| {
            let [r, g, b] = pixel.map(usize::from);
            red[at] = red_levels[r];
            green[at] = green_levels[g];
            blue[at] = blue_levels[b];
        });
    }

    /// Crops and resizes `picture`: `height × width` pixels, row by row.
    #[cfg(any(test, feature = "image-encoders"))]
    pub(crate) fn resize(&self, picture: &Picture) -> Vec<[u8; 3]> {
        let mut pixels = vec![[0; 3]; self.width as usize * self.height as usize];
        self.each_pixel(picture, |at, pixel| pixels[at] = pixel);
        pixels
    }

    /// Crops and resizes `picture`, and gives `put` each pixel with its place, `y · width + x`.
    ///
    /// Of RGB columns first, then rows, each rounded to u8: step by step what Pillow does, because a
    /// level more or less moves features across the quantiser's steps. YUYV is resized differently.
    fn each_pixel(&self, picture: &Picture, mut put: impl FnMut(usize, [u8; 3])) {
        let (left, top, width, height) = self.crop(picture.width(), picture.height());
        let [left, top, width, height] = [left, top, width, height].map(|side| side as usize);
        let rgb = match picture.pixels() {
            Pixels::Rgb(rgb) => rgb,
            Pixels::Yuyv { bytes, stride } => {
                let (columns, rows) = (left..left + width, top..top + height);
                let to = (self.width as usize, self.height as usize);
                return yuyv::resize(bytes, *stride, columns, rows, to, put);
            }
        };
        let row_bytes = 3 * picture.width() as usize;
        let rows = rgb.chunks_exact(row_bytes).skip(top).take(height);
        let columns = Taps::all(width, self.width as usize);
        let mut narrowed = Vec::with_capacity(height * columns.len());
        for row in rows {
            let (pixels, _) = row[3 * left..3 * (left + width)].as_chunks::<3>();
            narrowed.extend(columns.iter().map(|taps| taps.sum(|at| pixels[at])));
        }
        for (y, taps) in Taps::all(height, self.height as usize).iter().enumerate() {
            for x in 0..columns.len() {
                put(y * columns.len() + x, taps.sum(|y| narrowed[y * columns.len() + x]));
            }
        }
    }

    /// Left, top, width and height of the centre crop of a `width × height` picture.
    fn crop(&self, width: u32, height: u32) -> (u32, u32, u32, u32) {
        let largest = |side: u32, other: u32, ratio: u32, to: u32| {
            let fitting = u64::from(other) * u64::from(ratio) / u64::from(to);
            u64::from(side).min(fitting.max(1)) as u32
        };
        let crop_width = largest(width, height, self.width, self.height);
        let crop_height = largest(height, width, self.height, self.width);
        ((width - crop_width) / 2, (height - crop_height) / 2, crop_width, crop_height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn preprocessor(width: u32, height: u32) -> Preprocessor {
        Preprocessor::new(&InputSpec { width, height, mean: [0.0; 3], std: [1.0 / 255.0; 3] })
    }

    #[test]
    fn the_crop_is_central_and_keeps_the_aspect_ratio() {
        let square = preprocessor(160, 160);
        assert_eq!(square.crop(640, 480), (80, 0, 480, 480));
        assert_eq!(square.crop(480, 641), (0, 80, 480, 480));
        assert_eq!(square.crop(1, 1), (0, 0, 1, 1));
        let wide = preprocessor(320, 180);
        assert_eq!(wide.crop(1000, 1000), (0, 219, 1000, 562));
        assert_eq!(wide.crop(10_000, 1), (4999, 0, 1, 1));
        assert_eq!(wide.crop(1, 10_000), (0, 4999, 1, 1));
    }

    #[test]
    fn resizing_is_what_pillow_does() {
        // Black and white columns in turn: without antialiasing some would win. The filter is cut
        // off at the edges, which tips the balance there.
        let rgb = (0..64 * 64).flat_map(|at| [if at % 2 == 0 { 0 } else { 255 }; 3]).collect();
        let picture = Picture::new(64, 64, rgb).expect("64 × 64");
        let levels: Vec<u8> =
            preprocessor(4, 4).resize(&picture).iter().map(|pixel| pixel[0]).collect();
        assert_eq!(levels, [125, 128, 128, 130].repeat(4));
    }
}
