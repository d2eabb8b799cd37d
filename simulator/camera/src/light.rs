//! Time of day and weather: what light does to colours before they reach the lens.

use super::dice::Dice;
use super::drawing::Colour;

/// Which way a surface looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Facing {
    /// Towards the camera.
    Front,
    /// To the left of the street.
    Left,
    /// To the right of the street.
    Right,
    /// To the sky.
    Up,
    /// Towards the camera and made to send the light of its headlamp back.
    Reflector,
    /// A source of light itself.
    Lamp,
}

/// The light over one street.
#[derive(Clone, Debug)]
pub(super) struct Light {
    ambient: Colour,
    /// Brightness of surfaces that face the camera, the left, the right and the sky.
    sides: [f32; 4],
    headlamp: f32,
    haze: Colour,
    /// Part of the light lost in haze per metre.
    haze_density: f32,
    /// Colours of the sky at its top and at the horizon.
    pub(super) sky: [Colour; 2],
    /// Whether lamps and windows are lit.
    pub(super) dark: bool,
    /// Whether there is direct sun and thus shadows.
    pub(super) sunny: bool,
    /// Where the sun stands in front of the camera, in parts of the picture from its middle.
    pub(super) glare: Option<[f32; 2]>,
    /// Rain drops per picture.
    pub(super) rain: usize,
    /// Exposure time in seconds.
    pub(super) shutter: f32,
    /// Deviation of the sensor noise at middle grey, in parts of full scale.
    pub(super) noise: f32,
    /// White balance and exposure error.
    pub(super) tint: Colour,
}

impl Light {
    pub(super) fn roll(dice: &mut Dice) -> Self {
        let mut light = match dice.below(0, 20) {
            0..8 => Self::day(dice),
            8..12 => Self::overcast(dice),
            12..15 => Self::low_sun(dice),
            15..17 => Self::dusk(dice),
            _ => Self::night(dice),
        };
        if !light.sunny && dice.chance(0.3) {
            light.rain = dice.below(40, 220);
            light.haze_density += 0.006;
        }
        if dice.chance(0.12) {
            light.haze_density += dice.between(0.01, 0.035);
            light.sky = light
                .sky
                .map(|sky| std::array::from_fn(|part| 0.25 * sky[part] + 0.75 * light.haze[part]));
            light.sunny = false;
            light.glare = None;
        }
        let gain = dice.between(0.8, 1.15);
        light.tint = light.tint.map(|part| part * gain * dice.between(0.94, 1.06));
        light
    }

    fn day(dice: &mut Dice) -> Self {
        let top = [0.25, 0.45, 0.75].map(|part: f32| part + dice.between(-0.06, 0.1));
        let right_lit = dice.chance(0.5);
        let lit = dice.between(0.9, 1.1);
        let shade = dice.between(0.5, 0.75);
        Self {
            ambient: [1.0, 0.98, 0.95],
            sides: [
                dice.between(0.65, 1.1),
                if right_lit { shade } else { lit },
                if right_lit { lit } else { shade },
                1.0,
            ],
            headlamp: 0.0,
            haze: [0.75, 0.8, 0.86],
            haze_density: 0.002,
            sky: [top, [0.74, 0.83, 0.92]],
            dark: false,
            sunny: true,
            glare: None,
            rain: 0,
            shutter: dice.between(0.002, 0.015),
            noise: dice.between(0.006, 0.016),
            tint: [1.0; 3],
        }
    }

    fn overcast(dice: &mut Dice) -> Self {
        let grey = dice.between(0.55, 0.85);
        Self {
            ambient: [0.78, 0.8, 0.83],
            sides: [0.85, 0.8, 0.8, 0.95],
            haze: [grey, grey + 0.01, grey + 0.03],
            haze_density: 0.004,
            sky: [[grey - 0.06, grey - 0.04, grey], [grey + 0.06, grey + 0.06, grey + 0.07]],
            sunny: false,
            shutter: dice.between(0.005, 0.03),
            noise: dice.between(0.01, 0.022),
            ..Self::day(dice)
        }
    }

    fn low_sun(dice: &mut Dice) -> Self {
        let ahead = dice.chance(0.5);
        Self {
            ambient: [1.0, 0.84, 0.64],
            sides: [if ahead { dice.between(0.32, 0.55) } else { 1.15 }, 0.7, 0.7, 0.6],
            haze: [0.95, 0.8, 0.6],
            haze_density: 0.005,
            sky: [[0.42, 0.5, 0.66], [0.98, 0.83, 0.6]],
            glare: ahead.then(|| [dice.between(-0.4, 0.4), dice.between(-0.35, 0.0)]),
            noise: dice.between(0.012, 0.025),
            ..Self::day(dice)
        }
    }

    fn dusk(dice: &mut Dice) -> Self {
        Self {
            ambient: [0.36, 0.36, 0.44],
            sides: [0.85, 0.8, 0.8, 0.9],
            headlamp: 0.25,
            haze: [0.34, 0.34, 0.42],
            haze_density: 0.004,
            sky: [[0.16, 0.2, 0.36], [0.62, 0.45, 0.42]],
            dark: true,
            sunny: false,
            shutter: dice.between(0.012, 0.035),
            noise: dice.between(0.022, 0.04),
            tint: [1.15, 1.12, 1.1],
            ..Self::day(dice)
        }
    }

    fn night(dice: &mut Dice) -> Self {
        let ambient = dice.between(0.1, 0.2);
        Self {
            ambient: [ambient * 1.15, ambient, ambient * 0.85],
            sides: [0.9, 0.9, 0.9, 1.0],
            headlamp: dice.between(0.25, 0.6),
            haze: [0.06, 0.06, 0.07],
            haze_density: 0.006,
            sky: [[0.02, 0.02, 0.05], [0.1, 0.08, 0.09]],
            dark: true,
            sunny: false,
            shutter: dice.between(0.015, 0.045),
            noise: dice.between(0.03, 0.06),
            tint: [1.1, 1.05, 0.95],
            ..Self::day(dice)
        }
    }

    /// How a coloured surface at the given depth in metres looks through the air before it.
    pub(super) fn shade(&self, colour: Colour, facing: Facing, depth: f32) -> Colour {
        let near = 1.0 / (1.0 + depth * depth / 100.0);
        let (side, headlamp) = match facing {
            Facing::Front => (self.sides[0], self.headlamp * near),
            Facing::Left => (self.sides[1], self.headlamp * near * 0.6),
            Facing::Right => (self.sides[2], self.headlamp * near * 0.6),
            Facing::Up => (self.sides[3], self.headlamp * near * 0.5),
            Facing::Reflector => (self.sides[0], self.headlamp * (0.6 + near)),
            Facing::Lamp => (1.0, 0.0),
        };
        let clear = (-self.haze_density * depth.max(0.0)).exp();
        let ambient = if facing == Facing::Lamp { [1.0; 3] } else { self.ambient };
        std::array::from_fn(|part| {
            let lit = colour[part] * (ambient[part] * side + headlamp);
            lit * clear + self.haze[part] * (1.0 - clear)
        })
    }
}
