//! What an operator may choose, from a file, the environment and the command line.

use std::env;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use isthmus_models::{EngineKind, OrtProvider};
use isthmus_telemetry::spans::endpoint;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::receiver::ReceiverConfig;
use crate::tls::TlsConfig;

/// Options as they were given: on the command line, in the environment (`ISTHMUS_…`) or in a TOML
/// file, in this order of precedence. Unknown keys in a file are errors.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Folder whose sub-folders are the bundles to serve.
    #[arg(long, value_name = "DIR", env = "ISTHMUS_MODEL_REPOSITORY")]
    pub model_repository: Option<PathBuf>,
    /// What runs the networks: tract (embedded), ort (an installed ONNX Runtime) or auto (ort where it
    /// is there) [default: tract]
    #[arg(long, value_name = "NAME", env = "ISTHMUS_ENGINE")]
    pub engine: Option<EngineKind>,
    /// What computes for ort, the first that can: cpu, xnnpack, cuda, tensorrt, those that the
    /// installed library has [default: cpu]
    #[arg(long, value_name = "LIST", value_delimiter = ',', env = "ISTHMUS_ORT_PROVIDERS")]
    pub ort_providers: Option<Vec<OrtProvider>>,
    /// Address to listen on [default: 0.0.0.0]
    #[arg(long, value_name = "IP", env = "ISTHMUS_ADDRESS")]
    pub address: Option<IpAddr>,
    /// Transports to offer [default: quic,grpc]
    #[arg(long, value_name = "LIST", value_delimiter = ',', env = "ISTHMUS_TRANSPORTS")]
    pub transports: Option<Vec<Transport>>,
    /// UDP port for QUIC; 0 takes a free one [default: 4433]
    #[arg(long, value_name = "PORT", env = "ISTHMUS_QUIC_PORT")]
    pub quic_port: Option<u16>,
    /// TCP port for gRPC; 0 takes a free one [default: 8001]
    #[arg(long, value_name = "PORT", env = "ISTHMUS_GRPC_PORT")]
    pub grpc_port: Option<u16>,
    /// Whether to serve health over HTTP [default: true]
    #[arg(long, value_name = "BOOL", env = "ISTHMUS_ALLOW_HTTP")]
    pub allow_http: Option<bool>,
    /// TCP port for health over HTTP; 0 takes a free one [default: 8000]
    #[arg(long, value_name = "PORT", env = "ISTHMUS_HTTP_PORT")]
    pub http_port: Option<u16>,
    /// Whether to offer metrics over HTTP [default: true]
    #[arg(long, value_name = "BOOL", env = "ISTHMUS_ALLOW_METRICS")]
    pub allow_metrics: Option<bool>,
    /// TCP port for Prometheus over HTTP; 0 takes a free one [default: 8002]
    #[arg(long, value_name = "PORT", env = "ISTHMUS_METRICS_PORT")]
    pub metrics_port: Option<u16>,
    /// Collector of OpenTelemetry to send the spans of frames to that their devices sample (OTLP
    /// over gRPC), such as http://localhost:4317 [default: $OTEL_EXPORTER_OTLP_TRACES_ENDPOINT,
    /// $OTEL_EXPORTER_OTLP_ENDPOINT, or none]
    #[arg(long, value_name = "URL", env = "ISTHMUS_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// Whether the server is ready only when all bundles are loaded, or as soon as it answers over
    /// HTTP [default: true]
    #[arg(long, value_name = "BOOL", env = "ISTHMUS_STRICT_READINESS")]
    pub strict_readiness: Option<bool>,
    /// Certificate chain (PEM), the server's own first; needs --tls-key
    #[arg(long, value_name = "FILE", env = "ISTHMUS_TLS_CERT")]
    pub tls_cert: Option<PathBuf>,
    /// Private key of the certificate (PEM); needs --tls-cert
    #[arg(long, value_name = "FILE", env = "ISTHMUS_TLS_KEY")]
    pub tls_key: Option<PathBuf>,
    /// Where the self-signed certificate is kept, which is made on first start when no --tls-cert
    /// is given [default: $XDG_STATE_HOME/isthmus/tls, or ~/.local/state/isthmus/tls]
    #[arg(long, value_name = "DIR", env = "ISTHMUS_TLS_DIR")]
    pub tls_dir: Option<PathBuf>,
    /// Most frames in one run of the tail; more raises throughput under load and the latency of
    /// each frame in the batch [default: 8]
    #[arg(long, value_name = "N", env = "ISTHMUS_MAX_BATCH")]
    pub max_batch: Option<usize>,
    /// Most frames waiting for a worker; more are refused [default: 256]
    #[arg(long, value_name = "N", env = "ISTHMUS_QUEUE")]
    pub queue: Option<usize>,
    /// Threads that run the tail [default: one per core]
    #[arg(long, value_name = "N", env = "ISTHMUS_WORKERS")]
    pub workers: Option<usize>,
    /// Most unanswered frames of one connection; more are refused [default: 32]
    #[arg(long, value_name = "N", env = "ISTHMUS_MAX_IN_FLIGHT")]
    pub max_in_flight: Option<usize>,
    /// Most connections; one more takes the place of one that is idle, or is refused [default: 256]
    #[arg(long, value_name = "N", env = "ISTHMUS_MAX_CONNECTIONS")]
    pub max_connections: Option<usize>,
    /// Most connections of one address (of IPv6 one /64), treated alike [default: half of
    /// --max-connections]
    #[arg(long, value_name = "N", env = "ISTHMUS_MAX_CONNECTIONS_PER_ADDRESS")]
    pub max_connections_per_address: Option<usize>,
    /// Most bytes kept of frames that are being received or wait and of replies that have not left;
    /// beyond it the connection of which most is kept loses its largest frame [default: 67108864]
    #[arg(long, value_name = "BYTES", env = "ISTHMUS_MAX_BUFFERED_BYTES")]
    pub max_buffered_bytes: Option<usize>,
    /// Largest frame accepted (bytes) [default: 1048576]
    #[arg(long, value_name = "BYTES", env = "ISTHMUS_MAX_FRAME_BYTES")]
    pub max_frame_bytes: Option<usize>,
    /// Longest stay of a frame, whatever time it says it has left [default: 60s]
    #[arg(long, value_name = "DURATION", env = "ISTHMUS_MAX_STAY",
          value_parser = humantime::parse_duration)]
    #[serde(deserialize_with = "duration")]
    pub max_stay: Option<Duration>,
    /// How long a stopping server may take to answer what it accepted [default: 30s]
    #[arg(long, value_name = "DURATION", env = "ISTHMUS_EXIT_TIMEOUT",
          value_parser = humantime::parse_duration)]
    #[serde(deserialize_with = "duration")]
    pub exit_timeout: Option<Duration>,
}

