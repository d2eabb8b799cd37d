//! Frames over gRPC.

use std::time::Duration;

use isthmus_proto::wire::tail_client::TailClient;
use isthmus_proto::wire::{Reason, Reply, ToDevice, ToServer, Welcome, to_device, to_server};
use isthmus_tail_server::counters::Cause;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::device::{
    DIGEST, LONG, PANIC, SLOW, Setup, answer, bad_frames, frame, hello, is_echo, probe, reason,
    start, to_server, underway,
};

pub struct Call {
    pub sender: mpsc::Sender<ToServer>,
    pub receiver: Streaming<ToDevice>,
}

pub async fn connect(setup: &Setup) -> Channel {
    endpoint(setup).connect().await.expect("a connection")
}

pub fn endpoint(setup: &Setup) -> Endpoint {
    let address = setup.server.grpc_addr().expect("gRPC is offered");
    let certificate = Certificate::from_pem(setup.certificate());
    let tls = ClientTlsConfig::new().ca_certificate(certificate).domain_name("localhost");
    Channel::from_shared(format!("https://{address}"))
        .expect("an address")
        .tls_config(tls)
        .expect("a TLS configuration")
}

impl Call {
    pub async fn open(setup: &Setup) -> Call {
        Call::try_open(connect(setup).await).await.expect("a call")
    }

    pub async fn try_open(channel: Channel) -> Result<Call, Status> {
        let (sender, requests) = mpsc::channel(64);
        let mut client = TailClient::new(channel);
        let response = client.infer(ReceiverStream::new(requests)).await?;
        Ok(Call { sender, receiver: response.into_inner() })
    }

    pub async fn greeted(setup: &Setup) -> Call {
        let mut call = Call::open(setup).await;
        call.send(to_server::Message::Hello(hello(DIGEST))).await;
        call.welcome().await;
        call
    }

    pub async fn send(&self, message: to_server::Message) {
        self.sender.send(to_server(message)).await.expect("an open call");
    }

    pub async fn send_frame(&self, bytes: Vec<u8>) {
        self.send(to_server::Message::Frame(bytes)).await;
    }

    pub async fn welcome(&mut self) -> Welcome {
        match self.receiver.message().await {
            Ok(Some(ToDevice { message: Some(to_device::Message::Welcome(welcome)) })) => welcome,
            other => panic!("no welcome but {other:?}"),
        }
    }

    pub async fn reply(&mut self) -> Reply {
        match self.receiver.message().await {
            Ok(Some(ToDevice { message: Some(to_device::Message::Reply(reply)) })) => reply,
            other => panic!("no reply but {other:?}"),
        }
    }

    pub async fn status(&mut self) -> Status {
        self.receiver.message().await.expect_err("the call ends with a status")
    }
}

#[tokio::test]
async fn frames_are_answered() {
    let setup = start(Duration::from_millis(5), |_| {}).await;
    let mut call = Call::open(&setup).await;
    call.send(to_server::Message::Hello(hello(DIGEST))).await;
    let welcome = call.welcome().await;
    assert_eq!(welcome.bundles.iter().map(|b| b.served).collect::<Vec<_>>(), [true, false]);
    for id in 0..3 {
        call.send_frame(frame(id, LONG, 200)).await;
        let reply = call.reply().await;
        assert_eq!(reply.frame, u64::from(id));
        assert_eq!((answer(&reply).top[0].class, answer(&reply).layers_used), (0, 3));
        assert!(reply.feedback.expect("durations").tail_us >= 5_000);
    }
    let cut = frame(3, LONG, 200);
    call.send_frame(cut[..cut.len() - 1].to_vec()).await;
    assert_eq!(answer(&call.reply().await).layers_used, 2);
    call.send_frame(probe(4, 500)).await;
    let echo = call.reply().await;
    assert!(is_echo(&echo) && echo.frame == 4, "{echo:?}");
    let counters = setup.settled().await;
    assert_eq!((counters.answered, counters.echoed), (4, 1));
}

