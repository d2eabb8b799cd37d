//! The configuration of a [`Client`](crate::Client), checked.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use isthmus_proto::wire::Detail;

use super::error::{ConfigError, within};
use super::options::Options;
use super::server_url::ServerUrl;
use crate::controller::MpcConfig;
use crate::exchange::CONNECT_TIMEOUT;
use crate::session::Pace;
use crate::source::{self, BoxedSource, CameraSpec, InputError};
use crate::tls::{Fingerprint, Trust};

/// Everything a [`Client`](crate::Client) needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientConfig {
    /// Where the server is.
    pub server: ServerUrl,
    /// Servers that take its place, in order, while those before cannot be reached; of the same trust.
    pub further_servers: Vec<ServerUrl>,
    /// How its identity is checked.
    pub trust: Trust,
    /// Longest time from capture to output; more than zero.
    pub deadline: Duration,
    /// Frames that may be sent and unanswered at a time, at least 1.
    pub in_flight: usize,
    /// What happens to frames that come faster than they can be dealt with.
    pub pace: Pace,
    /// Frames per second to take from the source at most; `None` takes them as they come.
    pub rate: Option<f64>,
    /// Longest wait for a connection.
    pub connect_timeout: Duration,
    /// Whether the client ends when it cannot connect at first; otherwise it answers on the device until
    /// it can.
    pub require_server: bool,
    /// How much detail the server's answers have.
    pub detail: Detail,
    /// Boxes of at least this confidence are answered, above 0 to 1; `None` for the bundle's own threshold.
    pub min_confidence: Option<f32>,
    /// Places in the bundle's labels that a detector's exit looks for; `None` for all.
    pub filter_classes: Option<Vec<usize>>,
    /// Whether reports have their pictures, which then take memory until their frames end.
    pub keep_pictures: bool,
    /// Where Prometheus finds metrics over HTTP; port 0 takes a free one; `None` does not offer
    /// them.
    pub metrics: Option<SocketAddr>,
    /// Where spans go; `None` traces nothing.
    pub traces: Option<TraceConfig>,
}

/// Longest time from capture to output where nothing else is said.
const DEADLINE: Duration = Duration::from_millis(300);

/// From which confidence boxes are asked for where they are measured: precision is a mean over recalls,
/// and the unsure boxes make the highest.
pub const MEASURED_CONFIDENCE: f32 = 0.01;

/// The labels of categories, of texts such as `motorbike=motorcycle`; `person=` has none.
pub fn renamed(texts: &[String]) -> Result<BTreeMap<String, String>, ConfigError> {
    let pair = |text: &String| {
        let (category, label) = text.split_once('=')?;
        Some((category.trim().to_owned(), label.trim().to_owned()))
    };
    texts.iter().map(|text| pair(text).ok_or_else(|| ConfigError::Relabel(text.clone()))).collect()
}

/// Why options give no source of frames.
#[derive(Debug, thiserror::Error)]
pub enum SourceConfigError {
    /// The options.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// What they name.
    #[error(transparent)]
    Input(#[from] InputError),
}

/// Where spans go, and of which frames.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceConfig {
    /// The collector's URL; it speaks OTLP over gRPC. Without the cargo feature `otel` nothing is
    /// sent there, though the server is asked for its part.
    pub endpoint: String,
    /// Fraction of frames, 0 to 1.
    pub sampled: f64,
}

impl ClientConfig {
    /// A client of `server` with the defaults of the options: a deadline of 300 ms, every frame of a source
    /// one after the other, no metrics and no spans.
    pub fn new(server: ServerUrl, trust: Trust) -> ClientConfig {
        ClientConfig {
            server,
            further_servers: Vec::new(),
            trust,
            deadline: DEADLINE,
            in_flight: 1,
            pace: Pace::EveryFrame,
            rate: None,
            connect_timeout: CONNECT_TIMEOUT,
            require_server: false,
            detail: Detail::Top,
            min_confidence: None,
            filter_classes: None,
            keep_pictures: false,
            metrics: None,
            traces: None,
        }
    }
}

