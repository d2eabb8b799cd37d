//! COCO's JSON.

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;

use super::{Drawn, MAX_CATEGORIES, MAX_TRUE_BOXES, MAX_TRUTH_BYTES, Truth, TruthError};
use crate::quality::TrueBox;

/// How far a box may reach beyond its picture (pixels): tools round differently.
const MARGIN: f64 = 1.0;

/// Greatest side of a picture (pixels).
const MAX_SIDE: u32 = 1 << 20;

#[derive(Deserialize)]
struct Content {
    images: Vec<Image>,
    categories: Vec<Category>,
    annotations: Vec<Annotation>,
}

#[derive(Deserialize)]
struct Image {
    id: i64,
    file_name: String,
    width: u32,
    height: u32,
}

#[derive(Deserialize)]
struct Category {
    id: i64,
    name: String,
}

#[derive(Deserialize)]
struct Annotation {
    image_id: i64,
    category_id: i64,
    bbox: [f64; 4],
    #[serde(default)]
    iscrowd: Flag,
    #[serde(default)]
    ignore: Flag,
}

/// Tools write a flag as a number or as a word.
#[derive(Default, Deserialize)]
#[serde(untagged)]
enum Flag {
    #[default]
    Unset,
    Number(u8),
    Word(bool),
}

impl Flag {
    fn is_set(&self) -> bool {
        matches!(self, Flag::Number(1..) | Flag::Word(true))
    }
}

pub(super) fn read(file: &Path, pictures: &Path) -> Result<Truth, TruthError> {
    let bytes = super::read(file, MAX_TRUTH_BYTES)?;
    let content: Content = serde_json::from_slice(&bytes)
        .map_err(|error| TruthError::Json { file: file.to_owned(), problem: error.to_string() })?;
    let at = |list: &str, at: usize| {
        let entry = format!("{list}[{at}]");
        move |problem: String| TruthError::Entry { file: file.to_owned(), entry, problem }
    };
    let categories = categories(&content.categories, &at)?;
    let names: Vec<String> = content.categories.into_iter().map(|it| it.name).collect();
    let mut drawn: BTreeMap<i64, (PathBuf, Drawn)> = BTreeMap::new();
    let mut paths = BTreeSet::new();
    for (place, image) in content.images.iter().enumerate() {
        let path = path(image, pictures).map_err(at("images", place))?;
        if !paths.insert(path.clone()) {
            let problem = format!("{:?} is there twice", image.file_name);
            return Err(at("images", place)(problem));
        }
        let new = (path, Drawn { size: Some([image.width, image.height]), boxes: Vec::new() });
        match drawn.entry(image.id) {
            Slot::Vacant(slot) => slot.insert(new),
            Slot::Occupied(_) => {
                return Err(at("images", place)(format!("id {} is there twice", image.id)));
            }
        };
    }
    for (place, annotation) in content.annotations.iter().enumerate() {
        add(annotation, &categories, &mut drawn).map_err(at("annotations", place))?;
    }
    let covered = Arc::new((0..names.len() as u16).collect());
    Ok(Truth { names, covered, pictures: drawn.into_values().collect() })
}

/// The class of each category's id, in their order.
fn categories<E: FnOnce(String) -> TruthError>(
    categories: &[Category],
    at: &impl Fn(&str, usize) -> E,
) -> Result<BTreeMap<i64, u16>, TruthError> {
    let mut classes = BTreeMap::new();
    let mut names = BTreeSet::new();
    for (place, (Category { id, name }, class)) in categories.iter().zip(0u16..).enumerate() {
        let problem = if place == MAX_CATEGORIES {
            format!("at most {MAX_CATEGORIES} categories are understood")
        } else if !names.insert(name) {
            format!("{name:?} is there twice")
        } else if classes.insert(*id, class).is_some() {
            format!("id {id} is there twice")
        } else {
            continue;
        };
        return Err(at("categories", place)(problem));
    }
    Ok(classes)
}

/// Where a picture is.
fn path(image: &Image, pictures: &Path) -> Result<PathBuf, String> {
    let name = &image.file_name;
    let relative = Path::new(name);
    let inside =
        relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if name.is_empty() || !inside {
        return Err(format!("file_name {name:?} does not stay in the folder of the pictures"));
    }
    let Image { width, height, .. } = *image;
    if [width, height].iter().any(|side| !(1..=MAX_SIDE).contains(side)) {
        return Err(format!(
            "{name:?} has {width} × {height} pixels; sides of 1 or more are needed"
        ));
    }
    let path = pictures.join(relative.strip_prefix(".").unwrap_or(relative));
    match path.is_file() {
        true => Ok(path),
        false => Err(format!("{} is not there", path.display())),
    }
}

/// Adds a box to its picture.
fn add(
    annotation: &Annotation,
    categories: &BTreeMap<i64, u16>,
    drawn: &mut BTreeMap<i64, (PathBuf, Drawn)>,
) -> Result<(), String> {
    let Annotation { image_id, category_id, bbox, iscrowd, ignore } = annotation;
    let class = categories.get(category_id);
    let class = class.ok_or_else(|| format!("there is no category with id {category_id}"))?;
    let image = drawn.get_mut(image_id);
    let (_, Drawn { size, boxes }) =
        image.ok_or_else(|| format!("there is no image with id {image_id}"))?;
    if boxes.len() == MAX_TRUE_BOXES {
        return Err(format!("image {image_id} has more than {MAX_TRUE_BOXES} boxes"));
    }
    let [x, y, width, height] = *bbox;
    let [right, lower] = size.unwrap_or_default().map(|side| f64::from(side) + MARGIN);
    let sized = bbox.iter().all(|value| value.is_finite()) && width > 0.0 && height > 0.0;
    if !sized {
        return Err(format!("bbox {bbox:?} has no area"));
    }
    if x < -MARGIN || y < -MARGIN || x + width > right || y + height > lower {
        let [width, height] = size.unwrap_or_default();
        return Err(format!("bbox {bbox:?} reaches beyond its picture of {width} × {height}"));
    }
    boxes.push(TrueBox {
        class: *class,
        x0: x as f32,
        y0: y as f32,
        x1: (x + width) as f32,
        y1: (y + height) as f32,
        crowd: iscrowd.is_set() || ignore.is_set(),
    });
    Ok(())
}
