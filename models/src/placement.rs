//! Where a picture lies in a network's input, and a box of the input in the picture.

use crate::manifest::{Fit, InputSpec};

/// A rectangle in whole pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) left: u32,
    pub(crate) top: u32,
    pub(crate) width: u32,
    pub(crate) height: u32,
}

/// Which part of a picture fills which part of the network's input, by the input's [`Fit`].
///
/// *Crop*: the largest box of the input's aspect ratio, in whole pixels, fills the input. Of a picture
/// `w × h` that is too wide for an input `W × H`, `max(1, ⌊h·W / H⌋)` columns from column
/// `⌊(w − columns) / 2⌋` on are kept; of one that is too high, rows likewise.
///
/// *Letterbox*: the whole picture fills the middle of the input. With `s = min(W / w, H / h)` it takes
/// `max(1, ⌊s·w + ½⌋)` columns from `⌊(W − columns) / 2⌋` on, and rows likewise.
///
/// *Stretch*: the whole picture fills the whole input.
///
/// ```
/// use isthmus_models::{Fit, InputSpec, Placement};
/// let input = InputSpec { fit: Fit::Letterbox, ..InputSpec::new(416, 416) };
/// let placed = Placement::new(&input, 832, 416); // bars of 104 pixels above and below
/// assert_eq!(placed.to_picture([0.0, 104.0, 208.0, 312.0]), [0.0, 0.0, 416.0, 416.0]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Of the picture.
    pub(crate) from: Area,
    /// Of the input.
    pub(crate) to: Area,
}

impl Placement {
    /// The placement of a picture of `width × height` pixels, both at least 1.
    pub fn new(input: &InputSpec, width: u32, height: u32) -> Placement {
        let picture = Area { left: 0, top: 0, width, height };
        let whole = Area { left: 0, top: 0, width: input.width, height: input.height };
        match input.fit {
            Fit::Crop => Placement { from: crop(input, width, height), to: whole },
            Fit::Letterbox => Placement { from: picture, to: letterbox(input, width, height) },
            Fit::Stretch => Placement { from: picture, to: whole },
        }
    }

    /// Left, top, right and bottom edge (pixels) in the picture of what has these in the input. What
    /// lies outside the part of the picture that the input shows is moved to its border.
    pub fn to_picture(&self, [left, top, right, bottom]: [f32; 4]) -> [f32; 4] {
        let Placement { from, to } = self;
        let along = |at: f32, (to_start, to_size): (u32, u32), (start, size): (u32, u32)| {
            let fraction = (f64::from(at) - f64::from(to_start)) / f64::from(to_size);
            (f64::from(start) + fraction.clamp(0.0, 1.0) * f64::from(size)) as f32
        };
        let x = |at| along(at, (to.left, to.width), (from.left, from.width));
        let y = |at| along(at, (to.top, to.height), (from.top, from.height));
        [x(left), y(top), x(right), y(bottom)]
    }

    /// The same the other way: edges in the input of what has these in the picture.
    pub fn to_input(&self, edges: [f32; 4]) -> [f32; 4] {
        Placement { from: self.to, to: self.from }.to_picture(edges)
    }

    /// Left, top, width and height (pixels) of the part of the input that shows the picture.
    pub fn shown(&self) -> [u32; 4] {
        let Area { left, top, width, height } = self.to;
        [left, top, width, height]
    }

    /// Left, top, width and height (pixels) of the part of the picture that the input shows.
    pub fn kept(&self) -> [u32; 4] {
        let Area { left, top, width, height } = self.from;
        [left, top, width, height]
    }
}

fn crop(input: &InputSpec, width: u32, height: u32) -> Area {
    let largest = |side: u32, other: u32, ratio: u32, to: u32| {
        let fitting = u64::from(other) * u64::from(ratio) / u64::from(to);
        u64::from(side).min(fitting.max(1)) as u32
    };
    let kept_width = largest(width, height, input.width, input.height);
    let kept_height = largest(height, width, input.height, input.width);
    Area {
        left: (width - kept_width) / 2,
        top: (height - kept_height) / 2,
        width: kept_width,
        height: kept_height,
    }
}

