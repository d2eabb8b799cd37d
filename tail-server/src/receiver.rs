//! Takes one frame in, byte by byte, and decides when to stop waiting for more.

use std::time::Duration;

use isthmus_proto::wire::Reason;
use isthmus_proto::{
    BundleDigest, Content, DEFAULT_MAX_FRAME_BYTES, Envelope, EnvelopeError, PacketError,
    PacketHeader, Timestamp, padding_len,
};

/// Longest stay of a frame that has not said what it is.
const BEGUN_STAY: Duration = Duration::from_secs(5);
/// Longest stay of a probe: what comes later says nothing of a path.
const PROBE_STAY: Duration = Duration::from_secs(10);

/// Limits of a [`Receiver`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiverConfig {
    /// Largest frame, envelope and packet (bytes).
    pub max_frame_bytes: usize,
    /// Longest time a frame may stay, whatever its time left says.
    pub max_stay: Duration,
}

impl Default for ReceiverConfig {
    /// The protocol's default size, and a minute.
    fn default() -> Self {
        ReceiverConfig {
            max_frame_bytes: DEFAULT_MAX_FRAME_BYTES,
            max_stay: Duration::from_secs(60),
        }
    }
}

/// Why a frame could not be received.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReceiveError {
    /// The bytes do not start with an envelope.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The bytes after the envelope are no packet, or a damaged one.
    #[error(transparent)]
    Packet(#[from] PacketError),
    /// The header announces more than is accepted; nothing was reserved for it.
    #[error("a frame of {announced} bytes was announced, at most {limit} are accepted")]
    TooLarge {
        /// Announced (bytes).
        announced: usize,
        /// Accepted (bytes).
        limit: usize,
    },
    /// The frame ended before its first layer did.
    #[error("the frame ended after {received} bytes, before its first layer was whole")]
    Truncated {
        /// Received (bytes).
        received: usize,
    },
    /// The time left ran out before the first layer was whole.
    #[error("the time left ran out after {received} bytes, before the first layer was whole")]
    Expired {
        /// Received (bytes).
        received: usize,
    },
}

impl ReceiveError {
    /// The error as the reply to the device names it.
    pub fn reason(&self) -> Reason {
        match self {
            ReceiveError::Packet(PacketError::Version(_)) => Reason::UnsupportedVersion,
            ReceiveError::Packet(PacketError::Corrupt { .. }) => Reason::Corrupt,
            ReceiveError::TooLarge { .. } => Reason::TooLarge,
            ReceiveError::Expired { .. } => Reason::Expired,
            ReceiveError::Envelope(_)
            | ReceiveError::Packet(_)
            | ReceiveError::Truncated { .. } => Reason::Malformed,
        }
    }
}

/// What arrived of a frame, verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Received {
    /// The frame's envelope.
    pub envelope: Envelope,
    /// What the device meant to send.
    pub content: Content,
    /// The coded bytes of the layers that arrived whole, or the compressed picture.
    pub stream: Vec<u8>,
    /// Layers that arrived whole, at least 1; a compressed picture is one.
    pub layers: usize,
    /// When the answer is worthless.
    pub deadline: Timestamp,
    /// First to last byte.
    pub receive_span: Duration,
    /// When the last byte came, or the receiver stopped waiting for it.
    pub received_at: Timestamp,
}

/// Receives one frame.
///
/// Its time left counts from the first byte. When it is about to run out before the last layer has
/// arrived, at [`poll_timeout`](Receiver::poll_timeout), the layers that came are what
/// [`finish`](Receiver::finish) yields; so they are when the stream ends early.
#[derive(Clone, Debug)]
pub struct Receiver {
    config: ReceiverConfig,
    first_byte: Timestamp,
    last_byte: Timestamp,
    buffer: Vec<u8>,
    envelope: Option<(Envelope, usize)>,
    packet: Option<PacketHeader>,
    /// Bytes of the whole frame, once they were announced.
    announced: Option<usize>,
    reserve: Duration,
}

impl Receiver {
    /// A receiver for a frame that began at `now`.
    pub fn new(now: Timestamp, config: ReceiverConfig) -> Self {
        Receiver {
            config,
            first_byte: now,
            last_byte: now,
            buffer: Vec::new(),
            envelope: None,
            packet: None,
            announced: None,
            reserve: Duration::ZERO,
        }
    }

