//! YUV4MPEG2: uncompressed video, as `ffmpeg -f yuv4mpegpipe` writes it.

use std::io::{self, BufRead, BufReader, Read};

use isthmus_models::Picture;

use super::{FrameTruth, NoPicture, SourceFrame};

/// Begins the word of a frame's header that names the frame's true class.
const LABEL: &str = "XLABEL=";

/// The first bytes of every stream.
pub(super) const MAGIC: &[u8] = b"YUV4MPEG2";

/// Longest header line (bytes).
const MAX_LINE: u64 = 1024;
const MAX_SIDE: u32 = 16_384;
const MAX_PIXELS: u64 = 1 << 26;

/// The pictures of a YUV4MPEG2 stream of 8 bits: 4:2:0, 4:2:2, 4:4:4 or grey, BT.601.
#[derive(Debug)]
pub struct Y4m<R> {
    stream: BufReader<R>,
    format: Format,
    frame: u64,
    ended: bool,
}

/// Why bytes are not a stream that can be read.
#[derive(Debug, thiserror::Error)]
pub enum Y4mError {
    /// The stream cannot be read.
    #[error(transparent)]
    Read(#[from] io::Error),
    /// The first line is not one of YUV4MPEG2.
    #[error("the header line is malformed or longer than {MAX_LINE} bytes")]
    Header,
    /// Width or height is missing or out of range.
    #[error("width and height must be 1 to {MAX_SIDE}, with at most {MAX_PIXELS} pixels")]
    Size,
    /// A colour space that is not read here.
    #[error("unknown colour space {0:?}; expected 420, 422, 444 or mono with 8 bits")]
    ColourSpace(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Format {
    width: u32,
    height: u32,
    /// Pixels of luma per pixel of chroma, across and down; `None` for grey.
    chroma: Option<(u32, u32)>,
    full_range: bool,
}

impl<R: Read> Y4m<R> {
    /// Reads the header of `stream`.
    pub fn new(stream: R) -> Result<Self, Y4mError> {
        let mut stream = BufReader::new(stream);
        let header = read_line(&mut stream)?.ok_or(Y4mError::Header)?;
        let format = Format::parse(&header)?;
        Ok(Y4m { stream, format, frame: 0, ended: false })
    }

    /// The next picture and its label.
    fn next_picture(&mut self) -> Result<Option<(Picture, Option<String>)>, String> {
        let malformed = |error: Y4mError| format!("frame header: {error}");
        let Some(header) = read_line(&mut self.stream).map_err(malformed)? else { return Ok(None) };
        let mut words = header.split_ascii_whitespace();
        if words.next() != Some("FRAME") {
            return Err("no FRAME where one is expected; the stream is lost".into());
        }
        let label = words.find_map(|word| word.strip_prefix(LABEL)).map(str::to_owned);
        let length = self.format.bytes();
        let mut planes = Vec::new();
        let read = (&mut self.stream).take(length as u64).read_to_end(&mut planes);
        read.map_err(|error| error.to_string())?;
        if planes.len() < length {
            return Err("the stream ends within this picture".into());
        }
        let Format { width, height, .. } = self.format;
        let picture = Picture::new(width, height, self.format.to_rgb(&planes));
        picture.map(|picture| Some((picture, label))).map_err(|error| error.to_string())
    }
}

impl<R: Read> Iterator for Y4m<R> {
    type Item = SourceFrame;

    fn next(&mut self) -> Option<SourceFrame> {
        if self.ended {
            return None;
        }
        let next = self.next_picture().transpose();
        // Frames have no mark to find the next one by, so the first bad one is the last.
        self.ended = !matches!(next, Some(Ok(_)));
        let source = format!("y4m:{}", self.frame);
        self.frame += 1;
        let (picture, truth) = match next? {
            Ok((picture, label)) => (Ok(picture), label.map(FrameTruth::Class)),
            Err(error) => (Err(NoPicture::Bad(error)), None),
        };
        Some(SourceFrame { source, truth, picture })
    }
}

impl Format {
    fn parse(header: &str) -> Result<Self, Y4mError> {
        let mut words = header.split_ascii_whitespace();
        if words.next().map(str::as_bytes) != Some(MAGIC) {
            return Err(Y4mError::Header);
        }
        let (mut width, mut height) = (None, None);
        let (mut chroma, mut full_range) = (Some((2, 2)), false);
        for word in words {
            let Some((tag, value)) = word.split_at_checked(1) else { continue };
            match tag {
                "W" => width = value.parse().ok(),
                "H" => height = value.parse().ok(),
                "C" => {
                    chroma = match value {
                        "420" | "420jpeg" | "420mpeg2" | "420paldv" => Some((2, 2)),
                        "422" => Some((2, 1)),
                        "444" => Some((1, 1)),
                        "mono" => None,
                        _ => return Err(Y4mError::ColourSpace(value.into())),
                    }
                }
                "X" if value == "COLORRANGE=FULL" => full_range = true,
                // Frame rate, interlacing, aspect and comments change nothing here.
                _ => {}
            }
        }
        let side = |side: Option<u32>| side.filter(|side| (1..=MAX_SIDE).contains(side));
        match (side(width), side(height)) {
            (Some(width), Some(height)) if u64::from(width) * u64::from(height) <= MAX_PIXELS => {
                Ok(Format { width, height, chroma, full_range })
            }
            _ => Err(Y4mError::Size),
        }
    }

    fn luma_bytes(&self) -> usize {
        self.width as usize * self.height as usize
    }

    /// Width and bytes of one chroma plane.
    fn chroma_plane(&self) -> (usize, usize) {
        let Some((across, down)) = self.chroma else { return (0, 0) };
        let width = self.width.div_ceil(across) as usize;
        (width, width * self.height.div_ceil(down) as usize)
    }

    fn bytes(&self) -> usize {
        self.luma_bytes() + 2 * self.chroma_plane().1
    }

    fn to_rgb(self, planes: &[u8]) -> Vec<u8> {
        let (luma, chroma) = planes.split_at(self.luma_bytes());
        let (chroma_width, chroma_bytes) = self.chroma_plane();
        let (blue, red) = chroma.split_at(chroma_bytes);
        let mut rgb = Vec::with_capacity(3 * luma.len());
        for (y, row) in luma.chunks_exact(self.width as usize).enumerate() {
            for (x, &luma) in row.iter().enumerate() {
                let (cb, cr) = self.chroma.map_or((128, 128), |(across, down)| {
                    let at = y / down as usize * chroma_width + x / across as usize;
                    (blue[at], red[at])
                });
                rgb.extend(self.convert(luma, cb, cr));
            }
        }
        rgb
    }

    /// BT.601 in 16.16 fixed point.
    fn convert(self, luma: u8, cb: u8, cr: u8) -> [u8; 3] {
        let (luma, cb, cr) = (i32::from(luma), i32::from(cb) - 128, i32::from(cr) - 128);
        let (luma, scale) = match self.full_range {
            true => (luma * 65_536, [91_881, 22_554, 46_802, 116_130]),
            false => ((luma - 16) * 76_309, [104_597, 25_675, 53_279, 132_201]),
        };
        let channel = |value: i32| ((value + 32_768) >> 16).clamp(0, 255) as u8;
        [
            channel(luma + scale[0] * cr),
            channel(luma - scale[1] * cb - scale[2] * cr),
            channel(luma + scale[3] * cb),
        ]
    }
}

/// A line without its end; `None` at the end of the stream.
fn read_line(stream: &mut impl BufRead) -> Result<Option<String>, Y4mError> {
    let mut line = Vec::new();
    stream.take(MAX_LINE).read_until(b'\n', &mut line)?;
    match line.pop() {
        None => Ok(None),
        Some(b'\n') => String::from_utf8(line).map(Some).map_err(|_| Y4mError::Header),
        Some(_) => Err(Y4mError::Header),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(stream: &[u8]) -> Vec<SourceFrame> {
        Y4m::new(stream).expect("a header").collect()
    }

    #[test]
    fn every_chroma_layout_gives_the_same_flat_picture() {
        // 3 × 3, so that halves round up. Limited-range red: Y 81, Cb 90, Cr 240.
        for (space, chroma) in [("420jpeg", 4), ("422", 6), ("444", 9)] {
            let mut stream =
                format!("YUV4MPEG2 W3 H3 F25:1 Ip C{space}\nFRAME Ixyz\n").into_bytes();
            stream.extend([81; 9]);
            stream.extend(vec![90; chroma]);
            stream.extend(vec![240; chroma]);
            let frames = frames(&stream);
            let picture = frames[0].picture.as_ref().expect("a picture");
            assert_eq!((frames.len(), picture.width(), picture.height()), (1, 3, 3));
            assert!(picture.rgb().chunks(3).all(|rgb| rgb == [254, 0, 0]), "{picture:?}");
        }
    }

    #[test]
    fn grey_and_full_range_are_taken_as_they_are() {
        let frames = frames(b"YUV4MPEG2 W2 H1 Cmono XCOLORRANGE=FULL\nFRAME\n\x07\xf9");
        let picture = frames[0].picture.as_ref().expect("a picture");
        assert_eq!(*picture.rgb(), [7, 7, 7, 249, 249, 249]);
    }

    #[test]
    fn a_truncated_frame_is_reported_once() {
        let frames = frames(b"YUV4MPEG2 W2 H1 Cmono\nFRAME\n\x07\xf9FRAME\n\x07");
        assert!(frames[0].picture.is_ok());
        assert!(
            frames[1]
                .picture
                .as_ref()
                .is_err_and(|error| error.to_string().contains("ends within"))
        );
        assert_eq!(frames.len(), 2);
    }

    #[test]
    fn impossible_headers_are_refused() {
        let long = format!("YUV4MPEG2 W2 H2 X{}\n", "y".repeat(2000));
        for bad in [
            "",
            "YUV4MPEG2 W2 H2",
            "YUV4MPEG3 W2 H2\n",
            "YUV4MPEG2 W2\n",
            "YUV4MPEG2 W0 H2\n",
            "YUV4MPEG2 W16384 H16384\n",
            "YUV4MPEG2 W99999999999 H1\n",
            "YUV4MPEG2 W2 H2 C420p10\n",
            &long,
        ] {
            assert!(Y4m::new(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
