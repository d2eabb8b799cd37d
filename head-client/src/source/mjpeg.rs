//! Concatenated JPEGs, as `rpicam-vid --codec mjpeg` and `ffmpeg -f mjpeg` write them.

use std::io::Read;
use std::mem;
use std::ops::ControlFlow;

use isthmus_models::Picture;

use super::{FrameTruth, MAX_PICTURE_BYTES, NoPicture, SourceFrame};

/// The first bytes of every JPEG.
pub(super) const MAGIC: &[u8] = &[0xff, SOI];

const CHUNK_BYTES: usize = 64 << 10;
const SOI: u8 = 0xd8;
const EOI: u8 = 0xd9;
const SOS: u8 = 0xda;
const COM: u8 = 0xfe;

/// Begins the comment that names a picture's true class.
const LABEL: &[u8] = b"label=";

/// The pictures of an MJPEG stream. Bytes between pictures are skipped; a damaged or truncated
/// picture is a bad frame, and reading goes on at the next start of one.
#[derive(Debug)]
pub struct Mjpeg<R> {
    stream: R,
    splitter: Splitter,
    frame: u64,
    ended: bool,
}

/// Cuts bytes into JPEGs by their markers (ITU-T T.81, annex B).
#[derive(Debug, Default)]
struct Splitter {
    buffer: Vec<u8>,
    /// Where the next marker is looked for; may lie behind the buffer's end.
    at: usize,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    /// Before a picture; nothing in the buffer is kept but what may be half a start.
    #[default]
    Outside,
    /// At a marker.
    Marker,
    /// In entropy-coded data, which ends at the next marker that is no restart.
    Scan,
}

impl<R: Read> Mjpeg<R> {
    /// Reads `stream` as it is asked for pictures.
    pub fn new(stream: R) -> Self {
        Mjpeg { stream, splitter: Splitter::default(), frame: 0, ended: false }
    }

    fn next_jpeg(&mut self) -> Option<Result<Vec<u8>, String>> {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            if let Some(jpeg) = self.splitter.next_jpeg() {
                return Some(jpeg);
            }
            if self.ended {
                return None;
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => {
                    self.ended = true;
                    if self.splitter.state != State::Outside {
                        return Some(Err("the stream ends within this picture".into()));
                    }
                }
                Ok(length) => self.splitter.push(&chunk[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.ended = true;
                    return Some(Err(format!("the stream cannot be read: {error}")));
                }
            }
        }
    }
}

impl<R: Read> Iterator for Mjpeg<R> {
    type Item = SourceFrame;

    fn next(&mut self) -> Option<SourceFrame> {
        let jpeg = self.next_jpeg()?;
        let source = format!("mjpeg:{}", self.frame);
        self.frame += 1;
        let class = jpeg.as_deref().ok().and_then(label).map(str::to_owned);
        let truth = class.map(FrameTruth::Class);
        let picture =
            jpeg.and_then(|jpeg| Picture::decode(&jpeg).map_err(|error| error.to_string()));
        let picture = picture.map_err(NoPicture::Bad);
        Some(SourceFrame { source, truth, picture })
    }
}

impl Splitter {
    fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole JPEG, or what is wrong with a damaged one; `None` while bytes are missing.
    fn next_jpeg(&mut self) -> Option<Result<Vec<u8>, String>> {
        loop {
            if self.state != State::Outside && self.at.min(self.buffer.len()) > MAX_PICTURE_BYTES {
                return Some(self.give_up(self.at, "is larger than a picture may be"));
            }
            match self.state {
                State::Outside => self.find_start()?,
                State::Scan => self.skip_scan()?,
                State::Marker => {
                    if let ControlFlow::Break(jpeg) = self.take_marker()? {
                        return Some(jpeg);
                    }
                }
            }
        }
    }

