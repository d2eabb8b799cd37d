//! Reports of a run: one for every frame, and a summary.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use isthmus_models::{
    Answer, Bundle, DecoderSpec, Detection, MeanAveragePrecision, Picture, TrueBoxes, View,
};
use isthmus_proto::Arm;
use serde::{Serialize, Serializer};

use crate::controller::LinkEstimate;
use crate::histogram::Histogram;
use crate::outcome::{DropCause, Fallback};
use crate::session::Counters;
use crate::transport::Unconnected;

/// One frame of a run, with the keys and in the order of its JSON line. Times are in milliseconds;
/// what does not apply is `None` and `null`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct FrameReport {
    /// Number of the frame in its source, from 0.
    pub frame: u64,
    /// Where the picture came from: a path, or the source's name and a number.
    pub source: String,
    /// The first answer's class, where it is one.
    pub label: Option<String>,
    /// How sure the first answer is, 0 to 1: of a class its softmax probability.
    pub confidence: Option<f32>,
    /// The true class, where the source knows it.
    pub truth: Option<String>,
    /// How good the answer is, 0 to 1, where the truth is known: a right class 1 and a wrong one 0; of
    /// boxes the F1 at IoU 0.5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality: Option<f32>,
    /// What the first answer says beyond a class.
    #[serde(flatten)]
    pub said: Said,
    /// What the bundle's other decoders say, by their names.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub further: BTreeMap<String, Said>,
    /// Who answered, in the line by its [name](Arm::name); `None` if nobody did.
    #[serde(serialize_with = "by_name")]
    pub arm: Option<Arm>,
    /// Name of the split whose head was run.
    pub split: Option<String>,
    /// Name of its width.
    pub width: Option<String>,
    /// Latent channels sent.
    pub channels: Option<u16>,
    /// Their quantiser's depth.
    pub bits: Option<u8>,
    /// How the picture was compressed, such as `webp/160/q35`, where it was sent so.
    pub image: Option<String>,
    /// Layers the server's answer rests on.
    pub layers_used: Option<u8>,
    /// Bytes handed to the link: envelope and packet.
    pub bytes: Option<usize>,
    /// From the picture in memory to the answer, on the device's clock.
    pub capture_to_output_ms: Option<f64>,
    /// Where that time went.
    pub stages: Stages,
    /// Whether there was an answer within the deadline.
    pub on_time: bool,
    /// Why this arm, or why no answer.
    pub reason: String,
    /// What is wrong with a picture that could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The answer of each decoder that was answered, in the bundle's order, boxes in the picture's pixels;
    /// not part of the line.
    #[serde(skip)]
    pub answers: Vec<Answer>,
    /// How the network saw the picture; not part of the line.
    #[serde(skip)]
    pub view: Option<View>,
    /// The picture, where the configuration asks for it; not part of the line.
    #[serde(skip)]
    pub picture: Option<Arc<Picture>>,
    /// The true boxes in the picture's pixels, where the source knows them; not part of the line.
    #[serde(skip)]
    pub true_boxes: Option<TrueBoxes>,
    /// The part of `stages.queue` that passed on the device; not part of the line.
    #[serde(skip)]
    pub device_wait: Duration,
    /// The controller's link estimate as the frame ends; not part of the line.
    #[serde(skip)]
    pub estimate: Option<LinkEstimate>,
}

impl FrameReport {
    /// Takes in what was answered about a picture that the network saw so.
    pub(crate) fn say(&mut self, bundle: &Bundle, answers: Vec<Answer>, view: View) {
        let decoders = bundle.decoders().specs();
        self.answers = answers.into_iter().map(|answer| answer.in_picture(&view)).collect();
        for (at, (spec, answer)) in decoders.zip(&self.answers).enumerate() {
            let said = Said::of(spec, answer);
            match at {
                0 => self.said = said,
                _ => drop(self.further.insert(spec.name.clone(), said)),
            }
        }
        self.label = self.said.label.take();
        self.view = Some(view);
        let threshold = bundle.manifest().decoders.first().map_or(0.0, DecoderSpec::confidence);
        self.quality = match (&self.truth, &self.true_boxes, self.answers.first()) {
            (Some(truth), ..) => Some(if self.label.as_ref() == Some(truth) { 1.0 } else { 0.0 }),
            (None, Some(truth), Some(Answer::Boxes(found))) => {
                Some(truth.f1(found, threshold) as f32)
            }
            _ => None,
        };
    }

    /// Whether the source knows what is true of the picture.
    pub fn has_truth(&self) -> bool {
        self.truth.is_some() || self.true_boxes.is_some()
    }

