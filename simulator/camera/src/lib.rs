//! The built-in camera: an endless street with traffic signs, drawn from a seed and labelled from
//! its true geometry.
//!
//! A camera rides along streets that differ in scenery, light and weather. One sign after the other
//! comes nearer, and exactly one is in view in every frame, inside the centred square of the
//! picture. Equal configurations give equal frames.
//!
//! `artwork` and `drawing` draw the signs, `street`, `props` and `facet` the scenery, `encounter`,
//! `wear` and `cover` the approach to one sign, `light` what the weather does to colours, `view` and
//! `canvas` the way from the street to pixels, and `optics` lens and sensor. None of these touches
//! files; that is left to [`dataset`], and [`Stream`] makes one stream of many frames.
//!
//! Read [`Camera`] first.

#![forbid(unsafe_code)]

mod artwork;
mod canvas;
mod cover;
pub mod dataset;
mod dice;
mod drawing;
mod encounter;
mod facet;
mod light;
mod optics;
mod props;
mod sign;
mod stream;
mod street;
#[cfg(test)]
mod tests;
mod view;
mod wear;

pub use sign::Sign;
pub use stream::{Stream, StreamFormat};

use canvas::Canvas;
use dice::Dice;
use encounter::Encounter;
use optics::{Exposure, Sensor};
use serde::Serialize;
use street::Street;
use tiny_skia::{Color, Pixmap};
use view::{Ride, View};

/// Sizes, rates and the seed of a [`Camera`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct CameraConfig {
    /// Width of a frame in pixels, 32..=4096.
    pub width: u32,
    /// Height of a frame in pixels, 32..=4096.
    pub height: u32,
    /// Frames per second of street time, 1..=240. Frames are rendered as fast as they are asked for.
    pub frames_per_second: f32,
    /// Seed of everything that happens in the street.
    pub seed: u64,
}

impl Default for CameraConfig {
    fn default() -> Self {
        Self { width: 320, height: 240, frames_per_second: 10.0, seed: 1 }
    }
}

impl CameraConfig {
    /// The side of the centred square in pixels.
    fn side(&self) -> f32 {
        self.width.min(self.height) as f32
    }

    /// The square in the middle of the frame, as large as the frame allows.
    fn square(&self) -> BoundingBox {
        let side = self.side();
        BoundingBox {
            x: (self.width as f32 - side) / 2.0,
            y: (self.height as f32 - side) / 2.0,
            width: side,
            height: side,
        }
    }

    fn seconds(&self, frame: u64) -> f32 {
        frame as f32 / self.frames_per_second
    }

    fn view(&self, ride: &Ride, frame: u64) -> View {
        ride.view(self.seconds(frame), [self.width, self.height])
    }
}

/// A value of a [`CameraConfig`] that no camera can have.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A side of the frame is out of range.
    #[error("a frame of {width} x {height} pixels is not within 32..=4096 on each side")]
    Size {
        /// The width asked for, in pixels.
        width: u32,
        /// The height asked for, in pixels.
        height: u32,
    },
    /// The frame rate is out of range.
    #[error("{0} frames per second are not within 1..=240")]
    Rate(f32),
}

/// A rectangle in pixels, from the left upper corner of the frame.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct BoundingBox {
    /// Left edge in pixels.
    pub x: f32,
    /// Upper edge in pixels.
    pub y: f32,
    /// Width in pixels, above 0.
    pub width: f32,
    /// Height in pixels, above 0.
    pub height: f32,
}

impl BoundingBox {
    /// Whether the other rectangle lies inside this one.
    pub fn contains(&self, other: &Self) -> bool {
        other.x >= self.x
            && other.y >= self.y
            && other.x + other.width <= self.x + self.width
            && other.y + other.height <= self.y + self.height
    }
}

/// One frame with its label.
#[derive(Clone, Debug, PartialEq)]
pub struct LabelledFrame {
    /// Place in the video, from 0.
    pub index: u64,
    /// Width in pixels.
    pub width: u32,
    /// Height in pixels.
    pub height: u32,
    /// Pixels in rows from the top, three bytes each: red, green, blue.
    pub rgb: Vec<u8>,
    /// The sign in view.
    pub sign: Sign,
    /// The smallest box around the whole sign, with its hidden parts, before lens blur.
    pub bounds: BoundingBox,
    /// The part of the sign that nothing hides, 0..=1.
    pub visibility: f32,
}

/// The camera: an endless video. Frames that are skipped, as by [`Iterator::nth`] and
/// [`Iterator::step_by`], are not rendered.
#[derive(Clone, Debug)]
pub struct Camera {
    config: CameraConfig,
    dice: Dice,
    sensor: Sensor,
    deck: Vec<Sign>,
    street: Street,
    /// Signs yet to come in this street.
    to_come: usize,
    encounter: Encounter,
    /// Frames since the camera entered the street, and since the sign came into view.
    step: u64,
    seen: u64,
    index: u64,
}

