//! What surrounds a packet on its way to the server: who it is for and how long it may take.
//!
//! A frame on the wire is an envelope followed by a [packet](crate::packet), a probe one followed by
//! padding:
//!
//! | bytes | content |
//! |---|---|
//! | 1 | flags: bit 0, a probe; the rest zero |
//! | 2 | frame id, the low 16 bits of the frame's number |
//! | 1, 2, 4 or 8 | time left, whole milliseconds, as a variable-length integer (RFC 9000, 16) |
//! | 1 to 4, … | of a probe: length of the padding as a variable-length integer, and the padding |
//!
//! A probe asks nothing of the server but its echo, from which the device learns how long so many bytes take.
//!
//! The time left is a duration, not an instant, because clocks of two machines are never compared.
//! The server counts it from the first byte it sees.

use std::time::Duration;

use crate::varint;

const IS_PROBE: u8 = 1;

/// The part of a frame that differs each time it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Envelope {
    /// Low 16 bits of the frame's number. A connection has far fewer than 2^16 unanswered frames,
    /// so a reply's id is never ambiguous.
    pub frame: u16,
    /// How long the server may take, in whole milliseconds; anything finer is cut off.
    pub time_left: Duration,
    /// Whether padding follows instead of a packet.
    pub probe: bool,
}

/// Why bytes are no envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// Flags of a later version.
    #[error("envelope flags {0:#04x} are not known; only bit 0 is")]
    Flags(u8),
}

impl Envelope {
    /// Appends the envelope's bytes.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.push(if self.probe { IS_PROBE } else { 0 });
        out.extend_from_slice(&self.frame.to_be_bytes());
        varint::write(out, u64::try_from(self.time_left.as_millis()).unwrap_or(varint::MAX));
    }

    /// The envelope at the front of `bytes` and its length (bytes); `None` while bytes are missing.
    pub fn parse(bytes: &[u8]) -> Result<Option<(Envelope, usize)>, EnvelopeError> {
        match bytes.first() {
            Some(flags) if flags & !IS_PROBE != 0 => Err(EnvelopeError::Flags(*flags)),
            _ => Ok(parse(bytes)),
        }
    }
}

/// Appends `padding` zero bytes and, before them, their number.
pub fn write_padding(out: &mut Vec<u8>, padding: usize) {
    varint::write(out, padding as u64);
    out.resize(out.len() + padding, 0);
}

/// Bytes of the padding that follows a probe's envelope, its length included, saturating; `None`
/// while bytes of that length are missing.
pub fn padding_len(bytes: &[u8]) -> Option<usize> {
    let mut rest = bytes;
    let padding = usize::try_from(varint::read(&mut rest)?).unwrap_or(usize::MAX);
    Some(padding.saturating_add(bytes.len() - rest.len()))
}

fn parse(bytes: &[u8]) -> Option<(Envelope, usize)> {
    let (flags, mut rest) = bytes.split_first()?;
    let frame = u16::from_be_bytes(*take(&mut rest)?);
    let time_left = Duration::from_millis(varint::read(&mut rest)?);
    let probe = flags & IS_PROBE != 0;
    Some((Envelope { frame, time_left, probe }, bytes.len() - rest.len()))
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
        let fields = (any::<u16>(), 0u64..1 << 40, any::<bool>());
        fields.prop_map(|(frame, millis, probe)| Envelope {
            frame,
            time_left: Duration::from_millis(millis),
            probe,
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
        assert_eq!(Envelope::parse(&[0x02]), Err(EnvelopeError::Flags(0x02)));
    }

    #[test]
    fn padding_tells_its_length_once_that_is_there() {
        let mut bytes = Vec::new();
        write_padding(&mut bytes, 300);
        assert_eq!((bytes.len(), padding_len(&bytes)), (302, Some(302)));
        assert_eq!((padding_len(&bytes[..2]), padding_len(&bytes[..1])), (Some(302), None));
    }
}