    /// Logits of the first answer, one per class, where it is a class and they were asked for.
    pub fn logits(&self) -> &[f32] {
        match self.answers.first() {
            Some(Answer::Scores(scores)) => &scores.logits,
            _ => &[],
        }
    }

    /// Whether it was sent, and no network answer came in time.
    pub fn is_missed(&self) -> bool {
        let is_remote = matches!(self.arm, Some(Arm::Split(_) | Arm::Image));
        self.bytes.is_some() && !(self.on_time && is_remote)
    }

    /// Who answered, by name.
    pub fn arm_name(&self) -> Option<&'static str> {
        self.arm.map(|arm| arm.name())
    }

    /// The stages that the frame has (milliseconds), and of `queue` the part that passed on the
    /// device, `device_wait`.
    pub(crate) fn stages_by_name(&self) -> impl Iterator<Item = (&'static str, f64)> {
        let Stages { head, encode, network, receive_span, queue, decode, tail } = self.stages;
        let stages = [
            ("device_wait", Some(self.device_wait.as_secs_f64() * 1e3)),
            ("head", head),
            ("encode", encode),
            ("network", network),
            ("receive_span", receive_span),
            ("queue", queue),
            ("decode", decode),
            ("tail", tail),
        ];
        stages.into_iter().filter_map(|(stage, time)| Some((stage, time?)))
    }
}

/// What one decoder says of a frame, with the keys of a JSON line; what does not apply is left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Said {
    /// A classification's class.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// A detection's objects, the most confident first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub detections: Option<Vec<Found>>,
    /// A map in short.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map: Option<MapSummary>,
    /// Tensors in short: the shape of each, without the batch.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tensors: Option<Vec<Vec<usize>>>,
}

/// An object in the picture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Found {
    /// Its class.
    pub label: String,
    /// How sure the network is of it, 0 to 1.
    pub confidence: f32,
    /// Left, top, width and height, in pixels of the source's picture, to a hundredth.
    #[serde(rename = "box")]
    pub area: [f32; 4],
}

/// A map in short.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct MapSummary {
    /// Places in a row, over the network's input.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Of a map of classes the fraction of its places that each class has, 0 to 1; classes without a
    /// place are left out.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub classes: BTreeMap<String, f32>,
    /// Of a map of values the least, the mean and the greatest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub values: Option<[f32; 3]>,
}

impl Said {
    fn of(spec: &DecoderSpec, answer: &Answer) -> Said {
        let label = |class: usize| spec.labels.get(class).cloned().unwrap_or_default();
        match answer {
            Answer::Scores(_) => Said { label: answer.class().map(label), ..Said::default() },
            Answer::Boxes(boxes) => {
                let hundredths = |value: f32| (100.0 * value).round() / 100.0;
                let found = |it: &Detection| Found {
                    label: label(it.class.into()),
                    confidence: it.confidence,
                    area: [it.x0, it.y0, it.x1 - it.x0, it.y1 - it.y0].map(hundredths),
                };
                Said { detections: Some(boxes.iter().map(found).collect()), ..Said::default() }
            }
            Answer::Classes(map) => {
                let mut counts = BTreeMap::<usize, usize>::new();
                for &class in &map.classes {
                    *counts.entry(class.into()).or_default() += 1;
                }
                let places = map.classes.len().max(1) as f32;
                let classes = counts.into_iter();
                let classes = classes.map(|(class, count)| (label(class), count as f32 / places));
                let (width, height) = (map.width, map.height);
                let map = MapSummary { width, height, classes: classes.collect(), values: None };
                Said { map: Some(map), ..Said::default() }
            }
            Answer::Values(map) => {
                let least = map.values.iter().copied().fold(f32::INFINITY, f32::min);
                let most = map.values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f64 = map.values.iter().copied().map(f64::from).sum();
                let mean = (sum / map.values.len().max(1) as f64) as f32;
                let (width, height, classes) = (map.width, map.height, BTreeMap::new());
                let map = MapSummary { width, height, classes, values: Some([least, mean, most]) };
                Said { map: Some(map), ..Said::default() }
            }
            Answer::Tensors(tensors) => {
                let shapes = tensors.iter().map(|tensor| tensor.shape.clone()).collect();
                Said { tensors: Some(shapes), ..Said::default() }
            }
        }
    }
}

