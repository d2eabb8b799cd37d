//! Pictures of a run's answers: boxes, labels and maps over the frames, and maps by themselves.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use embedded_graphics::mono_font::ascii::{FONT_7X13_BOLD, FONT_10X20};
use embedded_graphics::mono_font::{MonoFont, MonoTextStyleBuilder};
use embedded_graphics::pixelcolor::Rgb888;
use embedded_graphics::prelude::*;
use embedded_graphics::primitives::{PrimitiveStyle, Rectangle};
use embedded_graphics::text::{Baseline, Text};
use image::{GrayImage, ImageBuffer, ImageFormat, Luma, RgbImage};
use isthmus_models::{Answer, ClassMap, Detection, Picture, TrueBox, ValueMap, View};

use crate::report::FrameReport;
use crate::text;

/// A class map's value where the network saw nothing of the picture.
const UNSEEN: u8 = 255;
/// Steps of a 16-bit map for one unit, as in KITTI's depth maps: a value is 256 times what it stands for.
const STEPS: f32 = 256.0;
/// Wider pictures get larger letters and thicker lines (pixels).
const LARGE: u32 = 800;

/// Colours of classes, far apart in hue and all readable under white letters.
const COLOURS: [Rgb888; 8] = [
    Rgb888::new(0x1f, 0x77, 0xb4),
    Rgb888::new(0xd6, 0x27, 0x28),
    Rgb888::new(0x2c, 0x8c, 0x2c),
    Rgb888::new(0x94, 0x67, 0xbd),
    Rgb888::new(0xc4, 0x5a, 0x0a),
    Rgb888::new(0x11, 0x8a, 0x93),
    Rgb888::new(0xb8, 0x3a, 0x94),
    Rgb888::new(0x6b, 0x5b, 0x2a),
];

/// Why a picture of an answer cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("{}: {source}", path.display())]
pub struct DrawError {
    /// The file or folder.
    path: PathBuf,
    /// What the system or the encoder says.
    source: io::Error,
}

/// Writes a picture of each answered frame to a folder, which is made if it is not there: `000012.jpg`
/// for frame 12, with boxes, labels, confidences, true boxes in thin white lines where they are known, a
/// map's colours, and in the last line what was sent, how
/// long it took and why. `labels` are those of the bundle's first decoder.
pub fn annotate(report: &FrameReport, labels: &[String], folder: &Path) -> Result<(), DrawError> {
    let Some(picture) = report.picture.as_deref().filter(|_| report.arm.is_some()) else {
        return Ok(());
    };
    let image = drawn(report, labels, picture);
    save(folder, &format!("{:06}.jpg", report.frame), |path| {
        image.save_with_format(path, ImageFormat::Jpeg)
    })
}

/// A picture of an answered frame that has its picture still, as a JPEG file: what [`annotate`] writes.
pub fn annotated(report: &FrameReport, labels: &[String]) -> Option<Vec<u8>> {
    let picture = report.picture.as_deref()?;
    let mut file = io::Cursor::new(Vec::new());
    drawn(report, labels, picture).write_to(&mut file, ImageFormat::Jpeg).ok()?;
    Some(file.into_inner())
}

/// Writes the maps of a frame's answers to a folder, which is made if it is not there, as PNGs of the
/// picture's size: `000012-NAME.png` for frame 12 and a decoder's name.
///
/// A map of classes has a byte a pixel, 255 where the network saw nothing of the picture. A map of values
/// has 16 bits, 256 times the value, 0 where nothing was seen and 65,535 for all that is greater.
pub fn write_maps<'a>(
    report: &FrameReport,
    names: impl Iterator<Item = &'a str>,
    folder: &Path,
) -> Result<(), DrawError> {
    let Some(view) = &report.view else { return Ok(()) };
    for (name, answer) in names.zip(&report.answers) {
        let file = format!("{:06}-{name}.png", report.frame);
        match answer {
            Answer::Classes(map) => {
                let image = class_image(map, view);
                save(folder, &file, |path| image.save_with_format(path, ImageFormat::Png))?;
            }
            Answer::Values(map) => {
                let image = value_image(map, view);
                save(folder, &file, |path| image.save_with_format(path, ImageFormat::Png))?;
            }
            _ => {}
        }
    }
    Ok(())
}

