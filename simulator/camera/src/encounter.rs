//! One sign and what happens to it while the camera approaches.

use super::artwork;
use super::canvas::{Canvas, Plane, outline};
use super::cover::cover;
use super::dice::Dice;
use super::drawing::Mark;
use super::facet::Facet;
use super::light::Facing;
use super::sign::Sign;
use super::street::Street;
use super::view::{Place, View};
use super::wear::{Patch, faded, wear};
use super::{BoundingBox, CameraConfig};
use tiny_skia::{Color, FillRule, Paint, Pixmap, Transform};

/// The longest approach in seconds.
const LONGEST: f32 = 3.0;
/// The shortest approach in seconds.
const SHORTEST: f32 = 0.8;
/// A sign that is hidden more than this is not shown.
const LEAST_VISIBLE: f32 = 0.4;

/// A sign beside the street.
#[derive(Clone, Debug)]
pub(super) struct Encounter {
    pub(super) sign: Sign,
    plane: Plane,
    outline: Vec<[f32; 2]>,
    face: Vec<Mark>,
    patches: Vec<Patch>,
    post: Facet,
    cover: Vec<Facet>,
    /// How far out of focus it is, in pixels of a picture of 240 lines.
    pub(super) defocus: f32,
    /// Frames for which it is in view.
    pub(super) frames: u64,
}

impl Encounter {
    /// A sign that comes into view at the given frame of the street. Places are tried until one
    /// is in view, and not hidden too much, for long enough.
    pub(super) fn roll(
        dice: &mut Dice,
        sign: Sign,
        street: &Street,
        config: &CameraConfig,
        first: u64,
    ) -> Self {
        let [shortest, longest] =
            [SHORTEST, LONGEST].map(|seconds| ((seconds * config.frames_per_second) as u64).max(1));
        loop {
            let mut encounter = Self::propose(dice, sign, street, config, first);
            let largest = dice.between(65.0, 90.0) * config.side() / 240.0;
            encounter.frames = (0..longest)
                .take_while(|frame| {
                    let view = config.view(&street.ride, first + frame);
                    encounter.in_view(&view, config, largest)
                })
                .count() as u64;
            if encounter.frames >= shortest {
                return encounter;
            }
        }
    }

    fn propose(
        dice: &mut Dice,
        sign: Sign,
        street: &Street,
        config: &CameraConfig,
        first: u64,
    ) -> Self {
        let view = config.view(&street.ride, first);
        let half = dice.between(0.3, 0.45);
        // Small signs are hard to tell apart, so that most come into view at a fair size.
        let sizes = if dice.chance(0.15) { [14.0, 28.0] } else { [30.0, 62.0] };
        let start = dice.between(sizes[0], sizes[1]) * config.side() / 240.0;
        let depth = view.depth_of(start / (2.0 * half));
        let on_island = dice.chance(if sign == Sign::KeepRight { 0.4 } else { 0.12 });
        let centre = if on_island {
            [dice.between(-1.3, -0.4), dice.between(1.0, 2.2), view.along + depth]
        } else {
            [dice.between(0.2, 1.35), dice.between(1.5, 2.6), view.along + depth]
        };
        let plane = hung(dice, centre, half);
        let plate = artwork::outline(sign);
        Self {
            sign,
            patches: wear(&mut dice.split(), &plate, street.light.sunny),
            outline: plate,
            face: faded(dice.between(0.0, 0.35), artwork::face(sign)),
            post: Facet::front(
                [centre[0] - 0.035, centre[0] + 0.035],
                [0.0, centre[1] + 0.5 * half],
                centre[2] + 0.02,
                [0.4, 0.41, 0.42],
            ),
            cover: cover(&mut dice.split(), centre, half),
            plane,
            defocus: match dice.below(0, 20) {
                0..11 => dice.between(0.0, 0.4),
                11..18 => dice.between(0.4, 1.0),
                _ => dice.between(1.0, 1.6),
            },
            frames: 0,
        }
    }

    /// Where the sign stands along the street, in metres.
    pub(super) fn distance(&self) -> f32 {
        self.plane.centre[2]
    }

    /// The middle of the plate in pixels.
    pub(super) fn middle(&self, view: &View) -> [f32; 2] {
        view.project(self.plane.centre)
    }

