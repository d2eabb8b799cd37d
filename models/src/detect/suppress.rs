//! Greedy suppression of boxes that overlap a better one.

use super::Detection;

/// Keeps of `boxes`, best first, each that overlaps no kept one of its class (of any class, if
/// `agnostic`) by an intersection over union above `iou`; at most `limit`, in their order.
pub(super) fn suppress(
    boxes: Vec<Detection>,
    iou: f32,
    agnostic: bool,
    limit: usize,
) -> Vec<Detection> {
    let mut kept: Vec<Detection> = Vec::new();
    for found in boxes {
        if kept.len() == limit {
            break;
        }
        let covers = |better: &Detection| {
            (agnostic || better.class == found.class) && better.iou(&found) > iou
        };
        if !kept.iter().any(covers) {
            kept.push(found);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn detections() -> impl Strategy<Value = Vec<Detection>> {
        let found = (0u16..3, 0.01f32..1.0, 0f32..90.0, 0f32..90.0, 0.1f32..30.0, 0.1f32..30.0);
        let found = found.prop_map(|(class, confidence, x0, y0, width, height)| Detection {
            class,
            confidence,
            x0,
            y0,
            x1: x0 + width,
            y1: y0 + height,
        });
        proptest::collection::vec(found, 0..60).prop_map(|mut boxes| {
            boxes.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
            boxes
        })
    }

    proptest! {
        #[test]
        fn what_is_kept_does_not_overlap_and_stays(
            boxes in detections(), iou in 0f32..1.0, agnostic: bool, limit in 1usize..40,
        ) {
            let kept = suppress(boxes.clone(), iou, agnostic, limit);
            prop_assert!(kept.len() <= limit);
            for (at, one) in kept.iter().enumerate() {
                prop_assert!(boxes.contains(one));
                for other in &kept[at + 1..] {
                    let apart = !agnostic && one.class != other.class;
                    prop_assert!(apart || one.iou(other) <= iou);
                    prop_assert!(one.confidence >= other.confidence);
                }
            }
            // What went overlaps something better that stayed, or came when all places were taken.
            if kept.len() < limit {
                for gone in boxes.iter().filter(|found| !kept.contains(found)) {
                    let covers = |better: &Detection| {
                        better.confidence >= gone.confidence && better.iou(gone) > iou
                    };
                    prop_assert!(kept.iter().any(covers), "nothing covers {gone:?}");
                }
            }
            prop_assert_eq!(suppress(kept.clone(), iou, agnostic, limit), kept);
        }
    }
}
