//! Results as lines and a table, for people to read.

use std::collections::BTreeMap;
use std::fmt::Write;

use crate::report::{MapSummary, Said};
#[cfg(target_os = "linux")]
use crate::source::FoundCamera;
use crate::{FrameReport, Quantiles, Summary};

/// The line above the frames.
pub fn header() -> String {
    row(["frame", "arm", "label", "conf", "point", "bytes", "ms", "reason", "source"])
}

/// One frame.
pub fn frame(report: &FrameReport) -> String {
    let label = match (&report.label, &report.truth) {
        (Some(label), Some(truth)) if label == truth => format!("{label} ✓"),
        (Some(label), Some(_)) => format!("{label} ✗"),
        (Some(label), None) => label.clone(),
        (None, _) => said(&report.said),
    };
    let reason = match &report.error {
        Some(error) => format!("{}: {error}", report.reason),
        None => report.reason.clone(),
    };
    row([
        &report.frame.to_string(),
        report.arm_name().unwrap_or("-"),
        &label,
        &or_dash(report.confidence.map(|confidence| format!("{confidence:.2}"))),
        &point(report).unwrap_or_else(|| "-".into()),
        &or_dash(report.bytes.map(|bytes| bytes.to_string())),
        &or_dash(report.capture_to_output_ms.map(|ms| format!("{ms:.1}"))),
        &reason,
        &report.source,
    ])
}

/// An answer that is no class, in a few words: how many objects of each label, or the largest parts of a
/// map.
fn said(Said { detections, map, tensors, .. }: &Said) -> String {
    if let Some(found) = detections {
        let mut counts = BTreeMap::<&str, usize>::new();
        for it in found {
            *counts.entry(&it.label).or_default() += 1;
        }
        let counts: Vec<String> =
            counts.into_iter().map(|(label, count)| format!("{count} {label}")).collect();
        return if counts.is_empty() { "nothing".into() } else { counts.join(", ") };
    }
    match (map, tensors) {
        (Some(MapSummary { values: Some([least, _, most]), .. }), _) => {
            format!("{least:.2} to {most:.2}")
        }
        (Some(MapSummary { classes, .. }), _) => {
            let largest = classes.iter().max_by(|a, b| a.1.total_cmp(b.1));
            largest.map_or("-".into(), |(label, part)| format!("{:.0}% {label}", 100.0 * part))
        }
        (None, Some(tensors)) => format!("{tensors:?}"),
        (None, None) => "-".into(),
    }
}

/// What was sent of a frame, or else the head that was run.
pub(crate) fn point(report: &FrameReport) -> Option<String> {
    let FrameReport { image, split, width, channels, bits, .. } = report;
    match (image, split, width) {
        (Some(image), ..) => Some(image.clone()),
        (None, Some(split), Some(width)) => Some(match (channels, bits) {
            (Some(channels), Some(bits)) => format!("{split}/{width}/c{channels}/b{bits}"),
            _ => format!("{split}/{width}"),
        }),
        _ => None,
    }
}

/// The table at the end.
pub fn summary(summary: &Summary) -> String {
    let mut table = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(table, "{name:<20} {value}");
    };
    line("\nframes", format!("{} in {:.1} s", summary.frames, summary.seconds));
    summary
        .answered
        .iter()
        .for_each(|(arm, count)| line(&format!("  by {arm}"), count.to_string()));
    for (cause, count) in &summary.dropped {
        line(&format!("  {cause}"), count.to_string());
    }
    if summary.bad_pictures > 0 {
        line("  bad pictures", summary.bad_pictures.to_string());
    }
    for (cause, count) in &summary.fallbacks {
        line(&format!("  exit for {cause}"), count.to_string());
    }
    if summary.probes > 0 {
        let probes = format!("{} ({} B of padding)", summary.probes, summary.probe_bytes);
        line("probes", probes);
    }
    if summary.late_replies > 0 {
        line("late replies", summary.late_replies.to_string());
    }
    if summary.links_lost > 0 {
        line("connections lost", summary.links_lost.to_string());
    }
    line("on time", or_dash(summary.on_time.map(percent)));
    line("quality", or_dash(summary.quality.map(percent)));
    line("on-time quality", or_dash(summary.on_time_quality.map(percent)));
    if let Some((map, ap50)) = summary.map.zip(summary.ap50) {
        line("mAP", format!("{map:.3}, AP50 {ap50:.3}"));
    }
    let mean = or_dash(summary.bytes.mean.map(|mean| format!("{mean:.0}")));
    let p99 = or_dash(summary.bytes.p99.map(|p99| p99.to_string()));
    line("bytes a frame", format!("{mean} mean, {p99} p99"));
    let _ = writeln!(table, "\n{:<20} {:>9} {:>9} {:>9}", "milliseconds", "p50", "p95", "p99");
    let _ = writeln!(table, "{}", times("capture to output", &summary.capture_to_output_ms));
    for stage in ["device_wait", "head", "encode", "network", "queue", "decode", "tail"] {
        if let Some(stages) = summary.stages_ms.get(stage) {
            let _ = writeln!(table, "{}", times(&format!("  {}", stage.replace('_', " ")), stages));
        }
    }
    table.truncate(table.trim_end().len());
    table
}

/// A camera and its formats, each in a line.
#[cfg(target_os = "linux")]
pub fn camera(camera: &FoundCamera) -> String {
    let mut lines = format!("{}  {}\n", camera.path.display(), camera.name);
    let mut line = |line: &dyn std::fmt::Display| {
        // Writing to a string cannot fail.
        let _ = writeln!(lines, "  {line}");
    };
    match &camera.offers {
        Ok(offers) => offers.iter().for_each(|offer| line(offer)),
        Err(error) => line(error),
    }
    lines
}

/// The cells of a line, in columns.
fn row([frame, arm, label, confidence, point, bytes, ms, reason, source]: [&str; 9]) -> String {
    format!(
        "{frame:>6}  {arm:<5}  {label:<22}  {confidence:>4}  {point:<17}  {bytes:>6}  {ms:>7}  \
         {reason:<16}  {source}"
    )
}

fn times(name: &str, quantiles: &Quantiles) -> String {
    let cell = |value: Option<f64>| or_dash(value.map(|ms| format!("{ms:.2}")));
    let Quantiles { p50, p95, p99, .. } = *quantiles;
    format!("{name:<20} {:>9} {:>9} {:>9}", cell(p50), cell(p95), cell(p99))
}

fn percent(ratio: f64) -> String {
    format!("{:.1}%", ratio * 100.0)
}

fn or_dash(value: Option<String>) -> String {
    value.unwrap_or_else(|| "-".into())
}
