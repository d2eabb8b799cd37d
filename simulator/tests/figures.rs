//! The figures that do not hang on a clock, on a bundle so small that they are known beforehand.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use isthmus_fixtures::tiny;
use isthmus_models::Bundle;
use isthmus_simulator::figures::{self, FIGURES, Format, Lab};
use serde_json::Value;
use tempfile::TempDir;

fn lab(bundle: &Arc<Bundle>, images: Option<PathBuf>, limit: Option<usize>) -> Lab {
    Lab::new(Arc::clone(bundle), Arc::new(tiny::Lamp { tail: Duration::ZERO }), images, limit)
}

/// Three pictures of each class.
fn images() -> TempDir {
    let images = TempDir::new().expect("a temporary folder");
    for (label, grey) in tiny::LABELS.iter().zip([32u8, 96, 160, 224]) {
        let folder = images.path().join(label);
        std::fs::create_dir(&folder).expect("folder");
        for number in 0..3 {
            let path = folder.join(format!("{number}.png"));
            image::GrayImage::from_pixel(16, 12, image::Luma([grey])).save(path).expect("saved");
        }
    }
    images
}

/// The lines of the named figures.
fn measure(lab: &Lab, names: &[&str]) -> Vec<Value> {
    let figures: Vec<_> = FIGURES.iter().filter(|figure| names.contains(&figure.name)).collect();
    assert_eq!(figures.len(), names.len());
    let mut out = Vec::new();
    figures::print(&figures, lab, Format::Json, &mut out).expect("all measured");
    let lines = String::from_utf8(out).expect("text");
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn the_wire_changes_nothing_and_the_coder_is_near_its_bound() {
    let ((_dir, bundle), images) = (tiny::bundle(), images());
    let names = ["parity_top1", "parity_logit_max", "codec_over_entropy"];
    let lines = measure(&lab(&bundle, Some(images.path().to_owned()), None), &names);
    assert_eq!(lines[0]["name"], "parity_top1");
    assert_eq!(lines[0]["value"], 1.0);
    assert_eq!(lines[1]["value"], 0.0);
    assert!(lines[1]["detail"].as_str().is_some_and(|detail| detail.contains("12 of 12")));
    // Both layers of the tiny bundle: 256 symbols of 6 bits are 192 bytes.
    let ratio = lines[2]["value"].as_f64().expect("a ratio");
    assert!((0.99..=193.0 / 192.0).contains(&ratio), "{ratio}");
}

#[test]
fn a_network_pays_nothing_beside_itself() {
    let ((_dir, bundle), images) = (tiny::bundle(), images());
    let lab = lab(&bundle, Some(images.path().to_owned()), None);
    let lab = lab.with_dedicated(vec![bundle.dir().to_owned()]);
    let lines = measure(&lab, &["slimmable_penalty"]);
    assert_eq!(lines[0]["value"], 0.0, "{}", lines[0]);
    let detail = lines[0]["detail"].as_str().expect("a detail");
    assert!(detail.contains("1.0000, dedicated 1.0000"), "{detail}");
}

#[test]
fn what_the_bundle_or_the_pictures_cannot_tell_is_null_with_its_reason() {
    let (_dir, bundle) = tiny::bundle();
    let names = ["export_symbol_mismatch", "export_top1", "best_point_top1", "best_point_bytes"];
    for line in measure(&lab(&bundle, None, None), &names) {
        assert_eq!(line["value"], Value::Null, "{line}");
        let reason = line["detail"].as_str().expect("a reason");
        assert!(reason.contains("goldens") || reason.contains("--images"), "{reason}");
    }
}

#[test]
fn bytes_are_counted_as_sent() {
    let ((_dir, bundle), images) = (tiny::bundle(), images());
    let lab = lab(&bundle, Some(images.path().to_owned()), Some(10));
    let line = &measure(&lab, &["best_point_bytes"])[0];
    // 192 bytes of symbols, 5 of envelope, and 3 + 2 · (2 + 2) of header.
    let bytes = line["value"].as_f64().expect("bytes");
    assert!((207.0..=209.0).contains(&bytes), "{bytes}");
    assert!(line["detail"].as_str().is_some_and(|detail| detail.contains("10 pictures")), "{line}");
}
