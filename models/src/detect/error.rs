//! Why outputs cannot become boxes.

/// Why a decoder of boxes was refused: by its parameters, or by the outputs that it was to read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BoxesError {
    /// A parameter that cannot be meant.
    #[error("{key}: {problem}")]
    Value {
        /// The key in `[decoders.boxes]`.
        key: String,
        /// What was found and what is needed.
        problem: String,
    },
    /// Another number of outputs than the layout reads.
    #[error(
        "{actual} outputs where the layout needs {expected}; `tensors` names those that it reads, \
         in its order"
    )]
    Count {
        /// How many are needed, and which.
        expected: String,
        /// Outputs given.
        actual: usize,
    },
    /// An output of another shape than the layout reads.
    #[error("{tensor}: has shape {actual:?} where {expected} is needed")]
    Shape {
        /// The output's name.
        tensor: String,
        /// The shape needed, and what it is.
        expected: String,
        /// The shape found, without the batch.
        actual: Vec<usize>,
    },
}

/// Why a network's outputs gave no boxes.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BoxesDecodeError {
    /// Another number of outputs than the decoder was made for.
    #[error("{actual} outputs given where the decoder was made for {expected}")]
    Count {
        /// Outputs needed.
        expected: usize,
        /// Outputs given.
        actual: usize,
    },
    /// An output of another length than its shape has places.
    #[error("{tensor}: {actual} values given where {expected} are needed")]
    Length {
        /// The output's name.
        tensor: String,
        /// Values needed.
        expected: usize,
        /// Values given.
        actual: usize,
    },
    /// NaN, or an infinite value.
    #[error("{tensor}: {value} at {place:?}; scores and coordinates must be finite")]
    NotFinite {
        /// The output's name.
        tensor: String,
        /// Where, one index for each dimension.
        place: Vec<usize>,
        /// What was found.
        value: f32,
    },
    /// A score above 1.
    #[error(
        "{tensor}: place {place} has score {score} for class {class}; 0 to 1 is needed, so that \
         logits need an `activation`"
    )]
    Score {
        /// The name of the output that holds it.
        tensor: String,
        /// The place, in the layout's order.
        place: usize,
        /// The class.
        class: u16,
        /// What was found.
        score: f32,
    },
    /// A class that no label has.
    #[error(
        "{tensor}: place {place} has class {class}; {first} to {last} in whole numbers have labels"
    )]
    Class {
        /// The name of the output that holds it.
        tensor: String,
        /// The place, in the layout's order.
        place: usize,
        /// What was found.
        class: f32,
        /// The first label's class.
        first: u32,
        /// The last label's class.
        last: u32,
    },
    /// Values so great that a box's corners have no number.
    #[error("{tensor}: place {place} gives a box without end")]
    Endless {
        /// The name of the output that holds it.
        tensor: String,
        /// The place, in the layout's order.
        place: usize,
    },
    /// A threshold that is no fraction.
    #[error("threshold {0} must be 0 to 1")]
    Threshold(f32),
}

pub(super) fn value(key: &str, problem: impl Into<String>) -> BoxesError {
    BoxesError::Value { key: key.to_owned(), problem: problem.into() }
}
