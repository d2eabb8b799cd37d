//! Why a server does not start.

use std::io;
use std::net::SocketAddr;

use isthmus_models::EngineKindError;
use isthmus_telemetry::spans::EndpointError;

use crate::config::ConfigError;
use crate::repository::RegistryError;
use crate::tls::TlsError;

/// Why a server did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A value is missing or out of range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// There is no such engine here.
    #[error(transparent)]
    Engine(#[from] EngineKindError),
    /// A bundle is missing, bad or cannot be run.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// There is no usable certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// There is no such collector.
    #[error(transparent)]
    Collector(#[from] EndpointError),
    /// An address cannot be listened on.
    #[error("cannot listen on {address} for {transport} ({option} chooses another port)")]
    Bind {
        /// What for.
        transport: &'static str,
        /// The option that moves it.
        option: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// The system gives no threads.
    #[error("worker threads cannot be started: {0}")]
    Threads(io::Error),
}
