//! Why a camera gives no frames, and what its user can do about it.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::address::CameraSpec;
use super::policy::Offer;

/// Why a camera gives no frames.
#[derive(Debug, thiserror::Error)]
pub enum CameraError {
    /// There is no such device.
    #[error("{}: there is no such camera; `head-client cameras` lists those there are", .0.display())]
    Missing(PathBuf),
    /// The user may not open it.
    #[error(
        "{}: no permission; add the user to the group that owns it (`sudo usermod --append --groups \
         video USER`) and log in again",
        .0.display()
    )]
    Permission(PathBuf),
    /// Another program has it.
    #[error("{path}: in use by another program; `fuser {path}` names it", path = .0.display())]
    Busy(PathBuf),
    /// Not a device that captures video.
    #[error("{}: no camera; `head-client cameras` lists those there are", .0.display())]
    NoCamera(PathBuf),
    /// It does not offer what is asked for.
    #[error("{}: it does not offer {wanted}; it offers {}", path.display(), Offers(offers))]
    Unsupported {
        /// The device.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// What there is.
        offers: Vec<Offer>,
    },
    /// Anything else that the system says.
    #[error("{}: {source}", path.display())]
    Failed {
        /// The device.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

impl CameraSpec {
    pub(super) fn unsupported(&self, offers: Vec<Offer>) -> CameraError {
        let format = self.format.map_or("yuyv or mjpeg".into(), |format| format.to_string());
        let size = self.size.map(|(width, height)| format!(" in {width}x{height}"));
        let wanted = format + &size.unwrap_or_default();
        CameraError::Unsupported { path: self.path.clone(), wanted, offers }
    }
}

impl CameraError {
    /// The meaning of the system's error `source` for the camera at `path`.
    pub(in crate::source) fn of(path: &Path, source: io::Error) -> CameraError {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => CameraError::Missing(path),
            io::ErrorKind::PermissionDenied => CameraError::Permission(path),
            io::ErrorKind::ResourceBusy => CameraError::Busy(path),
            io::ErrorKind::Unsupported => CameraError::NoCamera(path),
            _ => CameraError::Failed { path, source },
        }
    }
}

/// Offers in one line.
struct Offers<'a>(&'a [Offer]);

impl fmt::Display for Offers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing");
        }
        let offers: Vec<String> = self.0.iter().map(Offer::to_string).collect();
        f.write_str(&offers.join("; "))
    }
}
