//! A byte-wise range coder after Martin, "Range encoding" (1979), with carry propagation.
//!
//! 56-bit state against 16-bit frequencies: the rounding of `range >> 16` costs less than 2^-31 of
//! a symbol's probability, and the end of the stream at most a byte more than its information.

use crate::tables::PRECISION;

const STATE_BITS: u32 = 56;
const STATE_BYTES: usize = (STATE_BITS / 8) as usize;
const MASK: u64 = (1 << STATE_BITS) - 1;
/// The range is kept at or above this.
const FLOOR: u64 = 1 << (STATE_BITS - 8);

/// Writes symbols, given as intervals of a cumulative distribution.
pub(crate) struct RangeEncoder {
    low: u64,
    range: u64,
    out: Vec<u8>,
    /// Lower ends of the interval, in full, as they stood when [`RangeEncoder::mark`] was called.
    marks: Vec<Vec<u8>>,
}

impl RangeEncoder {
    pub(crate) fn new(capacity: usize) -> Self {
        RangeEncoder { low: 0, range: MASK, out: Vec::with_capacity(capacity), marks: Vec::new() }
    }

    /// Narrows the interval to `[start, end)` of 2^16; `start < end`.
    #[inline]
    pub(crate) fn encode(&mut self, start: u32, end: u32) {
        let unit = self.range >> PRECISION;
        let below = unit * u64::from(start);
        self.low += below;
        self.range =
            if end == 1 << PRECISION { self.range - below } else { unit * u64::from(end - start) };
        if self.low > MASK {
            self.low &= MASK;
            self.carry();
        }
        while self.range < FLOOR {
            self.out.push((self.low >> (STATE_BITS - 8)) as u8);
            self.low = (self.low << 8) & MASK;
            self.range <<= 8;
        }
    }

    /// Notes the end of a layer.
    pub(crate) fn mark(&mut self) {
        let low = self.low.to_be_bytes();
        self.marks.push([&self.out, &low[low.len() - STATE_BYTES..]].concat());
    }

    /// The stream, and per mark the bytes of it that decode all symbols up to there.
    pub(crate) fn finish(mut self) -> (Vec<u8>, Vec<usize>) {
        for length in 0..=STATE_BYTES as u32 {
            let unit = 1 << (STATE_BITS - 8 * length);
            let value = self.low.next_multiple_of(unit);
            if value < self.low + self.range {
                if value > MASK {
                    self.carry();
                }
                let bytes = (value & MASK).to_be_bytes();
                let first = bytes.len() - STATE_BYTES;
                self.out.extend_from_slice(&bytes[first..first + length as usize]);
                break;
            }
        }
        self.out.truncate(significant(&self.out));
        let ends = self.marks.iter().map(|low| reach(&self.out, low)).collect();
        (self.out, ends)
    }

    /// Adds one to the number written so far. It cannot overflow: the interval stays within [0, 1).
    fn carry(&mut self) {
        for byte in self.out.iter_mut().rev() {
            *byte = byte.wrapping_add(1);
            if *byte != 0 {
                break;
            }
        }
    }
}

/// Length without trailing zeros.
fn significant(bytes: &[u8]) -> usize {
    bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1)
}

/// Least `n` for which `stream[..n]` followed by zeros is at least `low`, given that the whole
/// stream is.
fn reach(stream: &[u8], low: &[u8]) -> usize {
    let padded = stream.iter().copied().chain(std::iter::repeat(0));
    let agree = padded.zip(low).take_while(|(byte, low)| byte == *low).count();
    significant(low).min(agree + 1).min(stream.len())
}

/// Reads what [`RangeEncoder`] wrote; past the end it reads zeros.
pub(crate) struct RangeDecoder<'a> {
    code: u64,
    range: u64,
    rest: std::slice::Iter<'a, u8>,
}

