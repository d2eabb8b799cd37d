//! What a user may choose, from a file, the environment and the command line.

mod ladder;

use std::fmt;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use isthmus_models::{
    Bundle, Engine, EngineKind, EngineKindError, ImageSpec, InputSpec, MAX_IMAGE_SCALE,
    OrtProvider, has_image_format,
};
use isthmus_proto::wire::Detail;
use isthmus_proto::{ImageFormat, OperatingPoint};
use serde::{Deserialize, Deserializer, Serialize, de};

pub use self::ladder::BundleLadderError;
pub use crate::controller::ControllerKind;
use crate::controller::{
    Arms, Controller, EnergyModel, Fixed, ImageRun, Ladder, MpcConfig, Objective, Run,
};
use crate::exchange::CONNECT_TIMEOUT;
use crate::session::Pace;
use crate::source::CameraSpec;
use crate::tls::{Fingerprint, FingerprintError, Trust};

/// Options as they were given: on the command line, in the environment (`ISTHMUS_…`) or in a TOML
/// file, in this order of precedence. Unknown keys in a file are errors.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The server: quic://HOST:4433 or grpc://HOST:8001; these ports are the defaults.
    #[arg(long, value_name = "URL", env = "ISTHMUS_SERVER")]
    pub server: Option<ServerUrl>,
    /// SHA-256 of the server's certificate, as the server prints it when it starts.
    #[arg(long, value_name = "HEX", env = "ISTHMUS_SERVER_FINGERPRINT", conflicts_with = "ca")]
    pub server_fingerprint: Option<String>,
    /// PEM file of the certificate authorities that may vouch for the server.
    #[arg(long, value_name = "FILE", env = "ISTHMUS_CA")]
    pub ca: Option<PathBuf>,
    /// Folder of the bundle.
    #[arg(long, value_name = "DIR", env = "ISTHMUS_BUNDLE")]
    pub bundle: Option<PathBuf>,
    /// Pictures: a camera (/dev/video0, or v4l2:/dev/video0?size=640x480&format=yuyv, where format
    /// may be mjpeg), a file, a folder (sub-folders named like a label tell the truth), or - for
    /// standard input (MJPEG or YUV4MPEG2).
    #[arg(long, value_name = "CAMERA|FILE|DIR|-", env = "ISTHMUS_INPUT")]
    pub input: Option<PathBuf>,
    /// What to run and send, such as s16/w100/c16/b6 [default: the bundle's most accurate]
    #[arg(long, value_name = "POINT", env = "ISTHMUS_POINT")]
    pub point: Option<String>,
    /// What runs the head: tract (embedded), ort (an installed ONNX Runtime) or auto (ort where it is
    /// there) [default: tract]
    #[arg(long, value_name = "NAME", env = "ISTHMUS_ENGINE")]
    pub engine: Option<EngineKind>,
    /// What computes for ort, the first that can: cpu, xnnpack, cuda, tensorrt, those that the
    /// installed library has [default: cpu]
    #[arg(long, value_name = "LIST", value_delimiter = ',', env = "ISTHMUS_ORT_PROVIDERS")]
    pub ort_providers: Option<Vec<OrtProvider>>,
    /// What chooses, frame by frame: fixed (the same point always), greedy (by smoothed throughput),
    /// mpc (a plan by predicted transfer times) or linucb (a bandit that corrects the prediction)
    /// [default: fixed]
    #[arg(long, value_name = "NAME", env = "ISTHMUS_CONTROLLER")]
    pub controller: Option<ControllerKind>,
    /// Ways to answer: split (features to the server, or the head's exit), image (the picture,
    /// compressed, for the server to run the uncut network on), local (the uncut network on this
    /// device). The fixed controller takes one, the others choose among them, pictures as the bundle
    /// recorded them [default: split for fixed, else split,image]
    #[arg(long, value_name = "LIST", value_delimiter = ',', env = "ISTHMUS_ARM")]
    pub arm: Option<Vec<ArmKind>>,
    /// How the fixed controller compresses: jpeg, webp or, in a program built with it, avif
    /// [default: webp]
    #[arg(long, value_name = "FORMAT", env = "ISTHMUS_IMAGE_FORMAT")]
    pub image_format: Option<ImageFormat>,
    /// The codec's quality for it, 1 to 100 [default: 50]
    #[arg(long, value_name = "Q", env = "ISTHMUS_IMAGE_QUALITY")]
    pub image_quality: Option<u8>,
    /// Longer side of the compressed picture (pixels), at most four times that of the network's
    /// input [default: the same]
    #[arg(long, value_name = "PIXELS", env = "ISTHMUS_IMAGE_SIDE")]
    pub image_side: Option<u32>,
    /// With --arm image, run the head of --point, too: its early exit answers when the network
    /// does not. Otherwise such a frame ends without an answer.
    #[arg(long, value_name = "BOOL", env = "ISTHMUS_IMAGE_EXIT", num_args = 0..=1,
          default_missing_value = "true")]
    pub image_exit: Option<bool>,
    /// Share of frames that mpc lets miss their deadline after they were sent [default: 0.01]
    #[arg(long, value_name = "SHARE", env = "ISTHMUS_TARGET_MISS")]
    pub target_miss: Option<f64>,
    /// What mpc strives for: accuracy, or the fewest bytes or the least energy at --accuracy-floor
    /// [default: accuracy]
    #[arg(long, value_name = "OBJECTIVE", env = "ISTHMUS_OBJECTIVE")]
    pub objective: Option<ObjectiveKind>,
    /// Share of frames expected right and in time that is kept while bytes or energy are spared
    #[arg(long, value_name = "SHARE", env = "ISTHMUS_ACCURACY_FLOOR")]
    pub accuracy_floor: Option<f64>,
    /// What the device needs while it computes, beyond what it needs when idle (W)
    #[arg(long, value_name = "WATTS", env = "ISTHMUS_WATTS")]
    pub watts: Option<f64>,
    /// What the device needs to send a megabyte (J)
    #[arg(long, value_name = "JOULES", env = "ISTHMUS_JOULES_PER_MEGABYTE")]
    pub joules_per_megabyte: Option<f64>,
    /// Longest time from capture to output (milliseconds); when the network has not answered by
    /// then, the early exit does [default: 300]
    #[arg(long, value_name = "MS", env = "ISTHMUS_DEADLINE_MS")]
    pub deadline_ms: Option<u64>,
    /// Have a camera give this many frames a second, or play files as such a camera would: the
    /// newest frame wins [default: a camera's own; files one after the other, none dropped]
    #[arg(long, value_name = "FPS", env = "ISTHMUS_RATE")]
    pub rate: Option<f64>,
    /// Take every frame of standard input, or of a camera those that it keeps, and let them wait,
    /// instead of the newest.
    #[arg(long, value_name = "BOOL", env = "ISTHMUS_EVERY_FRAME", num_args = 0..=1,
          default_missing_value = "true", conflicts_with = "rate")]
    pub every_frame: Option<bool>,
    /// Stop after so many frames.
    #[arg(long, value_name = "N", env = "ISTHMUS_LIMIT")]
    pub limit: Option<u64>,
    /// Frames that may be sent and unanswered at a time [default: 2 live, else 1]
    #[arg(long, value_name = "N", env = "ISTHMUS_IN_FLIGHT")]
    pub in_flight: Option<usize>,
    /// Longest wait for a connection (milliseconds); raise it on links whose round trip takes
    /// seconds [default: 5000]
    #[arg(long, value_name = "MS", env = "ISTHMUS_CONNECT_TIMEOUT_MS")]
    pub connect_timeout_ms: Option<u64>,
    /// TCP port for Prometheus over HTTP; 0 takes a free one [default: none]
    #[arg(long, value_name = "PORT", env = "ISTHMUS_METRICS_PORT")]
    pub metrics_port: Option<u16>,
    /// Address to offer metrics on [default: 127.0.0.1]
    #[arg(long, value_name = "IP", env = "ISTHMUS_METRICS_ADDRESS")]
    pub metrics_address: Option<IpAddr>,
    /// Collector of OpenTelemetry to send spans to (OTLP over gRPC), such as http://localhost:4317;
    /// needs a program built with the cargo feature `otel` [default:
    /// $OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, $OTEL_EXPORTER_OTLP_ENDPOINT, or none]
    #[arg(long, value_name = "URL", env = "ISTHMUS_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// Share of frames whose spans are sent, on the server as well [default: 0.01]
    #[arg(long, value_name = "SHARE", env = "ISTHMUS_OTLP_SAMPLE")]
    pub otlp_sample: Option<f64>,
    /// How to write results to standard output [default: text]
    #[arg(long, value_name = "FORMAT", env = "ISTHMUS_FORMAT")]
    pub format: Option<Format>,
}

