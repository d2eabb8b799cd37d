//! Flat coloured pieces from which everything along the street is built.

use super::drawing::Colour;
use super::light::Facing;
use super::view::Place;
use std::f32::consts::TAU;

/// A flat piece of one colour.
#[derive(Clone, Debug)]
pub(super) struct Facet {
    pub(super) points: Vec<Place>,
    pub(super) colour: Colour,
    pub(super) facing: Facing,
    /// 0 clear to 1 opaque.
    pub(super) opacity: f32,
}

impl Facet {
    fn opaque(points: Vec<Place>, colour: Colour, facing: Facing) -> Self {
        Self { points, colour, facing, opacity: 1.0 }
    }

    /// A rectangle that faces the camera, from `x` and `y` spans.
    pub(super) fn front(x: [f32; 2], y: [f32; 2], z: f32, colour: Colour) -> Self {
        let points = vec![[x[0], y[0], z], [x[1], y[0], z], [x[1], y[1], z], [x[0], y[1], z]];
        Self::opaque(points, colour, Facing::Front)
    }

    /// A rectangle along the street that faces the camera's track.
    pub(super) fn wall(x: f32, y: [f32; 2], z: [f32; 2], colour: Colour) -> Self {
        let points = vec![[x, y[0], z[0]], [x, y[0], z[1]], [x, y[1], z[1]], [x, y[1], z[0]]];
        Self::opaque(points, colour, if x > 0.0 { Facing::Left } else { Facing::Right })
    }

    /// A level rectangle at height `y`.
    pub(super) fn level(x: [f32; 2], y: f32, z: [f32; 2], colour: Colour) -> Self {
        let points = vec![[x[0], y, z[0]], [x[1], y, z[0]], [x[1], y, z[1]], [x[0], y, z[1]]];
        Self::opaque(points, colour, Facing::Up)
    }

    /// An ellipse that faces the camera.
    pub(super) fn disc(centre: Place, radii: [f32; 2], corners: usize, colour: Colour) -> Self {
        let points = (0..corners)
            .map(|corner| {
                let (sine, cosine) = (corner as f32 / corners as f32 * TAU).sin_cos();
                [centre[0] + radii[0] * cosine, centre[1] + radii[1] * sine, centre[2]]
            })
            .collect();
        Self::opaque(points, colour, Facing::Front)
    }

    /// The same piece facing another way.
    pub(super) fn facing(self, facing: Facing) -> Self {
        Self { facing, ..self }
    }

    /// The same piece, partly clear.
    pub(super) fn opacity(self, opacity: f32) -> Self {
        Self { opacity, ..self }
    }
}

/// A thing in the street.
#[derive(Clone, Debug)]
pub(super) struct Prop {
    /// From the farthest to the nearest.
    pub(super) facets: Vec<Facet>,
    /// The end nearest to the camera, in metres along the street at time 0.
    pub(super) near: f32,
    /// Metres per second along the street.
    pub(super) speed: f32,
}

impl Prop {
    pub(super) fn standing(near: f32, facets: Vec<Facet>) -> Self {
        Self { facets, near, speed: 0.0 }
    }
}