impl<'a> RangeDecoder<'a> {
    pub(crate) fn new(stream: &'a [u8]) -> Self {
        let mut decoder = RangeDecoder { code: 0, range: MASK, rest: stream.iter() };
        for _ in 0..STATE_BYTES {
            decoder.shift();
        }
        // No encoder writes the interval's excluded end; a corrupt stream may, and `code < range`
        // has to hold for the arithmetic below.
        decoder.code = decoder.code.min(MASK - 1);
        decoder
    }

    /// The symbol whose interval holds the code; `cumulative` starts at 0 and ends at 2^16.
    #[inline]
    pub(crate) fn decode(&mut self, cumulative: &[u32]) -> u8 {
        let unit = self.range >> PRECISION;
        let target = (self.code / unit).min((1 << PRECISION) - 1) as u32;
        let symbol = cumulative.partition_point(|&start| start <= target) - 1;
        let (start, end) = (cumulative[symbol], cumulative[symbol + 1]);
        let below = unit * u64::from(start);
        self.code -= below;
        self.range =
            if end == 1 << PRECISION { self.range - below } else { unit * u64::from(end - start) };
        while self.range < FLOOR {
            self.shift();
            self.range <<= 8;
        }
        symbol as u8
    }

    fn shift(&mut self) {
        self.code = self.code << 8 | u64::from(self.rest.next().copied().unwrap_or(0));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A skewed alphabet of four.
    const CUMULATIVE: [u32; 5] = [0, 1, 65_000, 65_535, 65_536];

    fn encode(symbols: &[u8], marks: &[usize]) -> (Vec<u8>, Vec<usize>) {
        let mut encoder = RangeEncoder::new(0);
        for (at, &symbol) in symbols.iter().enumerate() {
            let symbol = usize::from(symbol);
            encoder.encode(CUMULATIVE[symbol], CUMULATIVE[symbol + 1]);
            if marks.contains(&at) {
                encoder.mark();
            }
        }
        encoder.finish()
    }

    fn decode(stream: &[u8], count: usize) -> Vec<u8> {
        let mut decoder = RangeDecoder::new(stream);
        (0..count).map(|_| decoder.decode(&CUMULATIVE)).collect()
    }

    #[test]
    fn nothing_takes_no_bytes() {
        assert_eq!(encode(&[], &[]), (vec![], vec![]));
    }

    #[test]
    fn a_probable_run_takes_hardly_any() {
        let (stream, _) = encode(&[1; 100], &[]);
        assert!(stream.len() <= 2, "{stream:?}");
    }

    #[test]
    fn carries_reach_far_back() {
        // The last symbol's interval starts just below 1, so that runs of it drive `low` to
        // 0xff…ff, and one more step tips it over.
        for tail in [[3, 3, 1, 2], [3, 2, 3, 3], [2, 3, 3, 0]] {
            let symbols = [vec![3; 20], tail.to_vec(), vec![2; 9]].concat();
            assert_eq!(decode(&encode(&symbols, &[]).0, symbols.len()), symbols);
        }
    }

    proptest! {
        #[test]
        fn decoding_inverts_encoding(symbols in prop::collection::vec(0u8..4, 0..400)) {
            prop_assert_eq!(decode(&encode(&symbols, &[]).0, symbols.len()), symbols);
        }

        #[test]
        fn a_marked_prefix_decodes_and_is_the_shortest(
            symbols in prop::collection::vec(prop_oneof![Just(1u8), 0u8..4], 1..80),
            cut in 0usize..80,
        ) {
            let cut = cut % symbols.len();
            let (stream, ends) = encode(&symbols, &[cut]);
            let (end, before) = (ends[0], &symbols[..=cut]);
            prop_assert_eq!(&decode(&stream[..end], cut + 1), before);
            if end > 0 {
                prop_assert_ne!(&decode(&stream[..end - 1], cut + 1), before);
            }
        }

        #[test]
        fn any_bytes_decode_to_something(stream in prop::collection::vec(any::<u8>(), 0..40)) {
            prop_assert_eq!(decode(&stream, 200).len(), 200);
        }

        #[test]
        fn all_ones_do_not_break_the_decoder(length in 0usize..40) {
            prop_assert_eq!(decode(&vec![0xff; length], 200).len(), 200);
        }
    }
}
