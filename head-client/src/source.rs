//! Sources of pictures: cameras, files, folders, streams, or any other iterator of [`SourceFrame`]s.

mod camera;
mod mjpeg;
#[cfg(target_os = "linux")]
mod v4l2;
mod y4m;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use isthmus_models::{
    MAX_PICTURE_BYTES, Photo, PhotoError, Picture, TrueBoxes, Truth, TruthError, find_photos,
};

pub use camera::{CameraError, CameraFormat, CameraSpec, CameraSpecError, Offer, Size, Sizes};
pub use mjpeg::Mjpeg;
#[cfg(target_os = "linux")]
pub use v4l2::{FoundCamera, find_cameras};
pub use y4m::{Y4m, Y4mError};

/// What a source gives: a picture, or why there is none.
///
/// A source is an iterator of these; a camera in the same process is one, too.
#[derive(Debug)]
pub struct SourceFrame {
    /// Where it came from: a path, or the source's name and a number.
    pub source: String,
    /// What is true of it, where the source knows it.
    pub truth: Option<FrameTruth>,
    /// The picture, upright, or why there is none.
    pub picture: Result<Picture, NoPicture>,
}

/// What is true of a picture.
#[derive(Clone, Debug, PartialEq)]
pub enum FrameTruth {
    /// Its class.
    Class(String),
    /// Its objects: boxes in the picture's pixels, whose classes are places in the bundle's labels.
    Boxes(TrueBoxes),
}

impl FrameTruth {
    /// The class, where it is one.
    pub fn into_class(self) -> Option<String> {
        match self {
            FrameTruth::Class(class) => Some(class),
            FrameTruth::Boxes(_) => None,
        }
    }

    /// The objects, where they are known.
    pub fn into_boxes(self) -> Option<TrueBoxes> {
        match self {
            FrameTruth::Class(_) => None,
            FrameTruth::Boxes(boxes) => Some(boxes),
        }
    }
}

/// Why a frame has no picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NoPicture {
    /// A newer frame was there before this one was decoded.
    Superseded,
    /// What came is no picture; this is what is wrong with it.
    Bad(String),
}

impl From<String> for NoPicture {
    fn from(error: String) -> Self {
        NoPicture::Bad(error)
    }
}

impl fmt::Display for NoPicture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            NoPicture::Superseded => "a newer frame was there before this one was decoded",
            NoPicture::Bad(error) => error,
        })
    }
}

/// A source of any kind.
pub type BoxedSource = Box<dyn Iterator<Item = SourceFrame> + Send>;

