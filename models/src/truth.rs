//! What is really in pictures: boxes that people drew, from COCO's JSON or YOLO's text files.

mod coco;
mod error;
mod yolo;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::error::TruthError;
use crate::quality::{TrueBox, TrueBoxes};

/// Largest file of truth that is read (bytes).
pub const MAX_TRUTH_BYTES: u64 = 1 << 30;

/// Most boxes of a picture.
pub const MAX_TRUE_BOXES: usize = 10_000;

/// Most categories.
const MAX_CATEGORIES: usize = 10_000;

/// The boxes of many pictures, with categories of their own names or, after
/// [`with_labels`](Truth::with_labels), a bundle's labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Truth {
    /// What a box's class counts through.
    names: Vec<String>,
    /// Classes that would have been drawn.
    covered: Arc<BTreeSet<u16>>,
    pictures: BTreeMap<PathBuf, Drawn>,
}

/// What was drawn in a picture.
#[derive(Clone, Debug, PartialEq)]
struct Drawn {
    /// Width and height (pixels) that the boxes are for; without it they are parts of the sides.
    size: Option<[u32; 2]>,
    boxes: Vec<TrueBox>,
}

impl Truth {
    /// Reads a COCO JSON file, whose file names are relative to the folder `pictures`.
    ///
    /// Of it `images` (`id`, `file_name`, `width`, `height`), `categories` (`id`, `name`) and
    /// `annotations` (`image_id`, `category_id`, `bbox` = x, y, width, height in pixels,
    /// `iscrowd`, `ignore`) are read. Boxes may reach a pixel beyond their picture. Errors name the
    /// entry: a picture that is not there, an id that is unknown or there twice, a file name that
    /// leaves the folder, a box without area or outside of its picture.
    pub fn coco(file: &Path, pictures: &Path) -> Result<Truth, TruthError> {
        coco::read(file, pictures)
    }

    /// Reads a text file for each of `pictures`: a line `class cx cy width height` a box, the class
    /// counting through `names` from 0, the others parts of the picture's sides. A line that
    /// repeats another counts once.
    ///
    /// The file has the picture's name with `.txt` and lies beside it, in a folder `labels` beside
    /// it, or where the folder's last `images` is replaced by `labels`. A picture without such a
    /// file has no box, but some must have one. Errors name file and line.
    pub fn yolo(pictures: &[PathBuf], names: &[String]) -> Result<Truth, TruthError> {
        yolo::read(pictures, names)
    }

    /// Reads the names of classes: one a line, empty ones at the end left out.
    pub fn class_names(file: &Path) -> Result<Vec<String>, TruthError> {
        yolo::names(file)
    }

    /// The truth in a bundle's labels: the class of a box is then the place of its label.
    ///
    /// A category has the label of the same name, or else of the same name but for the case of its
    /// letters. `renamed` gives others a label (`motorbike` → `motorcycle`), or none (`person` →
    /// empty), which leaves their boxes out. A category that has boxes and no label is an error, as
    /// is a name in `renamed` that does not exist.
    pub fn with_labels(
        mut self,
        labels: &[String],
        renamed: &BTreeMap<String, String>,
    ) -> Result<Truth, TruthError> {
        if let Some(category) = renamed.keys().find(|name| !self.names.contains(name)) {
            let names = self.names.join(", ");
            return Err(TruthError::UnknownCategory { category: category.clone(), names });
        }
        let all = || labels.join(", ");
        let find = |category: &String| match renamed.get(category).map(String::as_str) {
            Some("") => Ok(Some(None)),
            Some(label) => match labels.iter().position(|known| known == label) {
                Some(at) => Ok(Some(Some(at))),
                None => Err(TruthError::UnknownLabel { label: label.into(), labels: all() }),
            },
            None => {
                let exact = labels.iter().position(|label| label == category);
                let near = || labels.iter().position(|label| label.eq_ignore_ascii_case(category));
                Ok(exact.or_else(near).map(Some))
            }
        };
        let found = self.names.iter().map(find).collect::<Result<Vec<_>, TruthError>>()?;
        for Drawn { boxes, .. } in self.pictures.values_mut() {
            let mut kept = Vec::with_capacity(boxes.len());
            for truth in &*boxes {
                let at = usize::from(truth.class);
                match found.get(at).copied().flatten() {
                    Some(Some(label)) => kept.push(TrueBox { class: label as u16, ..*truth }),
                    Some(None) => {}
                    None => {
                        let category = self.names.get(at).cloned().unwrap_or_default();
                        return Err(TruthError::NoLabel { category, labels: all() });
                    }
                }
            }
            *boxes = kept;
        }
        let covered = found.into_iter().flatten().flatten().map(|label| label as u16);
        Ok(Truth {
            names: labels.to_vec(),
            covered: Arc::new(covered.collect()),
            pictures: self.pictures,
        })
    }

    /// Names of the classes.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// Whether boxes of a class would have been drawn. Detections of others can be neither right
    /// nor wrong.
    pub fn covers(&self, class: u16) -> bool {
        self.covered.contains(&class)
    }

    /// The pictures that something is known of, in order of their paths.
    pub fn pictures(&self) -> impl Iterator<Item = &Path> {
        self.pictures.keys().map(PathBuf::as_path)
    }

    /// The boxes in a picture of this width and height (pixels), in its pixels, with the classes that were
    /// looked for; an error as of [`boxes`](Truth::boxes).
    pub fn true_boxes(
        &self,
        picture: &Path,
        width: u32,
        height: u32,
    ) -> Result<TrueBoxes, TruthError> {
        let boxes = self.boxes(picture, width, height)?;
        Ok(TrueBoxes { boxes, covered: Some(Arc::clone(&self.covered)) })
    }

    /// The boxes in a picture of this width and height (pixels), in its pixels. An error is of a
    /// picture that nothing is known of, or of another size than its boxes were drawn for.
    pub fn boxes(
        &self,
        picture: &Path,
        width: u32,
        height: u32,
    ) -> Result<Vec<TrueBox>, TruthError> {
        let drawn = self.pictures.get(picture);
        let Drawn { size, boxes } =
            drawn.ok_or_else(|| TruthError::NoTruth { picture: picture.to_owned() })?;
        match size {
            Some(drawn) if *drawn == [width, height] => Ok(boxes.clone()),
            Some(drawn) => Err(TruthError::Size {
                picture: picture.to_owned(),
                drawn: *drawn,
                actual: [width, height],
            }),
            None => {
                let (width, height) = (width as f32, height as f32);
                let scale = |truth: &TrueBox| TrueBox {
                    x0: truth.x0 * width,
                    y0: truth.y0 * height,
                    x1: truth.x1 * width,
                    y1: truth.y1 * height,
                    ..*truth
                };
                Ok(boxes.iter().map(scale).collect())
            }
        }
    }
}

/// Reads a file of at most `most` bytes.
fn read(file: &Path, most: u64) -> Result<Vec<u8>, TruthError> {
    let unreadable = |source| TruthError::Io { file: file.to_owned(), source };
    let mut bytes = Vec::new();
    let opened = File::open(file).map_err(unreadable)?;
    opened.take(most + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    match bytes.len() as u64 > most {
        true => Err(TruthError::TooLarge { file: file.to_owned(), most }),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests;
