//! The networks that a server holds.

use std::collections::BTreeMap;
use std::sync::Arc;

use isthmus_proto::BundleDigest;

use crate::model::Model;

/// Networks by position, and by digest.
pub struct Registry {
    models: Vec<Arc<dyn Model>>,
    positions: BTreeMap<BundleDigest, usize>,
}

impl Registry {
    /// A registry of `models`; of several with the same digest the first one is served.
    pub fn new(models: Vec<Arc<dyn Model>>) -> Self {
        let mut positions = BTreeMap::new();
        for (position, model) in models.iter().enumerate() {
            positions.entry(model.digest()).or_insert(position);
        }
        Registry { models, positions }
    }

    /// Where the bundle of this digest is.
    pub fn position(&self, digest: &BundleDigest) -> Option<usize> {
        self.positions.get(digest).copied()
    }

    /// The network at a position.
    ///
    /// # Panics
    ///
    /// If there is none: positions come from [`position`](Self::position).
    pub fn model(&self, position: usize) -> &Arc<dyn Model> {
        &self.models[position]
    }

    /// All networks, in order of position.
    pub fn models(&self) -> &[Arc<dyn Model>] {
        &self.models
    }
}
