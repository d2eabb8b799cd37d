//! A frame, or a probe, on a stream of its own.

use isthmus_proto::{FrameId, MAX_REPLY_BYTES, wire};
use prost::Message;

use super::outgoing::Outgoing;
use super::reply::{Outcome, ReplyError, check};

/// Follows one stream from a frame's first byte to its checked reply.
///
/// Write what [`poll_write`](Self::poll_write) gives until there is no more, and end the stream;
/// feed what can be read, and ask for the outcome after every input. The exchange is over when
/// there is one: where it is an error, reset the stream both ways with
/// [`CANCELLED`](super::CANCELLED). That is also how to cancel an exchange; then drop it.
///
/// Bytes are given layer by layer, so that a server that has seen enough stops the stream between
/// two of them.
#[derive(Debug)]
pub struct Exchange {
    outgoing: Outgoing,
    written: usize,
    reply: Reply,
}

#[derive(Debug)]
enum Reply {
    Coming(Vec<u8>),
    Ended(Vec<u8>),
    Failed(ReplyError),
    /// Its outcome was given.
    Over,
}

impl Exchange {
    /// An exchange of which nothing is written.
    pub fn new(outgoing: Outgoing) -> Self {
        Exchange { outgoing, written: 0, reply: Reply::Coming(Vec::new()) }
    }

    /// Which frame it is about.
    pub fn frame(&self) -> FrameId {
        self.outgoing.number()
    }

    /// What to write next; `None` when the stream is to be ended.
    pub fn poll_write(&self) -> Option<&[u8]> {
        self.outgoing.rest_of_layer(self.written)
    }

    /// So many bytes of it were written.
    pub fn handle_written(&mut self, bytes: usize) {
        self.written = self.written.saturating_add(bytes);
    }

    /// The server reads no further: it has seen enough, and its reply says why.
    pub fn handle_stopped(&mut self) {
        self.written = usize::MAX;
    }

    /// Bytes of the reply came.
    pub fn handle_reply_bytes(&mut self, bytes: &[u8]) {
        if let Reply::Coming(reply) = &mut self.reply {
            if reply.len() + bytes.len() > MAX_REPLY_BYTES {
                self.reply = Reply::Failed(ReplyError::TooLong);
            } else {
                reply.extend_from_slice(bytes);
            }
        }
    }

    /// The server ended its side of the stream.
    pub fn handle_reply_end(&mut self) {
        if let Reply::Coming(reply) = &mut self.reply {
            self.reply = Reply::Ended(std::mem::take(reply));
        }
    }

    /// The server gave its side of the stream up.
    pub fn handle_reply_reset(&mut self) {
        if let Reply::Coming(_) = self.reply {
            self.reply = Reply::Failed(ReplyError::Reset);
        }
    }

    /// The outcome, once: a reply after everything was written or stopped, or at once why none can
    /// be used.
    pub fn poll_outcome(&mut self) -> Option<Outcome> {
        let written = self.poll_write().is_none();
        match std::mem::replace(&mut self.reply, Reply::Over) {
            Reply::Failed(error) => Some(Err(error)),
            Reply::Ended(bytes) if written => Some(self.read(&bytes)),
            waiting => {
                self.reply = waiting;
                None
            }
        }
    }

