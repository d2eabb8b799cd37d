//! Finds contexts for a coder: weights of the prediction by least squares, and thresholds that divide
//! the places of typical pictures evenly.

use super::{ACTIVITY_BINS, CONTEXTS, ChannelContext, NEIGHBOURS, PREDICTION_BINS, Surroundings};

/// How the contexts of a channel are found, and what was met in each of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FittedContexts {
    /// What [`FrequencyTables::with_contexts`](crate::FrequencyTables::with_contexts) reads before a
    /// channel's frequencies.
    pub parameters: Vec<u8>,
    /// How often each symbol was met in each context, `[24][2^bits]`.
    pub counts: Vec<Vec<u64>>,
}

/// Contexts for channels of these zero points and symbols `[C, height, width]` of `2^bits` kinds.
pub(crate) fn fit(
    bits: u8,
    zero_points: &[i32],
    [height, width]: [usize; 2],
    pictures: &[&[u8]],
) -> Vec<FittedContexts> {
    let plane = height * width;
    let mut before = Before::default();
    let surroundings = || Surroundings::new(height, width, zero_points.len());
    let mut known: Vec<Surroundings> = pictures.iter().map(|_| surroundings()).collect();
    let mut fitted = Vec::with_capacity(zero_points.len());
    for (channel, &zero_point) in zero_points.iter().enumerate() {
        let symbols = || pictures.iter().map(|it| &it[channel * plane..][..plane]);
        let values = centred(symbols().flatten().map(|&symbol| f64::from(symbol)).collect());
        let weights = before.predict(&neighbours(&values, height, width), values);
        let mut context = context(&weights);
        for (surroundings, symbols) in known.iter_mut().zip(symbols()) {
            surroundings.begin(&context);
            for (place, &symbol) in symbols.iter().enumerate() {
                surroundings.set(place, i32::from(symbol) - zero_point);
            }
        }
        let sums: Vec<(i32, i32)> =
            known.iter().flat_map(|it| (0..plane).map(|place| it.sums(&context, place))).collect();
        context.prediction = thresholds(sums.iter().map(|&(prediction, _)| prediction));
        context.activity = thresholds(sums.iter().map(|&(_, activity)| activity));
        let mut counts = vec![vec![0; 1 << bits]; CONTEXTS];
        for (&(prediction, activity), &symbol) in sums.iter().zip(symbols().flatten()) {
            counts[context.bin(prediction, activity)][usize::from(symbol)] += 1;
        }
        fitted.push(FittedContexts { parameters: context.to_bytes(), counts });
    }
    fitted
}

/// The values less their mean: thresholds know what a prediction is without it.
fn centred(mut values: Vec<f64>) -> Vec<f64> {
    let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
    values.iter_mut().for_each(|value| *value -= mean);
    values
}

/// What is left, above, above left and above right of each place of planes that follow each other;
/// outside a plane it is 0.
fn neighbours(planes: &[f64], height: usize, width: usize) -> [Vec<f64>; NEIGHBOURS] {
    [(0, -1), (-1, 0), (-1, -1), (-1, 1)].map(|(down, right)| {
        let at = |place: usize| {
            let (picture, place) = (place / (height * width), place % (height * width));
            let row = (place / width).checked_add_signed(down)?;
            let column = (place % width).checked_add_signed(right).filter(|&it| it < width)?;
            planes.get((picture * height + row) * width + column)
        };
        (0..planes.len()).map(|place| at(place).copied().unwrap_or(0.0)).collect()
    })
}

/// Weights of the neighbours, and of the channels before, for a channel.
struct Weights {
    neighbours: [f64; NEIGHBOURS],
    before: Vec<f64>,
}

/// The channels before one, and the Cholesky factor of their products with each other. One is added
/// to each one's with itself, so that channels that say the same share their weight.
#[derive(Default)]
struct Before {
    channels: Vec<Vec<f64>>,
    /// By rows, of growing length.
    factor: Vec<Vec<f64>>,
}

impl Before {
    /// The least squares prediction of the next channel, which is one of those before from then on.
    ///
    /// With the products `A` of the channels before, `B` of those with the neighbours and `N` of
    /// the neighbours, it solves `[A B; Bᵀ N] · w = [t; s]` over the Schur complement of `A`, of
    /// which the factor `L` is known.
    fn predict(&mut self, around: &[Vec<f64>; NEIGHBOURS], channel: Vec<f64>) -> Weights {
        let target = self.forward(self.products(&channel));
        let sides = around.each_ref().map(|it| self.forward(self.products(it)));
        let mut matrix = [[0.0; NEIGHBOURS]; NEIGHBOURS];
        let mut right = [0.0; NEIGHBOURS];
        for (i, (one, side)) in around.iter().zip(&sides).enumerate() {
            for (j, (other, other_side)) in around.iter().zip(&sides).enumerate() {
                matrix[i][j] = dot(one, other) - dot(side, other_side);
            }
            matrix[i][i] += 1.0;
            right[i] = dot(one, &channel) - dot(side, &target);
        }
        let neighbours = solve(matrix, right);
        let mut rest = target.clone();
        for (side, weight) in sides.iter().zip(neighbours) {
            rest.iter_mut().zip(side).for_each(|(to, value)| *to -= weight * value);
        }
        let before = self.backward(rest);
        let own = dot(&channel, &channel) + 1.0 - dot(&target, &target);
        let mut row = target;
        row.push(own.max(1e-9).sqrt());
        self.factor.push(row);
        self.channels.push(channel);
        Weights { neighbours, before }
    }

