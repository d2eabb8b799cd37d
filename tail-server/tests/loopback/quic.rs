//! Frames over QUIC.

use std::time::{Duration, Instant};

use isthmus_proto::ImageFormat;
use isthmus_proto::framer::write_message;
use isthmus_proto::wire::{Reason, reply, to_server};
use isthmus_tail_server::code;
use isthmus_tail_server::counters::Cause;
use quinn::ConnectionError;

use crate::device::{
    DIGEST, LAYER_BYTES, LONG, PANIC, SLOW, UNDECODABLE, UNDERWAY, answer, bad_frames, frame,
    hello, image_frame, is_echo, picture, probe, read_reply, reason, start, to_server, underway,
};

#[tokio::test]
async fn a_frame_is_answered_with_durations() {
    let setup = start(Duration::from_millis(20), |_| {}).await;
    let device = setup.device().await;
    assert!(device.welcome.bundles[0].served);
    assert!(!device.welcome.bundles[1].served);
    let asked = Instant::now();
    let reply = device.ask(&frame(77, LONG, 200)).await;
    let took = asked.elapsed().as_micros() as u64;
    assert_eq!(reply.frame, 77);
    let answer = answer(&reply);
    assert_eq!((answer.top[0].class, answer.layers_used), (0, 3));
    assert_eq!(answer.top.len(), 5);
    assert_eq!(answer.logits.len(), 12);
    let feedback = reply.feedback.expect("durations");
    assert!(feedback.tail_us >= 20_000);
    assert_eq!(feedback.batch_size, 1);
    let server = feedback.receive_span_us + feedback.queue_us + feedback.decode_us;
    assert!(server + feedback.tail_us <= took);
    assert_eq!(setup.settled().await.answered, 1);
}

#[tokio::test]
async fn compressed_pictures_are_answered_and_batched_by_themselves() {
    let setup = start(SLOW, |_| {}).await;
    let device = setup.device().await;
    let (_first, mut first) = device.send(&frame(0, LONG, 1)).await;
    underway().await;
    let [jpeg, webp] = [ImageFormat::Jpeg, ImageFormat::Webp]
        .map(|format| image_frame(1, format, &picture(format, 8)));
    let mut streams = Vec::new();
    for bytes in [&jpeg, &webp, &frame(1, LONG, 7)] {
        streams.push(device.send(bytes).await);
    }
    answer(&read_reply(&mut first).await);
    let mut batches = Vec::new();
    for (_send, recv) in &mut streams {
        let reply = read_reply(recv).await;
        assert_eq!(answer(&reply).logits.len(), 12);
        batches.push((answer(&reply).logits[0], reply.feedback.expect("durations").batch_size));
    }
    let [(jpeg, 2), (webp, 2), (7.0, 1)] = batches[..] else { panic!("{batches:?}") };
    assert!(jpeg > 250.0 && webp > 250.0, "white is {jpeg} and {webp}");
}

#[tokio::test]
async fn a_probe_is_echoed_while_the_worker_is_busy() {
    let setup = start(SLOW, |_| {}).await;
    let device = setup.device().await;
    let (_first, mut first) = device.send(&frame(0, LONG, 1)).await;
    underway().await;
    let asked = Instant::now();
    let reply = device.ask(&probe(9, 3_000)).await;
    assert!(is_echo(&reply) && reply.frame == 9 && asked.elapsed() < SLOW / 2, "{reply:?}");
    answer(&read_reply(&mut first).await);
    let counters = setup.settled().await;
    assert_eq!((counters.answered, counters.echoed), (1, 1));
}

#[tokio::test]
async fn layers_that_came_in_time_are_used_when_the_rest_does_not() {
    let setup = start(Duration::ZERO, |_| {}).await;
    let device = setup.device().await;
    let frame = frame(1, Duration::from_secs(1), 200);
    let cut = frame.len() - LAYER_BYTES;
    let asked = Instant::now();
    let (_open, mut recv) = device.send(&frame[..cut]).await;
    let reply = read_reply(&mut recv).await;
    assert_eq!(answer(&reply).layers_used, 2);
    // The missing layer is at its prior mean.
    assert_eq!(answer(&reply).logits[8..], [0.0; 4]);
    assert!(asked.elapsed() >= Duration::from_millis(500));
}

#[tokio::test]
async fn a_frame_without_a_whole_layer_expires() {
    let setup = start(Duration::ZERO, |_| {}).await;
    let device = setup.device().await;
    let frame = frame(1, Duration::from_millis(50), 200);
    let (_open, mut recv) = device.send(&frame[..frame.len() - 10]).await;
    assert_eq!(reason(&read_reply(&mut recv).await), Reason::Expired);
    let counters = setup.settled().await;
    assert_eq!(counters.refused.get(&Reason::Expired), Some(&1));
}