impl Options {
    /// The client's part of these options, checked.
    pub fn to_config(&self) -> Result<ClientConfig, ConfigError> {
        let servers = self.server.as_deref().unwrap_or_default();
        let (server, further) =
            servers.split_first().ok_or(ConfigError::Missing("--server URL"))?;
        let trust = match (&self.server_fingerprint, &self.ca) {
            (Some(fingerprints), None) => Trust::Fingerprints(
                fingerprints
                    .iter()
                    .map(|it| it.parse::<Fingerprint>())
                    .collect::<Result<_, _>>()?,
            ),
            (None, Some(path)) => Trust::Authorities(path.clone()),
            (None, None) => return Err(ConfigError::NoTrust),
            (Some(_), Some(_)) => return Err(ConfigError::TwoTrusts),
        };
        let stream = self.input.as_deref() == Some(Path::new("-"));
        let camera = self.input.as_deref().is_some_and(|it| CameraSpec::parse(it).is_some());
        let flows = stream || camera;
        let live = self.rate.is_some() || (flows && self.every_frame != Some(true));
        let pace = if live { Pace::Live } else { Pace::EveryFrame };
        let deadline_ms = within(
            "deadline_ms",
            self.deadline_ms.unwrap_or(DEADLINE.as_millis() as u64),
            1,
            3_600_000,
        )?;
        let timeout_ms = self.connect_timeout_ms.unwrap_or(CONNECT_TIMEOUT.as_millis() as u64);
        let timeout_ms = within("connect_timeout_ms", timeout_ms, 1, 3_600_000)?;
        let in_flight = self.in_flight.unwrap_or(if live { 2 } else { 1 }) as u64;
        let in_flight = within("in_flight", in_flight, 1, 4096)? as usize;
        if let Some(rate) = self.rate
            && !(0.001..=10_000.0).contains(&rate)
        {
            let (name, range) = ("rate", "0.001 to 10000 frames a second".to_owned());
            return Err(ConfigError::Range { name, range, value: rate.to_string() });
        }
        let target_miss = self.target_miss.unwrap_or(MpcConfig::default().target_miss);
        if !(0.001..=0.5).contains(&target_miss) {
            let (name, range) = ("target_miss", "0.001 to 0.5".to_owned());
            return Err(ConfigError::Range { name, range, value: target_miss.to_string() });
        }
        Ok(ClientConfig {
            server: server.clone(),
            further_servers: further.to_vec(),
            trust,
            deadline: Duration::from_millis(deadline_ms),
            in_flight,
            pace,
            // A camera keeps time by itself.
            rate: self.rate.filter(|_| !camera),
            connect_timeout: Duration::from_millis(timeout_ms),
            require_server: self.require_server.unwrap_or(false),
            detail: Detail::Top,
            min_confidence: self.confidence()?,
            filter_classes: None,
            keep_pictures: self.annotate.is_some(),
            metrics: self.metrics_port.map(|port| {
                let address = self.metrics_address.unwrap_or(Ipv4Addr::LOCALHOST.into());
                SocketAddr::new(address, port)
            }),
            traces: self.to_traces()?,
        })
    }

    /// The confidence from which boxes are answered, where it is not the bundle's.
    fn confidence(&self) -> Result<Option<f32>, ConfigError> {
        let confidence = self.min_confidence.or(self.truth.as_ref().map(|_| MEASURED_CONFIDENCE));
        match confidence.filter(|it| !(*it > 0.0 && *it <= 1.0)) {
            None => Ok(confidence),
            Some(value) => {
                let (name, range) = ("min_confidence", "above 0 to 1".to_owned());
                Err(ConfigError::Range { name, range, value: value.to_string() })
            }
        }
    }

    /// The labels that `--relabel` gives to categories of the truth.
    pub fn renamed(&self) -> Result<BTreeMap<String, String>, ConfigError> {
        renamed(self.relabel.as_deref().unwrap_or_default())
    }

    /// What gives the frames of the input, for a bundle with these labels.
    pub fn to_source(&self, labels: &[String]) -> Result<BoxedSource, SourceConfigError> {
        let input = self.input.as_deref();
        let input = input.ok_or(ConfigError::Missing("--input CAMERA|FILE|DIR|-"))?;
        match &self.truth {
            None => Ok(source::open(input, labels, self.rate)?),
            Some(_) if input == Path::new("-") || CameraSpec::parse(input).is_some() => {
                Err(ConfigError::TruthOfStream.into())
            }
            Some(truth) => Ok(source::open_with_boxes(input, labels, truth, &self.renamed()?)?),
        }
    }

