//! Eigenvectors of symmetric matrices: of a small one all, of a large one those of the largest values.

/// Matrices up to this size are solved whole.
const SMALL: usize = 160;
/// Vectors that are iterated beside those that are asked for, so that the last of these settle too.
const MORE: usize = 16;
/// Iterations at most; the spectrum of a picture's features falls steeply.
const ITERATIONS: usize = 24;
/// Sweeps of rotations at most; eight do for any matrix of this size.
const SWEEPS: usize = 16;

/// A symmetric matrix, by rows.
#[derive(Clone, Debug)]
pub(crate) struct Symmetric {
    pub(crate) size: usize,
    pub(crate) values: Vec<f64>,
}

/// Eigenvalues, falling, and their vectors of length 1, one after the other.
#[derive(Clone, Debug)]
pub(crate) struct Eigen {
    pub(crate) values: Vec<f64>,
    pub(crate) vectors: Vec<f64>,
}

impl Symmetric {
    /// The eigenvectors of the `count` largest values, or of all there are.
    pub(crate) fn leading(&self, count: usize) -> Eigen {
        let count = count.min(self.size);
        if self.size <= SMALL || count + MORE >= self.size {
            return self.clone().all().first(count, self.size);
        }
        let iterated = count + MORE;
        let mut vectors: Vec<f64> = (0..iterated * self.size).map(noise).collect();
        orthonormalise(&mut vectors, self.size);
        let mut sum = 0.0;
        for _ in 0..ITERATIONS {
            let mut next = self.times(&vectors);
            orthonormalise(&mut next, self.size);
            vectors = next;
            let images = self.times(&vectors);
            let rows = vectors.chunks_exact(self.size).zip(images.chunks_exact(self.size));
            let now: f64 = rows.map(|(a, b)| dot(a, b)).sum();
            let settled = (now - sum).abs() <= 1e-5 * now.abs();
            sum = now;
            if settled {
                break;
            }
        }
        // Within what they span, the vectors themselves.
        let images = self.times(&vectors);
        let image = |at: usize| &images[at * self.size..][..self.size];
        let vector = |at: usize| &vectors[at * self.size..][..self.size];
        let values = (0..iterated)
            .flat_map(|a| (0..iterated).map(move |b| dot(vector(a.min(b)), image(a.max(b)))))
            .collect();
        let small = Symmetric { size: iterated, values }.all();
        let mut turned = vec![0.0; iterated * self.size];
        for (to, weights) in
            turned.chunks_exact_mut(self.size).zip(small.vectors.chunks_exact(iterated))
        {
            for (at, &weight) in weights.iter().enumerate() {
                to.iter_mut().zip(vector(at)).for_each(|(to, from)| *to += weight * from);
            }
        }
        Eigen { values: small.values, vectors: turned }.first(count, self.size)
    }

    /// The image of each of the vectors.
    fn times(&self, vectors: &[f64]) -> Vec<f64> {
        let rows = || self.values.chunks_exact(self.size);
        vectors
            .chunks_exact(self.size)
            .flat_map(|vector| rows().map(move |row| dot(row, vector)))
            .collect()
    }

    /// All eigenvectors, by rotations that take away one value off the diagonal each (Jacobi's method).
    fn all(mut self) -> Eigen {
        let size = self.size;
        let mut vectors = vec![0.0; size * size];
        (0..size).for_each(|at| vectors[at * size + at] = 1.0);
        let norm: f64 = self.values.iter().map(|value| value * value).sum();
        for _ in 0..SWEEPS {
            let off: f64 = (0..size)
                .flat_map(|row| (0..row).map(move |column| (row, column)))
                .map(|(row, column)| self.values[row * size + column].powi(2))
                .sum();
            // A matrix with NaN ends here too.
            if off.partial_cmp(&(1e-22 * norm)) != Some(std::cmp::Ordering::Greater) {
                break;
            }
            for first in 0..size {
                for second in first + 1..size {
                    self.rotate(first, second, &mut vectors);
                }
            }
        }
        let diagonal: Vec<f64> = (0..size).map(|at| self.values[at * size + at]).collect();
        let mut order: Vec<usize> = (0..size).collect();
        order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]).then(a.cmp(&b)));
        Eigen {
            values: order.iter().map(|&at| diagonal[at]).collect(),
            vectors: order.iter().flat_map(|&at| &vectors[at * size..][..size]).copied().collect(),
        }
    }

    /// Turns two axes so that the value between them becomes zero.
    fn rotate(&mut self, first: usize, second: usize, vectors: &mut [f64]) {
        let size = self.size;
        let between = self.values[first * size + second];
        if between == 0.0 {
            return;
        }
        let [a, b] = [first, second].map(|at| self.values[at * size + at]);
        let theta = (b - a) / (2.0 * between);
        let tangent = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
        let cosine = 1.0 / (tangent * tangent + 1.0).sqrt();
        let sine = tangent * cosine;
        let turn = |x: &mut f64, y: &mut f64| {
            (*x, *y) = (cosine * *x - sine * *y, sine * *x + cosine * *y);
        };
        let rows = |values: &mut [f64]| {
            let (before, behind) = values.split_at_mut(second * size);
            let firsts = &mut before[first * size..][..size];
            firsts.iter_mut().zip(&mut behind[..size]).for_each(|(x, y)| turn(x, y));
        };
        rows(&mut self.values);
        rows(vectors);
        for row in self.values.chunks_exact_mut(size) {
            let (before, behind) = row.split_at_mut(second);
            turn(&mut before[first], &mut behind[0]);
        }
    }
}

