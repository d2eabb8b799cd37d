//! Lens and sensor: blur, glare, vignetting, exposure and noise.

use super::dice::Dice;
use super::drawing::Colour;
use std::collections::BTreeMap;

/// How many noise values are kept; rows of a picture start at random places among them.
const GRAINS: usize = 1 << 16;
/// The longest blur by motion, in pixels: longer ones take too long to render.
const LONGEST: f32 = 24.0;

/// One exposure of the sensor.
#[derive(Clone, Debug)]
pub(super) struct Exposure {
    /// How far the picture moves during the exposure, in pixels.
    pub(super) motion: [f32; 2],
    /// Radius of the blur of the lens, in pixels.
    pub(super) defocus: f32,
    /// The sun in the picture: its pixel and the reach of its glare in pixels.
    pub(super) glare: Option<([f32; 2], f32)>,
    /// Gain of the three colours.
    pub(super) tint: Colour,
    /// Deviation of the noise at middle grey, in parts of full scale.
    pub(super) noise: f32,
}

/// The noise of the sensor.
#[derive(Clone, Debug)]
pub(super) struct Sensor {
    grains: Vec<f32>,
}

impl Sensor {
    pub(super) fn new(dice: &mut Dice) -> Self {
        Self { grains: (0..GRAINS).map(|_| dice.normal()).collect() }
    }

    /// What the sensor makes of the light of a painted picture: RGBA bytes in, RGB bytes out.
    pub(super) fn expose(
        &self,
        painted: &[u8],
        width: usize,
        exposure: &Exposure,
        dice: &mut Dice,
    ) -> Vec<u8> {
        let mut light = vec![0.0; painted.len() / 4 * 3];
        for (light, pixel) in light.chunks_exact_mut(3).zip(painted.chunks_exact(4)) {
            light.copy_from_slice(&[pixel[0], pixel[1], pixel[2]].map(f32::from));
        }
        let spread = spread(exposure.motion, exposure.defocus);
        let light = if spread.len() > 1 { convolved(&light, width, &spread) } else { light };
        self.read(&light, width, exposure, dice)
    }

    fn read(&self, light: &[f32], width: usize, exposure: &Exposure, dice: &mut Dice) -> Vec<u8> {
        let height = light.len() / 3 / width;
        let middle = [width as f32 / 2.0, height as f32 / 2.0];
        let corner = middle[0] * middle[0] + middle[1] * middle[1];
        let mut bytes = vec![0; light.len()];
        let rows = light.chunks_exact(3 * width).zip(bytes.chunks_exact_mut(3 * width));
        for (y, (row, bytes)) in rows.enumerate() {
            let start = dice.below(0, GRAINS - 3 * width);
            let grains = &self.grains[start..start + 3 * width];
            let down = y as f32 + 0.5 - middle[1];
            let pixels = row.chunks_exact(3).zip(bytes.chunks_exact_mut(3));
            for (x, ((pixel, bytes), grain)) in pixels.zip(grains.chunks_exact(3)).enumerate() {
                let across = x as f32 + 0.5 - middle[0];
                let vignette = 1.0 - 0.25 * (across * across + down * down) / corner;
                let glare = exposure.glare.map_or(0.0, |(sun, reach)| {
                    let (dx, dy) = (x as f32 - sun[0], y as f32 - sun[1]);
                    120.0 / (1.0 + (dx * dx + dy * dy) / (reach * reach))
                });
                for part in 0..3 {
                    let value = (pixel[part] + glare) * exposure.tint[part] * vignette;
                    // The noise of light grows with its root, on top of that of the amplifier.
                    let grey = value.max(0.0) / 128.0;
                    let noise = 255.0 * exposure.noise * (0.12 + 0.88 * grey).sqrt();
                    bytes[part] = (value + noise * grain[part] + 0.5) as u8;
                }
            }
        }
        bytes
    }
}

/// Where the light of one point goes: offsets in pixels with their parts of the light.
type Spread = Vec<([i32; 2], f32)>;

/// The disc of the lens drawn along the motion.
fn spread(motion: [f32; 2], defocus: f32) -> Spread {
    let length = motion[0].hypot(motion[1]);
    let motion = motion.map(|part| part * (LONGEST / length.max(LONGEST)));
    let steps = length.min(LONGEST).ceil() as usize + 1;
    let mut parts: BTreeMap<[i32; 2], f32> = BTreeMap::new();
    for step in 0..steps {
        let along = (step as f32 + 0.5) / steps as f32 - 0.5;
        let centre = motion.map(|part| part * along);
        for corner in 0..9_u8 {
            let (sine, cosine) = (f32::from(corner) * std::f32::consts::FRAC_PI_4).sin_cos();
            let radius = if corner == 8 { 0.0 } else { defocus };
            let point = [centre[0] + radius * cosine, centre[1] + radius * sine];
            let whole = point.map(f32::floor);
            let rest = [point[0] - whole[0], point[1] - whole[1]];
            for (x, across) in [(0, 1.0 - rest[0]), (1, rest[0])] {
                for (y, down) in [(0, 1.0 - rest[1]), (1, rest[1])] {
                    let pixel = [whole[0] as i32 + x, whole[1] as i32 + y];
                    *parts.entry(pixel).or_default() += across * down;
                }
            }
        }
    }
    let total: f32 = parts.values().sum();
    parts.retain(|_, part| *part > 0.01 * total);
    let total: f32 = parts.values().sum();
    parts.into_iter().map(|(offset, part)| (offset, part / total)).collect()
}

/// The picture with the light of every point spread; at the edges its border goes on.
fn convolved(light: &[f32], width: usize, spread: &Spread) -> Vec<f32> {
    let row = 3 * width;
    let height = light.len() / row;
    let mut sum = vec![0.0; light.len()];
    for (y, target) in sum.chunks_exact_mut(row).enumerate() {
        for &([dx, dy], part) in spread {
            let from = (y as i64 + i64::from(dy)).clamp(0, height as i64 - 1) as usize;
            let source = &light[from * row..(from + 1) * row];
            let shift = (dx.unsigned_abs() as usize).min(width - 1) * 3;
            let (left, right) = if dx >= 0 { (0, shift) } else { (shift, 0) };
            for (value, light) in
                target[left..row - right].iter_mut().zip(&source[right..row - left])
            {
                *value += part * light;
            }
            for (edge, pixel) in [(0..left, &source[..3]), (row - right..row, &source[row - 3..])] {
                for (value, light) in target[edge].iter_mut().zip(pixel.iter().cycle()) {
                    *value += part * light;
                }
            }
        }
    }
    sum
}
