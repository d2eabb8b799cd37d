//! The feature codec: latents ⇄ symbols ⇄ one layered stream.

use crate::OperatingPoint;
use crate::context::Surroundings;
use crate::context::fit::{self, FittedContexts};
use crate::quantiser::Quantiser;
use crate::range_coder::{RangeDecoder, RangeEncoder};
use crate::tables::{FrequencyTables, PRECISION};

/// Why the codec was not built, or refused its input.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The list of channel counts is unusable.
    #[error(
        "channel counts must be 1 to {max} increasing positive numbers, not {0:?}",
        max = OperatingPoint::MAX_LAYERS
    )]
    Channels(Vec<u16>),
    /// A grid without places, or one too large to be meant.
    #[error("a latent grid is 1 to 1024 places high and wide, not {height} × {width}")]
    Grid {
        /// Height (places).
        height: u16,
        /// Width (places).
        width: u16,
    },
    /// Quantiser and tables belong to different bottlenecks.
    #[error("{what} has {actual}, the latent shape needs {expected}")]
    Mismatch {
        /// Which part.
        what: &'static str,
        /// What the shape or the quantiser needs.
        expected: usize,
        /// What the part has.
        actual: usize,
    },
    /// A layer count the bottleneck does not have.
    #[error("{layers} layers asked for; there are 1 to {available}")]
    Layers {
        /// Asked for.
        layers: usize,
        /// There are.
        available: usize,
    },
    /// A tensor or symbol string of the wrong length.
    #[error("{what}: {actual} values given where {expected} are needed")]
    Length {
        /// Which input.
        what: &'static str,
        /// Values needed.
        expected: usize,
        /// Values given.
        actual: usize,
    },
    /// A symbol outside the quantiser's alphabet.
    #[error("symbol {symbol} does not fit {bits} bits")]
    Symbol {
        /// The symbol.
        symbol: u8,
        /// The quantiser's depth.
        bits: u8,
    },
}

/// Shape of a bottleneck's latents: `[C, height, width]` with C the last of `channels`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LatentShape {
    /// Channels after each layer, increasing: layer *i* holds those from the count before it up
    /// to `channels[i]`.
    pub channels: Vec<u16>,
    /// Height of the grid (places).
    pub height: u16,
    /// Width of the grid (places).
    pub width: u16,
}

impl LatentShape {
    /// Places of the grid.
    pub fn plane(&self) -> usize {
        usize::from(self.height) * usize::from(self.width)
    }

    /// Channels of the first `layers` layers; 0 for none, all for too many.
    pub fn channels_of(&self, layers: usize) -> usize {
        let last = layers.min(self.channels.len());
        last.checked_sub(1).map_or(0, |last| usize::from(self.channels[last]))
    }

    /// Channels of all layers.
    pub fn all_channels(&self) -> usize {
        self.channels_of(self.channels.len())
    }
}

/// A frame's features as bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Coded {
    /// One range-coded stream, in layer order.
    pub stream: Vec<u8>,
    /// Bytes of the stream that decode the layers up to and with each; not decreasing, one per
    /// layer.
    pub layer_ends: Vec<usize>,
}

impl Coded {
    /// Bytes that the first `layers` layers take.
    ///
    /// # Panics
    ///
    /// If there are fewer.
    pub fn size_of(&self, layers: usize) -> usize {
        layers.checked_sub(1).map_or(0, |last| self.layer_ends[last])
    }
}

/// Quantises and entropy-codes the latents of one split, width and bit depth.
///
/// Cutting the stream after any layer needs no new coding: the bytes up to that layer's end decode
/// to the same symbols.
///
/// ```
/// use isthmus_proto::{FeatureCodec, FrequencyTables, LatentShape, Quantiser};
///
/// // Two layers of one channel each on a grid of 1 × 2, one bit deep, all symbols alike probable.
/// let codec = FeatureCodec::new(
///     LatentShape { channels: vec![1, 2], height: 1, width: 2 },
///     Quantiser::new(1, vec![1.0; 2], vec![0; 2], vec![0.25; 2])?,
///     FrequencyTables::from_bytes(1, 2, &[0, 128, 0, 128, 0, 128, 0, 128])?,
/// )?;
/// let symbols = codec.quantise(&[0.0, 0.9, 1.2, -3.0], 2)?;
/// assert_eq!(symbols, [0, 1, 1, 0]);
///
/// let coded = codec.encode(&symbols)?;
/// let first_layer = codec.decode(&coded.stream[..coded.layer_ends[0]], 1)?;
/// assert_eq!(first_layer, [0, 1]);
///
/// let mut latents = Vec::new();
/// codec.dequantise(&first_layer, &mut latents)?;
/// assert_eq!(latents, [0.0, 1.0, 0.25, 0.25]); // the layer that was not sent takes its prior
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct FeatureCodec {
    shape: LatentShape,
    quantiser: Quantiser,
    tables: FrequencyTables,
}

