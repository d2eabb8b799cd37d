//! Notifications to the service manager that started the program, in the protocol of `sd_notify(3)`.

use std::cell::Cell;
use std::env;
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::{Duration, Instant};

/// Names the service manager's socket.
const VARIABLE: &str = "NOTIFY_SOCKET";

/// The watchdog is fed at most this often.
const FEEDING: Duration = Duration::from_secs(1);

/// A service manager, or nobody.
pub(crate) struct ServiceManager {
    socket: Option<UnixDatagram>,
    fed: Cell<Option<Instant>>,
}

impl ServiceManager {
    /// The one that has started this program; nobody where the environment names none, or one that
    /// cannot be reached, which is logged.
    pub(crate) fn from_env() -> ServiceManager {
        let address = env::var_os(VARIABLE);
        let socket = address.and_then(|address| {
            let unreachable = |error| tracing::warn!(?address, %error, "no {VARIABLE}");
            connect(&address).map_err(unreachable).ok()
        });
        ServiceManager { socket, fed: Cell::new(None) }
    }

    /// The client is connected and takes frames.
    pub(crate) fn ready(&self) {
        self.notify("READY=1");
    }

    /// A frame was answered: camera, head and session are alive. No timer feeds the watchdog in their
    /// place.
    pub(crate) fn answered(&self) {
        let now = Instant::now();
        if self.fed.get().is_none_or(|fed| now - fed >= FEEDING) {
            self.fed.set(Some(now));
            self.notify("WATCHDOG=1");
        }
    }

    /// There will be no more answers.
    pub(crate) fn stopping(&self) {
        self.notify("STOPPING=1");
    }

    fn notify(&self, state: &str) {
        if let Some(Err(error)) = self.socket.as_ref().map(|socket| socket.send(state.as_bytes())) {
            tracing::warn!(state, %error, "the service manager could not be notified");
        }
    }
}

/// A socket's path, or, behind `@`, its name in Linux's abstract namespace.
fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => abstract_address(name)?,
        _ => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    // A manager that does not read must not hold up frames.
    socket.set_nonblocking(true)?;
    Ok(socket)
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &[u8]) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt;
    SocketAddr::from_abstract_name(name)
}

#[cfg(not(target_os = "linux"))]
fn abstract_address(_name: &[u8]) -> io::Result<SocketAddr> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_manager_without_a_path_is_notified_too_and_fed_in_moderation() {
        let name = format!("isthmus-{}", std::process::id());
        let address = abstract_address(name.as_bytes()).expect("a name");
        let manager = UnixDatagram::bind_addr(&address).expect("bound");
        let socket = connect(format!("@{name}").as_ref()).expect("connected");
        let service = ServiceManager { socket: Some(socket), fed: Cell::new(None) };
        for _ in 0..3 {
            service.answered();
        }
        service.stopping();
        let mut message = [0; 64];
        for expected in ["WATCHDOG=1", "STOPPING=1"] {
            let length = manager.recv(&mut message).expect("notified");
            assert_eq!(&message[..length], expected.as_bytes());
        }
    }

    #[test]
    fn a_socket_that_is_not_there_is_an_error() {
        assert!(connect("/nowhere/notify".as_ref()).is_err());
        assert!(connect("@nobody-listens-here".as_ref()).is_err());
    }
}
