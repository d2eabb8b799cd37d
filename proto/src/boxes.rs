//! Boxes on the wire: twelve bytes each.
//!
//! | bytes | type | content |
//! |---|---|---|
//! | 2 | `u16` | class, the position in the decoder's labels |
//! | 2 | `u16` | confidence, in steps of 1/65,535 |
//! | 2 each | `u16` | left, top, right, bottom, in steps of 1/65,535 of the input's width or height |
//!
//! All are little-endian. A step is a hundredth of a pixel where the input is 640 wide.

/// Bytes of one box.
pub const BOX_BYTES: usize = 12;

/// An object in a picture.
///
/// ```
/// use isthmus_proto::boxes::{PackedBox, read_boxes, write_boxes};
/// let found = PackedBox { class: 2, confidence: 0.75, edges: [0.25, 0.5, 0.5, 1.0] };
/// let bytes = write_boxes([found]);
/// let read = read_boxes(&bytes)?;
/// assert_eq!((bytes.len(), read[0].class), (12, 2));
/// assert!((read[0].edges[0] - 0.25).abs() < 1e-5);
/// # Ok::<(), isthmus_proto::boxes::BoxesError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PackedBox {
    /// Position in the decoder's labels.
    pub class: u16,
    /// 0 to 1.
    pub confidence: f32,
    /// Left, top, right and bottom edge, as fractions of the network's input, 0 to 1.
    pub edges: [f32; 4],
}

/// Why bytes are no boxes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BoxesError {
    /// A part of a box.
    #[error("{0} bytes of boxes; expected {BOX_BYTES} a box")]
    Length(usize),
    /// A box whose right edge is left of its left one, or whose bottom is above its top.
    #[error("box {0} has its edges in the wrong order")]
    Edges(usize),
}

/// The bytes of boxes. What lies outside 0 to 1 is brought to it, and what is no number to 0.
pub fn write_boxes(boxes: impl IntoIterator<Item = PackedBox>) -> Vec<u8> {
    let values = boxes.into_iter().flat_map(|PackedBox { class, confidence, edges }| {
        let [left, top, right, bottom] = edges.map(step);
        [class, step(confidence), left, top, right, bottom]
    });
    values.flat_map(u16::to_le_bytes).collect()
}

/// The boxes that bytes hold, in their order.
pub fn read_boxes(bytes: &[u8]) -> Result<Vec<PackedBox>, BoxesError> {
    if !bytes.len().is_multiple_of(BOX_BYTES) {
        return Err(BoxesError::Length(bytes.len()));
    }
    let read = |(at, bytes): (usize, &[u8])| {
        let value = |at: usize| u16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]);
        let edges = [value(2), value(3), value(4), value(5)];
        if edges[2] < edges[0] || edges[3] < edges[1] {
            return Err(BoxesError::Edges(at));
        }
        Ok(PackedBox {
            class: value(0),
            confidence: fraction(value(1)),
            edges: edges.map(fraction),
        })
    };
    bytes.chunks_exact(BOX_BYTES).enumerate().map(read).collect()
}

/// A NaN is 0: a conversion of floats to integers saturates.
fn step(fraction: f32) -> u16 {
    (f64::from(fraction) * f64::from(u16::MAX)).round() as u16
}

fn fraction(step: u16) -> f32 {
    (f64::from(step) / f64::from(u16::MAX)) as f32
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn boxes_come_back_within_half_a_step(
            class in 0u16.., confidence in 0f32..=1.0, corner in (0f32..=1.0, 0f32..=1.0), size in (0f32..=1.0, 0f32..=1.0)
        ) {
            let edges = [corner.0, corner.1, corner.0.max(size.0), corner.1.max(size.1)];
            let read = read_boxes(&write_boxes([PackedBox { class, confidence, edges }])).expect("ours");
            prop_assert_eq!((read.len(), read[0].class), (1, class));
            let close = |a: f32, b: f32| (a - b).abs() <= 0.51 / 65_535.0;
            prop_assert!(close(read[0].confidence, confidence));
            prop_assert!(read[0].edges.iter().zip(edges).all(|(&a, b)| close(a, b)));
        }

        #[test]
        fn any_bytes_are_boxes_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(boxes) = read_boxes(&bytes) {
                prop_assert_eq!(write_boxes(boxes), bytes);
            }
        }
    }

    #[test]
    fn what_lies_outside_is_brought_in() {
        let odd =
            PackedBox { class: 0, confidence: f32::NAN, edges: [-1.0, 0.0, 2.0, f32::INFINITY] };
        let read = read_boxes(&write_boxes([odd])).expect("ours");
        assert_eq!((read[0].confidence, read[0].edges), (0.0, [0.0, 0.0, 1.0, 1.0]));
        assert_eq!(read_boxes(&[0; 13]), Err(BoxesError::Length(13)));
        let reversed = [0, 0, 0, 0, 9, 0, 0, 0, 3, 0, 0, 0];
        assert_eq!(read_boxes(&reversed), Err(BoxesError::Edges(0)));
    }
}
