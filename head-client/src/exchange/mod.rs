//! The device's side of the protocol, from hello to goodbye and from a frame's first byte to its
//! checked reply, as state machines without I/O.
//!
//! Whoever has a network drives them: the QUIC and gRPC shells of this crate in real time, the
//! simulator in virtual time.
//!
//! - [`Handshake`]: what is said before frames, the hello and the check of the server's welcome.
//! - [`Outgoing`]: the bytes of a frame or of a probe, with what is asked for.
//! - [`Exchange`]: one of them on a stream of its own, as over QUIC.
//! - [`Messages`]: all of them on one stream of messages, as over gRPC.
//! - [`check`]: what a reply has to be to be used at all.
//! - [`Backoff`]: the pauses between attempts to connect.
//!
//! A machine is told what happened by its `handle_` methods, and says what to do next by its `poll_`
//! methods.

mod backoff;
mod handshake;
mod messages;
mod outgoing;
mod reply;
mod stream;

use std::time::Duration;

pub use backoff::{Backoff, FIRST_PAUSE, LONGEST_PAUSE};
pub use handshake::{Handshake, Limits, WelcomeError};
pub use messages::{MessageError, Messages};
pub use outgoing::{BoundBundle, Outgoing, PROBE_PRIORITY, priority};
pub use reply::{Asked, Checked, Outcome, ReplyError, check};
pub use stream::Exchange;

/// How long an attempt to connect may take, welcome included, unless configured otherwise.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Error code that resets a frame's stream, both ways, when its answer is no longer wanted or its
/// reply cannot be used.
pub const CANCELLED: u32 = 1;

/// Error code that closes a connection on which all is done.
pub const CLOSED: u32 = 0;
