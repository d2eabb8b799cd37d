//! The bundle and the pictures that figures are measured on.

use std::path::PathBuf;
use std::sync::Arc;

use isthmus_models::{Bundle, Tract};
use isthmus_simulator::bundles;
use isthmus_simulator::figures::Lab;

use super::truth;

/// What is measured on.
#[derive(Clone, Debug, clap::Args)]
pub struct Subject {
    /// Bundle by name (models/bundles), or a bundle's folder.
    #[arg(long, value_name = "NAME|DIR", default_value = "photos")]
    bundle: PathBuf,
    /// Folder of pictures, instead of the built-in camera's frames; quality needs it, of classes with a
    /// folder for each.
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// Number of pictures to measure quality on [default: all]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    #[command(flatten)]
    pub truth: truth::Args,
}

impl Subject {
    /// Opens the bundle and sets up what measures it.
    pub fn lab(&self) -> anyhow::Result<Lab> {
        let bundle = Arc::new(Bundle::open(&bundles::find(&self.bundle)?)?);
        let lab = Lab::new(bundle, Arc::new(Tract), self.images.clone(), self.limit);
        Ok(match self.truth.file()? {
            Some(truth) => lab.with_truth(truth),
            None => lab,
        })
    }
}
