//! Why a network was not imported.

use std::io;
use std::path::PathBuf;

use isthmus_proto::{CodecError, QuantiserError};

use crate::answer::AnswerError;
use crate::bundle::{BundleError, MANIFEST};
use crate::cut::CutError;
use crate::engine::EngineError;
use crate::manifest::ManifestError;
use crate::outcomes::{OUTCOMES, OutcomesError};
use crate::picture::PictureError;
use crate::prepared::{LoadError, RunError};

/// Why no bundle was written.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    /// Something is where the bundle should go.
    #[error("{}: is there already", .0.display())]
    Exists(PathBuf),
    /// A file or folder that cannot be read or written.
    #[error("{}: {source}", file.display())]
    Io {
        /// The file or folder.
        file: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Pictures, but none to calibrate with.
    #[error("none of the {0} pictures to calibrate with can be read")]
    NothingToCalibrate(usize),
    /// Depths or channel counts that no bundle can have.
    #[error("{0}")]
    Value(String),
    /// The cut is not there.
    #[error(transparent)]
    Cut(#[from] CutError),
    /// The head does not load or run.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// Outputs that do not make an answer of the task.
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// A name or label that no manifest can have.
    #[error("{MANIFEST}: {0}")]
    Manifest(#[from] ManifestError),
    /// The manifest has no form in TOML.
    #[error("{MANIFEST}: {0}")]
    Toml(#[from] toml::ser::Error),
    /// Latents that no quantiser can take.
    #[error("calibration: {0}")]
    Quantiser(#[from] QuantiserError),
    /// The written bundle does not open.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// One of its graphs does not load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// One of its graphs does not run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Its codec does not take what its head gives.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// No picture for the reference values.
    #[error(transparent)]
    Picture(#[from] PictureError),
    /// The measured outcomes make no record.
    #[error("{OUTCOMES}: {0}")]
    Outcomes(#[from] OutcomesError),
}
