//! Devices that break the protocol over gRPC: the call ends or goes on, the server serves others,
//! and no frame stays without a verdict.

use std::time::Duration;

use isthmus_proto::wire::{Reason, ToServer, to_server};
use isthmus_tail_server::counters::Cause;
use tonic::Code;

use crate::device::{
    DIGEST, LONG, SLOW, Setup, answer, frame, hello, reason, start, to_server, underway,
};
use crate::grpc::{Call, endpoint};

/// The server answers somebody else.
async fn serves_others(setup: &Setup) {
    let mut other = Call::greeted(setup).await;
    other.send_frame(frame(1, LONG, 1)).await;
    answer(&other.reply().await);
}

#[tokio::test]
async fn a_first_message_that_is_no_hello_ends_the_call() {
    let setup = start(Duration::ZERO, |_| {}).await;
    let mut many = hello(DIGEST);
    many.bundles = vec![many.bundles[0].clone(); 17];
    let firsts = [
        (ToServer { message: None }, Code::InvalidArgument, "no hello"),
        (to_server(to_server::Message::Cancel(1)), Code::InvalidArgument, "no hello"),
        (to_server(to_server::Message::Frame(vec![7; 90])), Code::InvalidArgument, "no hello"),
        (to_server(to_server::Message::Hello(many)), Code::FailedPrecondition, "17 bundles"),
    ];
    for (first, code, words) in firsts {
        let mut call = Call::open(&setup).await;
        call.sender.send(first).await.expect("an open call");
        let status = call.status().await;
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(words), "{status}");
    }
    // It ends its side before it says anything.
    let Call { sender, mut receiver } = Call::open(&setup).await;
    drop(sender);
    let status = receiver.message().await.expect_err("the call ends with a status");
    assert_eq!(status.code(), Code::InvalidArgument);
    serves_others(&setup).await;
    assert_eq!(setup.settled().await.arrived, 1);
}

#[tokio::test]
async fn a_second_hello_or_an_empty_message_ends_the_call_and_its_frames() {
    let setup = start(SLOW, |_| {}).await;
    let again = [to_server(to_server::Message::Hello(hello(DIGEST))), ToServer { message: None }];
    for second in again {
        let mut call = Call::greeted(&setup).await;
        call.send_frame(frame(1, LONG, 1)).await;
        call.send_frame(frame(2, LONG, 1)).await;
        underway().await;
        call.sender.send(second).await.expect("an open call");
        let status = call.status().await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    let counters = setup.settled().await;
    assert_eq!((counters.arrived, counters.answered), (4, 0), "{counters:?}");
    serves_others(&setup).await;
}

#[tokio::test]
async fn garbage_is_refused_frame_by_frame() {
    let setup = start(Duration::ZERO, |_| {}).await;
    let mut call = Call::greeted(&setup).await;
    let good = frame(3, LONG, 1);
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 0x80;
        // A cut or damaged frame gets one reply, whatever it says.
        call.send_frame(bytes).await;
        call.reply().await;
        call.send_frame(good[..at].to_vec()).await;
        call.reply().await;
    }
    call.send_frame(good.clone()).await;
    answer(&call.reply().await);
    let counters = setup.settled().await;
    assert_eq!(counters.arrived, 2 * good.len() as u64 + 1);
    assert!(counters.refused.get(&Reason::Malformed).is_some_and(|&count| count > 20));
}

#[tokio::test]
async fn an_id_is_taken_until_its_reply_has_left() {
    let setup = start(SLOW, |_| {}).await;
    let mut call = Call::greeted(&setup).await;
    for _ in 0..3 {
        call.send_frame(frame(7, LONG, 1)).await;
    }
    // What is cancelled but unknown is nobody's.
    call.send(to_server::Message::Cancel(8)).await;
    call.send(to_server::Message::Cancel(u64::MAX)).await;
    for _ in 0..2 {
        let twin = call.reply().await;
        assert_eq!((twin.frame, reason(&twin)), (7, Reason::Malformed));
    }
    answer(&call.reply().await);
    call.send_frame(frame(7, LONG, 1)).await;
    answer(&call.reply().await);
    let counters = setup.settled().await;
    assert_eq!((counters.arrived, counters.answered), (4, 2));
    assert_eq!(counters.dropped.get(&Cause::Cancelled), None);
}

#[tokio::test]
async fn a_device_that_sends_no_more_gets_the_replies_it_waits_for() {
    let setup = start(SLOW, |_| {}).await;
    let call = Call::greeted(&setup).await;
    for id in 0..3 {
        call.send_frame(frame(id, LONG, 1)).await;
    }
    underway().await;
    let Call { sender, mut receiver } = call;
    drop(sender);
    for _ in 0..3 {
        let message = receiver.message().await.expect("no status").expect("not ended");
        assert!(matches!(message.message, Some(isthmus_proto::wire::to_device::Message::Reply(_))));
    }
    assert!(matches!(receiver.message().await, Ok(None)), "the call ends with its last reply");
    assert_eq!(setup.settled().await.answered, 3);
}

#[tokio::test]
async fn a_device_that_does_not_read_blocks_nobody_else() {
    let setup = start(Duration::ZERO, |config| {
        config.max_in_flight = 2;
        config.exit_timeout = Duration::from_millis(500);
    })
    .await;
    let channel = endpoint(&setup).initial_stream_window_size(1_024).connect().await;
    let call = Call::try_open(channel.expect("a connection")).await.expect("a call");
    call.send(to_server::Message::Hello(hello(DIGEST))).await;
    // More replies than the call's flow control lets through.
    for id in 0..200 {
        call.send_frame(frame(id, LONG, 1)).await;
    }
    serves_others(&setup).await;
    let counters = setup.settled().await;
    assert!(counters.answered > 1, "{counters:?}");
    let stopped = tokio::time::timeout(Duration::from_secs(20), setup.server.shutdown()).await;
    let counters = stopped.expect("the server stops, whoever does not read");
    assert_eq!(counters.unfinished(), 0, "{counters:?}");
    drop(call);
}
