//! Reads the networks that a server holds from a folder of bundles.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use isthmus_models::{Bundle, BundleError, Engine, MANIFEST};
use isthmus_proto::BundleDigest;

use crate::bundle::BundleModel;
use crate::model::{Model, ModelError};
use crate::registry::Registry;

/// Why a model repository cannot be served. One bad bundle is enough: a server that quietly serves
/// fewer bundles than it was given is worse than one that does not start.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The folder cannot be listed.
    #[error("model repository {}: {source}", path.display())]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// No sub-folder holds a manifest.
    #[error("model repository {}: no sub-folder holds a manifest.toml", path.display())]
    Empty {
        /// The folder.
        path: PathBuf,
    },
    /// A bundle is incomplete, altered or malformed.
    #[error("bundle {}: {source}", path.display())]
    Bundle {
        /// The bundle's folder.
        path: PathBuf,
        /// Names the file.
        source: Box<BundleError>,
    },
    /// The engine cannot run a bundle's graphs.
    #[error("bundle {}: {source}", path.display())]
    Model {
        /// The bundle's folder.
        path: PathBuf,
        /// Names the graph.
        source: ModelError,
    },
    /// The same bundle lies in two folders.
    #[error("bundle {}: the same bundle (digest {digest}) lies in another folder too", path.display())]
    Twice {
        /// The second folder.
        path: PathBuf,
        /// The bundle's digest.
        digest: BundleDigest,
    },
}

impl Registry {
    /// Verifies and prepares every bundle in `repository`: each sub-folder with a `manifest.toml`,
    /// in order of name.
    pub fn open(repository: &Path, engine: &Arc<dyn Engine>) -> Result<Self, RegistryError> {
        let mut models: Vec<Arc<dyn Model>> = Vec::new();
        let mut digests = BTreeSet::new();
        for path in bundles_of(repository)? {
            let bundle = Bundle::open(&path).map_err(|source| RegistryError::Bundle {
                path: path.clone(),
                source: Box::new(source),
            })?;
            let digest = bundle.digest();
            if !digests.insert(digest) {
                return Err(RegistryError::Twice { path, digest });
            }
            let model = BundleModel::load(Arc::new(bundle), Arc::clone(engine))
                .map_err(|source| RegistryError::Model { path, source })?;
            models.push(Arc::new(model));
        }
        match models.is_empty() {
            true => Err(RegistryError::Empty { path: repository.to_owned() }),
            false => Ok(Registry::new(models)),
        }
    }
}

fn bundles_of(repository: &Path) -> Result<Vec<PathBuf>, RegistryError> {
    let unreadable = |source| RegistryError::Unreadable { path: repository.to_owned(), source };
    let entries = fs::read_dir(repository).map_err(unreadable)?;
    let mut bundles = Vec::new();
    for entry in entries {
        let path = entry.map_err(unreadable)?.path();
        match path.is_dir().then(|| path.join(MANIFEST).try_exists()) {
            None => {}
            Some(Ok(false)) => tracing::warn!(path = %path.display(), "no {MANIFEST}: not served"),
            // A folder that cannot be looked into is an error when it is opened.
            Some(Ok(true) | Err(_)) => bundles.push(path),
        }
    }
    bundles.sort();
    Ok(bundles)
}
