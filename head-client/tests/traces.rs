//! The spans of one frame, from both ends, at one collector.

#![cfg(feature = "otel")]

use std::collections::{BTreeMap, BTreeSet};
use std::future::pending;
use std::ops::ControlFlow;
use std::time::Duration;

use isthmus_fixtures::{ends, tiny};
use isthmus_head_client::config::{TraceConfig, Transport};
use isthmus_tail_server::{ServerConfig, TlsConfig};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{
    TraceService, TraceServiceServer,
};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, Span};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

const FRAMES: usize = 6;

struct Collector(mpsc::UnboundedSender<ResourceSpans>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        for spans in request.into_inner().resource_spans {
            let _ = self.0.send(spans);
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector's URL and what it collects.
async fn collector() -> (String, mpsc::UnboundedReceiver<ResourceSpans>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let (sender, collected) = mpsc::unbounded_channel();
    let service = TraceServiceServer::new(Collector(sender));
    let serving = tonic::transport::Server::builder()
        .add_service(service)
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(serving);
    (url, collected)
}

/// The spans of `FRAMES` frames, of which this share is sampled, each with its service's name.
async fn trace(transport: Transport, sampled: f64) -> Vec<(String, Span)> {
    let (_dir, bundle) = tiny::bundle();
    let (endpoint, mut collected) = collector().await;
    let otlp_endpoint = Some(endpoint.clone());
    let config =
        ServerConfig { otlp_endpoint, ..ServerConfig::new("unused".into(), TlsConfig::InMemory) };
    let server = ends::serve(vec![ends::model(&bundle, Duration::ZERO)], config).await;
    let mut config = ends::config(&server, transport);
    config.traces = Some(TraceConfig { endpoint, sampled });
    let client = ends::client(config, &bundle).await.expect("connected");
    let source = ends::pictures(FRAMES);
    client.run(source, pending(), |_| ControlFlow::Continue(())).await.expect("threads");
    // Both ends export what they have before they end.
    server.shutdown().await;

    let mut spans = Vec::new();
    while let Ok(ResourceSpans { resource, scope_spans, .. }) = collected.try_recv() {
        let attributes = resource.unwrap_or_default().attributes;
        let service = attributes.into_iter().find(|it| it.key == "service.name");
        let service = service.and_then(|service| service.value?.value);
        let Some(Value::StringValue(service)) = service else { panic!("no service's name") };
        let told = scope_spans.into_iter().flat_map(|scope| scope.spans);
        spans.extend(told.map(|span| (service.clone(), span)));
    }
    spans
}

#[tokio::test]
async fn both_ends_tell_of_a_frame_in_one_trace() {
    for transport in [Transport::Quic, Transport::Grpc] {
        let mut traces: BTreeMap<Vec<u8>, Vec<(String, Span)>> = BTreeMap::new();
        for (service, span) in trace(transport, 1.0).await {
            traces.entry(span.trace_id.clone()).or_default().push((service, span));
        }
        assert_eq!(traces.len(), FRAMES, "{transport:?}");
        for spans in traces.values() {
            let roots: Vec<_> =
                spans.iter().filter(|(_, it)| it.parent_span_id.is_empty()).collect();
            let [(service, root)] = roots[..] else { panic!("{} roots", roots.len()) };
            assert_eq!((service.as_str(), root.name.as_str()), ("isthmus-head-client", "frame"));
            let named = |service: &str| {
                let of_service = spans.iter().filter(|(of, _)| of == service);
                of_service.map(|(_, span)| span.name.as_str()).collect::<BTreeSet<_>>()
            };
            let device = ["frame", "wait", "head", "encode", "network"];
            assert_eq!(named("isthmus-head-client"), device.into());
            let server = ["receive", "queue", "decode", "tail"];
            assert_eq!(named("isthmus-tail-server"), server.into());
            let ids: BTreeSet<_> = spans.iter().map(|(_, span)| &span.span_id).collect();
            assert_eq!(ids.len(), spans.len());
            for (_, part) in spans.iter().filter(|(_, span)| span.name != "frame") {
                assert_eq!(part.parent_span_id, root.span_id, "{}", part.name);
            }
            let keys: BTreeSet<_> = root.attributes.iter().map(|it| it.key.as_str()).collect();
            assert!(keys.is_superset(&["isthmus.arm", "isthmus.reason", "isthmus.bytes"].into()));
        }
    }
}

#[tokio::test]
async fn a_frame_that_is_not_sampled_is_told_by_neither_end() {
    assert_eq!(trace(Transport::Quic, 0.0).await, []);
}
