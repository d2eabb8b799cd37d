//! The client and a real server over real sockets.

#![cfg(feature = "shell")]

use std::future::pending;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use isthmus_fixtures::{ends, tiny};
use isthmus_head_client::config::Transport;
use isthmus_head_client::source::{NoPicture, SourceFrame};
use isthmus_head_client::tls::Trust;
use isthmus_head_client::{
    Calibration, Client, Compute, ComputeError, Computed, ConnectError, Controller, DropCause,
    Fixed, FrameReport, Greedy, Here, ImageRun, Ladder, LadderRung, Mpc, MpcConfig, Pace, Run,
    RunError, Summary, Unconnected,
};
use isthmus_models::{Answer, Bundle, ImageSpec, Picture, Scores, image_formats};
use isthmus_proto::wire::Detail;
use isthmus_proto::{Coded, FrameId, ImageFormat, OperatingPoint};
use isthmus_tail_server::{Server, ServerConfig, TlsConfig};
use tokio::sync::Notify;

const NO_TIME: Duration = Duration::ZERO;

async fn run(
    client: Client,
    source: impl Iterator<Item = SourceFrame> + Send + 'static,
) -> (Vec<FrameReport>, Summary) {
    let mut reports = Vec::new();
    let summary = client
        .run(source, pending(), |report| {
            reports.push(report.clone());
            ControlFlow::Continue(())
        })
        .await
        .expect("threads");
    (reports, summary)
}

#[tokio::test]
async fn every_frame_is_answered_by_the_server_over_both_transports() {
    let (_dir, bundle) = tiny::bundle();
    let server = ends::server(&bundle, NO_TIME).await;
    for transport in [Transport::Quic, Transport::Grpc] {
        let mut config = ends::config(&server, transport);
        config.detail = Detail::Logits;
        let client = ends::client(config, &bundle).await.expect("connected");
        let (reports, summary) = run(client, ends::pictures(40)).await;
        assert_eq!(reports.len(), 40);
        for report in &reports {
            assert_eq!(
                (report.arm_name(), &report.label),
                (Some("split"), &report.truth),
                "{report:?}"
            );
            assert_eq!(report.logits().len(), 4);
            assert_eq!(
                (report.layers_used, report.channels, report.bits),
                (Some(2), Some(4), Some(6))
            );
            let stages = report.stages;
            let parts = [
                stages.head,
                stages.encode,
                stages.network,
                stages.queue,
                stages.decode,
                stages.tail,
            ];
            let sum: f64 = parts.into_iter().map(|part| part.expect("a stage")).sum();
            let whole = report.capture_to_output_ms.expect("answered");
            assert!((sum - whole).abs() < 1e-6, "{sum} against {whole}");
            assert!(stages.receive_span <= stages.network);
        }
        assert_eq!((summary.quality, summary.on_time), (Some(1.0), Some(1.0)));
        // 256 symbols of 6 bits in a uniform table, a header of at most 24 bytes.
        let bytes = summary.bytes.p50.expect("sent");
        assert!((192..=192 + 2 + 24).contains(&bytes), "{bytes}");
    }
    let counters = server.shutdown().await;
    assert_eq!((counters.arrived, counters.answered), (80, 80));
}

/// Sends pictures of 8 pixels a side, with the head's exit as a fallback or without.
fn pictures_as(format: ImageFormat, exit: bool) -> Box<Fixed> {
    let image = ImageSpec { format, side: 8, quality: 80 };
    Box::new(Fixed::new(Run::Image(ImageRun { image, exit: exit.then_some((0, 0)) })))
}

