//! The bytes of a frame, or of a probe, with what is asked for and how urgently.

use std::sync::Arc;
use std::time::Duration;

use isthmus_models::Decoders;
use isthmus_proto::{
    BundleDigest, Coded, Content, Envelope, FrameId, Timestamp, write_image_packet, write_packet,
    write_padding,
};

use super::reply::{Asked, wire_id};

/// The bundle's position in the hello: it is the only one.
const BUNDLE: u8 = 0;

/// Room for an envelope and a packet's header (bytes), so that a buffer grows only for more.
const OVERHEAD: usize = 64;

/// Priority of a probe's stream: whatever is to be answered goes first.
pub const PROBE_PRIORITY: i32 = i32::MIN;

/// Priority of the stream of a frame that has to be answered by `answer_by`: earlier is more
/// urgent. It wraps once in 24 days, for a moment.
pub fn priority(answer_by: Timestamp) -> i32 {
    let millis = (answer_by.as_micros() / 1000 % i32::MAX as u64) as i32;
    i32::MAX - millis
}

/// The bundle that the hello binds, of which all frames of a connection are.
#[derive(Clone, Debug, PartialEq)]
pub struct BoundBundle {
    /// Digest of its manifest.
    pub digest: BundleDigest,
    /// What its answers are.
    pub decoders: Arc<Decoders>,
}

/// A frame or a probe as it goes over the wire.
#[derive(Clone, Debug, PartialEq)]
pub struct Outgoing {
    frame: FrameId,
    asked: Asked,
    /// The higher, the more urgent.
    priority: i32,
    /// Envelope, and packet or padding.
    bytes: Vec<u8>,
    /// Where each layer ends in `bytes`, envelope and header included; the last is its length.
    layer_ends: Vec<usize>,
}

impl Outgoing {
    /// A frame with the `content` that was `coded` for a bundle; `time_left` is what remains for the
    /// server.
    ///
    /// # Panics
    ///
    /// If `coded` has fewer layers than `content` says: both are the caller's own.
    pub fn frame(
        bundle: &BoundBundle,
        frame: FrameId,
        content: Content,
        coded: &Coded,
        time_left: Duration,
        answer_by: Timestamp,
    ) -> Self {
        let mut bytes = envelope(frame, time_left, false, coded.stream.len());
        let BoundBundle { digest, decoders } = bundle;
        let layers = match content {
            Content::Features(point) => {
                write_packet(&mut bytes, BUNDLE, digest, point, coded);
                usize::from(point.layers)
            }
            Content::Image(format) => {
                write_image_packet(&mut bytes, BUNDLE, digest, format, &coded.stream);
                1
            }
        };
        let header = bytes.len() - coded.size_of(layers);
        let layer_ends = coded.layer_ends[..layers].iter().map(|end| header + end).collect();
        let (asked, priority) = (Asked::Answers(Arc::clone(decoders)), priority(answer_by));
        Outgoing { frame, asked, priority, bytes, layer_ends }
    }

    /// A probe with so many bytes of padding, whose echo is of use for `time_left`. It has the number
    /// of a frame that is not sent.
    pub fn probe(frame: FrameId, padding: usize, time_left: Duration) -> Self {
        let mut bytes = envelope(frame, time_left, true, padding);
        write_padding(&mut bytes, padding);
        let layer_ends = vec![bytes.len()];
        Outgoing { frame, asked: Asked::Echo, priority: PROBE_PRIORITY, bytes, layer_ends }
    }

    /// Which frame it is, or whose number the probe has.
    pub fn number(&self) -> FrameId {
        self.frame
    }

    /// What is asked for.
    pub fn asked(&self) -> &Asked {
        &self.asked
    }

    /// Priority of its stream: the higher, the more urgent.
    pub fn priority(&self) -> i32 {
        self.priority
    }