    /// Drops what lies before the next start of a JPEG; `None` if there is none yet.
    fn find_start(&mut self) -> Option<()> {
        let start = self.buffer.windows(2).position(|pair| pair == MAGIC);
        // The last byte may be half a start.
        let half = usize::from(self.buffer.last() == Some(&0xff));
        self.buffer.drain(..start.unwrap_or(self.buffer.len() - half));
        start?;
        (self.at, self.state) = (MAGIC.len(), State::Marker);
        Some(())
    }

    /// Moves on to the marker that ends the scan; `None` if it is not there yet.
    fn skip_scan(&mut self) -> Option<()> {
        let rest = self.buffer.get(self.at..)?;
        let ends = |pair: &[u8]| pair[0] == 0xff && !matches!(pair[1], 0 | 0xd0..=0xd7 | 0xff);
        let end = rest.windows(2).position(ends);
        // The last byte may be half a marker.
        self.at += end.unwrap_or(rest.len().saturating_sub(1));
        end?;
        self.state = State::Marker;
        Some(())
    }

    /// Moves on by one marker and its segment; breaks with a JPEG that is whole, or damaged.
    fn take_marker(&mut self) -> Option<ControlFlow<Result<Vec<u8>, String>>> {
        let marker = Marker::parse(self.buffer.get(self.at..)?)?;
        match marker {
            Marker::Fill => self.at += 1,
            Marker::Alone => self.at += 2,
            Marker::Segment { marker, length } if length >= 2 => {
                self.at += 2 + length;
                self.state = if marker == SOS { State::Scan } else { State::Marker };
            }
            Marker::End => {
                let rest = self.buffer.split_off(self.at + 2);
                self.state = State::Outside;
                return Some(ControlFlow::Break(Ok(mem::replace(&mut self.buffer, rest))));
            }
            Marker::Start => {
                return Some(ControlFlow::Break(self.give_up(self.at, "ends before it is whole")));
            }
            Marker::Segment { .. } => {
                let damage = "has a segment shorter than its own length field";
                return Some(ControlFlow::Break(self.give_up(self.at + 2, damage)));
            }
            Marker::Missing => {
                let damage = "has no marker where one is expected";
                return Some(ControlFlow::Break(self.give_up(self.at, damage)));
            }
        }
        Some(ControlFlow::Continue(()))
    }

    /// Drops the buffer up to `at` and looks for the next picture from there.
    fn give_up(&mut self, at: usize, why: &str) -> Result<Vec<u8>, String> {
        self.buffer.drain(..at.min(self.buffer.len()));
        self.state = State::Outside;
        Err(format!("a JPEG in the stream {why}"))
    }
}

/// What is at a place where a marker is expected (ITU-T T.81, B.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Marker {
    /// A fill byte before a marker.
    Fill,
    /// Start of an image.
    Start,
    /// End of an image.
    End,
    /// A marker without a segment.
    Alone,
    /// A marker with a segment of so many bytes, its length field included.
    Segment { marker: u8, length: usize },
    /// Something else.
    Missing,
}

impl Marker {
    /// The marker at the beginning of `bytes`; `None` if more bytes are needed to tell.
    fn parse(bytes: &[u8]) -> Option<Marker> {
        Some(match *bytes {
            [] | [_] => return None,
            [0xff, 0xff, ..] => Marker::Fill,
            [0xff, SOI, ..] => Marker::Start,
            [0xff, EOI, ..] => Marker::End,
            [0xff, 0x01 | 0xd0..=0xd7, ..] => Marker::Alone,
            [0xff, marker @ 2..=0xff, high, low, ..] => {
                let length = usize::from(high) << 8 | usize::from(low);
                Marker::Segment { marker, length }
            }
            [0xff, 2..=0xff, ..] => return None,
            _ => Marker::Missing,
        })
    }
}

/// The segments of a JPEG before its first scan, each with its marker.
struct Segments<'a>(&'a [u8]);

