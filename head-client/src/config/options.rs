//! Options, from a file, the environment and the command line.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use isthmus_models::{EngineKind, OrtProvider};
use isthmus_proto::ImageFormat;
use serde::Deserialize;

use super::duration;
use super::error::ConfigError;
use super::list;
use super::objective::ObjectiveKind;
use super::server_url::ServerUrl;
use crate::controller::ControllerKind;

/// Options as they were given: on the command line, in the environment (`ISTHMUS_…`) or in a TOML
/// file, in this order of precedence. Unknown keys in a file are errors.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// The server: quic://HOST:4433 or grpc://HOST:8001; these ports are the defaults. Of several, separated
    /// by commas, the first that can be reached is taken, such as the same one over gRPC where UDP is
    /// blocked.
    #[arg(long, value_name = "URL,…", value_delimiter = ',', env = "ISTHMUS_SERVER")]
    #[serde(deserialize_with = "list::deserialize")]
    pub server: Option<Vec<ServerUrl>>,
    /// SHA-256 of the server's certificate, as the server prints it when it starts; of several, separated
    /// by commas, any: the one before and the next, while a certificate is changed.
    #[arg(
        long,
        value_name = "HEX,…",
        value_delimiter = ',',
        env = "ISTHMUS_SERVER_FINGERPRINT",
        conflicts_with = "ca"
    )]
    #[serde(deserialize_with = "list::deserialize")]
    pub server_fingerprint: Option<Vec<String>>,
    /// PEM file of the certificate authorities that may vouch for the server.
    #[arg(long, value_name = "FILE", env = "ISTHMUS_CA")]
    pub ca: Option<PathBuf>,
    /// Folder of the bundle.
    #[arg(long, value_name = "DIR", env = "ISTHMUS_BUNDLE")]
    pub bundle: Option<PathBuf>,
    /// Pictures: a camera (/dev/video0, or v4l2:/dev/video0?size=640x480&format=yuyv, where format
    /// may be mjpeg), a file, a folder (a sub-folder named like a label is the true class of its
    /// pictures), or - for standard input (MJPEG or YUV4MPEG2).
    #[arg(long, value_name = "CAMERA|FILE|DIR|-", env = "ISTHMUS_INPUT")]
    pub input: Option<PathBuf>,
    /// What is really in the pictures of a file or folder, to tell how good boxes are: a COCO JSON file,
    /// or the names of classes, one a line, where YOLO's text files lie by the pictures
    #[arg(long, value_name = "FILE", env = "ISTHMUS_TRUTH")]
    pub truth: Option<PathBuf>,
    /// Labels for categories of --truth that the bundle calls otherwise, such as motorbike=motorcycle;
    /// person= leaves a category out
    #[arg(long, value_name = "CATEGORY=LABEL,…", value_delimiter = ',', env = "ISTHMUS_RELABEL")]
    pub relabel: Option<Vec<String>>,
    /// Confidence, above 0 to 1, from which boxes are answered [default: the bundle's own; 0.01 with
    /// --truth]
    #[arg(long, value_name = "RATIO", env = "ISTHMUS_MIN_CONFIDENCE")]
    pub min_confidence: Option<f32>,
    /// Folder to write pictures of the answers to: the frames with boxes, labels and maps drawn in
    #[arg(long, value_name = "DIR", env = "ISTHMUS_ANNOTATE")]
    pub annotate: Option<PathBuf>,
    /// Folder to write answered maps to, as PNG files of the frames' size
    #[arg(long, value_name = "DIR", env = "ISTHMUS_MAPS")]
    pub maps: Option<PathBuf>,
    /// Operating point that the fixed controller runs and sends, such as s16/w100/c16/b6: the split
    /// at stride 16, an encoder of 100 percent width, 16 latent channels sent, 6 bits per symbol
    /// [default: the bundle's most accurate]
    #[arg(long, value_name = "POINT", env = "ISTHMUS_POINT")]
    pub point: Option<String>,
    /// Engine that runs the head: tract (built in), ort (an installed ONNX Runtime) or auto (ort if it
    /// is installed, else tract) [default: tract]
    #[arg(long, value_name = "NAME", env = "ISTHMUS_ENGINE")]
    pub engine: Option<EngineKind>,
    /// Execution providers of ONNX Runtime, in order of preference: cpu, xnnpack, cuda, tensorrt, as
    /// far as the installed library has them [default: cpu]
    #[arg(long, value_name = "LIST", value_delimiter = ',', env = "ISTHMUS_ORT_PROVIDERS")]
    pub ort_providers: Option<Vec<OrtProvider>>,
    /// Controller, which decides for every frame what to run and what to send [default: fixed]
    #[arg(long, value_name = "NAME", env = "ISTHMUS_CONTROLLER")]
    pub controller: Option<ControllerKind>,
    /// Ways to answer a frame: split (features to the server, or the head's exit), image (a compressed
    /// picture, on which the server runs the full network), local (the full network on this device).
    /// The fixed controller takes one; the others choose among several, pictures as compressed for the
    /// bundle's measured outcomes [default: split for fixed, else split,image]
    #[arg(long, value_name = "LIST", value_delimiter = ',', env = "ISTHMUS_ARM")]
    pub arm: Option<Vec<ArmKind>>,
    /// Format in which the fixed controller sends pictures: jpeg, webp or, in a program built with it,
    /// avif [default: webp]
    #[arg(long, value_name = "FORMAT", env = "ISTHMUS_IMAGE_FORMAT")]
    pub image_format: Option<ImageFormat>,
    /// Quality of the pictures, 1 to 100 on the codec's own scale [default: 50]
    #[arg(long, value_name = "Q", env = "ISTHMUS_IMAGE_QUALITY")]
    pub image_quality: Option<u8>,
    /// Longer side of the pictures (pixels), at most four times that of the network's input [default:
    /// that of the network's input]
    #[arg(long, value_name = "PIXELS", env = "ISTHMUS_IMAGE_SIDE")]
    pub image_side: Option<u32>,
    /// With --arm image, run the head of --point as well: its early exit is the fallback when the
    /// network does not answer. Without it such a frame ends without an answer
    #[arg(long, value_name = "BOOL", env = "ISTHMUS_IMAGE_EXIT", num_args = 0..=1,
          default_missing_value = "true")]
    pub image_exit: Option<bool>,
    /// Answer frames in which the exit of a detector finds nothing without sending anything, so that at
    /// least this fraction of those with objects is still sent; above 0, below 1, such as 0.99 [default:
    /// no frame is filtered]
    #[arg(long, value_name = "RATIO", env = "ISTHMUS_FILTER_RECALL")]
    pub filter_recall: Option<f64>,
    /// Labels that --filter-recall looks for [default: all]
    #[arg(long, value_name = "LIST", value_delimiter = ',', env = "ISTHMUS_FILTER_CLASSES")]
    pub filter_classes: Option<Vec<String>>,
    /// Fraction of the frames sent that mpc lets miss their deadline, 0.001 to 0.5 [default: 0.01]
    #[arg(long, value_name = "RATIO", env = "ISTHMUS_TARGET_MISS")]
    pub target_miss: Option<f64>,
    /// Objective of mpc: the best quality, or the fewest bytes or the least energy at
    /// --quality-floor [default: quality]
    #[arg(long, value_name = "OBJECTIVE", env = "ISTHMUS_OBJECTIVE")]
    pub objective: Option<ObjectiveKind>,
    /// Fraction of frames, 0 to 1, that is to be right and in time while bytes or energy are saved
    #[arg(long, value_name = "RATIO", alias = "accuracy-floor", env = "ISTHMUS_QUALITY_FLOOR")]
    pub quality_floor: Option<f64>,
    /// Power of the device while it computes, beyond its idle power (W)
    #[arg(long, value_name = "WATTS", env = "ISTHMUS_WATTS")]
    pub watts: Option<f64>,
    /// Energy of the device to send a megabyte (J)
    #[arg(long, value_name = "JOULES", env = "ISTHMUS_JOULES_PER_MEGABYTE")]
    pub joules_per_megabyte: Option<f64>,
    /// Longest time from capture to output, such as 300ms or 1.5s (a bare number is milliseconds);
    /// when the network has not answered by then, the early exit does [default: 300ms]
    #[arg(long, visible_alias = "deadline", value_name = "DURATION", env = "ISTHMUS_DEADLINE_MS",
          value_parser = duration::parse_ms)]
    #[serde(alias = "deadline", deserialize_with = "duration::deserialize_ms")]
    pub deadline_ms: Option<u64>,
    /// Frames per second to ask of a camera, or to play files at as a camera would, dropping all but
    /// the newest [default: a camera's own; files one after the other, none dropped]
    #[arg(long, value_name = "FPS", env = "ISTHMUS_RATE")]
    pub rate: Option<f64>,
    /// Queue the frames of standard input or of a camera instead of dropping all but the newest
    #[arg(long, value_name = "BOOL", env = "ISTHMUS_EVERY_FRAME", num_args = 0..=1,
          default_missing_value = "true", conflicts_with = "rate")]
    pub every_frame: Option<bool>,
    /// Stop after so many frames
    #[arg(long, value_name = "N", env = "ISTHMUS_LIMIT")]
    pub limit: Option<u64>,
    /// Frames that may be sent and unanswered at a time [default: 2 live, else 1]
    #[arg(long, value_name = "N", env = "ISTHMUS_IN_FLIGHT")]
    pub in_flight: Option<usize>,
    /// Longest wait for a connection, such as 15s (a bare number is milliseconds); raise it on links
    /// whose round trip takes seconds [default: 5s]
    #[arg(long, visible_alias = "connect-timeout", value_name = "DURATION",
          env = "ISTHMUS_CONNECT_TIMEOUT_MS", value_parser = duration::parse_ms)]
    #[serde(alias = "connect_timeout", deserialize_with = "duration::deserialize_ms")]
    pub connect_timeout_ms: Option<u64>,
    /// End when the server cannot be reached at first, instead of answering on the device until it can
    #[arg(long, value_name = "BOOL", env = "ISTHMUS_REQUIRE_SERVER", num_args = 0..=1,
          default_missing_value = "true")]
    pub require_server: Option<bool>,
    /// TCP port for Prometheus over HTTP; 0 takes a free one [default: none]
    #[arg(long, value_name = "PORT", env = "ISTHMUS_METRICS_PORT")]
    pub metrics_port: Option<u16>,
    /// Address to offer metrics on [default: 127.0.0.1]
    #[arg(long, value_name = "IP", env = "ISTHMUS_METRICS_ADDRESS")]
    pub metrics_address: Option<IpAddr>,
    /// OpenTelemetry collector to send spans to (OTLP over gRPC), such as http://localhost:4317;
    /// needs a program built with the cargo feature `otel` [default:
    /// $OTEL_EXPORTER_OTLP_TRACES_ENDPOINT, $OTEL_EXPORTER_OTLP_ENDPOINT, or none]
    #[arg(long, value_name = "URL", env = "ISTHMUS_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
    /// Fraction of frames, 0 to 1, whose spans are sent, by the server as well [default: 0.01]
    #[arg(long, value_name = "RATIO", env = "ISTHMUS_OTLP_SAMPLE")]
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
    /// The full network on the device.
    Local,
}

