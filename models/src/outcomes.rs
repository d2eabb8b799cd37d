//! The record of outcomes: bytes and answer of every validation frame at every operating point.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io::Read;
use std::str::FromStr;

use crate::bundle::PointName;
use crate::image_codec::ImageSpec;
use crate::manifest::{Manifest, PointSpec};

/// The bundle's file of outcomes.
pub const OUTCOMES: &str = "outcomes.csv.zst";

/// First line of a record.
const HEAD: &str = "frame,label,point,bytes,quality,confidence,reply";
/// First line of a record of format 1, which knew classes alone and no sizes of replies.
const HEAD_1: &str = "frame,label,point,bytes,right,confidence";

/// Most bytes of text that are unpacked: a small file must not fill the memory.
const MAX_TEXT: u64 = 512 << 20;

/// Why a record of outcomes was refused; lines count from 1.
#[derive(Debug, thiserror::Error)]
pub enum OutcomesError {
    /// No zstd, or too much text.
    #[error("cannot be unpacked: {0}")]
    Packed(std::io::Error),
    /// A line that says nothing, or something impossible.
    #[error("line {line}: {problem}")]
    Line {
        /// The line.
        line: usize,
        /// What was found and what was expected.
        problem: String,
    },
    /// Nothing, or a point that was not recorded for every frame.
    #[error("{0}")]
    Incomplete(String),
}

/// Level at which a record is packed: it is written once and kept in every clone.
const LEVEL: i32 = 19;

/// What a row of a record is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordedPoint {
    /// Features of this operating point, and the tail.
    Split(PointName),
    /// The early exit of a head.
    Exit {
        /// The split's name.
        split: String,
        /// The width's name.
        width: String,
    },
    /// A picture compressed like this, for the full network.
    Image(ImageSpec),
    /// The full network on the picture as it is.
    Full,
}

/// What a point sent and answered of one frame.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Outcome {
    /// Size of envelope and packet; 0 where nothing is sent.
    pub bytes: u32,
    /// How good the answer was, 0 to 1; of a class 0 or 1.
    pub quality: f32,
    /// How sure the answer was, 0 to 1; of a class its softmax probability.
    pub confidence: f32,
    /// Size of the server's reply; 0 where there was none, or where it was not recorded.
    pub reply: u32,
}

/// What a point sent and answered of all frames, by the frames' ordinal.
#[derive(Clone, Debug, PartialEq)]
pub struct PointOutcomes {
    /// The point.
    pub point: RecordedPoint,
    /// By frame.
    pub frames: Vec<Outcome>,
}

/// Size and answer of every validation frame at every operating point, measured with the real
/// pipeline, so that simulations need not run a network.
///
/// ```
/// use isthmus_models::Outcomes;
/// let text = "frame,label,point,bytes,quality,confidence,reply\n\
///             0,3,s16/w100/exit,0,0,0.41,0\n0,3,s16/w100/c8/b6,612,1,0.93,70\n";
/// let outcomes = Outcomes::parse(text)?;
/// assert_eq!((outcomes.frames(), outcomes.points().len()), (1, 2));
/// # Ok::<(), isthmus_models::OutcomesError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Outcomes {
    labels: Vec<u32>,
    points: Vec<PointOutcomes>,
}

impl Outcomes {
    /// A record of frames with these true classes, of which no point has been recorded yet.
    pub fn new(labels: Vec<u32>) -> Outcomes {
        Outcomes { labels, points: Vec::new() }
    }

    /// Reads a packed record: zstd over CSV.
    pub fn unpack(packed: &[u8]) -> Result<Outcomes, OutcomesError> {
        let unpack = || -> std::io::Result<String> {
            let mut text = String::new();
            let decoder = zstd::stream::read::Decoder::new(packed)?;
            decoder.take(MAX_TEXT).read_to_string(&mut text)?;
            Ok(text)
        };
        let text = unpack().map_err(OutcomesError::Packed)?;
        match text.len() as u64 {
            MAX_TEXT => Err(OutcomesError::Incomplete("has more than 512 MiB of text".into())),
            _ => Outcomes::parse(&text),
        }
    }

