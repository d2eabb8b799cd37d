//! quinn's state machine in virtual time, as both ends of a connection drive it.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use isthmus_proto::Timestamp;
use quinn_proto::{
    ClientConfig, Connection, ConnectionHandle, DatagramEvent, EndpointConfig, Event, Incoming,
    ReadError, ServerConfig, StreamId, Transmit, VarInt,
};

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

    fn instant(self, at: Timestamp) -> Instant {
        self.0 + Duration::from_micros(at.as_micros())
    }

    /// The first whole microsecond not before `at`.
    fn timestamp(self, at: Instant) -> Timestamp {
        let nanos = at.saturating_duration_since(self.0).as_nanos();
        Timestamp::from_micros(u64::try_from(nanos.div_ceil(1_000)).unwrap_or(u64::MAX))
    }
}

/// An endpoint with its connections; `S` is what its end keeps of each.
pub(super) struct Endpoint<S> {
    pub(super) clock: Clock,
    endpoint: quinn_proto::Endpoint,
    /// It answers what is no connection's, too.
    listens: bool,
    connections: BTreeMap<usize, Connected<S>>,
    buffer: Vec<u8>,
    /// What has to be sent, and where to.
    pub(super) transmits: VecDeque<(SocketAddr, Bytes)>,
}

pub(super) struct Connected<S> {
    pub(super) handle: usize,
    pub(super) quic: Connection,
    /// Its first stream, on which the ends greet each other.
    pub(super) control: Option<StreamId>,
    pub(super) state: S,
}

/// What a datagram was.
pub(super) enum Arrived {
    /// One of a connection, which may have something to do now.
    Of(usize),
    /// The first of a new one.
    New(Box<Incoming>),
}

impl<S> Endpoint<S> {
    /// An endpoint that accepts connections if there is a `server`.
    pub(super) fn new(
        clock: Clock,
        config: Arc<EndpointConfig>,
        server: Option<Arc<ServerConfig>>,
    ) -> Self {
        Endpoint {
            clock,
            listens: server.is_some(),
            endpoint: quinn_proto::Endpoint::new(config, server, true, None),
            connections: BTreeMap::new(),
            buffer: Vec::new(),
            transmits: VecDeque::new(),
        }
    }

    /// Begins a connection to `host`, which lives at `server`.
    pub(super) fn connect(
        &mut self,
        now: Timestamp,
        config: ClientConfig,
        (server, host): (SocketAddr, &str),
        state: S,
    ) -> usize {
        let dialled = self.endpoint.connect(self.clock.instant(now), config, server, host);
        let (handle, quic) = dialled.expect("the server's name and address are valid");
        self.keep(handle, quic, state)
    }

    /// Takes a connection, unless its first datagram is none after all.
    pub(super) fn accept(&mut self, now: Timestamp, it: Incoming, state: S) -> Option<usize> {
        let mut answer = Vec::new();
        match self.endpoint.accept(it, self.clock.instant(now), &mut answer, None) {
            Ok((handle, quic)) => Some(self.keep(handle, quic, state)),
            Err(error) => {
                error.response.into_iter().for_each(|transmit| self.answer(&transmit, &answer));
                None
            }
        }
    }

    fn keep(&mut self, handle: ConnectionHandle, quic: Connection, state: S) -> usize {
        let connected = Connected { handle: handle.0, quic, control: None, state };
        self.connections.insert(handle.0, connected);
        handle.0
    }

    pub(super) fn refuse(&mut self, incoming: Incoming) {
        let mut answer = Vec::new();
        let transmit = self.endpoint.refuse(incoming, &mut answer);
        self.answer(&transmit, &answer);
    }

    fn answer(&mut self, transmit: &Transmit, answer: &[u8]) {
        let answers = datagrams(transmit, answer);
        self.transmits.extend(answers.map(|bytes| (transmit.destination, bytes)));
    }

    pub(super) fn get(&mut self, handle: usize) -> Option<&mut Connected<S>> {
        self.connections.get_mut(&handle)
    }

    /// Lets go of a connection without a word to its other end.
    pub(super) fn forget(&mut self, handle: usize) -> Option<S> {
        self.connections.remove(&handle).map(|connected| connected.state)
    }

    pub(super) fn handle_datagram(
        &mut self,
        now: Timestamp,
        remote: SocketAddr,
        datagram: &[u8],
    ) -> Option<Arrived> {
        let (at, data) = (self.clock.instant(now), BytesMut::from(datagram));
        let mut answer = Vec::new();
        match self.endpoint.handle(at, remote, None, None, data, &mut answer)? {
            DatagramEvent::ConnectionEvent(ConnectionHandle(handle), event) => {
                self.get(handle)?.quic.handle_event(event);
                Some(Arrived::Of(handle))
            }
            DatagramEvent::NewConnection(incoming) => Some(Arrived::New(Box::new(incoming))),
            DatagramEvent::Response(transmit) if self.listens => {
                self.answer(&transmit, &answer);
                None
            }
            DatagramEvent::Response(_) => None,
        }
    }

