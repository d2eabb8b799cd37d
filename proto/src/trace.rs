//! Names under which both ends of a connection send a collector spans of the same frame.
//!
//! A frame says nothing of traces. The hello carries a seed and a threshold, and a frame's *ordinal*
//! on its connection is known at both ends: over QUIC the index of its stream, over gRPC its place
//! among the frames, from 1. From these follow trace id, span ids, and whether the frame
//! is sampled at all.
//!
//! Ids are W3C's: the trace id's last seven bytes are random, and a frame is sampled where they are
//! at least the threshold (W3C Trace Context level 2, consistent probability sampling).

use crate::wire;

/// Names the frames of one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceIds {
    seed: u64,
    threshold: u64,
}

/// Names the spans of one frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Id of the whole trace.
    pub trace_id: [u8; 16],
    /// Id of its root, the frame's span on the device.
    pub span_id: [u8; 8],
}

/// The parts of a frame's span: the first four are the device's, the rest the server's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// Waiting on the device.
    Wait,
    /// Preprocessing and the head.
    Head,
    /// Quantising and entropy coding, or compressing the picture.
    Encode,
    /// From handing the frame to the link until the reply, or until it was given up.
    Network,
    /// First to last byte at the server.
    Receive,
    /// Waiting on the server.
    Queue,
    /// Entropy decoding on the server, or decompressing the picture.
    Decode,
    /// The tail network, or the full one for a compressed picture.
    Tail,
}

/// One more than the greatest of seven bytes.
const RANDOM: u64 = 1 << 56;
/// 2^64 over the golden ratio, odd: the step of SplitMix64 (Steele, Lea and Flood 2014).
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl TraceIds {
    /// Names from `seed`, which has to be random and drawn for this connection alone, of the share
    /// `sampled` (0 to 1) of all frames.
    pub fn new(seed: u64, sampled: f64) -> Self {
        let threshold = ((1.0 - sampled.clamp(0.0, 1.0)) * RANDOM as f64) as u64;
        TraceIds { seed, threshold }
    }

    /// The names of the frame with this ordinal, if it is sampled.
    pub fn context(self, ordinal: u64) -> Option<TraceContext> {
        let low = mix(self.seed.wrapping_add(ordinal.wrapping_add(1).wrapping_mul(STEP)));
        let mut trace_id = [0; 16];
        // No id is all zeros: the first bytes are zero for the seed zero alone.
        trace_id[..8].copy_from_slice(&self.seed.max(1).to_be_bytes());
        trace_id[8..].copy_from_slice(&low.to_be_bytes());
        let span_id = to_span_id(low ^ STEP);
        (low % RANDOM >= self.threshold).then_some(TraceContext { trace_id, span_id })
    }
}

impl TraceContext {
    /// Id of the span of a part of the frame's.
    pub fn part(self, part: Part) -> [u8; 8] {
        let root = u64::from_be_bytes(self.span_id);
        to_span_id(root.wrapping_add((part as u64 + 1).wrapping_mul(STEP)))
    }
}

impl Part {
    /// What its span is called.
    pub const fn name(self) -> &'static str {
        match self {
            Part::Wait => "wait",
            Part::Head => "head",
            Part::Encode => "encode",
            Part::Network => "network",
            Part::Receive => "receive",
            Part::Queue => "queue",
            Part::Decode => "decode",
            Part::Tail => "tail",
        }
    }
}

impl From<wire::Tracing> for TraceIds {
    fn from(tracing: wire::Tracing) -> Self {
        let wire::Tracing { seed, threshold } = tracing;
        TraceIds { seed, threshold }
    }
}

impl From<TraceIds> for wire::Tracing {
    fn from(TraceIds { seed, threshold }: TraceIds) -> Self {
        wire::Tracing { seed, threshold }
    }
}

fn to_span_id(number: u64) -> [u8; 8] {
    // No id is all zeros.
    mix(number).max(1).to_be_bytes()
}

/// SplitMix64's output function: one number for each, well mixed.
fn mix(mut number: u64) -> u64 {
    number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn both_ends_name_a_frame_alike_and_no_two_frames() {
        let device = TraceIds::new(0x0123_4567_89ab_cdef, 1.0);
        let server = TraceIds::from(wire::Tracing::from(device));
        let mut ids = BTreeSet::new();
        for ordinal in (0..10_000).chain((0..10_000).map(|frame: u64| !frame)) {
            let context = device.context(ordinal).expect("all are sampled");
            assert_eq!(server.context(ordinal), Some(context));
            assert!(ids.insert(context.trace_id), "{ordinal}");
            let parts = [Part::Wait, Part::Head, Part::Network, Part::Receive, Part::Tail];
            let spans: BTreeSet<_> = parts.map(|part| context.part(part)).into();
            assert!(spans.len() == parts.len() && !spans.contains(&context.span_id));
        }
    }

    #[test]
    fn the_share_that_is_sampled_is_the_one_asked_for() {
        let sampled = |share| {
            let ids = TraceIds::new(7, share);
            (0..100_000).filter(|&ordinal| ids.context(ordinal).is_some()).count()
        };
        assert_eq!((sampled(0.0), sampled(1.0)), (0, 100_000));
        // Four standard deviations of a fair draw are 126 frames.
        assert!(sampled(0.01).abs_diff(1_000) < 130, "{}", sampled(0.01));
    }
}
