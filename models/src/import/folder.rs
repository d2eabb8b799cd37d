//! The folder of a bundle while it is written: every file gets its length and SHA-256 in the manifest.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use isthmus_proto::BundleDigest;
use sha2::{Digest, Sha256};

use super::error::ImportError;
use crate::bundle::MANIFEST;
use crate::manifest::{FileSpec, Manifest};

/// A bundle's folder while it is written.
pub(super) struct Folder {
    root: PathBuf,
    files: BTreeMap<String, FileSpec>,
}

impl Folder {
    pub(super) fn create(root: &Path) -> Result<Folder, ImportError> {
        let io = |source| ImportError::Io { file: root.to_owned(), source };
        match fs::remove_dir_all(root) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io(error)),
            _ => {}
        }
        for folder in ["onnx", "tables", "goldens"] {
            fs::create_dir_all(root.join(folder)).map_err(io)?;
        }
        Ok(Folder { root: root.to_owned(), files: BTreeMap::new() })
    }

    /// Writes a file and gives its name.
    pub(super) fn put(&mut self, name: String, bytes: &[u8]) -> Result<String, ImportError> {
        let file = self.root.join(&name);
        fs::write(&file, bytes).map_err(|source| ImportError::Io { file, source })?;
        let sha256 = BundleDigest(Sha256::digest(bytes).into()).to_string();
        self.files.insert(name.clone(), FileSpec { bytes: bytes.len() as u64, sha256 });
        Ok(name)
    }

    /// Writes the manifest with all files that were put so far.
    pub(super) fn write_manifest(&self, manifest: &mut Manifest) -> Result<(), ImportError> {
        manifest.files.clone_from(&self.files);
        let text = toml::to_string(manifest)?;
        Manifest::parse(&text)?;
        let file = self.root.join(MANIFEST);
        fs::write(&file, text).map_err(|source| ImportError::Io { file, source })
    }
    /// Writes the text for people, which the manifest does not list.
    pub(super) fn write_card(&self, card: &str) -> Result<(), ImportError> {
        let file = self.root.join("MODEL_CARD.md");
        fs::write(&file, card).map_err(|source| ImportError::Io { file, source })
    }
}
