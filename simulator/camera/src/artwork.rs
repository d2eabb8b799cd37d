//! The faces of the signs, drawn in a plane where the plate reaches from -1 to 1, y downwards.

use super::drawing::{Colour, Mark, fill, line, placed};
use super::sign::Sign;
use std::f32::consts::TAU;
use tiny_skia::Transform;

const WHITE: Colour = [0.95, 0.95, 0.93];
const BLACK: Colour = [0.07, 0.07, 0.08];
const RED: Colour = [0.80, 0.07, 0.09];
const BLUE: Colour = [0.05, 0.27, 0.62];
const YELLOW: Colour = [0.98, 0.76, 0.08];
const GREEN: Colour = [0.05, 0.55, 0.25];

const THREE: &str = "M -.24 -.34 C -.1 -.54 .24 -.5 .23 -.26 C .22 -.07 .04 -.03 -.06 -.03 C .08 -.03 .27 .02 .27 .23 C .26 .51 -.12 .52 -.27 .34";
const FIVE: &str =
    "M .23 -.43 L -.17 -.43 L -.2 -.04 C -.06 -.16 .27 -.14 .27 .16 C .27 .48 -.1 .52 -.27 .34";
const EIGHT: &str = "O 0 -.22 .2 O 0 .21 .23";
const ZERO: &str = "M 0 -.43 C .32 -.43 .32 .43 0 .43 C -.32 .43 -.32 -.43 0 -.43 Z";
const LETTER_S: &str =
    "M .22 -.32 C .1 -.5 -.23 -.48 -.23 -.23 C -.22 .02 .23 -.02 .24 .22 C .24 .5 -.14 .5 -.26 .3";
const LETTER_T: &str = "M -.28 -.4 L .28 -.4 M 0 -.4 L 0 .5";
const LETTER_P: &str = "M -.2 .5 L -.2 -.4 L .04 -.4 C .32 -.4 .32 .1 .04 .1 L -.2 .1";

type Marks = Vec<Option<Mark>>;

/// The outline of a plate as a convex polygon.
pub(super) fn outline(sign: Sign) -> Vec<[f32; 2]> {
    let corners = |count: usize, turn: f32, radius: f32| {
        (0..count)
            .map(|corner| {
                let angle = (corner as f32 + turn) / count as f32 * TAU;
                [radius * angle.sin(), -radius * angle.cos()]
            })
            .collect()
    };
    match sign {
        Sign::Stop => corners(8, 0.5, 1.082),
        Sign::PriorityRoad => corners(4, 0.0, 1.0),
        Sign::Crossing | Sign::Parking => corners(4, 0.5, 1.3),
        Sign::Yield => vec![[-1.0, -0.83], [1.0, -0.83], [0.0, 0.9]],
        Sign::Children
        | Sign::CurveLeft
        | Sign::CurveRight
        | Sign::Roadworks
        | Sign::Slippery
        | Sign::TrafficLights => vec![[0.0, -0.9], [1.0, 0.83], [-1.0, 0.83]],
        _ => corners(48, 0.0, 1.0),
    }
}

