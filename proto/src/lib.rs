//! What both ends of Isthmus agree on, byte for byte.
//!
//! A device runs a network's head and sends its quantised, entropy-coded features; a server
//! decodes them and runs the tail. This crate holds everything the two must do identically: units
//! and ids, the feature codec ([`FeatureCodec`]), the layered [packet] that carries one
//! frame's features or its compressed picture, the [envelope] around it, and the control messages
//! ([`wire`]) with their [`Framer`].
//!
//! It does no I/O, reads no clock, starts no thread, draws no random number and knows nothing of
//! neural networks. Nothing in it depends on floating-point results that could differ between
//! machines, but for the quantiser's one division and rounding, which IEEE 754 fixes.
//!
//! Read [`FeatureCodec`] and [`PacketHeader`] first.

#![forbid(unsafe_code)]
#![deny(clippy::disallowed_methods)]

pub mod boxes;
pub mod envelope;
pub mod framer;
pub mod packet;

mod codec;
mod context;
mod point;
mod quantiser;
mod range_coder;
mod tables;
mod trace;
mod units;
mod varint;

pub use codec::{CodecError, Coded, FeatureCodec, LatentShape};
pub use context::fit::FittedContexts;
pub use envelope::{Envelope, EnvelopeError, padding_len, write_padding};
pub use framer::{Framer, FramerError};
pub use packet::{PacketError, PacketHeader, write_image_packet, write_packet};
pub use point::{
    Arm, BundleDigest, Content, DigestError, FrameId, ImageFormat, ImageFormatError, OperatingPoint,
};
pub use quantiser::{Quantiser, QuantiserError};
pub use tables::{FrequencyTables, TableError};
pub use trace::{Part, TraceContext, TraceIds};
pub use units::{Bitrate, DataSize, Timestamp};

/// Messages generated from `schema/isthmus/v1/isthmus.proto`, and, with feature `grpc`, the
/// service's client and server.
#[allow(missing_docs, clippy::all, clippy::unwrap_used)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/isthmus.v1.rs"));
}

/// The ALPN protocol id of Isthmus over QUIC.
pub const ALPN: &[u8] = b"isthmus/1";

/// The version that `Hello` and `Welcome` carry.
pub const PROTOCOL_VERSION: u32 = 1;

/// Largest frame (envelope and packet, bytes) that a server accepts unless configured otherwise.
pub const DEFAULT_MAX_FRAME_BYTES: usize = 1 << 20;

/// Largest control message (bytes) either end accepts: a hello with all the bundles that it may name
/// ([`packet::MAX_BUNDLES`]) fits many times over.
pub const MAX_CONTROL_BYTES: usize = 64 << 10;

/// Largest reply (bytes) that a device takes: maps and tensors are larger than any control message.
pub const MAX_REPLY_BYTES: usize = 4 << 20;
