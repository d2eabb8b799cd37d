//! Results of scenarios as a page.

use std::collections::BTreeMap;
use std::fmt::Write;

use isthmus_head_client::Histogram;

use super::timeline::timeline;
use super::{Field, figure, page, table};
use crate::plot::{Axis, Colour, Mark, Plot, Series, escape};
use crate::results::{Comparison, Outcome, Summary};
use crate::scenario::Role;

/// Most controllers whose latencies and time lines are drawn.
const MOST_DRAWN: usize = 5;
/// Points of a distribution's curve.
const CURVE: f64 = 250.0;

/// The page for `all`, made by `command`.
pub fn comparisons(all: &[Comparison], command: &str) -> String {
    let mut body = String::from("<h1>Controllers on simulated links</h1>");
    for comparison in all {
        body += &section(comparison);
    }
    let _ = write!(body, "<p class=\"faint\">This page: <code>{}</code></p>", escape(command));
    let title = match all {
        [only] => format!("Isthmus: {}", only.scenario.name),
        _ => format!("Isthmus: {} scenarios", all.len()),
    };
    page(&title, &body)
}

fn section(comparison: &Comparison) -> String {
    let summaries = comparison.summaries();
    let drawn = drawn(&summaries);
    let deadline = comparison.scenario.deadline_us as f64 / 1e3;
    let mut html = format!("<h2>{}</h2>", escape(&comparison.scenario.description()));
    let seeds = summaries.iter().map(|summary| summary.seeds.len()).max().unwrap_or(0);
    let _ = write!(
        html,
        "<p class=\"faint\">{}: {} frames, {seeds} {}, deadline {deadline} ms</p><p>{}</p>",
        escape(&comparison.scenario.name),
        comparison.scenario.frames,
        if seeds == 1 { "seed" } else { "seeds" },
        escape(&finding(&summaries))
    );
    let (measure, meaning) = match is_graded(comparison) {
        true => ("quality", "mean quality of the answers, 0 for one that is late or missing,"),
        false => ("accuracy", "right and in time,"),
    };
    html += &ranking(&summaries, &drawn, measure);
    let _ = write!(
        html,
        "<p class=\"faint\"><b>On-time {measure}</b>: {meaning} over all frames, in \
         expectation, with a control variate for the pictures that came up; <b>observed</b>: counted. \
         <b>Missed</b>: of the frames sent, those whose network answer did not come in time, whatever the \
         exit said.</p>"
    );
    let caption = format!("What {measure} costs");
    html += &figure(&caption, &costs(&summaries, &drawn, measure).svg());
    html += &figure("From capture to output: fraction of answers within a time", &{
        distributions(&drawn, deadline).svg()
    });
    html += &figure(
        "How frames ended (% of all frames)",
        &endings(&summaries, |summary| {
            let result = &summary.run.as_ref()?.result;
            Some((result.reasons.clone(), result.frames))
        }),
    );
    let missed = summaries.iter().any(|it| it.run.as_ref().is_some_and(|p| p.result.missed > 0));
    if missed {
        html += &figure(
            "Misses by cause (% of frames sent)",
            &endings(&summaries, |summary| {
                let run = summary.run.as_ref()?;
                Some((run.misses.clone(), run.result.sent))
            }),
        );
    } else {
        html += "<p>No frame that was sent missed its deadline.</p>";
    }
    for summary in &drawn {
        if let Some((seed, run)) = comparison.first_run(&summary.line.controller) {
            html += &timeline(&summary.line.controller, seed, run, deadline);
        }
    }
    html + &provenance(comparison, &summaries)
}

/// Those that adapt, and the best that does not, the most accurate first.
fn drawn(summaries: &[Summary]) -> Vec<&Summary> {
    let is_fixed = |summary: &&&Summary| summary.line.role == Role::Fixed;
    let quality = |summary: &Summary| summary.line.expected_quality;
    let runs: Vec<&Summary> = summaries.iter().filter(|it| it.run.is_some()).collect();
    let best = runs.iter().filter(is_fixed).max_by(|a, b| quality(a).total_cmp(&quality(b)));
    let mut drawn: Vec<&Summary> = runs.iter().filter(|it| !is_fixed(it)).copied().collect();
    drawn.sort_by(|a, b| quality(b).total_cmp(&quality(a)));
    drawn.truncate(MOST_DRAWN - 1);
    drawn.extend(best);
    drawn
}

/// The oracle's expected quality, if it was computed.
fn oracle(summaries: &[Summary]) -> Option<f64> {
    let oracle = summaries.iter().find(|it| it.line.role == Role::Oracle);
    oracle.map(|it| it.line.expected_quality)
}

fn finding(summaries: &[Summary]) -> String {
    let percent = |fraction: f64| format!("{:.1}%", 100.0 * fraction);
    let mut text = String::new();
    let oracle = oracle(summaries).filter(|oracle| *oracle > 0.0);
    for summary in drawn(summaries) {
        let line = &summary.line;
        let _ = write!(text, "{} is right and in time for {}", line.controller, {
            percent(line.expected_quality)
        });
        if let Some(oracle) = oracle {
            let _ = write!(text, ", {} of the oracle’s", percent(line.expected_quality / oracle));
        }
        let _ = write!(text, ", at {:.0} bytes a frame. ", line.bytes);
    }
    text
}