fn save(
    folder: &Path,
    file: &str,
    write: impl FnOnce(&Path) -> image::ImageResult<()>,
) -> Result<(), DrawError> {
    let failed = |path: &Path, source| DrawError { path: path.to_owned(), source };
    fs::create_dir_all(folder).map_err(|source| failed(folder, source))?;
    let path = folder.join(file);
    write(&path).map_err(|error| failed(&path, io::Error::other(error)))
}

fn class_image(map: &ClassMap, view: &View) -> GrayImage {
    let (width, height) = view.picture();
    GrayImage::from_fn(width, height, |x, y| {
        let class = place(view, (map.width, map.height), [x, y]).and_then(|at| map.classes.get(at));
        Luma([class.copied().unwrap_or(UNSEEN)])
    })
}

fn value_image(map: &ValueMap, view: &View) -> ImageBuffer<Luma<u16>, Vec<u16>> {
    let (width, height) = view.picture();
    ImageBuffer::from_fn(width, height, |x, y| {
        let value = place(view, (map.width, map.height), [x, y]).and_then(|at| map.values.get(at));
        Luma([value.map_or(0, |value| (value * STEPS).round() as u16)])
    })
}

/// The place of a map that the middle of a picture's pixel lies in; `None` where the network saw nothing.
fn place(view: &View, (width, height): (usize, usize), [x, y]: [u32; 2]) -> Option<usize> {
    let [x, y] = view.to_input([x as f32 + 0.5, y as f32 + 0.5])?;
    let (input_width, input_height) = view.input();
    let column = ((x / input_width as f32 * width as f32) as usize).min(width.checked_sub(1)?);
    let row = ((y / input_height as f32 * height as f32) as usize).min(height.checked_sub(1)?);
    Some(row * width + column)
}

fn colour(class: usize) -> Rgb888 {
    COLOURS[class % COLOURS.len()]
}

/// The frame with its answers drawn in.
fn drawn(report: &FrameReport, labels: &[String], picture: &Picture) -> RgbImage {
    let (width, height) = (picture.width(), picture.height());
    // A picture has as many bytes as its size says.
    let image = RgbImage::from_raw(width, height, picture.rgb().into_owned());
    let mut canvas = Canvas(image.unwrap_or_else(|| RgbImage::new(width, height)));
    if let Some(truth) = &report.true_boxes {
        canvas.truth(&truth.boxes);
    }
    for answer in &report.answers {
        match (answer, &report.view) {
            (Answer::Classes(map), Some(view)) => canvas.tint(map, view),
            (Answer::Boxes(boxes), _) => canvas.boxes(boxes, labels),
            _ => {}
        }
    }
    let said = match (&report.label, report.confidence) {
        (Some(label), Some(confidence)) => format!("{label} {:.0}%  ", 100.0 * confidence),
        _ => String::new(),
    };
    let point = text::point(report).unwrap_or_default();
    let bytes = report.bytes.map(|bytes| format!(" {bytes} B")).unwrap_or_default();
    let took = report.capture_to_output_ms.map(|ms| format!(" {ms:.0} ms")).unwrap_or_default();
    let arm = report.arm_name().unwrap_or_default();
    let line = format!("{said}{arm} {point}{bytes}{took}  {}", report.reason);
    canvas.line(&line, 0, height as i32, Rgb888::new(0x22, 0x22, 0x22));
    canvas.0
}

/// A picture that shapes and letters are drawn into.
struct Canvas(RgbImage);

impl Canvas {
    fn is_large(&self) -> bool {
        self.0.width() >= LARGE
    }

    fn boxes(&mut self, boxes: &[Detection], labels: &[String]) {
        let thickness = if self.is_large() { 3 } else { 2 };
        // The surest one is drawn last, over the others.
        for found in boxes.iter().rev() {
            let class = usize::from(found.class);
            let [x0, y0, x1, y1] = [found.x0, found.y0, found.x1, found.y1].map(|it| it as i32);
            let area = Rectangle::with_corners(Point::new(x0, y0), Point::new(x1, y1));
            let style = PrimitiveStyle::with_stroke(colour(class), thickness);
            // Nothing can fail in memory.
            let Ok(()) = area.into_styled(style).draw(self);
            let label = labels.get(class).map_or("?", String::as_str);
            let words = format!("{label} {:.0}%", 100.0 * found.confidence);
            self.line(&words, x0, y0, colour(class));
        }
    }