impl Camera {
    /// A camera at its first frame.
    ///
    /// # Errors
    ///
    /// Where a size or the frame rate is out of its range.
    pub fn new(config: CameraConfig) -> Result<Self, ConfigError> {
        let CameraConfig { width, height, frames_per_second, seed } = config;
        if !(32..=4096).contains(&width) || !(32..=4096).contains(&height) {
            return Err(ConfigError::Size { width, height });
        }
        if !(1.0..=240.0).contains(&frames_per_second) {
            return Err(ConfigError::Rate(frames_per_second));
        }
        let mut dice = Dice::new(seed, 0);
        let sensor = Sensor::new(&mut dice.split());
        let street = Street::roll(&mut dice.split());
        let mut deck = Vec::new();
        let sign = deal(&mut deck, &mut dice);
        let encounter = Encounter::roll(&mut dice.split(), sign, &street, &config, 0);
        Ok(Self {
            config,
            dice,
            sensor,
            deck,
            to_come: street.signs - 1,
            street,
            encounter,
            step: 0,
            seen: 0,
            index: 0,
        })
    }

    /// Goes to the next frame without rendering it.
    fn advance(&mut self) {
        self.index += 1;
        self.step += 1;
        self.seen += 1;
        if self.seen < self.encounter.frames {
            return;
        }
        if self.to_come == 0 {
            self.street = Street::roll(&mut self.dice.split());
            self.to_come = self.street.signs;
            self.step = 0;
        }
        let sign = deal(&mut self.deck, &mut self.dice);
        let dice = &mut self.dice.split();
        self.encounter = Encounter::roll(dice, sign, &self.street, &self.config, self.step);
        self.to_come -= 1;
        self.seen = 0;
    }

    /// The scene as it is before the lens, in RGBA; `plate` is false for the scene without its sign.
    fn paint(&self, plate: bool) -> Option<Pixmap> {
        let mut pixels = Pixmap::new(self.config.width, self.config.height)?;
        pixels.fill(Color::BLACK);
        let view = self.config.view(&self.street.ride, self.step);
        let mut canvas = Canvas { pixels, view, light: &self.street.light };
        let seconds = self.config.seconds(self.step);
        self.street.paint(&mut canvas, seconds, self.encounter.distance(), |canvas| {
            self.encounter.paint(canvas, plate);
        });
        canvas.rain(&mut Dice::new(self.config.seed, 2 * self.index + 1));
        Some(canvas.pixels)
    }

    fn render(&self) -> LabelledFrame {
        let CameraConfig { width, height, seed, .. } = self.config;
        let view = self.config.view(&self.street.ride, self.step);
        let painted = self.paint(true).map(Pixmap::take).unwrap_or_default();
        let mut dice = Dice::new(seed, 2 * self.index + 2);
        let exposure = self.exposure(&view);
        LabelledFrame {
            index: self.index,
            width,
            height,
            rgb: self.sensor.expose(&painted, width as usize, &exposure, &mut dice),
            sign: self.encounter.sign,
            bounds: self.encounter.bounds(&view),
            visibility: self.encounter.visibility(&view),
        }
    }

    /// Blur follows the sign, as if the whole picture moved with it.
    fn exposure(&self, view: &View) -> Exposure {
        let light = &self.street.light;
        let size = [self.config.width, self.config.height];
        let unit = self.config.side() / 240.0;
        let end = self.street.ride.view(self.config.seconds(self.step) + light.shutter, size);
        let (from, to) = (self.encounter.middle(view), self.encounter.middle(&end));
        Exposure {
            motion: [to[0] - from[0], to[1] - from[1]],
            defocus: self.encounter.defocus * unit,
            glare: light.glare.map(|[across, up]| {
                let sun = [(0.5 + across) * size[0] as f32, (0.5 + up) * size[1] as f32];
                (sun, 30.0 * unit)
            }),
            tint: light.tint,
            noise: light.noise,
        }
    }
}

impl Iterator for Camera {
    type Item = LabelledFrame;

    fn next(&mut self) -> Option<LabelledFrame> {
        let frame = self.render();
        self.advance();
        Some(frame)
    }

    fn nth(&mut self, skipped: usize) -> Option<LabelledFrame> {
        (0..skipped).for_each(|_| self.advance());
        self.next()
    }
}

/// The next sign. Signs are dealt like cards, so that all come equally often.
fn deal(deck: &mut Vec<Sign>, dice: &mut Dice) -> Sign {
    loop {
        if let Some(sign) = deck.pop() {
            return sign;
        }
        deck.extend(Sign::ALL);
        dice.shuffle(deck);
    }
}