/// Why an input gives no frames at all.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// It cannot be read.
    #[error("{path}: {source}", path = .path.display())]
    Unreadable {
        /// The file or folder.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// A folder that gives no pictures.
    #[error(transparent)]
    Folder(#[from] PhotoError),
    /// A text that is not a camera's address.
    #[error(transparent)]
    CameraSpec(#[from] CameraSpecError),
    /// A camera that gives no frames.
    #[error(transparent)]
    Camera(#[from] CameraError),
    /// What is really in the pictures cannot be told.
    #[error(transparent)]
    Truth(#[from] TruthError),
    /// Standard input is not a stream of pictures.
    #[error("standard input is neither MJPEG nor YUV4MPEG2: {0}")]
    Stream(String),
}

/// Opens a camera, a file, a folder or, for `-`, standard input. `labels` are the classes that a
/// folder's name may be; `rate` is asked of a camera.
///
/// Files are in order of their paths. The name of the folder that holds a file is its true class
/// if it is one of `labels`.
pub fn open(input: &Path, labels: &[String], rate: Option<f64>) -> Result<BoxedSource, InputError> {
    if input == Path::new("-") {
        return open_stream(io::stdin(), labels);
    }
    if let Some(spec) = CameraSpec::parse(input) {
        return Ok(open_camera(CameraSpec { rate, ..spec? })?);
    }
    let labels = labels.to_vec();
    let photos = photos(input, &labels)?;
    Ok(Box::new(photos.into_iter().map(move |photo| SourceFrame {
        source: photo.path.display().to_string(),
        truth: photo.class.map(|class| FrameTruth::Class(labels[class].clone())),
        picture: photo.read().map_err(NoPicture::Bad),
    })))
}

/// Opens a file or a folder of pictures whose boxes the file `truth` knows: a COCO JSON file, or the
/// names of classes, one a line, where YOLO's text files lie by the pictures. Boxes get the bundle's
/// `labels`, as [`Truth::with_labels`] says.
///
/// A picture of which nothing is known, or of another size than its boxes were drawn for, is a bad one.
pub fn open_with_boxes(
    input: &Path,
    labels: &[String],
    truth: &Path,
    renamed: &BTreeMap<String, String>,
) -> Result<BoxedSource, InputError> {
    let (photos, truth) = photos_with_boxes(input, labels, truth, renamed)?;
    Ok(Box::new(photos.into_iter().map(move |photo| {
        let (truth, picture) = match photo.read() {
            Ok(picture) => match truth.true_boxes(&photo.path, picture.width(), picture.height()) {
                Ok(boxes) => (Some(FrameTruth::Boxes(boxes)), Ok(picture)),
                Err(error) => (None, Err(NoPicture::Bad(error.to_string()))),
            },
            Err(error) => (None, Err(NoPicture::Bad(error))),
        };
        SourceFrame { source: photo.path.display().to_string(), truth, picture }
    })))
}

/// The pictures of a file or a folder, in order of their paths, and what the file `truth` knows of them;
/// see [`open_with_boxes`].
pub fn photos_with_boxes(
    input: &Path,
    labels: &[String],
    truth: &Path,
    renamed: &BTreeMap<String, String>,
) -> Result<(Vec<Photo>, Truth), InputError> {
    let photos = photos(input, &[])?;
    let json = truth.extension().is_some_and(|it| it.eq_ignore_ascii_case("json"));
    let read = if json {
        let folder = if input.is_dir() { input } else { input.parent().unwrap_or(input) };
        Truth::coco(truth, folder)?
    } else {
        let pictures: Vec<PathBuf> = photos.iter().map(|photo| photo.path.clone()).collect();
        Truth::yolo(&pictures, &Truth::class_names(truth)?)?
    };
    let truth = read.with_labels(labels, renamed)?;
    Ok((photos, truth))
}

/// The pictures of a file or a folder.
fn photos(input: &Path, labels: &[String]) -> Result<Vec<Photo>, InputError> {
    let unreadable = |source| InputError::Unreadable { path: input.to_owned(), source };
    let metadata = fs::metadata(input).map_err(unreadable)?;
    if metadata.is_dir() {
        Ok(find_photos(input, labels)?)
    } else {
        // Opened once, so that an unreadable file is an error of the input, not a bad picture.
        File::open(input).map_err(unreadable)?;
        Ok(vec![Photo::new(input.to_owned(), labels)])
    }
}

/// Starts a camera. It gives its newest frame each time; one that goes away is a bad frame, after
/// which the next is waited for until it is back.
#[cfg(target_os = "linux")]
pub fn open_camera(spec: CameraSpec) -> Result<BoxedSource, CameraError> {
    let driver = v4l2::V4l2(spec.path.clone());
    Ok(Box::new(camera::Camera::open(driver, spec, std::thread::sleep)?))
}

/// Cameras are opened on Linux alone.
#[cfg(not(target_os = "linux"))]
pub fn open_camera(spec: CameraSpec) -> Result<BoxedSource, CameraError> {
    Err(CameraError::of(&spec.path, io::ErrorKind::Unsupported.into()))
}

/// Opens a stream of pictures, telling MJPEG from YUV4MPEG2 by its first bytes.
///
/// A frame's true class is what the stream says, if it is one of `labels`: the word behind `label=`
/// in a JPEG's comment, or behind `XLABEL=` in the header of a YUV4MPEG2 frame.
pub fn open_stream(
    mut stream: impl Read + Send + 'static,
    labels: &[String],
) -> Result<BoxedSource, InputError> {
    let mut first = Vec::new();
    let length = y4m::MAGIC.len() as u64;
    (&mut stream)
        .take(length)
        .read_to_end(&mut first)
        .map_err(|error| InputError::Stream(error.to_string()))?;
    let whole = io::Cursor::new(first.clone()).chain(stream);
    if first == y4m::MAGIC {
        let frames = Y4m::new(whole).map_err(|error| InputError::Stream(error.to_string()))?;
        Ok(known(frames, labels))
    } else if first.starts_with(mjpeg::MAGIC) {
        Ok(known(Mjpeg::new(whole), labels))
    } else if first.is_empty() {
        Err(InputError::Stream("it is empty".into()))
    } else {
        Err(InputError::Stream(format!("it starts with {}", first.escape_ascii())))
    }
}

/// The frames, with the truth of those whose class is known.
fn known(
    frames: impl Iterator<Item = SourceFrame> + Send + 'static,
    labels: &[String],
) -> BoxedSource {
    let labels = labels.to_vec();
    Box::new(frames.map(move |SourceFrame { source, truth, picture }| {
        let known = |truth: &FrameTruth| match truth {
            FrameTruth::Class(class) => labels.contains(class),
            FrameTruth::Boxes(_) => true,
        };
        let truth = truth.filter(known);
        SourceFrame { source, truth, picture }
    }))
}
