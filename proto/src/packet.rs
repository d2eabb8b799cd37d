//! The packet: one frame's coded features, in layers that can be cut off, or one frame's compressed
//! picture.
//!
//! | bytes | content |
//! |---|---|
//! | 1 | version (high 4 bits, 2), bit depth − 1 (low 4 bits) |
//! | 1 | bundle's position in the hello (high 4 bits), layers − 1 (low 4 bits) |
//! | 1 | split (high 4 bits), width (low 4 bits) |
//! | 1 to 4 per layer | length as a variable-length integer (RFC 9000, 16) |
//! | 2 | CRC-16 over header and first layer |
//! | 1 per further layer | its CRC-8 |
//! | … | the layers' bytes |
//!
//! A compressed picture is marked by the number 8 where features have their bit depth. It has one
//! layer, the whole file:
//!
//! | bytes | content |
//! |---|---|
//! | 1 | version (high 4 bits, 2), 8 (low 4 bits) |
//! | 1 | bundle's position in the hello (high 4 bits), [format](ImageFormat) (low 4 bits) |
//! | 1 to 4 | length as a variable-length integer |
//! | 2 | CRC-16 over header and file |
//! | … | the file |
//!
//! With five layers of up to 16 kB and an envelope that is at most 24 bytes. Every checksum starts
//! over the bundle's digest, the CRC-16/IBM-3740 then covers all that comes before it and the first
//! layer: a packet that was made for another bundle, or whose operating point was altered, fails
//! before anything is decoded. An entropy decoder that is fed the wrong table returns plausible
//! rubbish. A further layer's CRC-8/AUTOSAR also covers its position; the transport has checked
//! its bytes before.

use crc::{CRC_8_AUTOSAR, CRC_16_IBM_3740, Crc};

use crate::codec::Coded;
use crate::point::{BundleDigest, Content, ImageFormat, OperatingPoint};
use crate::varint;

/// The version this crate writes and reads.
pub const VERSION: u8 = 2;

/// Most bundles that a hello may bind, because a packet has four bits to name one.
pub const MAX_BUNDLES: usize = 16;

/// Bytes before the lengths.
const FIXED_OF_FEATURES: usize = 3;
const FIXED_OF_IMAGE: usize = 2;
/// Stands where features have their bit depth − 1, of which none is as large.
const IMAGE: u8 = 8;
const CRC_16: Crc<u16> = Crc::<u16>::new(&CRC_16_IBM_3740);
const CRC_8: Crc<u8> = Crc::<u8>::new(&CRC_8_AUTOSAR);

/// Why bytes are no packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PacketError {
    /// A version that is not spoken here.
    #[error("packet version {0} is not known, only version {VERSION}")]
    Version(u8),
    /// A bit depth that no quantiser has.
    #[error("packet says {0} bits; a quantiser has 1 to 8")]
    Bits(u8),
    /// A compressed picture of a format that is not spoken here.
    #[error("packet says picture format {0}; 0 is JPEG, 1 is WebP, 2 is AVIF")]
    Format(u8),
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
    /// What it carries.
    pub content: Content,
    /// Bytes of the stream up to each layer's end.
    ends: Vec<usize>,
    /// Bytes before the checksums.
    checked: usize,
    first: u16,
    further: Vec<u8>,
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
    let from = out.len() - FIXED_OF_FEATURES;
    let starts = || std::iter::once(0).chain(ends.iter().copied());
    for (start, &end) in starts().zip(ends) {
        varint::write(out, (end - start) as u64);
    }
    let stream = &coded.stream[..coded.size_of(ends.len())];
    let first = first_checksum(digest, &out[from..], &stream[..ends[0]]);
    out.extend_from_slice(&first.to_be_bytes());
    for (layer, (start, &end)) in starts().zip(ends).enumerate().skip(1) {
        out.push(further_checksum(digest, layer, &stream[start..end]));
    }
    out.extend_from_slice(stream);
}

/// Appends a packet with the compressed picture `file`.
///
/// # Panics
///
/// If `bundle` is not below [`MAX_BUNDLES`]: it is the caller's own.
pub fn write_image_packet(
    out: &mut Vec<u8>,
    bundle: u8,
    digest: &BundleDigest,
    format: ImageFormat,
    file: &[u8],
) {
    assert!(usize::from(bundle) < MAX_BUNDLES, "bundle out of range: {bundle}");
    let from = out.len();
    out.extend_from_slice(&[VERSION << 4 | IMAGE, bundle << 4 | format as u8]);
    varint::write(out, file.len() as u64);
    let checksum = first_checksum(digest, &out[from..], file);
    out.extend_from_slice(&checksum.to_be_bytes());
    out.extend_from_slice(file);
}

