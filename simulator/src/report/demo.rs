//! A demonstration as a page.

use std::fmt::Write;

use isthmus_head_client::{FrameReport, Stages, drawn, text};
use isthmus_proto::Arm;

use super::{Field, figure, page, table};
use crate::demo::{DemoConfig, DemoResult, DemoRun, rows};
use crate::link::Schedule;
use crate::link::statistics::median;
use crate::plot::{Axis, Colour, Mark, Plot, Series, escape};

/// The stages, in the order in which a frame passes them.
const STAGES: [(&str, Colour); 6] = [
    ("head", Colour::BLUE),
    ("encode", Colour::SKY),
    ("network", Colour::YELLOW),
    ("queue", Colour::GREY),
    ("decode", Colour::GREEN),
    ("tail", Colour::VIOLET),
];

/// The page for `result`, made by `command`.
pub fn demo(config: &DemoConfig, result: &DemoResult, command: &str) -> String {
    let bundle = escape(&result.bundle);
    let mut body = format!(
        "<h1>One network, two machines</h1>\
         <p>Bundle <b>{bundle}</b>, {} frames/s, deadline {} ms. The link carries {} each way with \
         {} ms of delay; the uplink falls to 15% and to 3% of that, comes back, and is gone for a \
         moment. All of them met the same pictures and the same link over real sockets, one after the \
         other.</p>",
        config.rate,
        config.deadline.as_millis(),
        config.link,
        config.delay.as_millis()
    );
    body += &summary(result);
    let meaning = match result.boxes {
        true => "mean F1 at IoU 0.5 of the boxes, 0 for an answer that is late or missing",
        false => "right and in time, over all frames",
    };
    let _ = write!(
        body,
        "<p class=\"faint\"><b>On-time {}</b>: {meaning}. <b>Missed</b>: sent, and no network answer in \
         time.</p>",
        measure(result)
    );
    for run in &result.runs {
        body += &course(config, result, run);
        body += &pictures(result, run);
    }
    body += &figure("Where the time of a median frame goes", &stages(result).svg());
    for run in &result.runs {
        let up = run.link.uplink.link;
        let _ = write!(
            body,
            "<details><summary>{}, in full</summary><pre>{}</pre><p>Uplink: {} of {} datagrams \
             dropped.</p></details>",
            escape(&run.name),
            escape(text::summary(&run.summary).trim()),
            up.dropped.packets,
            up.offered.packets
        );
    }
    let _ = write!(
        body,
        "<p class=\"faint\">Made by <code>{}</code>; seed {}, commit {}.</p>",
        escape(command),
        config.seed,
        crate::results::COMMIT
    );
    page(&format!("Isthmus: {}", result.bundle), &body)
}

fn summary(result: &DemoResult) -> String {
    let most = rows(result).map(|row| row.bytes).fold(f64::MIN_POSITIVE, f64::max);
    let percent = |fraction: Option<f64>| match fraction {
        Some(fraction) => Field::Bar(format!("{:.1}", 100.0 * fraction), fraction),
        None => Field::Text("–".into()),
    };
    let ms = |ms: Option<f64>| Field::Text(ms.map_or_else(|| "–".into(), |ms| format!("{ms:.0}")));
    let rows = rows(result).enumerate().map(|(at, row)| {
        let fields = vec![
            Field::Text(row.name.to_owned()),
            percent(row.on_time_quality),
            percent(row.in_time),
            Field::Bar(row.missed.to_string(), row.missed as f64 / row.sent.max(1) as f64),
            Field::Text(row.sent.to_string()),
            Field::Bar(format!("{:.0}", row.bytes), row.bytes / most),
            ms(row.p50_ms),
            ms(row.p95_ms),
        ];
        (at == 0, fields)
    });
    let on_time = format!("on-time {} %", measure(result));
    let head = [
        "",
        &on_time,
        "answers in time %",
        "missed",
        "frames sent",
        "bytes a frame",
        "p50 ms",
        "p95 ms",
    ];
    table(&head, &rows.collect::<Vec<_>>())
}