/// Where a frame's time went (milliseconds). All but `receive_span`, which lies within `network`,
/// add up to `capture_to_output_ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Stages {
    /// Preprocessing and the head.
    pub head: Option<f64>,
    /// Quantising and entropy coding, or compressing the picture.
    pub encode: Option<f64>,
    /// Both directions of the network, the transports at both ends included.
    pub network: Option<f64>,
    /// First to last byte of the frame at the server.
    pub receive_span: Option<f64>,
    /// Waiting: on the device until the head starts and for threads to wake, and on the server
    /// until a worker takes the frame.
    pub queue: Option<f64>,
    /// Entropy decoding on the server, or decompressing the picture and preparing it.
    pub decode: Option<f64>,
    /// The tail network, or the full one for a compressed picture.
    pub tail: Option<f64>,
}

/// A whole run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// Frames of the source, unreadable ones included.
    pub frames: u64,
    /// Frames answered, by arm.
    pub answered: BTreeMap<&'static str, u64>,
    /// Frames dropped without an answer, by cause.
    pub dropped: BTreeMap<DropCause, u64>,
    /// Pictures that could not be read.
    pub bad_pictures: u64,
    /// Frames that the exit answered because the network could not, by cause.
    pub fallbacks: BTreeMap<Fallback, u64>,
    /// Frames sent.
    pub sent: u64,
    /// Probes sent to find out whether the network carries frames again, or larger ones.
    pub probes: u64,
    /// Their padding (bytes).
    pub probe_bytes: u64,
    /// Replies that came after their frame had ended.
    pub late_replies: u64,
    /// Times the connection was lost.
    pub links_lost: u64,
    /// Why there has never been a connection; none where there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unconnected: Option<Unconnected>,
    /// Frames whose true class is known.
    pub with_truth: u64,
    /// Mean quality of the answers to frames of known truth, 0 to 1: of classes the fraction that are right.
    pub quality: Option<f64>,
    /// The same over all readable frames of known truth, where an answer that was late or missing has none.
    pub on_time_quality: Option<f64>,
    /// Of boxes the mean average precision at IoU 0.5 to 0.95, as COCO defines it, 0 to 1, over frames of
    /// known truth.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub map: Option<f64>,
    /// The same at IoU 0.5.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ap50: Option<f64>,
    /// Answers in time over all readable frames, 0 to 1.
    pub on_time: Option<f64>,
    /// Of answered frames.
    pub capture_to_output_ms: Quantiles,
    /// By stage, over the frames that have the stage; `device_wait` is the device's part of
    /// `queue`.
    pub stages_ms: BTreeMap<&'static str, Quantiles>,
    /// Over frames that were sent.
    pub bytes: ByteQuantiles,
    /// Duration of the run (seconds).
    pub seconds: f64,
}

/// Quantiles of times (milliseconds), within 0.05%.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Quantiles {
    /// Median.
    pub p50: Option<f64>,
    /// 95th percentile.
    pub p95: Option<f64>,
    /// 99th percentile.
    pub p99: Option<f64>,
    /// Mean.
    pub mean: Option<f64>,
}

/// Sizes of sent frames (bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct ByteQuantiles {
    /// Mean.
    pub mean: Option<f64>,
    /// Median.
    pub p50: Option<u64>,
    /// 99th percentile.
    pub p99: Option<u64>,
    /// Sum.
    pub total: u64,
}

/// Gathers a summary from frame reports, in bounded memory.
#[derive(Clone, Debug, Default)]
pub struct SummaryBuilder {
    frames: u64,
    bad_pictures: u64,
    with_truth: u64,
    judged: u64,
    quality: f64,
    quality_on_time: f64,
    /// Of frames whose boxes are known.
    precision: MeanAveragePrecision,
    on_time: u64,
    latency: Histogram,
    stages: BTreeMap<&'static str, Histogram>,
    bytes: Histogram,
}

impl SummaryBuilder {
    /// Takes in a frame.
    pub fn record(&mut self, report: &FrameReport) {
        self.frames += 1;
        if report.error.is_some() {
            self.bad_pictures += 1;
            return;
        }
        self.on_time += u64::from(report.on_time);
        if report.has_truth() {
            let quality = f64::from(report.quality.unwrap_or(0.0));
            self.with_truth += 1;
            self.judged += u64::from(report.arm.is_some());
            self.quality += quality;
            self.quality_on_time += if report.on_time { quality } else { 0.0 };
        }
        if let Some(truth) = &report.true_boxes {
            match report.answers.first() {
                Some(Answer::Boxes(found)) => self.precision.add(found, &truth.boxes),
                _ => self.precision.add(&[], &truth.boxes),
            }
        }
        if let Some(latency) = report.capture_to_output_ms {
            self.latency.record(micros(latency));
            for (stage, time) in report.stages_by_name() {
                self.stages.entry(stage).or_default().record(micros(time));
            }
        }
        if let Some(bytes) = report.bytes {
            self.bytes.record(bytes as u64);
        }
    }