/// The face of a sign, from the lowest to the topmost mark.
pub(super) fn face(sign: Sign) -> Vec<Mark> {
    let marks = match sign {
        Sign::Bicycle => [blue_disc(), at(bicycle(), 0.0, 0.0, 1.35)].concat(),
        Sign::Children => {
            [triangle(), at(figure(BLACK), -0.2, 0.2, 0.8), at(figure(BLACK), 0.2, 0.28, 0.65)]
                .concat()
        }
        Sign::Crossing => crossing(),
        Sign::CurveLeft => [triangle(), placed(curve(), Transform::from_scale(-1.0, 1.0))].concat(),
        Sign::CurveRight => [triangle(), curve()].concat(),
        Sign::KeepRight => [
            blue_disc(),
            vec![
                line(WHITE, 0.26, "M -.52 -.52 L .2 .2"),
                fill(WHITE, "M .58 .58 L .58 -.16 L -.16 .58 Z"),
            ],
        ]
        .concat(),
        Sign::NoEntry => vec![
            fill(WHITE, "O 0 0 1"),
            fill(RED, "O 0 0 .96"),
            fill(WHITE, "M -.72 -.19 L .72 -.19 L .72 .19 L -.72 .19 Z"),
        ],
        Sign::NoOvertaking => {
            [ring(), at(car(RED), -0.33, 0.05, 0.56), at(car(BLACK), 0.33, 0.05, 0.56)].concat()
        }
        Sign::NoParking => {
            vec![fill(RED, "O 0 0 1"), fill(BLUE, "O 0 0 .78"), line(RED, 0.2, "M -.6 -.6 L .6 .6")]
        }
        Sign::Parking => [
            vec![
                fill(WHITE, "M -.92 -.92 L .92 -.92 L .92 .92 L -.92 .92 Z"),
                fill(BLUE, "M -.86 -.86 L .86 -.86 L .86 .86 L -.86 .86 Z"),
            ],
            at(vec![line(WHITE, 0.2, LETTER_P)], 0.0, -0.03, 1.3),
        ]
        .concat(),
        Sign::PriorityRoad => vec![
            fill(BLACK, "M 0 -1 L 1 0 L 0 1 L -1 0 Z"),
            fill(WHITE, "M 0 -.95 L .95 0 L 0 .95 L -.95 0 Z"),
            fill(YELLOW, "M 0 -.66 L .66 0 L 0 .66 L -.66 0 Z"),
        ],
        Sign::Roadworks => [triangle(), roadworks()].concat(),
        Sign::Roundabout => [blue_disc(), roundabout()].concat(),
        Sign::Slippery => [
            triangle(),
            placed(car(BLACK), Transform::from_row(0.44, -0.08, 0.08, 0.44, 0.0, 0.1)),
            vec![line(
                BLACK,
                0.075,
                "M -.16 .3 C -.34 .4 .02 .46 -.2 .6 M .16 .3 C -.02 .4 .34 .46 .12 .6",
            )],
        ]
        .concat(),
        Sign::Speed30 => speed(THREE),
        Sign::Speed50 => speed(FIVE),
        Sign::Speed80 => speed(EIGHT),
        Sign::Stop => stop(),
        Sign::TrafficLights => [
            triangle(),
            vec![
                fill(BLACK, "M -.17 -.24 L .17 -.24 L .17 .62 L -.17 .62 Z"),
                fill(RED, "O 0 -.09 .115"),
                fill(YELLOW, "O 0 .19 .115"),
                fill(GREEN, "O 0 .47 .115"),
            ],
        ]
        .concat(),
        Sign::Yield => vec![
            fill(RED, "M -1 -.83 L 1 -.83 L 0 .9 Z"),
            fill(WHITE, "M -.6 -.6 L .6 -.6 L 0 .44 Z"),
        ],
    };
    marks.into_iter().flatten().collect()
}

/// A pedestrian crossing: a figure on stripes in a triangle.
fn crossing() -> Marks {
    let board = vec![
        fill(WHITE, "M -.92 -.92 L .92 -.92 L .92 .92 L -.92 .92 Z"),
        fill(BLUE, "M -.87 -.87 L .87 -.87 L .87 .87 L -.87 .87 Z"),
        fill(WHITE, "M 0 -.74 L .78 .66 L -.78 .66 Z"),
        line(BLACK, 0.09, "M -.5 .56 L -.3 .56 M -.15 .56 L .05 .56 M .2 .56 L .4 .56"),
    ];
    [board, at(figure(BLACK), 0.0, 0.08, 0.92)].concat()
}

fn at(marks: Marks, x: f32, y: f32, scale: f32) -> Marks {
    placed(marks, Transform::from_row(scale, 0.0, 0.0, scale, x, y))
}

fn ring() -> Marks {
    vec![fill(RED, "O 0 0 1"), fill(WHITE, "O 0 0 .76")]
}

fn blue_disc() -> Marks {
    vec![fill(WHITE, "O 0 0 1"), fill(BLUE, "O 0 0 .95")]
}

fn triangle() -> Marks {
    vec![fill(RED, "M 0 -.9 L 1 .83 L -1 .83 Z"), fill(WHITE, "M 0 -.5 L .67 .66 L -.67 .66 Z")]
}