/// What answers are measured by.
fn measure(result: &DemoResult) -> &'static str {
    if result.boxes { "quality" } else { "accuracy" }
}

/// The frames of a run that have their pictures still, with what was found in them and what is there.
fn pictures(result: &DemoResult, run: &DemoRun) -> String {
    let mut html = String::new();
    for frame in &run.frames {
        let Some(file) = drawn::annotated(frame, &result.labels) else { continue };
        let words = text::frame(frame);
        let _ = write!(
            html,
            "<img width=\"300\" alt=\"{}\" src=\"data:image/jpeg;base64,{}\"> ",
            escape(words.trim()),
            base64(&file)
        );
    }
    if html.is_empty() {
        return html;
    }
    let truth = match run.frames.iter().any(|frame| frame.true_boxes.is_some()) {
        true => "; thin white lines are the true boxes",
        false => "",
    };
    format!("<figure>{html}<figcaption class=\"faint\">Some frames{truth}.</figcaption></figure>")
}

/// As data URIs have bytes (RFC 4648).
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |at: usize| u32::from(chunk.get(at).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            let place = (bits >> (18 - 6 * digit)) & 63;
            text.push(if digit > chunk.len() { '=' } else { DIGITS[place as usize].into() });
        }
    }
    text
}

/// Link, sizes and latencies of one run over time.
fn course(config: &DemoConfig, result: &DemoResult, run: &DemoRun) -> String {
    let course = Course { config, result, run };
    let (sizes, latencies) = course.frames();
    let mut html = format!("<h2>{}</h2>", escape(&run.name));
    for mut plot in [course.rates(), sizes, latencies] {
        plot.margin = 54.0;
        plot.size.1 = 190.0;
        let _ = write!(html, "<figure>{}</figure>", plot.svg());
    }
    html
}

/// A run with what its plots have in common.
struct Course<'a> {
    config: &'a DemoConfig,
    result: &'a DemoResult,
    run: &'a DemoRun,
}

