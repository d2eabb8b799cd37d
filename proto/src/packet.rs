//! The packet: one frame's coded features, in layers that can be cut off.
//!
//! | bytes | content |
//! |---|---|
//! | 1 | version (high 4 bits, 1), bit depth − 1 (low 4 bits) |
//! | 1 | bundle's position in the hello (high 4 bits), layers − 1 (low 4 bits) |
//! | 1 | split (high 4 bits), width (low 4 bits) |
//! | 3 to 6 per layer | length as a variable-length integer (RFC 9000, 16), then CRC-16 |
//! | … | the layers' bytes |
//!
//! With four layers and an envelope that is at most 24 bytes. Each layer's CRC-16/IBM-3740 starts
//! over the bundle's digest and the first three bytes, so a packet that was made for another
//! bundle, or whose operating point was altered, fails before anything is decoded: an entropy
//! decoder that is fed the wrong table returns plausible rubbish.

use crc::{CRC_16_IBM_3740, Crc};

use crate::codec::Coded;
use crate::point::{BundleDigest, OperatingPoint};
use crate::varint;

/// The version this crate writes and reads.
pub const VERSION: u8 = 1;

/// Most bundles that a hello may bind, because a packet has four bits to name one.
pub const MAX_BUNDLES: usize = 16;

const FIXED: usize = 3;
const CRC: Crc<u16> = Crc::<u16>::new(&CRC_16_IBM_3740);

/// Why bytes are no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// A version that is not spoken here.
    #[error("packet version {0} is not known, only version {VERSION}")]
    Version(u8),
    /// A bit depth that no quantiser has.
    #[error("packet says {0} bits; a quantiser has 1 to 8")]
    Bits(u8),
    /// More bytes than the layers announce.
    #[error("packet has {actual} bytes, its header announces {expected}")]
    TooLong {
        /// Announced (bytes).
        expected: usize,
        /// Received (bytes).
        actual: usize,
    },
    /// A layer that was altered, or belongs to another bundle or operating point.
    #[error("layer {layer}: checksum differs, the packet is damaged or made for another bundle")]
    Corrupt {
        /// The layer, from 0.
        layer: usize,
    },
}

/// The parsed head of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PacketHeader {
    /// The bundle's position in the connection's hello, 0 to 15.
    pub bundle: u8,
    /// What was run and sent.
    pub point: OperatingPoint,
    fixed: [u8; FIXED],
    layers: Vec<Layer>,
    length: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Layer {
    /// Bytes of the stream up to this layer's end.
    end: usize,
    crc: u16,
}

/// Appends a packet with the first `point.layers` layers of `coded`.
///
/// # Panics
///
/// If `point` has a field outside its documented range, if `bundle` is not below [`MAX_BUNDLES`],
/// or if `coded` has too few layers: all three are the caller's own data.
pub fn write_packet(
    out: &mut Vec<u8>,
    bundle: u8,
    digest: &BundleDigest,
    point: OperatingPoint,
    coded: &Coded,
) {
    let OperatingPoint { split, width, layers, bits } = point;
    assert!((1..=8).contains(&bits), "bits out of range: {bits}");
    assert!((1..=OperatingPoint::MAX_LAYERS).contains(&layers), "layers out of range: {layers}");
    assert!(split < 16 && width < 16, "split or width out of range: {split}, {width}");
    assert!(usize::from(bundle) < MAX_BUNDLES, "bundle out of range: {bundle}");
    let fixed = [VERSION << 4 | (bits - 1), bundle << 4 | (layers - 1), split << 4 | width];
    out.extend_from_slice(&fixed);
    let ends = &coded.layer_ends[..usize::from(layers)];
    let mut start = 0;
    for (layer, &end) in ends.iter().enumerate() {
        varint::write(out, (end - start) as u64);
        let crc = checksum(digest, &fixed, layer, &coded.stream[start..end]);
        out.extend_from_slice(&crc.to_be_bytes());
        start = end;
    }
    out.extend_from_slice(&coded.stream[..start]);
}

impl PacketHeader {
    /// The header at the front of `bytes`; `None` while bytes of it are missing.
    pub fn parse(bytes: &[u8]) -> Result<Option<PacketHeader>, PacketError> {
        let Some((first, _)) = bytes.split_first() else { return Ok(None) };
        match (first >> 4, first & 0xf) {
            (VERSION, 0..=7) => Ok(parse(bytes)),
            (VERSION, bits) => Err(PacketError::Bits(bits + 1)),
            (version, _) => Err(PacketError::Version(version)),
        }
    }

    /// Bytes of the header itself.
    pub fn header_len(&self) -> usize {
        self.length
    }

    /// Bytes of the whole packet, saturating: check it against a limit before reserving memory.
    pub fn packet_len(&self) -> usize {
        let stream = self.layers.last().map_or(0, |last| last.end);
        self.length.saturating_add(stream)
    }

    /// How many layers have fully arrived when `received` bytes of the packet have.
    pub fn whole_layers(&self, received: usize) -> usize {
        let stream = received.saturating_sub(self.length);
        match received < self.length {
            true => 0,
            false => self.layers.iter().take_while(|layer| layer.end <= stream).count(),
        }
    }

