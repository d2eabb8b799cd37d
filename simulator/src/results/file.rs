//! A file of results: its form, and how it is written and read.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::cell::{Cell, Outcome};
use crate::digest::digest;
use crate::scenario::{Prepared, Scenario};
use crate::whole_file::WholeFile;

/// Version of the files that are written and read.
pub const VERSION: u32 = 1;

/// The commit that this program was built from: with `+` if the sources differed from it, `unknown`
/// if there was no repository.
pub const COMMIT: &str = env!("ISTHMUS_COMMIT");

/// How every file begins: the digest of what follows it is next.
pub(super) const START: &str = "{\"isthmus_results\":1,\"sha256\":\"";
pub(super) const MIDDLE: &str = "\",\"content\":";
pub(super) const END: &str = "}\n";

/// Why a file holds no results.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// It cannot be read or written.
    #[error("{}: {cause}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// It is something else, or of another version.
    #[error(
        "{}: no results of version {VERSION}; a file that `simulator run -o` or `simulator sweep` \
         wrote is expected",
        file.display()
    )]
    Format {
        /// The file.
        file: PathBuf,
    },
    /// It was cut short or changed: its digest is another.
    #[error("{}: damaged, its digest is not that of its content", file.display())]
    Damaged {
        /// The file.
        file: PathBuf,
    },
    /// Its content is whole, but contradicts itself or lacks something.
    #[error("{}: {problem}", file.display())]
    Content {
        /// The file.
        file: PathBuf,
        /// What was found and what is expected.
        problem: String,
    },
}

/// The content of a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Results {
    /// Version of the simulator.
    pub simulator: String,
    /// Commit that it was built from ([`COMMIT`]).
    pub commit: String,
    /// A command that makes these cells again.
    pub command: String,
    /// What was simulated.
    pub scenario: Origin,
    /// Its results.
    pub cells: Vec<Cell>,
}

/// The scenario of results.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Origin {
    /// The file's name without its extension.
    pub name: String,
    /// The file's text.
    pub text: String,
    /// Frames of all cameras that a run captures.
    pub frames: u64,
    /// From capture to output (µs).
    pub deadline_us: u64,
}

impl Origin {
    /// The scenario in `file`, whose text is `text`.
    pub fn new(file: &Path, text: &str, prepared: &Prepared) -> Origin {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let deadline_us = (prepared.scenario().deadline_ms * 1e3).round() as u64;
        Origin { name, text: text.to_owned(), frames: prepared.frames(), deadline_us }
    }

    /// What the scenario says it is; its name where its text is none.
    pub fn description(&self) -> String {
        let scenario = toml::from_str::<Scenario>(&self.text);
        scenario.map_or_else(|_| self.name.clone(), |scenario| scenario.description)
    }
}

impl Results {
    /// `cells` of a scenario, which `command` makes again.
    pub fn new(scenario: Origin, command: String, cells: Vec<Cell>) -> Results {
        let simulator = env!("CARGO_PKG_VERSION").to_owned();
        Results { simulator, commit: COMMIT.to_owned(), command, scenario, cells }
    }

    /// The file's text; equal results have equal texts.
    pub(super) fn to_text(&self) -> serde_json::Result<String> {
        let content = serde_json::to_string(self)?;
        Ok(format!("{START}{}{MIDDLE}{content}{END}", digest(content.as_bytes())))
    }

    /// Writes a file, whole or not at all: it takes its name only when all of it is on the disk.
    pub fn write(&self, file: &Path) -> Result<(), ResultsError> {
        let failed = |cause| ResultsError::Io { file: file.to_owned(), cause };
        let text = self.to_text().map_err(|error| failed(error.into()))?;
        let mut whole = WholeFile::create(file).map_err(failed)?;
        whole.write_all(text.as_bytes()).map_err(failed)?;
        whole.finish().map_err(failed)?;
        Ok(())
    }

    /// Reads a file, and checks that it is whole.
    pub fn read(file: &Path) -> Result<Results, ResultsError> {
        let text = fs::read_to_string(file)
            .map_err(|cause| ResultsError::Io { file: file.to_owned(), cause })?;
        Self::parse(&text, file)
    }

    pub(super) fn parse(text: &str, file: &Path) -> Result<Results, ResultsError> {
        let file = || file.to_owned();
        let start = text.strip_prefix(START);
        let rest = start.ok_or_else(|| match text.is_empty() || START.starts_with(text) {
            // As much as there is of it may be its beginning.
            true => ResultsError::Damaged { file: file() },
            false => ResultsError::Format { file: file() },
        })?;
        let parts = rest.split_once(MIDDLE);
        let parts = parts.and_then(|(digest, rest)| Some((digest, rest.strip_suffix(END)?)));
        let whole = parts.filter(|(expected, content)| digest(content.as_bytes()) == *expected);
        let (_, content) = whole.ok_or_else(|| ResultsError::Damaged { file: file() })?;
        let problem = |problem: String| ResultsError::Content { file: file(), problem };
        let results: Results =
            serde_json::from_str(content).map_err(|error| problem(error.to_string()))?;
        for cell in &results.cells {
            if let Outcome::Run(run) = &cell.outcome {
                run.timeline.check().map_err(problem)?;
            }
        }
        Ok(results)
    }
}
