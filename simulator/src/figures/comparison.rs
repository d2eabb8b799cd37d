//! The range coder against other ways to code the same symbols.

use std::cell::RefCell;
use std::fmt::Write;
use std::time::Instant;

use anyhow::{Context, anyhow, ensure};
use constriction::stream::model::ContiguousCategoricalEntropyModel;
use constriction::stream::queue::{RangeDecoder, RangeEncoder};
use constriction::stream::{Decode, Encode};
use isthmus_proto::{Coded, FeatureCodec};
use zstd::bulk::{Compressor, Decompressor};

use super::codec::{Symbols, codec_of};
use super::lab::Lab;
use crate::link::statistics::median;

/// Times that each frame is coded by each coder.
const ROUNDS: usize = 4;

/// A row for constriction's range coder with words of a type, on the same frequencies.
macro_rules! constriction {
    ($word:ty, $name:literal, $frames:expr, $frequencies:expr, $plane:expr) => {{
        type Model = ContiguousCategoricalEntropyModel<$word, Vec<$word>, 16>;
        let mut models = Vec::new();
        for table in $frequencies.iter() {
            let table = table.iter().map(|&frequency| <$word>::from(frequency));
            let model = Model::from_nonzero_fixed_point_probabilities(table, false);
            models.push(model.map_err(|()| anyhow!("constriction refuses a table"))?);
        }
        $frames.row(
            $name,
            |symbols| {
                let mut encoder = RangeEncoder::<$word, u64>::new();
                for (symbols, model) in symbols.chunks($plane).zip(&models) {
                    let symbols = symbols.iter().map(|&symbol| usize::from(symbol));
                    encoder.encode_iid_symbols(symbols, model)?;
                }
                Ok(encoder.into_compressed()?)
            },
            |words: &Vec<$word>| words.len() * size_of::<$word>(),
            |words, count| {
                let mut decoder = RangeDecoder::<$word, u64, _>::from_compressed(words.as_slice())?;
                let mut symbols = Vec::with_capacity(count);
                for model in &models[..count / $plane] {
                    for symbol in decoder.decode_iid_symbols($plane, model) {
                        symbols.push(symbol? as u8);
                    }
                }
                Ok(symbols)
            },
        )?
    }};
}

/// A Markdown table of sizes and speeds, on the symbols of the bundle's best point.
///
/// Each frame is coded by itself, as on the wire, and each coder's decoder has to give the symbols
/// back.
pub fn table(lab: &Lab) -> anyhow::Result<String> {
    let frames = Symbols::collect(lab)?;
    let (point, codec) = (frames.point, codec_of(lab, frames.point)?);
    let (bits, layers) = (point.bits, usize::from(point.layers));
    let frequencies = frequencies(lab, &frames)?;
    let plane = codec.shape().plane();
    let coded = Frames { symbols: &frames.symbols };
    let by_channel = lab.bundle().codec_by_channel(point.split, point.width, bits)?;
    let by_channel = by_channel.with_context(|| format!("no tables for {point}"))?;
    let own = |name: &str, codec: &FeatureCodec| {
        coded.row(
            name,
            |symbols| Ok(codec.encode(symbols)?),
            |coded: &Coded| coded.stream.len(),
            |coded, _| Ok(codec.decode(&coded.stream, layers)?),
        )
    };
    let rows = [
        own("Isthmus, as the bundle codes", codec)?,
        own("Isthmus, one table a channel", &by_channel)?,
        constriction!(u32, "constriction range coder, 32-bit words", coded, frequencies, plane),
        constriction!(u16, "constriction range coder, 16-bit words", coded, frequencies, plane),
        zstd(&coded, 3)?,
        zstd(&coded, 19)?,
        coded.row("bit packing", |s| Ok(pack(s, bits)), Vec::len, |p, n| Ok(unpack(p, n, bits)))?,
    ];
    let ideal = frames.symbols.iter().map(|symbols| by_channel.ideal_bits(symbols) / 8.0);
    let ideal: f64 = ideal.sum();
    let bundle = lab.bundle();
    let mut text = format!(
        "Bundle {} {} at {}, {} {} of {} symbols. Σ −log₂ p under one table a channel is {:.1} \
         bytes per frame. One core; a symbol counts as one byte, medians over frames.\n\n\
         | coder | bytes per frame | over Σ −log₂ p | encodes (MB/s) | decodes (MB/s) |\n\
         |---|---:|---:|---:|---:|\n",
        bundle.name(),
        bundle.manifest().version,
        frames.name(lab),
        frames.symbols.len(),
        lab.origin(),
        frames.symbols[0].len(),
        ideal / frames.symbols.len() as f64,
    );
    for Row { name, bytes, encode, decode } in rows {
        let mean = bytes as f64 / frames.symbols.len() as f64;
        let over = bytes as f64 / ideal;
        writeln!(text, "| {name} | {mean:.1} | {over:.4} | {encode:.1} | {decode:.1} |")?;
    }
    Ok(text)
}