/// A way to answer a frame, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ArmKind {
    /// A head's features to the server, or its exit.
    Split,
    /// The compressed picture to the server.
    Image,
    /// The uncut network on the device.
    Local,
}

impl ControllerKind {
    /// The controller for `bundle`: `point` is what `fixed` runs, the rest is for those that choose.
    pub fn to_controller(
        self,
        bundle: &Bundle,
        point: OperatingPoint,
        config: MpcConfig,
        arms: Arms,
    ) -> Result<Box<dyn Controller>, BundleLadderError> {
        self.with(point, config).build(|| Ladder::of_bundle(bundle, arms).map(Arc::new))
    }
}

/// What a controller strives for, as users name it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum ObjectiveKind {
    /// As many frames right and in time as can be.
    #[default]
    Accuracy,
    /// The fewest bytes at a floor of accuracy.
    Bytes,
    /// The least energy at a floor of accuracy, as declared.
    Energy,
}

/// Why options make no objective.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ObjectiveError {
    /// Something an objective needs was not given.
    #[error("objective {0} needs {1}")]
    Missing(&'static str, &'static str),
    /// Something was given that the objective has no use for.
    #[error("{0} is of no use to objective {1}")]
    Useless(&'static str, &'static str),
    /// Something outside its range.
    #[error("{name}: {value} is not {range}")]
    Range {
        /// The option.
        name: &'static str,
        /// What it may be.
        range: &'static str,
        /// What it is.
        value: f64,
    },
}

