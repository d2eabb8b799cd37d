//! Error codes with which the server closes a QUIC connection or stops a stream.

/// Nothing is wrong.
pub const DONE: u32 = 0;
/// The control stream is unintelligible, or names a protocol version not spoken here.
pub const BAD_HELLO: u32 = 1;
/// The server is shutting down.
pub const DRAINING: u32 = 2;
/// The rest of the frame is not wanted; the reply says why.
pub const REFUSED: u32 = 3;
/// The connection was idle and its place is needed, or it made the server keep too much.
pub const EVICTED: u32 = 4;
