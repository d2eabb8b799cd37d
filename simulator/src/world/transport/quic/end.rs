//! What both ends of a connection do alike.

use std::time::{Duration, Instant};

use bytes::Bytes;
use isthmus_proto::Timestamp;
use quinn_proto::{Connection, ConnectionHandle, Endpoint, ReadError, StreamId, Transmit, VarInt};

/// Most datagrams that are made at once, as in quinn where the system takes several at a time.
const SEGMENTS: usize = 10;

/// Most bytes read at once.
const CHUNK: usize = 64 << 10;

/// Virtual time as the state machine knows it. All instants are relative to one that is arbitrary.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock(Instant);

impl Clock {
    /// A clock whose zero is now, which is as good as any other instant: none can be made of nothing.
    #[allow(clippy::disallowed_methods)]
    pub(super) fn start() -> Self {
        Clock(Instant::now())
    }

    pub(super) fn instant(self, at: Timestamp) -> Instant {
        self.0 + Duration::from_micros(at.as_micros())
    }

    /// The first whole microsecond not before `at`.
    pub(super) fn timestamp(self, at: Instant) -> Timestamp {
        let nanos = at.saturating_duration_since(self.0).as_nanos();
        Timestamp::from_micros(u64::try_from(nanos.div_ceil(1_000)).unwrap_or(u64::MAX))
    }
}

/// Lets endpoint and connection tell each other what they have to; whether there was anything.
pub(super) fn reconcile(
    endpoint: &mut Endpoint,
    handle: ConnectionHandle,
    connection: &mut Connection,
) -> bool {
    let mut any = false;
    while let Some(event) = connection.poll_endpoint_events() {
        any = true;
        if let Some(answer) = endpoint.handle_event(handle, event) {
            connection.handle_event(answer);
        }
    }
    any
}

/// Hands every datagram that the connection wants to send to `send`.
pub(super) fn transmit(
    connection: &mut Connection,
    now: Instant,
    buffer: &mut Vec<u8>,
    mut send: impl FnMut(&Transmit, Bytes),
) {
    buffer.clear();
    while let Some(transmit) = connection.poll_transmit(now, SEGMENTS, buffer) {
        for datagram in datagrams(&transmit, buffer) {
            send(&transmit, datagram);
        }
        buffer.clear();
    }
}

/// What `transmit` says lies in `buffer`, one by one.
pub(super) fn datagrams<'a>(
    transmit: &Transmit,
    buffer: &'a [u8],
) -> impl Iterator<Item = Bytes> + use<'a> {
    let segment = transmit.segment_size.unwrap_or(transmit.size).max(1);
    buffer[..transmit.size].chunks(segment).map(Bytes::copy_from_slice)
}

/// What could be read of a stream.
pub(super) struct Read {
    pub(super) chunks: Vec<Bytes>,
    /// Nothing more will come.
    pub(super) ended: bool,
    /// The other end gave it up.
    pub(super) reset: bool,
}

/// Reads what has come; a stream that is closed has ended.
pub(super) fn read(connection: &mut Connection, stream: StreamId) -> Read {
    let mut read = Read { chunks: Vec::new(), ended: false, reset: false };
    let mut stream = connection.recv_stream(stream);
    let Ok(mut chunks) = stream.read(true) else {
        read.ended = true;
        return read;
    };
    loop {
        match chunks.next(CHUNK) {
            Ok(Some(chunk)) => read.chunks.push(chunk.bytes),
            Ok(None) => read.ended = true,
            Err(ReadError::Reset(_)) => (read.ended, read.reset) = (true, true),
            Err(ReadError::Blocked) => break,
        }
        if read.ended {
            break;
        }
    }
    // All that is to be sent is asked for in the end, whether or not this says that there is some.
    let _ = chunks.finalize();
    read
}

/// Writes a message that is shorter than any window, and ends the stream.
pub(super) fn write_last(connection: &mut Connection, stream: StreamId, bytes: &[u8]) {
    let mut stream = connection.send_stream(stream);
    // Both fail where the other end wants none of it.
    if stream.write(bytes).is_ok() {
        let _ = stream.finish();
    }
}

/// Ends a stream both ways, with one code.
pub(super) fn abandon(connection: &mut Connection, stream: StreamId, code: VarInt) {
    // Each fails where its side has ended.
    let _ = connection.send_stream(stream).reset(code);
    let _ = connection.recv_stream(stream).stop(code);
}
