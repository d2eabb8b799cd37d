//! A demonstration as one self-contained page.

use std::fmt::Write;

use isthmus_head_client::{FrameReport, Stages, text};

use crate::demo::{DemoConfig, DemoResult};

const WIDTH: f64 = 860.0;
const HEIGHT: f64 = 240.0;
const MARGIN: f64 = 48.0;

/// Colours of the stages, in the order in which a frame passes them.
const STAGES: [(&str, &str); 6] = [
    ("head", "#2f6f9f"),
    ("encode", "#7fb3d5"),
    ("network", "#e0a030"),
    ("queue", "#b0b0b0"),
    ("decode", "#8fbf8f"),
    ("tail", "#3f8f5f"),
];

/// The page (HTML) for `result`, made by `command`.
pub fn demo(config: &DemoConfig, result: &DemoResult, command: &str) -> String {
    let DemoResult { frames, summary, link, bundle, point } = result;
    let link_line = format!(
        "{} each way; {} of {} datagrams dropped up, {} of {} down",
        config.link,
        link.uplink.link.dropped.packets,
        link.uplink.link.offered.packets,
        link.downlink.link.dropped.packets,
        link.downlink.link.offered.packets,
    );
    format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>Isthmus: {bundle}</title>\
         <style>body{{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;\
         color:#222}}pre{{background:#f5f5f2;padding:1em;overflow:auto}}h2{{margin-top:2em;\
         font-size:1.1em}}svg{{width:100%;height:auto}}text{{font-size:11px;fill:#555}}\
         .key span{{margin-right:1.2em}}.key b{{display:inline-block;width:.8em;height:.8em;\
         margin-right:.3em}}</style>\
         <h1>One network, two machines</h1>\
         <p>Bundle <b>{bundle}</b> at operating point <b>{point}</b>, deadline {deadline} ms, \
         {rate} frames/s. Link: {link_line}.</p>\
         <h2>From capture to output, frame by frame (ms)</h2>{timeline}\
         <p class=\"key\">● right &nbsp; ○ wrong &nbsp; <span style=\"color:#c0392b\">red: answered \
         by the early exit</span></p>\
         <h2>Where the time of a median frame goes (ms)</h2>{bar}\
         <h2>Summary</h2><pre>{table}</pre>\
         <p>Made by <code>{command}</code>, camera seed {seed}.</p></html>",
        bundle = escape(bundle),
        deadline = config.deadline.as_millis(),
        rate = config.rate,
        timeline = timeline(frames, config.deadline.as_secs_f64() * 1e3),
        bar = stage_bar(frames),
        table = escape(text::summary(summary).trim()),
        command = escape(command),
        seed = config.seed,
    )
}

fn timeline(frames: &[FrameReport], deadline: f64) -> String {
    let latest = frames.iter().filter_map(|frame| frame.capture_to_output_ms).fold(0.0, f64::max);
    let top = latest.max(deadline) * 1.05;
    let count = frames.len().max(1) as f64;
    let x = |frame: f64| MARGIN + frame / count * (WIDTH - MARGIN - 10.0);
    let y = |ms: f64| HEIGHT - 24.0 - ms / top * (HEIGHT - 34.0);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\">");
    for step in 0..=4 {
        let ms = top * f64::from(step) / 4.0;
        line(&mut svg, (x(0.0), y(ms)), (WIDTH - 10.0, y(ms)), "#e4e4e0");
        label(&mut svg, 6.0, y(ms) + 4.0, &format!("{ms:.0}"));
    }
    line(&mut svg, (x(0.0), y(deadline)), (WIDTH - 10.0, y(deadline)), "#c0392b");
    label(&mut svg, WIDTH - 70.0, y(deadline) - 4.0, "deadline");
    for (at, frame) in frames.iter().enumerate() {
        let Some(ms) = frame.capture_to_output_ms else { continue };
        let colour = if frame.arm == Some("exit") { "#c0392b" } else { "#2f6f9f" };
        let right = frame.label.is_some() && frame.label == frame.truth;
        let fill = if right { colour } else { "none" };
        let _ = write!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" stroke=\"{colour}\" fill=\"{fill}\"/>",
            x(at as f64),
            y(ms)
        );
    }
    label(&mut svg, x(0.0), HEIGHT - 4.0, "frame 0");
    label(&mut svg, WIDTH - 70.0, HEIGHT - 4.0, &format!("frame {}", frames.len()));
    svg + "</svg>"
}

fn stage_bar(frames: &[FrameReport]) -> String {
    let medians =
        STAGES.map(|(name, _)| median(frames.iter().filter_map(|f| stage(&f.stages, name))));
    let total: f64 = medians.iter().sum::<f64>().max(f64::MIN_POSITIVE);
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} 40\">");
    let mut key = String::from("<p class=\"key\">");
    let mut x = 0.0;
    for ((name, colour), ms) in STAGES.iter().zip(medians) {
        let width = ms / total * WIDTH;
        let _ = write!(
            svg,
            "<rect x=\"{x:.1}\" y=\"4\" width=\"{width:.1}\" height=\"32\" fill=\"{colour}\"/>"
        );
        let _ = write!(key, "<span><b style=\"background:{colour}\"></b>{name} {ms:.2}</span>");
        x += width;
    }
    format!("{svg}</svg>{key}</p>")
}

fn stage(stages: &Stages, name: &str) -> Option<f64> {
    match name {
        "head" => stages.head,
        "encode" => stages.encode,
        "network" => stages.network,
        "queue" => stages.queue,
        "decode" => stages.decode,
        _ => stages.tail,
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn line(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str) {
    let _ = write!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
    );
}

fn label(svg: &mut String, x: f64, y: f64, text: &str) {
    let _ = write!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\">{}</text>", escape(text));
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_frame_s_stages_are_told() {
        let frame = |ms| FrameReport {
            stages: Stages { head: Some(ms), ..Stages::default() },
            ..FrameReport::default()
        };
        assert!(stage_bar(&[frame(1.0), frame(3.0), frame(7.0)]).contains("head 3.00"));
    }

    #[test]
    fn nothing_from_a_bundle_becomes_markup() {
        assert_eq!(escape("<b> & \"c\""), "&lt;b&gt; &amp; &quot;c&quot;");
    }
}