#[tokio::test]
async fn compressed_pictures_are_answered_by_the_full_network_over_both_transports() {
    let (_dir, bundle) = tiny::bundle();
    let server = ends::server(&bundle, NO_TIME).await;
    let formats: Vec<ImageFormat> = image_formats().collect();
    for transport in [Transport::Quic, Transport::Grpc] {
        for (format, exit) in formats.iter().copied().zip([false, true].into_iter().cycle()) {
            let mut config = ends::config(&server, transport);
            config.detail = Detail::Logits;
            let controller = pictures_as(format, exit);
            let client = ends::client_with(config, &bundle, controller).await.expect("connected");
            let (reports, summary) = run(client, ends::pictures(12)).await;
            let name = format!("{}/8/q80", format.name());
            for report in &reports {
                assert_eq!((report.arm_name(), &report.label), (Some("image"), &report.truth));
                assert_eq!((report.image.as_ref(), report.layers_used), (Some(&name), None));
                assert_eq!(report.split.is_some(), exit, "{report:?}");
                assert_eq!(report.logits().len(), 4);
                let stages = report.stages;
                assert_eq!(stages.head.is_some(), exit);
                let server = [stages.network, stages.queue, stages.decode, stages.tail];
                let parts = server.map(|part| part.expect("a stage"));
                let device = stages.head.unwrap_or(0.0) + stages.encode.expect("compressed");
                let whole = report.capture_to_output_ms.expect("answered");
                assert!((parts.iter().sum::<f64>() + device - whole).abs() < 1e-6);
            }
            assert_eq!(summary.answered.get("image"), Some(&12));
            assert_eq!((summary.quality, summary.on_time), (Some(1.0), Some(1.0)));
            assert!(summary.bytes.p50.is_some_and(|bytes| bytes > 40));
        }
    }
    // The same server goes on with features.
    let client = ends::client(ends::config(&server, Transport::Quic), &bundle).await;
    let (_, summary) = run(client.expect("connected"), ends::pictures(4)).await;
    assert_eq!(summary.answered.get("split"), Some(&4));
    let counters = server.shutdown().await;
    let frames = 2 * 12 * formats.len() as u64 + 4;
    assert_eq!((counters.arrived, counters.answered), (frames, frames));
}

#[tokio::test]
async fn the_full_network_answers_on_the_device_where_it_was_loaded() {
    let (_dir, bundle) = tiny::bundle();
    let server = ends::server(&bundle, NO_TIME).await;
    for loaded in [true, false] {
        let config = ends::config(&server, Transport::Quic);
        let controller = Box::new(Fixed::new(Run::Local));
        let client = ends::client_with(config, &bundle, controller).await.expect("connected");
        let client = if loaded { client.with_full(tiny::full(&bundle)) } else { client };
        let (reports, summary) = run(client, ends::pictures(8)).await;
        for report in &reports {
            let expected = if loaded { (Some("local"), "fixed") } else { (None, "head failed") };
            assert_eq!((report.arm_name(), report.reason.as_str()), expected, "{report:?}");
            assert_eq!((report.bytes, report.label.is_some()), (None, loaded));
        }
        assert_eq!(summary.quality, loaded.then_some(1.0));
    }
    let counters = server.shutdown().await;
    assert_eq!(counters.arrived, 0);
}

/// One layer or both, whose sizes are about those that the tiny bundle gives, and its exit, which
/// names the same class for all pictures.
fn ladder() -> Arc<Ladder> {
    let exit = Calibration { upper: vec![1.0], fraction: vec![1.0], quality: vec![0.25] };
    let rung = |layers, bytes, quality| LadderRung {
        run: OperatingPoint { layers, ..tiny::POINT }.into(),
        bytes,
        quality: vec![quality],
        macs: 1,
    };
    let rungs = vec![rung(1, 110.0, 0.5), rung(2, 210.0, 1.0)];
    Arc::new(Ladder::new(rungs, [((0, 0), exit)].into()).expect("a ladder"))
}

