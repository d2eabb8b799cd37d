//! The capture thread: it reads a source at its rate, ahead of the client.

use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::thread;
use std::time::{Duration, Instant};

use isthmus_proto::FrameId;
use tokio::sync::mpsc;

use super::worker::words;
use crate::source::SourceFrame;

/// A frame in memory.
pub(super) struct Capture {
    pub(super) frame: FrameId,
    pub(super) at: Instant,
    pub(super) content: SourceFrame,
}

/// What comes of the thread: frames, or what its panic said.
pub(super) type Captured = Result<Capture, String>;

/// Starts a thread that reads `source`. It ends with the source or with the receiver, and reads at
/// most two pictures ahead.
pub(super) fn start(
    source: impl Iterator<Item = SourceFrame> + Send + 'static,
    rate: Option<f64>,
) -> io::Result<mpsc::Receiver<Captured>> {
    let (sender, receiver) = mpsc::channel(1);
    thread::Builder::new().name("capture".into()).spawn(move || {
        let start = Instant::now();
        let read = || {
            for (number, content) in (0u64..).zip(source) {
                if let Some(rate) = rate {
                    let due = start + Duration::from_secs_f64(number as f64 / rate);
                    thread::sleep(due.saturating_duration_since(Instant::now()));
                }
                let capture = Capture { frame: FrameId(number), at: Instant::now(), content };
                if sender.blocking_send(Ok(capture)).is_err() {
                    return;
                }
            }
        };
        if let Err(cause) = panic::catch_unwind(AssertUnwindSafe(read)) {
            // Fails when nobody wants frames any more.
            let _ = sender.blocking_send(Err(words(&*cause).to_owned()));
        }
    })?;
    Ok(receiver)
}