    /// The summary of what was taken in, with the session's `counters`, after `elapsed`.
    pub fn finish(&self, counters: &Counters, elapsed: Duration) -> Summary {
        let ratio = |part: u64, whole: u64| (whole > 0).then(|| part as f64 / whole as f64);
        let mean = |sum: f64, count: u64| (count > 0).then(|| sum / count as f64);
        let precision = self.precision.summary();
        Summary {
            frames: self.frames,
            answered: counters.answered.clone(),
            dropped: counters.dropped.clone(),
            bad_pictures: self.bad_pictures,
            fallbacks: counters.fallbacks.clone(),
            sent: counters.sent,
            probes: counters.probes,
            probe_bytes: counters.probe_bytes,
            late_replies: counters.late_replies,
            links_lost: counters.links_down,
            unconnected: None,
            with_truth: self.with_truth,
            quality: mean(self.quality, self.judged),
            on_time_quality: mean(self.quality_on_time, self.with_truth),
            map: precision.as_ref().map(|it| it.mean),
            ap50: precision.as_ref().map(|it| it.at_50),
            on_time: ratio(self.on_time, self.frames - self.bad_pictures),
            capture_to_output_ms: quantiles(&self.latency),
            stages_ms: self
                .stages
                .iter()
                .map(|(&stage, times)| (stage, quantiles(times)))
                .collect(),
            bytes: ByteQuantiles {
                mean: self.bytes.mean(),
                p50: self.bytes.quantile(0.5),
                p99: self.bytes.quantile(0.99),
                total: u64::try_from(self.bytes.sum()).unwrap_or(u64::MAX),
            },
            seconds: elapsed.as_secs_f64(),
        }
    }
}

fn by_name<S: Serializer>(arm: &Option<Arm>, serializer: S) -> Result<S::Ok, S::Error> {
    arm.map(|arm| arm.name()).serialize(serializer)
}

fn micros(ms: f64) -> u64 {
    (ms * 1e3).round() as u64
}

fn quantiles(times: &Histogram) -> Quantiles {
    let at = |q| times.quantile(q).map(|micros| micros as f64 / 1e3);
    let mean = times.mean().map(|micros| micros / 1e3);
    Quantiles { p50: at(0.5), p95: at(0.95), p99: at(0.99), mean }
}

#[cfg(test)]
mod tests {
    use isthmus_proto::OperatingPoint;

    use super::*;

    fn report(label: Option<&str>, on_time: bool) -> FrameReport {
        FrameReport {
            label: label.map(Into::into),
            arm: label.map(|_| Arm::Exit),
            quality: label.map(|label| if label == "stop" { 1.0 } else { 0.0 }),
            truth: Some("stop".into()),
            on_time,
            capture_to_output_ms: label.map(|_| 10.0),
            ..FrameReport::default()
        }
    }

    #[test]
    fn drops_and_late_answers_count_against_on_time_quality_alone() {
        let mut summary = SummaryBuilder::default();
        summary.record(&report(Some("stop"), true));
        summary.record(&report(Some("stop"), false));
        summary.record(&report(Some("yield"), true));
        summary.record(&report(None, false));
        summary.record(&FrameReport { error: Some("no JPEG".into()), ..FrameReport::default() });
        let summary = summary.finish(&Counters::default(), Duration::from_secs(1));
        assert_eq!((summary.frames, summary.bad_pictures, summary.with_truth), (5, 1, 4));
        assert_eq!(summary.quality, Some(2.0 / 3.0));
        assert_eq!(summary.on_time_quality, Some(0.25));
        assert_eq!(summary.on_time, Some(0.5));
    }

    #[test]
    fn an_arm_is_written_by_its_name() {
        let point = OperatingPoint { split: 0, width: 0, layers: 1, bits: 4 };
        let arms =
            [(Some(Arm::Split(point)), "\"split\""), (Some(Arm::Exit), "\"exit\""), (None, "null")];
        for (arm, name) in arms {
            let line = serde_json::to_string(&FrameReport { arm, ..FrameReport::default() });
            let line = line.expect("JSON");
            assert!(line.contains(&format!("\"arm\":{name},")), "{line}");
        }
    }

    #[test]
    fn a_summary_of_nothing_has_no_numbers() {
        let summary = SummaryBuilder::default().finish(&Counters::default(), Duration::ZERO);
        assert_eq!((summary.quality, summary.capture_to_output_ms.p50), (None, None));
    }
}
