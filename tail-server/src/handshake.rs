//! The start of a connection whose control messages come as a stream of bytes: its hello is read,
//! and its welcome written.

use std::time::Duration;

use isthmus_proto::framer::write_message;
use isthmus_proto::wire::{Hello, ToDevice, ToServer, Welcome, to_device, to_server};
use isthmus_proto::{Framer, MAX_CONTROL_BYTES, Timestamp};

use crate::admission::HelloError;

/// Longest wait for a hello on a new connection.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// Takes a connection's hello and answers it. After an error the connection has to be closed; what
/// follows a welcome on its stream is ignored.
#[derive(Debug)]
pub struct Handshake {
    framer: Framer,
    /// When the hello has to be there; none once it is, or cannot come any more.
    hello_by: Option<Timestamp>,
    welcomed: bool,
}

impl Handshake {
    /// A handshake that begins at `now`.
    pub fn new(now: Timestamp) -> Self {
        let hello_by = Some(now + HELLO_TIMEOUT);
        Handshake { framer: Framer::new(MAX_CONTROL_BYTES), hello_by, welcomed: false }
    }

    /// When to close the connection, unless its hello came.
    pub fn poll_timeout(&self) -> Option<Timestamp> {
        self.hello_by
    }

    /// Whether the device was welcomed, and may send frames.
    pub fn is_welcomed(&self) -> bool {
        self.welcomed
    }

    /// Takes bytes of the control stream; with the last of the hello, which `greet` answers, what to
    /// write there.
    pub fn handle_bytes(
        &mut self,
        bytes: &[u8],
        greet: impl FnOnce(&Hello) -> Result<Welcome, HelloError>,
    ) -> Result<Option<Vec<u8>>, HelloError> {
        if self.hello_by.is_none() {
            return Ok(None);
        }
        let welcome = self.read(bytes).and_then(|read| read.map(|hello| greet(&hello)).transpose());
        if !matches!(welcome, Ok(None)) {
            (self.hello_by, self.welcomed) = (None, welcome.is_ok());
        }
        Ok(welcome?.map(welcome_bytes))
    }

    /// The control stream ended, or the connection is gone.
    pub fn handle_end(&mut self) -> Result<(), HelloError> {
        self.hello_by.take().map_or(Ok(()), |_| Err(HelloError::Missing))
    }

    /// It is `now`: why to close the connection, if the instant of
    /// [`poll_timeout`](Self::poll_timeout) has come.
    pub fn handle_timeout(&mut self, now: Timestamp) -> Result<(), HelloError> {
        self.hello_by.take_if(|due| *due <= now).map_or(Ok(()), |_| Err(HelloError::Late))
    }

    fn read(&mut self, bytes: &[u8]) -> Result<Option<Hello>, HelloError> {
        self.framer.push(bytes);
        let message = self.framer.next_message::<ToServer>();
        message.map_err(|error| HelloError::Malformed(error.to_string()))?.map(hello).transpose()
    }
}

/// The hello that the first message of a connection has to be.
pub fn hello(first: ToServer) -> Result<Hello, HelloError> {
    match first.message {
        Some(to_server::Message::Hello(hello)) => Ok(hello),
        _ => Err(HelloError::Unexpected),
    }
}

/// A welcome as the control stream carries it.
fn welcome_bytes(welcome: Welcome) -> Vec<u8> {
    let mut bytes = Vec::new();
    let message = ToDevice { message: Some(to_device::Message::Welcome(welcome)) };
    write_message(&mut bytes, &message);
    bytes
}

#[cfg(test)]
mod tests {
    use isthmus_proto::PROTOCOL_VERSION;

    use super::*;

    fn bytes(message: to_server::Message) -> Vec<u8> {
        let mut bytes = Vec::new();
        write_message(&mut bytes, &ToServer { message: Some(message) });
        bytes
    }

    fn refuse(_: &Hello) -> Result<Welcome, HelloError> {
        Err(HelloError::Version(7))
    }

    fn welcome(_: &Hello) -> Result<Welcome, HelloError> {
        Ok(Welcome { protocol: PROTOCOL_VERSION, ..Welcome::default() })
    }

    fn hello_bytes() -> Vec<u8> {
        let hello = Hello { protocol: PROTOCOL_VERSION, ..Hello::default() };
        bytes(to_server::Message::Hello(hello))
    }

    #[test]
    fn a_hello_is_read_byte_by_byte_and_what_follows_is_ignored() {
        let start = Timestamp::from_micros(5);
        let mut handshake = Handshake::new(start);
        assert_eq!(handshake.poll_timeout(), Some(start + HELLO_TIMEOUT));
        let sent = hello_bytes();
        let (last, first) = sent.split_last().expect("not empty");
        for byte in first {
            assert_eq!(handshake.handle_bytes(&[*byte], welcome), Ok(None));
        }
        assert!(!handshake.is_welcomed());
        let said = handshake.handle_bytes(&[*last], welcome).expect("a hello").expect("whole");
        let mut framer = Framer::new(MAX_CONTROL_BYTES);
        framer.push(&said);
        let message = framer.next_message::<ToDevice>().expect("a message").expect("whole");
        assert!(matches!(message.message, Some(to_device::Message::Welcome(_))));

        assert_eq!((handshake.poll_timeout(), handshake.is_welcomed()), (None, true));
        assert_eq!(handshake.handle_bytes(&[0xff; 64], refuse), Ok(None));
        assert_eq!(handshake.handle_end(), Ok(()));
    }

    #[test]
    fn what_is_no_hello_is_named() {
        let cancel = bytes(to_server::Message::Cancel(3));
        let mut handshake = Handshake::new(Timestamp::ZERO);
        assert_eq!(handshake.handle_bytes(&cancel, welcome), Err(HelloError::Unexpected));
        let mut handshake = Handshake::new(Timestamp::ZERO);
        let garbage = handshake.handle_bytes(&[0xff; 64], welcome);
        assert!(matches!(garbage, Err(HelloError::Malformed(_))), "{garbage:?}");
    }

    #[test]
    fn after_a_failure_no_hello_is_welcome() {
        let mut refused = Handshake::new(Timestamp::ZERO);
        assert_eq!(refused.handle_bytes(&hello_bytes(), refuse), Err(HelloError::Version(7)));
        let mut ended = Handshake::new(Timestamp::ZERO);
        assert_eq!(ended.handle_end(), Err(HelloError::Missing));
        let mut late = Handshake::new(Timestamp::ZERO);
        let due = late.poll_timeout().expect("no hello yet");
        assert_eq!(late.handle_timeout(Timestamp::ZERO), Ok(()));
        assert_eq!(late.handle_timeout(due), Err(HelloError::Late));
        for mut handshake in [refused, ended, late] {
            assert_eq!(handshake.handle_bytes(&hello_bytes(), welcome), Ok(None));
            assert_eq!((handshake.poll_timeout(), handshake.is_welcomed()), (None, false));
        }
    }
}