impl ObjectiveKind {
    /// Its name as users write it.
    pub fn name(self) -> &'static str {
        match self {
            ObjectiveKind::Accuracy => "accuracy",
            ObjectiveKind::Bytes => "bytes",
            ObjectiveKind::Energy => "energy",
        }
    }

    /// The objective, with what it needs: a floor of accuracy (0 to 1), and for energy what the device
    /// needs while it computes (W) and to send (J/MB).
    pub fn with(
        self,
        floor: Option<f64>,
        watts: Option<f64>,
        joules_per_megabyte: Option<f64>,
    ) -> Result<Objective, ObjectiveError> {
        let given = |option: &'static str, value: Option<f64>, most: f64, range| {
            let value = value.ok_or(ObjectiveError::Missing(self.name(), option))?;
            let ok = (0.0..=most).contains(&value);
            ok.then_some(value).ok_or(ObjectiveError::Range { name: option, range, value })
        };
        let useless = |option: &'static str, value: Option<f64>| match value {
            Some(_) => Err(ObjectiveError::Useless(option, self.name())),
            None => Ok(()),
        };
        if self == ObjectiveKind::Accuracy {
            useless("accuracy_floor", floor)?;
        }
        if self != ObjectiveKind::Energy {
            useless("watts", watts)?;
            useless("joules_per_megabyte", joules_per_megabyte)?;
        }
        let floor = || given("accuracy_floor", floor, 1.0, "from 0 to 1");
        Ok(match self {
            ObjectiveKind::Accuracy => Objective::Accuracy,
            ObjectiveKind::Bytes => Objective::Bytes { floor: floor()? },
            ObjectiveKind::Energy => {
                let floor = floor()?;
                let watts = given("watts", watts, 1e3, "from 0 to 1000 W")?;
                let range = "from 0 to 1000000 J";
                let joules = given("joules_per_megabyte", joules_per_megabyte, 1e6, range)?;
                let model = EnergyModel { watts, joules_per_megabyte: joules };
                Objective::Energy { floor, model }
            }
        })
    }
}

/// How results are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Aligned lines and a table.
    #[default]
    Text,
    /// One JSON object per line, the last one `{"summary": …}`.
    Json,
}

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
    /// Its name or address; a certificate that an authority vouches for has to be for it.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// Everything a [`Client`](crate::Client) needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct ClientConfig {
    /// Where the server is.
    pub server: ServerUrl,
    /// What makes it the right one.
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
    /// How much the server's answers tell.
    pub detail: Detail,
    /// Where Prometheus finds metrics over HTTP; port 0 takes a free one; `None` does not offer
    /// them.
    pub metrics: Option<SocketAddr>,
    /// Where spans go; `None` traces nothing.
    pub traces: Option<TraceConfig>,
}

