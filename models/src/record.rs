//! A record of what one machine computed of pictures, to be compared with what another computes.
//!
//! A record is a zstd stream of length-prefixed protobuf messages: a [`Header`], then a [`Frame`]
//! for each picture, which is kept as the file that it came in.

use std::collections::BTreeSet;
use std::env::consts::ARCH;
use std::io::{self, Read, Write};
use std::iter;
use std::sync::Arc;

use isthmus_proto::framer::write_message;
use isthmus_proto::{BundleDigest, CodecError, Framer, FramerError, OperatingPoint};
use sha2::{Digest, Sha256};

use crate::bundle::{Bundle, PointError};
use crate::classify::likeliest;
use crate::cores::on_all_cores;
use crate::engine::Engine;
use crate::golden::Golden;
use crate::manifest::{Manifest, OutputSpec, Task};
use crate::network::Network;
use crate::photo::MAX_PICTURE_BYTES;
use crate::picture::{Picture, PictureError};
use crate::prepared::{LoadError, RunError};

/// One symbol in this many may be rounded otherwise on another machine, by one step.
const SYMBOLS_PER_DIFFERENCE: usize = 10_000;
/// One answer in this many may be another class.
const ANSWERS_PER_DIFFERENCE: usize = 1000;

/// How far two values of an output that is no classifier's may differ, as a fraction of the greatest.
const ALIKE: f32 = 0.01;

/// The full network runs on one frame in this many: it costs as much as all else together, and an
/// emulated machine takes seconds for it.
const FRAMES_PER_FULL: usize = 8;

/// Largest message of a record (bytes): a picture, and as much of values computed of it.
const MAX_MESSAGE_BYTES: usize = 2 * MAX_PICTURE_BYTES;

