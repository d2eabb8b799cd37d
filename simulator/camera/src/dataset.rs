//! Frames in folders by class, for training, with their annotations in the form of COCO.

use super::{BoundingBox, Camera, CameraConfig, ConfigError, LabelledFrame, Sign};
use image::{ExtendedColorType, ImageFormat};
use serde::Serialize;
use std::fs;
use std::io;
use std::path::Path;

/// Why a data set could not be written.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// The camera does not take this configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file or folder could not be written.
    #[error("cannot write {path}: {source}")]
    Write {
        /// The file or folder.
        path: String,
        /// What went wrong.
        source: io::Error,
    },
}

/// The content of `annotations.json`.
#[derive(Debug, Serialize)]
struct Annotations {
    info: Info,
    categories: Vec<Category>,
    images: Vec<Image>,
    annotations: Vec<Annotation>,
}

#[derive(Debug, Serialize)]
struct Info {
    description: &'static str,
    camera: CameraConfig,
    stride: usize,
}

#[derive(Debug, Serialize)]
struct Category {
    id: usize,
    name: &'static str,
}

#[derive(Debug, Serialize)]
struct Image {
    id: usize,
    file_name: String,
    width: u32,
    height: u32,
    /// Place of the frame in the video.
    frame: u64,
}

#[derive(Debug, Serialize)]
struct Annotation {
    id: usize,
    image_id: usize,
    category_id: usize,
    bbox: [f32; 4],
    area: f32,
    iscrowd: u8,
    visibility: f32,
}

/// Writes `count` frames as `CLASS/NUMBER.png` and their `annotations.json` into a folder, which is
/// made where it is missing. Category numbers are those of [`Sign::class`].
///
/// One frame out of every `stride` of the video is taken: neighbours look alike and teach little.
///
/// # Errors
///
/// Where the configuration is out of range or a file cannot be written.
pub fn write_dataset(
    folder: &Path,
    config: CameraConfig,
    count: usize,
    stride: usize,
) -> Result<(), DatasetError> {
    let camera = Camera::new(config)?;
    for sign in Sign::ALL {
        let path = folder.join(sign.label());
        fs::create_dir_all(&path).map_err(|source| failed(&path, source))?;
    }
    let stride = stride.max(1);
    let mut annotations = Annotations::new(config, stride);
    for frame in camera.step_by(stride).take(count) {
        let path = folder.join(annotations.add(&frame));
        write_png(&path, &frame)?;
    }
    let path = folder.join("annotations.json");
    let text = serde_json::to_vec(&annotations).map_err(|error| failed(&path, error.into()))?;
    fs::write(&path, text).map_err(|source| failed(&path, source))
}

impl Annotations {
    fn new(camera: CameraConfig, stride: usize) -> Self {
        let categories =
            Sign::ALL.iter().map(|sign| Category { id: sign.class(), name: sign.label() });
        Self {
            info: Info {
                description: "Traffic signs of the Isthmus built-in camera",
                camera,
                stride,
            },
            categories: categories.collect(),
            images: Vec::new(),
            annotations: Vec::new(),
        }
    }

    /// Notes a frame and gives the name of its file.
    fn add(&mut self, frame: &LabelledFrame) -> String {
        let id = self.images.len();
        let file_name = format!("{}/{id:06}.png", frame.sign);
        let BoundingBox { x, y, width, height } = frame.bounds;
        self.annotations.push(Annotation {
            id,
            image_id: id,
            category_id: frame.sign.class(),
            bbox: [x, y, width, height],
            area: width * height,
            iscrowd: 0,
            visibility: frame.visibility,
        });
        self.images.push(Image {
            id,
            file_name: file_name.clone(),
            width: frame.width,
            height: frame.height,
            frame: frame.index,
        });
        file_name
    }
}

fn write_png(path: &Path, frame: &LabelledFrame) -> Result<(), DatasetError> {
    image::save_buffer_with_format(
        path,
        &frame.rgb,
        frame.width,
        frame.height,
        ExtendedColorType::Rgb8,
        ImageFormat::Png,
    )
    .map_err(|error| failed(path, io::Error::other(error)))
}

fn failed(path: &Path, source: io::Error) -> DatasetError {
    DatasetError::Write { path: path.display().to_string(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn every_annotation_has_its_picture() -> Result<(), Box<dyn std::error::Error>> {
        let folder = tempfile::tempdir()?;
        write_dataset(folder.path(), CameraConfig::default(), 4, 15)?;
        let text = fs::read(folder.path().join("annotations.json"))?;
        let annotations: Value = serde_json::from_slice(&text)?;
        let images = annotations["images"].as_array().ok_or("no images")?;
        assert_eq!(images.len(), 4);
        assert_eq!(annotations["annotations"].as_array().map(Vec::len), Some(4));
        assert_eq!(annotations["categories"][17]["name"], "stop");
        for image in images {
            let name = image["file_name"].as_str().ok_or("no name")?;
            let picture = image::open(folder.path().join(name))?;
            assert_eq!((picture.width(), picture.height()), (320, 240));
        }
        assert_eq!(images[2]["frame"], 30);
        Ok(())
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() -> Result<(), Box<dyn std::error::Error>> {
        let file = tempfile::NamedTempFile::new()?;
        let folder = file.path().join("set");
        let error = write_dataset(&folder, CameraConfig::default(), 1, 1);
        assert!(error.is_err_and(|error| error.to_string().contains("set")));
        Ok(())
    }
}
