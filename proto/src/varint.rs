//! Variable-length integers of RFC 9000, section 16: the first byte's two top bits give the
//! length, 1, 2, 4 or 8 bytes.

/// Largest encodable value.
pub(crate) const MAX: u64 = (1 << 62) - 1;

/// Appends `value`, clamped to [`MAX`].
pub(crate) fn write(out: &mut Vec<u8>, value: u64) {
    match value {
        0..=0x3f => out.push(value as u8),
        0x40..=0x3fff => out.extend_from_slice(&(value as u16 | 0x4000).to_be_bytes()),
        0x4000..=0x3fff_ffff => {
            out.extend_from_slice(&(value as u32 | 0x8000_0000).to_be_bytes());
        }
        _ => out.extend_from_slice(&(value.min(MAX) | 0xc000_0000_0000_0000).to_be_bytes()),
    }
}

/// Takes a value off the front of `bytes`; `None` while bytes are missing.
pub(crate) fn read(bytes: &mut &[u8]) -> Option<u64> {
    let length = 1 << (bytes.first()? >> 6);
    let (head, rest) = bytes.split_at_checked(length)?;
    let value = head.iter().fold(0, |value, &byte| value << 8 | u64::from(byte));
    *bytes = rest;
    Some(value & ((1 << (8 * length - 2)) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_examples_of_rfc_9000_appendix_a_1() {
        let cases: [(&[u8], u64); 4] = [
            (&[0xc2, 0x19, 0x7c, 0x5e, 0xff, 0x14, 0xe8, 0x8c], 151_288_809_941_952_652),
            (&[0x9d, 0x7f, 0x3e, 0x7d], 494_878_333),
            (&[0x7b, 0xbd], 15_293),
            (&[0x25], 37),
        ];
        for (bytes, value) in cases {
            let mut out = Vec::new();
            write(&mut out, value);
            assert_eq!(out, bytes);
            assert_eq!(read(&mut &*out), Some(value));
        }
    }

    proptest! {
        #[test]
        fn reads_what_it_wrote_and_waits_for_missing_bytes(value in 0..=MAX) {
            let mut out = Vec::new();
            write(&mut out, value);
            let mut rest = &*out;
            prop_assert_eq!(read(&mut rest), Some(value));
            prop_assert!(rest.is_empty());
            for cut in 0..out.len() {
                prop_assert_eq!(read(&mut &out[..cut]), None);
            }
        }
    }
}
