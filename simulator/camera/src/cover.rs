//! What hides parts of a sign.

use super::dice::Dice;
use super::facet::Facet;
use super::light::Facing;
use super::view::Place;

/// What stands before some signs: leaves, a post or a parked van.
pub(super) fn cover(dice: &mut Dice, centre: Place, half: f32) -> Vec<Facet> {
    let [x, y, z] = centre;
    match dice.below(0, 100) {
        0..20 => {
            let angle = dice.between(-3.4, 0.5);
            let away = half * dice.between(0.7, 1.4);
            let middle = [x + away * angle.cos(), y - away * angle.sin()];
            let leaf = dice.pick([[0.14, 0.32, 0.09], [0.24, 0.38, 0.12], [0.42, 0.34, 0.10]]);
            let (reach, rise) = (2.0 * angle.cos().signum(), dice.between(0.3, 1.6));
            let twig = [[0.0, -0.015], [reach, rise], [reach, rise + 0.05], [0.0, 0.015]]
                .map(|[across, up]| [middle[0] + across, middle[1] + up, z - 0.2]);
            let mut leaves = vec![Facet {
                points: twig.to_vec(),
                colour: [0.2, 0.15, 0.1],
                facing: Facing::Front,
                opacity: 1.0,
            }];
            for _ in 0..dice.below(8, 28) {
                let place = [
                    middle[0] + half * dice.between(-0.8, 0.8),
                    middle[1] + half * dice.between(-0.7, 0.7),
                    z - dice.between(0.15, 0.3),
                ];
                let radii = [half * dice.between(0.08, 0.28), half * dice.between(0.06, 0.2)];
                let shade = dice.between(0.6, 1.3);
                leaves.push(Facet::disc(place, radii, 7, leaf.map(|part: f32| part * shade)));
            }
            leaves
        }
        20..30 => {
            let middle = x + half * dice.between(-0.9, 0.9);
            let width = half * dice.between(0.1, 0.22);
            let near = z - dice.between(0.1, 1.0);
            let grey = dice.between(0.12, 0.5);
            vec![Facet::front([middle - width, middle + width], [0.0, 4.0], near, [grey; 3])]
        }
        30..38 => {
            let near = z - dice.between(0.6, 2.0);
            let edge = x + half * dice.between(-0.6, 0.9);
            let roof = y + half * dice.between(-0.6, 0.8);
            let paint = [dice.between(0.1, 0.9), dice.between(0.1, 0.9), dice.between(0.1, 0.9)];
            let far = edge + 1.9 * x.signum();
            let across = [edge.min(far), edge.max(far)];
            vec![
                Facet::front(across, [0.25, roof], near, paint),
                Facet::front(
                    [across[0] + 0.15, across[1] - 0.15],
                    [roof * 0.55, roof * 0.9],
                    near,
                    [0.12, 0.15, 0.2],
                ),
            ]
        }
        _ => Vec::new(),
    }
}