    /// Reads a record: one row per frame and point, frames numbered from 0, the same points for
    /// every frame.
    pub fn parse(text: &str) -> Result<Outcomes, OutcomesError> {
        let at = |line: usize, problem: String| OutcomesError::Line { line, problem };
        let mut lines = text.lines().map(str::trim).zip(1..);
        let head = match lines.next() {
            Some((head @ (HEAD | HEAD_1), _)) => head,
            found => {
                let found = found.map_or("nothing", |(line, _)| line);
                return Err(at(1, format!("expected {HEAD:?}, found {found:?}")));
            }
        };
        let width = head.split(',').count();
        let mut labels: Vec<u32> = Vec::new();
        let mut points: BTreeMap<RecordedPoint, Vec<Outcome>> = BTreeMap::new();
        for (text, line) in lines.filter(|(text, _)| !text.is_empty()) {
            let fields: Vec<&str> = text.split(',').collect();
            if fields.len() != width {
                return Err(at(line, format!("expected {width} fields, found {}", fields.len())));
            }
            let (frame, label, row) = row(&fields).map_err(|problem| at(line, problem))?;
            let (point, outcome) = row;
            match labels.get(frame) {
                Some(&known) if known == label => {}
                Some(known) => {
                    let problem = format!("frame {frame} has label {known} above, {label} here");
                    return Err(at(line, problem));
                }
                None if frame == labels.len() => labels.push(label),
                None => {
                    let next = labels.len();
                    return Err(at(line, format!("expected frame {next} next, found {frame}")));
                }
            }
            let rows = points.entry(point).or_default();
            if rows.len() != frame {
                let problem =
                    format!("{}: {} rows come before frame {frame}", fields[2], rows.len());
                return Err(at(line, problem));
            }
            rows.push(outcome);
        }
        if labels.is_empty() {
            return Err(OutcomesError::Incomplete("holds no frame".into()));
        }
        let points: Vec<_> =
            points.into_iter().map(|(point, frames)| PointOutcomes { point, frames }).collect();
        match points.iter().find(|point| point.frames.len() != labels.len()) {
            None => Ok(Outcomes { labels, points }),
            Some(PointOutcomes { point, frames }) => {
                let (some, all) = (frames.len(), labels.len());
                Err(OutcomesError::Incomplete(format!("{point} has {some} of {all} frames")))
            }
        }
    }

    /// Records the outcomes of every frame at `point`, in place of those recorded before.
    pub fn record(
        &mut self,
        point: RecordedPoint,
        frames: Vec<Outcome>,
    ) -> Result<(), OutcomesError> {
        if frames.len() != self.labels.len() {
            let (some, all) = (frames.len(), self.labels.len());
            let problem = format!("{point} has {some} of {all} frames");
            return Err(OutcomesError::Incomplete(problem));
        }
        let at = self.points.binary_search_by(|known| known.point.cmp(&point));
        let outcomes = PointOutcomes { point, frames };
        match at {
            Ok(at) => self.points[at] = outcomes,
            Err(at) => self.points.insert(at, outcomes),
        }
        Ok(())
    }

    /// Forgets the points for which `keep` is false.
    pub fn retain(&mut self, keep: impl Fn(&RecordedPoint) -> bool) {
        self.points.retain(|outcomes| keep(&outcomes.point));
    }

    /// The record as [`unpack`](Outcomes::unpack) reads it, qualities and confidences to four digits. Equal records
    /// give equal bytes.
    pub fn pack(&self) -> std::io::Result<Vec<u8>> {
        let mut text = format!("{HEAD}\n");
        for PointOutcomes { point, frames } in &self.points {
            for (frame, (outcome, label)) in frames.iter().zip(&self.labels).enumerate() {
                let Outcome { bytes, quality, confidence, reply } = outcome;
                let quality = (1e4 * f64::from(*quality)).round() / 1e4;
                // Writing to a string cannot fail.
                let _ = writeln!(
                    text,
                    "{frame},{label},{point},{bytes},{quality},{confidence:.4},{reply}"
                );
            }
        }
        zstd::encode_all(text.as_bytes(), LEVEL)
    }

    /// Writes into a manifest what was measured: its operating points, and the mean qualities of the full
    /// network and of the exits that were recorded.
    pub fn describe(&self, manifest: &mut Manifest) {
        manifest.points = self.points.iter().filter_map(PointOutcomes::spec).collect();
        for recorded in &self.points {
            match &recorded.point {
                RecordedPoint::Full => manifest.full.quality = recorded.rounded_quality(),
                RecordedPoint::Exit { split, width } => {
                    let splits = manifest.splits.iter_mut().filter(|it| it.name == *split);
                    let widths = splits.flat_map(|split| &mut split.widths);
                    for width in widths.filter(|it| it.exit && it.name == *width) {
                        width.exit_quality = recorded.rounded_quality();
                    }
                }
                RecordedPoint::Split(_) | RecordedPoint::Image(_) => {}
            }
        }
    }

    /// Frames.
    pub fn frames(&self) -> usize {
        self.labels.len()
    }

