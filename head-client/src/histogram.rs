//! Quantiles of many values in little memory.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Bits that a value keeps: buckets are at most 1/2048 of their value wide.
const KEPT: u32 = 11;

/// Counts non-negative integers in buckets whose width is at most 0.05% of their value, so that a
/// run of any length takes bounded memory.
///
/// ```
/// use isthmus_head_client::Histogram;
/// let mut latencies = Histogram::default();
/// (1..=1000).for_each(|micros| latencies.record(micros));
/// assert_eq!(latencies.quantile(0.5), Some(500));
/// assert_eq!(latencies.quantile(0.99), Some(990));
/// assert_eq!(Histogram::default().quantile(0.5), None);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Histogram {
    buckets: BTreeMap<u64, u64>,
    count: u64,
    sum: u128,
}

impl Histogram {
    /// Counts `value`.
    pub fn record(&mut self, value: u64) {
        // Clearing low bits names a bucket by its least value.
        let spare = (u64::BITS - value.leading_zeros()).saturating_sub(KEPT + 1);
        *self.buckets.entry(value >> spare << spare).or_default() += 1;
        self.count += 1;
        self.sum += u128::from(value);
    }

    /// Counts all that `other` counted.
    pub fn merge(&mut self, other: &Histogram) {
        for (&bucket, count) in &other.buckets {
            *self.buckets.entry(bucket).or_default() += count;
        }
        self.count += other.count;
        self.sum += other.sum;
    }

    /// Values counted.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Buckets that counted something, by their least value, and how much they counted.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        self.buckets.iter().map(|(&value, &count)| (value, count))
    }

    /// Sum of the values, exact.
    pub fn sum(&self) -> u128 {
        self.sum
    }

    /// Mean of the values, exact but for `f64`.
    pub fn mean(&self) -> Option<f64> {
        (self.count > 0).then(|| self.sum as f64 / self.count as f64)
    }

    /// The least value that at least the fraction `q` (0 to 1) of all values do not exceed, rounded
    /// down to its bucket.
    pub fn quantile(&self, q: f64) -> Option<u64> {
        let rank = ((q * self.count as f64).ceil() as u64).max(1);
        let mut seen = 0;
        self.buckets.iter().find_map(|(&value, count)| {
            seen += count;
            (seen >= rank).then_some(value)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn quantiles_are_within_a_thousandth(
            mut values in prop::collection::vec(0u64..1 << 40, 1..300),
            q in 0.0f64..=1.0,
        ) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|&value| histogram.record(value));
            values.sort_unstable();
            let rank = ((q * values.len() as f64).ceil() as usize).max(1);
            let (mut left, mut right) = (Histogram::default(), Histogram::default());
            values.iter().for_each(|&v| if v % 2 == 0 { left.record(v) } else { right.record(v) });
            left.merge(&right);
            prop_assert_eq!(&left, &histogram);
            let exact = values[rank - 1];
            let got = histogram.quantile(q).expect("values");
            prop_assert!(got <= exact && exact - got <= exact / 1000);
        }
    }
}
