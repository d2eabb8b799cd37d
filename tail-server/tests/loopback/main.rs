#![cfg(feature = "shell")]
//! The server over real sockets on the loopback interface, against devices written by hand.

mod bundle;
mod crowd;
mod device;
mod grpc;
mod hostile_grpc;
mod http;
mod quic;
