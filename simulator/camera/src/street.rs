//! One street: what is in it and what light is on it.

use super::canvas::Canvas;
use super::dice::Dice;
use super::drawing::Colour;
use super::facet::{Facet, Prop};
use super::light::{Facing, Light};
use super::props;
use super::view::Ride;

/// How far the camera sees, in metres.
const SIGHT: f32 = 90.0;
/// The street is this long, in metres: what the quickest camera passes while it meets all signs
/// of one street, and the sight beyond.
const LENGTH: f32 = 230.0;
/// Kerbs on the left and right of the roadway, in metres.
const KERBS: [f32; 2] = [-8.0, 0.9];

/// A street with its scenery. Signs stand, and are hidden, within 1.75 m to either side of the
/// camera's track; all else keeps out of there, so that none of it comes before a sign.
#[derive(Clone, Debug)]
pub(super) struct Street {
    pub(super) light: Light,
    pub(super) ride: Ride,
    /// How many signs stand in it.
    pub(super) signs: usize,
    props: Vec<Prop>,
    skyline: Prop,
    ground: [Colour; 3],
}

impl Street {
    pub(super) fn roll(dice: &mut Dice) -> Self {
        let light = Light::roll(&mut dice.split());
        let ride = Ride::roll(&mut dice.split());
        let built = dice.pick([0.95, 0.85, 0.5, 0.1]);
        let mut props = Vec::new();
        for side in [-1.0, 1.0] {
            verge(&mut dice.split(), side, built, light.dark, &mut props);
        }
        marks(&mut dice.split(), &mut props);
        traffic(&mut dice.split(), light.dark, &mut props);
        let asphalt = dice.between(0.2, 0.42);
        let paving = dice.between(0.4, 0.62);
        let soil = dice.pick([[0.30, 0.40, 0.18], [0.42, 0.42, 0.40], [0.36, 0.34, 0.22]]);
        Self {
            skyline: skyline(&mut dice.split(), &light),
            light,
            ride,
            signs: dice.below(2, 5),
            props,
            ground: [soil, [asphalt; 3], [paving, paving * 0.98, paving * 0.94]],
        }
    }

    /// Paints all but the sign, `seconds` after the camera entered the street; `sign` paints the
    /// sign, which stands `distance` metres along the street, when its turn has come.
    pub(super) fn paint(
        &self,
        canvas: &mut Canvas<'_>,
        seconds: f32,
        distance: f32,
        mut sign: impl FnMut(&mut Canvas<'_>),
    ) {
        canvas.sky();
        let along = canvas.view.along;
        self.skyline.facets.iter().for_each(|facet| canvas.facet(facet, along));
        self.paint_ground(canvas);
        let mut order: Vec<(f32, &Prop)> = self
            .props
            .iter()
            .map(|prop| (prop.near + prop.speed * seconds, prop))
            .filter(|(near, _)| (along - 12.0..along + SIGHT).contains(near))
            .collect();
        order.sort_by(|(one, _), (other, _)| other.total_cmp(one));
        let behind = order.partition_point(|(near, _)| *near > distance);
        let show = |canvas: &mut Canvas<'_>, props: &[(f32, &Prop)]| {
            for (_, prop) in props {
                prop.facets.iter().for_each(|facet| canvas.facet(facet, prop.speed * seconds));
            }
        };
        show(canvas, &order[..behind]);
        sign(canvas);
        show(canvas, &order[behind..]);
    }

    /// Ground in strips across the street, so that each takes the haze of its distance.
    fn paint_ground(&self, canvas: &mut Canvas<'_>) {
        let [soil, asphalt, paving] = self.ground;
        let strips = [([-400.0, 400.0], soil), ([KERBS[0] - 3.0, 4.8], paving), (KERBS, asphalt)];
        let along = canvas.view.along;
        for (x, colour) in strips {
            for z in [400.0, 90.0, 45.0, 22.0, 11.0, 6.0, 3.0, 0.0].windows(2) {
                canvas.facet(&Facet::level(x, 0.0, [along + z[1], along + z[0]], colour), 0.0);
            }
        }
    }
}

