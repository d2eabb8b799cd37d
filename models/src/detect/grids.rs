//! Layouts whose places are the cells of grids over the picture.

use super::candidates::{Candidates, ClassScores, activate, sigmoid};
use super::error::BoxesError;
use super::layout::{Layout, around, one, pair};
use super::spec::Activation;
use super::tensors::{Output, Rows};

/// Greatest number that an exponential of a size becomes: wider than any picture, and finite.
const GREATEST_RATIO: f32 = 1e6;

/// exp(value), at most [`GREATEST_RATIO`].
pub(super) fn ratio(value: f32) -> f32 {
    value.exp().min(GREATEST_RATIO)
}

/// A cell of a grid.
#[derive(Clone, Copy, Debug)]
struct Cell {
    column: f32,
    row: f32,
    stride: f32,
}

/// Columns and rows of the grid of a stride: cells at the right and lower side may reach beyond.
pub(super) fn grid(input: [u32; 2], stride: u32) -> [u32; 2] {
    input.map(|side| side.div_ceil(stride))
}

/// The cells of all grids, row by row.
fn cells(input: [u32; 2], strides: &[u32]) -> Vec<Cell> {
    let level = |&stride: &u32| {
        let [columns, rows] = grid(input, stride);
        let cell = move |row, column| Cell {
            column: column as f32,
            row: row as f32,
            stride: stride as f32,
        };
        (0..rows).flat_map(move |row| (0..columns).map(move |column| cell(row, column)))
    };
    strides.iter().flat_map(level).collect()
}

/// How many cells the grid of each stride has.
fn counts(input: [u32; 2], strides: &[u32]) -> Vec<usize> {
    let count = |&stride: &u32| grid(input, stride).map(|side| side as usize).iter().product();
    strides.iter().map(count).collect()
}

/// Offsets in cells, logarithms of sizes, objectness and classes.
#[derive(Debug)]
pub(super) struct Yolox {
    rows: Rows,
    cells: Vec<Cell>,
    activation: Activation,
    scores: ClassScores,
}

impl Yolox {
    pub(super) fn new(
        outputs: &[Output],
        input: [u32; 2],
        classes: u16,
        strides: &[u32],
        activation: Activation,
    ) -> Result<Yolox, BoxesError> {
        let output = one(outputs, "centre, size, objectness and classes of each place")?;
        let places = counts(input, strides).iter().sum();
        let columns = 5 + usize::from(classes);
        let rows = output.rows_of(places, columns, "4 for the box, objectness, one a class")?;
        let scores = ClassScores::new(activation, None, classes);
        Ok(Yolox { rows, cells: cells(input, strides), activation, scores })
    }
}

impl Layout for Yolox {
    fn score(&self, outputs: &[&[f32]], candidates: &mut Candidates) {
        by_objectness(&self.rows, one_of(outputs), self.activation, &self.scores, candidates);
    }

    fn corners(&self, outputs: &[&[f32]], place: usize) -> [f32; 4] {
        let [x, y, width, height] = self.rows.four(one_of(outputs), place, 0);
        let Cell { column, row, stride } = self.cells[place];
        let sides = [ratio(width) * stride, ratio(height) * stride];
        around([(x + column) * stride, (y + row) * stride], sides)
    }
}

/// The only output's values.
pub(super) fn one_of<'a>(outputs: &[&'a [f32]]) -> &'a [f32] {
    outputs.first().copied().unwrap_or_default()
}

/// Scores rows of four values for the box, objectness, and one for each class.
pub(super) fn by_objectness(
    rows: &Rows,
    data: &[f32],
    activation: Activation,
    scores: &ClassScores,
    candidates: &mut Candidates,
) {
    // Neither factor exceeds 1, so that both must reach the threshold; what rounding may take away
    // from the second is let through.
    let least = candidates.threshold;
    let columns = 5..5 + scores.columns();
    for place in 0..rows.count {
        let object = activate(activation, rows.at(data, place, 4));
        if object >= least {
            let row = rows.row(data, place, columns.clone());
            candidates.add_place(place, scores, row, least, |class| object * class);
        }
    }
}

/// Distributions of the four sides' distances from a cell's centre.
#[derive(Debug)]
pub(super) struct Distribution {
    parts: Vec<Part>,
    cells: Vec<Cell>,
    bins: usize,
    offset: f32,
    scores: ClassScores,
}

/// Places whose scores and distances lie together.
#[derive(Debug)]
struct Part {
    /// The first place among all.
    first: usize,
    /// Which output holds the scores, and how.
    scores: (usize, Rows),
    /// Which output holds the distances, and how.
    distances: (usize, Rows),
    /// The first column of the distances.
    column: usize,
}

