//! Scores that are enough, before it is asked which boxes they belong to.

use std::cmp::Ordering;

use super::spec::{Activation, Background};

/// A box that scores enough.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Candidate {
    /// Score, above 0.
    pub(super) score: f32,
    /// Class.
    pub(super) class: u16,
    /// Place, in the layout's order.
    pub(super) place: usize,
}

/// Collects the boxes that score enough.
#[derive(Debug)]
pub(super) struct Candidates {
    /// Lowest score that is enough, 0..=1.
    pub(super) threshold: f32,
    every_class: bool,
    found: Vec<Candidate>,
}

impl Candidates {
    pub(super) fn new(threshold: f32, every_class: bool) -> Candidates {
        Candidates { threshold, every_class, found: Vec::new() }
    }

    /// Adds a box that scores enough; others are not kept.
    pub(super) fn add(&mut self, place: usize, class: u16, score: f32) {
        if score >= self.threshold && score > 0.0 {
            self.found.push(Candidate { score, class, place });
        }
    }

    /// Adds the boxes of a place, from what the network says of its classes: each, or the
    /// likeliest alone. A class's score is `combine` of what `scores` make of its value; values
    /// that score less than `least` before that need not be looked at.
    pub(super) fn add_place(
        &mut self,
        place: usize,
        scores: &ClassScores,
        row: impl Iterator<Item = f32> + Clone,
        least: f32,
        combine: impl Fn(f32) -> f32,
    ) {
        if self.every_class {
            scores.each(row, least, |class, score| self.add(place, class, combine(score)));
            return;
        }
        let mut best: Option<(u16, f32)> = None;
        scores.each(row, least, |class, score| {
            if best.is_none_or(|(_, greatest)| score > greatest) {
                best = Some((class, score));
            }
        });
        if let Some((class, score)) = best {
            self.add(place, class, combine(score));
        }
    }

    /// The `most` best, best first; of equals the lower class, then the earlier place first.
    pub(super) fn best(mut self, most: usize) -> Vec<Candidate> {
        if self.found.len() > most {
            self.found.select_nth_unstable_by(most, order);
            self.found.truncate(most);
        }
        self.found.sort_unstable_by(order);
        self.found
    }
}

fn order(a: &Candidate, b: &Candidate) -> Ordering {
    b.score.total_cmp(&a.score).then(a.class.cmp(&b.class)).then(a.place.cmp(&b.place))
}

/// How a place's values become its classes' scores.
#[derive(Clone, Copy, Debug)]
pub(super) struct ClassScores {
    activation: Activation,
    background: Option<Background>,
    classes: usize,
}

impl ClassScores {
    pub(super) fn new(
        activation: Activation,
        background: Option<Background>,
        classes: u16,
    ) -> ClassScores {
        ClassScores { activation, background, classes: usize::from(classes) }
    }

    /// Values of a place.
    pub(super) fn columns(&self) -> usize {
        self.classes + usize::from(self.background.is_some())
    }

    /// Gives `put` each class with its score; those below `least` may be left out.
    fn each(
        &self,
        row: impl Iterator<Item = f32> + Clone,
        least: f32,
        mut put: impl FnMut(u16, f32),
    ) {
        let before = usize::from(self.background == Some(Background::First));
        let classes = row.clone().skip(before).take(self.classes).zip(0u16..);
        match self.activation {
            Activation::None => {
                classes.filter(|(v, _)| *v >= least).for_each(|(v, class)| put(class, v));
            }
            Activation::Sigmoid => {
                // An exponential for each value would take longer than all the rest. The margin
                // is for the rounding of the logarithm.
                let least = least.min(0.99);
                let least = (least / (1.0 - least)).ln() - 0.01;
                let classes = classes.filter(|(v, _)| *v >= least);
                classes.for_each(|(v, class)| put(class, sigmoid(v)));
            }
            Activation::Softmax => {
                let greatest = row.clone().fold(f32::NEG_INFINITY, f32::max);
                let sum: f32 = row.map(|v| (v - greatest).exp()).sum();
                classes.for_each(|(v, class)| put(class, (v - greatest).exp() / sum));
            }
        }
    }
}

/// 1 / (1 + exp(−value)).
pub(super) fn sigmoid(value: f32) -> f32 {
    1.0 / (1.0 + (-value).exp())
}

/// What a single value becomes; there is nothing for a softmax to share it with.
pub(super) fn activate(activation: Activation, value: f32) -> f32 {
    match activation {
        Activation::Sigmoid => sigmoid(value),
        Activation::None | Activation::Softmax => value,
    }
}