#[tokio::test]
async fn controllers_that_adapt_climb_to_all_layers_over_both_transports() {
    let (_dir, bundle) = tiny::bundle();
    let server = ends::server(&bundle, NO_TIME).await;
    for transport in [Transport::Quic, Transport::Grpc] {
        let controllers: [(&str, Box<dyn Controller>); 2] = [
            ("greedy", Box::new(Greedy::new(ladder()))),
            ("mpc", Box::new(Mpc::new(MpcConfig::default(), ladder()))),
        ];
        for (name, controller) in controllers {
            let config = ends::config(&server, transport);
            let client = ends::client_with(config, &bundle, controller).await.expect("connected");
            let (reports, summary) = run(client, ends::pictures(60)).await;
            assert_eq!(summary.on_time, Some(1.0), "{name}: {summary:?}");
            for report in &reports {
                assert!(report.label.is_some() && report.reason != "fixed", "{name}: {report:?}");
                if report.layers_used == Some(2) {
                    assert_eq!(report.label, report.truth, "{name}: {report:?}");
                }
            }
            let whole = |report: &&FrameReport| report.layers_used == Some(2);
            let late = reports[30..].iter().filter(whole).count();
            assert!(late >= 20, "{name} over {transport:?} sent both layers {late} times of 30");
        }
    }
}

#[tokio::test]
async fn without_the_server_s_answer_a_picture_has_the_exit_s_or_none() {
    let (_dir, bundle) = tiny::bundle();
    // Too small for any picture.
    let config = ServerConfig::new("unused".into(), TlsConfig::InMemory);
    let config = ServerConfig { max_frame_bytes: 64, ..config };
    let server = ends::serve(vec![ends::model(&bundle, NO_TIME)], config).await;
    for (exit, arm, reason) in [(true, Some("exit"), "too large"), (false, None, "no exit")] {
        let config = ends::config(&server, Transport::Quic);
        let controller = pictures_as(ImageFormat::Jpeg, exit);
        let client = ends::client_with(config, &bundle, controller).await.expect("connected");
        let (reports, summary) = run(client, ends::pictures(3)).await;
        for report in &reports {
            assert_eq!((report.arm_name(), report.reason.as_str()), (arm, reason), "{report:?}");
        }
        assert_eq!(summary.fallbacks.values().sum::<u64>(), 3);
    }
}

#[tokio::test]
async fn frame_numbers_beyond_sixteen_bits_are_told_apart() {
    let (_dir, bundle) = tiny::bundle();
    let server = ends::server(&bundle, NO_TIME).await;
    for transport in [Transport::Quic, Transport::Grpc] {
        // Unreadable frames count, and cost next to nothing.
        let skipped = (0..65_530u32).map(|number| SourceFrame {
            source: number.to_string(),
            truth: None,
            picture: Err(NoPicture::Bad("skipped".into())),
        });
        let client =
            ends::client(ends::config(&server, transport), &bundle).await.expect("connected");
        let (reports, summary) = run(client, skipped.chain(ends::pictures(12))).await;
        assert_eq!(reports.last().map(|report| report.frame), Some(65_541));
        assert_eq!((summary.bad_pictures, summary.quality), (65_530, Some(1.0)));
    }
}

#[tokio::test]
async fn a_server_that_is_too_slow_leaves_the_answer_to_the_exit_in_time() {
    let (_dir, bundle) = tiny::bundle();
    let tail = Duration::from_secs(3);
    let server = ends::server(&bundle, tail).await;
    for transport in [Transport::Quic, Transport::Grpc] {
        let mut config = ends::config(&server, transport);
        config.deadline = Duration::from_millis(100);
        let client = ends::client(config, &bundle).await.expect("connected");
        let start = Instant::now();
        let (reports, summary) = run(client, ends::pictures(3)).await;
        assert!(start.elapsed() < tail, "none waited for the server");
        for report in &reports {
            assert_eq!((report.arm_name(), report.label.as_deref()), (Some("exit"), Some("dark")));
            let late = ["deadline", "refused: expired"].contains(&report.reason.as_str());
            // On a busy machine a timer may be later than the guard before the deadline.
            let took = report.capture_to_output_ms.expect("answered");
            assert!(late && report.on_time == (took <= 100.0), "{report:?}");
        }
        assert_eq!(summary.answered.get("exit"), Some(&3));
    }
}

