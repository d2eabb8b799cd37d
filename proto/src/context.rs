//! Contexts of the entropy coder: which of a channel's tables codes the next symbol, chosen from the
//! symbols before it.
//!
//! Symbols are coded channel by channel and row by row. What is known of a place's surroundings is
//! the deviation from the zero point, `d = q − zp`, of
//!
//! - its neighbours left, above, above left and above right in the same channel, and
//! - the same place in every channel before it.
//!
//! Outside the grid a deviation is 0. A channel's weights make of them one number, the
//! *prediction* `Σ w · d`; and their *activity* is the sum of `|d|` left, above and above right and
//! in the four channels before. Thresholds divide the two into bins, and the pair of bins is the
//! context (context modelling as of CALIC, Wu and Memon, 1997, with a linear predictor). All of it
//! is whole numbers that cannot overflow, so that any two machines find the same context.

pub(crate) mod fit;

/// Bins of the prediction.
const PREDICTION_BINS: usize = 8;
/// Bins of the activity.
const ACTIVITY_BINS: usize = 3;
/// Contexts, and so tables, of a channel.
pub(crate) const CONTEXTS: usize = PREDICTION_BINS * ACTIVITY_BINS;
/// Channels before a place's own whose activity counts.
const ACTIVE_CHANNELS: usize = 4;
/// Neighbours in the same channel that the prediction sees.
const NEIGHBOURS: usize = 4;

/// How a channel's contexts are found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ChannelContext {
    /// Weights of the neighbours left, above, above left and above right.
    pub(crate) neighbours: [i8; NEIGHBOURS],
    /// Weights of the same place in each channel before.
    pub(crate) before: Vec<i8>,
    /// Least prediction of each bin but the first; not decreasing.
    pub(crate) prediction: [i32; PREDICTION_BINS - 1],
    /// Least activity of each bin but the first; not decreasing.
    pub(crate) activity: [i32; ACTIVITY_BINS - 1],
}

impl ChannelContext {
    /// Bytes that the parameters of channel `channel` take: weights as `i8`, then thresholds as
    /// little-endian `i32`, in the order of the fields.
    pub(crate) const fn len(channel: usize) -> usize {
        NEIGHBOURS + channel + 4 * (PREDICTION_BINS - 1 + ACTIVITY_BINS - 1)
    }

    /// Reads [`ChannelContext::len`] bytes; `None` if there are not as many or thresholds decrease.
    pub(crate) fn from_bytes(channel: usize, bytes: &[u8]) -> Option<ChannelContext> {
        let (neighbours, rest) = bytes.split_first_chunk::<NEIGHBOURS>()?;
        let (before, thresholds) = rest.split_at_checked(channel)?;
        let mut thresholds =
            thresholds.chunks_exact(4).map(|it| i32::from_le_bytes([it[0], it[1], it[2], it[3]]));
        let mut prediction = [0; PREDICTION_BINS - 1];
        let mut activity = [0; ACTIVITY_BINS - 1];
        for threshold in prediction.iter_mut().chain(&mut activity) {
            *threshold = thresholds.next()?;
        }
        let before = before.iter().map(|&weight| weight as i8).collect();
        let neighbours = neighbours.map(|weight| weight as i8);
        (prediction.is_sorted() && activity.is_sorted()).then_some(ChannelContext {
            neighbours,
            before,
            prediction,
            activity,
        })
    }

    /// What [`ChannelContext::from_bytes`] reads.
    fn to_bytes(&self) -> Vec<u8> {
        let weights = self.neighbours.iter().chain(&self.before).map(|&weight| weight as u8);
        let thresholds = self.prediction.iter().chain(&self.activity);
        weights.chain(thresholds.flat_map(|threshold| threshold.to_le_bytes())).collect()
    }

    #[inline]
    fn bin(&self, prediction: i32, activity: i32) -> usize {
        let reached = |least: &[i32], value: i32| -> usize {
            least.iter().map(|&least| usize::from(value >= least)).sum()
        };
        reached(&self.prediction, prediction) * ACTIVITY_BINS + reached(&self.activity, activity)
    }
}

/// The deviations coded so far, on planes with a margin of zeros above and on both sides.
pub(crate) struct Surroundings {
    width: usize,
    /// Places from one row of a plane to the next.
    stride: usize,
    /// Places of a plane with its margin.
    plane: usize,
    deviations: Vec<i32>,
    /// What the channels before contribute to prediction and activity in each place of the last
    /// plane.
    prediction: Vec<i32>,
    activity: Vec<i32>,
}

impl Surroundings {
    /// Nothing coded yet on a grid of `height × width`; `channels` may follow.
    pub(crate) fn new(height: usize, width: usize, channels: usize) -> Surroundings {
        let stride = width + 2;
        let plane = (height + 1) * stride;
        Surroundings {
            width,
            stride,
            plane,
            deviations: Vec::with_capacity(plane * channels),
            prediction: vec![0; plane],
            activity: vec![0; plane],
        }
    }