    fn to_traces(&self) -> Result<Option<TraceConfig>, ConfigError> {
        let sampled = self.otlp_sample.unwrap_or(0.01);
        if !(0.0..=1.0).contains(&sampled) {
            let (name, range) = ("otlp_sample", "0 to 1".to_owned());
            return Err(ConfigError::Range { name, range, value: sampled.to_string() });
        }
        #[cfg(feature = "otel")]
        let endpoint = isthmus_telemetry::spans::endpoint(self.otlp_endpoint.clone());
        #[cfg(not(feature = "otel"))]
        let endpoint: Option<String> = match &self.otlp_endpoint {
            Some(_) => return Err(ConfigError::WithoutOtel),
            None => None,
        };
        Ok(endpoint.map(|endpoint| TraceConfig { endpoint, sampled }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Options {
        toml::from_str(text).expect("options")
    }

    #[test]
    fn the_shipped_file_is_valid_and_says_the_defaults() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/client.toml");
        let file = Options::read(Path::new(path)).expect("valid");
        let given = options("server = 'quic://localhost'\nserver_fingerprint = 'x'");
        let shipped = given.clone().or(file);
        let bare = given.or(Options::default());
        let fingerprint = Some(vec!["ab".repeat(32)]);
        let [shipped, bare] = [shipped, bare].map(|it| {
            Options { server_fingerprint: fingerprint.clone(), ..it }.to_config().expect("valid")
        });
        assert_eq!(shipped, bare);
    }

    #[test]
    fn of_several_servers_the_first_is_preferred_and_any_fingerprint_will_do() {
        let [one, other] = ["ab", "cd"].map(|pair| pair.repeat(32));
        let text =
            format!("server = ['quic://a', 'grpc://a']\nserver_fingerprint = ['{one}', '{other}']");
        let config = options(&text).to_config().expect("valid");
        assert_eq!(config.server.to_string(), "quic://a:4433");
        assert_eq!(config.further_servers[0].to_string(), "grpc://a:8001");
        assert!(matches!(config.trust, Trust::Fingerprints(all) if all.len() == 2));
        let wrong = toml::from_str::<Options>("server = ['quic://a', 'http://b']");
        assert!(wrong.is_err_and(|error| error.to_string().contains("http://b")));
    }

    #[test]
    fn unknown_keys_and_impossible_values_are_errors() {
        assert!(toml::from_str::<Options>("sever = 'quic://a'").is_err());
        assert!(toml::from_str::<Options>("server = 'http://a'").is_err());
        let base = format!("server = 'quic://a'\nserver_fingerprint = '{}'\n", "ab".repeat(32));
        assert!(options(&base).to_config().is_ok());
        for bad in [
            "rate = nan",
            "rate = 0.0",
            "deadline_ms = 0",
            "in_flight = 0",
            "ca = 'x'",
            "target_miss = 0.9",
            "otlp_sample = 1.1",
        ] {
            assert!(options(&format!("{base}{bad}")).to_config().is_err(), "{bad}");
        }
        let traced = options(&format!("{base}otlp_endpoint = 'http://localhost:4317'"));
        assert_eq!(traced.to_config().is_ok(), cfg!(feature = "otel"));
    }

    #[test]
    fn a_camera_is_live_and_keeps_its_rate_by_itself() {
        let base = format!("server = 'quic://a'\nserver_fingerprint = '{}'\n", "ab".repeat(32));
        let config = |text: &str| {
            let config = options(&format!("{base}{text}")).to_config().expect("valid");
            (config.pace, config.rate, config.in_flight)
        };
        assert_eq!(config("input = '/dev/video0'"), (Pace::Live, None, 2));
        assert_eq!(config("input = 'v4l2:x'\nrate = 5.0"), (Pace::Live, None, 2));
        assert_eq!(config("input = 'pictures'\nrate = 5.0"), (Pace::Live, Some(5.0), 2));
        assert_eq!(config("input = 'v4l2:x'\nevery_frame = true"), (Pace::EveryFrame, None, 1));
    }

    #[test]
    fn without_a_known_identity_both_ways_to_give_one_are_named() {
        let error = options("server = 'quic://a'").to_config().expect_err("refused").to_string();
        assert!(error.contains("--server-fingerprint") && error.contains("--ca"), "{error}");
    }
}