/// A coder.
struct Row {
    name: String,
    /// Of all frames.
    bytes: usize,
    /// Median over frames (MB/s).
    encode: f64,
    decode: f64,
}

/// Frames of symbols, each of which is coded by itself.
struct Frames<'a> {
    symbols: &'a [Vec<u8>],
}

impl Frames<'_> {
    fn row<C>(
        &self,
        name: impl Into<String>,
        encode: impl Fn(&[u8]) -> anyhow::Result<C>,
        bytes: impl Fn(&C) -> usize,
        decode: impl Fn(&C, usize) -> anyhow::Result<Vec<u8>>,
    ) -> anyhow::Result<Row> {
        let name = name.into();
        let (mut encode_rates, mut decode_rates, mut size) = (Vec::new(), Vec::new(), 0);
        for _ in 0..ROUNDS {
            size = 0;
            for symbols in self.symbols {
                let rate =
                    |start: Instant| symbols.len() as f64 / 1e6 / start.elapsed().as_secs_f64();
                let start = Instant::now();
                let coded = encode(symbols)?;
                encode_rates.push(rate(start));
                size += bytes(&coded);
                let start = Instant::now();
                let decoded = decode(&coded, symbols.len())?;
                decode_rates.push(rate(start));
                ensure!(decoded == *symbols, "{name} does not decode what it encodes");
            }
        }
        let (encode, decode) = (median(&encode_rates), median(&decode_rates));
        Ok(Row { name, bytes: size, encode, decode })
    }
}

/// Frames as zstd takes them: one byte a symbol.
fn zstd(coded: &Frames<'_>, level: i32) -> anyhow::Result<Row> {
    let compressor = RefCell::new(Compressor::new(level)?);
    let decompressor = RefCell::new(Decompressor::new()?);
    coded.row(
        format!("zstd, level {level}"),
        |symbols| Ok(compressor.borrow_mut().compress(symbols)?),
        Vec::len,
        |bytes, count| Ok(decompressor.borrow_mut().decompress(bytes, count)?),
    )
}

/// `bits` of each symbol, most significant first.
fn pack(symbols: &[u8], bits: u8) -> Vec<u8> {
    let mut packed = Vec::with_capacity((symbols.len() * usize::from(bits)).div_ceil(8));
    let (mut pending, mut count) = (0u32, 0);
    for &symbol in symbols {
        pending = pending << bits | u32::from(symbol);
        count += bits;
        if count >= 8 {
            count -= 8;
            packed.push((pending >> count) as u8);
        }
    }
    if count > 0 {
        packed.push((pending << (8 - count)) as u8);
    }
    packed
}

fn unpack(packed: &[u8], count: usize, bits: u8) -> Vec<u8> {
    let mask = (1u32 << bits) - 1;
    let (mut pending, mut left, mut bytes) = (0u32, 0, packed.iter());
    let symbol = |_| {
        if left < bits {
            pending = pending << 8 | u32::from(bytes.next().copied().unwrap_or(0));
            left += 8;
        }
        left -= bits;
        ((pending >> left) & mask) as u8
    };
    (0..count).map(symbol).collect()
}

/// Each channel's frequencies at the point of `frames`.
fn frequencies(lab: &Lab, frames: &Symbols) -> anyhow::Result<Vec<Vec<u16>>> {
    let point = frames.point;
    let quantiser = lab.bundle().quantiser(point.split, point.width, point.bits);
    let tables = &quantiser.with_context(|| format!("no tables for {point}"))?.tables;
    let bytes = lab.bundle().read(tables)?;
    let table = |bytes: &[u8]| {
        bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect()
    };
    Ok(bytes.chunks_exact(2 << point.bits).map(table).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unpacking_inverts_packing() {
        for bits in 1..=8 {
            let symbols: Vec<u8> = (0..37u32).map(|at| (at * 91 % (1 << bits)) as u8).collect();
            let packed = pack(&symbols, bits);
            assert_eq!(packed.len(), (37 * usize::from(bits)).div_ceil(8));
            assert_eq!(unpack(&packed, 37, bits), symbols);
        }
    }
}