/// What a layout of distributions is told.
pub(super) struct DistributionSpec<'a> {
    pub(super) strides: &'a [u32],
    pub(super) bins: usize,
    pub(super) offset: f32,
    pub(super) activation: Activation,
}

impl Distribution {
    pub(super) fn new(
        outputs: &[Output],
        input: [u32; 2],
        classes: u16,
        spec: &DistributionSpec<'_>,
    ) -> Result<Distribution, BoxesError> {
        let &DistributionSpec { strides, bins, offset, activation } = spec;
        let scores = ClassScores::new(activation, None, classes);
        let (columns, sides) = (scores.columns(), 4 * bins);
        let counts = counts(input, strides);
        let all = counts.iter().sum();
        let pair = |first, count, at: usize, levels: usize| {
            let part = Part {
                first,
                scores: (at, outputs[at].rows_of(count, columns, "scores, one a class")?),
                distances: (
                    at + levels,
                    outputs[at + levels].rows_of(count, sides, "distances, `bins` a side")?,
                ),
                column: 0,
            };
            Ok(part)
        };
        let parts = match outputs {
            [both] => {
                let rows = both.rows_of(all, columns + sides, "scores, then distances")?;
                let both = (0, rows);
                vec![Part { first: 0, scores: both, distances: both, column: columns }]
            }
            [_, _] => vec![pair(0, all, 0, 1)?],
            _ if outputs.len() == 2 * strides.len() => {
                let mut first = 0;
                let mut parts = Vec::with_capacity(counts.len());
                for (level, &count) in counts.iter().enumerate() {
                    parts.push(pair(first, count, level, counts.len())?);
                    first += count;
                }
                parts
            }
            _ => {
                let levels = strides.len();
                let expected = format!(
                    "1, 2 or {}: scores and distances together, in two tensors, or of each of \
                     {levels} levels",
                    2 * levels
                );
                return Err(BoxesError::Count { expected, actual: outputs.len() });
            }
        };
        Ok(Distribution { parts, cells: cells(input, strides), bins, offset, scores })
    }

    /// The expected distance of one side, in cells.
    fn distance(&self, values: impl Iterator<Item = f32> + Clone) -> f32 {
        let greatest = values.clone().fold(f32::NEG_INFINITY, f32::max);
        let (mut sum, mut weighted) = (0.0, 0.0);
        for (bin, value) in values.enumerate() {
            let weight = (value - greatest).exp();
            sum += weight;
            weighted += weight * bin as f32;
        }
        weighted / sum
    }

    /// The part that holds a place.
    fn part(&self, place: usize) -> &Part {
        let after = self.parts.partition_point(|part| part.first <= place);
        &self.parts[after - 1]
    }
}

impl Layout for Distribution {
    fn score(&self, outputs: &[&[f32]], candidates: &mut Candidates) {
        let least = candidates.threshold;
        for part in &self.parts {
            let (at, rows) = part.scores;
            for place in 0..rows.count {
                let row = rows.row(outputs[at], place, 0..self.scores.columns());
                candidates.add_place(part.first + place, &self.scores, row, least, |score| score);
            }
        }
    }

    fn scores_in(&self, place: usize) -> usize {
        self.part(place).scores.0
    }

    fn boxes_in(&self, place: usize) -> usize {
        self.part(place).distances.0
    }

    fn corners(&self, outputs: &[&[f32]], place: usize) -> [f32; 4] {
        let part = self.part(place);
        let (at, rows) = part.distances;
        let Cell { column, row, stride } = self.cells[place];
        let (x, y) = ((column + self.offset) * stride, (row + self.offset) * stride);
        let [left, top, right, bottom]: [f32; 4] = std::array::from_fn(|side| {
            let first = part.column + side * self.bins;
            let values = rows.row(outputs[at], place - part.first, first..first + self.bins);
            self.distance(values) * stride
        });
        [x - left, y - top, x + right, y + bottom]
    }
}

/// FastestDet's single grid.
#[derive(Debug)]
pub(super) struct Fastestdet {
    /// Columns and rows of cells.
    grid: [usize; 2],
    /// Sides of the input (pixels).
    input: [f32; 2],
    /// Cells are the columns of `[5 + K, cells]`.
    cells: Rows,
    scores: ClassScores,
}