impl PacketHeader {
    /// The header at the front of `bytes`; `None` while bytes of it are missing.
    pub fn parse(bytes: &[u8]) -> Result<Option<PacketHeader>, PacketError> {
        let Some(first) = bytes.first() else { return Ok(None) };
        match (first >> 4, first & 0xf) {
            (VERSION, 0..=7) => Ok(parse_features(bytes)),
            (VERSION, IMAGE) => parse_image(bytes),
            (VERSION, bits) => Err(PacketError::Bits(bits + 1)),
            (version, _) => Err(PacketError::Version(version)),
        }
    }

    /// Bytes of the header itself.
    pub fn header_len(&self) -> usize {
        self.checked + 2 + self.further.len()
    }

    /// Bytes of the whole packet, saturating: check it against a limit before reserving memory.
    pub fn packet_len(&self) -> usize {
        let stream = self.ends.last().copied().unwrap_or(0);
        self.header_len().saturating_add(stream)
    }

    /// How many layers have fully arrived when `received` bytes of the packet have.
    pub fn whole_layers(&self, received: usize) -> usize {
        match received.checked_sub(self.header_len()) {
            None => 0,
            Some(stream) => self.ends.iter().take_while(|&&end| end <= stream).count(),
        }
    }

    /// The stream of the layers that have fully arrived and how many they are, after checking
    /// each one's checksum. `packet` starts with this header and may be cut off anywhere.
    pub fn verify<'a>(
        &self,
        packet: &'a [u8],
        digest: &BundleDigest,
    ) -> Result<(&'a [u8], usize), PacketError> {
        if packet.len() > self.packet_len() {
            let (expected, actual) = (self.packet_len(), packet.len());
            return Err(PacketError::TooLong { expected, actual });
        }
        let whole = self.whole_layers(packet.len());
        let stream = packet.get(self.header_len()..).unwrap_or_default();
        let mut start = 0;
        for (layer, &end) in self.ends[..whole].iter().enumerate() {
            let bytes = &stream[start..end];
            let intact = match layer.checked_sub(1) {
                None => first_checksum(digest, &packet[..self.checked], bytes) == self.first,
                Some(at) => further_checksum(digest, layer, bytes) == self.further[at],
            };
            if !intact {
                return Err(PacketError::Corrupt { layer });
            }
            start = end;
        }
        Ok((&stream[..start], whole))
    }
}

fn parse_features(bytes: &[u8]) -> Option<PacketHeader> {
    let (&fixed, rest) = bytes.split_first_chunk::<FIXED_OF_FEATURES>()?;
    let point = OperatingPoint {
        split: fixed[2] >> 4,
        width: fixed[2] & 0xf,
        layers: (fixed[1] & 0xf) + 1,
        bits: (fixed[0] & 0xf) + 1,
    };
    parse_layers(bytes, rest, fixed[1] >> 4, Content::Features(point), point.layers)
}

fn parse_image(bytes: &[u8]) -> Result<Option<PacketHeader>, PacketError> {
    let Some((&fixed, rest)) = bytes.split_first_chunk::<FIXED_OF_IMAGE>() else {
        return Ok(None);
    };
    let format = match fixed[1] & 0xf {
        0 => ImageFormat::Jpeg,
        1 => ImageFormat::Webp,
        2 => ImageFormat::Avif,
        other => return Err(PacketError::Format(other)),
    };
    Ok(parse_layers(bytes, rest, fixed[1] >> 4, Content::Image(format), 1))
}

/// The rest of a header, from the lengths on: `rest` is what is left of `bytes` there.
fn parse_layers(
    bytes: &[u8],
    mut rest: &[u8],
    bundle: u8,
    content: Content,
    layers: u8,
) -> Option<PacketHeader> {
    let mut ends = Vec::with_capacity(usize::from(layers));
    let mut end = 0usize;
    for _ in 0..layers {
        let length = varint::read(&mut rest)?;
        end = end.saturating_add(usize::try_from(length).unwrap_or(usize::MAX));
        ends.push(end);
    }
    let checked = bytes.len() - rest.len();
    let (first, rest) = rest.split_first_chunk()?;
    let further = rest.get(..usize::from(layers) - 1)?.to_vec();
    let first = u16::from_be_bytes(*first);
    Some(PacketHeader { bundle, content, ends, checked, first, further })
}