/// A transport by which devices reach the server.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// QUIC: one stream per frame.
    Quic,
    /// gRPC: one call per device.
    Grpc,
}

/// Everything a [`Server`](crate::Server) needs to know, checked when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Folder whose sub-folders are the bundles to serve.
    pub model_repository: PathBuf,
    /// What runs the networks.
    pub engine: EngineKind,
    /// What computes for an ONNX Runtime, the first that can; none leaves it to the CPU.
    pub ort_providers: Vec<OrtProvider>,
    /// Where QUIC listens; port 0 takes a free one; `None` does not offer it.
    pub quic: Option<SocketAddr>,
    /// Where gRPC listens; port 0 takes a free one; `None` does not offer it.
    pub grpc: Option<SocketAddr>,
    /// Where health is served over HTTP; port 0 takes a free one; `None` does not serve it.
    pub http: Option<SocketAddr>,
    /// Where Prometheus finds metrics over HTTP; port 0 takes a free one; `None` does not offer
    /// them.
    pub metrics: Option<SocketAddr>,
    /// The URL of the collector that gets spans (OTLP over gRPC); `None` makes none.
    pub otlp_endpoint: Option<String>,
    /// Whether the server is ready only when all bundles are loaded, or as soon as it answers.
    pub strict_readiness: bool,
    /// Where the certificate comes from.
    pub tls: TlsConfig,
    /// Most frames in one run of the tail, from 1 to 1024.
    pub max_batch: usize,
    /// Most frames waiting for a worker, at least 1.
    pub queue: usize,
    /// Threads that run the tail, from 1 to 1024.
    pub workers: usize,
    /// Most unanswered frames of one connection, from 1 to 4096.
    pub max_in_flight: usize,
    /// Most connections, at least 1.
    pub max_connections: usize,
    /// Most connections of one IPv4 address or IPv6 /64, at least 1.
    pub max_connections_per_address: usize,
    /// Most bytes kept of frames that are being received or wait and of replies that have not left;
    /// at least a frame of `max_frame_bytes`.
    pub max_buffered_bytes: usize,
    /// Largest frame accepted (bytes), from 64 to 64 MiB.
    pub max_frame_bytes: usize,
    /// Longest stay of a frame, whatever time it says it has left; more than zero.
    pub max_stay: Duration,
    /// How long [`Server::shutdown`](crate::Server::shutdown) waits for accepted frames.
    pub exit_timeout: Duration,
}

