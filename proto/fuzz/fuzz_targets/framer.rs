//! Control messages from a stream that anybody may have sent, in pieces of any size.

#![no_main]

use isthmus_proto::wire::{ToDevice, ToServer};
use isthmus_proto::{Framer, MAX_CONTROL_BYTES};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &[u8])| {
    let (step, bytes) = input;
    let mut to_server = Framer::new(MAX_CONTROL_BYTES);
    let mut to_device = Framer::new(MAX_CONTROL_BYTES);
    for piece in bytes.chunks(usize::from(step).max(1)) {
        to_server.push(piece);
        to_device.push(piece);
        while let Ok(Some(_)) = to_server.next_message::<ToServer>() {}
        while let Ok(Some(_)) = to_device.next_message::<ToDevice>() {}
    }
});
