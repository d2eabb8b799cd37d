//! The client's metrics for Prometheus.
//!
//! The session counts the outcomes of frames ([`Counters`]) and reports them one by one
//! ([`FrameReport`]); here both are kept for the next scrape.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use isthmus_proto::wire::Reason;
use isthmus_proto::{Arm, Bitrate};
use isthmus_telemetry::http::Response;
use isthmus_telemetry::prometheus::{self, Page, durations};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Unit;

use crate::controller::TransferTime;
use crate::outcome::{DropCause, Fallback};
use crate::report::FrameReport;
use crate::session::Counters;
use crate::transport::Unconnected;

/// The values that the next scrape reads.
#[derive(Debug)]
pub(crate) struct Metrics(Mutex<State>);

#[derive(Debug)]
struct State {
    counters: Counters,
    link_up: bool,
    verdicts: BTreeMap<&'static str, u64>,
    selected: BTreeMap<Configuration, u64>,
    sent_bytes: u64,
    capture_to_output: Histogram,
    stages: BTreeMap<&'static str, Histogram>,
    /// Rates by how they were measured (bits/s).
    bandwidth: BTreeMap<&'static str, f64>,
    unconnected: BTreeMap<Unconnected, u64>,
    spans_dropped: [(&'static str, u64); 2],
}

/// Labels of an answer, in the order of a frame's JSON line.
type Configuration = [(&'static str, String); 6];

const STAGES: [&str; 8] =
    ["device_wait", "head", "encode", "network", "receive_span", "queue", "decode", "tail"];
const VERDICTS: [&str; 4] = ["on_time", "late", "dropped", "unreadable"];

impl Metrics {
    pub(crate) fn new() -> Self {
        Metrics(Mutex::new(State {
            counters: Counters::default(),
            link_up: false,
            verdicts: VERDICTS.map(|verdict| (verdict, 0)).into(),
            selected: BTreeMap::new(),
            sent_bytes: 0,
            // 1 ms to 65 s: deadlines reach from a camera's pace to a satellite's.
            capture_to_output: Histogram::new(exponential_buckets(1e-3, 2.0, 17)),
            stages: STAGES.map(|stage| (stage, durations())).into(),
            bandwidth: BTreeMap::new(),
            unconnected: Unconnected::ALL.map(|cause| (cause, 0)).into(),
            spans_dropped: [("queue_full", 0), ("export_failed", 0)],
        }))
    }

    /// A frame of the source has ended.
    pub(crate) fn on_frame(&self, report: &FrameReport) {
        let mut state = self.lock();
        let verdict = match (&report.error, report.arm, report.on_time) {
            (Some(_), ..) => "unreadable",
            (None, None, _) => "dropped",
            (None, Some(_), true) => "on_time",
            (None, Some(_), false) => "late",
        };
        *state.verdicts.entry(verdict).or_default() += 1;
        let bytes = report.bytes.unwrap_or(0);
        state.sent_bytes += bytes as u64;
        if let Some(configuration) = configuration(report) {
            *state.selected.entry(configuration).or_default() += 1;
        }
        if let Some(took) = report.capture_to_output_ms {
            state.capture_to_output.observe(took / 1e3);
            for (stage, took) in report.stages_by_name() {
                state.stages.entry(stage).or_insert_with(durations).observe(took / 1e3);
            }
        }
        let seconds = |ms: f64| Duration::from_secs_f64(ms.max(0.0) / 1e3);
        if let Some(span) = report.stages.receive_span.map(seconds)
            && let Some(rate) = TransferTime::dispersion(bytes, span)
        {
            state.bandwidth.insert("dispersion", rate.as_bps() as f64);
        }
        // An early exit's answer shows when the network was given up, not what it delivered.
        if let (Some(arm), Some(network)) = (report.arm, report.stages.network)
            && arm != Arm::Exit
            && network > 0.0
        {
            state.bandwidth.insert("goodput", 8e3 * bytes as f64 / network);
        }
    }

    /// The session's counters and estimates now.
    pub(crate) fn on_session(&self, counters: &Counters, link_up: bool, rate: Option<Bitrate>) {
        let mut state = self.lock();
        state.counters.clone_from(counters);
        state.link_up = link_up;
        match rate {
            Some(rate) => state.bandwidth.insert("controller", rate.as_bps() as f64),
            None => state.bandwidth.remove("controller"),
        };
    }

    /// An attempt to connect failed.
    pub(crate) fn on_unconnected(&self, cause: Unconnected) {
        *self.lock().unconnected.entry(cause).or_default() += 1;
    }

    /// Spans that never reached the collector so far.
    #[cfg(feature = "otel")]
    pub(crate) fn on_spans(&self, dropped: isthmus_telemetry::spans::Dropped) {
        self.lock().spans_dropped = dropped.by_cause();
    }

    /// The answer to a scrape.
    pub(crate) fn page(self: &Arc<Self>) -> Response<String> {
        prometheus::page("isthmus_client", Scrape(Arc::clone(self)))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code that may panic runs while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct Scrape(Arc<Metrics>);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let state = &*self.0.lock();
        let counters = &state.counters;
        let mut page = Page(&mut encoder);

        let help = "Frames of the source that ended, by verdict";
        let verdicts = state.verdicts.iter().map(|(verdict, frames)| (*verdict, count(*frames)));
        page.family("frames", help, None, "verdict", verdicts)?;
        let help = "Frames that were answered, by arm, operating point and reason";
        let selected =
            state.selected.iter().map(|(labels, frames)| (labels.as_slice(), count(*frames)));
        page.labelled("config_selected", help, None, selected)?;
        let help = "Frames left to the early exit because the network could not answer them";
        page.family("fallback", help, None, "cause", fallbacks(counters))?;
        let help = "Frames that were captured and not answered";
        page.family("dropped", help, None, "cause", drops(counters))?;
        let help = "From a picture in memory to its answer";
        let seconds = Some(Unit::Seconds);
        page.single("capture_to_output", help, seconds.clone(), &state.capture_to_output)?;
        let help = "Time that the stages of an answered frame took";
        let stages = state.stages.iter().map(|(stage, took)| (*stage, took.clone()));
        page.family("stage_duration", help, seconds, "stage", stages)?;
        let help = "Envelopes and packets handed to the link";
        page.single("sent", help, Some(Unit::Bytes), &count(state.sent_bytes))?;
        let help = "Frames handed to the link";
        page.single("sent_frames", help, None, &count(counters.sent))?;
        let help = "Probes handed to the link, which find out whether the network carries frames again, or larger ones";
        page.single("probes", help, None, &count(counters.probes))?;
        let help = "Padding of probes";
        page.single("probe", help, Some(Unit::Bytes), &count(counters.probe_bytes))?;
        let help = "Frames that were given up after they were sent";
        page.single("cancelled", help, None, &count(counters.cancelled))?;
        let help = "Replies to frames that had already ended";
        page.single("late_replies", help, None, &count(counters.late_replies))?;
        let help = "Rate of the path to the server, by how it was measured";
        let unit = Some(Unit::Other("bits_per_second".into()));
        let rates = state.bandwidth.iter().map(|(kind, rate)| (*kind, ConstGauge::new(*rate)));
        page.family("bandwidth", help, unit, "kind", rates)?;
        let help = "Whether there is a connection";
        page.single("link_up", help, None, &ConstGauge::new(u64::from(state.link_up)))?;
        let help = "Times the connection came up and went down";
        let changes = [("up", count(counters.links_up)), ("down", count(counters.links_down))];
        page.family("link_changes", help, None, "to", changes)?;
        let help = "Attempts to connect that failed";
        let failures = state.unconnected.iter().map(|(cause, tries)| (cause.name(), count(*tries)));
        page.family("connect_failures", help, None, "cause", failures)?;
        let help = "Spans that never reached the collector";
        let spans = state.spans_dropped.map(|(cause, spans)| (cause, count(spans)));
        page.family("spans_dropped", help, None, "cause", spans)?;
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        page.single("build", "The program that runs", None, &build)
    }
}

/// Of an answered frame.
fn configuration(report: &FrameReport) -> Option<Configuration> {
    let number = |value: Option<String>| value.unwrap_or_default();
    Some([
        ("arm", report.arm?.name().to_owned()),
        ("split", report.split.clone().unwrap_or_default()),
        ("width", report.width.clone().unwrap_or_default()),
        ("channels", number(report.channels.map(|channels| channels.to_string()))),
        ("bits", number(report.bits.map(|bits| bits.to_string()))),
        ("reason", label(&report.reason)),
    ])
}

/// Every cause is there from the start, so that Prometheus sees its first rise.
fn fallbacks(counters: &Counters) -> impl Iterator<Item = (String, ConstCounter<u64>)> {
    use Fallback::{Deadline, HoldOff, InFlightFull, LinkDown, Refused, StreamLost, TooLarge};
    let own = [Deadline, HoldOff, LinkDown, StreamLost, InFlightFull, TooLarge];
    let refused = (0..).map_while(|number| Reason::try_from(number).ok()).map(Refused);
    own.into_iter().chain(refused).map(|cause| {
        let frames = counters.fallbacks.get(&cause).copied().unwrap_or(0);
        (label(&cause.to_string()), count(frames))
    })
}

fn drops(counters: &Counters) -> impl Iterator<Item = (String, ConstCounter<u64>)> {
    use DropCause::{Expired, HeadFailed, HeadLate, NoExit, Skipped, Superseded};
    [Superseded, Expired, HeadLate, HeadFailed, NoExit, Skipped].into_iter().map(|cause| {
        let frames = counters.dropped.get(&cause).copied().unwrap_or(0);
        (label(&cause.to_string()), count(frames))
    })
}

/// Words as a label's value: `refused: too_large` is `refused_too_large`.
fn label(words: &str) -> String {
    words.replace(": ", "_").replace(' ', "_")
}

fn count(frames: u64) -> ConstCounter<u64> {
    ConstCounter::new(frames)
}

#[cfg(test)]
mod tests {
    use isthmus_proto::OperatingPoint;

    use super::*;
    use crate::report::Stages;

    const SPLIT: Arm = Arm::Split(OperatingPoint { split: 0, width: 0, layers: 1, bits: 4 });

    fn report(arm: Option<Arm>, on_time: bool) -> FrameReport {
        let took = arm.map(|_| 40.0);
        let reason = "in time".into();
        FrameReport { arm, on_time, reason, capture_to_output_ms: took, ..FrameReport::default() }
    }

    fn text(metrics: Metrics) -> String {
        Arc::new(metrics).page().into_body()
    }

    #[test]
    fn every_frame_has_one_verdict_and_an_answer_its_configuration() {
        let metrics = Metrics::new();
        metrics.on_frame(&report(Some(SPLIT), true));
        metrics.on_frame(&report(Some(Arm::Exit), false));
        metrics.on_frame(&report(None, false));
        metrics.on_frame(&FrameReport { error: Some("no JPEG".into()), ..report(None, false) });
        let page = text(metrics);
        for verdict in VERDICTS {
            let line = format!("isthmus_client_frames_total{{verdict=\"{verdict}\"}} 1\n");
            assert!(page.contains(&line), "{line}{page}");
        }
        assert_eq!(page.matches("isthmus_client_config_selected_total{").count(), 2);
        assert!(page.contains(r#"bits="",reason="in_time"} 1"#), "{page}");
        assert!(page.contains("isthmus_client_capture_to_output_seconds_count 2"), "{page}");
    }

    #[test]
    fn rates_come_from_frames_that_show_them() {
        let metrics = Metrics::new();
        // 8,800 bytes after the first packet in 44 ms, and 10,000 in all in 100 ms.
        let stages = Stages { network: Some(100.0), receive_span: Some(44.0), ..Stages::default() };
        let answered =
            |arm, bytes| FrameReport { stages, bytes: Some(bytes), ..report(Some(arm), true) };
        metrics.on_frame(&answered(SPLIT, 10_000));
        // Too small to be spread, and given up.
        metrics.on_frame(&answered(Arm::Exit, 1_000));
        metrics.on_session(&Counters::default(), true, Some(Bitrate::from_bps(750_000)));
        let page = text(metrics);
        for (kind, rate) in
            [("dispersion", 1_600_000), ("goodput", 800_000), ("controller", 750_000)]
        {
            let sample = format!("bandwidth_bits_per_second{{kind=\"{kind}\"}} {rate}.0\n");
            assert!(page.contains(&sample), "{sample}{page}");
        }
        assert!(page.contains("isthmus_client_sent_bytes_total 11000"), "{page}");
    }

    #[test]
    fn causes_are_there_before_they_happen() {
        let fallbacks = BTreeMap::from([(Fallback::Refused(Reason::TooLarge), 3)]);
        let counters = Counters { fallbacks, ..Counters::default() };
        let metrics = Metrics::new();
        metrics.on_session(&counters, false, None);
        let page = text(metrics);
        assert!(page.contains(r#"fallback_total{cause="refused_too_large"} 3"#), "{page}");
        assert!(page.contains(r#"fallback_total{cause="in_flight_full"} 0"#), "{page}");
        assert!(page.contains(r#"dropped_total{cause="head_late"} 0"#), "{page}");
    }
}
