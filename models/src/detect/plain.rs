//! Layouts whose boxes need little more than to be read.

use super::candidates::{Candidates, ClassScores};
use super::error::{BoxesDecodeError, BoxesError};
use super::grids::{by_objectness, one_of};
use super::layout::{Layout, around, one};
use super::spec::{Activation, Column};
use super::tensors::{Output, Rows};

/// Centre and size in pixels, and classes, with or without an objectness before them.
#[derive(Debug)]
pub(super) struct Decoded {
    rows: Rows,
    /// What is applied to the objectness, where there is one.
    objectness: Option<Activation>,
    scores: ClassScores,
}

impl Decoded {
    pub(super) fn new(
        outputs: &[Output],
        classes: u16,
        activation: Activation,
        objectness: bool,
    ) -> Result<Decoded, BoxesError> {
        let what = match objectness {
            true => "4 for the box, objectness, one a class",
            false => "4 for the box, one a class",
        };
        let output = one(outputs, "box and scores of each place")?;
        let columns = 4 + usize::from(objectness) + usize::from(classes);
        let rows = output.rows(columns, what, !objectness)?;
        let scores = ClassScores::new(activation, None, classes);
        Ok(Decoded { rows, objectness: objectness.then_some(activation), scores })
    }
}

impl Layout for Decoded {
    fn score(&self, outputs: &[&[f32]], candidates: &mut Candidates) {
        let data = one_of(outputs);
        if let Some(activation) = self.objectness {
            return by_objectness(&self.rows, data, activation, &self.scores, candidates);
        }
        let least = candidates.threshold;
        for place in 0..self.rows.count {
            let row = self.rows.row(data, place, 4..4 + self.scores.columns());
            candidates.add_place(place, &self.scores, row, least, |score| score);
        }
    }

    fn corners(&self, outputs: &[&[f32]], place: usize) -> [f32; 4] {
        let [x, y, width, height] = self.rows.four(one_of(outputs), place, 0);
        around([x, y], [width, height])
    }
}

/// Boxes that were suppressed in the graph.
#[derive(Debug)]
pub(super) struct Suppressed {
    /// Name of the output that holds the classes.
    name: String,
    rows: Rows,
    /// Columns of the corners.
    corners: [usize; 4],
    /// Columns of score and class, where they lie in the same tensor.
    said: Option<[usize; 2]>,
    /// What corners are multiplied with: width and height.
    sides: [f32; 2],
    first_class: u16,
    classes: u16,
}

impl Suppressed {
    pub(super) fn new(
        outputs: &[Output],
        columns: &[Column],
        sides: [f32; 2],
        [first_class, classes]: [u16; 2],
    ) -> Result<Suppressed, BoxesError> {
        use Column::{Class, Score, X0, X1, Y0, Y1};
        let usual = [X0, Y0, X1, Y1, Score, Class];
        let needed = match outputs.len() {
            1 => &usual[..],
            _ => &usual[..4],
        };
        let columns = if columns.is_empty() { needed } else { columns };
        let find = |wanted: &Column| {
            let mut found = columns.iter().enumerate().filter(|(_, column)| *column == wanted);
            match (found.next(), found.next()) {
                (Some((at, _)), None) => Ok(at),
                _ => Err(BoxesError::Value {
                    key: "columns".into(),
                    problem: format!("{wanted:?} must be among them once").to_lowercase(),
                }),
            }
        };
        let found = needed.iter().map(find).collect::<Result<Vec<usize>, BoxesError>>()?;
        let (boxes, said, name) = match outputs {
            [all] => (all, Some([found[4], found[5]]), all),
            [boxes, scores, classes] => {
                let count = boxes.rows(columns.len(), "boxes", false)?.count;
                scores.one_each(count, "scores")?;
                classes.one_each(count, "classes")?;
                (boxes, None, classes)
            }
            _ => {
                let expected = "1: all columns, or 3: boxes, scores and classes".into();
                return Err(BoxesError::Count { expected, actual: outputs.len() });
            }
        };
        let name = name.name.clone();
        let rows = boxes.rows(columns.len(), "one for each of `columns`", false)?;
        let corners = [found[0], found[1], found[2], found[3]];
        Ok(Suppressed { name, rows, corners, said, sides, first_class, classes })
    }

    /// Score and class at a place.
    fn said(&self, outputs: &[&[f32]], place: usize) -> (f32, f32) {
        match (self.said, outputs) {
            (Some([score, class]), &[data]) => {
                (self.rows.at(data, place, score), self.rows.at(data, place, class))
            }
            (None, &[_, scores, classes]) => (scores[place], classes[place]),
            _ => (0.0, 0.0),
        }
    }

    /// The label of a class of the network.
    fn label(&self, class: f32) -> Option<u16> {
        let label = class - f32::from(self.first_class);
        let fits = label >= 0.0 && label < f32::from(self.classes) && label.fract() == 0.0;
        fits.then_some(label as u16)
    }
}

impl Layout for Suppressed {
    /// Rows that score too little may hold anything: graphs fill up with them.
    fn check(&self, outputs: &[&[f32]], threshold: f32) -> Result<(), BoxesDecodeError> {
        for place in 0..self.rows.count {
            let (score, class) = self.said(outputs, place);
            if score >= threshold && score > 0.0 && self.label(class).is_none() {
                return Err(BoxesDecodeError::Class {
                    tensor: self.name.clone(),
                    place,
                    class,
                    first: self.first_class.into(),
                    last: u32::from(self.first_class) + u32::from(self.classes) - 1,
                });
            }
        }
        Ok(())
    }

    fn score(&self, outputs: &[&[f32]], candidates: &mut Candidates) {
        for place in 0..self.rows.count {
            let (score, class) = self.said(outputs, place);
            if let Some(label) = self.label(class) {
                candidates.add(place, label, score);
            }
        }
    }

    fn scores_in(&self, _place: usize) -> usize {
        usize::from(self.said.is_none())
    }

    fn corners(&self, outputs: &[&[f32]], place: usize) -> [f32; 4] {
        let data = outputs.first().copied().unwrap_or_default();
        let [width, height] = self.sides;
        let sides = [width, height, width, height];
        std::array::from_fn(|at| self.rows.at(data, place, self.corners[at]) * sides[at])
    }
}
