//! What the network stack, its threads and its messages cost: the real client and server over
//! unshaped loopback against the same computation in one thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use isthmus_head_client::config::Transport;
use isthmus_head_client::{Fixed, FrameReport, Stages, Summary};
use isthmus_models::{Bundle, Head, Picture, Preprocessor, TailItem};
use isthmus_proto::OperatingPoint;
use isthmus_proto::wire::Detail;
use isthmus_tail_server::model::{BundleModel, Model};

use super::Measurement;
use super::lab::{Lab, Talk, frames_of};
use crate::link::statistics::quantile;

/// Claim for medians, or [`P50_SLACK`] if that is more.
pub(super) const P50: f64 = 1.05;
const P50_SLACK: Duration = Duration::from_micros(500);
/// Claim for 99th percentiles.
pub(super) const P99: f64 = 1.25;

const WARM_UP: usize = 20;
const FRAMES: usize = 500;

pub(super) fn quic_p50(lab: &Lab) -> anyhow::Result<Measurement> {
    Ok(lab.once(Quic::measure)?.0.median("QUIC"))
}

pub(super) fn quic_p99(lab: &Lab) -> anyhow::Result<Measurement> {
    let (wire, local) = lab.once(Quic::measure)?.0.quantiles(0.99);
    Ok(Measurement::of(wire / local, format!("p99 {}", compared("QUIC", wire, local))))
}

pub(super) fn grpc_p50(lab: &Lab) -> anyhow::Result<Measurement> {
    Ok(lab.once(Grpc::measure)?.0.median("gRPC"))
}

struct Quic(Overhead);
struct Grpc(Overhead);

impl Quic {
    fn measure(lab: &Lab) -> anyhow::Result<Self> {
        Overhead::measure(lab, Transport::Quic).map(Quic)
    }
}

impl Grpc {
    fn measure(lab: &Lab) -> anyhow::Result<Self> {
        Overhead::measure(lab, Transport::Grpc).map(Grpc)
    }
}

/// Times of the same pictures, over the wire and in process (milliseconds).
struct Overhead {
    wire: Vec<f64>,
    local: Vec<f64>,
    stages: String,
}

impl Overhead {
    fn measure(lab: &Lab, transport: Transport) -> anyhow::Result<Overhead> {
        let pictures = lab.pictures()?;
        let mut local = Local::new(lab)?;
        let (mut wire_times, mut local_times, mut outside) = (Vec::new(), Vec::new(), Vec::new());
        // While the client reports one frame's outcome nothing else runs, so each picture takes both
        // paths right after one another and the machine's other work hits both alike.
        let compare = |report: &FrameReport| {
            let wire = report.capture_to_output_ms.context("a frame without an answer")?;
            let frame = report.frame as usize;
            let took = local.time(&pictures[frame % pictures.len()])?;
            if frame >= WARM_UP {
                let Stages { head, encode, decode, tail, .. } = report.stages;
                let compute: f64 = [head, encode, decode, tail].into_iter().flatten().sum();
                outside.push(wire - compute);
                wire_times.push(wire);
                local_times.push(took.as_secs_f64() * 1e3);
            }
            Ok(())
        };
        let talk = Talk {
            transport,
            detail: Detail::Top,
            min_confidence: None,
            in_flight: 1,
            controller: Box::new(Fixed::new(lab.best_point())),
        };
        let source = frames_of(&pictures, WARM_UP + FRAMES);
        let summary = lab.serve()?.answer(lab.head()?, talk, source, compare)?;
        let stages = stages(&summary, quantile(&outside, 0.5));
        Ok(Overhead { wire: wire_times, local: local_times, stages })
    }

    fn quantiles(&self, q: f64) -> (f64, f64) {
        (quantile(&self.wire, q), quantile(&self.local, q))
    }

    fn median(&self, name: &str) -> Measurement {
        let (wire, local) = self.quantiles(0.5);
        let slack = 1.0 + P50_SLACK.as_secs_f64() * 1e3 / local;
        // Other work on the machine only ever adds: the quickest frames saw the least of it.
        let (quick_wire, quick_local) = self.quantiles(0.1);
        let detail = format!(
            "median {}, at the tenth percentile {:+.3} ms; {}",
            compared(name, wire, local),
            quick_wire - quick_local,
            self.stages
        );
        Measurement::of(wire / local, detail).against(P50.max(slack))
    }
}

/// The whole computation in the calling thread.
struct Local<'a> {
    bundle: &'a Bundle,
    head: Arc<Head>,
    model: Arc<BundleModel>,
    preprocessor: Preprocessor,
    point: OperatingPoint,
    input: Vec<f32>,
}

impl<'a> Local<'a> {
    fn new(lab: &'a Lab) -> anyhow::Result<Self> {
        Ok(Local {
            bundle: lab.bundle(),
            head: lab.head()?,
            model: lab.model()?,
            preprocessor: Preprocessor::new(&lab.bundle().manifest().input),
            point: lab.best_point(),
            input: Vec::new(),
        })
    }

    /// Time from a picture in memory to its logits.
    fn time(&mut self, picture: &Picture) -> anyhow::Result<Duration> {
        let OperatingPoint { split, width, layers, bits } = self.point;
        let codec = self.bundle.codec(split, width, bits).context("a point without a codec")?;
        let start = Instant::now();
        self.preprocessor.run(picture, &mut self.input);
        let latents = self.head.run(split, width, &self.input)?.latents;
        let coded = codec.encode(&codec.quantise(&latents, layers.into())?)?;
        let latents = self.model.decode(self.point, &coded.stream, layers.into())?;
        self.model.infer(&[TailItem { split, width, latents: &latents }])?;
        Ok(start.elapsed())
    }
}

fn compared(name: &str, wire: f64, local: f64) -> String {
    format!(
        "{wire:.3} ms over {name} against {local:.3} ms in process, {:+.3} ms, over {FRAMES} frames",
        wire - local
    )
}

/// Medians of where the time of the frames that went over the wire was spent.
fn stages(summary: &Summary, outside: f64) -> String {
    let stage = |name| {
        let median = summary.stages_ms.get(name).and_then(|quantiles| quantiles.p50);
        median.map(|ms| format!("{name} {ms:.3}"))
    };
    let names = ["device_wait", "head", "encode", "network", "queue", "decode", "tail"];
    let stages = names.into_iter().filter_map(stage).collect::<Vec<_>>().join(", ");
    format!("{outside:.3} ms outside head, codec and tail; stages {stages} ms")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fast_networks_get_half_a_millisecond_and_slow_ones_five_percent() {
        let overhead = |wire, local| {
            Overhead { wire: vec![wire], local: vec![local], stages: String::new() }.median("QUIC")
        };
        assert_eq!(overhead(1.4, 1.0).target, Some(1.5));
        let slow = overhead(52.0, 50.0);
        assert_eq!((slow.value, slow.target), (Some(1.04), Some(1.05)));
    }
}
