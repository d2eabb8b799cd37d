//! Reads the hello of a connection whose control messages come as a stream of bytes.

use std::time::Duration;

use isthmus_proto::framer::write_message;
use isthmus_proto::wire::{Hello, ToDevice, ToServer, Welcome, to_device, to_server};
use isthmus_proto::{Framer, MAX_CONTROL_BYTES, Timestamp};

use crate::admission::HelloError;

/// Longest wait for a hello on a new connection.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection before its hello.
#[derive(Debug)]
pub struct Handshake {
    framer: Framer,
    deadline: Timestamp,
}

impl Handshake {
    /// A handshake that begins at `now`.
    pub fn new(now: Timestamp) -> Self {
        Handshake { framer: Framer::new(MAX_CONTROL_BYTES), deadline: now + HELLO_TIMEOUT }
    }

    /// When to close the connection if no hello has come.
    pub fn deadline(&self) -> Timestamp {
        self.deadline
    }

    /// Takes bytes of the control stream; yields the hello once it is complete.
    pub fn handle_bytes(&mut self, bytes: &[u8]) -> Result<Option<Hello>, HelloError> {
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
pub fn welcome_bytes(welcome: Welcome) -> Vec<u8> {
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

    #[test]
    fn a_hello_is_read_byte_by_byte() {
        let hello = Hello { protocol: PROTOCOL_VERSION, ..Hello::default() };
        let sent = bytes(to_server::Message::Hello(hello.clone()));
        let mut handshake = Handshake::new(Timestamp::from_micros(5));
        assert_eq!(handshake.deadline(), Timestamp::from_micros(5) + HELLO_TIMEOUT);
        let (last, first) = sent.split_last().expect("not empty");
        for byte in first {
            assert_eq!(handshake.handle_bytes(&[*byte]), Ok(None));
        }
        assert_eq!(handshake.handle_bytes(&[*last]), Ok(Some(hello)));
    }

    #[test]
    fn what_is_no_hello_is_named() {
        let cancel = bytes(to_server::Message::Cancel(3));
        let mut handshake = Handshake::new(Timestamp::ZERO);
        assert_eq!(handshake.handle_bytes(&cancel), Err(HelloError::Unexpected));
        let mut handshake = Handshake::new(Timestamp::ZERO);
        let garbage = handshake.handle_bytes(&[0xff; 64]);
        assert!(matches!(garbage, Err(HelloError::Malformed(_))), "{garbage:?}");
    }
}