    /// Takes the next bytes. After an error the frame is lost.
    pub fn handle_bytes(&mut self, now: Timestamp, bytes: &[u8]) -> Result<(), ReceiveError> {
        if self.buffer.is_empty() {
            self.first_byte = now;
        }
        self.last_byte = now;
        let limit = self.config.max_frame_bytes;
        let length = self.buffer.len() + bytes.len();
        match self.announced {
            Some(expected) if length > expected => {
                return Err(PacketError::TooLong { expected, actual: length }.into());
            }
            None if length > limit => {
                return Err(ReceiveError::TooLarge { announced: length, limit });
            }
            _ => self.buffer.extend_from_slice(bytes),
        }
        if self.announced.is_none() {
            self.parse()?;
        }
        Ok(())
    }

    /// Keeps `compute` of the time left for waiting and running: that much earlier an incomplete
    /// frame is cut. It is at least an eighth of the time left, so that an answer survives a busy
    /// moment, and at most half of it.
    pub fn handle_expected_compute(&mut self, compute: Duration) {
        let time_left = self.time_left();
        self.reserve = compute.clamp(time_left / 8, time_left / 2);
    }

    /// The frame's end: all of it arrived, the stream ended, or [`poll_timeout`](Self::poll_timeout)
    /// passed. Checks the sums of all whole layers against the bundle's `digest`.
    pub fn finish(&self, now: Timestamp, digest: &BundleDigest) -> Result<Received, ReceiveError> {
        let (Some((envelope, start)), Some(header)) = (self.envelope, &self.packet) else {
            return Err(self.missing(now));
        };
        let (stream, layers) = header.verify(&self.buffer[start..], digest)?;
        if layers == 0 {
            return Err(self.missing(now));
        }
        Ok(Received {
            envelope,
            content: header.content,
            stream: stream.to_vec(),
            layers,
            deadline: self.deadline(),
            receive_span: self.receive_span(),
            received_at: if self.is_whole() { self.last_byte } else { now },
        })
    }

    /// The error of a frame that ends at `now`, before its first layer is whole.
    pub fn missing(&self, now: Timestamp) -> ReceiveError {
        let received = self.buffer.len();
        match now < self.cutoff() {
            true => ReceiveError::Truncated { received },
            false => ReceiveError::Expired { received },
        }
    }

    /// When to stop waiting for bytes and [`finish`](Self::finish); `None` when nothing is missing.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        (!self.is_whole()).then(|| self.cutoff())
    }

    /// Whether every byte that the header announced is here.
    pub fn is_whole(&self) -> bool {
        self.announced == Some(self.buffer.len())
    }

    /// Whether what comes is a probe, which has no packet and is never [finished](Self::finish).
    pub fn is_probe(&self) -> bool {
        self.envelope().is_some_and(|envelope| envelope.probe)
    }

    /// The envelope, once it arrived.
    pub fn envelope(&self) -> Option<&Envelope> {
        self.envelope.as_ref().map(|(envelope, _)| envelope)
    }

    /// The packet's header, once it arrived.
    pub fn packet(&self) -> Option<&PacketHeader> {
        self.packet.as_ref()
    }

    /// First to latest byte.
    pub fn receive_span(&self) -> Duration {
        self.last_byte.saturating_since(self.first_byte)
    }

    fn parse(&mut self) -> Result<(), ReceiveError> {
        if self.envelope.is_none() {
            self.envelope = Envelope::parse(&self.buffer)?;
        }
        let Some((Envelope { probe, .. }, start)) = self.envelope else { return Ok(()) };
        let rest = &self.buffer[start..];
        let length = match probe {
            true => padding_len(rest),
            false => {
                self.packet = PacketHeader::parse(rest)?;
                self.packet.as_ref().map(PacketHeader::packet_len)
            }
        };
        let Some(length) = length else { return Ok(()) };
        let announced = start.saturating_add(length);
        let limit = self.config.max_frame_bytes;
        if announced > limit {
            return Err(ReceiveError::TooLarge { announced, limit });
        }
        let actual = self.buffer.len();
        if actual > announced {
            return Err(PacketError::TooLong { expected: announced, actual }.into());
        }
        self.announced = Some(announced);
        Ok(())
    }

    fn time_left(&self) -> Duration {
        let asked = match self.envelope() {
            None => BEGUN_STAY,
            Some(envelope) if envelope.probe => envelope.time_left.min(PROBE_STAY),
            Some(envelope) => envelope.time_left,
        };
        asked.min(self.config.max_stay)
    }

    /// When the answer is worthless.
    pub fn deadline(&self) -> Timestamp {
        self.first_byte + self.time_left()
    }

    fn cutoff(&self) -> Timestamp {
        self.deadline() - self.reserve
    }
}

