//! Digests of content, in hexadecimal.

use sha2::{Digest, Sha256};

/// SHA-256 of `bytes`.
pub(crate) fn digest(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}