    /// All of it.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// All of it, by value.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// What follows the first `written` bytes, up to the end of the layer that they reach into;
    /// `None` when there is no more.
    pub(super) fn rest_of_layer(&self, written: usize) -> Option<&[u8]> {
        let end = self.layer_ends.iter().find(|&&end| end > written)?;
        Some(&self.bytes[written..*end])
    }
}

/// A buffer with an envelope, and room for so many bytes more.
fn envelope(frame: FrameId, time_left: Duration, probe: bool, room: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(room + OVERHEAD);
    let frame = (wire_id(frame) & 0xffff) as u16;
    Envelope { frame, time_left, probe }.write(&mut bytes);
    bytes
}

#[cfg(test)]
pub(super) mod tests {
    use isthmus_proto::{ImageFormat, OperatingPoint, PacketHeader, padding_len};

    use super::*;
    use crate::exchange::reply::tests::{FRAME, asked};

    const DIGEST: BundleDigest = BundleDigest([3; 32]);
    const LEFT: Duration = Duration::from_millis(80);

    fn bound() -> BoundBundle {
        let Asked::Answers(decoders) = asked() else { panic!("answers are asked for") };
        BoundBundle { digest: DIGEST, decoders }
    }

    /// A frame of three layers, of which two are sent.
    pub(in crate::exchange) fn frame() -> Outgoing {
        let coded = Coded { stream: (0..90).collect(), layer_ends: vec![20, 50, 90] };
        let point = OperatingPoint { split: 0, width: 0, layers: 2, bits: 6 };
        let content = Content::Features(point);
        Outgoing::frame(&bound(), FRAME, content, &coded, LEFT, Timestamp::ZERO)
    }

    #[test]
    fn a_frame_is_an_envelope_and_the_layers_that_are_sent() {
        let outgoing = frame();
        let (envelope, length) = Envelope::parse(outgoing.bytes()).expect("known").expect("whole");
        assert_eq!(envelope, Envelope { frame: 13, time_left: LEFT, probe: false });
        let packet = &outgoing.bytes()[length..];
        let header = PacketHeader::parse(packet).expect("known").expect("whole");
        assert_eq!(header.packet_len(), packet.len());
        let stream: Vec<u8> = (0..50).collect();
        assert_eq!(header.verify(packet, &DIGEST), Ok((&*stream, 2)));
        let start = length + header.header_len();
        assert_eq!(outgoing.layer_ends, [start + 20, start + 50]);
        assert_eq!((outgoing.number(), outgoing.asked()), (FRAME, &asked()));
    }

    #[test]
    fn a_picture_is_one_layer() {
        let coded = Coded { stream: vec![9; 70], layer_ends: vec![70] };
        let content = Content::Image(ImageFormat::Webp);
        let outgoing = Outgoing::frame(&bound(), FRAME, content, &coded, LEFT, Timestamp::ZERO);
        assert_eq!(outgoing.layer_ends, [outgoing.bytes().len()]);
        let (_, length) = Envelope::parse(outgoing.bytes()).expect("known").expect("whole");
        let header = PacketHeader::parse(&outgoing.bytes()[length..]).expect("known");
        assert_eq!(header.map(|header| header.content), Some(content));
    }

    #[test]
    fn a_probe_is_an_envelope_and_padding() {
        let probe = Outgoing::probe(FRAME, 1_000, LEFT);
        let (envelope, length) = Envelope::parse(probe.bytes()).expect("known").expect("whole");
        assert!(envelope.probe && envelope.frame == 13);
        assert_eq!(padding_len(&probe.bytes()[length..]), Some(probe.bytes().len() - length));
        assert_eq!(probe.asked(), &Asked::Echo);
    }

    #[test]
    fn the_earlier_a_frame_has_to_be_answered_the_more_urgent_it_is_and_a_probe_least() {
        let at = |ms: u64| priority(Timestamp::from_micros(1_000 * ms));
        assert!(at(10) > at(11) && at(11) > at(3_600_000) && at(3_600_000) > PROBE_PRIORITY);
    }
}
