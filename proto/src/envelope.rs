//! What surrounds a packet on its way to the server: who it is for and how long it may take.
//!
//! A frame on the wire is an envelope followed by a [packet](crate::packet):
//!
//! | bytes | content |
//! |---|---|
//! | 1 | flags, zero |
//! | 2 | frame id, the low 16 bits of the frame's number |
//! | 1, 2, 4 or 8 | time left, whole milliseconds, as a variable-length integer (RFC 9000, 16) |
//!
//! The time left is a duration, not an instant, because clocks of two machines are never compared.
//! The server counts it from the first byte it sees.

use std::time::Duration;

use crate::varint;

/// The part of a frame that differs each time it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Low 16 bits of the frame's number. A connection has far fewer than 2^16 unanswered frames,
    /// so a reply's id is never ambiguous.
    pub frame: u16,
    /// How long the server may take, in whole milliseconds; anything finer is cut off.
    pub time_left: Duration,
}

/// Why bytes are no envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Flags of a later version.
    #[error("envelope flags {0:#04x} are not known; none is")]
    Flags(u8),
}

impl Envelope {
    /// Appends the envelope's bytes.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.push(0);
        out.extend_from_slice(&self.frame.to_be_bytes());
        varint::write(out, u64::try_from(self.time_left.as_millis()).unwrap_or(varint::MAX));
    }

    /// The envelope at the front of `bytes` and its length (bytes); `None` while bytes are missing.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Envelope, usize)>, EnvelopeError> {
        match bytes.first() {
            Some(flags) if *flags != 0 => Err(EnvelopeError::Flags(*flags)),
            _ => Ok(parse(bytes)),
        }
    }
}

fn parse(bytes: &[u8]) -> Option<(Envelope, usize)> {
    let (_flags, mut rest) = bytes.split_first()?;
    let frame = u16::from_be_bytes(*take(&mut rest)?);
    let time_left = Duration::from_millis(varint::read(&mut rest)?);
    Some((Envelope { frame, time_left }, bytes.len() - rest.len()))
}

fn take<'a, const N: usize>(bytes: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(head)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn envelopes() -> impl Strategy<Value = Envelope> {
        (any::<u16>(), 0u64..1 << 40).prop_map(|(frame, millis)| Envelope {
            frame,
            time_left: Duration::from_millis(millis),
        })
    }

    proptest! {
        #[test]
        fn parsing_inverts_writing_and_waits_for_missing_bytes(envelope in envelopes()) {
            let mut bytes = Vec::new();
            envelope.write(&mut bytes);
            for cut in 0..bytes.len() {
                prop_assert_eq!(Envelope::parse(&bytes[..cut]), Ok(None));
            }
            let length = bytes.len();
            bytes.push(0xaa);
            prop_assert_eq!(Envelope::parse(&bytes), Ok(Some((envelope, length))));
        }
    }

    #[test]
    fn unknown_flags_are_refused() {
        assert_eq!(Envelope::parse(&[0x01]), Err(EnvelopeError::Flags(0x01)));
    }
}
