//! What is really in pictures, for networks that find boxes.

use std::path::PathBuf;

use isthmus_head_client::config::{ConfigError, renamed};
use isthmus_simulator::figures::TruthFile;

/// Where the true boxes stand.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// True boxes of the pictures, for networks that find some: COCO JSON, or a file of class names, one a
    /// line, with YOLO's text files by the pictures.
    #[arg(long, value_name = "FILE")]
    truth: Option<PathBuf>,
    /// Labels for categories of --truth that the bundle calls otherwise, such as motorbike=motorcycle;
    /// person= leaves a category out.
    #[arg(long, value_name = "CATEGORY=LABEL,…", value_delimiter = ',', requires = "truth")]
    relabel: Vec<String>,
}

impl Args {
    /// The truth, where it was given.
    pub fn file(&self) -> Result<Option<TruthFile>, ConfigError> {
        let renamed = renamed(&self.relabel)?;
        Ok(self.truth.clone().map(|file| TruthFile { file, renamed }))
    }
}
