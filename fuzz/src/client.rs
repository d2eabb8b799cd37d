//! What a server may say to a device.

use std::sync::Arc;
use std::time::Duration;

use isthmus_head_client::exchange::{
    BoundBundle, Checked, Exchange, Handshake, Messages, Outcome, Outgoing,
};
use isthmus_models::{Answer, Decoders};
use isthmus_proto::wire::{BundleRef, Hello, ToDevice};
use isthmus_proto::{
    Coded, Content, FrameId, Framer, MAX_CONTROL_BYTES, OperatingPoint, Timestamp,
};

use crate::coding::DIGEST;
use crate::{choice, pieces};

/// Classes of the bundle that the frame is of.
const LABELS: usize = 4;
/// The frame's number.
const FRAME: FrameId = FrameId(13);

/// Whatever a server says as a welcome, as a frame's or a probe's reply, or as messages of a call, is
/// the same in whatever pieces it comes; what passes can be used. The first byte is a piece's size.
pub fn reply(mut bytes: &[u8]) {
    let step = choice(&mut bytes);
    assert_eq!(welcome(bytes, step), welcome(bytes, u8::MAX));
    for outgoing in [frame(), Outgoing::probe(FRAME, 20, Duration::from_secs(1))] {
        let [stepwise, whole] = [step, u8::MAX].map(|step| outcome(outgoing.clone(), bytes, step));
        assert_eq!(format!("{stepwise:?}"), format!("{whole:?}"));
        usable(&whole);
    }
    call(bytes);
}

/// What a handshake comes to, in words.
fn welcome(bytes: &[u8], step: u8) -> String {
    let bundles = vec![BundleRef { name: "street".into(), digest: DIGEST.0.to_vec() }];
    let hello = Hello { bundles, ..Hello::default() };
    let mut handshake = Handshake::new(hello, Timestamp::ZERO, Duration::from_secs(5));
    for piece in pieces(bytes, step) {
        match handshake.handle_bytes(piece) {
            Ok(None) => {}
            Ok(Some(limits)) => {
                assert!(handshake.is_welcomed());
                return format!("{limits:?}");
            }
            Err(error) => return error.to_string(),
        }
    }
    assert!(!handshake.is_welcomed());
    "no welcome".into()
}

fn frame() -> Outgoing {
    let coded = Coded { stream: (0..60).collect(), layer_ends: vec![20, 60] };
    let content = Content::Features(OperatingPoint { split: 0, width: 0, layers: 2, bits: 6 });
    let labels = (0..LABELS).map(|label| label.to_string());
    let decoders = Decoders::classifier(labels);
    let bundle = BoundBundle { digest: DIGEST, decoders: Arc::new(decoders) };
    Outgoing::frame(&bundle, FRAME, content, &coded, Duration::from_secs(1), Timestamp::ZERO)
}

/// What comes of a stream on which the server says `bytes`.
fn outcome(outgoing: Outgoing, bytes: &[u8], step: u8) -> Outcome {
    let mut exchange = Exchange::new(outgoing);
    while let Some(written) = exchange.poll_write().map(<[u8]>::len) {
        exchange.handle_written(written);
    }
    pieces(bytes, step).for_each(|piece| exchange.handle_reply_bytes(piece));
    exchange.handle_reply_end();
    let outcome = exchange.poll_outcome().expect("an outcome of what was written and answered");
    assert!(exchange.poll_outcome().is_none(), "a second outcome");
    outcome
}

/// An answer that passed names a class that there is, with a probability.
fn usable(outcome: &Outcome) {
    if let Ok(Checked::Reply { reply, answers, .. }) = outcome
        && let Ok((confidence, _)) = &reply.outcome
    {
        let class = answers.first().and_then(Answer::class);
        let known = class.is_some_and(|class| class < LABELS);
        assert!(known && (0.0..=1.0).contains(confidence), "{answers:?}");
    }
}

/// In a call each frame has one outcome at most.
fn call(bytes: &[u8]) {
    let mut messages = Messages::default();
    messages.send(frame());
    messages.send(Outgoing::probe(FrameId(14), 20, Duration::from_secs(1)));
    messages.cancel(FrameId(14));
    let mut framer = Framer::new(MAX_CONTROL_BYTES);
    framer.push(bytes);
    let mut ended = Vec::new();
    while let Ok(Some(message)) = framer.next_message::<ToDevice>() {
        match messages.handle_message(message) {
            Ok(Some((frame, outcome))) => {
                usable(&outcome);
                assert!(!ended.contains(&frame), "a second outcome of {frame:?}");
                ended.push(frame);
            }
            Ok(None) => {}
            Err(_) => return,
        }
    }
}
