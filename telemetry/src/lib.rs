//! How Isthmus' programs are watched and ended: what client and server do alike so that people,
//! Prometheus, orchestrators and a collector of OpenTelemetry see what they do.
//!
//! [`log`] starts the log, [`http`] serves pages, [`prometheus`] writes one of them, [`stop`] hears
//! when to end, and with feature `otel` `spans` sends finished spans to a collector. None of it ever
//! makes a frame wait.
//!
//! It knows nothing of frames: the programs decide what is reported.

#![forbid(unsafe_code)]

pub mod http;
pub mod log;
pub mod prometheus;
#[cfg(feature = "otel")]
pub mod spans;
pub mod stop;
