//! What the server asks of a network.

use std::error::Error;

use isthmus_models::{Answer, Outputs, PictureError, Scores, TailItem, Wanted};
use isthmus_proto::{BundleDigest, ImageFormat, OperatingPoint, wire};

#[cfg(feature = "shell")]
pub use crate::bundle::BundleModel;

/// Why a network did not answer: the server's fault, never the device's.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct ModelError(#[from] Box<dyn Error + Send + Sync>);

impl ModelError {
    /// Wraps what went wrong.
    pub fn new(cause: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        ModelError(cause.into())
    }
}

/// A network's server side.
pub trait Model: Send + Sync {
    /// The bundle's name, for people.
    fn name(&self) -> &str;

    /// The bundle's digest, by which devices ask for it.
    fn digest(&self) -> BundleDigest;

    /// Most bytes that a coded stream of `point` can have; `None` if there is no such point.
    fn max_stream_bytes(&self, point: OperatingPoint) -> Option<usize>;

    /// Latents (f32, `[C, h, w]`) from the first `layers` layers of `stream`, whose checksums were
    /// verified. `point` is one that exists, `layers` at most its own.
    fn decode(
        &self,
        point: OperatingPoint,
        stream: &[u8],
        layers: usize,
    ) -> Result<Vec<f32>, ModelError>;

    /// The network's outputs for each of `batch`, in its order. All are of the same split, so that its
    /// trunks run once.
    fn infer(&self, batch: &[TailItem<'_>]) -> Result<Vec<Outputs>, ModelError>;

    /// The answer of each decoder to one frame, as much of it as the device wants, of the network's
    /// outputs for it. Where nothing else is said, a model has one decoder, which classifies.
    fn answers(&self, outputs: Outputs, wanted: Wanted) -> Result<Vec<wire::Answer>, ModelError> {
        let scores = Answer::Scores(Scores::of(outputs.concat()));
        Ok(vec![scores.into_wire((1, 1), wanted)])
    }

    /// The network in one piece, which answers compressed pictures; `None` if none are taken.
    fn full_network(&self) -> Option<&dyn FullNetwork> {
        None
    }
}

/// A network in one piece, for devices that send compressed pictures.
pub trait FullNetwork: Send + Sync {
    /// The network's input (f32, `[3, H, W]`) from a file whose checksum was verified and which may
    /// hold anything. A picture of more pixels than are taken is refused by its header.
    fn decode(&self, format: ImageFormat, file: &[u8]) -> Result<Vec<f32>, PictureError>;

    /// The network's outputs for each input of `batch`, in its order.
    fn infer(&self, batch: &[&[f32]]) -> Result<Vec<Outputs>, ModelError>;
}