#[cfg(test)]
mod tests {
    use isthmus_proto::{
        Coded, ImageFormat, OperatingPoint, write_image_packet, write_packet, write_padding,
    };
    use proptest::prelude::*;

    use super::*;

    const DIGEST: BundleDigest = BundleDigest([3; 32]);
    const POINT: OperatingPoint = OperatingPoint { split: 0, width: 1, layers: 3, bits: 6 };
    const CONFIG: ReceiverConfig =
        ReceiverConfig { max_frame_bytes: 4096, max_stay: Duration::from_secs(60) };

    fn at(micros: u64) -> Timestamp {
        Timestamp::from_micros(micros)
    }

    fn coded() -> Coded {
        Coded { stream: (0..90).collect(), layer_ends: vec![30, 60, 90] }
    }

    fn frame(time_left: Duration) -> Vec<u8> {
        let mut frame = Vec::new();
        Envelope { frame: 7, time_left, probe: false }.write(&mut frame);
        write_packet(&mut frame, 0, &DIGEST, POINT, &coded());
        frame
    }

    fn receiver() -> Receiver {
        Receiver::new(at(0), CONFIG)
    }

    #[test]
    fn a_whole_frame_is_received_with_its_span() {
        let frame = frame(Duration::from_millis(100));
        let mut receiver = receiver();
        receiver.handle_bytes(at(1_000), &frame[..50]).expect("well formed");
        assert_eq!(receiver.poll_timeout(), Some(at(101_000)));
        assert_eq!(receiver.packet().map(|header| header.content), Some(Content::Features(POINT)));
        receiver.handle_bytes(at(4_000), &frame[50..]).expect("well formed");
        assert_eq!(receiver.poll_timeout(), None);
        let received = receiver.finish(at(9_000), &DIGEST).expect("whole");
        assert_eq!(received.stream, coded().stream);
        assert_eq!((received.layers, received.envelope.frame), (3, 7));
        assert_eq!(received.receive_span, Duration::from_millis(3));
        assert_eq!((received.received_at, received.deadline), (at(4_000), at(101_000)));
    }

    #[test]
    fn time_for_the_tail_is_kept_from_an_eighth_to_half() {
        let frame = frame(Duration::from_millis(100));
        let mut receiver = receiver();
        receiver.handle_bytes(at(0), &frame[..60]).expect("well formed");
        receiver.handle_expected_compute(Duration::ZERO);
        assert_eq!(receiver.poll_timeout(), Some(at(87_500)));
        receiver.handle_expected_compute(Duration::from_millis(20));
        assert_eq!(receiver.poll_timeout(), Some(at(80_000)));
        receiver.handle_expected_compute(Duration::from_secs(1));
        assert_eq!(receiver.poll_timeout(), Some(at(50_000)));
    }

    #[test]
    fn a_cut_frame_yields_its_whole_layers() {
        let frame = frame(Duration::from_millis(100));
        let header = frame.len() - 90;
        for cut in 0..frame.len() {
            let mut receiver = receiver();
            receiver.handle_bytes(at(0), &frame[..cut]).expect("well formed");
            let layers = cut.saturating_sub(header) / 30;
            for (now, missing) in [
                (at(1_000), ReceiveError::Truncated { received: cut }),
                (at(100_000), ReceiveError::Expired { received: cut }),
            ] {
                match receiver.finish(now, &DIGEST) {
                    Ok(received) => {
                        assert_eq!(received.layers, layers);
                        assert_eq!(received.stream, coded().stream[..30 * layers]);
                        assert_eq!(received.received_at, now);
                    }
                    // An empty frame has no time left of its own.
                    Err(_) if cut < 5 => {}
                    Err(error) => assert_eq!((error, layers), (missing, 0)),
                }
            }
        }
    }

    #[test]
    fn a_compressed_picture_is_received_whole_or_not_at_all() {
        let mut frame = Vec::new();
        let time_left = Duration::from_millis(100);
        Envelope { frame: 7, time_left, probe: false }.write(&mut frame);
        write_image_packet(&mut frame, 0, &DIGEST, ImageFormat::Webp, &[5; 300]);
        let mut receiver = receiver();
        receiver.handle_bytes(at(0), &frame[..200]).expect("well formed");
        let cut = receiver.finish(at(1_000), &DIGEST);
        assert_eq!(cut, Err(ReceiveError::Truncated { received: 200 }));
        receiver.handle_bytes(at(0), &frame[200..]).expect("well formed");
        let received = receiver.finish(at(1_000), &DIGEST).expect("whole");
        assert_eq!(received.content, Content::Image(ImageFormat::Webp));
        assert_eq!((received.stream, received.layers), (vec![5; 300], 1));
    }

