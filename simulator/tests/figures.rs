//! The figures that do not hang on a clock, on a bundle so small that they are known beforehand.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use isthmus_fixtures::{finder, tiny};
use isthmus_models::{Bundle, OUTCOMES, Outcomes, RecordedPoint};
use isthmus_simulator::figures::{self, FIGURES, Format, Lab, TruthFile, rate_accuracy, recorder};
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

/// Pictures with objects and without, and what is in them.
fn boxed_pictures(greys: &[u8]) -> (TempDir, TruthFile) {
    let folder = TempDir::new().expect("a folder");
    let truth = finder::write_pictures(folder.path(), greys.iter().copied());
    let file = folder.path().join("truth.json");
    std::fs::write(&file, truth).expect("written");
    (folder, TruthFile { file, renamed: BTreeMap::new() })
}

fn detector(bundle: &Arc<Bundle>) -> (TempDir, Lab) {
    let greys: Vec<u8> =
        finder::GREYS.into_iter().cycle().take(210).chain([finder::EMPTY; 5]).collect();
    let (folder, truth) = boxed_pictures(&greys);
    let images = Some(folder.path().to_owned());
    (folder, lab(bundle, images, None).with_truth(truth))
}

#[test]
fn a_detector_s_figures_are_known_beforehand() {
    let (_dir, bundle) = finder::bundle();
    let (_pictures, lab) = detector(&bundle);
    let names = [
        "map_full",
        "map_best_point",
        "bytes_at_map_drop_1",
        "filter_recall",
        "filter_empty",
        "filter_saved_bytes",
        "parity_boxes",
        "full_top1",
        "parity_top1",
    ];
    let lines = measure(&lab, &names);
    let value = |name: &str| {
        let line = lines.iter().find(|line| line["name"] == name).expect("measured");
        line["value"].as_f64().unwrap_or_else(|| panic!("{line}"))
    };
    for name in ["map_full", "map_best_point", "filter_recall", "filter_empty", "parity_boxes"] {
        assert!(value(name) > 0.99, "{name}: {}", value(name));
    }
    let bytes = value("bytes_at_map_drop_1");
    assert!((20.0..=209.0).contains(&bytes), "{bytes}");
    let saved = value("filter_saved_bytes");
    assert!((0.01..0.05).contains(&saved), "{saved}");
    for name in ["full_top1", "parity_top1"] {
        let line = lines.iter().find(|line| line["name"] == name).expect("there");
        assert_eq!(line["value"], Value::Null);
        assert!(line["detail"].as_str().is_some_and(|it| it.contains("names no class")), "{line}");
    }
}

#[test]
fn figures_of_boxes_are_skipped_where_there_are_none() {
    let ((_dir, bundle), images) = (tiny::bundle(), images());
    let lab = lab(&bundle, Some(images.path().to_owned()), None);
    for line in measure(&lab, &["map_full", "bd_rate_map", "filter_recall", "parity_boxes"]) {
        assert_eq!(line["value"], Value::Null, "{line}");
        assert!(line["detail"].as_str().is_some_and(|it| it.contains("no boxes")), "{line}");
    }
}

#[test]
fn a_detector_s_rate_is_held_against_its_precision() {
    let (_dir, bundle) = finder::bundle();
    let (_pictures, lab) = detector(&bundle);
    let measured = rate_accuracy::measure(&lab, false).expect("measured");
    assert!(measured.full > 0.99 && measured.pictures == 215, "{measured:?}");
    let full = measured.full_boxes.expect("a detector");
    assert!(full.ap50 > 0.99 && full.f1 > 0.99, "{full:?}");
    let losses: Vec<f64> = measured.drops.iter().map(|drop| drop.points).collect();
    assert_eq!(losses, [1.0, 2.0]);
    assert!(measured.drops[0].ratio.is_some_and(|ratio| ratio > 0.0), "{:?}", measured.drops);
    let text = measured.text();
    assert!(text.contains("mAP %") && text.contains("s8/w100/c4/b6"), "{text}");
    let json = serde_json::to_value(&measured).expect("JSON");
    assert!(json["schemes"][0]["ap50"].is_number() && json["f1"].is_number(), "{json}");
    assert!(rate_accuracy::plot(&measured).contains("mAP (%)"));
}

#[test]
fn a_detector_s_record_gets_pictures_and_is_measured_anew_where_it_is_of_others() {
    let (dir, bundle) = finder::bundle();
    let greys: Vec<u8> = finder::GREYS.into_iter().cycle().take(12).collect();
    let (pictures, truth) = boxed_pictures(&greys);
    let image = "jpeg/8/q80".parse().expect("a picture");
    let engine = tiny::Lamp { tail: Duration::ZERO };
    let record = |bundle: &Arc<Bundle>, truth, version| {
        recorder::record_images(bundle, &engine, pictures.path(), truth, &[image], version)
    };
    assert!(record(&bundle, None, "0.1.1").is_err(), "without a truth");
    let schemes = record(&bundle, Some(&truth), "0.2.0").expect("recorded");
    assert_eq!((schemes.len(), schemes[0].quality), (1, 1.0));
    let read = || {
        let bundle = Arc::new(Bundle::open(dir.path()).expect("a bundle"));
        let outcomes = Outcomes::unpack(&bundle.read(OUTCOMES).expect("a record"));
        (bundle, outcomes.expect("rows"))
    };
    let (bundle, outcomes) = read();
    assert_eq!(outcomes.frames(), 12, "the record was of other pictures");
    let names: Vec<String> = outcomes.points().iter().map(|it| it.point.to_string()).collect();
    let expected = ["s8/w100/c2/b6", "s8/w100/c4/b6", "s8/w100/exit", "image/jpeg/8/q80", "full"];
    assert_eq!(names, expected);
    let sent = &outcomes.points()[1].frames[0];
    // A box of twelve bytes with its field's tag and length.
    assert_eq!((sent.quality, sent.reply), (1.0, 14));
    assert!((sent.confidence - 0.9).abs() < 1e-3);
    assert_eq!(bundle.points().len(), 2, "the manifest says what was measured");

    // Of the same pictures all else is kept.
    record(&bundle, Some(&truth), "0.3.0").expect("recorded");
    let (bundle, again) = read();
    assert_eq!((again, bundle.manifest().version.as_str()), (outcomes.clone(), "0.3.0"));
    assert!(matches!(outcomes.points()[2].point, RecordedPoint::Exit { .. }));
}
