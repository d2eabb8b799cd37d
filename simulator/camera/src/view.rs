//! The pinhole camera and its ride along the street.

use super::dice::Dice;
use std::f32::consts::TAU;

/// A place in the street in metres: right of the camera's track, above the ground, along the
/// street.
pub(super) type Place = [f32; 3];

/// A pinhole camera that looks along the street.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    /// How far along the street the camera is, in metres.
    pub(super) along: f32,
    height: f32,
    focal: f32,
    /// Where the vanishing point of the street is, in pixels.
    vanishing: [f32; 2],
    middle: [f32; 2],
    roll: (f32, f32),
}

impl View {
    /// The distance of a place along the optical axis, in metres.
    pub(super) fn depth(&self, place: Place) -> f32 {
        place[2] - self.along
    }

    /// The pixel where a place in front of the camera is seen.
    pub(super) fn project(&self, place: Place) -> [f32; 2] {
        let scale = self.focal / self.depth(place);
        let x = self.vanishing[0] + scale * place[0] - self.middle[0];
        let y = self.vanishing[1] + scale * (self.height - place[1]) - self.middle[1];
        let (sine, cosine) = self.roll;
        [self.middle[0] + cosine * x - sine * y, self.middle[1] + sine * x + cosine * y]
    }

    /// The depth in metres at which one metre takes the given number of pixels.
    pub(super) fn depth_of(&self, pixels_per_metre: f32) -> f32 {
        self.focal / pixels_per_metre
    }
}

/// A slow or quick swaying.
#[derive(Clone, Copy, Debug)]
struct Wave {
    amplitude: f32,
    frequency: f32,
    phase: f32,
}

impl Wave {
    fn roll(dice: &mut Dice, amplitude: (f32, f32), frequency: (f32, f32)) -> Self {
        Self {
            amplitude: dice.between(amplitude.0, amplitude.1),
            frequency: dice.between(frequency.0, frequency.1),
            phase: dice.between(0.0, TAU),
        }
    }

    fn at(&self, seconds: f32) -> f32 {
        self.amplitude * (TAU * self.frequency * seconds + self.phase).sin()
    }
}

/// How the camera moves through one street. Angles and offsets are in pixels of a picture whose
/// shorter side is 240 pixels.
#[derive(Clone, Debug)]
pub(super) struct Ride {
    /// Metres per second.
    pub(super) speed: f32,
    height: f32,
    heading: [f32; 2],
    tilt: f32,
    pan: [Wave; 2],
    bump: [Wave; 2],
    sway: Wave,
}

impl Ride {
    pub(super) fn roll(dice: &mut Dice) -> Self {
        Self {
            speed: dice.between(2.0, 7.0),
            height: dice.between(1.1, 1.6),
            heading: [dice.between(-70.0, 0.0), dice.between(0.0, 45.0)],
            tilt: if dice.chance(0.15) {
                dice.between(-0.14, 0.14)
            } else {
                dice.between(-0.04, 0.04)
            },
            pan: [
                Wave::roll(dice, (5.0, 22.0), (0.05, 0.2)),
                Wave::roll(dice, (0.2, 1.6), (1.0, 3.0)),
            ],
            bump: [
                Wave::roll(dice, (1.0, 6.0), (0.1, 0.5)),
                Wave::roll(dice, (0.2, 1.8), (1.5, 4.0)),
            ],
            sway: Wave::roll(dice, (0.0, 0.02), (0.1, 0.6)),
        }
    }

    /// The view after the given time in this street, for a picture of `size` pixels.
    pub(super) fn view(&self, seconds: f32, size: [u32; 2]) -> View {
        let middle = size.map(|side| side as f32 / 2.0);
        let unit = middle[0].min(middle[1]) / 120.0;
        let pan = self.heading[0] + self.pan.iter().map(|wave| wave.at(seconds)).sum::<f32>();
        let bump = self.heading[1] + self.bump.iter().map(|wave| wave.at(seconds)).sum::<f32>();
        View {
            along: self.speed * seconds,
            height: self.height,
            focal: 380.0 * unit,
            vanishing: [middle[0] + pan * unit, middle[1] + bump * unit],
            middle,
            roll: (self.tilt + self.sway.at(seconds)).sin_cos(),
        }
    }
}