/// Whether answers are more or less good, as boxes and maps are, and not right or wrong.
fn is_graded(comparison: &Comparison) -> bool {
    let runs = comparison.cells().filter_map(|cell| match &cell.outcome {
        Outcome::Run(run) => Some(run),
        Outcome::Plan(_) => None,
    });
    let mut qualities = runs.flat_map(|run| &run.timeline.quality);
    qualities.any(|quality| quality.fract() != 0.0)
}

fn ranking(summaries: &[Summary], drawn: &[&Summary], measure: &str) -> String {
    let most = |of: fn(&Summary) -> f64| summaries.iter().map(of).fold(f64::MIN_POSITIVE, f64::max);
    let (bytes, switches) = (most(|it| it.line.bytes), most(|it| it.line.switches));
    let oracle = oracle(summaries).filter(|oracle| *oracle > 0.0);
    let mut ranked: Vec<&Summary> = summaries.iter().collect();
    ranked.sort_by(|a, b| b.line.expected_quality.total_cmp(&a.line.expected_quality));
    let ms = |ms: Option<f64>| ms.map_or_else(|| "–".into(), |ms| format!("{ms:.0}"));
    let rows = ranked.iter().map(|summary| {
        let line = &summary.line;
        let run = summary.run.is_some();
        let percent = |fraction: f64, digits: usize| format!("{:.digits$}", 100.0 * fraction);
        let of_oracle = oracle.map(|oracle| percent(line.expected_quality / oracle, 1));
        let leads = drawn.iter().any(|it| it.line.controller == line.controller);
        let fields = vec![
            Field::Text(line.controller.clone()),
            Field::Bar(percent(line.expected_quality, 2), line.expected_quality),
            Field::Text(of_oracle.unwrap_or_else(|| "–".into())),
            Field::Text(percent(line.on_time_quality, 2)),
            match run {
                true => Field::Bar(percent(line.miss_rate, 2), line.miss_rate),
                false => Field::Text("–".into()),
            },
            Field::Bar(percent(line.sent, 1), line.sent),
            Field::Bar(format!("{:.0}", line.bytes), line.bytes / bytes),
            match run {
                true => Field::Bar(format!("{:.1}", line.switches), line.switches / switches),
                false => Field::Text("–".into()),
            },
            Field::Text(ms(line.p50_ms)),
            Field::Text(ms(line.p95_ms)),
        ];
        (leads, fields)
    });
    let on_time = format!("on-time {measure} %");
    let head = [
        "controller",
        &on_time,
        "of the oracle’s %",
        "observed %",
        "missed %",
        "sent %",
        "bytes a frame",
        "switches per 100 sent",
        "p50 ms",
        "p95 ms",
    ];
    table(&head, &rows.collect::<Vec<_>>())
}

fn costs(summaries: &[Summary], drawn: &[&Summary], measure: &str) -> Plot {
    let mut plot = Plot::new(
        Axis::linear("bytes a frame, over all frames").covering(&[0.0]),
        Axis::linear(&format!("on-time {measure} (%)")),
    );
    plot.size.1 = 300.0;
    let point = |summary: &Summary| (summary.line.bytes, 100.0 * summary.line.expected_quality);
    let title = |summary: &Summary| {
        let (bytes, quality) = point(summary);
        format!("{}: {quality:.2}%, {bytes:.0} B a frame", summary.line.controller)
    };
    let others: Vec<&Summary> =
        summaries.iter().filter(|it| it.run.is_some() && it.line.role == Role::Fixed).collect();
    plot.series.push(Series {
        titles: others.iter().map(|it| title(it)).collect(),
        ..Series::new(
            "fixed",
            Colour::GREY,
            Mark::Ring,
            others.iter().map(|it| point(it)).collect(),
        )
    });
    for (at, summary) in drawn.iter().enumerate() {
        let series = Series::new(&summary.line.controller, Colour::nth(at), Mark::Dot, {
            vec![point(summary)]
        });
        plot.series.push(Series { titles: vec![title(summary)], ..series });
    }
    if let Some(oracle) = oracle(summaries) {
        plot.rules.push((100.0 * oracle, "oracle".into()));
    }
    plot
}

fn distributions(drawn: &[&Summary], deadline: f64) -> Plot {
    let mut plot = Plot::new(
        Axis::linear("ms from capture to output").covering(&[0.0, deadline]),
        Axis::linear("% of answers").covering(&[0.0, 100.0]),
    );
    plot.size.1 = 300.0;
    plot.uprights.push((deadline, "deadline".into()));
    for (at, summary) in drawn.iter().enumerate() {
        let Some(run) = &summary.run else { continue };
        let points = distribution(&run.result.latency);
        plot.series.push(Series::new(
            &summary.line.controller,
            Colour::nth(at),
            Mark::Step,
            points,
        ));
    }
    plot
}

