//! The network of a simulated server, of which the world knows the outcomes: it admits frames, and is
//! never run.

use std::sync::Arc;

use isthmus_models::{Outputs, PictureError, TailItem};
use isthmus_proto::{BundleDigest, ImageFormat, OperatingPoint};
use isthmus_tail_server::Registry;
use isthmus_tail_server::model::{FullNetwork, Model, ModelError};

use super::DIGEST;

/// Takes every operating point and every picture.
pub(super) struct Recorded;

impl Recorded {
    /// What a simulated server holds.
    pub(super) fn registry() -> Arc<Registry> {
        Arc::new(Registry::new(vec![Arc::new(Recorded)]))
    }
}

fn never_run<T>() -> Result<T, ModelError> {
    Err(ModelError::new("a simulated network is not run"))
}

impl Model for Recorded {
    fn name(&self) -> &str {
        "simulated"
    }

    fn digest(&self) -> BundleDigest {
        DIGEST
    }

    fn max_stream_bytes(&self, _: OperatingPoint) -> Option<usize> {
        Some(usize::MAX)
    }

    fn decode(&self, _: OperatingPoint, _: &[u8], _: usize) -> Result<Vec<f32>, ModelError> {
        never_run()
    }

    fn infer(&self, _: &[TailItem<'_>]) -> Result<Vec<Outputs>, ModelError> {
        never_run()
    }

    fn full_network(&self) -> Option<&dyn FullNetwork> {
        Some(self)
    }
}

impl FullNetwork for Recorded {
    fn decode(&self, _: ImageFormat, _: &[u8]) -> Result<Vec<f32>, PictureError> {
        Ok(Vec::new())
    }

    fn infer(&self, _: &[&[f32]]) -> Result<Vec<Outputs>, ModelError> {
        never_run()
    }
}
