//! A page of metrics in Prometheus' text format.
//!
//! A program keeps what it measures where it happens, and brings all of it together when a page is
//! asked for: a [`Collector`] writes it family by family with a [`Page`].

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric, prometheus_text,
};
use prometheus_client::metrics::TypedMetric;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::http::{self, Response, StatusCode};

/// The answer to a scrape: all that `collector` reports, under names that begin with `prefix_`.
pub fn page(prefix: &str, collector: impl Collector) -> Response<String> {
    let mut registry = Registry::with_prefix(prefix);
    registry.register_collector(Box::new(collector));
    let mut text = String::new();
    match prometheus_text::encode(&mut text, &registry) {
        Ok(()) => http::page(prometheus_text::CONTENT_TYPE, text),
        Err(fmt::Error) => http::status(StatusCode::INTERNAL_SERVER_ERROR),
    }
}

/// For durations in seconds: 100 µs to 3.3 s, each bucket twice the one before.
pub fn durations() -> Histogram {
    Histogram::new(exponential_buckets(1e-4, 2.0, 16))
}

/// Writes families of metrics.
#[derive(Debug)]
pub struct Page<'a, 'b>(pub &'a mut DescriptorEncoder<'b>);

impl Page<'_, '_> {
    /// A metric without labels.
    pub fn single<M: EncodeMetric + TypedMetric>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        metric: &M,
    ) -> fmt::Result {
        metric.encode(self.0.encode_descriptor(name, help, unit.as_ref(), M::TYPE)?)
    }

    /// Metrics of one kind, distinguished by the value of `label`.
    pub fn family<V: EncodeLabelValue, M: EncodeMetric + TypedMetric>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        label: &str,
        metrics: impl IntoIterator<Item = (V, M)>,
    ) -> fmt::Result {
        let labelled = metrics.into_iter().map(|(value, metric)| ([(label, value)], metric));
        self.labelled(name, help, unit, labelled)
    }

    /// Metrics of one kind, distinguished by several labels.
    pub fn labelled<L: EncodeLabelSet, M: EncodeMetric + TypedMetric>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        metrics: impl IntoIterator<Item = (L, M)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), M::TYPE)?;
        for (labels, metric) in metrics {
            metric.encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