    /// What should be found, under what was.
    fn truth(&mut self, boxes: &[TrueBox]) {
        for TrueBox { x0, y0, x1, y1, .. } in boxes {
            let corner = |x: &f32, y: &f32| Point::new(*x as i32, *y as i32);
            let area = Rectangle::with_corners(corner(x0, y0), corner(x1, y1));
            let Ok(()) = area.into_styled(PrimitiveStyle::with_stroke(Rgb888::WHITE, 1)).draw(self);
        }
    }

    /// Lays the classes' colours over the picture.
    fn tint(&mut self, map: &ClassMap, view: &View) {
        let classes = class_image(map, view);
        for (pixel, class) in self.0.pixels_mut().zip(classes.pixels()) {
            if class.0[0] != UNSEEN {
                let colour = colour(class.0[0].into());
                let over = [colour.r(), colour.g(), colour.b()];
                for (level, over) in pixel.0.iter_mut().zip(over) {
                    *level = ((u16::from(*level) + u16::from(over)) / 2) as u8;
                }
            }
        }
    }

    /// White letters on a ground, whose lower left corner lies at a point, but within the picture.
    fn line(&mut self, words: &str, left: i32, bottom: i32, ground: Rgb888) {
        let font: &MonoFont<'_> = if self.is_large() { &FONT_10X20 } else { &FONT_7X13_BOLD };
        let height = font.character_size.height as i32;
        let top = (bottom - height).max(0);
        let style = MonoTextStyleBuilder::new()
            .font(font)
            .text_color(Rgb888::WHITE)
            .background_color(ground)
            .build();
        let text = Text::with_baseline(words, Point::new(left, top), style, Baseline::Top);
        let Ok(_) = text.draw(self);
    }
}

impl OriginDimensions for Canvas {
    fn size(&self) -> Size {
        Size::new(self.0.width(), self.0.height())
    }
}

impl DrawTarget for Canvas {
    type Color = Rgb888;
    type Error = std::convert::Infallible;

    fn draw_iter<I: IntoIterator<Item = Pixel<Rgb888>>>(
        &mut self,
        pixels: I,
    ) -> Result<(), Self::Error> {
        for Pixel(at, colour) in pixels {
            let place = u32::try_from(at.x).ok().zip(u32::try_from(at.y).ok());
            if let Some(pixel) = place.and_then(|(x, y)| self.0.get_pixel_mut_checked(x, y)) {
                pixel.0 = [colour.r(), colour.g(), colour.b()];
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use isthmus_models::{Fit, InputSpec};
    use isthmus_proto::Arm;

    use super::*;

    fn view() -> View {
        // Eight by four pixels in the middle of eight by eight: bars of two rows.
        View::new(&InputSpec { fit: Fit::Letterbox, ..InputSpec::new(8, 8) }, None, (16, 8))
    }

    #[test]
    fn a_map_lies_over_the_picture_and_not_over_the_bars() {
        let map = ClassMap { width: 1, height: 8, classes: (0..8).collect(), confidence: 1.0 };
        let image = class_image(&map, &view());
        let column: Vec<u8> = (0..8).map(|y| image.get_pixel(0, y).0[0]).collect();
        assert_eq!(column, [2, 2, 3, 3, 4, 4, 5, 5]);
        let values = ValueMap { width: 1, height: 1, values: vec![1.5] };
        assert_eq!(value_image(&values, &view()).get_pixel(9, 7).0[0], 384);
    }

    #[test]
    fn boxes_are_drawn_in_their_class_s_colour() {
        let found = Detection { class: 1, confidence: 0.9, x0: 20.0, y0: 30.0, x1: 60.0, y1: 60.0 };
        let picture = Picture::new(100, 100, vec![0; 30_000]).expect("black");
        let report = FrameReport {
            arm: Some(Arm::Exit),
            answers: vec![Answer::Boxes(vec![found])],
            ..FrameReport::default()
        };
        let image = drawn(&report, &["car".into(), "bus".into()], &picture);
        let red = [COLOURS[1].r(), COLOURS[1].g(), COLOURS[1].b()];
        assert_eq!((image.get_pixel(60, 50).0, image.get_pixel(40, 45).0), (red, [0; 3]));
        let folder = tempfile::TempDir::new().expect("a folder");
        let missing = folder.path().join("new");
        annotate(&report, &[], &missing).expect("no picture, nothing to do");
        let picture = Some(std::sync::Arc::new(picture));
        annotate(&FrameReport { picture, frame: 7, ..report }, &[], &missing).expect("written");
        assert!(missing.join("000007.jpg").is_file());
    }
}
