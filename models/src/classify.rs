//! Probabilities and the likeliest classes, from logits.

/// Probabilities (0..=1, summing to 1) of `logits`.
///
/// ```
/// let probabilities = isthmus_models::softmax(&[1000.0, 1000.0, -1000.0]);
/// assert_eq!(probabilities, [0.5, 0.5, 0.0]);
/// ```
pub fn softmax(logits: &[f32]) -> Vec<f32> {
    // Shifted by the greatest, no exponential overflows.
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exponentials: Vec<f32> = logits.iter().map(|logit| (logit - greatest).exp()).collect();
    let sum: f32 = exponentials.iter().sum();
    exponentials.into_iter().map(|exponential| exponential / sum).collect()
}

/// The `k` likeliest classes with their probabilities (0..=1), likeliest first; of equals the
/// lower class first.
///
/// ```
/// let top = isthmus_models::top_k(&[0.0, 5.0, 0.0], 2);
/// assert_eq!((top[0].0, top[1].0), (1, 0));
/// assert!(top[0].1 > 0.98);
/// ```
pub fn top_k(logits: &[f32], k: usize) -> Vec<(usize, f32)> {
    let mut ranked: Vec<(usize, f32)> = softmax(logits).into_iter().enumerate().collect();
    ranked.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    ranked.truncate(k);
    ranked
}

/// The likeliest class of `logits`, of equals the lower one; `None` of nothing.
pub fn likeliest(logits: &[f32]) -> Option<usize> {
    top_k(logits, 1).first().map(|best| best.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_classes_than_there_are_give_all_of_them() {
        assert_eq!(top_k(&[0.0, 1.0], 5).len(), 2);
        assert!(top_k(&[], 5).is_empty());
    }
}