fn letterbox(input: &InputSpec, width: u32, height: u32) -> Area {
    let [w, h, to_w, to_h] = [width, height, input.width, input.height].map(u64::from);
    // side · min(W / w, H / h), rounded, without a division by floats.
    let scaled = |side: u64| match to_w * h <= to_h * w {
        true => (2 * side * to_w + w) / (2 * w),
        false => (2 * side * to_h + h) / (2 * h),
    };
    let within = |side: u64, most: u32| (scaled(side) as u32).clamp(1, most);
    let (shown_width, shown_height) = (within(w, input.width), within(h, input.height));
    Area {
        left: (input.width - shown_width) / 2,
        top: (input.height - shown_height) / 2,
        width: shown_width,
        height: shown_height,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn input(width: u32, height: u32, fit: Fit) -> InputSpec {
        InputSpec { fit, ..InputSpec::new(width, height) }
    }

    #[test]
    fn the_crop_is_central_and_keeps_the_aspect_ratio() {
        let kept = |to: (u32, u32), width, height| {
            Placement::new(&input(to.0, to.1, Fit::Crop), width, height).kept()
        };
        assert_eq!(kept((160, 160), 640, 480), [80, 0, 480, 480]);
        assert_eq!(kept((160, 160), 480, 641), [0, 80, 480, 480]);
        assert_eq!(kept((160, 160), 1, 1), [0, 0, 1, 1]);
        assert_eq!(kept((320, 180), 1000, 1000), [0, 219, 1000, 562]);
        assert_eq!(kept((320, 180), 10_000, 1), [4999, 0, 1, 1]);
        assert_eq!(kept((320, 180), 1, 10_000), [0, 4999, 1, 1]);
    }

    #[test]
    fn a_letterboxed_picture_is_whole_and_in_the_middle() {
        let shown =
            |width, height| Placement::new(&input(416, 416, Fit::Letterbox), width, height).shown();
        assert_eq!(shown(416, 234), [0, 91, 416, 234]);
        assert_eq!(shown(1920, 1080), [0, 91, 416, 234]);
        assert_eq!(shown(100, 200), [104, 0, 208, 416]);
        assert_eq!(shown(10_000, 1), [0, 207, 416, 1]);
        let stretched = Placement::new(&input(416, 416, Fit::Stretch), 1920, 1080);
        assert_eq!(stretched.to_picture([0.0, 0.0, 208.0, 208.0]), [0.0, 0.0, 960.0, 540.0]);
    }

    proptest! {
        /// A tenth of a pixel of the picture, there and back.
        #[test]
        fn a_box_of_the_picture_comes_back(
            (width, height) in (8u32..6000, 8u32..6000), to in (32u32..1024, 32u32..1024),
            at in [0f32..=1.0, 0f32..=1.0, 0f32..=1.0, 0f32..=1.0], fit in 0..3usize
        ) {
            let fit = [Fit::Crop, Fit::Letterbox, Fit::Stretch][fit];
            let placed = Placement::new(&input(to.0, to.1, fit), width, height);
            let [left, top, kept_width, kept_height] = placed.kept().map(|side| side as f32);
            let x = |at: f32| left + at * kept_width;
            let y = |at: f32| top + at * kept_height;
            let edges = [x(at[0].min(at[2])), y(at[1].min(at[3])), x(at[0].max(at[2])), y(at[1].max(at[3]))];
            let back = placed.to_picture(placed.to_input(edges));
            for (edge, back) in edges.into_iter().zip(back) {
                prop_assert!((edge - back).abs() < 0.1, "{:?} {:?}", edges, back);
            }
        }
    }
}
