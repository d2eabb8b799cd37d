//! What every layout of tensors can do.

use std::fmt::Debug;

use super::candidates::Candidates;
use super::error::{BoxesDecodeError, BoxesError};
use super::tensors::{Output, Rows};

/// A layout for given shapes. `outputs` are those that it was made for, of the right lengths and
/// finite.
pub(super) trait Layout: Debug + Send + Sync {
    /// Whether the values that are no scores can be meant.
    fn check(&self, _outputs: &[&[f32]], _threshold: f32) -> Result<(), BoxesDecodeError> {
        Ok(())
    }

    /// Gives `candidates` the scores of every place.
    fn score(&self, outputs: &[&[f32]], candidates: &mut Candidates);

    /// Which output holds the scores of a place, for messages.
    fn scores_in(&self, _place: usize) -> usize {
        0
    }

    /// Which output holds the box of a place, for messages.
    fn boxes_in(&self, _place: usize) -> usize {
        0
    }

    /// x0, y0, x1, y1 of the box at a place (pixels of the input), which may reach beyond it.
    fn corners(&self, outputs: &[&[f32]], place: usize) -> [f32; 4];
}

/// The only output, `what` in words.
pub(super) fn one<'a>(outputs: &'a [Output], what: &str) -> Result<&'a Output, BoxesError> {
    match outputs {
        [output] => Ok(output),
        _ => Err(BoxesError::Count { expected: format!("1: {what}"), actual: outputs.len() }),
    }
}

/// The corners of a box by its centre and its sides.
pub(super) fn around([x, y]: [f32; 2], [width, height]: [f32; 2]) -> [f32; 4] {
    [x - width / 2.0, y - height / 2.0, x + width / 2.0, y + height / 2.0]
}

/// The first two values of a row.
pub(super) fn pair(rows: &Rows, data: &[f32], row: usize) -> [f32; 2] {
    [rows.at(data, row, 0), rows.at(data, row, 1)]
}
