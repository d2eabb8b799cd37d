//! A detector over real sockets: boxes come back in the source's pixels, are held against the truth, drawn,
//! and frames without anything in them are not sent.

#![cfg(feature = "shell")]

use std::collections::BTreeMap;
use std::fs;
use std::future::pending;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use isthmus_fixtures::{ends, finder, tiny};
use isthmus_head_client::config::{MEASURED_CONFIDENCE, Transport};
use isthmus_head_client::source::{self, BoxedSource};
use isthmus_head_client::{
    Client, Controller, Filter, Filtered, Fixed, FrameReport, ImageRun, Run, Summary, drawn,
};
use isthmus_models::{Bundle, ImageSpec, OUTCOMES, Outcomes};
use isthmus_proto::ImageFormat;
use serde_json::{Value, json};
use tempfile::TempDir;

fn labels() -> Vec<String> {
    finder::LABELS.map(String::from).to_vec()
}

/// Pictures of these greys and their truth.
fn pictures(greys: &[u8]) -> TempDir {
    let folder = TempDir::new().expect("a folder");
    let truth = finder::write_pictures(folder.path(), greys.iter().copied());
    fs::write(folder.path().join("truth.json"), truth).expect("written");
    folder
}

fn open(folder: &Path, renamed: &[(&str, &str)]) -> BoxedSource {
    let renamed: BTreeMap<String, String> =
        renamed.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect();
    let truth = folder.join("truth.json");
    source::open_with_boxes(folder, &labels(), &truth, &renamed).expect("pictures")
}

async fn run(client: Client, source: BoxedSource) -> (Vec<FrameReport>, Summary) {
    let mut reports = Vec::new();
    let sink = |report: &FrameReport| {
        reports.push(report.clone());
        ControlFlow::Continue(())
    };
    let summary = client.run(source, pending(), sink).await.expect("threads");
    (reports, summary)
}

fn filtered(bundle: &Bundle) -> Box<dyn Controller> {
    let outcomes = Outcomes::unpack(&bundle.read(OUTCOMES).expect("a record")).expect("rows");
    let filter = Filter::of_outcomes(bundle, Some(&outcomes), 0.99).expect("a filter");
    Box::new(Filtered::new(filter, Box::new(Fixed::new(tiny::POINT))))
}

#[tokio::test]
async fn boxes_come_back_in_the_source_s_pixels_and_are_held_against_the_truth() {
    let (_dir, bundle) = finder::bundle();
    let folder = pictures(&finder::GREYS);
    let drawings = TempDir::new().expect("a folder");
    let server = ends::server(&bundle, Duration::ZERO).await;
    let image = ImageSpec { format: ImageFormat::Jpeg, side: 8, quality: 90 };
    for transport in [Transport::Quic, Transport::Grpc] {
        let image = Run::Image(ImageRun { image, exit: None });
        for (arm, sent) in [("split", tiny::POINT.into()), ("image", image)] {
            let mut config = ends::config(&server, transport);
            config.min_confidence = Some(MEASURED_CONFIDENCE);
            config.keep_pictures = true;
            let client = ends::client_with(config, &bundle, Box::new(Fixed::new(sent))).await;
            let source = open(folder.path(), &[]);
            let (reports, summary) = run(client.expect("connected"), source).await;
            assert_eq!((reports.len(), summary.quality), (4, Some(1.0)), "{summary:?}");
            assert!(summary.map.is_some_and(|map| map > 0.99), "{summary:?}");
            assert!(summary.ap50.is_some_and(|ap50| ap50 > 0.99), "{summary:?}");
            for (report, grey) in reports.iter().zip(finder::GREYS) {
                let line = serde_json::to_value(report).expect("JSON");
                assert_eq!((&line["arm"], &line["quality"]), (&json!(arm), &json!(1.0)), "{line}");
                let truth = finder::truth(grey)[0];
                let found = line["detections"].as_array().expect("boxes");
                assert_eq!(found.len(), 2, "the unsure one was asked for, too: {line}");
                assert_eq!(found[0]["label"], finder::LABELS[usize::from(truth.class)]);
                let width = f64::from(truth.x1 - truth.x0);
                let expected = [truth.x0.into(), truth.y0.into(), width, 8.0];
                let shown = found[0]["box"].as_array().expect("four numbers");
                for (value, expected) in shown.iter().zip(expected) {
                    let value = value.as_f64().expect("a number");
                    assert!((value - expected).abs() < 0.1, "{line} {expected}");
                }
                drawn::annotate(report, &labels(), drawings.path()).expect("drawn");
            }
        }
    }
    assert!(drawings.path().join("000003.jpg").is_file());
    server.shutdown().await;
}

#[tokio::test]
async fn classes_that_nobody_looked_for_are_neither_right_nor_wrong() {
    let (_dir, bundle) = finder::bundle();
    let folder = pictures(&finder::GREYS);
    let server = ends::server(&bundle, Duration::ZERO).await;
    let client = ends::client(ends::config(&server, Transport::Quic), &bundle).await;
    let source = open(folder.path(), &[("bus", "")]);
    let (reports, summary) = run(client.expect("connected"), source).await;
    let qualities: Vec<_> = reports.iter().map(|report| report.quality).collect();
    assert_eq!(qualities, [Some(1.0); 4], "two are empty of cars, and buses do not count");
    assert!(summary.map.is_some_and(|map| map > 0.99), "{summary:?}");
    server.shutdown().await;
}

#[tokio::test]
async fn frames_without_anything_in_them_are_filtered_and_cost_nothing() {
    let (_dir, bundle) = finder::bundle();
    let folder = pictures(&[finder::EMPTY, 90, finder::EMPTY, 243]);
    let server = ends::server(&bundle, Duration::ZERO).await;
    let config = ends::config(&server, Transport::Quic);
    let client = ends::client_with(config, &bundle, filtered(&bundle)).await.expect("connected");
    let (reports, summary) = run(client, open(folder.path(), &[])).await;
    let lines: Vec<Value> =
        reports.iter().map(|report| serde_json::to_value(report).expect("JSON")).collect();
    for (line, empty) in lines.iter().zip([true, false, true, false]) {
        let (arm, reason) = if empty { ("exit", "filtered") } else { ("split", "fixed") };
        assert_eq!((&line["arm"], &line["reason"]), (&json!(arm), &json!(reason)), "{line}");
        assert_eq!((line["bytes"].is_null(), &line["quality"]), (empty, &json!(1.0)), "{line}");
        assert_eq!(line["detections"].as_array().map(Vec::len), Some(usize::from(!empty)));
    }
    assert_eq!((summary.sent, summary.quality), (2, Some(1.0)));
    let counters = server.shutdown().await;
    assert_eq!(counters.arrived, 2);
}
