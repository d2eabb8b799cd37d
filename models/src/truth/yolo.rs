//! YOLO's text files.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Drawn, MAX_CATEGORIES, MAX_TRUE_BOXES, Truth, TruthError};
use crate::quality::TrueBox;

/// Largest text file (bytes).
const MAX_BYTES: u64 = 4 << 20;

/// How far a box may reach beyond its picture, as a part of the side: files are rounded.
const MARGIN: f32 = 0.005;

pub(super) fn read(pictures: &[PathBuf], names: &[String]) -> Result<Truth, TruthError> {
    let mut drawn = BTreeMap::new();
    let mut found = false;
    for picture in pictures {
        let mut boxes = Vec::new();
        if let Some(file) = places(picture).into_iter().find(|file| file.is_file()) {
            found = true;
            boxes = parse(&file, names)?;
        }
        drawn.insert(picture.clone(), Drawn { size: None, boxes });
    }
    match (found, pictures.first()) {
        (false, Some(first)) => Err(TruthError::NoFiles {
            pictures: pictures.len(),
            expected: first.with_extension("txt"),
        }),
        _ => {
            let covered = Arc::new((0u16..).take(names.len()).collect());
            Ok(Truth { names: names.to_vec(), covered, pictures: drawn })
        }
    }
}

pub(super) fn names(file: &Path) -> Result<Vec<String>, TruthError> {
    let mut names: Vec<String> = Vec::new();
    for (line, name) in lines(file)? {
        let problem = if names.len() == MAX_CATEGORIES {
            format!("at most {MAX_CATEGORIES} classes are understood")
        } else if name.is_empty() {
            "a name is needed".into()
        } else if names.contains(&name) {
            format!("{name:?} is there twice")
        } else {
            names.push(name);
            continue;
        };
        return Err(TruthError::Line { file: file.to_owned(), line, problem });
    }
    Ok(names)
}

/// Where the text file of a picture may be.
fn places(picture: &Path) -> Vec<PathBuf> {
    let beside = picture.with_extension("txt");
    let mut places = vec![beside.clone()];
    if let (Some(folder), Some(name)) = (picture.parent(), beside.file_name()) {
        places.push(folder.join("labels").join(name));
        let parts: Vec<&OsStr> = folder.iter().collect();
        if let Some(at) = parts.iter().rposition(|part| *part == "images") {
            let labels = OsStr::new("labels");
            let replaced = parts.iter().enumerate();
            let folder: PathBuf =
                replaced.map(|(part, name)| if part == at { labels } else { name }).collect();
            places.push(folder.join(name));
        }
    }
    places
}

/// Lines with their numbers from 1, trimmed; empty ones at the end are left out.
fn lines(file: &Path) -> Result<Vec<(usize, String)>, TruthError> {
    let bytes = super::read(file, MAX_BYTES)?;
    let text = match std::str::from_utf8(&bytes) {
        Ok(text) => text.trim_start_matches('\u{feff}').trim_end(),
        Err(error) => {
            let valid = &bytes[..error.valid_up_to()];
            let line = 1 + valid.iter().filter(|byte| **byte == b'\n').count();
            let problem = "is no UTF-8".into();
            return Err(TruthError::Line { file: file.to_owned(), line, problem });
        }
    };
    Ok((1..).zip(text.lines().map(|line| line.trim().to_owned())).collect())
}

fn parse(file: &Path, names: &[String]) -> Result<Vec<TrueBox>, TruthError> {
    let mut boxes: Vec<TrueBox> = Vec::new();
    for (line, text) in lines(file)?.iter().filter(|(_, text)| !text.is_empty()) {
        let at = |problem| TruthError::Line { file: file.to_owned(), line: *line, problem };
        let found = one(text, names).map_err(at)?;
        if boxes.len() == MAX_TRUE_BOXES {
            return Err(at(format!("at most {MAX_TRUE_BOXES} boxes are understood")));
        }
        if !boxes.contains(&found) {
            boxes.push(found);
        }
    }
    Ok(boxes)
}

/// The box of a line, in parts of the picture's sides.
fn one(text: &str, names: &[String]) -> Result<TrueBox, String> {
    let fields: Vec<&str> = text.split_ascii_whitespace().collect();
    let &[class, x, y, width, height] = fields.as_slice() else {
        let count = fields.len();
        return Err(format!("expected `class cx cy width height`, found {count} fields"));
    };
    let class: u16 =
        class.parse().ok().filter(|class| usize::from(*class) < names.len()).ok_or_else(|| {
            format!("class: expected 0 to {}, found {class:?}", names.len().max(1) - 1)
        })?;
    let part = |name: &str, text: &str| {
        let value: Option<f32> = text.parse().ok();
        let value = value.filter(|value| (0.0..=1.0).contains(value));
        value.ok_or_else(|| format!("{name}: expected 0 to 1, found {text:?}"))
    };
    let (x, y) = (part("cx", x)?, part("cy", y)?);
    let (width, height) = (part("width", width)?, part("height", height)?);
    if width == 0.0 || height == 0.0 {
        return Err("the box has no area".into());
    }
    let [x0, y0] = [x - width / 2.0, y - height / 2.0];
    let [x1, y1] = [x + width / 2.0, y + height / 2.0];
    if x0.min(y0) < -MARGIN || x1.max(y1) > 1.0 + MARGIN {
        return Err(format!("the box from {x0}, {y0} to {x1}, {y1} reaches beyond its picture"));
    }
    Ok(TrueBox { class, x0, y0, x1, y1, crowd: false })
}
