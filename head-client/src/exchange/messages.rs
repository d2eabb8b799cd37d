//! Frames and probes that share one stream of messages.

use std::collections::BTreeMap;

use isthmus_proto::FrameId;
use isthmus_proto::wire::{Reason, ToDevice, ToServer, to_device, to_server};

use super::outgoing::Outgoing;
use super::reply::{Asked, Checked, Outcome, check, wire_id};

/// A message that is no reply to a frame of this connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Another kind of message, after which the connection cannot go on.
    #[error("the server sent a message that is not a reply")]
    NotReply,
    /// A reply to nothing; the connection can go on.
    #[error("reply to frame {0}, which is not unanswered")]
    UnknownFrame(u64),
}

/// Matches replies to the frames that they answer, after the [`Handshake`](super::Handshake).
#[derive(Debug, Default)]
pub struct Messages {
    /// By the wire's id. Cancelled frames stay, so that a reply that was on its way is known for a
    /// late one; without a reply they stay until their id is used again.
    unanswered: BTreeMap<u64, Unanswered>,
    sent: u64,
}

#[derive(Clone, Debug)]
struct Unanswered {
    frame: FrameId,
    asked: Asked,
    cancelled: bool,
}

impl Messages {
    /// The message that carries a frame or a probe, and its ordinal on the connection, from 1.
    pub fn send(&mut self, outgoing: Outgoing) -> (ToServer, u64) {
        let (frame, asked) = (outgoing.number(), outgoing.asked().clone());
        self.unanswered.insert(wire_id(frame), Unanswered { frame, asked, cancelled: false });
        self.sent += 1;
        let message = to_server::Message::Frame(outgoing.into_bytes());
        (ToServer { message: Some(message) }, self.sent)
    }

    /// The message that cancels a frame or a probe; `None` if there is nothing to cancel.
    pub fn cancel(&mut self, frame: FrameId) -> Option<ToServer> {
        let unanswered = self.unanswered.get_mut(&wire_id(frame)).filter(|it| it.frame == frame)?;
        unanswered.cancelled = true;
        Some(ToServer { message: Some(to_server::Message::Cancel(wire_id(frame))) })
    }

    /// Takes a message of the server's: the outcome of a frame; `None` if it only confirms a cancel.
    pub fn handle_message(
        &mut self,
        message: ToDevice,
    ) -> Result<Option<(FrameId, Outcome)>, MessageError> {
        let Some(to_device::Message::Reply(reply)) = message.message else {
            return Err(MessageError::NotReply);
        };
        let id = reply.frame;
        let unanswered = self.unanswered.remove(&id).ok_or(MessageError::UnknownFrame(id))?;
        let Unanswered { frame, asked, cancelled } = unanswered;
        let outcome = check(frame, &asked, reply);
        let confirms = cancelled && outcome.as_ref().is_ok_and(says_cancelled);
        Ok((!confirms).then_some((frame, outcome)))
    }
}

fn says_cancelled(checked: &Checked) -> bool {
    matches!(checked, Checked::Reply { reply, .. } if matches!(reply.outcome, Err((Reason::Cancelled, _))))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use isthmus_models::UnusableAnswer;
    use isthmus_proto::wire::{Reply, Welcome};

    use super::super::reply::ReplyError;
    use super::super::reply::tests::{FRAME, answer, echo, refusal};
    use super::*;
    use crate::exchange::outgoing::tests::frame;

    fn reply(reply: Reply) -> ToDevice {
        ToDevice { message: Some(to_device::Message::Reply(reply)) }
    }

    fn probe(number: u64) -> Outgoing {
        Outgoing::probe(FrameId(number), 100, Duration::from_secs(1))
    }

    #[test]
    fn replies_come_in_any_order_and_find_their_frames() {
        let mut messages = Messages::default();
        let (message, ordinal) = messages.send(frame());
        assert_eq!(message.message, Some(to_server::Message::Frame(frame().into_bytes())));
        let second = messages.send(probe(14)).1;
        assert_eq!((ordinal, second), (1, 2));

        let echoed = messages.handle_message(reply(Reply { frame: 14, ..echo() }));
        assert!(matches!(echoed, Ok(Some((FrameId(14), Ok(Checked::Echo(_)))))), "{echoed:?}");
        let answered = messages.handle_message(reply(answer(1, 0.5)));
        assert!(matches!(answered, Ok(Some((FRAME, Ok(Checked::Reply { .. }))))), "{answered:?}");
        let again = messages.handle_message(reply(answer(1, 0.5)));
        assert!(matches!(again, Err(MessageError::UnknownFrame(13))), "{again:?}");
    }

    #[test]
    fn a_reply_that_cannot_be_used_costs_its_frame_alone() {
        let mut messages = Messages::default();
        messages.send(frame());
        messages.send(probe(14));
        let Ok(Some((FRAME, Err(error)))) = messages.handle_message(reply(answer(7, 0.5))) else {
            panic!("an outcome");
        };
        let unusable = UnusableAnswer::Class { decoder: "class".into(), class: 7, labels: 4 };
        assert_eq!(error, ReplyError::Unusable(unusable));
        let echoed = messages.handle_message(reply(Reply { frame: 14, ..echo() }));
        assert!(matches!(echoed, Ok(Some((_, Ok(Checked::Echo(_)))))), "{echoed:?}");
    }

    #[test]
    fn a_cancelled_frame_s_reply_is_late_but_the_server_s_confirmation_is_none() {
        let mut messages = Messages::default();
        messages.send(frame());
        let cancel = messages.cancel(FRAME).and_then(|cancel| cancel.message);
        assert_eq!(cancel, Some(to_server::Message::Cancel(13)));
        let late = messages.handle_message(reply(answer(1, 0.5)));
        assert!(matches!(late, Ok(Some((FRAME, Ok(_))))), "{late:?}");
        assert!(messages.cancel(FRAME).is_none(), "it is answered");

        messages.send(frame());
        messages.cancel(FRAME);
        let confirmed = messages.handle_message(reply(refusal(Reason::Cancelled)));
        assert!(matches!(confirmed, Ok(None)), "{confirmed:?}");

        // The server cancels by itself.
        messages.send(frame());
        let refused = messages.handle_message(reply(refusal(Reason::Cancelled)));
        assert!(matches!(refused, Ok(Some((FRAME, Ok(_))))), "{refused:?}");
    }

    #[test]
    fn an_id_that_is_used_again_stands_for_the_later_frame() {
        let mut messages = Messages::default();
        messages.send(probe(13));
        messages.cancel(FrameId(13));
        messages.send(frame());
        assert!(messages.cancel(FrameId(13)).is_none(), "another frame has its id");
        let answered = messages.handle_message(reply(answer(1, 0.5)));
        assert!(matches!(answered, Ok(Some((FRAME, Ok(_))))), "{answered:?}");
    }

    #[test]
    fn messages_of_another_kind_end_the_connection() {
        let welcome = Some(to_device::Message::Welcome(Welcome::default()));
        for message in [welcome, None] {
            let refused = Messages::default().handle_message(ToDevice { message });
            assert!(matches!(refused, Err(MessageError::NotReply)), "{refused:?}");
        }
    }
}