#[tokio::test]
async fn bad_frames_are_refused_and_the_call_goes_on() {
    let setup = start(Duration::ZERO, |_| {}).await;
    let mut call = Call::greeted(&setup).await;
    for (at, (bytes, expected)) in bad_frames().into_iter().enumerate() {
        call.send_frame(bytes).await;
        assert_eq!(reason(&call.reply().await), expected, "bad frame {at}");
    }
    call.send_frame(frame(2, LONG, 1)).await;
    answer(&call.reply().await);
}

#[tokio::test]
async fn a_cancelled_frame_is_told_so_and_never_runs() {
    let setup = start(SLOW, |_| {}).await;
    let mut call = Call::greeted(&setup).await;
    call.send_frame(frame(1, LONG, 1)).await;
    underway().await;
    call.send_frame(frame(2, LONG, PANIC)).await;
    call.send_frame(frame(2, LONG, PANIC)).await;
    let twin = call.reply().await;
    assert_eq!((twin.frame, reason(&twin)), (2, Reason::Malformed));
    call.send(to_server::Message::Cancel(2)).await;
    let cancelled = call.reply().await;
    assert_eq!((cancelled.frame, reason(&cancelled)), (2, Reason::Cancelled));
    answer(&call.reply().await);
    assert_eq!(setup.settled().await.dropped.get(&Cause::Cancelled), Some(&1));
}

#[tokio::test]
async fn bad_control_messages_end_the_call_only() {
    let setup = start(Duration::ZERO, |_| {}).await;
    let mut call = Call::open(&setup).await;
    call.send_frame(frame(1, LONG, 1)).await;
    assert_eq!(call.status().await.code(), Code::InvalidArgument);

    let mut call = Call::open(&setup).await;
    let mut wrong = hello(DIGEST);
    wrong.protocol = 9;
    call.send(to_server::Message::Hello(wrong)).await;
    assert_eq!(call.status().await.code(), Code::FailedPrecondition);

    let mut call = Call::greeted(&setup).await;
    call.send_frame(vec![0; 2 << 20]).await;
    assert_eq!(call.status().await.code(), Code::OutOfRange);

    let mut call = Call::greeted(&setup).await;
    call.send_frame(frame(1, LONG, 1)).await;
    answer(&call.reply().await);
}

#[tokio::test]
async fn a_device_that_vanishes_leaves_no_frame_behind() {
    let setup = start(SLOW, |_| {}).await;
    let call = Call::greeted(&setup).await;
    for id in 0..3 {
        call.send_frame(frame(id, LONG, 1)).await;
    }
    underway().await;
    drop(call);
    let counters = setup.settled().await;
    assert_eq!((counters.arrived, counters.answered), (3, 0));
}

#[tokio::test]
async fn a_stopping_server_answers_what_it_accepted_and_ends_the_call() {
    let setup = start(SLOW, |_| {}).await;
    let mut call = Call::greeted(&setup).await;
    for id in 0..3 {
        call.send_frame(frame(id, LONG, 1)).await;
    }
    underway().await;
    let stopping = tokio::spawn(setup.server.shutdown());
    underway().await;
    call.send_frame(frame(9, LONG, 1)).await;
    assert_eq!(reason(&call.reply().await), Reason::Draining);
    for _ in 0..3 {
        answer(&call.reply().await);
    }
    assert!(matches!(call.receiver.message().await, Ok(None)));
    let counters = stopping.await.expect("it stops");
    assert_eq!((counters.arrived, counters.answered, counters.unfinished()), (4, 3, 0));
}

#[tokio::test]
async fn the_health_service_serves_until_the_server_drains() {
    let setup = start(SLOW, |_| {}).await;
    let mut call = Call::greeted(&setup).await;
    let mut health = HealthClient::new(connect(&setup).await);
    let mut status = async |service: &str| {
        let request = HealthCheckRequest { service: service.into() };
        health.check(request).await.expect("a known service").into_inner().status()
    };
    assert_eq!(status("").await, ServingStatus::Serving);
    assert_eq!(status("isthmus.v1.Tail").await, ServingStatus::Serving);
    call.send_frame(frame(1, LONG, 1)).await;
    underway().await;
    let stopping = tokio::spawn(setup.server.shutdown());
    underway().await;
    assert_eq!(status("").await, ServingStatus::NotServing);
    assert_eq!(status("isthmus.v1.Tail").await, ServingStatus::NotServing);
    answer(&call.reply().await);
    stopping.await.expect("it stops");
}