/// Final outcomes that are drawn apart.
type End = (&'static str, Colour, Mark, fn(&FrameReport) -> bool);
const ENDS: [End; 5] = [
    ("network, right", Colour::BLUE, Mark::Dot, |it| by_network(it) && is_right(it)),
    ("network, wrong", Colour::BLUE, Mark::Ring, |it| by_network(it) && !is_right(it)),
    ("exit by choice", Colour::GREY, Mark::Dot, |it| it.arm == Some(Arm::Exit) && !it.is_missed()),
    ("missed, exit answers", Colour::RED, Mark::Dot, |it| it.is_missed() && it.arm.is_some()),
    ("no answer", Colour::RED, Mark::Ring, |it| it.arm.is_none()),
];

impl Course<'_> {
    /// When a frame was captured, on the link's clock (s).
    fn second(&self, frame: &FrameReport) -> f64 {
        self.run.start.as_secs_f64() + frame.frame as f64 / self.config.rate
    }

    fn end(&self) -> f64 {
        self.config.duration.as_secs_f64() + self.run.start.as_secs_f64()
    }

    fn over_time(&self) -> Axis {
        Axis::linear("s").covering(&[0.0, self.end()])
    }

    /// What the link could carry, and the controller's estimate of it.
    fn rates(&self) -> Plot {
        let uplink = &self.result.uplink;
        let schedule = Schedule::new(uplink.rate.clone(), &uplink.outages);
        let mut rates = Plot::new(self.over_time(), Axis::log("kbit/s").covering(&[10.0]));
        let capacity = (0..=(self.end() * 20.0) as u64).map(|at| {
            let at = at as f64 / 20.0;
            let now = isthmus_proto::Timestamp::from_micros((at * 1e6) as u64);
            (at, schedule.rate_at(now).as_bps() as f64 / 1e3)
        });
        let (name, capacity) = ("the link can carry", capacity.collect());
        rates.series.push(Series::new(name, Colour::SKY, Mark::Area, capacity));
        let estimate = self.run.frames.iter().map(|frame| {
            let kbits = frame.estimate.map(|link| link.rate.as_bps() as f64 / 1e3);
            (self.second(frame), kbits.map_or(f64::NAN, |kbits| kbits.clamp(10.0, 1e5)))
        });
        let estimate: Vec<(f64, f64)> = estimate.collect();
        if estimate.iter().any(|point| point.1.is_finite()) {
            let name = "the controller’s estimate";
            rates.series.push(Series::new(name, Colour::ORANGE, Mark::Step, estimate));
        }
        rates
    }

    /// Bytes sent, and how long answers took, frame by frame.
    fn frames(&self) -> (Plot, Plot) {
        let deadline = self.config.deadline.as_secs_f64() * 1e3;
        let latest = Axis::linear("ms from capture to output").covering(&[0.0, deadline]);
        let mut latencies = Plot::new(self.over_time(), latest);
        latencies.rules.push((deadline, "deadline".into()));
        let sent = Axis::log("bytes sent, by frame").covering(&[20.0]);
        let mut sizes = Plot::new(self.over_time(), sent);
        for (name, colour, mark, is) in ENDS {
            let of: Vec<&FrameReport> = self.run.frames.iter().filter(|frame| is(frame)).collect();
            if of.is_empty() {
                continue;
            }
            // Of boxes the better half.
            let name = match (self.result.boxes, name) {
                (true, "network, right") => "network, F1 of 0.5 or more",
                (true, "network, wrong") => "network, F1 below 0.5",
                (_, name) => name,
            };
            let title = |frame: &FrameReport| text::frame(frame).trim().to_owned();
            // Without an answer the deadline is when that was certain.
            let latency = |frame: &FrameReport| frame.capture_to_output_ms.unwrap_or(deadline);
            let points = of.iter().map(|frame| (self.second(frame), latency(frame)));
            let series = Series::new(name, colour, mark, points.collect());
            let titles = of.iter().map(|frame| title(frame)).collect();
            latencies.series.push(Series { titles, ..series });
            let sent = of.iter().filter_map(|frame| {
                Some(((self.second(frame), frame.bytes? as f64), title(frame)))
            });
            let (points, titles): (Vec<_>, Vec<_>) = sent.unzip();
            if !points.is_empty() {
                sizes.series.push(Series { titles, ..Series::new(name, colour, mark, points) });
            }
        }
        (sizes, latencies)
    }
}

fn by_network(frame: &FrameReport) -> bool {
    frame.on_time && matches!(frame.arm, Some(Arm::Split(_) | Arm::Image))
}

fn is_right(frame: &FrameReport) -> bool {
    frame.quality.is_some_and(|quality| quality >= 0.5)
}

/// Bars of the median of each stage.
fn stages(result: &DemoResult) -> Plot {
    let names: Vec<String> = result.runs.iter().rev().map(|run| run.name.clone()).collect();
    let mut plot = Plot::new(Axis::linear("ms"), Axis::names("", names));
    plot.size.1 = 90.0 + 26.0 * result.runs.len() as f64;
    for (name, colour) in STAGES {
        let medians = result.runs.iter().rev().map(|run| {
            let frames = run.frames.iter().filter(|it| by_network(it));
            median(&frames.filter_map(|it| stage(&it.stages, name)).collect::<Vec<f64>>())
        });
        let medians: Vec<f64> = medians.collect();
        let points = medians.iter().enumerate().map(|(row, &ms)| (ms, row as f64)).collect();
        plot.series.push(Series {
            titles: medians.iter().map(|ms| format!("{name} {ms:.2} ms")).collect(),
            ..Series::new(name, colour, Mark::Bar, points)
        });
    }
    plot
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_digits_by_threes() {
        let texts = ["", "f", "fo", "foo", "foob", "\u{ff}"].map(|text| base64(text.as_bytes()));
        assert_eq!(texts, ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "w78="]);
    }
}
