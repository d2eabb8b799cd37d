//! What stands and drives along a street.

use super::dice::Dice;
use super::drawing::Colour;
use super::facet::{Facet, Prop};
use super::light::Facing;

const METAL: Colour = [0.42, 0.43, 0.45];
const TYRE: Colour = [0.06, 0.06, 0.07];
const GLASS: Colour = [0.13, 0.17, 0.22];
const WARM: Colour = [0.98, 0.82, 0.5];

/// `base` made lighter or darker, and a little more or less colourful.
fn varied(dice: &mut Dice, base: Colour, by: f32) -> Colour {
    let lift = dice.between(-by, by);
    base.map(|part| (part + lift + dice.between(-by, by) * 0.4).clamp(0.02, 1.0))
}

/// A house on the given side whose front stands at `x`, from `z[0]` to `z[1]`.
pub(super) fn house(dice: &mut Dice, x: f32, z: [f32; 2], dark: bool) -> Prop {
    let side = x.signum();
    let floors = dice.below(2, 7);
    let height = 3.0 * floors as f32 + dice.between(0.3, 1.5);
    let base = dice.pick([
        [0.72, 0.66, 0.56],
        [0.60, 0.34, 0.26],
        [0.62, 0.62, 0.60],
        [0.80, 0.76, 0.66],
        [0.45, 0.47, 0.50],
        [0.66, 0.52, 0.36],
        [0.52, 0.26, 0.22],
    ]);
    let wall = varied(dice, base, 0.08);
    let trim = varied(dice, wall, 0.15);
    let mut facets = vec![
        Facet::front([x, x + side * 12.0], [0.0, height], z[0], wall),
        Facet::wall(x, [0.0, height], z, wall),
        Facet::wall(x, [height - 0.4, height], z, trim),
    ];
    let shop = dice.chance(0.45);
    if shop {
        let awning = [dice.between(0.1, 0.9), dice.between(0.1, 0.8), dice.between(0.1, 0.8)];
        let pane = Facet::wall(x, [0.5, 2.4], [z[0] + 0.6, z[1] - 0.6], [0.5, 0.47, 0.4]);
        facets.push(if dark && dice.chance(0.6) { pane.facing(Facing::Lamp) } else { pane });
        facets.push(Facet::wall(x - side * 0.02, [2.4, 3.1], z, awning));
    }
    let columns = (((z[1] - z[0]) / dice.between(1.8, 3.2)) as usize).max(1);
    let step = (z[1] - z[0]) / columns as f32;
    let (wide, tall) = (dice.between(0.35, 0.7), dice.between(1.2, 2.0));
    for floor in usize::from(shop)..floors {
        for column in (0..columns).rev() {
            let start = z[0] + step * (column as f32 + (1.0 - wide) / 2.0);
            let low = 3.0 * floor as f32 + 0.9;
            let lit = dark && dice.chance(0.3);
            let colour = if lit { varied(dice, WARM, 0.15) } else { varied(dice, GLASS, 0.08) };
            let pane = Facet::wall(x, [low, low + tall], [start, start + step * wide], colour);
            facets.push(if lit { pane.facing(Facing::Lamp) } else { pane });
        }
    }
    Prop::standing(z[0], facets)
}

/// A tree with its trunk at `x` and `z`, its crown at most `reach` metres wide to each side.
pub(super) fn tree(dice: &mut Dice, x: f32, z: f32, reach: f32) -> Prop {
    let leaf =
        dice.pick([[0.16, 0.34, 0.10], [0.22, 0.38, 0.14], [0.30, 0.36, 0.10], [0.12, 0.27, 0.14]]);
    let trunk = dice.between(1.6, 2.8);
    let crown = dice.between(1.2, 2.6);
    let mut facets =
        vec![Facet::front([x - 0.14, x + 0.14], [0.0, trunk + crown], z, [0.24, 0.18, 0.13])];
    for _ in 0..dice.below(10, 18) {
        let radius = reach * dice.between(0.3, 0.5);
        let (across, up) = (dice.between(-1.0, 1.0), dice.between(-1.0, 1.0));
        let centre = [x + across * (reach - radius), trunk + crown * (1.0 + 0.8 * up), z - 0.1];
        let colour = leaf.map(|part: f32| part * (1.0 + 0.35 * up + dice.between(-0.15, 0.15)));
        facets.push(Facet::disc(centre, [radius, radius * dice.between(0.7, 1.1)], 9, colour));
    }
    Prop::standing(z - 0.1, facets)
}

