//! Tables by context, where they save bytes of pictures that they were not counted on.

use isthmus_proto::{CodecError, FeatureCodec, FrequencyTables, TableError};

use super::frequencies;

/// Least part of the bytes that contexts have to save: they cost the device time.
const LEAST_SAVED: f64 = 0.02;

/// Fewest pictures to tell from whether contexts save anything.
const LEAST_PICTURES: usize = 4;

/// Largest file of tables that is worth having.
const MOST_BYTES: usize = 4 << 20;

/// A context counts as if it had been met so often more, with its channel's relative frequencies.
const LEANING: u64 = 16;

/// Why no tables were made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum ContextsError {
    /// Symbols that are none of the codec's.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Tables that are none.
    #[error(transparent)]
    Table(#[from] TableError),
}

/// A bundle's file of tables by context.
#[derive(Debug)]
pub(crate) struct ContextTables {
    pub(crate) file: Vec<u8>,
    /// The part of the bytes that contexts saved of pictures they were not counted on.
    pub(crate) saved: f64,
}

/// Tables by context for symbols like those of `pictures`, `[C, h, w]` each, where these save bytes
/// that `codec`, which has none, takes.
pub(crate) fn context_tables(
    codec: &FeatureCodec,
    pictures: &[Vec<u8>],
) -> Result<Option<ContextTables>, ContextsError> {
    let (channels, depth) = (codec.shape().all_channels(), codec.tables().bits());
    let file_bytes = FrequencyTables::bytes_with_contexts(depth, channels)?;
    if pictures.len() < LEAST_PICTURES || file_bytes > MOST_BYTES {
        return Ok(None);
    }
    let half = |odd| pictures.iter().skip(odd).step_by(2).map(Vec::as_slice).collect::<Vec<_>>();
    let of_half = counted(codec, &half(0))?;
    let tables = FrequencyTables::with_contexts(depth, channels, &of_half)?;
    let with = FeatureCodec::new(codec.shape().clone(), codec.quantiser().clone(), tables)?;
    let bits = |codec: &FeatureCodec| {
        half(1).into_iter().map(|symbols| codec.ideal_bits(symbols)).sum::<f64>()
    };
    let saved = 1.0 - bits(&with) / bits(codec).max(1.0);
    if saved < LEAST_SAVED {
        return Ok(None);
    }
    let all: Vec<&[u8]> = pictures.iter().map(Vec::as_slice).collect();
    Ok(Some(ContextTables { file: counted(codec, &all)?, saved }))
}

/// The file of tables that were counted on these pictures.
fn counted(codec: &FeatureCodec, pictures: &[&[u8]]) -> Result<Vec<u8>, CodecError> {
    let mut file = Vec::new();
    for fitted in codec.fit_contexts(pictures)? {
        let symbols = fitted.counts.first().map_or(0, Vec::len);
        let of_channel: Vec<u64> = (0..symbols)
            .map(|symbol| fitted.counts.iter().map(|context| context[symbol]).sum())
            .collect();
        let met: u64 = of_channel.iter().sum();
        file.extend(fitted.parameters);
        for context in &fitted.counts {
            let counts = context.iter().zip(&of_channel);
            let counts: Vec<u64> = counts.map(|(own, all)| own * met + LEANING * all).collect();
            file.extend(frequencies(&counts).into_iter().flat_map(u16::to_le_bytes));
        }
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use isthmus_proto::{LatentShape, Quantiser};

    use super::*;

    /// Three bits of two channels on a grid of 8 × 8, all symbols alike.
    fn plain() -> FeatureCodec {
        let quantiser = Quantiser::new(3, vec![1.0; 2], vec![0; 2], vec![0.0; 2]).expect("valid");
        let table: Vec<u8> = [8192u16; 16].iter().flat_map(|it| it.to_le_bytes()).collect();
        let tables = FrequencyTables::from_bytes(3, 2, &table).expect("valid");
        let shape = LatentShape { channels: vec![2], height: 8, width: 8 };
        FeatureCodec::new(shape, quantiser, tables).expect("fits")
    }

    fn noise(at: usize) -> u8 {
        let mixed = (at as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        (mixed >> 61) as u8
    }

    #[test]
    fn what_follows_from_its_surroundings_costs_little() {
        // The second channel is the first one seen in a mirror of values.
        let picture = |seed: usize| {
            let first: Vec<u8> = (0..64).map(|at| noise(seed * 64 + at)).collect();
            let second: Vec<u8> = first.iter().map(|symbol| 7 - symbol).collect();
            [first, second].concat()
        };
        let pictures: Vec<Vec<u8>> = (0..40).map(picture).collect();
        let tables = context_tables(&plain(), &pictures).expect("symbols").expect("saves");
        assert!((0.35..0.5).contains(&tables.saved), "{}", tables.saved);
        let read = FrequencyTables::with_contexts(3, 2, &tables.file).expect("tables");
        let plain = plain();
        let codec = FeatureCodec::new(plain.shape().clone(), plain.quantiser().clone(), read);
        let codec = codec.expect("fits");
        let symbols = picture(99);
        let coded = codec.encode(&symbols).expect("coded");
        assert!(coded.stream.len() < 32, "{}", coded.stream.len());
        assert_eq!(codec.decode(&coded.stream, 1).expect("decoded"), symbols);
    }

    #[test]
    fn noise_has_no_contexts() {
        let picture = |seed: usize| (0..128).map(|at| noise(seed * 128 + at)).collect();
        let pictures: Vec<Vec<u8>> = (0..8).map(picture).collect();
        assert!(context_tables(&plain(), &pictures).expect("symbols").is_none());
        assert!(context_tables(&plain(), &pictures[..2]).expect("symbols").is_none());
        let short = vec![vec![0; 5]; 4];
        assert!(context_tables(&plain(), &short).is_err());
    }
}
