//! Properties of the feature codec over every bit depth, layer count and shape, and vectors of
//! another implementation that pin its bytes.

use std::time::Duration;

use isthmus_proto::{
    BundleDigest, CodecError, Envelope, FeatureCodec, FrequencyTables, LatentShape, OperatingPoint,
    PacketHeader, Quantiser, write_packet,
};
use proptest::prelude::*;
use serde::Deserialize;

/// Frequencies of `2^bits` symbols that sum to 65536, in proportion to `weights`.
fn table(bits: u8, weights: &[u32]) -> Vec<u8> {
    let symbols = 1usize << bits;
    let total: u32 = (0..symbols).map(|at| weights[at % weights.len()]).sum();
    let spare = 65_536 - symbols as u32;
    let mut frequencies: Vec<u32> = (0..symbols)
        .map(|at| {
            1 + (u64::from(spare) * u64::from(weights[at % weights.len()]) / u64::from(total))
                as u32
        })
        .collect();
    frequencies[0] += 65_536 - frequencies.iter().sum::<u32>();
    frequencies.iter().flat_map(|&frequency| (frequency as u16).to_le_bytes()).collect()
}

fn codec(bits: u8, channels: Vec<u16>, height: u16, width: u16, weights: &[u32]) -> FeatureCodec {
    let count = usize::from(*channels.last().expect("a layer"));
    let tables = FrequencyTables::from_bytes(bits, count, &table(bits, weights).repeat(count));
    with_tables(bits, channels, height, width, tables.expect("valid"))
}

/// The same with a table for each context, all different.
fn context_codec(
    bits: u8,
    channels: Vec<u16>,
    height: u16,
    width: u16,
    weights: &[u32],
) -> FeatureCodec {
    let count = usize::from(*channels.last().expect("a layer"));
    let mut bytes = Vec::new();
    for channel in 0..count {
        let weight = |at: usize| weights[at % weights.len()] as u8;
        bytes.extend((0..4 + channel).map(|at| weight(channel + at)));
        let step = 1 << bits;
        let thresholds = (-3..=3).map(|n| n * step).chain([step, 2 * step]);
        bytes.extend(thresholds.flat_map(i32::to_le_bytes));
        for context in 0..24 {
            let rotated: Vec<u32> =
                weights.iter().cycle().skip(context).copied().take(40).collect();
            bytes.extend(table(bits, &rotated));
        }
    }
    let tables = FrequencyTables::with_contexts(bits, count, &bytes);
    with_tables(bits, channels, height, width, tables.expect("valid"))
}

fn with_tables(
    bits: u8,
    channels: Vec<u16>,
    height: u16,
    width: u16,
    tables: FrequencyTables,
) -> FeatureCodec {
    let count = usize::from(*channels.last().expect("a layer"));
    let zero = vec![1 << (bits - 1); count];
    let quantiser = Quantiser::new(bits, vec![0.5; count], zero, vec![0.0; count]);
    let shape = LatentShape { channels, height, width };
    FeatureCodec::new(shape, quantiser.expect("valid"), tables).expect("agree")
}

prop_compose! {
    fn cases()(
        bits in 1u8..=8,
        steps in prop::collection::vec(1u16..5, 1..=16),
        height in 1u16..12,
        width in 1u16..12,
        weights in prop::collection::vec(1u32..1000, 1..40),
        noise in prop::collection::vec(any::<u8>(), 64),
        contexts in any::<bool>(),
    ) -> (FeatureCodec, Vec<u8>) {
        let mut sum = 0;
        let channels = steps.iter().map(|step| { sum += step; sum }).collect();
        let build = if contexts { context_codec } else { codec };
        let codec = build(bits, channels, height, width, &weights);
        let count = codec.shape().all_channels() * codec.shape().plane();
        let mask = ((1u16 << bits) - 1) as u8;
        let symbols = (0..count).map(|at| noise[at * 7 % 61] & mask).collect();
        (codec, symbols)
    }
}