impl Eigen {
    fn first(mut self, count: usize, size: usize) -> Eigen {
        self.values.truncate(count);
        self.vectors.truncate(count * size);
        self
    }
}

/// Makes vectors orthogonal and of length 1, one after the other; twice, against rounding.
fn orthonormalise(vectors: &mut [f64], size: usize) {
    for at in 0..vectors.len() / size {
        let (before, behind) = vectors.split_at_mut(at * size);
        let vector = &mut behind[..size];
        for _ in 0..2 {
            for other in before.chunks_exact(size) {
                let along = dot(other, vector);
                vector.iter_mut().zip(other).for_each(|(to, from)| *to -= along * from);
            }
        }
        let length = dot(vector, vector).sqrt();
        if length > 0.0 {
            vector.iter_mut().for_each(|value| *value /= length);
        }
    }
}

/// The scalar product, in lanes that a processor adds up side by side.
pub(crate) fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut lanes = [0.0; 8];
    let (eights, rest) = (a.chunks_exact(8).zip(b.chunks_exact(8)), a.len() / 8 * 8);
    for (a, b) in eights {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a * b;
        }
    }
    let rest: f64 = a[rest..].iter().zip(&b[rest..]).map(|(a, b)| a * b).sum();
    lanes.iter().sum::<f64>() + rest
}

/// Between −1 and 1, without a pattern.
fn noise(at: usize) -> f64 {
    let hash = (at as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let hash = (hash ^ (hash >> 29)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    (hash >> 11) as f64 / (1u64 << 52) as f64 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A matrix with these eigenvalues, turned at random.
    fn with_values(values: &[f64]) -> Symmetric {
        let size = values.len();
        let mut axes: Vec<f64> = (0..size * size).map(noise).collect();
        orthonormalise(&mut axes, size);
        let mut matrix = vec![0.0; size * size];
        for (axis, value) in axes.chunks_exact(size).zip(values) {
            for (row, &a) in axis.iter().enumerate() {
                for (column, &b) in axis.iter().enumerate() {
                    matrix[row * size + column] += value * a * b;
                }
            }
        }
        Symmetric { size, values: matrix }
    }

    #[track_caller]
    fn assert_eigen(matrix: &Symmetric, expected: &[f64], count: usize, tolerance: f64) {
        let Eigen { values, vectors } = matrix.leading(count);
        assert_eq!((values.len(), vectors.len()), (count, count * matrix.size));
        let images = matrix.times(&vectors);
        for (at, (value, expected)) in values.iter().zip(expected).enumerate() {
            assert!((value - expected).abs() < tolerance, "{at}: {value}, {expected}");
            let [vector, image] =
                [&vectors, &images].map(|it| &it[at * matrix.size..][..matrix.size]);
            let off = image.iter().zip(vector).map(|(image, it)| (image - value * it).abs());
            assert!(off.fold(0.0, f64::max) < tolerance.sqrt(), "{at}");
        }
    }

    #[test]
    fn a_matrix_of_two_is_solved_by_hand() {
        let Eigen { values, vectors } =
            Symmetric { size: 2, values: vec![2.0, 1.0, 1.0, 2.0] }.leading(2);
        assert!((values[0] - 3.0).abs() < 1e-12 && (values[1] - 1.0).abs() < 1e-12);
        assert!((vectors[0] - vectors[1]).abs() < 1e-12 && (vectors[2] + vectors[3]).abs() < 1e-12);
    }

    #[test]
    fn the_leading_vectors_of_a_large_matrix_are_found() {
        let values: Vec<f64> = (0..SMALL + 60).map(|at| 0.9f64.powi(at as i32)).collect();
        assert_eigen(&with_values(&values), &values, 24, 1e-6);
    }

    #[test]
    fn what_is_no_number_ends() {
        let nothing = Symmetric { size: 3, values: vec![f64::NAN; 9] }.leading(3);
        assert_eq!(nothing.values.len(), 3);
        assert_eq!(Symmetric { size: 0, values: vec![] }.leading(3).values.len(), 0);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_spectrum_is_found(mut values in prop::collection::vec(0.0f64..10.0, 1..40)) {
            let matrix = with_values(&values);
            values.sort_by(|a, b| b.total_cmp(a));
            assert_eigen(&matrix, &values, values.len(), 1e-9);
        }
    }
}