/// Houses, trees and furniture along one side.
fn verge(dice: &mut Dice, side: f32, built: f32, dark: bool, props: &mut Vec<Prop>) {
    let inner = if side > 0.0 { 2.6 } else { -KERBS[0] + 0.8 };
    let outer = if side > 0.0 { dice.between(5.0, 8.0) } else { dice.between(11.0, 14.0) };
    let mut z = dice.between(-10.0, 0.0);
    while z < LENGTH {
        let long = dice.between(6.0, 15.0);
        let x = side * (outer + dice.between(0.0, 1.5));
        if dice.chance(built) {
            props.push(props::house(dice, x, [z, z + long], dark));
        } else {
            for _ in 0..dice.below(1, 4) {
                let reach = dice.between(1.2, 2.6);
                let across = side * (outer + dice.between(0.0, 6.0));
                let tree_z = dice.between(z, z + long);
                props.push(props::tree(dice, across, tree_z, reach));
            }
            if dice.chance(0.6) {
                props.push(props::hedge(dice, x, [z, z + long]));
            }
        }
        z += long + if dice.chance(0.2) { dice.between(1.0, 6.0) } else { 0.0 };
    }
    let mut z = dice.between(0.0, 10.0);
    while z < LENGTH {
        let x = side * dice.between(inner, inner + 1.6);
        match dice.below(0, 12) {
            0..3 => props.push(props::advert(dice, x, z)),
            3..6 => {
                let reach = dice.between(0.9, 1.7);
                props.push(props::tree(dice, side * (inner + 1.4), z, reach));
            }
            6..8 => props.push(props::walker(dice, x, z)),
            8 => props.push(props::signal(dice, x, z)),
            9 => props.push(props::car(dice, side * (inner + 1.4), z, side < 0.0, false)),
            _ => {}
        }
        z += dice.between(1.5, 9.0);
    }
    let mut z = dice.between(0.0, 25.0);
    let height = dice.between(5.0, 8.0);
    while z < LENGTH {
        props.push(props::lamp(side * inner, z, height, dark));
        z += 25.0;
    }
}

/// Lines and patches on the road.
fn marks(dice: &mut Dice, props: &mut Vec<Prop>) {
    let white = [0.82; 3];
    let mut flat = |x: [f32; 2], z: [f32; 2], colour, opacity| {
        // Behind all that stands at the same place.
        props.push(Prop::standing(
            z[1] + 3.0,
            vec![Facet::level(x, 0.0, z, colour).opacity(opacity)],
        ));
    };
    let edge = dice.chance(0.7);
    for step in 0..(LENGTH / 4.0) as usize {
        let z = 4.0 * step as f32;
        if step % 2 == 0 {
            flat([-4.6, -4.45], [z, z + 3.0], white, 0.9);
        }
        if edge {
            flat([-1.35, -1.22], [z, z + 4.0], white, 0.8);
        }
        if dice.chance(0.3) {
            let x = dice.between(-7.0, 0.0);
            let (wide, long) = (dice.between(0.3, 1.5), dice.between(0.5, 3.0));
            flat([x, x + wide], [z, z + long], [0.14; 3], dice.between(0.2, 0.6));
        }
        if dice.chance(0.03) {
            for stripe in 0..8 {
                let x = KERBS[0] + 0.3 + 1.05 * stripe as f32;
                flat([x, x + 0.5], [z, z + 2.5], white, 0.9);
            }
        }
    }
}

/// Cars that drive ahead of the camera and towards it.
fn traffic(dice: &mut Dice, dark: bool, props: &mut Vec<Prop>) {
    let gap = dice.pick([12.0, 25.0, 60.0]);
    for (lane, oncoming) in [(-3.0, false), (-6.2, true)] {
        let speed = dice.between(6.0, 12.0) * if oncoming { -1.0 } else { 0.8 };
        let mut z = dice.between(4.0, 20.0);
        while z < 2.0 * LENGTH {
            let x = lane + dice.between(-0.2, 0.2);
            props.push(Prop { speed, ..props::car(dice, x, z, oncoming, dark) });
            z += 6.0 + gap * dice.between(0.4, 1.6);
        }
    }
}

/// Hills, far houses and clouds, which move along with the camera.
fn skyline(dice: &mut Dice, light: &Light) -> Prop {
    let mut facets = Vec::new();
    if !light.dark {
        for _ in 0..dice.below(0, 9) {
            let centre = [dice.between(-170.0, 170.0), dice.between(40.0, 130.0), 300.0];
            let radii = [dice.between(15.0, 50.0), dice.between(4.0, 11.0)];
            let cloud = light.sky[1].map(|part| part * 1.05);
            facets.push(
                Facet::disc(centre, radii, 18, cloud)
                    .facing(Facing::Lamp)
                    .opacity(dice.between(0.3, 0.8)),
            );
        }
    }
    let urban = dice.chance(0.6);
    for _ in 0..dice.below(6, 22) {
        let x = dice.between(-160.0, 160.0);
        let grey = dice.between(0.25, 0.5);
        facets.push(if urban {
            let wide = dice.between(6.0, 24.0);
            Facet::front([x, x + wide], [-2.0, dice.between(8.0, 45.0)], 240.0, [grey; 3])
        } else {
            let radii = [dice.between(20.0, 70.0), dice.between(8.0, 22.0)];
            Facet::disc([x, -2.0, 240.0], radii, 20, [grey * 0.6, grey * 0.85, grey * 0.5])
        });
    }
    Prop::standing(240.0, facets)
}
