//! What carries frames from devices to the server, and replies back.

mod ideal;
mod links;
mod quic;

use std::time::Duration;

use isthmus_head_client::ServerReply;
use isthmus_proto::wire::Feedback;
use isthmus_proto::{Bitrate, Content, DataSize, Timestamp};

use crate::link::LinkCounters;

pub(super) use ideal::Ideal;
pub(super) use quic::Quic;

/// A frame of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) camera: u32,
    pub(super) frame: u64,
}

/// A coded frame on its way out.
#[derive(Clone, Debug)]
pub(super) struct Upload {
    pub(super) key: Key,
    pub(super) content: Content,
    /// Bytes up to and with each layer, envelope and header included; a picture is one layer.
    pub(super) layer_ends: Vec<usize>,
    /// As the wire tells it, in whole milliseconds.
    pub(super) time_left: Duration,
    /// When the device gives the frame up.
    pub(super) answer_by: Timestamp,
}

/// What a transport tells.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A device has a connection.
    Up { camera: u32, round_trip: Duration },
    /// It has lost it.
    Down { camera: u32 },
    /// A frame's header reached the server; answer with [`Transport::admit`] or
    /// [`Transport::reply`].
    Announced { key: Key },
    /// All of an admitted frame that will come has come.
    Received(Received),
    /// The server heard that nobody wants an admitted frame's answer any more.
    Unwanted { key: Key },
    /// A reply reached the device.
    Replied { key: Key, reply: ServerReply },
    /// The echo of a probe reached the device.
    Echoed { key: Key, feedback: Feedback },
    /// There will be none.
    Lost { key: Key },
}

/// What arrived of a frame.
#[derive(Clone, Copy, Debug)]
pub(super) struct Received {
    pub(super) key: Key,
    /// What the device meant to send.
    pub(super) content: Content,
    /// Layers that arrived whole, at least 1.
    pub(super) layers: u8,
    /// When the answer is worthless, on the server.
    pub(super) deadline: Timestamp,
    /// First to last byte.
    pub(super) span: Duration,
}

/// Carries frames and replies. Pure, as links are: it is told the time.
///
/// After every call, drain [`poll_event`](Transport::poll_event); at
/// [`poll_timeout`](Transport::poll_timeout), call [`handle_timeout`](Transport::handle_timeout).
pub(super) trait Transport {
    /// A device sends a frame.
    fn send(&mut self, now: Timestamp, upload: Upload);

    /// A device sends a probe with so many bytes of padding, which the server echoes; its number is
    /// that of a frame which is not sent.
    fn probe(&mut self, now: Timestamp, key: Key, padding: usize, time_left: Duration);

    /// A device has given a frame or probe up, or it has ended.
    fn cancel(&mut self, now: Timestamp, key: Key);

    /// The server lets an announced frame in, which it expects to wait and run for so long.
    fn admit(&mut self, now: Timestamp, key: Key, compute: Duration);

    /// The server replies to a frame that was announced.
    fn reply(&mut self, now: Timestamp, key: Key, reply: ServerReply);

    /// All devices' addresses change, as the server sees them.
    fn rebind(&mut self);

    /// Does what is due.
    fn handle_timeout(&mut self, now: Timestamp);

    /// When there is something to do next.
    fn poll_timeout(&self) -> Option<Timestamp>;

    /// What happened.
    fn poll_event(&mut self) -> Option<Event>;

    /// What became of the packets on the way to the server, of all devices together.
    fn uplink(&self) -> LinkCounters;

    /// The rate of the link on a camera's way to the server, and what waits before it or is being sent.
    fn uplink_of(&mut self, now: Timestamp, camera: u32) -> (Bitrate, DataSize);

    /// Packets that the server sent to an address which was no longer the device's.
    fn misdirected(&self) -> u64;
}
