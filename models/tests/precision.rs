//! Average precision of random boxes, held against what pycocotools says of them:
//! `models/training/tests/test_precision.py` draws them and asks.

#![cfg(feature = "shell")]

use isthmus_models::{Detection, MeanAveragePrecision, TrueBox};
use serde_json::Value;

const TOLERANCE: f64 = 1e-9;

#[test]
fn average_precision_is_cocos() {
    let cases: Vec<Value> =
        serde_json::from_str(include_str!("boxes/precision.json")).expect("cases");
    assert!(cases.len() >= 7);
    for case in cases {
        let mut precision = MeanAveragePrecision::default();
        for picture in case["pictures"].as_array().expect("pictures") {
            let found: Vec<Detection> =
                rows(&picture["found"]).map(|row| detection(&row)).collect();
            let truth: Vec<TrueBox> = rows(&picture["truth"]).map(|row| true_box(&row)).collect();
            precision.add(&found, &truth);
        }
        let name = &case["name"];
        let Some(summary) = precision.summary() else {
            assert_eq!(case["mean"], -1.0, "{name}");
            continue;
        };
        for (key, figure) in
            [("mean", summary.mean), ("at_50", summary.at_50), ("at_75", summary.at_75)]
        {
            let expected = case[key].as_f64().expect("a figure");
            assert!((figure - expected).abs() < TOLERANCE, "{name}: {key} {figure} {expected}");
        }
        for (class, expected) in case["classes"].as_array().expect("figures").iter().enumerate() {
            let figure = summary.classes.get(&(class as u16)).copied().unwrap_or(-1.0);
            let expected = expected.as_f64().expect("a figure");
            assert!((figure - expected).abs() < TOLERANCE, "{name}: {class} {figure} {expected}");
        }
    }
}

fn rows(value: &Value) -> impl Iterator<Item = Vec<f32>> {
    let numbers = |row: &Value| {
        let row = row.as_array().expect("a row");
        row.iter().map(|number| number.as_f64().expect("a number") as f32).collect()
    };
    value.as_array().expect("rows").iter().map(numbers)
}

fn detection(row: &[f32]) -> Detection {
    let &[class, confidence, x0, y0, x1, y1] = row else { panic!("six numbers, not {row:?}") };
    Detection { class: class as u16, confidence, x0, y0, x1, y1 }
}

fn true_box(row: &[f32]) -> TrueBox {
    let &[class, x0, y0, x1, y1, crowd] = row else { panic!("six numbers, not {row:?}") };
    TrueBox { class: class as u16, x0, y0, x1, y1, crowd: crowd > 0.0 }
}
