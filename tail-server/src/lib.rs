//! The server's side of Isthmus: it receives coded features of frames, or compressed pictures, runs
//! the tails of the networks it holds, or those networks in one piece, and answers.
//!
//! The core is pure: it reads no clock or file, opens no socket and starts no thread. The
//! [`exchange`] follows every connection from its hello to its end and every frame from its first
//! byte to its verdict. It is made of a [`receiver`], which takes one frame in, [`admission`], which
//! decides on its header before anything is decoded, and the [`batcher`], which decides which frames
//! a free worker runs together. With feature `shell`, [`Server`] drives it over QUIC and gRPC, with
//! worker threads and graceful shutdown, and serves health and metrics over HTTP.
//!
//! It never trusts a length it has not checked, never decodes what was not verified against the
//! bundle's digest, never lets a waiting frame outlive its time left, and never loses a frame
//! without counting it ([`Counters`]).
//!
//! Read [`exchange::Exchange`] and [`batcher::Batcher`] first.

#![forbid(unsafe_code)]
// The modules of the shell are named below.
#![deny(clippy::disallowed_methods)]

pub mod admission;
pub mod batcher;
pub mod code;
pub mod counters;
pub mod exchange;
pub mod handshake;
pub mod model;
pub mod receiver;
pub mod registry;

#[cfg(feature = "shell")]
#[allow(clippy::disallowed_methods)]
mod accept;
#[cfg(feature = "shell")]
#[allow(clippy::disallowed_methods)]
mod bundle;
#[cfg(feature = "shell")]
#[allow(clippy::disallowed_methods)]
pub mod config;
#[cfg(feature = "shell")]
#[allow(clippy::disallowed_methods)]
mod gate;
#[cfg(feature = "shell")]
#[allow(clippy::disallowed_methods)]
mod grpc;
#[cfg(feature = "shell")]
#[allow(clippy::disallowed_methods)]
mod http;
#[cfg(feature = "shell")]
mod metrics;
#[cfg(feature = "shell")]
#[allow(clippy::disallowed_methods)]
mod quic;
#[cfg(feature = "shell")]
#[allow(clippy::disallowed_methods)]
mod repository;
#[cfg(feature = "shell")]
mod scrape;
#[cfg(feature = "shell")]
#[allow(clippy::disallowed_methods)]
mod server;
#[cfg(feature = "shell")]
mod spans;
#[cfg(feature = "shell")]
mod start_error;
#[cfg(feature = "shell")]
#[allow(clippy::disallowed_methods)]
pub mod tls;
#[cfg(feature = "shell")]
#[allow(clippy::disallowed_methods)]
mod worker;

pub use counters::Counters;
pub use registry::Registry;

#[cfg(feature = "shell")]
pub use config::ServerConfig;
#[cfg(feature = "shell")]
pub use quic::transport_config;
#[cfg(feature = "shell")]
pub use repository::RegistryError;
#[cfg(feature = "shell")]
pub use server::Server;
#[cfg(feature = "shell")]
pub use start_error::StartError;
#[cfg(feature = "shell")]
pub use tls::{Fingerprint, TlsConfig};
