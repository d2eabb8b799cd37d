//! The page of metrics that Prometheus reads. Frames are counted by their outcome in
//! [`Counters`](crate::Counters), the gate knows who is connected and what waits, and
//! [`Metrics`](crate::metrics::Metrics) what was measured; each scrape brings all of it together.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use isthmus_proto::wire::Reason;
use isthmus_telemetry::http::Response;
use isthmus_telemetry::prometheus::{self, Page};
use isthmus_telemetry::spans::Spans;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Unit;

use crate::counters::{Cause, Counters};
use crate::exchange::{Carrier, Exchange};
use crate::gate::Gate;
use crate::tls::Certificates;

/// The answer to a scrape.
pub(crate) fn page(gate: &Arc<Gate>, certificates: &Arc<Certificates>) -> Response<String> {
    prometheus::page("isthmus", Scrape(Arc::clone(gate), Arc::clone(certificates)))
}

struct Scrape(Arc<Gate>, Arc<Certificates>);

impl fmt::Debug for Scrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Scrape")
    }
}

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let gate = &self.0;
        let metrics = &gate.metrics;
        let counters = gate.counters();
        let mut page = Page(&mut encoder);

        let help = "Frames and probes that ended, by the reply's code";
        page.family("requests", help, None, "code", codes(&counters).into_iter().map(counter))?;
        let help = "How long the stages of an answered frame took";
        let stages = [
            ("receive", &metrics.receive),
            ("queue", &metrics.queue),
            ("decode", &metrics.decode),
            ("tail", &metrics.tail),
        ];
        let stages = stages.map(|(stage, took)| (stage, took.clone()));
        page.family("stage_duration", help, Some(Unit::Seconds), "stage", stages)?;
        page.single("batch_size", "Frames in one run of the tail", None, &metrics.batch_size)?;
        let waiting = ConstGauge::new(gate.ask(Exchange::queued) as u64);
        page.single("pending_requests", "Frames that wait for a worker", None, &waiting)?;
        let buffered = ConstGauge::new(gate.ask(Exchange::buffered) as u64);
        let help =
            "Kept of frames that are being received or wait, and of replies that have not left";
        page.single("buffered", help, Some(Unit::Bytes), &buffered)?;
        let help = "Frames that were accepted, yet not answered";
        page.family("dropped", help, None, "reason", causes(&counters).map(counter))?;
        let help = "Frames whose time left ran out, by where they were";
        page.family("deadline_missed", help, None, "stage", missed(&counters).map(counter))?;
        let help = "Frames received and replies sent, without what the transports add";
        let payload = [("received", metrics.received.clone()), ("sent", metrics.sent.clone())];
        page.family("payload", help, Some(Unit::Bytes), "direction", payload)?;
        let help = "Smoothed round-trip time of the connection on which a frame comes";
        page.single("quic_rtt", help, Some(Unit::Seconds), &metrics.quic_rtt)?;
        let open = |carrier| gate.ask(|exchange| exchange.connections(carrier)) as u64;
        let connections = [("quic", Carrier::Streams), ("grpc", Carrier::Call)]
            .map(|(name, carrier)| (name, ConstGauge::new(open(carrier))));
        page.family("connections", "Open connections", None, "transport", connections)?;
        let dropped = gate.spans.as_ref().map(Spans::dropped).unwrap_or_default();
        let spans = dropped.by_cause().map(counter);
        let help = "Spans that never reached the collector";
        page.family("spans_dropped", help, None, "cause", spans)?;
        if let Some(expires) = self.1.served().expires {
            let since_epoch = expires.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let help = "When the certificate expires, in seconds since 1970";
            let expires = ConstGauge::new(since_epoch.as_secs());
            page.single("certificate_expiry_timestamp", help, Some(Unit::Seconds), &expires)?;
        }
        let build = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        page.single("build", "The program that runs", None, &build)
    }
}

/// Ended frames by the reply's code. A code that never came up is there with a zero, so
/// that Prometheus sees its first rise.
fn codes(counters: &Counters) -> Vec<(String, u64)> {
    let frames = |reason| {
        let dropped = counters.dropped.iter().filter(|(cause, _)| cause.reason() == reason);
        refused(counters, reason) + dropped.map(|(_, frames)| frames).sum::<u64>()
    };
    // The first one is for reasons of a later version, which this one does not give.
    let reasons = (1..).map_while(|number| Reason::try_from(number).ok());
    let named = reasons.map(|reason| (reason.as_str_name().to_ascii_lowercase(), frames(reason)));
    let ok = [("ok", counters.answered), ("echo", counters.echoed)];
    ok.map(|(code, frames)| (code.to_owned(), frames)).into_iter().chain(named).collect()
}

fn causes(counters: &Counters) -> [(&'static str, u64); 4] {
    [
        ("expired", Cause::Expired),
        ("cancelled", Cause::Cancelled),
        ("displaced", Cause::Displaced),
        ("failed", Cause::Failed),
    ]
    .map(|(name, cause)| (name, dropped(counters, cause)))
}

fn missed(counters: &Counters) -> [(&'static str, u64); 3] {
    [
        ("receive", refused(counters, Reason::Expired)),
        ("queue", dropped(counters, Cause::Expired)),
        ("tail", counters.late),
    ]
}

fn refused(counters: &Counters, reason: Reason) -> u64 {
    counters.refused.get(&reason).copied().unwrap_or(0)
}

fn dropped(counters: &Counters, cause: Cause) -> u64 {
    counters.dropped.get(&cause).copied().unwrap_or(0)
}

fn counter<V>((value, frames): (V, u64)) -> (V, ConstCounter<u64>) {
    (value, ConstCounter::new(frames))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Verdict;

    #[test]
    fn a_frame_that_expires_is_told_by_where_it_was() {
        let mut counters = Counters::default();
        let verdicts = [
            (3, Verdict::Refused(Reason::Expired)),
            (2, Verdict::Dropped(Cause::Expired)),
            (4, Verdict::Answered { late: false }),
            (1, Verdict::Answered { late: true }),
            (7, Verdict::Dropped(Cause::Failed)),
        ];
        for (frames, verdict) in verdicts {
            (0..frames).for_each(|_| counters.on_verdict(verdict));
        }
        assert_eq!(missed(&counters), [("receive", 3), ("queue", 2), ("tail", 1)]);
        assert_eq!(
            causes(&counters),
            [("expired", 2), ("cancelled", 0), ("displaced", 0), ("failed", 7)]
        );
        let mut codes = codes(&counters);
        codes.retain(|(_, frames)| *frames > 0);
        let codes: Vec<_> = codes.iter().map(|(code, frames)| (code.as_str(), *frames)).collect();
        assert_eq!(codes, [("ok", 5), ("expired", 5), ("internal", 7)]);
    }
}
