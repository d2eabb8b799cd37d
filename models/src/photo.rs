//! Picture files in folders, with the class that a folder's name gives them.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use crate::picture::Picture;

/// Largest picture file that is read (bytes).
pub const MAX_PICTURE_BYTES: usize = 64 << 20;

/// Why a folder gives no pictures.
#[derive(Debug, thiserror::Error)]
pub enum PhotoError {
    /// A folder that cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A folder without pictures.
    #[error("{}: no picture (.jpg, .jpeg, .png, .webp) in this folder", .0.display())]
    NoPictures(PathBuf),
}

/// A picture file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Photo {
    /// The file.
    pub path: PathBuf,
    /// Its true class, a position in the labels, where the name of its folder is one of them.
    pub class: Option<usize>,
}

/// All JPEG, PNG and WebP files in a folder and those below it, in order of their paths. The name
/// of the folder that holds a file is its true class if it is one of `labels`.
pub fn find_photos(folder: &Path, labels: &[String]) -> Result<Vec<Photo>, PhotoError> {
    // A work list instead of recursion: folders may be nested deeper than a stack.
    let (mut folders, mut paths) = (vec![folder.to_owned()], Vec::new());
    while let Some(folder) = folders.pop() {
        let unreadable = |source| PhotoError::Unreadable { path: folder.clone(), source };
        for entry in fs::read_dir(&folder).map_err(unreadable)? {
            let entry = entry.map_err(unreadable)?;
            let path = entry.path();
            if entry.file_type().map_err(unreadable)?.is_dir() {
                folders.push(path);
            } else if is_picture(&path) {
                paths.push(path);
            }
        }
    }
    if paths.is_empty() {
        return Err(PhotoError::NoPictures(folder.to_owned()));
    }
    paths.sort();
    Ok(paths.into_iter().map(|path| Photo::new(path, labels)).collect())
}

impl Photo {
    /// A file, of whatever name, whose folder may tell its class.
    pub fn new(path: PathBuf, labels: &[String]) -> Photo {
        let folder = path.parent().and_then(Path::file_name).and_then(|name| name.to_str());
        let class = labels.iter().position(|label| Some(label.as_str()) == folder);
        Photo { path, class }
    }

    /// Reads and decodes it, or says what is wrong with it.
    pub fn read(&self) -> Result<Picture, String> {
        let file = File::open(&self.path).map_err(|error| error.to_string())?;
        let (mut bytes, limit) = (Vec::new(), MAX_PICTURE_BYTES as u64 + 1);
        file.take(limit).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
        if bytes.len() > MAX_PICTURE_BYTES {
            return Err(format!("larger than {MAX_PICTURE_BYTES} bytes"));
        }
        Picture::decode(&bytes).map_err(|error| error.to_string())
    }
}

fn is_picture(path: &Path) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.is_some_and(|extension| {
        ["jpg", "jpeg", "png", "webp"].iter().any(|known| extension.eq_ignore_ascii_case(known))
    })
}