    /// True class of every frame; 0 where the answers are no classes.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The outcomes of every point, in order of point.
    pub fn points(&self) -> &[PointOutcomes] {
        &self.points
    }
}

/// The frame, its label, and what a point did on it, of a row's fields.
fn row(fields: &[&str]) -> Result<(usize, u32, (RecordedPoint, Outcome)), String> {
    let field = |at: usize| fields.get(at).copied().unwrap_or_default();
    let bad = |name: &str, expected: &str, found: &str| {
        format!("{name}: expected {expected}, found {found:?}")
    };
    let whole = |name: &str, at: usize| {
        field(at).parse::<u32>().map_err(|_| bad(name, "a whole number", field(at)))
    };
    let fraction = |name: &str, at: usize| {
        let value = field(at).parse().ok().filter(|value| (0.0..=1.0).contains(value));
        value.ok_or_else(|| bad(name, "0 to 1", field(at)))
    };
    let frame = whole("frame", 0)? as usize;
    // Only classes have a label.
    let label = if field(1).is_empty() { 0 } else { whole("label", 1)? };
    let point: RecordedPoint = field(2).parse()?;
    let bytes = whole("bytes", 3)?;
    let (quality, confidence) = (fraction("quality", 4)?, fraction("confidence", 5)?);
    let reply = if fields.len() > 6 { whole("reply", 6)? } else { 0 };
    Ok((frame, label, (point, Outcome { bytes, quality, confidence, reply })))
}

impl PointOutcomes {
    /// Mean quality of the frames, 0 to 1: of classes the fraction that are right.
    pub fn quality(&self) -> f64 {
        let sum: f64 = self.frames.iter().map(|outcome| f64::from(outcome.quality)).sum();
        sum / self.frames.len() as f64
    }

    /// To five digits.
    fn rounded_quality(&self) -> f64 {
        (1e5 * self.quality()).round() / 1e5
    }

    /// A manifest's entry of an operating point.
    fn spec(&self) -> Option<PointSpec> {
        let RecordedPoint::Split(name) = &self.point else { return None };
        let mut bytes: Vec<u32> = self.frames.iter().map(|outcome| outcome.bytes).collect();
        bytes.sort_unstable();
        let at = |percent: usize| (bytes.len() * percent).div_ceil(100).saturating_sub(1);
        let rank = |percent: usize| bytes.get(at(percent)).map_or(0.0, |&bytes| f64::from(bytes));
        let sum = bytes.iter().map(|&bytes| f64::from(bytes)).sum::<f64>();
        let mean = sum / bytes.len().max(1) as f64;
        Some(PointSpec {
            split: name.split.clone(),
            width: name.width.clone(),
            channels: name.channels,
            bits: name.bits,
            quality: self.rounded_quality(),
            bytes_mean: (10.0 * mean).round() / 10.0,
            bytes_p50: rank(50),
            bytes_p99: rank(99),
        })
    }
}

impl fmt::Display for RecordedPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RecordedPoint::Split(point) => point.fmt(f),
            RecordedPoint::Exit { split, width } => write!(f, "{split}/{width}/exit"),
            RecordedPoint::Image(image) => write!(f, "image/{image}"),
            RecordedPoint::Full => f.write_str("full"),
        }
    }
}

