//! Holds what is true of any bytes that a peer may send, as functions that panic where it is not.
//!
//! Each of [`TARGETS`] is a fuzz target (`fuzz/targets`) and a property test (`fuzz/tests`) alike.
//! Both begin with the files under `fuzz/seeds`, which `cargo run -p isthmus-fuzz --example seeds`
//! writes.

#![forbid(unsafe_code)]

mod answers;
mod client;
mod coding;
mod server;

pub mod seeds;

pub use answers::answer;
pub use client::reply;
pub use coding::{context, frame, framer};
pub use server::server;

/// Panics where what is true of any bytes is not true of these.
pub type Body = fn(&[u8]);

/// What is fuzzed, by the name of its fuzz target and of its folder of seeds.
pub const TARGETS: [(&str, Body); 6] = [
    ("answer", answer),
    ("context", context),
    ("frame", frame),
    ("framer", framer),
    ("reply", reply),
    ("server", server),
];

/// Takes the first byte off, as a choice of the fuzzer's; 0 where there is none.
fn choice(bytes: &mut &[u8]) -> u8 {
    let Some((&first, rest)) = bytes.split_first() else { return 0 };
    *bytes = rest;
    first
}

/// `bytes` in pieces of `step` bytes, of 1 if that is 0.
fn pieces(bytes: &[u8], step: u8) -> impl Iterator<Item = &[u8]> {
    bytes.chunks(usize::from(step).max(1))
}