/// Where spans go, and of which frames.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceConfig {
    /// The collector's URL; it speaks OTLP over gRPC. Without the cargo feature `otel` nothing is
    /// sent there, though the server is asked to tell its part.
    pub endpoint: String,
    /// Share of frames, 0 to 1.
    pub sampled: f64,
}

/// Why options are no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The configuration file cannot be read.
    #[error("{path}: {source}", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The configuration file is malformed or has unknown keys.
    #[error("{path}: {source}", path = .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong, with the line.
        source: Box<toml::de::Error>,
    },
    /// Something needed was not given.
    #[error("{0} is needed")]
    Missing(&'static str),
    /// Pictures in a format that this program cannot write.
    #[error("image_format: this program was built without {}", .0.name())]
    ImageFormat(ImageFormat),
    /// Nothing says how to know the server.
    #[error(
        "the server's identity has to be checked: give --server-fingerprint HEX (the server prints \
         it when it starts) or --ca FILE (the authorities that vouch for it)"
    )]
    NoTrust,
    /// Two ways to know the server, in one file.
    #[error("server_fingerprint and ca exclude each other")]
    TwoTrusts,
    /// No fingerprint.
    #[error("--server-fingerprint: {0}")]
    Fingerprint(#[from] FingerprintError),
    /// Nothing to choose for a controller that does not choose, or several things.
    #[error("--controller fixed takes one --arm; the others choose among several")]
    OneArm,
    /// Arms without the one whose exits stand by.
    #[error(
        "--arm has to name split unless --controller is fixed: its exits stand by for the others"
    )]
    NoSplit,
    /// A collector for a program that cannot reach one.
    #[error("--otlp-endpoint needs a program that is built with the cargo feature `otel`")]
    WithoutOtel,
    /// An objective that is none.
    #[error(transparent)]
    Objective(#[from] ObjectiveError),
    /// What only mpc has.
    #[error("--objective is for --controller mpc; the others strive for accuracy")]
    ObjectiveOfAnother,
    /// No ladder for a controller that needs one.
    #[error("--controller: {0}")]
    Ladder(#[from] BundleLadderError),
    /// A number out of its range.
    #[error("{name} must be {range}, not {value}")]
    Range {
        /// The option.
        name: &'static str,
        /// What it may be.
        range: String,
        /// What it is.
        value: String,
    },
}

/// Text that is no server's URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a server looks like quic://host:4433 or grpc://host:8001, not {0:?}")]
pub struct UrlError(String);

impl Options {
    /// The options of a TOML file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path)
            .map_err(|source| ConfigError::Unreadable { path: path.to_owned(), source })?;
        toml::from_str(&text).map_err(|source| {
            let source = Box::new(source);
            ConfigError::Malformed { path: path.to_owned(), source }
        })
    }

    /// These options, and those of `file` where these say nothing.
    pub fn or(self, file: Options) -> Self {
        // What is said here about the server's identity replaces all that the file says about it.
        let trusts = self.server_fingerprint.is_some() || self.ca.is_some();
        let (fingerprint, ca) = if trusts {
            (self.server_fingerprint, self.ca)
        } else {
            (file.server_fingerprint, file.ca)
        };
        Options {
            server: self.server.or(file.server),
            server_fingerprint: fingerprint,
            ca,
            bundle: self.bundle.or(file.bundle),
            input: self.input.or(file.input),
            point: self.point.or(file.point),
            engine: self.engine.or(file.engine),
            ort_providers: self.ort_providers.or(file.ort_providers),
            controller: self.controller.or(file.controller),
            arm: self.arm.or(file.arm),
            image_format: self.image_format.or(file.image_format),
            image_quality: self.image_quality.or(file.image_quality),
            image_side: self.image_side.or(file.image_side),
            image_exit: self.image_exit.or(file.image_exit),
            target_miss: self.target_miss.or(file.target_miss),
            objective: self.objective.or(file.objective),
            accuracy_floor: self.accuracy_floor.or(file.accuracy_floor),
            watts: self.watts.or(file.watts),
            joules_per_megabyte: self.joules_per_megabyte.or(file.joules_per_megabyte),
            deadline_ms: self.deadline_ms.or(file.deadline_ms),
            rate: self.rate.or(file.rate),
            every_frame: self.every_frame.or(file.every_frame),
            limit: self.limit.or(file.limit),
            in_flight: self.in_flight.or(file.in_flight),
            connect_timeout_ms: self.connect_timeout_ms.or(file.connect_timeout_ms),
            metrics_port: self.metrics_port.or(file.metrics_port),
            metrics_address: self.metrics_address.or(file.metrics_address),
            otlp_endpoint: self.otlp_endpoint.or(file.otlp_endpoint),
            otlp_sample: self.otlp_sample.or(file.otlp_sample),
            format: self.format.or(file.format),
        }
    }

    /// The client's part of these options, checked.
    pub fn to_config(&self) -> Result<ClientConfig, ConfigError> {
        let server = self.server.clone().ok_or(ConfigError::Missing("--server URL"))?;
        let trust = match (&self.server_fingerprint, &self.ca) {
            (Some(fingerprint), None) => Trust::Fingerprint(fingerprint.parse::<Fingerprint>()?),
            (None, Some(path)) => Trust::Authorities(path.clone()),
            (None, None) => return Err(ConfigError::NoTrust),
            (Some(_), Some(_)) => return Err(ConfigError::TwoTrusts),
        };
        let stream = self.input.as_deref() == Some(Path::new("-"));
        let camera = self.input.as_deref().is_some_and(|it| CameraSpec::parse(it).is_some());
        let flows = stream || camera;
        let live = self.rate.is_some() || (flows && self.every_frame != Some(true));
        let pace = if live { Pace::Live } else { Pace::EveryFrame };
        let deadline_ms = within("deadline_ms", self.deadline_ms.unwrap_or(300), 1, 3_600_000)?;
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
            server,
            trust,
            deadline: Duration::from_millis(deadline_ms),
            in_flight,
            pace,
            // A camera keeps time by itself.
            rate: self.rate.filter(|_| !camera),
            connect_timeout: Duration::from_millis(timeout_ms),
            detail: Detail::Top,
            metrics: self.metrics_port.map(|port| {
                let address = self.metrics_address.unwrap_or(Ipv4Addr::LOCALHOST.into());
                SocketAddr::new(address, port)
            }),
            traces: self.to_traces()?,
        })
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