    pub(super) fn handle_timeout(&mut self, now: Timestamp, handle: usize) {
        let at = self.clock.instant(now);
        let Some(Connected { quic, .. }) = self.connections.get_mut(&handle) else { return };
        if quic.poll_timeout().is_some_and(|due| due <= at) {
            quic.handle_timeout(at);
        }
    }

    /// When a connection has something to do, or what its end keeps of it, as `own` says.
    pub(super) fn poll_timeout(
        &mut self,
        handle: usize,
        own: impl Fn(&S) -> Option<Timestamp>,
    ) -> Option<Timestamp> {
        let Connected { quic, state, .. } = self.connections.get_mut(&handle)?;
        let due = quic.poll_timeout().map(|due| self.clock.timestamp(due));
        due.into_iter().chain(own(state)).min()
    }

    /// What happened on a connection next. Ask until there is nothing, then
    /// [`transmit`](Self::transmit).
    pub(super) fn poll(&mut self, handle: usize) -> Option<(&mut Connected<S>, Event)> {
        let connected = self.connections.get_mut(&handle)?;
        while let Some(event) = connected.quic.poll_endpoint_events() {
            if let Some(answer) = self.endpoint.handle_event(ConnectionHandle(handle), event) {
                connected.quic.handle_event(answer);
            }
        }
        let event = connected.quic.poll()?;
        Some((connected, event))
    }

    /// Takes what a connection wants to send, and lets it go where that was its last.
    pub(super) fn transmit(&mut self, now: Timestamp, handle: usize) {
        let at = self.clock.instant(now);
        let Some(Connected { quic, .. }) = self.connections.get_mut(&handle) else { return };
        self.buffer.clear();
        while let Some(transmit) = quic.poll_transmit(at, SEGMENTS, &mut self.buffer) {
            let made = datagrams(&transmit, &self.buffer);
            self.transmits.extend(made.map(|bytes| (transmit.destination, bytes)));
            self.buffer.clear();
        }
        if quic.is_drained() {
            self.connections.remove(&handle);
        }
    }

    /// Closes a connection, and says why.
    pub(super) fn close(&mut self, now: Timestamp, handle: usize, code: u32, why: String) {
        let at = self.clock.instant(now);
        if let Some(Connected { quic, .. }) = self.get(handle) {
            quic.close(at, code.into(), why.into());
        }
    }
}

/// What `transmit` says lies in `buffer`, one by one.
fn datagrams<'a>(transmit: &Transmit, buffer: &'a [u8]) -> impl Iterator<Item = Bytes> + use<'a> {
    let segment = transmit.segment_size.unwrap_or(transmit.size).max(1);
    buffer[..transmit.size].chunks(segment).map(Bytes::copy_from_slice)
}

/// What could be read of a stream.
#[derive(Default)]
pub(super) struct Read {
    pub(super) bytes: Vec<u8>,
    /// Nothing more will come.
    pub(super) ended: bool,
    /// The other end gave it up.
    pub(super) reset: bool,
}

impl<S> Connected<S> {
    /// Reads what has come; a stream that is closed has ended.
    pub(super) fn read(&mut self, stream: StreamId) -> Read {
        let mut read = Read::default();
        let mut stream = self.quic.recv_stream(stream);
        let Ok(mut chunks) = stream.read(true) else {
            return Read { ended: true, ..read };
        };
        while !read.ended {
            match chunks.next(CHUNK) {
                Ok(Some(chunk)) => read.bytes.extend_from_slice(&chunk.bytes),
                Ok(None) => read.ended = true,
                Err(ReadError::Reset(_)) => (read.ended, read.reset) = (true, true),
                Err(ReadError::Blocked) => break,
            }
        }
        // All that is to be sent is asked for in the end, whether or not this says that there is some.
        let _ = chunks.finalize();
        read
    }

    /// Writes a message that is shorter than any window, and ends the stream if it is the `last`.
    pub(super) fn write(&mut self, stream: StreamId, bytes: &[u8], last: bool) {
        let mut stream = self.quic.send_stream(stream);
        // Both fail where the other end wants none of it.
        if stream.write(bytes).is_ok() && last {
            let _ = stream.finish();
        }
    }

    /// Wants no more of what comes on a stream.
    pub(super) fn stop(&mut self, stream: StreamId, code: u32) {
        // Fails where all of it came, and then there is nothing to stop.
        let _ = self.quic.recv_stream(stream).stop(VarInt::from_u32(code));
    }

    /// Ends a stream both ways, with one code.
    pub(super) fn abandon(&mut self, stream: StreamId, code: u32) {
        // Fails where all was sent.
        let _ = self.quic.send_stream(stream).reset(VarInt::from_u32(code));
        self.stop(stream, code);
    }
}