impl Fastestdet {
    pub(super) fn new(
        outputs: &[Output],
        input: [u32; 2],
        classes: u16,
    ) -> Result<Fastestdet, BoxesError> {
        let output = one(outputs, "objectness, box and classes of each cell")?;
        let channels = 5 + usize::from(classes);
        let [rows, columns] = output.grid(channels, "objectness, 4 for the box, one a class")?;
        Ok(Fastestdet {
            grid: [columns, rows],
            input: input.map(|side| side as f32),
            cells: Rows::of_grid(rows * columns),
            scores: ClassScores::new(Activation::None, None, classes),
        })
    }
}

impl Layout for Fastestdet {
    fn score(&self, outputs: &[&[f32]], candidates: &mut Candidates) {
        let data = one_of(outputs);
        // Both factors must reach the threshold after their powers; the margin is for rounding.
        let least = candidates.threshold.powf(2.5) * 0.999;
        for place in 0..self.cells.count {
            let object = self.cells.at(data, place, 0).max(0.0).powf(0.6);
            if object >= candidates.threshold {
                let row = self.cells.row(data, place, 5..5 + self.scores.columns());
                let combine = |class: f32| object * class.max(0.0).powf(0.4);
                candidates.add_place(place, &self.scores, row, least, combine);
            }
        }
    }

    fn corners(&self, outputs: &[&[f32]], place: usize) -> [f32; 4] {
        let [x, y, width, height] = self.cells.four(one_of(outputs), place, 1);
        let [columns, rows] = self.grid;
        let cell = |at: usize, offset: f32, count: usize, side: f32| {
            (at as f32 + offset.tanh()) * side / count as f32
        };
        let centre = [
            cell(place % columns, x, columns, self.input[0]),
            cell(place / columns, y, rows, self.input[1]),
        ];
        around(centre, [sigmoid(width) * self.input[0], sigmoid(height) * self.input[1]])
    }
}

/// Peaks of a heatmap.
#[derive(Debug)]
pub(super) struct Centernet {
    columns: usize,
    /// Cells are the columns of `[n, cells]`.
    cells: Rows,
    classes: u16,
    stride: f32,
    activation: Activation,
}

impl Centernet {
    pub(super) fn new(
        outputs: &[Output],
        input: [u32; 2],
        classes: u16,
        stride: u32,
        activation: Activation,
    ) -> Result<Centernet, BoxesError> {
        let [heat, size, offset] = outputs else {
            let expected = "3: heatmap, size and offset".into();
            return Err(BoxesError::Count { expected, actual: outputs.len() });
        };
        let [columns, rows] = grid(input, stride).map(|side| side as usize);
        let channels = [
            (heat, usize::from(classes), "heatmap, one channel a class"),
            (size, 2, "width and height"),
            (offset, 2, "offset of x and y"),
        ];
        for (output, channels, what) in channels {
            if output.grid(channels, what)? != [rows, columns] {
                return Err(output.needs(format!("[{channels}, {rows}, {columns}] ({what})")));
            }
        }
        let cells = Rows::of_grid(rows * columns);
        Ok(Centernet { columns, cells, classes, stride: stride as f32, activation })
    }

    /// Whether a cell's value is the greatest among it and its up to eight neighbours.
    fn is_peak(&self, heat: &[f32], place: usize) -> bool {
        let (column, row) = (place % self.columns, place / self.columns);
        let last = self.cells.count / self.columns - 1;
        (row.saturating_sub(1)..=(row + 1).min(last)).all(|y| {
            let first = y * self.columns;
            let near = column.saturating_sub(1)..=(column + 1).min(self.columns - 1);
            near.into_iter().all(|x| heat[first + x] <= heat[place])
        })
    }
}

impl Layout for Centernet {
    fn score(&self, outputs: &[&[f32]], candidates: &mut Candidates) {
        let maps = one_of(outputs).chunks_exact(self.cells.count);
        for (heat, class) in maps.zip(0..self.classes) {
            for (place, &value) in heat.iter().enumerate() {
                let score = activate(self.activation, value);
                if score >= candidates.threshold && self.is_peak(heat, place) {
                    candidates.add(place, class, score);
                }
            }
        }
    }

    fn boxes_in(&self, _place: usize) -> usize {
        1
    }

    fn corners(&self, outputs: &[&[f32]], place: usize) -> [f32; 4] {
        let [_, sizes, offsets] = outputs else { return [0.0; 4] };
        let [width, height] = pair(&self.cells, sizes, place);
        let [x, y] = pair(&self.cells, offsets, place);
        let (column, row) = ((place % self.columns) as f32, (place / self.columns) as f32);
        let centre = [(column + x) * self.stride, (row + y) * self.stride];
        around(centre, [width * self.stride, height * self.stride])
    }
}