impl ArmKind {
    /// Its name as users write it.
    pub fn name(self) -> &'static str {
        match self {
            ArmKind::Split => "split",
            ArmKind::Image => "image",
            ArmKind::Local => "local",
        }
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

    /// These options, and those of `file` where these are not given.
    pub fn or(self, file: Options) -> Self {
        // An identity given here replaces both kinds of identity in the file.
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
            truth: self.truth.or(file.truth),
            relabel: self.relabel.or(file.relabel),
            min_confidence: self.min_confidence.or(file.min_confidence),
            annotate: self.annotate.or(file.annotate),
            maps: self.maps.or(file.maps),
            point: self.point.or(file.point),
            engine: self.engine.or(file.engine),
            ort_providers: self.ort_providers.or(file.ort_providers),
            controller: self.controller.or(file.controller),
            arm: self.arm.or(file.arm),
            image_format: self.image_format.or(file.image_format),
            image_quality: self.image_quality.or(file.image_quality),
            image_side: self.image_side.or(file.image_side),
            image_exit: self.image_exit.or(file.image_exit),
            filter_recall: self.filter_recall.or(file.filter_recall),
            filter_classes: self.filter_classes.or(file.filter_classes),
            target_miss: self.target_miss.or(file.target_miss),
            objective: self.objective.or(file.objective),
            quality_floor: self.quality_floor.or(file.quality_floor),
            watts: self.watts.or(file.watts),
            joules_per_megabyte: self.joules_per_megabyte.or(file.joules_per_megabyte),
            deadline_ms: self.deadline_ms.or(file.deadline_ms),
            rate: self.rate.or(file.rate),
            every_frame: self.every_frame.or(file.every_frame),
            limit: self.limit.or(file.limit),
            in_flight: self.in_flight.or(file.in_flight),
            connect_timeout_ms: self.connect_timeout_ms.or(file.connect_timeout_ms),
            require_server: self.require_server.or(file.require_server),
            metrics_port: self.metrics_port.or(file.metrics_port),
            metrics_address: self.metrics_address.or(file.metrics_address),
            otlp_endpoint: self.otlp_endpoint.or(file.otlp_endpoint),
            otlp_sample: self.otlp_sample.or(file.otlp_sample),
            format: self.format.or(file.format),
        }
    }

    /// What to answer frames with: what was given, or the controller's default.
    pub(super) fn arms(&self) -> &[ArmKind] {
        match (&self.arm, self.controller.unwrap_or_default()) {
            (Some(arms), _) => arms,
            (None, ControllerKind::Fixed) => &[ArmKind::Split],
            (None, _) => &[ArmKind::Split, ArmKind::Image],
        }
    }

    /// Whether the device needs the full network.
    pub fn runs_locally(&self) -> bool {
        self.arms().contains(&ArmKind::Local)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(text: &str) -> Options {
        toml::from_str(text).expect("options")
    }

    #[test]
    fn a_file_s_durations_are_texts_or_milliseconds() {
        for text in ["deadline_ms = 1500", "deadline_ms = '1500ms'", "deadline = '1.5s'"] {
            assert_eq!(options(text).deadline_ms, Some(1_500), "{text}");
        }
        assert_eq!(options("connect_timeout = '2m'").connect_timeout_ms, Some(120_000));
        for bad in ["deadline_ms = -1", "deadline_ms = '1d'", "deadline_ms = true"] {
            let error = toml::from_str::<Options>(bad).expect_err(bad).to_string();
            assert!(error.contains("duration"), "{error}");
        }
    }

    #[test]
    fn an_identity_on_the_command_line_replaces_the_file_s() {
        let given = options("ca = 'mine.pem'");
        let both = given.or(options("server_fingerprint = 'theirs'"));
        assert_eq!((both.server_fingerprint, both.ca), (None, Some("mine.pem".into())));
    }
}
