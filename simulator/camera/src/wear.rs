//! What years by the roadside leave on a plate.

use super::dice::Dice;
use super::drawing::{Colour, Mark};

/// Something flat on the face: shadow, dirt or a sticker.
#[derive(Clone, Debug)]
pub(super) struct Patch {
    pub(super) points: Vec<[f32; 2]>,
    pub(super) colour: Colour,
    /// 0 clear to 1 opaque.
    pub(super) opacity: f32,
}

/// Colours bleached towards a light grey.
pub(super) fn faded(by: f32, mut face: Vec<Mark>) -> Vec<Mark> {
    for mark in &mut face {
        mark.colour = mark.colour.map(|part| part + by * (0.68 - part));
    }
    face
}

/// Shadows, dirt and stickers on a plate.
pub(super) fn wear(dice: &mut Dice, plate: &[[f32; 2]], sunny: bool) -> Vec<Patch> {
    let mut patches = Vec::new();
    let round = |dice: &mut Dice, radius: f32, colour, opacity| {
        let centre = [dice.between(-0.6, 0.6), dice.between(-0.5, 0.5)];
        let points = (0..9)
            .map(|corner| {
                let (sine, cosine) = (corner as f32 * 0.698).sin_cos();
                let radius = radius * dice.between(0.7, 1.3);
                [centre[0] + radius * cosine, centre[1] + radius * sine]
            })
            .collect();
        Patch { points: within(plate, points), colour, opacity }
    };
    if dice.chance(0.25) {
        let colour = dice.pick([[0.28, 0.22, 0.15], [0.4, 0.4, 0.38], [0.3, 0.14, 0.06]]);
        for _ in 0..dice.below(2, 9) {
            let (radius, opacity) = (dice.between(0.06, 0.35), dice.between(0.3, 0.75));
            patches.push(round(dice, radius, colour, opacity));
        }
    }
    if dice.chance(0.08) {
        let (x, y) = (dice.between(-0.5, 0.4), dice.between(-0.5, 0.4));
        let (wide, tall) = (dice.between(0.25, 0.5), dice.between(0.2, 0.45));
        let points =
            vec![[x, y], [x + wide, y + 0.06], [x + wide - 0.05, y + tall], [x - 0.04, y + tall]];
        let colour = [dice.between(0.0, 1.0), dice.between(0.0, 1.0), dice.between(0.0, 1.0)];
        patches.push(Patch { points: within(plate, points), colour, opacity: 1.0 });
    }
    if sunny && dice.chance(0.35) {
        let opacity = dice.between(0.35, 0.6);
        if dice.chance(0.5) {
            let (middle, slope) = (dice.between(-0.6, 0.6), dice.between(-1.0, 1.0));
            let half = vec![
                [-9.0, middle - 9.0 * slope],
                [9.0, middle + 9.0 * slope],
                [9.0, 19.0],
                [-9.0, 19.0],
            ];
            patches.push(Patch {
                points: within(plate, half),
                colour: [0.02, 0.02, 0.06],
                opacity,
            });
        } else {
            for _ in 0..dice.below(3, 9) {
                let radius = dice.between(0.12, 0.35);
                patches.push(round(dice, radius, [0.02, 0.02, 0.06], opacity));
            }
        }
    }
    patches.retain(|patch| patch.points.len() > 2);
    patches
}

/// The part of a shape that lies on a convex plate whose corners run clockwise.
fn within(plate: &[[f32; 2]], shape: Vec<[f32; 2]>) -> Vec<[f32; 2]> {
    let edges = plate.iter().zip(plate.iter().cycle().skip(1));
    edges.fold(shape, |shape, (a, b)| {
        let inside = |p: &[f32; 2]| (b[0] - a[0]) * (p[1] - a[1]) - (b[1] - a[1]) * (p[0] - a[0]);
        let sides = shape.iter().zip(shape.iter().cycle().skip(1));
        sides
            .flat_map(|(start, end)| {
                let (from, to) = (inside(start), inside(end));
                let part = from / (from - to);
                let cut = [0, 1].map(|axis| start[axis] + part * (end[axis] - start[axis]));
                let crossing = ((from >= 0.0) != (to >= 0.0)).then_some(cut);
                (from >= 0.0).then_some(*start).into_iter().chain(crossing)
            })
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::super::artwork;
    use super::super::sign::Sign;
    use super::*;

    #[test]
    fn patches_stay_on_the_plate() {
        for &sign in Sign::ALL {
            let plate = artwork::outline(sign);
            let everywhere = vec![[-9.0, -9.0], [9.0, -9.0], [9.0, 9.0], [-9.0, 9.0]];
            let clipped = within(&plate, everywhere);
            assert!(clipped.len() >= plate.len(), "{sign}: {clipped:?}");
            assert!(clipped.iter().flatten().all(|part| part.abs() < 1.01), "{sign}");
        }
    }
}
