//! The connection to a server over real sockets: what drives the [exchange](crate::exchange) of
//! frames over QUIC and over gRPC, and checks who the server is.

mod grpc;
mod link;
mod protocol;
pub mod quic;
pub mod tls;

pub use link::{ConnectError, Unconnected};
pub(crate) use link::{Dialer, Link};
pub(crate) use protocol::{Command, Event};