#[tokio::test]
async fn a_live_source_drops_what_it_must_and_counts_it() {
    let (_dir, bundle) = tiny::bundle();
    let server = ends::server(&bundle, NO_TIME).await;
    let mut config = ends::config(&server, Transport::Quic);
    (config.pace, config.rate, config.in_flight) = (Pace::Live, Some(2_000.0), 2);
    let client = ends::client(config, &bundle).await.expect("connected");
    let (reports, summary) = run(client, ends::pictures(1_000)).await;
    assert_eq!(reports.len(), 1_000);
    let answered: u64 = summary.answered.values().sum();
    let dropped: u64 = summary.dropped.values().sum();
    assert_eq!(answered + dropped, 1_000);
    assert!(answered > 0, "{summary:?}");
}

/// A server at a port (0 for a free one) whose certificate survives a restart.
async fn server_at(bundle: &Arc<Bundle>, port: u16, tls: &Path) -> Server {
    ends::serve(vec![ends::model(bundle, NO_TIME)], ends::server_config(port, tls)).await
}

#[tokio::test]
async fn a_server_that_goes_away_costs_answers_but_no_frame_and_is_found_again() {
    let (_dir, bundle) = tiny::bundle();
    for transport in [Transport::Quic, Transport::Grpc] {
        // Its certificate has to survive the restart.
        let tls = tempfile::tempdir().expect("temporary folder");
        let start = |port| server_at(&bundle, port, tls.path());
        let server = start(0).await;
        let mut config = ends::config(&server, transport);
        let port = config.server.port;
        (config.pace, config.rate) = (Pace::Live, Some(50.0));
        config.deadline = Duration::from_millis(200);
        let client = ends::client(config, &bundle).await.expect("connected");

        let restart = async {
            tokio::time::sleep(Duration::from_millis(400)).await;
            server.shutdown().await;
            tokio::time::sleep(Duration::from_millis(300)).await;
            start(port).await
        };
        // It ends when the server has answered again, or after a minute.
        let found = Notify::new();
        let mut reports: Vec<FrameReport> = Vec::new();
        let sink = |report: &FrameReport| {
            let down = reports.iter().any(|report| report.reason == "link down");
            if down && report.arm_name() == Some("split") {
                found.notify_one();
            }
            reports.push(report.clone());
            ControlFlow::Continue(())
        };
        let running = client.run(ends::pictures(3_000), found.notified(), sink);
        let (summary, server) = tokio::join!(running, restart);
        let summary = summary.expect("threads");
        assert!(reports.len() < 3_000, "not found again: {summary:?}");
        assert_eq!(reports.len() as u64, summary.frames);
        let mut numbers: Vec<_> = reports.iter().map(|report| report.frame).collect();
        numbers.sort_unstable();
        assert!(numbers.into_iter().eq(0..summary.frames), "every frame once");
        assert_eq!(summary.links_lost, 1, "{summary:?}");
        server.shutdown().await;
    }
}

#[tokio::test]
async fn stopping_ends_the_run_with_all_open_frames_reported() {
    let (_dir, bundle) = tiny::bundle();
    let server = ends::server(&bundle, NO_TIME).await;
    let client =
        ends::client(ends::config(&server, Transport::Quic), &bundle).await.expect("connected");
    let enough = Notify::new();
    let mut reports = 0;
    let sink = |_: &FrameReport| {
        reports += 1;
        if reports == 20 {
            enough.notify_one();
        }
        ControlFlow::Continue(())
    };
    let pictures = ends::pictures(10_000_000);
    let summary = client.run(pictures, enough.notified(), sink).await.expect("threads");
    assert_eq!(summary.frames, reports);
    assert_eq!(summary.answered.values().sum::<u64>(), reports);
    assert!((20..10_000_000).contains(&reports));
}