fn speed(digit: &str) -> Marks {
    let digits = [
        placed(vec![line(BLACK, 0.17, digit)], Transform::from_translate(-0.34, 0.0)),
        placed(vec![line(BLACK, 0.17, ZERO)], Transform::from_translate(0.33, 0.0)),
    ];
    [ring(), at(digits.concat(), 0.0, 0.0, 0.98)].concat()
}

fn stop() -> Marks {
    let octagon =
        "M -.414 -1 L .414 -1 L 1 -.414 L 1 .414 L .414 1 L -.414 1 L -1 .414 L -1 -.414 Z";
    let letters = [LETTER_S, LETTER_T, ZERO, LETTER_P];
    let word = letters.iter().enumerate().flat_map(|(place, letter)| {
        at(vec![line(WHITE, 0.18, letter)], -0.63 + 0.42 * place as f32, 0.0, 0.64)
    });
    [vec![fill(WHITE, octagon)], at(vec![fill(RED, octagon)], 0.0, 0.0, 0.95), word.collect()]
        .concat()
}

/// A walking figure, one unit high.
fn figure(colour: Colour) -> Marks {
    vec![
        fill(colour, "O .02 -.41 .11"),
        line(colour, 0.17, "M 0 -.28 L -.02 .1"),
        line(colour, 0.12, "M -.02 .04 L .2 .5 M -.02 .04 L -.2 .5"),
        line(colour, 0.09, "M -.26 .04 L 0 -.22 L .24 0"),
    ]
}

/// A bicycle, one unit long.
fn bicycle() -> Marks {
    vec![
        line(WHITE, 0.07, "O -.31 .14 .19 O .31 .14 .19"),
        line(
            WHITE,
            0.065,
            "M -.31 .14 L -.13 -.18 L .2 -.18 L .02 .14 L -.31 .14 M .02 .14 L -.16 -.28 M .31 .14 L .18 -.3 L .3 -.34 M -.26 -.29 L -.06 -.29",
        ),
    ]
}

/// A car from behind, one unit wide.
fn car(colour: Colour) -> Marks {
    vec![
        fill(
            colour,
            "M -.5 .32 L -.5 -.04 L -.38 -.1 L -.26 -.42 L .26 -.42 L .38 -.1 L .5 -.04 L .5 .32 Z",
        ),
        fill(
            colour,
            "M -.46 .3 L -.46 .48 L -.26 .48 L -.26 .3 Z M .46 .3 L .46 .48 L .26 .48 L .26 .3 Z",
        ),
        fill(WHITE, "M -.27 -.1 L -.19 -.32 L .19 -.32 L .27 -.1 Z"),
    ]
}

fn curve() -> Marks {
    vec![
        line(BLACK, 0.15, "M -.13 .6 L -.13 .36 Q -.13 .18 .08 .04"),
        fill(BLACK, "M .28 -.1 L -.06 -.06 L .16 .24 Z"),
    ]
}

fn roadworks() -> Marks {
    vec![
        fill(BLACK, "O -.05 -.16 .09"),
        line(BLACK, 0.14, "M -.08 -.04 L -.16 .26"),
        line(BLACK, 0.1, "M -.16 .22 L -.02 .4 L -.06 .62 M -.16 .22 L -.26 .42 L -.34 .62"),
        line(BLACK, 0.08, "M -.08 0 L .1 .16 L .2 .14 M -.1 .1 L .28 .5"),
        fill(BLACK, "M .12 .62 Q .3 .26 .52 .62 Z"),
    ]
}

fn roundabout() -> Marks {
    let arrow = || {
        vec![
            line(WHITE, 0.17, "M -.46 .27 C -.62 0 -.5 -.36 -.14 -.5"),
            fill(WHITE, "M .2 -.56 L -.16 -.76 L -.1 -.26 Z"),
        ]
    };
    (0..3).flat_map(|turn| placed(arrow(), Transform::from_rotate(120.0 * turn as f32))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_face_is_complete_and_on_its_plate() {
        for &sign in Sign::ALL {
            let face = face(sign);
            assert!(face.len() >= 2, "{sign} has too few marks");
            for mark in face {
                let bounds = mark.path.bounds();
                assert!(bounds.left() > -1.01 && bounds.right() < 1.01, "{sign}: {bounds:?}");
                assert!(bounds.top() > -1.01 && bounds.bottom() < 1.01, "{sign}: {bounds:?}");
            }
        }
    }
}
