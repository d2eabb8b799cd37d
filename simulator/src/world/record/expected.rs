//! How likely each answer is right about each frame, as far as it can be known.

use std::collections::BTreeMap;

use isthmus_head_client::{ImageRun, Ladder, Run};

use super::tables::Tables;

/// Expected qualities for every frame that can be drawn.
#[derive(Clone, Debug, Default)]
pub(super) struct Expected {
    pub(super) runs: BTreeMap<Run, Vec<f64>>,
    pub(super) exits: BTreeMap<(u8, u8), Vec<f64>>,
}

impl Expected {
    /// What the even frames say of each of `drawn` odd ones, at the confidence of its exit.
    pub(super) fn new(tables: &Tables, ladder: &Ladder, drawn: usize) -> Expected {
        let mut expected = Expected::default();
        for (at, rung) in ladder.rungs().iter().enumerate() {
            let Some(head) = rung.run.head() else {
                expected.runs.insert(rung.run, vec![ladder.quality(at, None); drawn]);
                continue;
            };
            let exits = &tables.exits[&head];
            let confidences = || exits.iter().skip(1).step_by(2).map(|exit| Some(exit.confidence));
            let quality = confidences().map(|confidence| ladder.quality(at, confidence));
            expected.runs.insert(rung.run, quality.collect());
            let quality = confidences().map(|confidence| ladder.exit_quality(at, confidence));
            expected.exits.insert(head, quality.collect());
        }
        // Without a head nothing is known of a picture when it is sent.
        for (&image, frames) in &tables.images {
            let even = frames.iter().step_by(2).map(|outcome| f64::from(outcome.quality));
            let fraction = even.sum::<f64>() / frames.len().div_ceil(2) as f64;
            let run = Run::Image(ImageRun { image, exit: None });
            expected.runs.insert(run, vec![fraction; drawn]);
        }
        expected
    }
}