/// Why options are no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be read.
    #[error("{}: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The configuration file is no TOML, or has unknown keys or values of a wrong type.
    #[error("{}: {source}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A value is missing, or is needed together with another one.
    #[error("{0}")]
    Missing(&'static str),
    /// A value is outside its range.
    #[error("{option} is {value}, it has to be from {min} to {max}")]
    Range {
        /// The option.
        option: &'static str,
        /// Its value.
        value: usize,
        /// Least value.
        min: usize,
        /// Greatest value.
        max: usize,
    },
}

impl Options {
    /// Options from a TOML file.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.into(), source })?;
        toml::from_str(&text).map_err(|source| ConfigError::Malformed {
            path: path.into(),
            source: Box::new(source),
        })
    }

    /// These options, and where they leave something open, those of `fallback`.
    pub fn or(self, fallback: Options) -> Options {
        Options {
            model_repository: self.model_repository.or(fallback.model_repository),
            engine: self.engine.or(fallback.engine),
            ort_providers: self.ort_providers.or(fallback.ort_providers),
            address: self.address.or(fallback.address),
            transports: self.transports.or(fallback.transports),
            quic_port: self.quic_port.or(fallback.quic_port),
            grpc_port: self.grpc_port.or(fallback.grpc_port),
            allow_http: self.allow_http.or(fallback.allow_http),
            http_port: self.http_port.or(fallback.http_port),
            allow_metrics: self.allow_metrics.or(fallback.allow_metrics),
            metrics_port: self.metrics_port.or(fallback.metrics_port),
            otlp_endpoint: self.otlp_endpoint.or(fallback.otlp_endpoint),
            strict_readiness: self.strict_readiness.or(fallback.strict_readiness),
            tls_cert: self.tls_cert.or(fallback.tls_cert),
            tls_key: self.tls_key.or(fallback.tls_key),
            tls_dir: self.tls_dir.or(fallback.tls_dir),
            max_batch: self.max_batch.or(fallback.max_batch),
            queue: self.queue.or(fallback.queue),
            workers: self.workers.or(fallback.workers),
            max_in_flight: self.max_in_flight.or(fallback.max_in_flight),
            max_connections: self.max_connections.or(fallback.max_connections),
            max_connections_per_address: self
                .max_connections_per_address
                .or(fallback.max_connections_per_address),
            max_buffered_bytes: self.max_buffered_bytes.or(fallback.max_buffered_bytes),
            max_frame_bytes: self.max_frame_bytes.or(fallback.max_frame_bytes),
            max_stay: self.max_stay.or(fallback.max_stay),
            exit_timeout: self.exit_timeout.or(fallback.exit_timeout),
        }
    }

    /// Where health is served over HTTP.
    pub fn http(&self) -> Option<SocketAddr> {
        let port = self.http_port.unwrap_or(8000);
        self.allow_http.unwrap_or(true).then(|| SocketAddr::new(self.listen_on(), port))
    }

    /// Where metrics are offered over HTTP.
    fn metrics(&self) -> Option<SocketAddr> {
        let port = self.metrics_port.unwrap_or(8002);
        self.allow_metrics.unwrap_or(true).then(|| SocketAddr::new(self.listen_on(), port))
    }

    fn listen_on(&self) -> IpAddr {
        self.address.unwrap_or(Ipv4Addr::UNSPECIFIED.into())
    }

    /// The configuration that these options and the defaults describe.
    pub fn into_config(self) -> Result<ServerConfig, ConfigError> {
        let (http, metrics, address) = (self.http(), self.metrics(), self.listen_on());
        let model_repository = self
            .model_repository
            .ok_or(ConfigError::Missing("a model repository is needed (--model-repository)"))?;
        let tls = match (self.tls_cert, self.tls_key, self.tls_dir.or_else(state_dir)) {
            (Some(cert), Some(key), _) => TlsConfig::Files { cert, key },
            (None, None, Some(dir)) => TlsConfig::SelfSigned { dir },
            (None, None, None) => {
                return Err(ConfigError::Missing(
                    "no home folder to keep a certificate in: give --tls-dir, or --tls-cert and \
                     --tls-key",
                ));
            }
            _ => return Err(ConfigError::Missing("--tls-cert and --tls-key need each other")),
        };
        let defaults = ServerConfig::new(model_repository, tls);
        let transports = self.transports.unwrap_or_else(|| vec![Transport::Quic, Transport::Grpc]);
        let listen = |transport, port: Option<u16>, default| {
            let offered = transports.contains(&transport);
            offered.then(|| SocketAddr::new(address, port.unwrap_or(default)))
        };
        let max_connections = self.max_connections.unwrap_or(defaults.max_connections);
        let config = ServerConfig {
            engine: self.engine.unwrap_or_default(),
            ort_providers: self.ort_providers.unwrap_or_default(),
            quic: listen(Transport::Quic, self.quic_port, 4433),
            grpc: listen(Transport::Grpc, self.grpc_port, 8001),
            http,
            metrics,
            otlp_endpoint: endpoint(self.otlp_endpoint),
            strict_readiness: self.strict_readiness.unwrap_or(defaults.strict_readiness),
            max_batch: self.max_batch.unwrap_or(defaults.max_batch),
            queue: self.queue.unwrap_or(defaults.queue),
            workers: self.workers.unwrap_or(defaults.workers),
            max_in_flight: self.max_in_flight.unwrap_or(defaults.max_in_flight),
            max_connections,
            max_connections_per_address: self
                .max_connections_per_address
                .unwrap_or(max_connections.div_ceil(2)),
            max_buffered_bytes: self.max_buffered_bytes.unwrap_or(defaults.max_buffered_bytes),
            max_frame_bytes: self.max_frame_bytes.unwrap_or(defaults.max_frame_bytes),
            max_stay: self.max_stay.unwrap_or(defaults.max_stay),
            exit_timeout: self.exit_timeout.unwrap_or(defaults.exit_timeout),
            ..defaults
        };
        config.validate()?;
        Ok(config)
    }
}

