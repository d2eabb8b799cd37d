//! Length-delimited control messages on a byte stream.

use prost::Message;

use crate::varint;

/// Why a control stream cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum FramerError {
    /// A message larger than allowed was announced; nothing was reserved for it.
    #[error("a message of {announced} bytes was announced, at most {limit} are allowed")]
    TooLarge {
        /// Announced (bytes).
        announced: u64,
        /// Allowed (bytes).
        limit: usize,
    },
    /// The bytes are no such message.
    #[error("malformed message")]
    Malformed(#[from] prost::DecodeError),
}

/// Appends `message` after its length, a variable-length integer of RFC 9000.
pub fn write_message(out: &mut Vec<u8>, message: &impl Message) {
    varint::write(out, message.encoded_len() as u64);
    out.extend(message.encode_to_vec());
}

/// Cuts a byte stream into messages.
///
/// It never holds more than one message and what was pushed after it, and refuses a length over
/// its limit before the bytes come.
///
/// ```
/// use isthmus_proto::framer::{Framer, write_message};
/// use isthmus_proto::wire::BundleRef;
///
/// let mut bytes = Vec::new();
/// write_message(&mut bytes, &BundleRef { name: "street".into(), digest: vec![] });
///
/// let mut framer = Framer::new(1024);
/// framer.push(&bytes[..3]);
/// assert_eq!(framer.next_message::<BundleRef>()?, None);
/// framer.push(&bytes[3..]);
/// assert_eq!(framer.next_message::<BundleRef>()?.map(|bundle| bundle.name), Some("street".into()));
/// # Ok::<(), isthmus_proto::FramerError>(())
/// ```
#[derive(Debug)]
pub struct Framer {
    buffer: Vec<u8>,
    limit: usize,
}

impl Framer {
    /// A framer that refuses messages of more than `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Framer { buffer: Vec::new(), limit }
    }

    /// Adds bytes from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole message; `None` while bytes are missing. After an error the stream is lost.
    pub fn next_message<M: Message + Default>(&mut self) -> Result<Option<M>, FramerError> {
        let mut rest = &*self.buffer;
        let Some(announced) = varint::read(&mut rest) else { return Ok(None) };
        let length = match usize::try_from(announced) {
            Ok(length) if length <= self.limit => length,
            _ => return Err(FramerError::TooLarge { announced, limit: self.limit }),
        };
        let Some(body) = rest.get(..length) else { return Ok(None) };
        let message = M::decode(body)?;
        let used = self.buffer.len() - rest.len() + length;
        self.buffer.drain(..used);
        Ok(Some(message))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{BundleRef, Hello};
    use proptest::prelude::*;

    #[test]
    fn an_oversized_length_is_refused_before_its_bytes_come() {
        let mut framer = Framer::new(100);
        framer.push(&[0x40, 101]);
        assert!(matches!(
            framer.next_message::<Hello>(),
            Err(FramerError::TooLarge { announced: 101, limit: 100 })
        ));
    }

    proptest! {
        #[test]
        fn messages_survive_any_fragmentation(
            names in prop::collection::vec("[a-z]{0,80}", 1..6),
            step in 1usize..50,
        ) {
            let messages: Vec<_> =
                names.into_iter().map(|name| BundleRef { name, digest: vec![1] }).collect();
            let mut bytes = Vec::new();
            messages.iter().for_each(|message| write_message(&mut bytes, message));
            let (mut framer, mut got) = (Framer::new(1000), Vec::new());
            for chunk in bytes.chunks(step) {
                framer.push(chunk);
                while let Some(message) = framer.next_message::<BundleRef>()? {
                    got.push(message);
                }
            }
            prop_assert_eq!(got, messages);
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut framer = Framer::new(64);
            framer.push(&bytes);
            while let Ok(Some(_)) = framer.next_message::<Hello>() {}
        }
    }
}