#[tokio::test]
async fn a_stream_that_ends_or_is_reset_early_yields_its_whole_layers() {
    let setup = start(Duration::ZERO, |_| {}).await;
    let device = setup.device().await;
    let frame = frame(1, LONG, 200);
    let reply = device.ask(&frame[..frame.len() - 1]).await;
    assert_eq!(answer(&reply).layers_used, 2);

    let (mut send, mut recv) = device.send(&frame[..frame.len() - LAYER_BYTES - 1]).await;
    // A reset discards what the server has not read yet.
    underway().await;
    send.reset(code::DONE.into()).expect("open");
    assert_eq!(answer(&read_reply(&mut recv).await).layers_used, 1);
}

#[tokio::test]
async fn a_cancelled_frame_never_runs() {
    let setup = start(SLOW, |_| {}).await;
    let device = setup.device().await;
    let (mut first, mut reply) = device.send(&frame(1, LONG, 1)).await;
    first.finish().expect("open");
    underway().await;
    // The worker is busy; this one waits, until it is not wanted any more.
    let (mut send, mut recv) = device.send(&frame(2, LONG, PANIC)).await;
    underway().await;
    recv.stop(code::DONE.into()).expect("open");
    send.reset(code::DONE.into()).expect("open");
    answer(&read_reply(&mut reply).await);
    let counters = setup.settled().await;
    assert_eq!((counters.arrived, counters.answered), (2, 1));
    assert_eq!(counters.dropped.get(&Cause::Cancelled), Some(&1));
}

#[tokio::test]
async fn a_frame_expires_in_the_queue() {
    let setup = start(SLOW, |_| {}).await;
    let device = setup.device().await;
    let (_first, mut reply) = device.send(&frame(1, LONG, 1)).await;
    underway().await;
    let asked = Instant::now();
    let late = device.ask(&frame(2, Duration::from_millis(20), PANIC)).await;
    assert_eq!(reason(&late), Reason::Expired);
    assert!(asked.elapsed() < SLOW - UNDERWAY, "it was told late");
    answer(&read_reply(&mut reply).await);
    assert_eq!(setup.settled().await.dropped.get(&Cause::Expired), Some(&1));
}

#[tokio::test]
async fn frames_that_come_while_the_worker_is_busy_share_a_batch() {
    let setup = start(SLOW, |_| {}).await;
    let device = setup.device().await;
    let (_first, mut first) = device.send(&frame(0, LONG, 1)).await;
    underway().await;
    let mut streams = Vec::new();
    for id in 1..5 {
        streams.push(device.send(&frame(id, LONG, 100 + id as u8)).await);
    }
    let reply = read_reply(&mut first).await;
    assert_eq!(reply.feedback.expect("durations").batch_size, 1);
    for (id, (_send, recv)) in (1..5).zip(&mut streams) {
        let reply = read_reply(recv).await;
        assert_eq!(answer(&reply).logits[0], 100.0 + id as f32, "an answer to another frame");
        assert_eq!(reply.frame, id);
        assert_eq!(reply.feedback.expect("durations").batch_size, 4);
    }
}

#[tokio::test]
async fn bad_frames_are_refused_with_their_reason() {
    let setup = start(Duration::ZERO, |_| {}).await;
    let device = setup.device().await;
    let frames = bad_frames();
    for (at, (bytes, expected)) in frames.iter().enumerate() {
        assert_eq!(reason(&device.ask(bytes).await), *expected, "bad frame {at}");
    }
    answer(&device.ask(&frame(2, LONG, 1)).await);
    let counters = setup.settled().await;
    assert_eq!(counters.refused.values().sum::<u64>(), frames.len() as u64);
    assert_eq!(counters.answered, 1);
}

#[tokio::test]
async fn a_failing_tail_is_told_and_survived() {
    let setup = start(Duration::ZERO, |_| {}).await;
    let device = setup.device().await;
    assert_eq!(reason(&device.ask(&frame(1, LONG, PANIC)).await), Reason::Internal);
    assert_eq!(reason(&device.ask(&frame(2, LONG, UNDECODABLE)).await), Reason::Internal);
    answer(&device.ask(&frame(3, LONG, 1)).await);
    assert_eq!(setup.settled().await.dropped.get(&Cause::Failed), Some(&2));
}

#[tokio::test]
async fn overload_is_refused_with_a_hint() {
    let setup = start(SLOW, |config| config.queue = 1).await;
    let device = setup.device().await;
    // The first batch teaches the server its rate.
    answer(&device.ask(&frame(0, LONG, 1)).await);
    let (_running, _one) = device.send(&frame(1, LONG, 1)).await;
    underway().await;
    let (_waiting, _two) = device.send(&frame(2, LONG, 1)).await;
    underway().await;
    let reply = device.ask(&frame(3, LONG, 1)).await;
    let Some(reply::Outcome::Refusal(refusal)) = reply.outcome else { panic!("{reply:?}") };
    assert_eq!(refusal.reason(), Reason::Overloaded);
    assert!((1_500..7_500).contains(&refusal.retry_after_ms), "{refusal:?}");
}

