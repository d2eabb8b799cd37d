//! A bundle's tail, and its network in one piece, behind what the server asks of a network.

use std::sync::{Arc, Mutex, PoisonError};

use isthmus_models::{
    Bundle, Engine, Full, Outputs, PictureError, Preprocessor, Tail, TailItem, Wanted,
    decode_image, max_image_pixels,
};
use isthmus_proto::{BundleDigest, ImageFormat, OperatingPoint, wire};

use crate::model::{FullNetwork, Model, ModelError};

/// Most bits that one symbol can take: a frequency is at least 1 in 2^16.
const MAX_SYMBOL_BITS: usize = 16;
/// What a range coder may add at the end of a stream (bytes), generously.
const STREAM_SLACK: usize = 16;

/// A verified bundle with its tail prepared.
///
/// The full network is loaded with the first compressed picture, because most servers see none.
/// That picture waits for it, and from then on it takes several times its file's size in memory.
pub struct BundleModel {
    bundle: Arc<Bundle>,
    engine: Arc<dyn Engine>,
    tail: Tail,
    preprocessor: Preprocessor,
    full: Mutex<Option<Arc<Full>>>,
}

impl BundleModel {
    /// Prepares every adapter and trunk of `bundle`.
    pub fn load(bundle: Arc<Bundle>, engine: Arc<dyn Engine>) -> Result<Self, ModelError> {
        let tail = Tail::load(Arc::clone(&bundle), &*engine).map_err(ModelError::new)?;
        let preprocessor = Preprocessor::new(&bundle.manifest().input);
        Ok(BundleModel { bundle, engine, tail, preprocessor, full: Mutex::default() })
    }

    /// The full network. A failure is not remembered: what was in the way may be gone the next time.
    fn full(&self) -> Result<Arc<Full>, ModelError> {
        let mut full = self.full.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(full) = &*full {
            return Ok(Arc::clone(full));
        }
        let file = &self.bundle.manifest().full.file;
        tracing::info!(bundle = self.bundle.name(), file, "loading it for compressed pictures");
        let loaded =
            Full::load(Arc::clone(&self.bundle), &*self.engine).map_err(ModelError::new)?;
        Ok(Arc::clone(full.insert(Arc::new(loaded))))
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

    fn infer(&self, batch: &[TailItem<'_>]) -> Result<Vec<Outputs>, ModelError> {
        self.tail.run(batch).map_err(ModelError::new)
    }

    fn answers(&self, outputs: Outputs, wanted: Wanted) -> Result<Vec<wire::Answer>, ModelError> {
        let decoders = self.bundle.decoders();
        let answers = decoders.answers(outputs, wanted.min_confidence).map_err(ModelError::new)?;
        Ok(decoders.to_wire(answers, wanted))
    }

    fn full_network(&self) -> Option<&dyn FullNetwork> {
        Some(self)
    }
}

impl FullNetwork for BundleModel {
    fn decode(&self, format: ImageFormat, file: &[u8]) -> Result<Vec<f32>, PictureError> {
        let most = max_image_pixels(&self.bundle.manifest().input);
        let mut input = Vec::new();
        self.preprocessor.run(&decode_image(format, file, most)?, &mut input);
        Ok(input)
    }

    fn infer(&self, batch: &[&[f32]]) -> Result<Vec<Outputs>, ModelError> {
        self.full()?.run(batch).map_err(ModelError::new)
    }
}
