//! Why there is no truth about pictures.

use std::io;
use std::path::PathBuf;

/// Why a file of truth was refused, or tells nothing about a picture.
#[derive(Debug, thiserror::Error)]
pub enum TruthError {
    /// A file that cannot be read.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// A file that is too large.
    #[error("{}: larger than {most} bytes", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// Most bytes.
        most: u64,
    },
    /// No JSON, or a key that is missing or of the wrong type.
    #[error("{}: {problem}", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// What was found and where.
        problem: String,
    },
    /// An entry of a JSON file that cannot be meant.
    #[error("{}: {entry}: {problem}", file.display())]
    Entry {
        /// The file.
        file: PathBuf,
        /// The list and the place in it, counted from 0: `annotations[17]`.
        entry: String,
        /// What was found and what is needed.
        problem: String,
    },
    /// A line of a text file that cannot be meant.
    #[error("{}:{line}: {problem}", file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What was found and what is needed.
        problem: String,
    },
    /// No picture has a text file.
    #[error(
        "none of the {pictures} pictures has its boxes in a .txt file beside it or in a folder \
         `labels`, such as {}", expected.display()
    )]
    NoFiles {
        /// How many pictures there are.
        pictures: usize,
        /// Where the first one's could be.
        expected: PathBuf,
    },
    /// A category with boxes that the bundle has no label for.
    #[error(
        "category {category:?} has no label; there are {labels}. Give it one ({category}=LABEL) \
         or leave its boxes out ({category}=)"
    )]
    NoLabel {
        /// The category.
        category: String,
        /// All labels.
        labels: String,
    },
    /// A category that was to be renamed and is not there.
    #[error("there is no category {category:?} to give a label; there are {names}")]
    UnknownCategory {
        /// The category.
        category: String,
        /// All categories.
        names: String,
    },
    /// A label that a category was to have and is not there.
    #[error("there is no label {label:?}; there are {labels}")]
    UnknownLabel {
        /// The label.
        label: String,
        /// All labels.
        labels: String,
    },
    /// A picture that nothing is known of.
    #[error("{}: nothing is known of this picture", picture.display())]
    NoTruth {
        /// The picture.
        picture: PathBuf,
    },
    /// A picture of another size than its boxes are for.
    #[error(
        "{}: has {} × {} pixels, and its boxes are for {} × {}",
        picture.display(), actual[0], actual[1], drawn[0], drawn[1]
    )]
    Size {
        /// The picture.
        picture: PathBuf,
        /// Width and height that the boxes are for (pixels).
        drawn: [u32; 2],
        /// Width and height of the picture (pixels).
        actual: [u32; 2],
    },
}
