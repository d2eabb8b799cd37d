//! Results as files: each says what it is, how it was made, and whether it is whole.
//!
//! A file holds the [`Cell`]s of one scenario: a controller, or the oracle, with one seed each.
//! Files of the same scenario are read together as [`Comparison`]s, wherever their cells were run.

mod cell;
mod comparison;
pub mod csv;
mod file;
#[cfg(test)]
mod tests;
mod timeline;

pub use cell::{Cell, Outcome, SimulatedRun};
pub use comparison::{Comparison, Conflict, Summary};
pub use file::{COMMIT, Origin, Results, ResultsError, VERSION};
pub use timeline::{AnswerArm, Timeline, point_name};

/// Where `name` is among `names`, to which it is added if it is new.
fn place(names: &mut Vec<String>, name: &str) -> usize {
    names.iter().position(|known| known == name).unwrap_or_else(|| {
        names.push(name.to_owned());
        names.len() - 1
    })
}
