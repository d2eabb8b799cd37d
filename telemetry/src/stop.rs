//! Requests to end the program: SIGINT and SIGTERM.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

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