#[tokio::test]
async fn a_device_that_starts_without_its_server_answers_and_finds_it_later() {
    let (_dir, bundle) = tiny::bundle();
    for transport in [Transport::Quic, Transport::Grpc] {
        let tls = tempfile::tempdir().expect("temporary folder");
        let start = |port| server_at(&bundle, port, tls.path());
        let server = start(0).await;
        let mut config = ends::config(&server, transport);
        server.shutdown().await;
        let port = config.server.port;
        config.require_server = false;
        config.connect_timeout = Duration::from_secs(1);
        (config.pace, config.rate) = (Pace::Live, Some(50.0));
        config.deadline = Duration::from_millis(200);
        let client = ends::client(config, &bundle).await.expect("none is required");

        let later = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            start(port).await
        };
        let found = Notify::new();
        let mut arms: Vec<Option<&str>> = Vec::new();
        let sink = |report: &FrameReport| {
            if report.arm_name() == Some("split") {
                found.notify_one();
            }
            arms.push(report.arm_name());
            ControlFlow::Continue(())
        };
        let running = client.run(ends::pictures(3_000), found.notified(), sink);
        let (summary, server) = tokio::join!(running, later);
        let summary = summary.expect("threads");
        assert_eq!(arms.first(), Some(&Some("exit")), "{summary:?}");
        assert!(arms.contains(&Some("split")), "not found: {summary:?}");
        assert_eq!((summary.unconnected, summary.links_lost), (None, 0));
        server.shutdown().await;
    }
}

#[tokio::test]
async fn where_one_server_cannot_be_reached_the_next_one_answers() {
    let (_dir, bundle) = tiny::bundle();
    let server = ends::server(&bundle, NO_TIME).await;
    let mut config = ends::config(&server, Transport::Quic);
    config.further_servers = vec![ends::config(&server, Transport::Grpc).server];
    // Discard is never listened on here.
    (config.server.port, config.connect_timeout) = (9, Duration::from_millis(300));
    let Trust::Fingerprints(fingerprints) = &mut config.trust else { panic!("others") };
    fingerprints.insert(0, "00".repeat(32).parse().expect("hex"));
    let client = ends::client(config, &bundle).await.expect("connected to the second");
    let (reports, _) = run(client, ends::pictures(4)).await;
    assert!(reports.iter().all(|report| report.arm_name() == Some("split")));
}

#[tokio::test]
async fn without_a_server_in_the_whole_run_the_summary_says_why() {
    let (_dir, bundle) = tiny::bundle();
    let server = ends::server(&bundle, NO_TIME).await;
    let mut config = ends::config(&server, Transport::Grpc);
    config.require_server = false;
    config.trust = Trust::Fingerprints(vec!["00".repeat(32).parse().expect("hex")]);
    let client = ends::client(config, &bundle).await.expect("none is required");
    let (reports, summary) = run(client, ends::pictures(4)).await;
    assert!(reports.iter().all(|report| report.arm_name() == Some("exit")));
    assert_eq!(summary.unconnected, Some(Unconnected::Identity));
}

/// Panics at one frame, and otherwise does as the exit would.
struct Stumbles;

impl Compute for Stumbles {
    fn compute(&mut self, frame: FrameId, _: &Picture, _: Run) -> Result<Computed, ComputeError> {
        assert_ne!(frame, FrameId(2), "this frame");
        let scores = Scores { top: vec![(0, 0.9)], logits: Vec::new() };
        let exit = Here { answers: vec![Answer::Scores(scores)], confidence: 0.9 };
        let coded = Coded { stream: vec![0; 2], layer_ends: vec![1, 2] };
        let none = Duration::ZERO;
        Ok(Computed { exit: Some(exit), coded, head: none, encode: none })
    }
}