    /// The stream of the layers that have fully arrived and how many they are, after checking
    /// each one's CRC. `packet` starts with this header and may be cut off anywhere.
    pub fn verify<'a>(
        &self,
        packet: &'a [u8],
        digest: &BundleDigest,
    ) -> Result<(&'a [u8], usize), PacketError> {
        if packet.len() > self.packet_len() {
            let (expected, actual) = (self.packet_len(), packet.len());
            return Err(PacketError::TooLong { expected, actual });
        }
        let stream = packet.get(self.length..).unwrap_or_default();
        let whole = self.whole_layers(packet.len());
        let mut start = 0;
        for (layer, &Layer { end, crc }) in self.layers[..whole].iter().enumerate() {
            if checksum(digest, &self.fixed, layer, &stream[start..end]) != crc {
                return Err(PacketError::Corrupt { layer });
            }
            start = end;
        }
        Ok((&stream[..start], whole))
    }
}

fn parse(bytes: &[u8]) -> Option<PacketHeader> {
    let (&fixed, mut rest) = bytes.split_first_chunk::<FIXED>()?;
    let point = OperatingPoint {
        split: fixed[2] >> 4,
        width: fixed[2] & 0xf,
        layers: (fixed[1] & 0xf) + 1,
        bits: (fixed[0] & 0xf) + 1,
    };
    let mut layers = Vec::with_capacity(usize::from(point.layers));
    let mut end = 0usize;
    for _ in 0..point.layers {
        let length = varint::read(&mut rest)?;
        end = end.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
        let (crc, after) = rest.split_first_chunk()?;
        rest = after;
        layers.push(Layer { end, crc: u16::from_be_bytes(*crc) });
    }
    let length = bytes.len() - rest.len();
    Some(PacketHeader { bundle: fixed[1] >> 4, point, fixed, layers, length })
}

fn checksum(digest: &BundleDigest, fixed: &[u8; FIXED], layer: usize, bytes: &[u8]) -> u16 {
    let mut crc = CRC.digest();
    crc.update(&digest.0);
    crc.update(fixed);
    crc.update(&[layer as u8]);
    crc.update(bytes);
    crc.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: BundleDigest = BundleDigest([7; 32]);

    fn sample() -> (Vec<u8>, Coded) {
        let coded = Coded { stream: (0..200u8).collect(), layer_ends: vec![0, 70, 71, 200] };
        let point = OperatingPoint { split: 1, width: 3, layers: 4, bits: 6 };
        let mut packet = Vec::new();
        write_packet(&mut packet, 2, &DIGEST, point, &coded);
        (packet, coded)
    }

    fn header(packet: &[u8]) -> PacketHeader {
        PacketHeader::parse(packet).expect("valid").expect("whole")
    }

    #[test]
    fn layout_is_fixed() {
        let (packet, _) = sample();
        assert_eq!(packet[..4], [0x15, 0x23, 0x13, 0x00]);
        let header = header(&packet);
        assert_eq!((header.bundle, header.point.bits, header.point.layers), (2, 6, 4));
        assert_eq!(header.packet_len(), packet.len());
    }

    #[test]
    fn a_cut_packet_yields_its_whole_layers() {
        let (packet, coded) = sample();
        let header = header(&packet);
        for cut in header.header_len()..=packet.len() {
            let stream = cut - header.header_len();
            let whole = coded.layer_ends.iter().filter(|&&end| end <= stream).count();
            let verified = header.verify(&packet[..cut], &DIGEST);
            assert_eq!(verified, Ok((&coded.stream[..coded.layer_ends[whole - 1]], whole)));
        }
        for cut in 0..header.header_len() {
            assert_eq!(PacketHeader::parse(&packet[..cut]), Ok(None));
            assert_eq!(header.whole_layers(cut), 0);
        }
    }

    #[test]
    fn another_bundle_s_packet_is_refused() {
        let (packet, _) = sample();
        let verified = header(&packet).verify(&packet, &BundleDigest([8; 32]));
        assert!(matches!(verified, Err(PacketError::Corrupt { .. })));
    }

    #[test]
    fn versions_and_depths_are_checked() {
        assert_eq!(PacketHeader::parse(&[0x25]), Err(PacketError::Version(2)));
        assert_eq!(PacketHeader::parse(&[0x18]), Err(PacketError::Bits(9)));
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_refused(bit in 0usize..8 * 215) {
            let (mut packet, coded) = sample();
            prop_assume!(bit / 8 < packet.len());
            packet[bit / 8] ^= 1 << (bit % 8);
            if let Ok(Some(header)) = PacketHeader::parse(&packet) {
                // A flip in the bundle's position leaves the header whole; the caller then checks
                // against that other bundle's digest.
                let digest = if header.bundle == 2 { DIGEST } else { BundleDigest([9; 32]) };
                if let Ok((stream, layers)) = header.verify(&packet, &digest) {
                    // A length that grew past the end leaves earlier layers whole, which is as if
                    // the packet had been cut; they must be the true ones.
                    prop_assert!(layers < 4);
                    prop_assert_eq!(stream, &coded.stream[..stream.len()]);
                }
            }
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            if let Ok(Some(header)) = PacketHeader::parse(&bytes) {
                let _ = header.verify(&bytes, &DIGEST);
            }
        }
    }
}
