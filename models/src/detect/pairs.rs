//! Layouts of a tensor of scores and one of boxes.

use super::candidates::{Candidates, ClassScores};
use super::error::BoxesError;
use super::grids::{grid, ratio};
use super::layout::{Layout, around};
use super::spec::{Activation, Background, BoxForm, PriorLevel};
use super::tensors::{Output, Rows};

/// Scores and boxes, one row of each a place.
#[derive(Debug)]
pub(super) struct Pairs {
    score_rows: Rows,
    scores: ClassScores,
    box_rows: Rows,
    boxes: Boxes,
    /// What coordinates are multiplied with: width and height of the input, or 1.
    sides: [f32; 2],
}

/// What the boxes' four values are.
#[derive(Debug)]
enum Boxes {
    Corners,
    Centres,
    Offsets { variances: [f32; 2], priors: Priors },
}

/// Centre and size of the priors, as parts of the input's sides.
#[derive(Debug)]
enum Priors {
    Made(Vec<[f32; 4]>),
    /// Rows of the third output.
    Given(Rows),
}

/// How a tensor of scores becomes scores.
#[derive(Clone, Copy)]
pub(super) struct PairScores {
    pub(super) activation: Activation,
    pub(super) background: Option<Background>,
    pub(super) classes: u16,
}

/// How a tensor of boxes becomes boxes.
pub(super) struct PairBoxes<'a> {
    pub(super) form: BoxForm,
    pub(super) normalised: bool,
    pub(super) variances: [f32; 2],
    pub(super) priors: &'a [PriorLevel],
    pub(super) clip: bool,
}

impl Pairs {
    pub(super) fn new(
        outputs: &[Output],
        input: [u32; 2],
        scores: PairScores,
        boxes: &PairBoxes<'_>,
    ) -> Result<Pairs, BoxesError> {
        let given_priors = boxes.form == BoxForm::Offsets && boxes.priors.is_empty();
        let (all_scores, all_boxes, priors) = match (outputs, given_priors) {
            ([scores, boxes], false) => (scores, boxes, None),
            ([scores, boxes, priors], true) => (scores, boxes, Some(priors)),
            _ => {
                let expected = match given_priors {
                    true => "3: scores, boxes and priors",
                    false => "2: scores and boxes",
                };
                return Err(BoxesError::Count { expected: expected.into(), actual: outputs.len() });
            }
        };
        let PairScores { activation, background, classes } = scores;
        let scores = ClassScores::new(activation, background, classes);
        let what = match background {
            Some(_) => "scores, one a class and the background",
            None => "scores, one a class",
        };
        let box_rows = all_boxes.rows(4, "boxes", false)?;
        let count = box_rows.count;
        let score_rows = all_scores.rows_of(count, scores.columns(), what)?;
        let priors = match priors {
            Some(priors) => Priors::Given(priors.rows_of(count, 4, "priors")?),
            None => Priors::Made(priors_of(boxes, input, all_boxes, count)?),
        };
        let form = match boxes.form {
            BoxForm::Corners => Boxes::Corners,
            BoxForm::Centres => Boxes::Centres,
            BoxForm::Offsets => Boxes::Offsets { variances: boxes.variances, priors },
        };
        let normalised = boxes.normalised || boxes.form == BoxForm::Offsets;
        let sides = input.map(|side| if normalised { side as f32 } else { 1.0 });
        Ok(Pairs { score_rows, scores, box_rows, boxes: form, sides })
    }
}

/// The priors that are made for `boxes`, if any: as many as there are places.
fn priors_of(
    boxes: &PairBoxes<'_>,
    input: [u32; 2],
    output: &Output,
    count: usize,
) -> Result<Vec<[f32; 4]>, BoxesError> {
    if boxes.form != BoxForm::Offsets {
        return Ok(Vec::new());
    }
    let cells = |level: &PriorLevel| match (level.stride, level.grid) {
        (Some(stride), _) => grid(input, stride),
        (None, Some(grid)) => grid,
        (None, None) => [0, 0],
    };
    let made = |level| {
        let [columns, rows] = cells(level).map(u64::from);
        columns * rows * level.sizes.len() as u64
    };
    // Counted before memory is taken for them.
    let needed: u64 = boxes.priors.iter().map(made).sum();
    if needed != count as u64 {
        return Err(output.needs(format!("[{needed}, 4] (boxes, one for each prior)")));
    }
    let mut all = Vec::with_capacity(count);
    for level in boxes.priors {
        let [columns, rows] = cells(level);
        // The distance of two cells, as a part of the input's side.
        let step = |side: u32, cells: u32| match level.stride {
            Some(stride) => stride as f32 / side as f32,
            None => 1.0 / cells as f32,
        };
        let (across, down) = (step(input[0], columns), step(input[1], rows));
        for row in 0..rows {
            for column in 0..columns {
                let (x, y) = ((column as f32 + 0.5) * across, (row as f32 + 0.5) * down);
                all.extend(level.sizes.iter().map(|[width, height]| {
                    let prior = [x, y, width / input[0] as f32, height / input[1] as f32];
                    if boxes.clip { prior.map(|part| part.clamp(0.0, 1.0)) } else { prior }
                }));
            }
        }
    }
    Ok(all)
}

impl Layout for Pairs {
    fn score(&self, outputs: &[&[f32]], candidates: &mut Candidates) {
        let least = candidates.threshold;
        for place in 0..self.score_rows.count {
            let row = self.score_rows.row(outputs[0], place, 0..self.scores.columns());
            candidates.add_place(place, &self.scores, row, least, |score| score);
        }
    }

    fn boxes_in(&self, _place: usize) -> usize {
        1
    }

    fn corners(&self, outputs: &[&[f32]], place: usize) -> [f32; 4] {
        let values = self.box_rows.four(outputs[1], place, 0);
        let corners = match &self.boxes {
            Boxes::Corners => values,
            Boxes::Centres => around([values[0], values[1]], [values[2], values[3]]),
            Boxes::Offsets { variances: [of_centre, of_size], priors } => {
                let [x, y, width, height] = match priors {
                    Priors::Made(priors) => priors[place],
                    Priors::Given(rows) => rows.four(outputs[2], place, 0),
                };
                let [dx, dy, dw, dh] = values;
                let centre = [x + dx * of_centre * width, y + dy * of_centre * height];
                around(centre, [width * ratio(dw * of_size), height * ratio(dh * of_size)])
            }
        };
        let [width, height] = self.sides;
        let sides = [width, height, width, height];
        std::array::from_fn(|at| corners[at] * sides[at])
    }
}