    fn read(&self, bytes: &[u8]) -> Outcome {
        check(self.frame(), self.outgoing.asked(), wire::Reply::decode(bytes)?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use isthmus_proto::wire::Reason;
    use proptest::prelude::*;

    use super::super::outgoing::tests::frame;
    use super::super::reply::Checked;
    use super::super::reply::tests::{FRAME, answer, echo, refusal};
    use super::*;

    /// Writes all of it, so many bytes at a time; what was written.
    fn write(exchange: &mut Exchange, step: usize) -> Vec<u8> {
        let mut written = Vec::new();
        while let Some(bytes) = exchange.poll_write() {
            let bytes = bytes[..bytes.len().min(step)].to_vec();
            exchange.handle_written(bytes.len());
            written.extend(bytes);
        }
        written
    }

    /// The outcome in words, of a reply that came in pieces of so many bytes.
    fn outcome(reply: &[u8], step: usize) -> String {
        let mut exchange = Exchange::new(frame());
        write(&mut exchange, usize::MAX);
        reply.chunks(step).for_each(|bytes| exchange.handle_reply_bytes(bytes));
        exchange.handle_reply_end();
        let outcome = exchange.poll_outcome().expect("an outcome");
        assert!(exchange.poll_outcome().is_none(), "a second outcome");
        match outcome {
            Ok(Checked::Reply { reply, .. }) => format!("{:?}", reply.outcome),
            Ok(Checked::Echo(_)) => "echo".into(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn layers_are_given_one_by_one() {
        let exchange = Exchange::new(frame());
        let whole = exchange.outgoing.bytes().len();
        assert_eq!(exchange.poll_write().map(<[u8]>::len), Some(whole - 30));
        let mut exchange = exchange;
        exchange.handle_written(whole - 31);
        assert_eq!(exchange.poll_write().map(<[u8]>::len), Some(1));
        exchange.handle_written(1);
        assert_eq!(exchange.poll_write().map(<[u8]>::len), Some(30));
        exchange.handle_written(30);
        assert_eq!(exchange.poll_write(), None);
    }

    #[test]
    fn a_server_that_has_seen_enough_gets_no_more_and_its_reply_counts() {
        let mut exchange = Exchange::new(frame());
        exchange.handle_written(5);
        exchange.handle_reply_bytes(&refusal(Reason::TooLarge).encode_to_vec());
        exchange.handle_reply_end();
        // A reply ahead of the stop.
        assert!(exchange.poll_outcome().is_none());
        exchange.handle_stopped();
        assert_eq!(exchange.poll_write(), None);
        let Some(Ok(Checked::Reply { reply, .. })) = exchange.poll_outcome() else { panic!() };
        assert!(matches!(reply.outcome, Err((Reason::TooLarge, _))));
    }

    #[test]
    fn a_reply_that_cannot_be_used_ends_the_exchange_at_once() {
        let mut reset = Exchange::new(frame());
        reset.handle_reply_bytes(&answer(1, 0.5).encode_to_vec());
        reset.handle_reply_reset();
        assert_eq!(reset.poll_outcome().and_then(Result::err), Some(ReplyError::Reset));

        let mut long = Exchange::new(frame());
        long.handle_reply_bytes(&[0; MAX_REPLY_BYTES]);
        assert!(long.poll_outcome().is_none());
        long.handle_reply_bytes(&[0]);
        long.handle_reply_bytes(&[0; 1 << 20]);
        assert_eq!(long.poll_outcome().and_then(Result::err), Some(ReplyError::TooLong));
    }

    #[test]
    fn replies_are_checked_against_what_was_sent() {
        assert_eq!(outcome(b"rubbish", 3), outcome(b"rubbish", 7));
        assert!(outcome(b"rubbish", 7).starts_with("malformed reply: "));
        // No byte is a message without fields.
        assert!(outcome(b"", 1).starts_with("reply to frame 0 on the stream of frame 13"));
        assert!(outcome(&answer(9, 0.5).encode_to_vec(), 4).starts_with("class 9, but"));
        assert!(outcome(&echo().encode_to_vec(), 4).starts_with("echo of a frame"));

        let probe = Outgoing::probe(FRAME, 100, Duration::from_secs(1));
        let mut probe = Exchange::new(probe);
        write(&mut probe, 10);
        probe.handle_reply_bytes(&echo().encode_to_vec());
        probe.handle_reply_end();
        assert!(matches!(probe.poll_outcome(), Some(Ok(Checked::Echo(_)))));
    }

    proptest! {
        #[test]
        fn the_same_bytes_are_written_whatever_the_transport_takes(step in 1usize..200) {
            let mut exchange = Exchange::new(frame());
            prop_assert_eq!(write(&mut exchange, step), frame().into_bytes());
        }

        #[test]
        fn a_reply_is_the_same_however_it_is_cut(
            class in 0u32..8,
            probability in -0.5f32..1.5,
            step in 1usize..60,
        ) {
            let bytes = answer(class, probability).encode_to_vec();
            prop_assert_eq!(outcome(&bytes, step), outcome(&bytes, usize::MAX));
        }

        #[test]
        fn random_replies_never_panic(bytes in prop::collection::vec(any::<u8>(), 1..200)) {
            outcome(&bytes, 7);
        }
    }
}