impl Options {
    /// What runs the head.
    pub fn to_engine(&self) -> Result<Box<dyn Engine>, EngineKindError> {
        let providers = self.ort_providers.as_deref().unwrap_or_default();
        self.engine.unwrap_or_default().open(providers)
    }

    /// What an adaptive controller is held to.
    pub fn to_mpc_config(&self) -> Result<MpcConfig, ObjectiveError> {
        let default = MpcConfig::default();
        let kind = self.objective.unwrap_or_default();
        let objective = kind.with(self.accuracy_floor, self.watts, self.joules_per_megabyte)?;
        Ok(MpcConfig {
            objective,
            target_miss: self.target_miss.unwrap_or(default.target_miss),
            interval: self.rate.map(|rate| Duration::from_secs_f64(1.0 / rate)),
            ..default
        })
    }

    /// What chooses for `bundle`, frame by frame; `point` is what a fixed head runs.
    pub fn to_controller(
        &self,
        bundle: &Bundle,
        point: OperatingPoint,
    ) -> Result<Box<dyn Controller>, ConfigError> {
        let kind = self.controller.unwrap_or_default();
        let spares = self.objective.is_some_and(|objective| objective != ObjectiveKind::Accuracy);
        if spares && kind != ControllerKind::Mpc {
            return Err(ConfigError::ObjectiveOfAnother);
        }
        if kind != ControllerKind::Fixed {
            let arms = self.arms();
            if !arms.contains(&ArmKind::Split) {
                return Err(ConfigError::NoSplit);
            }
            let (image, local) = (arms.contains(&ArmKind::Image), arms.contains(&ArmKind::Local));
            let config = self.to_mpc_config()?;
            return Ok(kind.to_controller(bundle, point, config, Arms { image, local })?);
        }
        let run = match self.arms() {
            [ArmKind::Split] => point.into(),
            [ArmKind::Image] => {
                let image = self.to_image_spec(&bundle.manifest().input)?;
                let exit = self.image_exit.unwrap_or(false).then_some((point.split, point.width));
                Run::Image(ImageRun { image, exit })
            }
            [ArmKind::Local] => Run::Local,
            _ => return Err(ConfigError::OneArm),
        };
        Ok(Box::new(Fixed::new(run)))
    }