/// Of the header up to the checksums and the first layer.
fn first_checksum(digest: &BundleDigest, header: &[u8], layer: &[u8]) -> u16 {
    let mut crc = CRC_16.digest();
    crc.update(&digest.0);
    crc.update(header);
    crc.update(layer);
    crc.finalize()
}

/// Of a layer behind the first.
fn further_checksum(digest: &BundleDigest, layer: usize, bytes: &[u8]) -> u8 {
    let mut crc = CRC_8.digest();
    crc.update(&digest.0);
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
        assert_eq!(packet[..8], [0x25, 0x23, 0x13, 0x00, 0x40, 0x46, 0x01, 0x40]);
        let header = header(&packet);
        assert_eq!(header.header_len(), 3 + 6 + 2 + 3);
        let point = OperatingPoint { split: 1, width: 3, layers: 4, bits: 6 };
        assert_eq!((header.bundle, header.content), (2, Content::Features(point)));
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
        assert_eq!(PacketHeader::parse(&[0x15]), Err(PacketError::Version(1)));
        assert_eq!(PacketHeader::parse(&[0x29]), Err(PacketError::Bits(10)));
        assert_eq!(PacketHeader::parse(&[0x28, 0x03]), Err(PacketError::Format(3)));
    }

    #[test]
    fn a_picture_s_layout_is_fixed() {
        let mut packet = Vec::new();
        write_image_packet(&mut packet, 3, &DIGEST, ImageFormat::Webp, &[9; 70]);
        assert_eq!(packet[..4], [0x28, 0x31, 0x40, 70]);
        let header = header(&packet);
        assert_eq!((header.bundle, header.content), (3, Content::Image(ImageFormat::Webp)));
        assert_eq!((header.header_len(), header.packet_len()), (6, 76));
    }

    #[test]
    fn five_layers_and_an_envelope_cost_at_most_24_bytes() {
        let coded = Coded {
            stream: vec![1; 5 * 16_383],
            layer_ends: (1..=5).map(|n| n * 16_383).collect(),
        };
        let point = OperatingPoint { split: 0, width: 0, layers: 5, bits: 8 };
        let mut frame = Vec::new();
        let time_left = std::time::Duration::from_secs(16);
        crate::Envelope { frame: 0, time_left, probe: false }.write(&mut frame);
        write_packet(&mut frame, 0, &DIGEST, point, &coded);
        assert_eq!(frame.len() - coded.stream.len(), 24);
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
        fn a_picture_comes_whole_or_not_at_all(
            file in prop::collection::vec(any::<u8>(), 0..300),
            (bundle, format) in (0u8..16, prop::sample::select(ImageFormat::ALL.to_vec())),
            (cut, bit) in (0.0..1.0f64, 0usize..8 * 310),
        ) {
            let mut packet = Vec::new();
            write_image_packet(&mut packet, bundle, &DIGEST, format, &file);
            let whole = header(&packet);
            prop_assert_eq!((whole.bundle, whole.content), (bundle, Content::Image(format)));
            prop_assert_eq!(whole.packet_len(), packet.len());
            prop_assert_eq!(whole.verify(&packet, &DIGEST), Ok((&*file, 1)));
            let other = whole.verify(&packet, &BundleDigest([8; 32]));
            prop_assert_eq!(other, Err(PacketError::Corrupt { layer: 0 }));

            let part = &packet[..(packet.len() as f64 * cut) as usize];
            if let Some(header) = PacketHeader::parse(part).expect("as written") {
                prop_assert_eq!(header.verify(part, &DIGEST), Ok((&[][..], 0)));
            }
            let mut flipped = packet.clone();
            flipped[bit / 8 % packet.len()] ^= 1 << (bit % 8);
            if let Ok(Some(header)) = PacketHeader::parse(&flipped)
                && let Ok((stream, layers)) = header.verify(&flipped, &DIGEST)
            {
                // It lacks the bytes that a length which grew, or features, would have.
                prop_assert_eq!((stream, layers), (&[][..], 0));
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