#[derive(Clone, PartialEq, prost::Message)]
struct Header {
    #[prost(string, tag = "1")]
    bundle: String,
    #[prost(bytes = "vec", tag = "2")]
    digest: Vec<u8>,
    /// Architecture and engine.
    #[prost(string, tag = "3")]
    machine: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Frame {
    /// JPEG, PNG or WebP.
    #[prost(bytes = "vec", tag = "1")]
    picture: Vec<u8>,
    /// SHA-256 of the decoded picture's RGB.
    #[prost(bytes = "vec", tag = "2")]
    pixels: Vec<u8>,
    #[prost(string, tag = "3")]
    point: String,
    /// `[C, h, w]`.
    #[prost(float, repeated, tag = "4")]
    latents: Vec<f32>,
    #[prost(bytes = "vec", tag = "5")]
    symbols: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    stream: Vec<u8>,
    #[prost(uint32, repeated, tag = "7")]
    layer_bytes: Vec<u32>,
    /// The tail's outputs, one after the other.
    #[prost(float, repeated, tag = "8")]
    outputs: Vec<f32>,
    /// The full network's; none where it was not run.
    #[prost(float, repeated, tag = "9")]
    full_outputs: Vec<f32>,
}

/// Why a picture could not be recorded.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// No picture; the record goes on without it.
    #[error(transparent)]
    Picture(#[from] PictureError),
    /// A file over [`MAX_PICTURE_BYTES`]; the record goes on without it.
    #[error("larger than {MAX_PICTURE_BYTES} bytes")]
    TooLarge,
    /// A graph of the bundle does not load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A graph failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The codec does not take what the head gives.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// The record cannot be written.
    #[error("the record cannot be written: {0}")]
    Write(#[from] io::Error),
}

/// Why a record could not be replayed to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// It cannot be read, or was cut short.
    #[error("the record cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It is no record.
    #[error("this is no record: {0}")]
    Format(#[from] FramerError),
    /// It holds no frame.
    #[error("the record holds no frame")]
    Empty,
    /// It is of another bundle.
    #[error("recorded of {recorded}, while this bundle is {given}")]
    OtherBundle {
        /// Name and digest of the record's bundle.
        recorded: String,
        /// Name and digest of the bundle given.
        given: String,
    },
    /// A point that the bundle does not have.
    #[error(transparent)]
    Point(#[from] PointError),
    /// A picture that this machine cannot decode.
    #[error("frame {frame}: {source}")]
    Picture {
        /// The frame, from 0.
        frame: usize,
        /// What is wrong with it.
        source: PictureError,
    },
    /// A graph of the bundle does not load.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A graph failed.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Latents or symbols that the codec does not take.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

/// Writes down what this machine computes of pictures, each at another operating point in turn, and
/// of some what the full network answers.
pub struct Recorder<W: Write> {
    network: Network,
    points: Vec<OperatingPoint>,
    out: zstd::Encoder<'static, W>,
    frames: usize,
}

impl<W: Write> Recorder<W> {
    /// Loads every graph of `bundle`, and begins a record of it.
    pub fn start(bundle: Arc<Bundle>, engine: &dyn Engine, out: W) -> Result<Self, RecordError> {
        let header = Header {
            bundle: bundle.name().to_owned(),
            digest: bundle.digest().0.to_vec(),
            machine: format!("{ARCH}, {}", engine.name()),
        };
        // Neighbours are of different widths, so that a short record has all of them.
        let mut points = bundle.all_points();
        points.sort_by_key(|point| (point.layers, point.bits, point.split, point.width));
        let network = Network::load(bundle, engine)?;
        let mut out = zstd::Encoder::new(out, zstd::DEFAULT_COMPRESSION_LEVEL)?;
        out.include_checksum(true)?;
        let mut recorder = Recorder { network, points, out, frames: 0 };
        recorder.write(&header)?;
        Ok(recorder)
    }

    /// Computes and records one picture, a JPEG, PNG or WebP file.
    pub fn add(&mut self, file: Vec<u8>) -> Result<(), RecordError> {
        if file.len() > MAX_PICTURE_BYTES {
            return Err(RecordError::TooLarge);
        }
        let picture = Picture::decode(&file)?;
        let point = self.points[self.frames % self.points.len()];
        let full = self.frames.is_multiple_of(FRAMES_PER_FULL);
        let golden = self.network.golden::<RecordError>(point, picture, full)?;
        let Golden { point, latents, symbols, stream, layer_bytes, outputs, .. } = golden;
        self.write(&Frame {
            picture: file,
            pixels: Sha256::digest(golden.picture.rgb()).to_vec(),
            point: point.to_string(),
            latents,
            symbols,
            stream,
            layer_bytes,
            outputs: outputs.concat(),
            full_outputs: golden.full_outputs.concat(),
        })?;
        self.frames += 1;
        Ok(())
    }

    /// Ends the record and gives the number of its frames.
    pub fn finish(self) -> Result<usize, RecordError> {
        self.out.finish()?.flush()?;
        Ok(self.frames)
    }

    fn write(&mut self, message: &impl prost::Message) -> io::Result<()> {
        let mut bytes = Vec::new();
        write_message(&mut bytes, message);
        self.out.write_all(&bytes)
    }
}

/// How this machine's values compare with those that another recorded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Replayed {
    /// Where it was recorded: architecture and engine.
    pub machine: String,
    /// Frames of the record, at least 1.
    pub frames: usize,
    /// Operating points that occur.
    pub points: BTreeSet<OperatingPoint>,
    /// Frames whose recorded features give the recorded symbols and bytes here, and whose bytes
    /// give the symbols back.
    pub coded_alike: usize,
    /// Frames whose picture decodes to the same pixels.
    pub decoded_alike: usize,
    /// Symbols of all frames.
    pub symbols: usize,
    /// Symbols that are others here, from the same picture.
    pub differing: usize,
    /// The furthest that one of them is off (steps).
    pub furthest: u8,
    /// Frames to which the tail here, on the symbols here, gives the same answer: the same likeliest class,
    /// or outputs alike to a hundredth of the greatest value.
    pub same_answers: usize,
    /// Frames that the full network was run on.
    pub full_frames: usize,
    /// Those to which it gives the same answer.
    pub same_full_answers: usize,
    /// The furthest that a logit of the tail or of the full network is off; infinite where one is
    /// missing or not a number.
    pub logit_difference: f32,
}

impl Replayed {
    /// Whether the machines may work together: features are coded alike to the bit; from the same
    /// picture, at most one symbol in 10,000 differs, by one step, and at most one answer in 1,000.
    pub fn holds(&self) -> bool {
        let alike = |frames: usize, same: usize| frames - same <= frames / ANSWERS_PER_DIFFERENCE;
        self.frames > 0
            && self.coded_alike == self.frames
            && self.furthest <= 1
            && self.differing <= self.symbols / SYMBOLS_PER_DIFFERENCE
            && alike(self.frames, self.same_answers)
            && alike(self.full_frames, self.same_full_answers)
    }

    /// Takes in what was found of other frames of the same record.
    fn add(&mut self, other: Replayed) {
        self.frames += other.frames;
        self.points.extend(other.points);
        self.coded_alike += other.coded_alike;
        self.decoded_alike += other.decoded_alike;
        self.symbols += other.symbols;
        self.differing += other.differing;
        self.furthest = self.furthest.max(other.furthest);
        self.same_answers += other.same_answers;
        self.full_frames += other.full_frames;
        self.same_full_answers += other.same_full_answers;
        self.logit_difference = self.logit_difference.max(other.logit_difference);
    }

    fn compare(
        network: &Network,
        point: OperatingPoint,
        picture: Picture,
        theirs: &Frame,
    ) -> Result<Replayed, ReplayError> {
        let mut found = Replayed::default();
        let codec = network.codec(point)?;
        // Another symbol or byte is what is counted, and none that does not fit is an error.
        let symbols = codec.quantise(&theirs.latents, point.layers.into())?;
        let coded = codec.encode(&symbols)?;
        let ends = theirs.layer_bytes.iter().scan(0usize, |end, &bytes| {
            *end = end.saturating_add(bytes as usize);
            Some(*end)
        });
        let coded_alike = symbols == theirs.symbols
            && coded.stream == theirs.stream
            && coded.layer_ends.iter().copied().eq(ends)
            && codec.decode(&theirs.stream, point.layers.into())? == symbols;
        found.coded_alike += usize::from(coded_alike);

        let pixels = Sha256::digest(picture.rgb());
        found.decoded_alike += usize::from(pixels[..] == theirs.pixels);
        let full = !theirs.full_outputs.is_empty();
        let ours = network.golden::<ReplayError>(point, picture, full)?;
        for (a, b) in ours.symbols.iter().zip(&theirs.symbols) {
            found.differing += usize::from(a != b);
            found.furthest = found.furthest.max(a.abs_diff(*b));
        }
        // A symbol without its match differs, too.
        found.differing += ours.symbols.len().abs_diff(theirs.symbols.len());
        found.symbols += ours.symbols.len();
        let (tail, whole) = (ours.outputs.concat(), ours.full_outputs.concat());
        let alike =
            |ours: &[f32], theirs: &[f32]| same_answers(network.bundle.manifest(), ours, theirs);
        found.same_answers += usize::from(alike(&tail, &theirs.outputs));
        found.full_frames += usize::from(full);
        found.same_full_answers += usize::from(full && alike(&whole, &theirs.full_outputs));
        for (ours, theirs) in [(&tail, &theirs.outputs), (&whole, &theirs.full_outputs)] {
            found.logit_difference = found.logit_difference.max(difference(ours, theirs));
        }
        found.points.insert(point);
        found.frames = 1;
        Ok(found)
    }
}

/// Whether outputs say the same: of classifiers the same likeliest class, else values that are alike to
/// a hundredth of the greatest.
fn same_answers(manifest: &Manifest, ours: &[f32], theirs: &[f32]) -> bool {
    let mut start = 0;
    ours.len() == theirs.len()
        && manifest.decoders.iter().all(|decoder| {
            let range = start..start + decoder.outputs.iter().map(OutputSpec::len).sum::<usize>();
            start = range.end;
            let (Some(ours), Some(theirs)) = (ours.get(range.clone()), theirs.get(range)) else {
                return false;
            };
            let greatest = theirs.iter().fold(1f32, |greatest, value| greatest.max(value.abs()));
            match decoder.task {
                Task::Classification => likeliest(ours) == likeliest(theirs),
                _ => difference(ours, theirs) <= ALIKE * greatest,
            }
        })
}

/// The greatest difference of two values; infinite where one is missing or not a number.
fn difference(ours: &[f32], theirs: &[f32]) -> f32 {
    if ours.len() != theirs.len() {
        return f32::INFINITY;
    }
    let gaps = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs());
    gaps.map(|gap| if gap.is_nan() { f32::INFINITY } else { gap }).fold(0.0, f32::max)
}

/// Computes every frame of a record of `bundle` again, on all cores, and compares.
pub fn replay(
    bundle: Arc<Bundle>,
    engine: &dyn Engine,
    record: impl Read + Send,
) -> Result<Replayed, ReplayError> {
    let mut messages = Messages {
        bytes: zstd::Decoder::new(record)?,
        chunk: vec![0; 64 << 10],
        framer: Framer::new(MAX_MESSAGE_BYTES),
    };
    let header: Header = messages.next()?.ok_or(ReplayError::Empty)?;
    let of = |name: &str, digest: BundleDigest| format!("{name} {digest}");
    if header.digest != bundle.digest().0 {
        // A digest of another length is nobody's.
        let digest = BundleDigest(header.digest.try_into().unwrap_or_default());
        let (recorded, given) = (of(&header.bundle, digest), of(bundle.name(), bundle.digest()));
        return Err(ReplayError::OtherBundle { recorded, given });
    }
    let network = Network::load(bundle, engine)?;
    let frames = iter::from_fn(|| messages.next::<Frame>().transpose()).enumerate();
    let compared = on_all_cores(frames, |(frame, theirs)| {
        let theirs = theirs?;
        let point = network.bundle.parse_point(&theirs.point)?;
        let picture = Picture::decode(&theirs.picture)
            .map_err(|source| ReplayError::Picture { frame, source })?;
        Replayed::compare(&network, point, picture, &theirs)
    })?;
    let mut replayed = Replayed { machine: header.machine, ..Replayed::default() };
    compared.into_iter().for_each(|frame| replayed.add(frame));
    if replayed.frames == 0 {
        return Err(ReplayError::Empty);
    }
    Ok(replayed)
}

struct Messages<R> {
    bytes: R,
    chunk: Vec<u8>,
    framer: Framer,
}

impl<R: Read> Messages<R> {
    /// The next message; `None` at the record's end.
    fn next<M: prost::Message + Default>(&mut self) -> Result<Option<M>, ReplayError> {
        loop {
            if let Some(message) = self.framer.next_message()? {
                return Ok(Some(message));
            }
            match self.bytes.read(&mut self.chunk)? {
                0 => return Ok(None),
                read => self.framer.push(&self.chunk[..read]),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_that_differ_too_much_do_not_hold() {
        let whole = Replayed {
            frames: 1000,
            coded_alike: 1000,
            symbols: 20_000,
            differing: 2,
            furthest: 1,
            same_answers: 999,
            full_frames: 125,
            same_full_answers: 125,
            ..Replayed::default()
        };
        assert!(whole.holds());
        for worse in [
            Replayed { coded_alike: 999, ..whole.clone() },
            Replayed { differing: 3, ..whole.clone() },
            Replayed { furthest: 2, ..whole.clone() },
            Replayed { same_answers: 998, ..whole.clone() },
            Replayed { same_full_answers: 124, ..whole.clone() },
            Replayed::default(),
        ] {
            assert!(!worse.holds(), "{worse:?}");
        }
    }

    #[test]
    fn a_missing_or_broken_logit_is_infinitely_far_away() {
        assert_eq!(difference(&[1.0, 2.0], &[1.5, 2.0]), 0.5);
        assert_eq!(difference(&[1.0], &[1.0, 2.0]), f32::INFINITY);
        assert_eq!(difference(&[f32::NAN], &[1.0]), f32::INFINITY);
    }
}