/// Milliseconds, and the percentage of values that are at most as large.
fn distribution(histogram: &Histogram) -> Vec<(f64, f64)> {
    let all = histogram.count().max(1) as f64;
    let (mut points, mut seen, mut last) = (Vec::new(), 0, -1.0);
    for (micros, count) in histogram.buckets() {
        if points.is_empty() {
            points.push((micros as f64 / 1e3, 0.0));
        }
        seen += count;
        let fraction = seen as f64 / all;
        if (fraction - last) * CURVE >= 1.0 || seen == histogram.count() {
            points.push((micros as f64 / 1e3, 100.0 * fraction));
            last = fraction;
        }
    }
    points
}

/// Bars of how many frames had which end, most frequent ends first.
fn endings(
    summaries: &[Summary],
    of: impl Fn(&Summary) -> Option<(BTreeMap<String, u64>, u64)>,
) -> String {
    let mut ranked: Vec<&Summary> = summaries.iter().collect();
    ranked.sort_by(|a, b| b.line.expected_quality.total_cmp(&a.line.expected_quality));
    let rows: Vec<_> =
        ranked.into_iter().filter_map(|it| Some((&it.line.controller, of(it)?))).collect();
    let mut totals: BTreeMap<&str, u64> = BTreeMap::new();
    for (_, (ends, _)) in &rows {
        ends.iter().for_each(|(end, count)| *totals.entry(end).or_default() += count);
    }
    let mut names: Vec<&str> = totals.keys().copied().collect();
    names.sort_by_key(|name| std::cmp::Reverse(totals[name]));
    // The first one is at the top.
    let row = |at: usize| (rows.len() - 1 - at) as f64;
    let labels = rows.iter().rev().map(|(name, _)| (*name).clone()).collect();
    let mut plot = Plot::new(Axis::linear("%"), Axis::names("", labels));
    plot.size.1 = 80.0 + 22.0 * rows.len() as f64 + 18.0 * (names.len() / 6) as f64;
    for (at, name) in names.iter().enumerate() {
        let mut series = Series::new(name, Colour::nth(at), Mark::Bar, Vec::new());
        for (number, (controller, (ends, all))) in rows.iter().enumerate() {
            let Some(count) = ends.get(*name) else { continue };
            let percent = 100.0 * *count as f64 / (*all).max(1) as f64;
            series.points.push((percent, row(number)));
            series.titles.push(format!("{controller}: {name}, {count} frames, {percent:.2}%"));
        }
        plot.series.push(series);
    }
    plot.svg()
}

fn provenance(comparison: &Comparison, summaries: &[Summary]) -> String {
    let mut seeds: Vec<u64> = summaries.iter().flat_map(|it| it.seeds.clone()).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let list = |items: &[String]| {
        items
            .iter()
            .map(|item| format!("<code>{}</code>", escape(item)))
            .collect::<Vec<_>>()
            .join("<br>")
    };
    let seeds: Vec<String> = seeds.iter().map(u64::to_string).collect();
    format!(
        "<h3>How these results were made</h3><p>{}</p><p>Seeds {}; commit {}.</p>\
         <details><summary>The scenario’s file</summary><pre>{}</pre></details>",
        list(&comparison.commands),
        seeds.join(", "),
        list(&comparison.commits),
        escape(comparison.scenario.text.trim())
    )
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::scenario::tests::{SMALL, folder};
    use crate::sweep::{Selection, Subject};

    #[test]
    fn a_page_can_be_read_on_its_own() {
        let folder = folder();
        let file = folder.path().join("small.toml");
        let text = SMALL.replace("description = 'x'", "description = 'a <b> of \"x\"'");
        std::fs::write(&file, text).expect("written");
        let subject = Subject::read(&file, &Selection::default(), "simulator run it".into());
        let results = subject.expect("valid").run(|_| {}).expect("runs");
        let (all, _) = Comparison::gather(vec![(PathBuf::new(), results)]);
        let page = comparisons(&all, "simulator report it");
        for part in [
            "a &lt;b&gt; of &quot;x&quot;",
            "mpc over time (seed 1)",
            "How frames ended",
            "of the oracle’s",
            "<code>simulator run it</code>",
            "Seeds 1, 2; commit <code>",
            "<code>simulator report it</code>",
            "controllers",
        ] {
            assert!(page.contains(part), "{part}");
        }
        let from_outside = ["<script", "<link", "src=", "url(", "@import", "href="];
        assert!(from_outside.iter().all(|part| !page.contains(part)));
        assert!(!page.contains("NaN") && !page.contains("inf\""));
        assert_eq!(page.matches("<svg").count(), page.matches("</svg>").count());
    }

    #[test]
    fn a_distribution_rises_to_all_of_the_values() {
        let mut latency = Histogram::default();
        (1..=2_000u64).for_each(|ms| latency.record(ms * 1_000));
        let points = distribution(&latency);
        assert!(points.len() <= CURVE as usize + 3, "{}", points.len());
        assert!(points.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 <= pair[1].1));
        assert_eq!(points.last().map(|point| point.1), Some(100.0));
        let half = points.iter().find(|point| point.1 >= 50.0).expect("a half");
        assert!((half.0 - 1_000.0).abs() < 15.0, "{half:?}");
    }
}
