//! Preprocessing: a picture is fitted into a network's input and normalised.

use crate::manifest::InputSpec;
use crate::picture::{Picture, Pixels};
use crate::placement::{Area, Placement};
use crate::taps::Taps;
use crate::yuyv;

/// Prepares pictures as the network was trained on them: cropped, letterboxed or stretched as the
/// input's [`Fit`](crate::Fit) says and its [`Placement`] computes, resized by an antialiased bilinear
/// filter in u8, normalised.
///
/// A crop is cut out before the resize, so that nothing outside it leaks in. What a letterboxed picture
/// leaves free has the input's `fill`.
///
/// ```
/// use isthmus_models::{InputSpec, Picture, Preprocessor};
///
/// let input = InputSpec { mean: [0.5; 3], std: [0.5; 3], ..InputSpec::new(1, 1) };
/// let picture = Picture::new(3, 1, vec![9, 9, 9, 255, 0, 51, 9, 9, 9])?;
/// let mut prepared = Vec::new();
/// Preprocessor::new(&input).run(&picture, &mut prepared);
/// assert_eq!(prepared, [1.0, -1.0, -0.6]); // the middle pixel
/// # Ok::<(), isthmus_models::PictureError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Preprocessor {
    input: InputSpec,
    /// What each u8 level of red, green and blue becomes.
    levels: [[f32; 256]; 3],
}

impl Preprocessor {
    /// A preprocessor for a bundle's input.
    pub fn new(input: &InputSpec) -> Preprocessor {
        let level = |colour: usize, v: usize| {
            let channel = input.channel_of(colour);
            (v as f32 / 255.0 - input.mean[channel]) / input.std[channel]
        };
        let levels = std::array::from_fn(|colour| std::array::from_fn(|v| level(colour, v)));
        Preprocessor { input: input.clone(), levels }
    }

    /// Where a picture of `width × height` pixels lies in the input.
    pub fn place(&self, width: u32, height: u32) -> Placement {
        Placement::new(&self.input, width, height)
    }

    /// Replaces `out` by the network's input for `picture`: f32 `[3, height, width]`.
    pub fn run(&self, picture: &Picture, out: &mut Vec<f32>) {
        let pixels = self.input.width as usize * self.input.height as usize;
        out.resize(3 * pixels, 0.0);
        let mut colours: [&mut [f32]; 3] = [&mut [], &mut [], &mut []];
        for (channel, plane) in out.chunks_exact_mut(pixels.max(1)).enumerate() {
            colours[self.input.channel_of(channel)] = plane;
        }
        let [red, green, blue] = colours;
        let [red_levels, green_levels, blue_levels] = &self.levels;
        self.each_pixel(picture, |at, pixel| {
            let [r, g, b] = pixel.map(usize::from);
            red[at] = red_levels[r];
            green[at] = green_levels[g];
            blue[at] = blue_levels[b];
        });
    }

    /// Fits `picture` into the input: `height × width` pixels, row by row.
    #[cfg(any(test, feature = "image-encoders"))]
    pub(crate) fn resize(&self, picture: &Picture) -> Vec<[u8; 3]> {
        let mut pixels = vec![[0; 3]; self.input.width as usize * self.input.height as usize];
        self.each_pixel(picture, |at, pixel| pixels[at] = pixel);
        pixels
    }

    /// Fits `picture` into the input, and gives `put` each pixel with its place, `y · width + x`.
    ///
    /// Of RGB columns first, then rows, each rounded to u8: step by step what Pillow does, because a
    /// level more or less moves features across the quantiser's steps. YUYV is resized differently.
    fn each_pixel(&self, picture: &Picture, mut put: impl FnMut(usize, [u8; 3])) {
        let Placement { from, to } = self.place(picture.width(), picture.height());
        let (input_width, input_height) = (self.input.width as usize, self.input.height as usize);
        let size = |area: Area| (area.width as usize, area.height as usize);
        let ((width, height), (to_width, to_height)) = (size(from), size(to));
        let (left, top) = (from.left as usize, from.top as usize);
        let (to_left, to_top) = (to.left as usize, to.top as usize);
        if (to_width, to_height) != (input_width, input_height) {
            (0..input_width * input_height).for_each(|at| put(at, self.input.fill));
        }
        let place = |x: usize, y: usize| (to_top + y) * input_width + to_left + x;
        let rgb = match picture.pixels() {
            Pixels::Rgb(rgb) => rgb,
            Pixels::Yuyv { bytes, stride } => {
                let (columns, rows) = (left..left + width, top..top + height);
                let put = |at, pixel| put(place(at % to_width, at / to_width), pixel);
                return yuyv::resize(bytes, *stride, columns, rows, (to_width, to_height), put);
            }
        };
        let row_bytes = 3 * picture.width() as usize;
        let rows = rgb.chunks_exact(row_bytes).skip(top).take(height);
        let columns = Taps::all(width, to_width);
        let mut narrowed = Vec::with_capacity(height * columns.len());
        for row in rows {
            let (pixels, _) = row[3 * left..3 * (left + width)].as_chunks::<3>();
            narrowed.extend(columns.iter().map(|taps| taps.sum(|at| pixels[at])));
        }
        for (y, taps) in Taps::all(height, to_height).iter().enumerate() {
            for x in 0..columns.len() {
                put(place(x, y), taps.sum(|y| narrowed[y * columns.len() + x]));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{ChannelOrder, Fit};

    fn preprocessor(width: u32, height: u32) -> Preprocessor {
        Preprocessor::new(&InputSpec { std: [1.0 / 255.0; 3], ..InputSpec::new(width, height) })
    }

    #[test]
    fn a_letterboxed_picture_has_bars_and_its_channels_their_order() {
        let input = InputSpec {
            mean: [0.5, 0.0, 0.0],
            fit: Fit::Letterbox,
            channels: ChannelOrder::Bgr,
            fill: [255, 0, 51],
            ..InputSpec::new(2, 4)
        };
        let picture = Picture::new(1, 1, vec![0, 51, 255]).expect("a pixel");
        let mut out = Vec::new();
        Preprocessor::new(&input).run(&picture, &mut out);
        let [bar, shown] = [[0.2f32, 0.0, 1.0], [1.0, 0.2, 0.0]];
        for (channel, plane) in out.chunks(8).enumerate() {
            let [bar, shown] = [bar, shown].map(|it| it[channel] - input.mean[channel]);
            let expected = [[bar; 2], [shown; 2], [shown; 2], [bar; 2]].concat();
            assert_eq!(plane, expected, "channel {channel}");
        }
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
