//! What only the shells see of frames: durations, sizes and round trips.

use std::time::Duration;

use isthmus_proto::wire::Feedback;
use isthmus_telemetry::prometheus::durations;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};

/// What is measured where it happens.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) receive: Histogram,
    pub(crate) queue: Histogram,
    pub(crate) decode: Histogram,
    pub(crate) tail: Histogram,
    pub(crate) batch_size: Histogram,
    pub(crate) received: Counter,
    pub(crate) sent: Counter,
    pub(crate) quic_rtt: Histogram,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        Metrics {
            receive: durations(),
            queue: durations(),
            decode: durations(),
            tail: durations(),
            // To the most that `max_batch` may be.
            batch_size: Histogram::new(exponential_buckets(1.0, 2.0, 11)),
            received: Counter::default(),
            sent: Counter::default(),
            quic_rtt: durations(),
        }
    }

    /// A frame is answered, after these durations.
    pub(crate) fn on_answer(&self, feedback: &Feedback) {
        let stages = [
            (&self.receive, feedback.receive_span_us),
            (&self.queue, feedback.queue_us),
            (&self.decode, feedback.decode_us),
            (&self.tail, feedback.tail_us),
        ];
        for (stage, micros) in stages {
            stage.observe(Duration::from_micros(micros).as_secs_f64());
        }
    }

    /// A batch of so many frames runs.
    pub(crate) fn on_batch(&self, frames: u32) {
        self.batch_size.observe(frames.into());
    }

    /// So many bytes of a frame came.
    pub(crate) fn on_received(&self, bytes: usize) {
        self.received.inc_by(bytes as u64);
    }

    /// A reply of so many bytes leaves.
    pub(crate) fn on_sent(&self, bytes: usize) {
        self.sent.inc_by(bytes as u64);
    }

    /// A frame begins on a connection whose round trips take so long.
    pub(crate) fn on_quic_rtt(&self, rtt: Duration) {
        self.quic_rtt.observe(rtt.as_secs_f64());
    }
}
