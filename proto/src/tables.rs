//! Integer frequency tables of the entropy coder.

use crate::context::{CONTEXTS, ChannelContext};

/// Sum of a table's frequencies, as a power of two.
pub(crate) const PRECISION: u32 = 16;

/// Why tables were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// The depth is not one a symbol can have.
    #[error("tables are for 1 to 8 bits, not {0}")]
    Bits(u8),
    /// The byte string has the wrong length.
    #[error("{tables} tables of {symbols} frequencies take {expected} bytes, not {actual}")]
    Length {
        /// Tables asked for.
        tables: usize,
        /// Symbols of the alphabet.
        symbols: usize,
        /// Bytes needed.
        expected: usize,
        /// Bytes given.
        actual: usize,
    },
    /// A symbol that could not be coded.
    #[error("channel {channel}: symbol {symbol} has frequency 0; every symbol needs at least 1")]
    Zero {
        /// The channel.
        channel: usize,
        /// The symbol.
        symbol: usize,
    },
    /// A table that is no distribution.
    #[error("channel {channel}: frequencies sum to {sum}, not 65536")]
    Sum {
        /// The channel.
        channel: usize,
        /// What they sum to.
        sum: u32,
    },
    /// Bins of contexts that are out of order.
    #[error("channel {channel}: the thresholds of its contexts decrease")]
    Thresholds {
        /// The channel.
        channel: usize,
    },
}

/// Distributions over the symbols of a quantiser, in integers: two machines that hold the same
/// bytes code the same way. A channel has one of them, or one for each context of a symbol.
#[derive(Clone, Debug)]
pub struct FrequencyTables {
    bits: u8,
    /// Per channel and context, `2^bits + 1` cumulative frequencies from 0 to 65536.
    cumulative: Vec<u32>,
    /// Per channel, how contexts are found; empty with one distribution a channel.
    contexts: Vec<ChannelContext>,
}

impl FrequencyTables {
    /// Reads one distribution a channel: `channels × 2^bits` little-endian `u16` frequencies,
    /// channel-major; each at least 1, each channel's sum 65536.
    pub fn from_bytes(bits: u8, channels: usize, bytes: &[u8]) -> Result<Self, TableError> {
        let symbols = alphabet(bits)?;
        let expected = channels.saturating_mul(symbols * 2);
        expect_length(channels, symbols, expected, bytes.len())?;
        let mut cumulative = Vec::with_capacity(channels * (symbols + 1));
        for (channel, table) in bytes.chunks_exact(symbols * 2).enumerate() {
            push_cumulative(&mut cumulative, channel, table)?;
        }
        Ok(FrequencyTables { bits, cumulative, contexts: Vec::new() })
    }

    /// Reads distributions by context. Per channel c, from 0, little-endian: 4 weights `i8` of the
    /// neighbours left, above, above left and above right; c weights `i8` of the channels before;
    /// 7 thresholds `i32` of the prediction and 2 of the activity; 24 × `2^bits` frequencies `u16`,
    /// those of a prediction's bin together, which hold to the same rules as without contexts.
    pub fn with_contexts(bits: u8, channels: usize, bytes: &[u8]) -> Result<Self, TableError> {
        let symbols = alphabet(bits)?;
        let tables = CONTEXTS * symbols * 2;
        let expected = Self::bytes_with_contexts(bits, channels)?;
        expect_length(channels * CONTEXTS, symbols, expected, bytes.len())?;
        let mut cumulative = Vec::with_capacity(channels * CONTEXTS * (symbols + 1));
        let (mut contexts, mut rest) = (Vec::with_capacity(channels), bytes);
        for channel in 0..channels {
            let (parameters, after) = rest.split_at(ChannelContext::len(channel));
            let (frequencies, after) = after.split_at(tables);
            let context = ChannelContext::from_bytes(channel, parameters);
            contexts.push(context.ok_or(TableError::Thresholds { channel })?);
            for table in frequencies.chunks_exact(symbols * 2) {
                push_cumulative(&mut cumulative, channel, table)?;
            }
            rest = after;
        }
        Ok(FrequencyTables { bits, cumulative, contexts })
    }

