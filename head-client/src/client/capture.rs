//! The capture thread: it reads a source at its rate, ahead of the client.

use std::io;
use std::thread;
use std::time::{Duration, Instant};

use isthmus_proto::FrameId;
use tokio::sync::mpsc;

use crate::source::SourceFrame;

/// A frame in memory.
pub(super) struct Capture {
    pub(super) frame: FrameId,
    pub(super) at: Instant,
    pub(super) content: SourceFrame,
}

/// Starts a thread that reads `source`. It ends with the source or with the receiver, and reads at
/// most two pictures ahead.
pub(super) fn start(
    source: impl Iterator<Item = SourceFrame> + Send + 'static,
    rate: Option<f64>,
) -> io::Result<mpsc::Receiver<Capture>> {
    let (sender, receiver) = mpsc::channel(1);
    thread::Builder::new().name("capture".into()).spawn(move || {
        let start = Instant::now();
        for (number, content) in (0u64..).zip(source) {
            if let Some(rate) = rate {
                let due = start + Duration::from_secs_f64(number as f64 / rate);
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
            let capture = Capture { frame: FrameId(number), at: Instant::now(), content };
            if sender.blocking_send(capture).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}
