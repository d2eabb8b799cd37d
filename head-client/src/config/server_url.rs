//! Where a server is: `quic://HOST:PORT` or `grpc://HOST:PORT`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, de};

/// How the server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// QUIC: one stream per frame.
    Quic,
    /// gRPC: one stream for all.
    Grpc,
}

/// Where the server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerUrl {
    /// How it is reached.
    pub transport: Transport,
    /// Its name or address, which a certificate of an authority has to be issued for.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// A text that is not a server's URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid server URL {0:?}; expected quic://HOST:PORT or grpc://HOST:PORT")]
pub struct UrlError(String);

impl Transport {
    /// The scheme of its URLs.
    pub const fn scheme(self) -> &'static str {
        match self {
            Transport::Quic => "quic",
            Transport::Grpc => "grpc",
        }
    }

    /// The port of URLs that name none.
    pub const fn default_port(self) -> u16 {
        match self {
            Transport::Quic => 4433,
            Transport::Grpc => 8001,
        }
    }
}

impl FromStr for ServerUrl {
    type Err = UrlError;

    fn from_str(text: &str) -> Result<Self, UrlError> {
        parse_url(text).ok_or_else(|| UrlError(text.to_owned()))
    }
}

fn parse_url(text: &str) -> Option<ServerUrl> {
    let (scheme, authority) = text.split_once("://")?;
    let transport = match scheme {
        "quic" => Transport::Quic,
        "grpc" => Transport::Grpc,
        _ => return None,
    };
    let authority = authority.strip_suffix('/').unwrap_or(authority);
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => rest.split_once(']').map(|(host, port)| (host, port.strip_prefix(':')))?,
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = match port {
        Some(port) => port.parse().ok().filter(|&port| port > 0)?,
        None => transport.default_port(),
    };
    let bad = |c: char| c.is_whitespace() || matches!(c, '/' | '@' | '?' | '#');
    (!host.is_empty() && !host.contains(bad)).then(|| ServerUrl {
        transport,
        host: host.to_owned(),
        port,
    })
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ServerUrl { transport, host, port } = self;
        match host.contains(':') {
            true => write!(f, "{}://[{host}]:{port}", transport.scheme()),
            false => write!(f, "{}://{host}:{port}", transport.scheme()),
        }
    }
}

impl<'de> Deserialize<'de> for ServerUrl {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_survive_text() {
        for url in ["quic://localhost:4433", "grpc://10.0.0.1:8001", "quic://[::1]:9"] {
            assert_eq!(url.parse::<ServerUrl>().expect(url).to_string(), url);
        }
        let short: ServerUrl = "grpc://server.example".parse().expect("a default port");
        assert_eq!(short.port, 8001);
        for bad in [
            "",
            "http://a:1",
            "quic://",
            "quic://:4433",
            "quic://a:0",
            "quic://a:x",
            "a:1",
            "quic://[::1",
            "quic://a b:1",
            "quic://a/b",
        ] {
            assert!(bad.parse::<ServerUrl>().is_err(), "{bad}");
        }
    }
}