    fn arms(&self) -> &[ArmKind] {
        match (&self.arm, self.controller.unwrap_or_default()) {
            (Some(arms), _) => arms,
            (None, ControllerKind::Fixed) => &[ArmKind::Split],
            (None, _) => &[ArmKind::Split, ArmKind::Image],
        }
    }

    /// Whether the device has to have the uncut network.
    pub fn runs_locally(&self) -> bool {
        self.arms().contains(&ArmKind::Local)
    }

    /// How a picture is compressed for a network with `input`.
    fn to_image_spec(&self, input: &InputSpec) -> Result<ImageSpec, ConfigError> {
        let longer = input.width.max(input.height);
        let most = u64::from(MAX_IMAGE_SCALE * longer);
        let side = within("image_side", self.image_side.unwrap_or(longer).into(), 1, most)?;
        let quality = within("image_quality", self.image_quality.unwrap_or(50).into(), 1, 100)?;
        let format = self.image_format.unwrap_or(ImageFormat::Webp);
        if !has_image_format(format) {
            return Err(ConfigError::ImageFormat(format));
        }
        Ok(ImageSpec { format, side: side as u32, quality: quality as u8 })
    }
}

fn within(name: &'static str, value: u64, low: u64, high: u64) -> Result<u64, ConfigError> {
    match (low..=high).contains(&value) {
        true => Ok(value),
        false => {
            let range = format!("{low} to {high}");
            Err(ConfigError::Range { name, range, value: value.to_string() })
        }
    }
}

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

    fn options(text: &str) -> Options {
        toml::from_str(text).expect("options")
    }

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

    #[test]
    fn the_shipped_file_is_valid_and_says_the_defaults() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../configs/client.toml");
        let file = Options::read(Path::new(path)).expect("valid");
        let given = options("server = 'quic://localhost'\nserver_fingerprint = 'x'");
        let shipped = given.clone().or(file);
        let bare = given.or(Options::default());
        let fingerprint = Some("ab".repeat(32));
        let [shipped, bare] = [shipped, bare].map(|it| {
            Options { server_fingerprint: fingerprint.clone(), ..it }.to_config().expect("valid")
        });
        assert_eq!(shipped, bare);
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
    fn a_picture_s_codec_is_checked_against_the_network_s_input() {
        let input = InputSpec { width: 160, height: 90, mean: [0.0; 3], std: [1.0; 3] };
        let spec = |text: &str| options(text).to_image_spec(&input).map(|spec| spec.to_string());
        assert_eq!(spec("").expect("defaults"), "webp/160/q50");
        let all = "image_format = 'jpeg'\nimage_quality = 7\nimage_side = 640";
        assert_eq!(spec(all).expect("within range"), "jpeg/640/q7");
        for bad in
            ["image_side = 641", "image_side = 0", "image_quality = 0", "image_quality = 101"]
        {
            assert!(spec(bad).is_err(), "{bad}");
        }
        if cfg!(not(feature = "avif")) {
            let error = spec("image_format = 'avif'").expect_err("not built in");
            assert_eq!(error.to_string(), "image_format: this program was built without avif");
        }
        assert!(toml::from_str::<Options>("image_format = 'png'").is_err());
        assert!(toml::from_str::<Options>("arm = ['exit']").is_err());
    }

    #[test]
    fn without_a_known_identity_both_ways_to_give_one_are_named() {
        let error = options("server = 'quic://a'").to_config().expect_err("refused").to_string();
        assert!(error.contains("--server-fingerprint") && error.contains("--ca"), "{error}");
    }

    #[test]
    fn an_identity_on_the_command_line_replaces_the_file_s() {
        let given = options("ca = 'mine.pem'");
        let both = given.or(options("server_fingerprint = 'theirs'"));
        assert_eq!((both.server_fingerprint, both.ca), (None, Some("mine.pem".into())));
    }
}
