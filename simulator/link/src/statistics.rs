//! The statistics that models and figures share, so that each word has one meaning.

/// The standard normal's distribution function, within 7.5e-8 (Abramowitz and Stegun, 26.2.17).
pub fn normal_cdf(x: f64) -> f64 {
    // A more exact one would move packets by a microsecond, and with them every recorded result.
    let t = 1.0 / (1.0 + 0.231_641_9 * x.abs());
    let tail = t
        * (0.319_381_530
            + t * (-0.356_563_782
                + t * (1.781_477_937 + t * (-1.821_255_978 + t * 1.330_274_429))));
    let upper = (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt() * tail;
    if x >= 0.0 { 1.0 - upper } else { upper }
}

/// The least of `values` that a fraction `q` of them does not exceed (nearest rank); 0 of none.
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (q * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0.0)
}

/// The quantile of one half; of an even number of values the lower of the middle two.
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_normal_s_distribution_is_that_of_the_tables() {
        for (x, phi) in [(0.0, 0.5), (1.0, 0.841_345), (-1.959_964, 0.025), (3.0, 0.998_650)] {
            assert!((normal_cdf(x) - phi).abs() < 1e-6, "{x}");
        }
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let values = [4.0, 1.0, 3.0, 2.0];
        let quantiles = [0.0, 0.25, 0.26, 0.5, 0.99, 1.0].map(|q| quantile(&values, q));
        assert_eq!(quantiles, [1.0, 1.0, 2.0, 2.0, 4.0, 4.0]);
        assert_eq!(median(&[5.0, 9.0, 7.0]), 7.0);
        assert_eq!(median(&[]), 0.0);
    }
}