#[tokio::test]
async fn a_head_that_panics_costs_its_frame_and_no_other() {
    let (_dir, bundle) = tiny::bundle();
    let server = ends::server(&bundle, NO_TIME).await;
    let config = ends::config(&server, Transport::Grpc);
    let client = ends::client(config, &bundle).await.expect("connected");
    let (reports, summary) = run(client.with_compute(Box::new(Stumbles)), ends::pictures(5)).await;
    assert_eq!(reports.len(), 5);
    assert_eq!(summary.dropped, [(DropCause::HeadFailed, 1)].into());
}

#[tokio::test]
async fn a_source_that_panics_ends_the_run_as_a_failure() {
    let (_dir, bundle) = tiny::bundle();
    let server = ends::server(&bundle, NO_TIME).await;
    let config = ends::config(&server, Transport::Quic);
    let client = ends::client(config, &bundle).await.expect("connected");
    let source = ends::pictures(5).inspect(|frame| assert_ne!(frame.source, "grey:3", "broken"));
    let mut frames = 0;
    let count = |_: &FrameReport| {
        frames += 1;
        ControlFlow::Continue(())
    };
    let ran = client.run(source, pending(), count).await;
    assert!(matches!(&ran, Err(RunError::Source(why)) if why.contains("broken")), "{ran:?}");
    assert_eq!(frames, 3);
}

#[tokio::test]
async fn an_absent_server_and_a_wrong_one_are_told_apart() {
    let (_dir, bundle) = tiny::bundle();
    let server = ends::server(&bundle, NO_TIME).await;
    for transport in [Transport::Quic, Transport::Grpc] {
        let good = ends::config(&server, transport);

        let mut config = good.clone();
        config.trust = Trust::Fingerprints(vec!["00".repeat(32).parse().expect("hex")]);
        let error = ends::client(config, &bundle).await.err();
        assert!(matches!(error, Some(ConnectError::Identity { .. })), "{error:?}");
        let actual = server.fingerprint().to_string();
        assert!(error.is_some_and(|error| error.to_string().contains(&actual)));

        // Discard is never listened on here.
        let mut config = good.clone();
        (config.server.port, config.connect_timeout) = (9, Duration::from_millis(300));
        let error = ends::client(config, &bundle).await.err();
        assert!(matches!(error, Some(ConnectError::Unreachable { .. })), "{error:?}");

        let mut config = good;
        config.server.host = "no.such.name.invalid".into();
        let error = ends::client(config, &bundle).await.err();
        assert!(matches!(error, Some(ConnectError::Resolve { .. })), "{error:?}");
    }
}

#[tokio::test]
async fn a_certificate_authority_vouches_for_names_and_nothing_else() {
    let (_dir, bundle) = tiny::bundle();
    let tls = tempfile::tempdir().expect("temporary folder");
    let models = || vec![ends::model(&bundle, NO_TIME)];
    let trusted = ends::serve(models(), ends::server_config(0, tls.path())).await;
    let other = ends::server(&bundle, NO_TIME).await;
    for transport in [Transport::Quic, Transport::Grpc] {
        let trust = Trust::Authorities(tls.path().join("certificate.pem"));
        let mut config = ends::config(&trusted, transport);
        config.trust = trust.clone();
        ends::client(config, &bundle).await.expect("the authority's own certificate");

        let mut config = ends::config(&other, transport);
        config.trust = trust;
        let error = ends::client(config, &bundle).await.err();
        assert!(matches!(error, Some(ConnectError::Identity { .. })), "{error:?}");
    }
}

#[tokio::test]
async fn a_server_without_the_bundle_says_so() {
    let (_dir, bundle) = tiny::bundle();
    let tls = tempfile::tempdir().expect("temporary folder");
    let server = ends::serve(Vec::new(), ends::server_config(0, tls.path())).await;
    for transport in [Transport::Quic, Transport::Grpc] {
        let error = ends::client(ends::config(&server, transport), &bundle).await.err();
        assert!(matches!(error, Some(ConnectError::NotServed { .. })), "{error:?}");
    }
}