    /// Bytes that [`with_contexts`](Self::with_contexts) reads for so many channels.
    pub fn bytes_with_contexts(bits: u8, channels: usize) -> Result<usize, TableError> {
        let tables = CONTEXTS * alphabet(bits)? * 2;
        let parameters = (0..channels).map(ChannelContext::len).sum::<usize>();
        Ok(parameters.saturating_add(channels.saturating_mul(tables)))
    }

    /// Symbol depth (bits).
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Channels that have tables.
    pub fn channels(&self) -> usize {
        self.cumulative.len() / self.stride() / self.per_channel()
    }

    /// How a channel's contexts are found; `None` with one distribution a channel.
    pub(crate) fn context(&self, channel: usize) -> Option<&ChannelContext> {
        self.contexts.get(channel)
    }

    /// The `2^bits + 1` cumulative frequencies of a channel in a context; the only one without
    /// contexts is 0.
    #[inline]
    pub(crate) fn cumulative(&self, channel: usize, context: usize) -> &[u32] {
        let (at, stride) = (channel * self.per_channel() + context, self.stride());
        &self.cumulative[at * stride..(at + 1) * stride]
    }

    /// Tables of a channel.
    fn per_channel(&self) -> usize {
        if self.contexts.is_empty() { 1 } else { CONTEXTS }
    }

    fn stride(&self) -> usize {
        (1 << self.bits) + 1
    }
}

/// Symbols of `bits` bits.
fn alphabet(bits: u8) -> Result<usize, TableError> {
    if (1..=8).contains(&bits) { Ok(1 << bits) } else { Err(TableError::Bits(bits)) }
}

fn expect_length(
    tables: usize,
    symbols: usize,
    expected: usize,
    actual: usize,
) -> Result<(), TableError> {
    match expected == actual {
        true => Ok(()),
        false => Err(TableError::Length { tables, symbols, expected, actual }),
    }
}

/// Appends the running sums, from 0, of the little-endian frequencies in `table`.
fn push_cumulative(
    cumulative: &mut Vec<u32>,
    channel: usize,
    table: &[u8],
) -> Result<(), TableError> {
    let mut sum = 0;
    cumulative.push(sum);
    for (symbol, frequency) in table.chunks_exact(2).enumerate() {
        let frequency = u32::from(u16::from_le_bytes([frequency[0], frequency[1]]));
        if frequency == 0 {
            return Err(TableError::Zero { channel, symbol });
        }
        sum += frequency;
        cumulative.push(sum);
    }
    if sum != 1 << PRECISION {
        return Err(TableError::Sum { channel, sum });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(frequencies: &[u16]) -> Vec<u8> {
        frequencies.iter().flat_map(|f| f.to_le_bytes()).collect()
    }

    #[test]
    fn only_distributions_are_taken() {
        let read = |frequencies: &[u16]| FrequencyTables::from_bytes(1, 1, &bytes(frequencies));
        assert!(read(&[1, 65535]).is_ok());
        assert_eq!(read(&[2, 65535]).err(), Some(TableError::Sum { channel: 0, sum: 65537 }));
        assert_eq!(read(&[0, 65535]).err(), Some(TableError::Zero { channel: 0, symbol: 0 }));
        assert!(matches!(read(&[1, 2, 3]).err(), Some(TableError::Length { .. })));
        assert_eq!(FrequencyTables::from_bytes(9, 0, &[]).err(), Some(TableError::Bits(9)));
    }

    #[test]
    fn contexts_are_read_channel_by_channel() {
        let mut table = Vec::new();
        for channel in 0..2u8 {
            table.extend([1, 2, 3, 4]);
            table.extend(std::iter::repeat_n(5, channel.into()));
            table.extend([0; 9 * 4]);
            table.extend(bytes(&[16_384, 49_152]).repeat(CONTEXTS));
        }
        let read = |table: &[u8]| FrequencyTables::with_contexts(1, 2, table);
        let tables = read(&table).expect("whole");
        assert_eq!(tables.channels(), 2);
        assert_eq!(tables.context(1).map(|it| it.before.as_slice()), Some([5].as_slice()));
        assert_eq!(tables.cumulative(1, CONTEXTS - 1), [0, 16_384, 65_536]);
        assert!(matches!(read(&table[1..]).err(), Some(TableError::Length { .. })));
        table[4..8].copy_from_slice(&1i32.to_le_bytes());
        assert_eq!(read(&table).err(), Some(TableError::Thresholds { channel: 0 }));
    }
}