proptest! {
    #[test]
    fn decoding_inverts_encoding_at_every_layer((codec, symbols) in cases()) {
        let coded = codec.encode(&symbols).expect("valid symbols");
        let (shape, plane) = (codec.shape(), codec.shape().plane());
        prop_assert_eq!(coded.layer_ends.len(), shape.channels.len());
        prop_assert_eq!(coded.layer_ends.last(), Some(&coded.stream.len()));
        for layers in 1..=shape.channels.len() {
            let expected = &symbols[..shape.channels_of(layers) * plane];
            let cut = &coded.stream[..coded.size_of(layers)];
            prop_assert_eq!(&codec.decode(cut, layers).expect("layers exist"), expected);
        }
    }

    #[test]
    fn a_stream_is_hardly_longer_than_its_information((codec, symbols) in cases()) {
        let stream = codec.encode(&symbols).expect("valid symbols").stream;
        prop_assert!(stream.len() as f64 * 8.0 <= codec.ideal_bits(&symbols) * 1.000_001 + 16.0);
    }

    #[test]
    fn a_cut_packet_decodes_to_its_whole_layers((codec, symbols) in cases(), cut in 0.0..1.0f64) {
        let coded = codec.encode(&symbols).expect("valid symbols");
        let layers = coded.layer_ends.len();
        let point = OperatingPoint {
            split: 0, width: 0, layers: layers as u8, bits: codec.quantiser().bits(),
        };
        let (mut packet, digest) = (Vec::new(), BundleDigest([3; 32]));
        write_packet(&mut packet, 0, &digest, point, &coded);
        let header = PacketHeader::parse(&packet).expect("valid").expect("whole");
        packet.truncate((packet.len() as f64 * cut) as usize);
        let (stream, whole) = header.verify(&packet, &digest).expect("undamaged");
        if whole > 0 {
            let expected = codec.shape().channels_of(whole) * codec.shape().plane();
            prop_assert_eq!(&codec.decode(stream, whole).expect("exist"), &symbols[..expected]);
        }
    }

    #[test]
    fn quantised_latents_survive((codec, symbols) in cases()) {
        let mut latents = Vec::new();
        codec.dequantise(&symbols, &mut latents).expect("whole layers");
        let layers = codec.shape().channels.len();
        prop_assert_eq!(codec.quantise(&latents, layers).expect("shape"), symbols);
    }
}

#[test]
fn misuse_is_an_error_that_tells_the_expectation() {
    let codec = codec(4, vec![1, 3], 2, 2, &[1]);
    let length = |expected, actual| CodecError::Length { what: "symbols", expected, actual };
    assert_eq!(codec.encode(&[0; 8]), Err(CodecError::Layers { layers: 0, available: 2 }));
    assert_eq!(codec.encode(&[0; 5]), Err(length(4, 5)));
    assert_eq!(codec.encode(&[16; 4]), Err(CodecError::Symbol { symbol: 16, bits: 4 }));
    assert_eq!(codec.decode(&[], 3), Err(CodecError::Layers { layers: 3, available: 2 }));
    assert_eq!(codec.dequantise(&[0; 16], &mut Vec::new()), Err(length(12, 16)));
    assert!(codec.quantise(&[0.0; 11], 2).is_err());
}

/// Coded features that the reference coder of the training kit wrote. It shares nothing with this
/// one but the specification; `python models/training/tests/test_vectors.py` writes the file anew.
#[derive(Deserialize)]
struct Vector {
    name: String,
    bits: u8,
    channels: Vec<u16>,
    height: u16,
    width: u16,
    /// Whether the tables are by context.
    contexts: bool,
    /// The tables' file, in hexadecimal.
    tables: String,
    symbols: Vec<u8>,
    layer_lengths: Vec<usize>,
    stream: String,
    /// An envelope and a packet of all layers.
    frame: String,
}

/// The bytes may never change: bundles and devices in the field depend on them.
#[test]
fn the_reference_coder_writes_the_same_bytes() {
    let vectors: Vec<Vector> = serde_json::from_str(include_str!("vectors.json")).expect("vectors");
    assert!(vectors.iter().filter(|vector| vector.contexts).count() >= 2);
    for vector in vectors {
        let Vector { name, bits, channels, height, width, symbols, .. } = vector;
        let count = usize::from(*channels.last().expect("a layer"));
        let table = bytes(&vector.tables);
        let tables = match vector.contexts {
            true => FrequencyTables::with_contexts(bits, count, &table),
            false => FrequencyTables::from_bytes(bits, count, &table),
        };
        let codec = with_tables(bits, channels, height, width, tables.expect(&name));

        let coded = codec.encode(&symbols).expect(&name);
        assert_eq!(hex(&coded.stream), vector.stream, "{name}");
        let ends: Vec<_> = vector
            .layer_lengths
            .iter()
            .scan(0, |end, length| {
                *end += length;
                Some(*end)
            })
            .collect();
        assert_eq!(coded.layer_ends, ends, "{name}");
        assert_eq!(codec.decode(&coded.stream, ends.len()).expect(&name), symbols, "{name}");

        let digest = BundleDigest(std::array::from_fn(|at| at as u8));
        let point = OperatingPoint { split: 1, width: 3, layers: ends.len() as u8, bits };
        let mut frame = Vec::new();
        let time_left = Duration::from_millis(250);
        Envelope { frame: 0xabcd, time_left, probe: false }.write(&mut frame);
        write_packet(&mut frame, 2, &digest, point, &coded);
        assert_eq!(hex(&frame), vector.frame, "{name}");
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(hex: &str) -> Vec<u8> {
    let digits = |at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hexadecimal");
    (0..hex.len()).step_by(2).map(digits).collect()
}
