//! Integer frequency tables of the entropy coder.

/// Sum of a table's frequencies, as a power of two.
pub(crate) const PRECISION: u32 = 16;

/// Why tables were refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// The depth is not one a symbol can have.
    #[error("tables are for 1 to 8 bits, not {0}")]
    Bits(u8),
    /// The byte string has the wrong length.
    #[error("{channels} tables of {symbols} frequencies take {expected} bytes, not {actual}")]
    Length {
        /// Channels asked for.
        channels: usize,
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
}

/// One distribution over the symbols of a quantiser per channel, in integers: two machines that
/// hold the same bytes code the same way.
#[derive(Clone, Debug)]
pub struct FrequencyTables {
    bits: u8,
    /// Per channel, `2^bits + 1` cumulative frequencies from 0 to 65536.
    cumulative: Vec<u32>,
}

impl FrequencyTables {
    /// Reads `channels × 2^bits` little-endian `u16` frequencies, channel-major; each at least 1,
    /// each channel's sum 65536.
    pub fn from_bytes(bits: u8, channels: usize, bytes: &[u8]) -> Result<Self, TableError> {
        if !(1..=8).contains(&bits) {
            return Err(TableError::Bits(bits));
        }
        let symbols = 1usize << bits;
        let expected = channels.saturating_mul(symbols * 2);
        if bytes.len() != expected {
            let actual = bytes.len();
            return Err(TableError::Length { channels, symbols, expected, actual });
        }
        let mut cumulative = Vec::with_capacity(channels * (symbols + 1));
        for (channel, table) in bytes.chunks_exact(symbols * 2).enumerate() {
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
        }
        Ok(FrequencyTables { bits, cumulative })
    }

    /// Symbol depth (bits).
    pub fn bits(&self) -> u8 {
        self.bits
    }

    /// Channels that have a table.
    pub fn channels(&self) -> usize {
        self.cumulative.len() / self.stride()
    }

    /// Ideal code length (bits) of `symbols`, all of one channel: Σ −log₂ p.
    ///
    /// # Panics
    ///
    /// If there is no such channel or symbol.
    pub fn ideal_bits(&self, channel: usize, symbols: &[u8]) -> f64 {
        let cumulative = self.cumulative(channel);
        let bits = |&symbol: &u8| {
            let at = usize::from(symbol);
            f64::from(PRECISION) - f64::from(cumulative[at + 1] - cumulative[at]).log2()
        };
        symbols.iter().map(bits).sum()
    }

    /// The `2^bits + 1` cumulative frequencies of a channel.
    pub(crate) fn cumulative(&self, channel: usize) -> &[u32] {
        let stride = self.stride();
        &self.cumulative[channel * stride..(channel + 1) * stride]
    }

    fn stride(&self) -> usize {
        (1 << self.bits) + 1
    }
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
    fn ideal_length_of_a_fair_coin_is_a_bit_a_throw() {
        let tables = FrequencyTables::from_bytes(1, 1, &bytes(&[32768; 2])).expect("fair");
        assert_eq!(tables.ideal_bits(0, &[0, 1, 1]), 3.0);
    }
}
