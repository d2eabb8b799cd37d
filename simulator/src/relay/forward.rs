//! Where to relay from and to.

use std::net::{Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// A proxy as the command line says it, `LISTEN=UPSTREAM`: `IP:PORT=HOST:PORT` or, to listen on the
/// loopback interface, `PORT=HOST:PORT`. Port 0 is any that is free.
///
/// ```
/// use isthmus_simulator::relay::Forward;
///
/// let forward: Forward = "5000=localhost:4433".parse()?;
/// assert_eq!(forward.listen.to_string(), "127.0.0.1:5000");
/// assert_eq!(forward.upstream, "localhost:4433");
/// # Ok::<(), isthmus_simulator::relay::ForwardError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forward {
    /// Where clients are listened to.
    pub listen: SocketAddr,
    /// Host and port of the server.
    pub upstream: String,
}

/// Why a text is no [`Forward`].
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ForwardError {
    /// There is no `=`.
    #[error("{0:?} is not LISTEN=UPSTREAM, such as 127.0.0.1:5000=192.0.2.7:4433")]
    Form(String),
    /// What is before it.
    #[error("{0:?} is nowhere to listen: IP:PORT or PORT is expected, such as 127.0.0.1:5000")]
    Listen(String),
    /// What is behind it.
    #[error("{0:?} is not an upstream; expected HOST:PORT, such as 192.0.2.7:4433")]
    Upstream(String),
}

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let form = || ForwardError::Form(text.to_owned());
        let (listen, upstream) = text.split_once('=').ok_or_else(form)?;
        let port = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let parsed = listen.parse().or_else(|_| listen.parse().map(port));
        let listen = parsed.map_err(|_| ForwardError::Listen(listen.to_owned()))?;
        let of_host = |(host, port): (&str, &str)| {
            !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0)
        };
        match upstream.rsplit_once(':').is_some_and(of_host) {
            true => Ok(Forward { listen, upstream: upstream.to_owned() }),
            false => Err(ForwardError::Upstream(upstream.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_both_families_and_names_are_read() {
        for (text, listen, upstream) in [
            ("0=localhost:80", "127.0.0.1:0", "localhost:80"),
            ("[::1]:7=[2001:db8::1]:9", "[::1]:7", "[2001:db8::1]:9"),
            ("0.0.0.0:7=192.0.2.7:9", "0.0.0.0:7", "192.0.2.7:9"),
        ] {
            let forward: Forward = text.parse().expect(text);
            assert_eq!(
                (forward.listen.to_string().as_str(), &*forward.upstream),
                (listen, upstream)
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| text.parse::<Forward>().expect_err(text).to_string();
        assert!(error("5000").contains("LISTEN=UPSTREAM"));
        assert!(error("localhost:1=a:2").contains("\"localhost:1\" is nowhere to listen"));
        for upstream in ["a", "a:", "a:0", ":1", "a:99999"] {
            let said = error(&format!("1={upstream}"));
            assert!(said.contains(&format!("{upstream:?} is not an upstream")), "{said}");
        }
    }
}