    fn products(&self, channel: &[f64]) -> Vec<f64> {
        self.channels.iter().map(|other| dot(other, channel)).collect()
    }

    /// `L⁻¹ · values`.
    fn forward(&self, mut values: Vec<f64>) -> Vec<f64> {
        for (at, row) in self.factor.iter().enumerate() {
            values[at] = (values[at] - dot(&row[..at], &values[..at])) / row[at];
        }
        values
    }

    /// `L⁻ᵀ · values`.
    fn backward(&self, mut values: Vec<f64>) -> Vec<f64> {
        for (at, row) in self.factor.iter().enumerate().rev() {
            values[at] /= row[at];
            let value = values[at];
            values[..at].iter_mut().zip(row).for_each(|(to, factor)| *to -= factor * value);
        }
        values
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    // Sums of their own: a processor adds several at once.
    let mut sums = [0.0; 8];
    let (left, right) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f64 = left.remainder().iter().zip(right.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in left.zip(right) {
        for (sum, (a, b)) in sums.iter_mut().zip(a.iter().zip(b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// Solves a positive definite system by elimination.
fn solve(
    mut matrix: [[f64; NEIGHBOURS]; NEIGHBOURS],
    mut right: [f64; NEIGHBOURS],
) -> [f64; NEIGHBOURS] {
    for at in 0..NEIGHBOURS {
        let pivot = matrix[at];
        for row in at + 1..NEIGHBOURS {
            let times = matrix[row][at] / pivot[at];
            matrix[row].iter_mut().zip(pivot).for_each(|(to, value)| *to -= times * value);
            right[row] -= times * right[at];
        }
    }
    for at in (0..NEIGHBOURS).rev() {
        let known: f64 = (at + 1..NEIGHBOURS).map(|it| matrix[at][it] * right[it]).sum();
        right[at] = (right[at] - known) / matrix[at][at];
    }
    right
}

/// The weights as whole numbers, the largest 127; thresholds are to follow.
fn context(weights: &Weights) -> ChannelContext {
    let all = weights.neighbours.iter().chain(&weights.before);
    let largest = all.fold(1e-9, |most: f64, weight| most.max(weight.abs()));
    // The cast saturates.
    let whole = |weight: f64| (weight * 127.0 / largest).round() as i8;
    ChannelContext {
        neighbours: weights.neighbours.map(whole),
        before: weights.before.iter().map(|&weight| whole(weight)).collect(),
        prediction: [0; PREDICTION_BINS - 1],
        activity: [0; ACTIVITY_BINS - 1],
    }
}

/// Values that divide others into `N + 1` parts of the same size.
fn thresholds<const N: usize>(values: impl Iterator<Item = i32>) -> [i32; N] {
    let mut sorted: Vec<i32> = values.collect();
    sorted.sort_unstable();
    let last = sorted.len().saturating_sub(1);
    let at = |part: usize| (part * last).div_ceil(N + 1);
    std::array::from_fn(|it| sorted.get(at(it + 1)).copied().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_those_of_least_squares() {
        // The third channel is twice the first less the second, and half its left neighbour.
        let noise =
            |seed: usize| move |at: usize| ((at * 7919 + seed * 104_729) % 23) as f64 - 11.0;
        let (first, second): (Vec<f64>, Vec<f64>) =
            ((0..400).map(noise(1)).collect(), (0..400).map(noise(2)).collect());
        let mut third = vec![0.0; 400];
        for at in 0..400 {
            let left = if at % 20 == 0 { 0.0 } else { third[at - 1] };
            third[at] = 2.0 * first[at] - second[at] + 0.5 * left;
        }
        let mut before = Before::default();
        for channel in [first, second] {
            before.predict(&neighbours(&channel, 20, 20), channel);
        }
        let around = neighbours(&third, 20, 20);
        let Weights { neighbours, before } = before.predict(&around, third);
        let close = |found: &[f64], expected: &[f64]| {
            found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 0.01)
        };
        assert!(close(&neighbours, &[0.5, 0.0, 0.0, 0.0]), "{neighbours:?}");
        assert!(close(&before, &[2.0, -1.0]), "{before:?}");
    }

    #[test]
    fn neighbours_end_where_a_picture_does() {
        let planes: Vec<f64> = (1..=8).map(f64::from).collect();
        let [left, above, above_left, above_right] = neighbours(&planes, 2, 2);
        assert_eq!(left, [0.0, 1.0, 0.0, 3.0, 0.0, 5.0, 0.0, 7.0]);
        assert_eq!(above, [0.0, 0.0, 1.0, 2.0, 0.0, 0.0, 5.0, 6.0]);
        assert_eq!(above_left, [0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 5.0]);
        assert_eq!(above_right, [0.0, 0.0, 2.0, 0.0, 0.0, 0.0, 6.0, 0.0]);
    }

    #[test]
    fn thresholds_are_quantiles() {
        assert_eq!(thresholds::<2>((0..=9).rev()), [3, 6]);
        assert_eq!(thresholds::<7>([5].into_iter()), [5; 7]);
        assert_eq!(thresholds::<2>([].into_iter()), [0; 2]);
    }
}
