//! What the server asks of a network, and a bundle's tail that answers it.

use std::error::Error;
use std::sync::Arc;

use isthmus_models::{Bundle, Engine, Tail, TailItem};
use isthmus_proto::{BundleDigest, OperatingPoint};

/// Most bits that one symbol can take: a frequency is at least 1 in 2^16.
const MAX_SYMBOL_BITS: usize = 16;
/// What a range coder may add at the end of a stream (bytes), generously.
const STREAM_SLACK: usize = 16;

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

    /// Logits (f32, one per class) for each of `batch`, in its order. All are of the same split, so
    /// that its trunk runs once.
    fn infer(&self, batch: &[TailItem<'_>]) -> Result<Vec<Vec<f32>>, ModelError>;
}

/// A verified bundle with its tail prepared.
pub struct BundleModel {
    bundle: Arc<Bundle>,
    tail: Tail,
}

impl BundleModel {
    /// Prepares every adapter and trunk of `bundle`.
    pub fn load(bundle: Arc<Bundle>, engine: &dyn Engine) -> Result<Self, ModelError> {
        let tail = Tail::load(Arc::clone(&bundle), engine).map_err(ModelError::new)?;
        Ok(BundleModel { bundle, tail })
    }
}

impl Model for BundleModel {
    fn name(&self) -> &str {
        self.bundle.name()
    }

    fn digest(&self) -> BundleDigest {
        self.bundle.digest()
    }

    fn max_stream_bytes(&self, point: OperatingPoint) -> Option<usize> {
        if !self.bundle.has_point(&point) {
            return None;
        }
        let shape = self.bundle.codec(point.split, point.width, point.bits)?.shape();
        let symbols = shape.channels_of(point.layers.into()) * shape.plane();
        Some(symbols * MAX_SYMBOL_BITS / 8 + STREAM_SLACK)
    }

    fn decode(
        &self,
        point: OperatingPoint,
        stream: &[u8],
        layers: usize,
    ) -> Result<Vec<f32>, ModelError> {
        let codec = self.bundle.codec(point.split, point.width, point.bits);
        let codec = codec.ok_or_else(|| ModelError::new(format!("no codec for {point}")))?;
        let symbols = codec.decode(stream, layers).map_err(ModelError::new)?;
        let mut latents = Vec::new();
        codec.dequantise(&symbols, &mut latents).map_err(ModelError::new)?;
        Ok(latents)
    }

    fn infer(&self, batch: &[TailItem<'_>]) -> Result<Vec<Vec<f32>>, ModelError> {
        self.tail.run(batch).map_err(ModelError::new)
    }
}
