//! Envelope, packet and coded layers from bytes that anybody may have sent.

#![no_main]

use std::sync::LazyLock;

use isthmus_proto::{
    BundleDigest, Content, Envelope, FeatureCodec, FrequencyTables, LatentShape, PacketHeader,
    Quantiser,
};
use libfuzzer_sys::fuzz_target;

static CODEC: LazyLock<FeatureCodec> = LazyLock::new(|| {
    let steep = [60_000u16, 5_000, 500, 36];
    let table: Vec<u8> = steep.repeat(4).iter().flat_map(|it| it.to_le_bytes()).collect();
    let quantiser = Quantiser::new(2, vec![0.5; 4], vec![0; 4], vec![0.0; 4]).expect("valid");
    let tables = FrequencyTables::from_bytes(2, 4, &table).expect("valid");
    let shape = LatentShape { channels: vec![1, 2, 4], height: 5, width: 7 };
    FeatureCodec::new(shape, quantiser, tables).expect("they agree")
});

fuzz_target!(|bytes: &[u8]| {
    // Any bytes decode to symbols, and as many as there are places.
    let symbols = CODEC.decode(bytes, 3).expect("layers exist");
    assert_eq!(symbols.len(), 4 * 5 * 7);

    let Ok(Some((envelope, length))) = Envelope::parse(bytes) else { return };
    let mut written = Vec::new();
    envelope.write(&mut written);
    assert_eq!(Envelope::parse(&written).expect("own bytes").expect("whole").0, envelope);

    let packet = &bytes[length..];
    let Ok(Some(header)) = PacketHeader::parse(packet) else { return };
    assert!(header.header_len() <= packet.len() && header.header_len() <= header.packet_len());
    if let Ok((stream, layers)) = header.verify(packet, &BundleDigest([0; 32])) {
        let most = match header.content {
            Content::Features(point) => point.layers,
            Content::Image(_) => 1,
        };
        assert!(layers <= usize::from(most) && stream.len() <= packet.len());
    }
});