impl<'a> Iterator for Segments<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        loop {
            match Marker::parse(self.0)? {
                Marker::Fill => self.0 = &self.0[1..],
                Marker::Alone | Marker::Start => self.0 = &self.0[2..],
                Marker::Segment { marker, length } if marker != SOS => {
                    let segment = self.0.get(4..2 + length)?;
                    self.0 = &self.0[2 + length..];
                    return Some((marker, segment));
                }
                Marker::Segment { .. } | Marker::End | Marker::Missing => return None,
            }
        }
    }
}

/// The label in one of the comments before the first scan of a whole JPEG.
fn label(jpeg: &[u8]) -> Option<&str> {
    let comments = Segments(jpeg).filter(|&(marker, _)| marker == COM);
    let label = comments.filter_map(|(_, comment)| comment.strip_prefix(LABEL)).next()?;
    std::str::from_utf8(label).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A JPEG's outline with a thumbnail's markers inside a segment, stuffing and a restart.
    const JPEG: &[u8] = &[
        0xff, 0xd8, // SOI
        0xff, 0xe1, 0x00, 0x08, 0xff, 0xd8, 0xff, 0xd9, 0x00, 0x00, // APP1 with a thumbnail
        0xff, 0xff, 0xda, 0x00, 0x02, // fill byte, SOS
        0x12, 0xff, 0x00, 0xff, 0xd3, 0x34, // scan: stuffed 0xff, restart
        0xff, 0xd9, // EOI
    ];

    fn split(bytes: &[u8], step: usize) -> Vec<Result<Vec<u8>, String>> {
        let mut splitter = Splitter::default();
        let mut got = Vec::new();
        for chunk in bytes.chunks(step) {
            splitter.push(chunk);
            got.extend(std::iter::from_fn(|| splitter.next_jpeg()));
        }
        got
    }

    #[test]
    fn pictures_are_cut_out_of_any_fragmentation_and_padding() {
        let stream = [b"--boundary\r\n", JPEG, b"\xff", JPEG, JPEG].concat();
        for step in [1, 2, 3, 7, 1000] {
            let got = split(&stream, step);
            assert_eq!(got, vec![Ok(JPEG.to_vec()); 3], "step {step}");
        }
    }

    #[test]
    fn a_label_is_read_from_a_comment_before_the_scan() {
        let comment = |text: &[u8]| [&[0xff, COM, 0, text.len() as u8 + 2], text].concat();
        let (other, known) = (comment(b"made by hand"), comment(b"label=stop"));
        let jpeg = [&JPEG[..2], &other, &[0xff], &known, &JPEG[2..]].concat();
        assert_eq!(label(&jpeg), Some("stop"));
        assert_eq!(label(&[&JPEG[..2], &other, &JPEG[2..], &known].concat()), None);
        assert_eq!(label(&[&JPEG[..2], &known[..6]].concat()), None, "cut short");
    }

    #[test]
    fn a_damaged_picture_costs_itself_alone() {
        let cut = &JPEG[..JPEG.len() - 2];
        let got = split(&[cut, JPEG, &[0xff, 0xd8, 0x00, 0x00], JPEG].concat(), 5);
        let kinds: Vec<_> = got.iter().map(|jpeg| jpeg.is_ok()).collect();
        assert_eq!(kinds, [false, true, false, true]);
        assert_eq!(got[3].as_deref(), Ok(JPEG));
    }

    #[test]
    fn a_stream_that_ends_within_a_picture_says_so() {
        let mut frames = Mjpeg::new(&JPEG[..9]);
        let frame = frames.next().expect("a bad frame");
        assert!(frame.picture.is_err_and(|error| error.to_string().contains("ends within")));
        assert!(frames.next().is_none());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic_and_are_not_hoarded(
            bytes in prop::collection::vec(prop_oneof![Just(0xffu8), Just(0xd8), any::<u8>()], 0..2000),
            step in 1usize..100,
        ) {
            split(&bytes, step);
        }
    }
}