    /// Starts the next channel.
    pub(crate) fn begin(&mut self, context: &ChannelContext) {
        self.prediction.fill(0);
        self.activity.fill(0);
        let before = self.deviations.chunks_exact(self.plane);
        let distance = before.len();
        for (at, (plane, &weight)) in before.zip(&context.before).enumerate() {
            let weight = i32::from(weight);
            for (sum, deviation) in self.prediction.iter_mut().zip(plane) {
                *sum += weight * deviation;
            }
            if distance - at <= ACTIVE_CHANNELS {
                for (sum, deviation) in self.activity.iter_mut().zip(plane) {
                    *sum += deviation.abs();
                }
            }
        }
        self.deviations.resize(self.deviations.len() + self.plane, 0);
    }

    /// Notes a symbol's deviation at `place` (row-major) of the channel that was begun last.
    #[inline]
    pub(crate) fn set(&mut self, place: usize, deviation: i32) {
        let at = self.deviations.len() - self.plane + self.position(place);
        self.deviations[at] = deviation;
    }

    /// The context of `place` (row-major): it depends on what was set before in coding order only.
    #[inline]
    pub(crate) fn context(&self, context: &ChannelContext, place: usize) -> usize {
        let (prediction, activity) = self.sums(context, place);
        context.bin(prediction, activity)
    }

    /// Prediction and activity of `place`.
    #[inline]
    fn sums(&self, context: &ChannelContext, place: usize) -> (i32, i32) {
        let at = self.position(place);
        let plane = &self.deviations[self.deviations.len() - self.plane..];
        let (left, above) = (plane[at - 1], plane[at - self.stride]);
        let (above_left, above_right) = (plane[at - self.stride - 1], plane[at - self.stride + 1]);
        let [w_left, w_above, w_above_left, w_above_right] = context.neighbours.map(i32::from);
        let prediction = self.prediction[at]
            + w_left * left
            + w_above * above
            + w_above_left * above_left
            + w_above_right * above_right;
        let activity = self.activity[at] + left.abs() + above.abs() + above_right.abs();
        (prediction, activity)
    }

    #[inline]
    fn position(&self, place: usize) -> usize {
        (place / self.width + 1) * self.stride + place % self.width + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Predicts with the left neighbour and twice the channel before.
    fn second() -> ChannelContext {
        ChannelContext {
            neighbours: [1, 0, 0, 0],
            before: vec![2],
            prediction: [-9, -5, -1, 1, 5, 9, 13],
            activity: [1, 10],
        }
    }

    #[test]
    fn contexts_follow_the_neighbours_and_the_channel_before() {
        let first = ChannelContext { before: vec![], ..second() };
        let mut surroundings = Surroundings::new(2, 3, 2);
        surroundings.begin(&first);
        for (place, deviation) in [0, 4, 0, 0, -5, 0].into_iter().enumerate() {
            surroundings.set(place, deviation);
        }
        surroundings.begin(&second());
        // Nothing around: the bin of a prediction of 0, without activity.
        assert_eq!(surroundings.context(&second(), 0), 3 * ACTIVITY_BINS);
        // Twice 4 from the channel before.
        assert_eq!(surroundings.context(&second(), 1), 5 * ACTIVITY_BINS + 1);
        surroundings.set(1, 7);
        assert_eq!(surroundings.context(&second(), 2), 5 * ACTIVITY_BINS + 1);
        // Below it: twice −5, and an activity of 5 there and of 7 above.
        assert_eq!(surroundings.context(&second(), 4), 2);
    }

    #[test]
    fn the_largest_sums_do_not_overflow() {
        let channels = usize::from(u16::MAX);
        let context = ChannelContext {
            neighbours: [i8::MIN; NEIGHBOURS],
            before: vec![i8::MIN; channels],
            prediction: [0; PREDICTION_BINS - 1],
            activity: [0; ACTIVITY_BINS - 1],
        };
        let mut surroundings = Surroundings::new(1, 1, 0);
        surroundings.deviations = vec![255; surroundings.plane * channels];
        surroundings.begin(&context);
        assert_eq!(surroundings.context(&context, 0), ACTIVITY_BINS - 1);
    }

    #[test]
    fn parameters_are_read_in_order_and_thresholds_checked() {
        let mut bytes = vec![1, 0, 0, 0, 2];
        for threshold in [-9i32, -5, -1, 1, 5, 9, 13, 1, 10] {
            bytes.extend(threshold.to_le_bytes());
        }
        assert_eq!(bytes.len(), ChannelContext::len(1));
        assert_eq!(ChannelContext::from_bytes(1, &bytes), Some(second()));
        assert_eq!(second().to_bytes(), bytes);
        assert_eq!(ChannelContext::from_bytes(1, &bytes[..bytes.len() - 1]), None);
        bytes[5..9].copy_from_slice(&100i32.to_le_bytes());
        assert_eq!(ChannelContext::from_bytes(1, &bytes), None);
    }
}
