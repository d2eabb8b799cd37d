//! The outputs that a layout reads, and how rows lie in them.

use super::error::{BoxesDecodeError, BoxesError};

/// Most values of an output.
const MAX_VALUES: usize = 64 << 20;

/// An output that a layout reads.
#[derive(Clone, Debug)]
pub(super) struct Output {
    /// Its name.
    pub(super) name: String,
    /// Without the batch.
    pub(super) shape: Vec<usize>,
    /// Its place among all outputs.
    pub(super) at: usize,
}

impl Output {
    /// Outputs in the layout's order: those of `names`, or all of them.
    pub(super) fn select(
        outputs: &[(&str, &[usize])],
        names: &[String],
    ) -> Result<Vec<Output>, BoxesError> {
        let output = |(at, &(name, shape)): (usize, &(&str, &[usize]))| {
            let output = Output { name: name.to_owned(), shape: shape.to_vec(), at };
            let values = shape.iter().try_fold(1usize, |values, &side| values.checked_mul(side));
            match values.is_some_and(|values| (1..=MAX_VALUES).contains(&values)) {
                true => Ok(output),
                false => Err(output.needs(format!("1 to {MAX_VALUES} values"))),
            }
        };
        if names.is_empty() {
            return outputs.iter().enumerate().map(output).collect();
        }
        let find = |name: &String| {
            let found = outputs.iter().enumerate().find(|(_, (known, _))| known == name);
            let known: Vec<&str> = outputs.iter().map(|(name, _)| *name).collect();
            let found = found.ok_or_else(|| BoxesError::Value {
                key: "tensors".into(),
                problem: format!("there is no output {name:?}; there are {}", known.join(", ")),
            });
            output(found?)
        };
        names.iter().map(find).collect()
    }

    /// How many values it holds.
    pub(super) fn values(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether `data` is of the right length and finite.
    pub(super) fn check(&self, data: &[f32]) -> Result<(), BoxesDecodeError> {
        if data.len() != self.values() {
            return Err(BoxesDecodeError::Length {
                tensor: self.name.clone(),
                expected: self.values(),
                actual: data.len(),
            });
        }
        // Most often there is nothing to find, and this loop is a fraction of one that may stop.
        let greatest = data.iter().map(|value| value.abs().to_bits()).max().unwrap_or_default();
        if greatest < f32::INFINITY.to_bits() {
            return Ok(());
        }
        match data.iter().enumerate().find(|(_, value)| !value.is_finite()) {
            None => Ok(()),
            Some((at, &value)) => Err(BoxesDecodeError::NotFinite {
                tensor: self.name.clone(),
                place: self.place(at),
                value,
            }),
        }
    }

    /// One index for each dimension, of the value at `at`.
    fn place(&self, at: usize) -> Vec<usize> {
        let mut rest = at;
        let mut place: Vec<usize> = Vec::with_capacity(self.shape.len());
        for &side in self.shape.iter().rev() {
            place.push(rest % side);
            rest /= side;
        }
        place.reverse();
        place
    }

    /// That it is of another shape than `expected`.
    pub(super) fn needs(&self, expected: impl Into<String>) -> BoxesError {
        BoxesError::Shape {
            tensor: self.name.clone(),
            expected: expected.into(),
            actual: self.shape.clone(),
        }
    }

    /// Rows of `columns` values each, `what` in words, whichever dimension comes first; where both
    /// would do, the columns do if `columns_first`.
    pub(super) fn rows(
        &self,
        columns: usize,
        what: &str,
        columns_first: bool,
    ) -> Result<Rows, BoxesError> {
        let by_rows = |count| Rows { count, row_step: columns, column_step: 1 };
        let by_columns = |count| Rows { count, row_step: 1, column_step: count };
        match *self.shape.as_slice() {
            [first, count] if first == columns && (columns_first || count != columns) => {
                Ok(by_columns(count))
            }
            [count, last] if last == columns => Ok(by_rows(count)),
            _ => Err(self.needs(format!("[places, {columns}] ({what})"))),
        }
    }

    /// [`rows`](Output::rows) of a known number.
    pub(super) fn rows_of(
        &self,
        count: usize,
        columns: usize,
        what: &str,
    ) -> Result<Rows, BoxesError> {
        let columns_first = self.shape.first() != Some(&count);
        let rows = self.rows(columns, what, columns_first);
        rows.ok()
            .filter(|rows| rows.count == count)
            .ok_or_else(|| self.needs(format!("[{count}, {columns}] ({what})")))
    }

    /// One value for each of `count` places, `what` in words.
    pub(super) fn one_each(&self, count: usize, what: &str) -> Result<(), BoxesError> {
        match *self.shape.as_slice() {
            [found] | [found, 1] | [1, found] if found == count => Ok(()),
            _ => Err(self.needs(format!("[{count}] ({what})"))),
        }
    }

    /// Rows and columns of a grid of `channels` values each, `what` in words.
    pub(super) fn grid(&self, channels: usize, what: &str) -> Result<[usize; 2], BoxesError> {
        match *self.shape.as_slice() {
            [found, rows, columns] if found == channels => Ok([rows, columns]),
            _ => Err(self.needs(format!("[{channels}, rows, columns] ({what})"))),
        }
    }
}

/// How rows lie in a tensor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rows {
    /// How many there are.
    pub(super) count: usize,
    row_step: usize,
    column_step: usize,
}

impl Rows {
    /// The cells of a grid `[n, rows, columns]`: a row is what all channels say of one.
    pub(super) fn of_grid(cells: usize) -> Rows {
        Rows { count: cells, row_step: 1, column_step: cells }
    }

    /// The value of a row in a column. The tensor's length was checked.
    pub(super) fn at(&self, data: &[f32], row: usize, column: usize) -> f32 {
        data[row * self.row_step + column * self.column_step]
    }

    /// Four values of a row, from a column on.
    pub(super) fn four(&self, data: &[f32], row: usize, first: usize) -> [f32; 4] {
        std::array::from_fn(|column| self.at(data, row, first + column))
    }

    /// Values of a row in some columns.
    pub(super) fn row<'a>(
        &self,
        data: &'a [f32],
        row: usize,
        columns: std::ops::Range<usize>,
    ) -> impl Iterator<Item = f32> + Clone + use<'a> {
        let Rows { row_step, column_step, .. } = *self;
        columns.map(move |column| data[row * row_step + column * column_step])
    }
}