impl FromStr for RecordedPoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(image) = text.strip_prefix("image/") {
            let image = image.parse::<ImageSpec>().map_err(|error| error.to_string())?;
            return Ok(RecordedPoint::Image(image));
        }
        let number = |part: &str, letter| part.strip_prefix(letter)?.parse::<u16>().ok();
        let parts: Vec<&str> = text.split('/').collect();
        let point = match parts.as_slice() {
            ["full"] => Some(RecordedPoint::Full),
            &[split, width, "exit"] => {
                Some(RecordedPoint::Exit { split: split.into(), width: width.into() })
            }
            &[split, width, channels, bits] => number(channels, 'c')
                .zip(number(bits, 'b').and_then(|bits| u8::try_from(bits).ok()))
                .map(|(channels, bits)| PointName {
                    split: split.into(),
                    width: width.into(),
                    channels,
                    bits,
                })
                .map(RecordedPoint::Split),
            _ => None,
        };
        point.ok_or_else(|| {
            format!(
                "expected a point like s16/w100/c16/b6, s16/w100/exit, image/webp/160/q35 or full, \
                 found {text:?}"
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(rows: &str) -> Result<Outcomes, String> {
        Outcomes::parse(&format!("{HEAD}\n{rows}")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_record_survives_packing() {
        let text = format!(
            "{HEAD}\n0,1,full,0,1,0.5,9\n0,1,s8/w25/c4/b3,99,0,0.25,0\n1,2,s8/w25/c4/b3,80,0.5,1,8\n1,2,full,0,1,0,0\n"
        );
        let written = Outcomes::parse(&text).expect("well formed");
        let packed = written.pack().expect("memory takes everything");
        let outcomes = Outcomes::unpack(&packed).expect("well formed");
        assert_eq!(outcomes, written);
        assert_eq!(outcomes.labels(), [1, 2]);
        let names: Vec<String> = outcomes.points().iter().map(|it| it.point.to_string()).collect();
        assert_eq!(names, ["s8/w25/c4/b3", "full"]);
        assert_eq!(
            (outcomes.points()[0].quality(), outcomes.points()[0].frames[1].reply),
            (0.25, 8)
        );
        assert!(Outcomes::unpack(&packed[..packed.len() / 2]).is_err());
        assert!(Outcomes::unpack(b"frame,label").is_err());
    }

    #[test]
    fn a_point_is_recorded_for_every_frame_and_in_its_place() {
        let mut outcomes = parse("0,1,s/w/c4/b3,9,1,1,0\n0,1,full,0,1,1,0\n").expect("well formed");
        let point: RecordedPoint = "image/webp/160/q35".parse().expect("a picture");
        let outcome = Outcome { bytes: 700, quality: 0.0, confidence: 0.5, reply: 60 };
        assert!(outcomes.record(point.clone(), vec![outcome; 2]).is_err());
        for bytes in [600, 700] {
            let outcome = Outcome { bytes, ..outcome };
            outcomes.record(point.clone(), vec![outcome]).expect("one frame");
        }
        let names: Vec<String> = outcomes.points().iter().map(|it| it.point.to_string()).collect();
        assert_eq!(names, ["s/w/c4/b3", "image/webp/160/q35", "full"]);
        assert_eq!(outcomes.points()[1].frames, [outcome]);
        outcomes.retain(|point| !matches!(point, RecordedPoint::Image(_)));
        assert_eq!(outcomes.points().len(), 2);
    }

    #[test]
    fn records_of_format_1_are_read() {
        let text = format!("{HEAD_1}\n0,1,full,0,1,0.5\n1,2,full,0,0,0\n");
        let outcomes = Outcomes::parse(&text).expect("well formed");
        assert_eq!(
            (outcomes.points()[0].quality(), outcomes.points()[0].frames[0].reply),
            (0.5, 0)
        );
        let error = Outcomes::parse(&format!("{HEAD_1}\n0,1,full,0,1,0.5,9\n")).expect_err("seven");
        assert_eq!(error.to_string(), "line 2: expected 6 fields, found 7");
    }

    #[test]
    fn bad_rows_are_named() {
        for (rows, expected) in [
            ("", "holds no frame"),
            ("0,1,full,0,1\n", "line 2: expected 7 fields, found 5"),
            ("x,1,full,0,1,1,0\n", "line 2: frame: expected a whole number, found \"x\""),
            ("0,-1,full,0,1,1,0\n", "line 2: label"),
            ("0,1,half,0,1,1,0\n", "line 2: expected a point like"),
            ("0,1,s/w/c4/b999,0,1,1,0\n", "line 2: expected a point like"),
            ("0,1,image/gif/9/q5,9,1,1,0\n", "line 2: a compressed picture is named by"),
            ("0,1,full,1.5,1,1,0\n", "line 2: bytes"),
            ("0,1,full,0,2,1,0\n", "line 2: quality: expected 0 to 1"),
            ("0,1,full,0,1,nan,0\n", "line 2: confidence: expected 0 to 1, found \"nan\""),
            ("0,1,full,0,1,1.01,0\n", "line 2: confidence"),
            ("1,1,full,0,1,1,0\n", "line 2: expected frame 0 next, found 1"),
            (
                "0,1,full,0,1,1,0\n0,2,a/b/exit,0,1,1,0\n",
                "line 3: frame 0 has label 1 above, 2 here",
            ),
            ("0,1,full,0,1,1,0\n0,1,full,0,1,1,0\n", "line 3: full: 1 rows come before frame 0"),
            (
                "0,1,full,0,1,1,0\n1,1,a/b/exit,0,1,1,0\n",
                "line 3: a/b/exit: 0 rows come before frame 1",
            ),
            (
                "0,1,full,0,1,1,0\n0,1,a/b/exit,0,1,1,0\n1,1,full,0,1,1,0\n",
                "a/b/exit has 1 of 2 frames",
            ),
        ] {
            let error = parse(rows).expect_err(rows);
            assert!(error.starts_with(expected), "{rows:?}: {error}");
        }
        assert!(Outcomes::parse("bytes,frame\n").is_err());
    }
}