impl FeatureCodec {
    /// A codec from parts that must agree in channels and bits.
    pub fn new(
        shape: LatentShape,
        quantiser: Quantiser,
        tables: FrequencyTables,
    ) -> Result<Self, CodecError> {
        let LatentShape { channels, height, width } = &shape;
        let increasing = channels.first().is_some_and(|&first| first > 0)
            && channels.windows(2).all(|pair| pair[0] < pair[1]);
        if !increasing || channels.len() > usize::from(OperatingPoint::MAX_LAYERS) {
            return Err(CodecError::Channels(channels.clone()));
        }
        if !(1..=1024).contains(height) || !(1..=1024).contains(width) {
            return Err(CodecError::Grid { height: *height, width: *width });
        }
        let expect = |what, expected, actual| match expected == actual {
            true => Ok(()),
            false => Err(CodecError::Mismatch { what, expected, actual }),
        };
        expect("quantiser channels", shape.all_channels(), quantiser.channels())?;
        expect("table channels", shape.all_channels(), tables.channels())?;
        expect("table bits", quantiser.bits().into(), tables.bits().into())?;
        Ok(FeatureCodec { shape, quantiser, tables })
    }

    /// Symbols `[c, height, width]` of the first `layers` layers of `latents`
    /// (f32, `[C, height, width]`).
    pub fn quantise(&self, latents: &[f32], layers: usize) -> Result<Vec<u8>, CodecError> {
        let plane = self.shape.plane();
        expect_length("latents", self.shape.all_channels() * plane, latents.len())?;
        let channels = self.channels(layers)?;
        let mut symbols = Vec::with_capacity(channels * plane);
        for (channel, latents) in latents.chunks_exact(plane).take(channels).enumerate() {
            self.quantiser.quantise(channel, latents, &mut symbols);
        }
        Ok(symbols)
    }

    /// Codes `symbols` `[c, height, width]`, where c is the channel count of some layer.
    pub fn encode(&self, symbols: &[u8]) -> Result<Coded, CodecError> {
        let plane = self.shape.plane();
        let channels = symbols.len() / plane;
        let layers = self.shape.channels.iter().position(|&c| usize::from(c) == channels);
        let layers = layers.map_or(0, |last| last + 1);
        expect_length("symbols", self.channels(layers)? * plane, symbols.len())?;
        let bits = self.quantiser.bits();
        if let Some(&symbol) = symbols.iter().find(|&&symbol| usize::from(symbol) >> bits != 0) {
            return Err(CodecError::Symbol { symbol, bits });
        }
        let mut encoder = RangeEncoder::new(symbols.len());
        let mut surroundings = self.surroundings(channels);
        for (channel, symbols) in symbols.chunks_exact(plane).enumerate() {
            self.intervals(channel, symbols, &mut surroundings, |start, end| {
                encoder.encode(start, end);
            });
            if self.shape.channels.contains(&(channel as u16 + 1)) {
                encoder.mark();
            }
        }
        let (stream, layer_ends) = encoder.finish();
        Ok(Coded { stream, layer_ends })
    }

    /// Symbols `[c, height, width]` of the first `layers` layers.
    ///
    /// The stream is trusted to be whole: any bytes decode to some symbols, so its checksums and
    /// its bundle's digest have to be checked before.
    pub fn decode(&self, stream: &[u8], layers: usize) -> Result<Vec<u8>, CodecError> {
        let (plane, channels) = (self.shape.plane(), self.channels(layers)?);
        let mut decoder = RangeDecoder::new(stream);
        let mut symbols = Vec::with_capacity(channels * plane);
        let mut surroundings = self.surroundings(channels);
        for channel in 0..channels {
            let Some(context) = self.tables.context(channel) else {
                let cumulative = self.tables.cumulative(channel, 0);
                symbols.extend((0..plane).map(|_| decoder.decode(cumulative)));
                continue;
            };
            let zero_point = self.quantiser.zero_points()[channel];
            surroundings.begin(context);
            for place in 0..plane {
                let at = surroundings.context(context, place);
                let symbol = decoder.decode(self.tables.cumulative(channel, at));
                surroundings.set(place, i32::from(symbol) - zero_point);
                symbols.push(symbol);
            }
        }
        Ok(symbols)
    }