#[tokio::test]
async fn one_connection_cannot_have_more_than_its_share_in_flight() {
    let setup = start(SLOW, |config| config.max_in_flight = 2).await;
    let device = setup.device().await;
    assert_eq!(device.welcome.max_in_flight, 2);
    let _one = device.send(&frame(1, LONG, 1)).await;
    let _two = device.send(&frame(2, LONG, 1)).await;
    underway().await;
    assert_eq!(reason(&device.ask(&frame(3, LONG, 1)).await), Reason::Overloaded);
    let other = setup.device().await;
    answer(&other.ask(&frame(1, LONG, 1)).await);
}

#[tokio::test]
async fn an_unintelligible_hello_closes_the_connection_only() {
    let setup = start(Duration::ZERO, |_| {}).await;
    let mut other_version = Vec::new();
    let mut wrong = hello(DIGEST);
    wrong.protocol = 9;
    write_message(&mut other_version, &to_server(to_server::Message::Hello(wrong)));
    let mut no_hello = Vec::new();
    write_message(&mut no_hello, &to_server(to_server::Message::Cancel(1)));
    let oversized = vec![0xbf, 0xff, 0xff, 0xff];
    for bytes in [vec![0x05; 100], other_version, no_hello, oversized] {
        let (_endpoint, connection) = setup.connect().await;
        let (mut send, _recv) = connection.open_bi().await.expect("a stream");
        send.write_all(&bytes).await.expect("written");
        match connection.closed().await {
            ConnectionError::ApplicationClosed(close) => {
                assert_eq!(close.error_code, code::BAD_HELLO.into());
                assert!(!close.reason.is_empty());
            }
            other => panic!("closed with {other}"),
        }
    }
    answer(&setup.device().await.ask(&frame(1, LONG, 1)).await);
}

#[tokio::test]
async fn a_device_that_vanishes_leaves_no_frame_behind() {
    let setup = start(SLOW, |_| {}).await;
    let device = setup.device().await;
    let frame = frame(1, LONG, 1);
    let _whole = device.send(&frame).await;
    let _queued = device.send(&frame).await;
    let _half = device.send(&frame[..20]).await;
    underway().await;
    device.connection.close(code::DONE.into(), b"");
    let counters = setup.settled().await;
    assert_eq!((counters.arrived, counters.answered), (3, 0));
}

#[tokio::test]
async fn a_stopping_server_answers_what_it_accepted_and_refuses_the_rest() {
    let setup = start(SLOW, |config| config.max_batch = 2).await;
    let device = setup.device().await;
    let mut streams = Vec::new();
    for id in 0..6 {
        streams.push(device.send(&frame(id, LONG, 1)).await);
    }
    underway().await;
    let stopping = tokio::spawn(setup.server.shutdown());
    underway().await;
    assert_eq!(reason(&device.ask(&frame(9, LONG, 1)).await), Reason::Draining);
    for (_send, recv) in &mut streams {
        answer(&read_reply(recv).await);
    }
    let counters = stopping.await.expect("it stops");
    assert_eq!((counters.arrived, counters.answered, counters.unfinished()), (7, 6, 0));
    match device.connection.closed().await {
        ConnectionError::ApplicationClosed(close) => {
            assert_eq!(close.error_code, code::DRAINING.into());
        }
        other => panic!("closed with {other}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_frame_of_a_storm_is_counted_once() {
    let setup = start(Duration::from_millis(2), |config| {
        config.queue = 8;
        config.max_in_flight = 16;
        config.workers = 2;
    })
    .await;
    let device = setup.device().await;
    let (mut replies, mut answers, mut seed) = (0, 0, 1u64);
    for _ in 0..20 {
        let mut streams = Vec::new();
        for id in 0..20 {
            // Numerical Recipes' linear congruential generator; the high bits are the good ones.
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let dice = (seed >> 33) as usize;
            // A busy machine answers none of the hurried ones.
            let hurried = (dice / 1024).is_multiple_of(2);
            let time_left = if hurried { Duration::from_millis(dice as u64 % 40) } else { LONG };
            let mut bytes = frame(id, time_left, 1);
            let at = dice / 64 % bytes.len();
            match dice % 4 {
                0 => bytes[at] ^= 1 << (dice % 8),
                1 => bytes.truncate(at),
                _ => {}
            }
            let (mut send, mut recv) = device.connection.open_bi().await.expect("a stream");
            let _ = send.write_all(&bytes).await;
            match dice / 4 % 5 {
                0 => drop((send.reset(code::DONE.into()), recv.stop(code::DONE.into()))),
                _ => {
                    let _ = send.finish();
                    streams.push(recv);
                }
            }
        }
        for mut recv in streams {
            let reply = read_reply(&mut recv).await;
            replies += 1;
            answers += u64::from(matches!(reply.outcome, Some(reply::Outcome::Answer(_))));
        }
    }
    let counters = setup.settled().await;
    let unanswered: u64 = counters.refused.values().chain(counters.dropped.values()).sum();
    assert_eq!(counters.arrived, counters.answered + unanswered);
    // A stream that was reset at once may never have been seen.
    assert!((replies..=400).contains(&counters.arrived), "{counters:?}");
    assert!(answers >= 20 && counters.answered >= answers, "{answers} of {counters:?}");
    let shutdown = setup.server.shutdown().await;
    assert_eq!(shutdown.unfinished(), 0);
}
