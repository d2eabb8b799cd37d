//! What carries frames from devices to the server, and replies back.

mod ideal;
mod links;
mod quic;

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use isthmus_head_client::ServerReply;
use isthmus_head_client::exchange::{BoundBundle, Checked};
use isthmus_models::{Decoders, TOP_CLASSES};
use isthmus_proto::wire::Feedback;
use isthmus_proto::{Bitrate, Content, DataSize, Timestamp};
use quinn_proto::StreamId;

use super::DIGEST;
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

/// Where a frame is at the server: the connection of a camera's device, and the frame's stream on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) camera: u32,
    /// The transport's name for the connection.
    pub(super) connection: usize,
    pub(super) stream: StreamId,
}

/// The server's side, as the real programs have it.
pub(super) type Exchange = isthmus_tail_server::exchange::Exchange<Route>;

/// What a transport reports of the devices.
#[derive(Clone, Debug)]
pub(super) enum Event {
    /// A device has a connection.
    Up { camera: u32, round_trip: Duration },
    /// It has lost it.
    Down { camera: u32 },
    /// A reply reached the device.
    Replied { key: Key, reply: ServerReply },
    /// The echo of a probe reached the device.
    Echoed { key: Key, feedback: Feedback },
    /// There will be none.
    Lost { key: Key },
}

/// Carries frames from devices to the server's exchange, and replies back. Pure, as links are: it is
/// told the time.
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

    /// Carries out what the exchange has ordered.
    fn carry_out(&mut self, now: Timestamp, exchange: &mut Exchange);

    /// All devices' addresses change, as the server sees them.
    fn rebind(&mut self);

    /// Does what is due, up to the first arrival after which a frame waits for a worker: one that is
    /// free takes it before the next arrival.
    fn handle_timeout(&mut self, now: Timestamp, exchange: &mut Exchange);

    /// When there is something to do next.
    fn poll_timeout(&self) -> Option<Timestamp>;

    /// What happened.
    fn poll_event(&mut self) -> Option<Event>;

    /// How the packets on the way to the server ended, of all devices together.
    fn uplink(&self) -> LinkCounters;

    /// The rate of the link on a camera's way to the server, and what waits before it or is being sent.
    fn uplink_of(&mut self, now: Timestamp, camera: u32) -> (Bitrate, DataSize);

    /// Packets that the server sent to an address which was no longer the device's.
    fn misdirected(&self) -> u64;
}

/// What a device asks of the simulated network: classes of which the answers say no more than how many
/// bytes they have. What an answer is worth is the record's.
fn bundle() -> BoundBundle {
    static DECODERS: LazyLock<Arc<Decoders>> = LazyLock::new(|| {
        Arc::new(Decoders::classifier((0..=TOP_CLASSES).map(|it| it.to_string())))
    });
    BoundBundle { digest: DIGEST, decoders: Arc::clone(&DECODERS) }
}

/// What a checked reply means to a device.
fn event(key: Key, checked: Checked) -> Event {
    match checked {
        Checked::Reply { reply, .. } => Event::Replied { key, reply },
        Checked::Echo(feedback) => Event::Echoed { key, feedback },
    }
}
