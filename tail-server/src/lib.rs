//! The server's side of Isthmus: it receives coded features of frames, or compressed pictures, runs
//! the tails of the networks it holds, or those networks in one piece, and answers.
//!
//! The core is pure: it reads no clock, opens no socket and starts no thread. A [`receiver`] takes
//! one frame in, [`admission`] decides on its header before anything is decoded, and the
//! [`batcher`] decides which frames a free worker runs together. With feature `shell`, [`Server`]
//! drives them over QUIC and gRPC, with worker threads and graceful shutdown, and tells health and
//! metrics over HTTP.
//!
//! It never trusts a length it has not checked, never decodes what was not verified against the
//! bundle's digest, never lets a waiting frame outlive its time left, and never loses a frame
//! without counting it ([`Counters`]).
//!
//! Read [`batcher::Batcher`] and [`receiver::Receiver`] first.

pub mod admission;
pub mod batcher;
pub mod counters;
pub mod model;
pub mod receiver;
pub mod registry;

#[cfg(feature = "shell")]
pub mod config;
#[cfg(feature = "shell")]
mod gate;
#[cfg(feature = "shell")]
mod grpc;
#[cfg(feature = "shell")]
mod http;
#[cfg(feature = "shell")]
mod metrics;
#[cfg(feature = "shell")]
mod quic;
#[cfg(feature = "shell")]
mod server;
#[cfg(feature = "shell")]
mod spans;
#[cfg(feature = "shell")]
pub mod tls;
#[cfg(feature = "shell")]
mod worker;

pub use counters::Counters;
pub use registry::Registry;

#[cfg(feature = "shell")]
pub use config::ServerConfig;
#[cfg(feature = "shell")]
pub use quic::{code, transport_config};
#[cfg(feature = "shell")]
pub use server::{Server, StartError};
#[cfg(feature = "shell")]
pub use tls::{Fingerprint, TlsConfig};
