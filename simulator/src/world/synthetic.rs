//! A record that nobody measured, for tests: its numbers stand for no network.

use std::fmt::Write;

use isthmus_models::Outcomes;

use crate::link::chance::Chance;
use crate::link::statistics::normal_cdf;

/// Outcomes of `frames` frames for two widths with four layers each and for three compressed pictures,
/// drawn from `seed`. A frame is more or less hard; what is sent buys more the harder it is.
pub fn outcomes(frames: usize, seed: u64) -> Outcomes {
    let text = csv(frames, seed);
    Outcomes::parse(&text).unwrap_or_else(|error| unreachable!("our own rows: {error}"))
}

/// The same as text.
pub fn csv(frames: usize, seed: u64) -> String {
    let mut chance = Chance::new(seed, 0x73_79_6e);
    let mut text = String::from("frame,label,point,bytes,right,confidence\n");
    for frame in 0..frames {
        let label = (chance.uniform() * 10.0) as u32;
        let hardness = chance.normal();
        let draw = chance.uniform();
        let size = (0.12 * chance.normal()).exp();
        let mut row = |point: &str, bytes: f64, skill: f64, noise: f64| {
            let p = normal_cdf(skill - hardness);
            let right = u8::from(draw < p);
            let confidence = (0.1 + 0.9 * normal_cdf(skill - hardness + noise)).clamp(0.0, 1.0);
            // Writing to a string cannot fail.
            let _ = writeln!(
                text,
                "{frame},{label},{point},{},{right},{confidence:.4}",
                bytes.round() as u32
            );
        };
        for (image, bytes, skill) in [
            ("jpeg/160/q30", 2_900.0, 2.4),
            ("webp/120/q20", 1_100.0, 1.2),
            ("webp/160/q35", 2_200.0, 2.6),
        ] {
            row(&format!("image/{image}"), bytes * size, skill, 0.0);
        }
        for (width, lift) in [("w50", 0.0), ("w100", 0.25)] {
            row(&format!("s16/{width}/exit"), 0.0, 0.5 + lift, 0.3 * (draw - 0.5));
            for (channels, bytes, skill) in
                [(4, 260.0, 1.0), (8, 480.0, 1.5), (16, 860.0, 1.9), (24, 1_250.0, 2.05)]
            {
                let point = format!("s16/{width}/c{channels}/b6");
                row(&point, bytes * size, skill + lift / 2.0, 0.0);
            }
        }
    }
    text
}
