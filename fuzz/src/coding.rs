//! Control messages, frames and coded layers from bytes that anybody may have sent.

use std::path::Path;
use std::sync::LazyLock;

use isthmus_models::Bundle;
use isthmus_proto::wire::{ToDevice, ToServer};
use isthmus_proto::{
    BundleDigest, Content, Envelope, FeatureCodec, Framer, FrequencyTables, LatentShape,
    MAX_CONTROL_BYTES, PacketHeader, Quantiser, Timestamp,
};
use isthmus_tail_server::receiver::{Receiver, ReceiverConfig};
use prost::Message;

use crate::{choice, pieces};

/// The bundle of the frames in the seeds.
pub(crate) const DIGEST: BundleDigest = BundleDigest([7; 32]);

/// A bundle whose tables depend on a symbol's surroundings.
pub(crate) static STREET: LazyLock<Bundle> = LazyLock::new(|| {
    let street = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/bundles/street");
    Bundle::open(&street).unwrap_or_else(|error| panic!("{error}"))
});

/// A codec without contexts.
static PLAIN: LazyLock<FeatureCodec> = LazyLock::new(|| {
    let steep = [60_000u16, 5_000, 500, 36];
    let table: Vec<u8> = steep.repeat(4).iter().flat_map(|it| it.to_le_bytes()).collect();
    let quantiser = Quantiser::new(2, vec![0.5; 4], vec![0; 4], vec![0.0; 4]).expect("valid");
    let tables = FrequencyTables::from_bytes(2, 4, &table).expect("valid");
    let shape = LatentShape { channels: vec![1, 2, 4], height: 5, width: 7 };
    FeatureCodec::new(shape, quantiser, tables).expect("they agree")
});

/// Control messages are the same in whatever pieces they come. The first byte is a piece's size.
pub fn framer(mut bytes: &[u8]) {
    let step = choice(&mut bytes);
    assert_eq!(messages::<ToServer>(bytes, step), messages::<ToServer>(bytes, u8::MAX));
    assert_eq!(messages::<ToDevice>(bytes, step), messages::<ToDevice>(bytes, u8::MAX));
}

/// The messages up to the first bytes that are none, again as bytes.
fn messages<M: Message + Default>(bytes: &[u8], step: u8) -> Vec<Vec<u8>> {
    let (mut framer, mut read) = (Framer::new(MAX_CONTROL_BYTES), Vec::new());
    for piece in pieces(bytes, step) {
        framer.push(piece);
        loop {
            match framer.next_message::<M>() {
                Ok(Some(message)) => read.push(message.encode_to_vec()),
                Ok(None) => break,
                Err(_) => return read,
            }
        }
    }
    read
}

/// A frame is received, or refused, in whatever pieces it comes, and what its header announces is
/// what comes out. The first byte is a piece's size.
pub fn frame(mut bytes: &[u8]) {
    let step = choice(&mut bytes);
    decodes(&PLAIN, bytes, 3);
    let (stepwise, whole) = (received(bytes, step), received(bytes, u8::MAX));
    assert_eq!(stepwise.is_some(), whole.is_some(), "pieces of {step} bytes");
    if let (Some(stepwise), Some(whole)) = (stepwise, whole) {
        let finish = |it: Receiver| it.finish(Timestamp::ZERO, &DIGEST);
        assert_eq!(finish(stepwise), finish(whole));
    }

    let Ok(Some((envelope, length))) = Envelope::parse(bytes) else { return };
    let mut written = Vec::new();
    envelope.write(&mut written);
    assert_eq!(Envelope::parse(&written).expect("own bytes").expect("whole").0, envelope);

    let packet = &bytes[length..];
    let Ok(Some(header)) = PacketHeader::parse(packet) else { return };
    assert!(header.header_len() <= packet.len() && header.header_len() <= header.packet_len());
    if let Ok((stream, layers)) = header.verify(packet, &DIGEST) {
        let most = match header.content {
            Content::Features(point) => point.layers,
            Content::Image(_) => 1,
        };
        assert!(layers <= usize::from(most) && stream.len() <= packet.len());
    }
}

/// A receiver that took all bytes; `None` if it refused some.
fn received(bytes: &[u8], step: u8) -> Option<Receiver> {
    let config = ReceiverConfig { max_frame_bytes: 4_096, ..ReceiverConfig::default() };
    let mut receiver = Receiver::new(Timestamp::ZERO, config);
    let mut taken = pieces(bytes, step).map(|piece| receiver.handle_bytes(Timestamp::ZERO, piece));
    taken.all(|taken| taken.is_ok()).then_some(receiver)
}

/// Any bytes decode to symbols of a shipped bundle's alphabet, under tables that depend on a
/// symbol's surroundings, and those symbols code to bytes that decode to them. The first two bytes
/// choose an operating point and how many layers came.
pub fn context(mut bytes: &[u8]) {
    let points = STREET.points();
    let point = points[usize::from(choice(&mut bytes)) % points.len()].point;
    let codec = STREET.codec(point.split, point.width, point.bits).expect("a point of the bundle");
    let layers = 1 + usize::from(choice(&mut bytes) % point.layers);
    decodes(codec, bytes, layers);
}

fn decodes(codec: &FeatureCodec, bytes: &[u8], layers: usize) {
    let symbols = codec.decode(bytes, layers).expect("layers exist");
    let shape = codec.shape();
    assert_eq!(symbols.len(), shape.channels_of(layers) * shape.plane());
    let coded = codec.encode(&symbols).expect("symbols of the alphabet");
    assert_eq!(coded.layer_ends.len(), layers);
    assert_eq!(codec.decode(&coded.stream, layers).expect("layers exist"), symbols);
    let mut latents = Vec::new();
    codec.dequantise(&symbols, &mut latents).expect("whole channels");
    assert!(latents.len() == shape.all_channels() * shape.plane());
    assert!(latents.iter().all(|latent| latent.is_finite()));
}