    /// Appends the latents (f32, `[C, height, width]`) that `symbols` `[c, height, width]` stand
    /// for; channels from c on are at their prior mean.
    pub fn dequantise(&self, symbols: &[u8], latents: &mut Vec<f32>) -> Result<(), CodecError> {
        let (plane, all) = (self.shape.plane(), self.shape.all_channels());
        let channels = symbols.len() / plane;
        expect_length("symbols", channels.min(all) * plane, symbols.len())?;
        latents.reserve(all * plane);
        for (channel, symbols) in symbols.chunks_exact(plane).enumerate() {
            self.quantiser.dequantise(channel, symbols, latents);
        }
        for &mean in &self.quantiser.prior_mean()[channels..] {
            latents.extend(std::iter::repeat_n(mean, plane));
        }
        Ok(())
    }

    /// Contexts for symbols `[C, height, width]` like those of `pictures`, by channel: what follows
    /// each one's parameters in [`FrequencyTables::with_contexts`] comes from its counts.
    pub fn fit_contexts(&self, pictures: &[&[u8]]) -> Result<Vec<FittedContexts>, CodecError> {
        let LatentShape { height, width, .. } = self.shape;
        let (expected, bits) = (self.shape.all_channels() * self.shape.plane(), self.tables.bits());
        for &symbols in pictures {
            expect_length("symbols", expected, symbols.len())?;
            if let Some(&symbol) = symbols.iter().find(|&&symbol| u32::from(symbol) >> bits > 0) {
                return Err(CodecError::Symbol { symbol, bits });
            }
        }
        let grid = [height, width].map(usize::from);
        Ok(fit::fit(bits, self.quantiser.zero_points(), grid, pictures))
    }

    /// Shape of the latents.
    pub fn shape(&self) -> &LatentShape {
        &self.shape
    }

    /// The quantiser.
    pub fn quantiser(&self) -> &Quantiser {
        &self.quantiser
    }

    /// The frequency tables.
    pub fn tables(&self) -> &FrequencyTables {
        &self.tables
    }

    /// Ideal code length of `symbols` `[c, height, width]` under the tables (bits).
    pub fn ideal_bits(&self, symbols: &[u8]) -> f64 {
        let (plane, mut bits) = (self.shape.plane(), 0.0);
        let mut surroundings = self.surroundings(symbols.len() / plane);
        for (channel, symbols) in symbols.chunks(plane).enumerate() {
            self.intervals(channel, symbols, &mut surroundings, |start, end| {
                bits += f64::from(PRECISION) - f64::from(end - start).log2();
            });
        }
        bits
    }

    fn surroundings(&self, channels: usize) -> Surroundings {
        let LatentShape { height, width, .. } = self.shape;
        // Without contexts nothing is ever noted, and nothing reserved.
        let channels = if self.tables.context(0).is_some() { channels } else { 0 };
        Surroundings::new(height.into(), width.into(), channels)
    }

    /// Visits the interval of 2^16 that each of a channel's symbols is coded as, in coding order.
    fn intervals(
        &self,
        channel: usize,
        symbols: &[u8],
        surroundings: &mut Surroundings,
        mut visit: impl FnMut(u32, u32),
    ) {
        let mut code = |symbol: u8, cumulative: &[u32]| {
            let at = usize::from(symbol);
            visit(cumulative[at], cumulative[at + 1]);
        };
        let Some(context) = self.tables.context(channel) else {
            let cumulative = self.tables.cumulative(channel, 0);
            return symbols.iter().for_each(|&symbol| code(symbol, cumulative));
        };
        let zero_point = self.quantiser.zero_points()[channel];
        surroundings.begin(context);
        for (place, &symbol) in symbols.iter().enumerate() {
            surroundings.set(place, i32::from(symbol) - zero_point);
        }
        for (place, &symbol) in symbols.iter().enumerate() {
            code(symbol, self.tables.cumulative(channel, surroundings.context(context, place)));
        }
    }

    fn channels(&self, layers: usize) -> Result<usize, CodecError> {
        let available = self.shape.channels.len();
        match (1..=available).contains(&layers) {
            true => Ok(self.shape.channels_of(layers)),
            false => Err(CodecError::Layers { layers, available }),
        }
    }
}

fn expect_length(what: &'static str, expected: usize, actual: usize) -> Result<(), CodecError> {
    match expected == actual {
        true => Ok(()),
        false => Err(CodecError::Length { what, expected, actual }),
    }
}
