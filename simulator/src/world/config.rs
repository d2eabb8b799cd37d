//! What is simulated: devices, path and server.

use std::time::Duration;

use clap::ValueEnum;
use isthmus_tail_server::batcher::{BatcherConfig, Lane};
use isthmus_tail_server::exchange::ExchangeConfig;
use isthmus_tail_server::receiver::ReceiverConfig;
use serde::Deserialize;

use super::device::Device;
use crate::profile::PathConfig;

/// What is simulated.
#[derive(Clone, Debug)]
pub struct WorldConfig {
    /// Devices, each with a camera.
    pub cameras: u32,
    /// Time between frames of a camera.
    pub interval: Duration,
    /// For how long frames are captured.
    pub duration: Duration,
    /// From capture to output.
    pub deadline: Duration,
    /// Frames of a device that may be sent and unanswered.
    pub in_flight: usize,
    /// The path between the devices and the server.
    pub path: PathConfig,
    /// Whether each device has such a path to itself; else they share one.
    pub own_paths: bool,
    /// What carries frames over it.
    pub transport: TransportKind,
    /// How long a device takes.
    pub device: Device,
    /// The server.
    pub server: ServerConfig,
    /// Everything random hangs from it.
    pub seed: u64,
}

/// What carries frames over a path.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum TransportKind {
    /// Packets enter the link at once, and a lost one is sent again a round trip later; no
    /// handshake, no acknowledgements, no congestion control, and no frame is cut short.
    #[default]
    Ideal,
    /// The real QUIC state machine at both ends, configured as client and server have it.
    Quic,
}

impl WorldConfig {
    /// Paths between devices and server.
    pub(super) fn paths(&self) -> u32 {
        if self.own_paths { self.cameras } else { 1 }
    }
}

/// A simulated server.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServerConfig {
    /// Workers, batches and queue.
    pub batcher: BatcherConfig,
    /// Most unanswered frames of a device.
    pub max_in_flight: usize,
    /// Entropy decoding of a frame.
    pub decode: Duration,
    /// A run of the tail, whatever its batch.
    pub tail: Duration,
    /// What each frame of a batch adds.
    pub tail_per_frame: Duration,
    /// Decompressing a picture and preparing it.
    pub decompress: Duration,
    /// A run of the full network on pictures, whatever its batch.
    pub full: Duration,
    /// What each picture of a batch adds.
    pub full_per_frame: Duration,
}

impl ServerConfig {
    pub(super) fn exchange(&self) -> ExchangeConfig {
        ExchangeConfig {
            receiver: ReceiverConfig::default(),
            batcher: self.batcher,
            max_in_flight: self.max_in_flight,
            max_connections: usize::MAX,
            max_connections_per_address: usize::MAX,
            max_buffered_bytes: usize::MAX,
        }
    }

    /// What decoding a frame of a lane takes, a run of its network, and what each frame adds to that.
    pub(super) fn times(&self, lane: Lane) -> [Duration; 3] {
        match lane.split {
            Some(_) => [self.decode, self.tail, self.tail_per_frame],
            None => [self.decompress, self.full, self.full_per_frame],
        }
    }
}