impl ServerConfig {
    /// The defaults, with QUIC and gRPC on free ports of the loopback interface, and no HTTP.
    pub fn new(model_repository: PathBuf, tls: TlsConfig) -> Self {
        let loopback = Some(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), 0));
        let receiver = ReceiverConfig::default();
        ServerConfig {
            model_repository,
            engine: EngineKind::default(),
            ort_providers: Vec::new(),
            quic: loopback,
            grpc: loopback,
            http: None,
            metrics: None,
            otlp_endpoint: None,
            strict_readiness: true,
            tls,
            max_batch: 8,
            queue: 256,
            workers: thread::available_parallelism().map_or(1, usize::from),
            max_in_flight: 32,
            max_connections: 256,
            max_connections_per_address: 256,
            max_buffered_bytes: 64 << 20,
            max_frame_bytes: receiver.max_frame_bytes,
            max_stay: receiver.max_stay,
            exit_timeout: Duration::from_secs(30),
        }
    }

    /// Checks every value's range.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.quic.is_none() && self.grpc.is_none() {
            return Err(ConfigError::Missing("at least one transport is needed (--transports)"));
        }
        if self.max_stay.is_zero() {
            return Err(ConfigError::Missing("max_stay has to be more than zero"));
        }
        let ranges = [
            ("max_batch", self.max_batch, 1, 1024),
            ("queue", self.queue, 1, usize::MAX),
            ("workers", self.workers, 1, 1024),
            ("max_in_flight", self.max_in_flight, 1, 4096),
            ("max_connections", self.max_connections, 1, usize::MAX),
            ("max_connections_per_address", self.max_connections_per_address, 1, usize::MAX),
            ("max_buffered_bytes", self.max_buffered_bytes, self.max_frame_bytes, usize::MAX),
            ("max_frame_bytes", self.max_frame_bytes, 64, 64 << 20),
        ];
        for (option, value, min, max) in ranges {
            if !(min..=max).contains(&value) {
                return Err(ConfigError::Range { option, value, min, max });
            }
        }
        Ok(())
    }
}

