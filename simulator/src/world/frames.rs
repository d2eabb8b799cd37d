//! Frames as large as a record says.

use isthmus_proto::Coded;

/// Bytes of an envelope with a time left from 64 ms to 16 s.
const ENVELOPE: usize = 5;

/// Bytes of a packet's header and first checksum, without the layers' lengths.
const HEADER: usize = 3 + 2;

/// Layers which, with envelope and header, end where `recorded` says, which is from
/// [`Record::layer_ends`](super::Record::layer_ends). Their bytes are zero, but for the first few,
/// which hold as much of `tag` as there is room for.
pub(crate) fn coded(recorded: &[usize], tag: u64) -> Coded {
    let mut overhead = ENVELOPE + HEADER;
    let mut layer_ends: Vec<usize> = Vec::with_capacity(recorded.len());
    for (layer, &bytes) in recorded.iter().enumerate() {
        let before = layer_ends.last().copied().unwrap_or(0);
        // Its length and, but for the first layer, its checksum.
        let own = |length: usize| length + usize::from(layer > 0);
        let lengths = [(1, 1 << 6), (2, 1 << 14), (4, 1 << 30)];
        let fits = lengths.map(|(length, most)| {
            let size = bytes.saturating_sub(overhead + own(length) + before);
            (length, size, size < most)
        });
        let (length, size, _) = fits.into_iter().find(|fit| fit.2).unwrap_or(fits[2]);
        overhead += own(length);
        layer_ends.push(before + size);
    }
    let mut stream = vec![0; layer_ends.last().copied().unwrap_or(0)];
    for (byte, tag) in stream.iter_mut().zip(tag.to_be_bytes()) {
        *byte = tag;
    }
    Coded { stream, layer_ends }
}

/// The tag that lies in such a stream, or what is left of it.
pub(crate) fn tag_of(stream: &[u8]) -> u64 {
    let mut tag = [0; 8];
    tag.iter_mut().zip(stream).for_each(|(tag, &byte)| *tag = byte);
    u64::from_be_bytes(tag)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use isthmus_proto::{BundleDigest, Envelope, OperatingPoint, write_packet};

    use super::*;

    #[test]
    fn a_frame_on_the_wire_is_as_large_as_recorded() {
        for recorded in [&[100][..], &[77, 78, 300], &[260, 480, 20_000, 40_100], &[90, 155, 156]] {
            let coded = coded(recorded, 7);
            for layers in 1..=recorded.len() as u8 {
                let mut bytes = Vec::new();
                let time_left = Duration::from_millis(100);
                Envelope { frame: 9, time_left, probe: false }.write(&mut bytes);
                let point = OperatingPoint { split: 0, width: 0, layers, bits: 6 };
                write_packet(&mut bytes, 0, &BundleDigest([0; 32]), point, &coded);
                let expected = recorded[usize::from(layers) - 1];
                // Where a length just needs a byte more, or a layer is smaller than its header.
                assert!(bytes.len().abs_diff(expected) <= 2, "{} for {expected}", bytes.len());
            }
        }
    }
}
