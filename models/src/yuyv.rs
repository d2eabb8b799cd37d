//! YUYV, the packed 4:2:2 of cameras: two pixels in the four bytes Y, Cb, Y, Cr. BT.601 in limited
//! range, which V4L2 says by default.

use std::ops::Range;

use crate::taps::Taps;

/// Fractional bits of a weight. One is a step less than it should be, so that it fits a u16: of the
/// product of two every processor has an instruction for the upper half.
const WEIGHT_BITS: u32 = 16;
/// Fractional bits of a level between the passes.
const LEVEL_BITS: u32 = 8;
/// Fractional bits of a level that becomes RGB, which leave room for a sign.
const SIGNED_BITS: u32 = 7;
/// Fractional bits of the matrix below.
const MATRIX_BITS: u32 = 13;
/// Of BT.601 in limited range: luma, Cr to red, Cb to green, Cr to green, Cb to blue.
const MATRIX: [i16; 5] = [9_539, 13_075, -3_209, -6_660, 16_525];
/// Rows of the target that are computed side by side.
const LANES: usize = 8;

/// Bytes of a row of `width` pixels.
pub(crate) fn row_bytes(width: usize) -> usize {
    4 * width.div_ceil(2)
}

/// Every pixel of one row as RGB.
pub(crate) fn row_to_rgb(row: &[u8], width: usize) -> impl Iterator<Item = [u8; 3]> {
    let pairs = row.as_chunks::<4>().0.iter();
    let pixels = pairs.flat_map(|&[left, cb, right, cr]| {
        [left, right].map(|luma| {
            let levels = [luma, cb, cr].map(|level| [i16::from(level) << SIGNED_BITS]);
            to_rgb(levels).map(|[level]| level as u8)
        })
    });
    pixels.take(width)
}

/// Resizes the box `columns` × `rows` of a picture, whose rows lie `stride` bytes apart, to `width ×
/// height`, and gives `put` each pixel with its place, `y · width + x`.
///
/// What resizing its RGB gives, but for rounding: both are linear. Rows are made first, from bytes
/// that lie side by side, then columns, of [`LANES`] rows at a time, and only what is left becomes
/// RGB.
pub(crate) fn resize(
    bytes: &[u8],
    stride: usize,
    columns: Range<usize>,
    rows: Range<usize>,
    (width, height): (usize, usize),
    mut put: impl FnMut(usize, [u8; 3]),
) {
    let from = columns.start / 2;
    let strip = 4 * from..row_bytes(columns.end);
    let across = Taps::all(columns.len(), width);
    let across: Vec<Column> =
        across.iter().map(|it| Column::new(it, columns.start, from)).collect();
    let down = Taps::all(rows.len(), height);
    let [mut tile, mut shuffled] = [0, 0].map(|level| vec![level; LANES * strip.len()]);
    for (at, down) in down.chunks(LANES).enumerate() {
        for (taps, levels) in down.iter().zip(tile.chunks_exact_mut(strip.len())) {
            let rows = bytes[(rows.start + taps.first) * stride..].chunks(stride);
            let weighted = narrow(&taps.weights).zip(rows);
            weigh(&weighted.map(|(weight, row)| (&row[strip.clone()], weight)).collect(), levels);
        }
        // After as many shuffles as two has to be doubled for `LANES`, columns are rows.
        for _ in 0..LANES.ilog2() {
            shuffle(&tile, &mut shuffled);
            std::mem::swap(&mut tile, &mut shuffled);
        }
        let (tile, _) = tile.as_chunks();
        for (x, column) in across.iter().enumerate() {
            let [red, green, blue] = to_rgb(column.of(tile));
            for lane in 0..down.len() {
                let pixel = [red[lane], green[lane], blue[lane]].map(|level| level as u8);
                put((LANES * at + lane) * width + x, pixel);
            }
        }
    }
}

/// The source rows of one target row, with their weights.
type Line<'a> = Vec<(&'a [u8], u16)>;

/// The weighted bytes of a line, as levels.
// Apart from what rearranges them, or the compiler keeps them rearranged all along.
#[inline(never)]
fn weigh(line: &Line<'_>, levels: &mut [u16]) {
    let (blocks, rest) = levels.as_chunks_mut::<16>();
    let weighed = 16 * blocks.len();
    for (at, block) in blocks.iter_mut().enumerate() {
        *block = weigh_block(line, 16 * at);
    }
    for (at, pair) in rest.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *pair = weigh_block(line, weighed + 4 * at);
    }
}

