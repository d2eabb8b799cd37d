//! Painting places of the street into pixels.

use super::dice::Dice;
use super::drawing::{Colour, Mark};
use super::facet::Facet;
use super::light::{Facing, Light};
use super::view::{Place, View};
use tiny_skia::{
    Color, FillRule, GradientStop, LinearGradient, Paint, Path, PathBuilder, PathSegment, Pixmap,
    Point, Rect, SpreadMode, Transform,
};

/// Nothing nearer than this many metres is painted.
const NEAREST: f32 = 0.4;
/// Pieces that cover fewer pixels than this are left out.
const SMALLEST: f32 = 0.6;

/// A flat place in the street on which drawings are put: `centre + x * right + y * down`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plane {
    pub(super) centre: Place,
    pub(super) right: Place,
    pub(super) down: Place,
}

impl Plane {
    pub(super) fn place(&self, point: [f32; 2]) -> Place {
        std::array::from_fn(|axis| {
            self.centre[axis] + point[0] * self.right[axis] + point[1] * self.down[axis]
        })
    }

    fn pixel(&self, view: &View, point: Point) -> [f32; 2] {
        view.project(self.place([point.x, point.y]))
    }
}

/// A picture being painted, from far to near.
#[derive(Debug)]
pub(super) struct Canvas<'a> {
    pub(super) pixels: Pixmap,
    pub(super) view: View,
    pub(super) light: &'a Light,
}

impl Canvas<'_> {
    /// Fills the picture with sky, down to where the ground begins however the camera tilts.
    pub(super) fn sky(&mut self) {
        let [width, height] = [self.pixels.width() as f32, self.pixels.height() as f32];
        let horizon = self.view.project([0.0, 0.0, self.view.along + 1e4])[1].max(1.0);
        let [top, low] = self.light.sky.map(|colour| opaque(colour, 1.0));
        let stops = vec![GradientStop::new(0.0, top), GradientStop::new(1.0, low)];
        let ends = [Point::from_xy(0.0, horizon - 0.65 * height), Point::from_xy(0.0, horizon)];
        let gradient =
            LinearGradient::new(ends[0], ends[1], stops, SpreadMode::Pad, Transform::identity());
        let area = Rect::from_xywh(0.0, 0.0, width, (horizon + 0.1 * width).min(height));
        if let (Some(shader), Some(area)) = (gradient, area) {
            let paint = Paint { shader, anti_alias: false, ..Paint::default() };
            self.pixels.fill_rect(area, &paint, Transform::identity(), None);
        }
    }

    /// Paints a piece that has moved `shift` metres along the street.
    pub(super) fn facet(&mut self, facet: &Facet, shift: f32) {
        let depth = facet.points.iter().map(|&point| self.view.depth(point)).sum::<f32>()
            / facet.points.len() as f32
            + shift;
        if let Some(path) = outline(&self.view, &facet.points, shift)
            && self.worth_painting(&path)
        {
            let colour = self.light.shade(facet.colour, facet.facing, depth);
            self.fill(&path, colour, facet.opacity);
        }
    }

    /// Paints a mark on a plane of reflecting material.
    pub(super) fn mark(&mut self, mark: &Mark, plane: &Plane) {
        let colour =
            self.light.shade(mark.colour, Facing::Reflector, self.view.depth(plane.centre));
        if let Some(path) = on_plane(&self.view, &mark.path, plane) {
            self.fill(&path, colour, 1.0);
        }
    }

    /// Streaks of rain all over the picture.
    pub(super) fn rain(&mut self, dice: &mut Dice) {
        let size = [self.pixels.width() as f32, self.pixels.height() as f32];
        let unit = size[0].min(size[1]) / 240.0;
        let colour = self.light.sky[1].map(|part| part * 0.8 + 0.2);
        for _ in 0..self.light.rain {
            let (x, y) = (dice.between(0.0, size[0]), dice.between(0.0, size[1]));
            let (long, wide) = (dice.between(4.0, 14.0) * unit, 0.8 * unit);
            let mut path = PathBuilder::new();
            path.move_to(x, y);
            path.line_to(x + wide, y);
            path.line_to(x + 0.15 * long + wide, y + long);
            path.line_to(x + 0.15 * long, y + long);
            if let Some(path) = path.finish() {
                self.fill(&path, colour, 0.25);
            }
        }
    }

    fn worth_painting(&self, path: &Path) -> bool {
        let bounds = path.bounds();
        bounds.right() > 0.0
            && bounds.bottom() > 0.0
            && bounds.left() < self.pixels.width() as f32
            && bounds.top() < self.pixels.height() as f32
            && bounds.width() * bounds.height() > SMALLEST
    }

    fn fill(&mut self, path: &Path, colour: Colour, opacity: f32) {
        let mut paint = Paint::default();
        paint.set_color(opaque(colour, opacity));
        self.pixels.fill_path(path, &paint, FillRule::Winding, Transform::identity(), None);
    }
}

fn opaque(colour: Colour, opacity: f32) -> Color {
    let [red, green, blue] = colour.map(|part| part.clamp(0.0, 1.0));
    Color::from_rgba(red, green, blue, opacity.clamp(0.0, 1.0)).unwrap_or(Color::BLACK)
}

/// The outline of a piece in pixels, without what lies behind the camera.
pub(super) fn outline(view: &View, points: &[Place], shift: f32) -> Option<Path> {
    let mut path = PathBuilder::with_capacity(points.len() + 3, points.len() + 3);
    let moved = |place: Place| [place[0], place[1], place[2] + shift];
    let mut add = |place: Place| {
        let [x, y] = view.project(place);
        if path.is_empty() { path.move_to(x, y) } else { path.line_to(x, y) }
    };
    let ends = points.iter().zip(points.iter().cycle().skip(1));
    for (start, end) in ends.map(|(&start, &end)| (moved(start), moved(end))) {
        let (from, to) = (view.depth(start) - NEAREST, view.depth(end) - NEAREST);
        if from >= 0.0 {
            add(start);
        }
        if (from >= 0.0) != (to >= 0.0) {
            let part = from / (from - to);
            add(std::array::from_fn(|axis| start[axis] + part * (end[axis] - start[axis])));
        }
    }
    path.close();
    path.finish()
}

/// A path on a plane in pixels. Its control points are projected, not its curves: on a plane as
/// small and far as a sign the difference is below what can be seen.
fn on_plane(view: &View, path: &Path, plane: &Plane) -> Option<Path> {
    let mut seen = PathBuilder::with_capacity(path.verbs().len(), path.points().len());
    let pixel = |point| plane.pixel(view, point);
    for segment in path.segments() {
        match segment {
            PathSegment::MoveTo(to) => {
                let [x, y] = pixel(to);
                seen.move_to(x, y);
            }
            PathSegment::LineTo(to) => {
                let [x, y] = pixel(to);
                seen.line_to(x, y);
            }
            PathSegment::QuadTo(by, to) => {
                let ([x1, y1], [x, y]) = (pixel(by), pixel(to));
                seen.quad_to(x1, y1, x, y);
            }
            PathSegment::CubicTo(by, then, to) => {
                let ([x1, y1], [x2, y2], [x, y]) = (pixel(by), pixel(then), pixel(to));
                seen.cubic_to(x1, y1, x2, y2, x, y);
            }
            PathSegment::Close => seen.close(),
        }
    }
    seen.finish()
}