    /// The smallest box around the whole plate, hidden parts too.
    pub(super) fn bounds(&self, view: &View) -> BoundingBox {
        let pixels = self.outline.iter().map(|&point| view.project(self.plane.place(point)));
        let (low, high) = pixels.fold(([f32::MAX; 2], [f32::MIN; 2]), |(low, high), pixel| {
            (
                [low[0].min(pixel[0]), low[1].min(pixel[1])],
                [high[0].max(pixel[0]), high[1].max(pixel[1])],
            )
        });
        BoundingBox { x: low[0], y: low[1], width: high[0] - low[0], height: high[1] - low[1] }
    }

    /// The part of the plate that nothing hides, counted on a small picture of the box.
    pub(super) fn visibility(&self, view: &View) -> f32 {
        const SIDE: u32 = 40;
        let stickers = self.patches.iter().filter(|patch| patch.opacity >= 1.0);
        let covers: Vec<Vec<Place>> = self
            .cover
            .iter()
            .map(|facet| facet.points.clone())
            .chain(stickers.map(|patch| self.places(&patch.points)))
            .collect();
        let (false, Some(mut pixels)) = (covers.is_empty(), Pixmap::new(SIDE, SIDE)) else {
            return 1.0;
        };
        let bounds = self.bounds(view);
        let (across, down) = (SIDE as f32 / bounds.width, SIDE as f32 / bounds.height);
        let zoom =
            Transform::from_row(across, 0.0, 0.0, down, -bounds.x * across, -bounds.y * down);
        let mut fill = |points: &[Place], colour: Color| {
            let mut paint = Paint::default();
            paint.set_color(colour);
            if let Some(path) = outline(view, points, 0.0) {
                pixels.fill_path(&path, &paint, FillRule::Winding, zoom, None);
            }
            pixels.pixels().iter().map(|pixel| f32::from(pixel.red())).sum::<f32>()
        };
        let whole = fill(&self.places(&self.outline), Color::WHITE);
        let seen = covers.iter().map(|points| fill(points, Color::BLACK)).fold(whole, f32::min);
        if whole > 0.0 { seen / whole } else { 0.0 }
    }

    /// Paints post, plate and what hides it; `plate` is false for the same scene without a sign.
    pub(super) fn paint(&self, canvas: &mut Canvas<'_>, plate: bool) {
        canvas.facet(&self.post, 0.0);
        if plate {
            for mark in &self.face {
                canvas.mark(mark, &self.plane);
            }
            for patch in &self.patches {
                let facet = Facet {
                    points: self.places(&patch.points),
                    colour: patch.colour,
                    opacity: patch.opacity,
                    facing: Facing::Front,
                };
                canvas.facet(&facet, 0.0);
            }
        }
        self.cover.iter().for_each(|facet| canvas.facet(facet, 0.0));
    }

    fn places(&self, points: &[[f32; 2]]) -> Vec<Place> {
        points.iter().map(|&point| self.plane.place(point)).collect()
    }

    fn in_view(&self, view: &View, config: &CameraConfig, largest: f32) -> bool {
        view.depth(self.plane.centre) > 1.0
            && self.bounds(view).height <= largest
            && config.square().contains(&self.bounds(view))
            && self.visibility(view) >= LEAST_VISIBLE
    }
}

/// A plate that is turned, tipped and tilted a little, sometimes a lot.
fn hung(dice: &mut Dice, centre: Place, half: f32) -> Plane {
    let yaw = if dice.chance(0.15) { dice.between(-0.8, 0.8) } else { dice.between(-0.35, 0.35) };
    let pitch = dice.between(-0.15, 0.15);
    let roll = if dice.chance(0.12) { dice.between(-0.3, 0.3) } else { dice.between(-0.07, 0.07) };
    let ((yaw_sin, yaw_cos), (pitch_sin, pitch_cos)) = (yaw.sin_cos(), pitch.sin_cos());
    let across = [yaw_cos, 0.0, yaw_sin];
    let down = [yaw_sin * pitch_sin, -pitch_cos, -yaw_cos * pitch_sin];
    let (sine, cosine) = roll.sin_cos();
    Plane {
        centre,
        right: std::array::from_fn(|axis| half * (cosine * across[axis] + sine * down[axis])),
        down: std::array::from_fn(|axis| half * (cosine * down[axis] - sine * across[axis])),
    }
}
