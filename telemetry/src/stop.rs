//! Requests to end the program, SIGINT and SIGTERM, and to read its files again, SIGHUP.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// Completes when the program is asked to end, with SIGINT or SIGTERM. Both are caught from now on, not
/// only once this is awaited. To be called within a Tokio runtime.
///
/// # Errors
///
/// If the system refuses a handler of a signal.
pub fn signalled() -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Requests to read files again, with SIGHUP.
#[derive(Debug)]
pub struct Reload(Signal);

impl Reload {
    /// Catches the signal from now on. To be called within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// If the system refuses a handler of the signal.
    pub fn new() -> io::Result<Self> {
        signal(SignalKind::hangup()).map(Reload)
    }

    /// Completes when the program is asked to.
    pub async fn asked(&mut self) {
        // Without a signal to come, nobody will ask.
        if self.0.recv().await.is_none() {
            std::future::pending().await
        }
    }
}
