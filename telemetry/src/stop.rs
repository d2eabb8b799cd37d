//! The wish that a program end.

use std::io;

/// Comes when somebody asks the program to end: with SIGINT or SIGTERM, elsewhere with Ctrl-C. Both
/// are heard from now on, not only once this is awaited. To be called within a Tokio runtime.
///
/// # Errors
///
/// Where the system lets nobody listen for a signal.
#[cfg(unix)]
pub fn asked() -> io::Result<impl Future<Output = ()> + Send + 'static> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Comes when somebody asks the program to end: with Ctrl-C. To be called within a Tokio runtime.
///
/// # Errors
///
/// Where the system lets nobody listen for it.
#[cfg(windows)]
pub fn asked() -> io::Result<impl Future<Output = ()> + Send + 'static> {
    let mut asked = tokio::signal::windows::ctrl_c()?;
    Ok(async move {
        asked.recv().await;
    })
}
