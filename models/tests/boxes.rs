//! Random outputs of every layout, held against what the Python kit's reference makes of them
//! (`models/training/tests/test_boxes.py`), and outputs that no network would give.

#![cfg(feature = "shell")]

use isthmus_models::{BoxesDecoder, BoxesSpec, Detection};
use proptest::prelude::*;
use serde_json::Value;

const SIZE: (u32, u32) = (64, 48);
const CLASSES: u16 = 3;

/// Pixels, and scores: the reference computes in f64 and writes four digits.
const TOLERANCE: f32 = 2e-3;

struct Case {
    name: String,
    decoder: BoxesDecoder,
    outputs: Vec<Vec<f32>>,
    /// Class, score, corners.
    found: Vec<Vec<f32>>,
}

fn cases() -> Vec<Case> {
    let cases: Vec<Value> =
        serde_json::from_str(include_str!("boxes/decoded.json")).expect("cases");
    cases.iter().map(case).collect()
}

fn case(case: &Value) -> Case {
    let name = case["name"].as_str().expect("a name").to_owned();
    let spec: BoxesSpec = serde_json::from_value(case["spec"].clone()).expect(&name);
    let list = |value: &Value| value.as_array().expect("a list").clone();
    let shapes: Vec<(String, Vec<usize>)> = list(&case["outputs"])
        .iter()
        .map(|output| {
            let sides = list(&output["shape"]);
            let sides = sides.iter().map(|side| side.as_u64().expect("a side") as usize);
            (output["name"].as_str().expect("a name").to_owned(), sides.collect())
        })
        .collect();
    let shapes: Vec<(&str, &[usize])> =
        shapes.iter().map(|(name, shape)| (name.as_str(), shape.as_slice())).collect();
    let outputs = list(&case["outputs"]);
    Case {
        decoder: BoxesDecoder::new(&spec, &shapes, SIZE, CLASSES).expect(&name),
        outputs: outputs.iter().map(|output| numbers(&output["values"])).collect(),
        found: list(&case["found"]).iter().map(numbers).collect(),
        name,
    }
}

fn numbers(values: &Value) -> Vec<f32> {
    let values = values.as_array().expect("numbers");
    values.iter().map(|value| value.as_f64().expect("a number") as f32).collect()
}

fn views(outputs: &[Vec<f32>]) -> Vec<&[f32]> {
    outputs.iter().map(Vec::as_slice).collect()
}

fn row(found: &Detection) -> [f32; 6] {
    let Detection { class, confidence, x0, y0, x1, y1 } = *found;
    [f32::from(class), confidence, x0, y0, x1, y1]
}

#[test]
fn every_layout_gives_the_references_boxes() {
    let cases = cases();
    assert!(cases.len() >= 20);
    for Case { name, decoder, outputs, found: expected } in cases {
        let found = decoder.decode(&views(&outputs), None).expect(&name);
        assert_eq!(found.len(), expected.len(), "{name}");
        for (at, (found, expected)) in found.iter().zip(&expected).enumerate() {
            let near = row(found).iter().zip(expected).all(|(a, b)| (a - b).abs() < TOLERANCE);
            assert!(near, "{name}: {at}: {found:?} where {expected:?} is expected");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// A bundle's networks may give anything: boxes that mean nothing are errors or none, never a
    /// panic, and what is given keeps its promises.
    #[test]
    fn any_outputs_give_boxes_within_the_input_or_an_error(
        which in 0usize..20,
        strange in proptest::collection::vec((any::<usize>(), any::<f32>()), 0..40),
        threshold in proptest::option::of(0f32..=1.0),
    ) {
        let mut case = cases().swap_remove(which);
        let count: usize = case.outputs.iter().map(Vec::len).sum();
        for (at, value) in strange {
            let mut values = case.outputs.iter_mut().flatten();
            *values.nth(at % count).expect("within") = value;
        }
        let Ok(found) = case.decoder.decode(&views(&case.outputs), threshold) else { return Ok(()) };
        prop_assert!(found.len() <= 300);
        prop_assert!(found.is_sorted_by(|a, b| a.confidence >= b.confidence));
        for found in &found {
            prop_assert!(found.class < CLASSES);
            prop_assert!(found.confidence > 0.0 && found.confidence <= 1.0, "{found:?}");
            prop_assert!(found.confidence >= threshold.unwrap_or_default(), "{found:?}");
            prop_assert!(0.0 <= found.x0 && found.x0 < found.x1 && found.x1 <= 64.0, "{found:?}");
            prop_assert!(0.0 <= found.y0 && found.y0 < found.y1 && found.y1 <= 48.0, "{found:?}");
        }
        let again = case.decoder.decode(&views(&case.outputs), threshold);
        prop_assert_eq!(again, Ok(found));
    }
}