/// Reads a file's duration, such as `"15s"`.
fn duration<'de, D: Deserializer<'de>>(value: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(value)?;
    humantime::parse_duration(&text).map(Some).map_err(|error| {
        let problem = format!("{text:?} is not a duration: {error}");
        D::Error::custom(format!("{problem}; expected one such as \"15s\" or \"2m\""))
    })
}

fn state_dir() -> Option<PathBuf> {
    let dir = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let state = dir("XDG_STATE_HOME").or_else(|| Some(dir("HOME")?.join(".local/state")))?;
    Some(state.join("isthmus/tls"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Options, String> {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let path = dir.path().join("server.toml");
        fs::write(&path, text).expect("written");
        Options::from_file(&path).map_err(|error| error.to_string())
    }

    fn repository() -> Options {
        Options {
            model_repository: Some("bundles".into()),
            tls_dir: Some("tls".into()),
            ..Options::default()
        }
    }

    #[test]
    fn the_shipped_configuration_states_the_defaults() {
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/server.toml");
        let options = Options::from_file(&shipped).expect("parses");
        let given = Options { workers: Some(2), ..repository() };
        let shipped = given.clone().or(options).into_config().expect("valid");
        assert_eq!(shipped, given.into_config().expect("valid"));
    }

    #[test]
    fn unknown_keys_and_wrong_values_are_errors_that_name_them() {
        assert!(parse("max_bach = 3").is_err_and(|error| error.contains("max_bach")));
        assert!(parse("quic_port = 70000").is_err_and(|error| error.contains("70000")));
        assert!(parse("transports = ['udp']").is_err_and(|error| error.contains("udp")));
        let options = Options { max_batch: Some(0), ..repository() };
        let error = options.into_config().expect_err("out of range").to_string();
        assert!(error.contains("max_batch is 0"), "{error}");
    }

    #[test]
    fn durations_are_written_as_people_do() {
        let options = parse("max_stay = '2m'\nexit_timeout = '1s 500ms'").expect("options");
        let config = repository().or(options).into_config().expect("valid");
        assert_eq!(config.max_stay, Duration::from_secs(120));
        assert_eq!(config.exit_timeout, Duration::from_millis(1_500));
        let error = parse("max_stay = 'a while'").expect_err("no duration");
        assert!(error.contains("a while") && error.contains("15s"), "{error}");
        assert!(parse("max_stay = '0s'").is_ok_and(|options| {
            repository()
                .or(options)
                .into_config()
                .is_err_and(|error| error.to_string().contains("max_stay"))
        }));
    }

    #[test]
    fn a_certificate_needs_its_key() {
        let options = Options { tls_cert: Some("cert.pem".into()), ..repository() };
        assert!(matches!(options.into_config(), Err(ConfigError::Missing(_))));
    }

    #[test]
    fn health_and_metrics_can_be_switched_off() {
        let text = "allow_http = false\nallow_metrics = false\nmetrics_port = 9";
        let options = repository().or(parse(text).expect("options"));
        let config = options.into_config().expect("valid");
        assert_eq!((config.http, config.metrics), (None, None));
    }

    #[test]
    fn what_is_given_first_wins() {
        let first = Options { queue: Some(1), ..Options::default() };
        let second = Options { queue: Some(2), max_batch: Some(3), ..Options::default() };
        let merged = first.or(second);
        assert_eq!((merged.queue, merged.max_batch), (Some(1), Some(3)));
    }
}