    #[test]
    fn a_probe_is_whole_when_its_padding_is() {
        let mut probe = Vec::new();
        let time_left = Duration::from_millis(100);
        Envelope { frame: 7, time_left, probe: true }.write(&mut probe);
        let envelope = probe.len();
        write_padding(&mut probe, 300);
        for cut in 0..probe.len() {
            let mut receiver = receiver();
            receiver.handle_bytes(at(0), &probe[..cut]).expect("well formed");
            assert!(!receiver.is_whole());
            receiver.handle_bytes(at(2_000), &probe[cut..]).expect("well formed");
            assert!(receiver.is_whole() && receiver.is_probe());
        }
        probe.truncate(envelope);
        write_padding(&mut probe, 5_000);
        let error = receiver().handle_bytes(at(0), &probe[..40]).expect_err("too large");
        assert_eq!(error.reason(), Reason::TooLarge);
    }

    #[test]
    fn sizes_are_refused_before_their_bytes_come() {
        let mut frame = Vec::new();
        let time_left = Duration::from_millis(100);
        Envelope { frame: 7, time_left, probe: false }.write(&mut frame);
        let coded = Coded { stream: vec![0; 5_000], layer_ends: vec![5_000] };
        write_packet(&mut frame, 0, &DIGEST, OperatingPoint { layers: 1, ..POINT }, &coded);
        let mut receiver = receiver();
        let error = receiver.handle_bytes(at(0), &frame[..40]).expect_err("too large");
        assert_eq!(error.reason(), Reason::TooLarge);
        assert!(receiver.buffer.capacity() < 100);
    }

    #[test]
    fn bytes_after_the_last_layer_are_refused() {
        let mut frame = frame(Duration::from_millis(100));
        frame.push(0);
        let error = receiver().handle_bytes(at(0), &frame).expect_err("too long");
        assert_eq!(error.reason(), Reason::Malformed);
        let mut receiver = receiver();
        receiver.handle_bytes(at(0), &frame[..frame.len() - 1]).expect("whole");
        assert!(receiver.handle_bytes(at(0), &[0]).is_err());
    }

    #[test]
    fn a_frame_does_not_stay_longer_than_allowed() {
        let mut receiver = receiver();
        // Before it has said what it is, and then whatever it says.
        assert_eq!(receiver.poll_timeout(), Some(at(5_000_000)));
        receiver.handle_bytes(at(0), &frame(Duration::from_secs(1 << 30))[..20]).expect("fine");
        assert_eq!(receiver.poll_timeout(), Some(at(60_000_000)));
    }

    proptest! {
        #[test]
        fn damage_is_refused_or_harmless(
            at_byte in 0usize..120,
            mask in 1u8..,
            step in 1usize..40,
        ) {
            let mut frame = frame(Duration::from_millis(100));
            let header = frame.len() - 90;
            prop_assume!(at_byte < frame.len());
            frame[at_byte] ^= mask;
            let mut receiver = receiver();
            let fed = frame.chunks(step).try_for_each(|chunk| receiver.handle_bytes(at(0), chunk));
            let result = fed.and_then(|()| receiver.finish(at(0), &DIGEST));
            if let Ok(received) = result {
                // Only the envelope's frame id and time left are not covered by a checksum, and
                // a grown length leaves the layers before it whole.
                prop_assert!(at_byte < header);
                prop_assert_eq!(&received.stream, &coded().stream[..received.stream.len()]);
            }
        }

        #[test]
        fn random_bytes_never_panic_nor_grow_the_buffer(
            bytes in prop::collection::vec(any::<u8>(), 0..6_000),
            step in 1usize..2_000,
        ) {
            let mut receiver = receiver();
            for chunk in bytes.chunks(step) {
                if receiver.handle_bytes(at(0), chunk).is_err() {
                    break;
                }
            }
            prop_assert!(receiver.buffer.len() <= CONFIG.max_frame_bytes);
            let _ = receiver.finish(at(0), &DIGEST);
        }
    }
}