/// A low hedge or fence along the street.
pub(super) fn hedge(dice: &mut Dice, x: f32, z: [f32; 2]) -> Prop {
    let height = dice.between(0.7, 1.9);
    let base = dice.pick([[0.17, 0.30, 0.12], [0.42, 0.33, 0.24], [0.6, 0.6, 0.58]]);
    let colour = varied(dice, base, 0.06);
    let mut facets = vec![
        Facet::front([x, x + x.signum() * 0.6], [0.0, height], z[0], colour),
        Facet::wall(x, [0.0, height], z, colour),
    ];
    for _ in 0..6 {
        let start = dice.between(z[0], z[1] - 0.5);
        let low = dice.between(0.0, height - 0.2);
        facets.push(Facet::wall(
            x,
            [low, low + 0.25],
            [start, start + 0.5],
            varied(dice, colour, 0.08),
        ));
    }
    Prop::standing(z[0], facets)
}

/// A street lamp whose arm reaches over the road.
pub(super) fn lamp(x: f32, z: f32, height: f32, dark: bool) -> Prop {
    let arm = x - x.signum() * 1.1;
    let mut facets = vec![
        Facet::front([x - 0.06, x + 0.06], [0.0, height], z, METAL),
        Facet::front([arm.min(x), arm.max(x)], [height - 0.08, height], z, METAL),
    ];
    if dark {
        let bulb = [arm, height - 0.15, z];
        facets.push(Facet::disc(bulb, [0.9, 0.8], 12, WARM).facing(Facing::Lamp).opacity(0.12));
        facets.push(Facet::disc(bulb, [0.45, 0.4], 12, WARM).facing(Facing::Lamp).opacity(0.25));
        facets.push(Facet::disc(bulb, [0.2, 0.14], 8, [1.0, 0.95, 0.8]).facing(Facing::Lamp));
    }
    Prop::standing(z, facets)
}

/// A car or van in the middle of the lane at `x` with its end nearest to the camera at `z`.
pub(super) fn car(dice: &mut Dice, x: f32, z: f32, oncoming: bool, dark: bool) -> Prop {
    let van = dice.chance(0.25);
    let (half, roof, length) = if van { (0.95, 2.2, 5.2) } else { (0.86, 1.45, 4.2) };
    let belt = if van { 1.2 } else { 0.92 };
    let base = dice.pick([
        [0.85, 0.85, 0.86],
        [0.10, 0.10, 0.12],
        [0.50, 0.52, 0.55],
        [0.55, 0.08, 0.08],
        [0.10, 0.18, 0.42],
        [0.82, 0.74, 0.30],
    ]);
    let paint = varied(dice, base, 0.05);
    let shade = paint.map(|part| part * 0.8);
    let flank = x - x.signum() * half;
    let inset = if van { 0.05 } else { 0.16 };
    let mut facets = vec![
        Facet::level([x - half - 0.1, x + half + 0.1], 0.0, [z - 0.2, z + length], [0.05; 3])
            .opacity(0.6),
        Facet::wall(flank, [0.3, belt], [z, z + length], paint),
        Facet::wall(flank, [belt, roof], [z + 0.4, z + length * 0.75], shade),
        Facet::wall(flank, [belt + 0.05, roof - 0.12], [z + 0.6, z + length * 0.7], GLASS),
    ];
    for axle in [0.22, 0.8] {
        let middle = z + length * axle;
        facets.push(Facet::wall(flank, [0.0, 0.62], [middle - 0.32, middle + 0.32], TYRE));
    }
    facets.extend([
        Facet::front([x - half + inset, x + half - inset], [belt, roof], z + 0.3, shade),
        Facet::front(
            [x - half + 0.24, x + half - 0.24],
            [belt + 0.06, roof - 0.12],
            z + 0.3,
            GLASS,
        ),
        Facet::front([x - half, x - half + 0.24], [0.0, 0.4], z, TYRE),
        Facet::front([x + half - 0.24, x + half], [0.0, 0.4], z, TYRE),
        Facet::front([x - half, x + half], [0.28, belt], z, paint),
        Facet::front([x - 0.27, x + 0.27], [0.48, 0.6], z, [0.9, 0.9, 0.85]),
    ]);
    let lights = if oncoming { [0.95, 0.95, 0.85] } else { [0.7, 0.05, 0.05] };
    for end in [-1.0, 1.0] {
        let centre = [x + end * (half - 0.2), belt - 0.16, z - 0.01];
        let bulb = Facet::disc(centre, [0.15, 0.09], 8, lights);
        if dark {
            facets.push(
                Facet::disc(centre, [0.4, 0.34], 10, lights).facing(Facing::Lamp).opacity(0.3),
            );
            facets.push(bulb.facing(Facing::Lamp));
        } else {
            facets.push(bulb);
        }
    }
    Prop::standing(z, facets)
}