/// The `N` bytes of a line from `at` on.
#[inline]
fn weigh_block<const N: usize>(line: &Line<'_>, at: usize) -> [u16; N] {
    let mut sums = [rounding(line.len()); N];
    for (row, weight) in line {
        let Some(bytes) = row.get(at..).and_then(<[u8]>::first_chunk::<N>) else { break };
        add(&mut sums, &bytes.map(|byte| u16::from(byte) << LEVEL_BITS), *weight);
    }
    sums
}

/// Interleaves the halves of `from` (a perfect shuffle).
#[inline(never)]
fn shuffle(from: &[u16], to: &mut [u16]) {
    let (left, right) = from.split_at(from.len() / 2);
    for ((to, &left), &right) in to.as_chunks_mut::<2>().0.iter_mut().zip(left).zip(right) {
        *to = [left, right];
    }
}

/// The source pixels of one target column.
struct Column {
    /// First pixel, and the pair that holds it, within the strip.
    pixel: usize,
    pair: usize,
    /// Weights of pixels from there on.
    luma: Vec<u16>,
    /// Weights of pairs from there on: both pixels of a pair have its chroma.
    chroma: Vec<u16>,
}

impl Column {
    /// `taps` of a box that starts at pixel `left`, within a strip that starts at pair `from`.
    fn new(taps: &Taps, left: usize, from: usize) -> Column {
        let pixel = taps.first + left - 2 * from;
        let pair = pixel / 2;
        let luma: Vec<u16> = narrow(&taps.weights).collect();
        let mut chroma = vec![0; (pixel + luma.len()).div_ceil(2) - pair];
        for (x, weight) in (pixel..).zip(&luma) {
            chroma[x / 2 - pair] += weight;
        }
        Column { pixel, pair, luma, chroma }
    }

    /// Luma, Cb and Cr of the column's pixels in all lanes.
    fn of(&self, tile: &[[u16; LANES]]) -> [[i16; LANES]; 3] {
        let mut luma = [rounding(self.luma.len()); LANES];
        let [mut cb, mut cr] = [[rounding(self.chroma.len()); LANES]; 2];
        let (pixels, _) = tile[2 * self.pixel..].as_chunks::<2>();
        for (at, &weight) in self.luma.iter().enumerate() {
            let Some([level, _]) = pixels.get(at) else { break };
            add(&mut luma, level, weight);
        }
        let (pairs, _) = tile[4 * self.pair..].as_chunks::<4>();
        for (at, &weight) in self.chroma.iter().enumerate() {
            let Some([_, blue, _, red]) = pairs.get(at) else { break };
            add(&mut cb, blue, weight);
            add(&mut cr, red, weight);
        }
        [luma, cb, cr].map(|sums| sums.map(|sum| (sum >> (LEVEL_BITS - SIGNED_BITS)) as i16))
    }
}

/// What a sum of as many taps starts at: half of what their products lose in the mean, at most what
/// leaves the highest level in a u16.
#[inline]
fn rounding(taps: usize) -> u16 {
    (taps / 2).min(255) as u16
}

/// Adds a tap to sums that are kept side by side.
///
/// The loops over taps around it end early where a tap were missing: what may end early the
/// compiler leaves in order, and computes the sums of a tap at once rather than taps of a sum,
/// which lie apart.
#[inline]
fn add<const N: usize>(sums: &mut [u16; N], levels: &[u16; N], weight: u16) {
    for (sum, &level) in sums.iter_mut().zip(levels) {
        *sum += ((u32::from(level) * u32::from(weight)) >> WEIGHT_BITS) as u16;
    }
}

/// RGB, 0 to 255, of luma, Cb and Cr with [`SIGNED_BITS`] fractional bits.
#[inline]
fn to_rgb<const N: usize>([luma, cb, cr]: [[i16; N]; 3]) -> [[i16; N]; 3] {
    let [scale, cr_red, cb_green, cr_green, cb_blue] = MATRIX.map(i32::from);
    let less = |level: i16, zero: i16| i32::from(level - (zero << SIGNED_BITS));
    let half = 1 << (MATRIX_BITS + SIGNED_BITS - 1);
    let mut rgb = [[0; N]; 3];
    for at in 0..N {
        let (luma, cb, cr) = (less(luma[at], 16) * scale, less(cb[at], 128), less(cr[at], 128));
        let chroma = [cr * cr_red, cb * cb_green + cr * cr_green, cb * cb_blue];
        for (levels, chroma) in rgb.iter_mut().zip(chroma) {
            let level = (luma + chroma + half) >> (MATRIX_BITS + SIGNED_BITS);
            levels[at] = (level as i16).clamp(0, 255);
        }
    }
    rgb
}

