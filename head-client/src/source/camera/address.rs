//! The address of a camera: `/dev/video0`, or `v4l2:/dev/video0?size=640x480&format=yuyv`.

use std::fmt;
use std::path::{Path, PathBuf};

/// Width and height (pixels).
pub type Size = (u32, u32);

/// A camera, and the frames to ask it for.
#[derive(Clone, Debug, PartialEq)]
pub struct CameraSpec {
    /// Its device file.
    pub path: PathBuf,
    /// Size of the frames; by default 640 × 480 or what comes next to it.
    pub size: Option<Size>,
    /// By default YUYV where it comes in that size, which costs no decoding, and else MJPEG.
    pub format: Option<CameraFormat>,
    /// Frames a second; by default the camera's own choice.
    pub rate: Option<f64>,
}

/// A format of frames that this program decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CameraFormat {
    /// Packed 4:2:2.
    Yuyv,
    /// A JPEG a frame.
    Mjpeg,
}

/// A text that is not a camera's address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}; expected a camera such as /dev/video0 or v4l2:/dev/video0?size=640x480&format=yuyv, where \
     format is yuyv or mjpeg"
)]
pub struct CameraSpecError(String);

impl CameraFormat {
    /// The format of a four-character code.
    pub(super) fn of(fourcc: [u8; 4]) -> Option<CameraFormat> {
        match &fourcc {
            b"YUYV" => Some(CameraFormat::Yuyv),
            b"MJPG" | b"JPEG" => Some(CameraFormat::Mjpeg),
            _ => None,
        }
    }
}

impl CameraSpec {
    /// The camera that an input names; `None` if it names something else.
    ///
    /// Whatever begins with `v4l2:`, `/dev/video` or `/dev/v4l/` is a camera, whether it is there
    /// or not.
    pub fn parse(input: &Path) -> Option<Result<CameraSpec, CameraSpecError>> {
        // A device's path is plain text.
        let text = input.to_str()?;
        let spec =
            |path: &str| CameraSpec { path: path.into(), size: None, format: None, rate: None };
        match text.strip_prefix("v4l2:") {
            Some(text) => {
                let (path, options) = text.split_once('?').unwrap_or((text, ""));
                Some(spec(path).with(options).map_err(CameraSpecError))
            }
            None => {
                let device = text.starts_with("/dev/video") || text.starts_with("/dev/v4l/");
                device.then(|| Ok(spec(text)))
            }
        }
    }

    fn with(mut self, options: &str) -> Result<CameraSpec, String> {
        if self.path.as_os_str().is_empty() {
            return Err("the camera's address names no device".into());
        }
        for option in options.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("size", size)) => {
                    let sides = size.split_once('x').and_then(|(width, height)| {
                        Some((width.parse().ok()?, height.parse().ok()?))
                    });
                    self.size = sides.filter(|&(width, height)| width > 0 && height > 0);
                    if self.size.is_none() {
                        return Err(format!("invalid size {size:?}"));
                    }
                }
                Some(("format", "yuyv")) => self.format = Some(CameraFormat::Yuyv),
                Some(("format", "mjpeg")) => self.format = Some(CameraFormat::Mjpeg),
                _ => return Err(format!("unknown option {option:?} of a camera")),
            }
        }
        Ok(self)
    }
}

impl fmt::Display for CameraFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CameraFormat::Yuyv => "yuyv",
            CameraFormat::Mjpeg => "mjpeg",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(input: &str) -> CameraSpec {
        CameraSpec::parse(Path::new(input)).expect("a camera").expect("understood")
    }

    #[test]
    fn cameras_are_recognised_among_inputs() {
        for other in ["-", "pictures", "/dev/null", "v4l2.jpg", "/dev/fd/3"] {
            assert!(CameraSpec::parse(Path::new(other)).is_none(), "{other}");
        }
        let plain = spec("/dev/v4l/by-id/usb-0");
        assert_eq!((plain.size, plain.format, plain.rate), (None, None, None));
        assert_eq!(plain, spec("v4l2:/dev/v4l/by-id/usb-0"));
        let full = spec("v4l2:/dev/video9?size=1280x720&format=mjpeg");
        assert_eq!(full.path, Path::new("/dev/video9"));
        assert_eq!((full.size, full.format), (Some((1280, 720)), Some(CameraFormat::Mjpeg)));
        for bad in [
            "",
            "?size=1x1",
            "/dev/video0?size=640",
            "/dev/video0?size=0x1",
            "x?rate=5",
            "x?format=h264",
            "x?sice=1x1",
        ] {
            let input = format!("v4l2:{bad}");
            assert!(CameraSpec::parse(Path::new(&input)).is_some_and(|it| it.is_err()), "{bad}");
        }
    }
}