/// A person on the pavement.
pub(super) fn walker(dice: &mut Dice, x: f32, z: f32) -> Prop {
    let coat = [dice.between(0.05, 0.8), dice.between(0.05, 0.6), dice.between(0.05, 0.7)];
    let tall = dice.between(1.5, 1.9);
    let stride = dice.between(0.05, 0.25);
    let facets = vec![
        Facet::front([x - stride, x - stride + 0.14], [0.0, tall * 0.5], z, [0.12, 0.13, 0.2]),
        Facet::front([x + stride - 0.14, x + stride], [0.0, tall * 0.5], z, [0.14, 0.14, 0.2]),
        Facet::front([x - 0.23, x + 0.23], [tall * 0.45, tall * 0.85], z, coat),
        Facet::disc([x, tall * 0.92, z], [0.11, 0.14], 8, [0.75, 0.58, 0.47]),
    ];
    Prop { speed: dice.side() * dice.between(0.3, 1.5), ..Prop::standing(z, facets) }
}

/// A set of signal lamps on a post.
pub(super) fn signal(dice: &mut Dice, x: f32, z: f32) -> Prop {
    let lit = dice.below(0, 3);
    let mut facets = vec![
        Facet::front([x - 0.06, x + 0.06], [0.0, 2.4], z, METAL),
        Facet::front([x - 0.18, x + 0.18], [2.2, 3.2], z, [0.08, 0.09, 0.09]),
    ];
    let colours = [[0.95, 0.12, 0.08], [0.98, 0.7, 0.1], [0.1, 0.85, 0.4]];
    for (place, colour) in colours.into_iter().enumerate() {
        let lens = Facet::disc([x, 3.03 - 0.32 * place as f32, z], [0.12, 0.12], 10, colour);
        facets.push(if place == lit {
            lens.facing(Facing::Lamp)
        } else {
            Facet { colour: colour.map(|part| part * 0.25), ..lens }
        });
    }
    Prop::standing(z, facets)
}

/// An advert on a post or wall that has the colours and outlines of a traffic sign but is none.
pub(super) fn advert(dice: &mut Dice, x: f32, z: f32) -> Prop {
    let middle = dice.between(1.6, 3.4);
    let half = dice.between(0.3, 0.75);
    let x = x + x.signum() * half;
    let bold = [
        [0.80, 0.07, 0.09],
        [0.05, 0.27, 0.62],
        [0.95, 0.95, 0.93],
        [0.98, 0.76, 0.08],
        [0.05, 0.55, 0.25],
        [0.45, 0.46, 0.47],
        [0.9, 0.45, 0.05],
    ];
    let (ground, ink) = (dice.pick(bold), dice.pick(bold));
    let disc = |part: f32, colour| Facet::disc([x, middle, z], [half * part; 2], 16, colour);
    let bar = |x0: f32, x1: f32, y0: f32, y1: f32, colour| {
        let across = [x + half * x0, x + half * x1];
        Facet::front(across, [middle + half * y0, middle + half * y1], z, colour)
    };
    let mut facets = vec![Facet::front([x - 0.05, x + 0.05], [0.0, middle], z, METAL)];
    match dice.below(0, 6) {
        0 => facets.extend([disc(1.0, ground), disc(0.7, ink), disc(0.35, ground)]),
        1 => facets.extend([disc(1.0, ground), bar(-0.12, 0.12, -0.65, 0.65, ink)]),
        2 => facets.extend([
            bar(-0.9, 0.9, -0.9, 0.9, ground),
            bar(-0.12, 0.12, -0.6, 0.2, ink),
            bar(-0.12, 0.12, 0.4, 0.65, ink),
        ]),
        3 => facets.extend([
            bar(-0.9, 0.9, -1.2, 1.2, ground),
            bar(-0.6, 0.6, 0.6, 0.9, ink),
            bar(-0.6, 0.3, 0.1, 0.3, ink),
            bar(-0.6, 0.5, -0.4, -0.2, ink),
        ]),
        4 => {
            let points = vec![
                [x, middle + half, z],
                [x + half, middle - half * 0.7, z],
                [x - half, middle - half * 0.7, z],
            ];
            let plate = disc(1.0, ground);
            facets.extend([Facet { points, ..plate }, disc(0.28, ink)]);
        }
        _ => facets.extend([
            bar(-1.6, 1.6, -0.6, 0.6, ground),
            Facet::disc([x - half, middle, z], [half * 0.4; 2], 14, ink),
            bar(-0.3, 1.4, 0.1, 0.3, ink),
            bar(-0.3, 1.0, -0.3, -0.1, ink),
        ]),
    }
    Prop::standing(z, facets)
}