/// Weights in [`WEIGHT_BITS`], of any number of taps: what rounding takes from one it gives to the
/// next, so that they add up to a step less than one.
fn narrow(weights: &[i32]) -> impl Iterator<Item = u16> {
    const ONE: i64 = (1 << WEIGHT_BITS) - 1;
    let all: i64 = weights.iter().copied().map(i64::from).sum();
    let (mut sum, mut given) = (0, 0);
    weights.iter().map(move |&weight| {
        sum += i64::from(weight);
        let due = (sum * ONE + all / 2) / all;
        let weight = due - given;
        given = due;
        weight as u16
    })
}

#[cfg(test)]
mod tests {
    use crate::{InputSpec, Picture, Preprocessor};

    use super::*;

    /// A picture with slopes and an edge, whose rows have four bytes of padding and the last one more
    /// bytes behind it. Its colours are all within RGB: what is cut off there is cut off before or
    /// behind the resize.
    fn picture(width: u32, height: u32) -> Picture {
        let stride = row_bytes(width as usize) + 4;
        let bytes = (0..height).flat_map(|y| {
            (0..stride as u32).map(move |at| {
                let x = at / 2;
                let edge = if x > width / 3 { 40 } else { 0 };
                match at % 4 {
                    1 => 110 + 40 * y / height,
                    3 => 160 - 60 * at / stride as u32,
                    _ => 70 + edge + 40 * y / height + x % 3 * 5,
                }
            } as u8)
        });
        let behind = [255; 3];
        Picture::yuyv(width, height, stride, bytes.chain(behind).collect()).expect("as many bytes")
    }

    fn preprocessor(width: u32, height: u32) -> Preprocessor {
        Preprocessor::new(&InputSpec::new(width, height))
    }

    #[test]
    fn colours_are_those_of_bt_601_in_limited_range() {
        for (yuyv, rgb) in [
            ([16, 128, 16, 128], [0, 0, 0]),
            ([235, 128, 235, 128], [255, 255, 255]),
            ([81, 90, 81, 240], [254, 0, 0]),
            ([145, 54, 145, 34], [0, 255, 1]),
            ([41, 240, 41, 110], [0, 0, 255]),
            ([255, 255, 255, 0], [74, 255, 255]),
        ] {
            let picture = Picture::yuyv(2, 1, 4, yuyv.to_vec()).expect("a pair");
            assert_eq!(*picture.rgb(), [rgb, rgb].concat(), "{yuyv:?}");
            assert_eq!(preprocessor(3, 1).resize(&picture), [rgb; 3], "{yuyv:?}");
        }
    }

    #[test]
    fn resizing_is_as_of_its_rgb_within_rounding() {
        // Down, up, odd crops from the left and from the top, and rows that fill no tile.
        for (from, to) in [
            ((640, 480), (192, 192)),
            ((322, 240), (48, 45)),
            ((31, 9), (64, 64)),
            ((9, 31), (20, 5)),
            ((2, 1), (1, 1)),
        ] {
            let picture = picture(from.0, from.1);
            let rgb = Picture::new(from.0, from.1, picture.rgb().into_owned()).expect("as many");
            let preprocessor = preprocessor(to.0, to.1);
            let (straight, by_rgb) = (preprocessor.resize(&picture), preprocessor.resize(&rgb));
            let pairs = straight.as_flattened().iter().zip(by_rgb.as_flattened());
            let furthest = pairs.map(|(a, b)| a.abs_diff(*b)).max();
            assert!(furthest <= Some(2), "{from:?} to {to:?}: {furthest:?} levels off");
        }
    }

    #[test]
    fn weights_of_any_number_of_taps_add_up_to_a_step_less_than_one() {
        for (from, to) in [(480, 192), (3, 7), (16_384, 1), (4096, 30)] {
            for taps in Taps::all(from, to) {
                let sum: u32 = narrow(&taps.weights).map(u32::from).sum();
                assert_eq!(sum, (1 << WEIGHT_BITS) - 1);
            }
        }
    }
}
