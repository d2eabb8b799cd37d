//! How a tensor of a network is brought to the grid `[N, C, h, w]` that a bundle sends, and back.

use super::ends::Ends;

/// Along which axis a network has a tensor's channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// The second: `[N, C, h, w]`, `[N, C, places]`.
    ChannelsFirst,
    /// The last: `[N, h, w, C]`, `[N, tokens, C]`.
    ChannelsLast,
}

/// A tensor, and how it is brought to a grid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) tensor: String,
    /// For one picture, without the batch.
    pub(super) shape: Vec<usize>,
    /// The channels' axis in `shape`.
    axis: usize,
    /// Its own grid: channels, height, width.
    pub(super) grid: [usize; 3],
}

impl Piece {
    /// A tensor of this shape (for one picture, with the batch's 1 in front), its channels along `axis`
    /// of it; of a picture of `size`, width and height. `None` where it is no grid of channels.
    ///
    /// Without a known axis a list of vectors is one of tokens, and all else has its channels second.
    pub(super) fn new(
        tensor: &str,
        shape: &[usize],
        axis: Option<usize>,
        size: [u32; 2],
    ) -> Option<Piece> {
        let [1, shape @ ..] = shape else { return None };
        if shape.is_empty() || shape.contains(&0) {
            return None;
        }
        let axis = match axis {
            Some(axis) => axis.checked_sub(1).filter(|&axis| axis < shape.len())?,
            None if shape.len() == 2 => 1,
            None if shape.len() <= 3 => 0,
            None => return None,
        };
        let places = [&shape[..axis], &shape[axis + 1..]].concat();
        let [h, w] = match *places.as_slice() {
            [] => [1, 1],
            [places] => of_tokens(places, size),
            [ref rows @ .., columns] => [rows.iter().product(), columns],
        };
        let grid = [shape[axis], h, w];
        Some(Piece { tensor: tensor.to_owned(), shape: shape.to_vec(), axis, grid })
    }

    /// Whether the tensor is its grid as it is.
    pub(super) fn is_grid(&self) -> bool {
        self.shape == self.grid && self.axis == 0
    }

    /// The tensor `from` as the grid.
    pub(super) fn to_grid(&self, ends: &mut Ends, from: &str) -> String {
        let mut last = from.to_owned();
        if self.axis != 0 {
            let others = (1..=self.shape.len()).filter(|&axis| axis != self.axis + 1);
            let axes: Vec<usize> = [0, self.axis + 1].into_iter().chain(others).collect();
            last = ends.transpose(&last, &axes);
        }
        match self.shape.len() {
            3 => last,
            _ => ends.reshape(&last, &self.grid),
        }
    }

    /// The tensor again, of the grid `from`.
    pub(super) fn to_tensor(&self, ends: &mut Ends, from: &str) -> String {
        let mut last = from.to_owned();
        let mut moved = self.shape.clone();
        let channels = moved.remove(self.axis);
        moved.insert(0, channels);
        if moved.len() != 3 {
            last = ends.reshape(&last, &moved);
        }
        if self.axis != 0 {
            let mut axes: Vec<usize> = (2..=self.shape.len()).collect();
            axes.insert(self.axis, 1);
            axes.insert(0, 0);
            last = ends.transpose(&last, &axes);
        }
        last
    }
}

/// Height and width of a row of places: those of a grid with the picture's form if it is one. One with
/// a class token, or any other, stays a column.
fn of_tokens(places: usize, [width, height]: [u32; 2]) -> [usize; 2] {
    let rows = (places as f64 * f64::from(height) / f64::from(width)).sqrt().round() as usize;
    let columns = places.checked_div(rows).unwrap_or(0);
    // As the picture to within a place: 6 × 10 of a square picture is a coincidence.
    let form = (columns as f64 - rows as f64 * f64::from(width) / f64::from(height)).abs() < 1.0;
    if rows * columns == places && form { [rows, columns] } else { [places, 1] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_a_grid_where_they_have_the_pictures_form() {
        assert_eq!(of_tokens(196, [224, 224]), [14, 14]);
        assert_eq!(of_tokens(197, [224, 224]), [197, 1]);
        assert_eq!(of_tokens(8 * 16, [512, 256]), [8, 16]);
        assert_eq!(of_tokens(60, [224, 224]), [60, 1]);
        assert_eq!(of_tokens(1, [224, 224]), [1, 1]);
    }

    #[test]
    fn channels_are_where_they_are_said_to_be() {
        let grid =
            |shape: &[usize], axis| Piece::new("t", shape, axis, [32, 32]).map(|piece| piece.grid);
        assert_eq!(grid(&[1, 5, 4, 4], None), Some([5, 4, 4]));
        assert_eq!(grid(&[1, 4, 4, 5], Some(3)), Some([5, 4, 4]));
        assert_eq!(grid(&[1, 16, 5], None), Some([5, 4, 4]));
        assert_eq!(grid(&[1, 17, 5], Some(2)), Some([5, 17, 1]));
        assert_eq!(grid(&[1, 5, 16], Some(1)), Some([5, 4, 4]));
        assert_eq!(grid(&[1, 5], None), Some([5, 1, 1]));
        assert_eq!(grid(&[1, 2, 3, 4, 5], Some(2)), Some([3, 8, 5]));
        for (shape, axis) in [
            (&[2, 5][..], None),
            (&[1], None),
            (&[1, 0, 3], None),
            (&[1, 5], Some(0)),
            (&[1, 5], Some(2)),
            (&[1, 2, 3, 4, 5], None),
        ] {
            assert_eq!(grid(shape, axis), None, "{shape:?}, {axis:?}");
        }
    }
}
