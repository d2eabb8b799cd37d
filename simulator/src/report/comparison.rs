//! Results of scenarios as a page.

use std::collections::BTreeMap;
use std::fmt::Write;

use isthmus_head_client::Histogram;

use super::{Field, figure, page, table};
use crate::plot::{Axis, Colour, Mark, Plot, Series, escape};
use crate::results::{AnswerArm, Comparison, Played, Standing, Timeline};
use crate::scenario::ORACLE;

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
    let standings = comparison.standings();
    let drawn = drawn(&standings);
    let deadline = comparison.scenario.deadline_us as f64 / 1e3;
    let mut html = format!("<h2>{}</h2>", escape(&comparison.scenario.description()));
    let seeds = standings.iter().map(|standing| standing.seeds.len()).max().unwrap_or(0);
    let _ = write!(
        html,
        "<p class=\"faint\">{}: {} frames, {seeds} {}, deadline {deadline} ms</p><p>{}</p>",
        escape(&comparison.scenario.name),
        comparison.scenario.frames,
        if seeds == 1 { "seed" } else { "seeds" },
        escape(&finding(&standings))
    );
    html += &ranking(&standings, &drawn);
    html += "<p class=\"faint\"><b>On-time accuracy</b>: right and in time, over all frames, as it \
             could be expected of the answers given, without luck with pictures; <b>as it came</b> \
             with it. <b>Missed</b>: of the frames sent, those whose network answer did not come in \
             time, whatever the exit said.</p>";
    html += &figure("What accuracy costs", &costs(&standings, &drawn).svg());
    html += &figure("From capture to output: share of answers within a time", &{
        distributions(&drawn, deadline).svg()
    });
    html += &figure(
        "How frames ended (% of all frames)",
        &endings(&standings, |standing| {
            let result = &standing.played.as_ref()?.result;
            Some((result.reasons.clone(), result.frames))
        }),
    );
    let missed = standings.iter().any(|it| it.played.as_ref().is_some_and(|p| p.result.missed > 0));
    if missed {
        html += &figure(
            "Misses by cause (% of frames sent)",
            &endings(&standings, |standing| {
                let played = standing.played.as_ref()?;
                Some((played.misses.clone(), played.result.sent))
            }),
        );
    } else {
        html += "<p>No frame that was sent missed its deadline.</p>";
    }
    for standing in &drawn {
        if let Some((seed, played)) = comparison.first_run(&standing.line.controller) {
            html += &course(&standing.line.controller, seed, played, deadline);
        }
    }
    html + &provenance(comparison, &standings)
}

/// Those that adapt, and the best that does not, the most accurate first.
fn drawn(standings: &[Standing]) -> Vec<&Standing> {
    let is_fixed = |standing: &&&Standing| standing.line.controller.starts_with("fixed ");
    let accuracy = |standing: &Standing| standing.line.expected_accuracy;
    let runs: Vec<&Standing> = standings.iter().filter(|it| it.played.is_some()).collect();
    let best = runs.iter().filter(is_fixed).max_by(|a, b| accuracy(a).total_cmp(&accuracy(b)));
    let mut drawn: Vec<&Standing> = runs.iter().filter(|it| !is_fixed(it)).copied().collect();
    drawn.sort_by(|a, b| accuracy(b).total_cmp(&accuracy(a)));
    drawn.truncate(MOST_DRAWN - 1);
    drawn.extend(best);
    drawn
}

fn finding(standings: &[Standing]) -> String {
    let accuracy = |name: &str| {
        let found = standings.iter().find(|it| it.line.controller == name);
        found.map(|it| it.line.expected_accuracy)
    };
    let percent = |share: f64| format!("{:.1}%", 100.0 * share);
    let mut text = String::new();
    let oracle = accuracy(ORACLE).filter(|oracle| *oracle > 0.0);
    for standing in drawn(standings) {
        let line = &standing.line;
        let _ = write!(text, "{} is right and in time for {}", line.controller, {
            percent(line.expected_accuracy)
        });
        if let Some(oracle) = oracle {
            let _ = write!(text, ", {} of the oracle’s", percent(line.expected_accuracy / oracle));
        }
        let _ = write!(text, ", at {:.0} bytes a frame. ", line.bytes);
    }
    text
}

fn ranking(standings: &[Standing], drawn: &[&Standing]) -> String {
    let most =
        |of: fn(&Standing) -> f64| standings.iter().map(of).fold(f64::MIN_POSITIVE, f64::max);
    let (bytes, switches) = (most(|it| it.line.bytes), most(|it| it.line.switches));
    let oracle = standings.iter().find(|it| it.line.controller == ORACLE);
    let oracle = oracle.map(|it| it.line.expected_accuracy).filter(|oracle| *oracle > 0.0);
    let mut ranked: Vec<&Standing> = standings.iter().collect();
    ranked.sort_by(|a, b| b.line.expected_accuracy.total_cmp(&a.line.expected_accuracy));
    let ms = |ms: Option<f64>| ms.map_or_else(|| "–".into(), |ms| format!("{ms:.0}"));
    let rows = ranked.iter().map(|standing| {
        let line = &standing.line;
        let run = standing.played.is_some();
        let percent = |share: f64, digits: usize| format!("{:.digits$}", 100.0 * share);
        let of_oracle = oracle.map(|oracle| percent(line.expected_accuracy / oracle, 1));
        let leads = drawn.iter().any(|it| it.line.controller == line.controller);
        let fields = vec![
            Field::Text(line.controller.clone()),
            Field::Bar(percent(line.expected_accuracy, 2), line.expected_accuracy),
            Field::Text(of_oracle.unwrap_or_else(|| "–".into())),
            Field::Text(percent(line.on_time_accuracy, 2)),
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
    let head = [
        "controller",
        "on-time accuracy %",
        "of the oracle’s %",
        "as it came %",
        "missed %",
        "sent %",
        "bytes a frame",
        "switches per 100 sent",
        "p50 ms",
        "p95 ms",
    ];
    table(&head, &rows.collect::<Vec<_>>())
}

fn costs(standings: &[Standing], drawn: &[&Standing]) -> Plot {
    let mut plot = Plot::new(
        Axis::linear("bytes a frame, over all frames").covering(&[0.0]),
        Axis::linear("on-time accuracy (%)"),
    );
    plot.size.1 = 300.0;
    let point =
        |standing: &Standing| (standing.line.bytes, 100.0 * standing.line.expected_accuracy);
    let title = |standing: &Standing| {
        let (bytes, accuracy) = point(standing);
        format!("{}: {accuracy:.2}%, {bytes:.0} B a frame", standing.line.controller)
    };
    let others: Vec<&Standing> = standings
        .iter()
        .filter(|it| it.played.is_some() && it.line.controller.starts_with("fixed "))
        .collect();
    plot.series.push(Series {
        titles: others.iter().map(|it| title(it)).collect(),
        ..Series::new(
            "fixed",
            Colour::GREY,
            Mark::Ring,
            others.iter().map(|it| point(it)).collect(),
        )
    });
    for (at, standing) in drawn.iter().enumerate() {
        let series = Series::new(&standing.line.controller, Colour::nth(at), Mark::Dot, {
            vec![point(standing)]
        });
        plot.series.push(Series { titles: vec![title(standing)], ..series });
    }
    if let Some(oracle) = standings.iter().find(|it| it.line.controller == ORACLE) {
        plot.rules.push((100.0 * oracle.line.expected_accuracy, "oracle".into()));
    }
    plot
}

fn distributions(drawn: &[&Standing], deadline: f64) -> Plot {
    let mut plot = Plot::new(
        Axis::linear("ms from capture to output").covering(&[0.0, deadline]),
        Axis::linear("% of answers").covering(&[0.0, 100.0]),
    );
    plot.size.1 = 300.0;
    plot.uprights.push((deadline, "deadline".into()));
    for (at, standing) in drawn.iter().enumerate() {
        let Some(played) = &standing.played else { continue };
        let points = distribution(&played.result.latency);
        plot.series.push(Series::new(
            &standing.line.controller,
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
    let (mut points, mut seen, mut told) = (Vec::new(), 0, -1.0);
    for (micros, count) in histogram.buckets() {
        if points.is_empty() {
            points.push((micros as f64 / 1e3, 0.0));
        }
        seen += count;
        let share = seen as f64 / all;
        if (share - told) * CURVE >= 1.0 || seen == histogram.count() {
            points.push((micros as f64 / 1e3, 100.0 * share));
            told = share;
        }
    }
    points
}

/// Bars of how many frames had which end, most frequent ends first.
fn endings(
    standings: &[Standing],
    of: impl Fn(&Standing) -> Option<(BTreeMap<String, u64>, u64)>,
) -> String {
    let mut ranked: Vec<&Standing> = standings.iter().collect();
    ranked.sort_by(|a, b| b.line.expected_accuracy.total_cmp(&a.line.expected_accuracy));
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
            let share = 100.0 * *count as f64 / (*all).max(1) as f64;
            series.points.push((share, row(number)));
            series.titles.push(format!("{controller}: {name}, {count} frames, {share:.2}%"));
        }
        plot.series.push(series);
    }
    plot.svg()
}

/// Link, choices and latencies of one run over time.
fn course(controller: &str, seed: u64, played: &Played, deadline: f64) -> String {
    let line = &played.timeline;
    if line.is_empty() {
        return String::new();
    }
    let rows = || 0..line.len();
    let mut of: Vec<f64> = rows().map(|row| line.captured_ms[row] / 1e3).collect();
    of.sort_by(f64::total_cmp);
    let ends = [0.0, of.last().copied().unwrap_or(1.0).ceil()];
    let over_time = || Axis::linear("s").covering(&ends);
    let seconds = |row: usize| (line.ended_ms[row] / 1e3).min(ends[1]);

    let mut rates = Plot::new(over_time(), Axis::linear("kbit/s").covering(&[0.0]));
    let capacity = rows().map(|row| (seconds(row), line.capacity_kbits[row])).collect();
    rates.series.push(Series::new("the link can carry", Colour::SKY, Mark::Area, capacity));
    // An estimate may be far off; the link itself has to be seen.
    let most = 1.5 * line.capacity_kbits.iter().copied().fold(0.0, f64::max);
    let estimates = || line.estimate_kbits.iter().flatten();
    if estimates().next().is_some() {
        let name = match estimates().any(|kbits| *kbits > most) {
            true => format!("the controller’s estimate, up to {most:.0}"),
            false => "the controller’s estimate".to_owned(),
        };
        let points = rows().map(|row| {
            (seconds(row), line.estimate_kbits[row].map_or(f64::NAN, |kbits| kbits.min(most)))
        });
        rates.series.push(Series::new(&name, Colour::ORANGE, Mark::Step, points.collect()));
    }

    let names = by_size(line);
    let mut points = Plot::new(over_time(), Axis::names("sent, or run", names.clone()));
    points.size.1 = 96.0 + 17.0 * names.len() as f64;
    let latest = Axis::linear("ms from capture to output").covering(&[0.0, deadline]);
    let mut latencies = Plot::new(over_time(), latest);
    latencies.rules.push((deadline, "deadline".into()));
    for (name, colour, is) in ENDS {
        let rows: Vec<usize> = rows().filter(|&row| is(line, row)).collect();
        let at = |row: usize| line.captured_ms[row] / 1e3;
        let title = |&row: &usize| title(line, row);
        let of_points: Vec<usize> =
            rows.iter().copied().filter(|&row| line.point[row].is_some()).collect();
        let place = |row: usize| {
            let name = line.point[row].map(|point| &line.points[point]);
            let place = names.iter().position(|known| Some(known) == name);
            (at(row), place.map_or(f64::NAN, |place| place as f64))
        };
        points.series.push(Series {
            titles: of_points.iter().map(title).collect(),
            ..Series::new(
                name,
                colour,
                Mark::Dot,
                of_points.iter().map(|&row| place(row)).collect(),
            )
        });
        let answered: Vec<usize> =
            rows.into_iter().filter(|&row| line.arm[row].is_some()).collect();
        let latency = |&row: &usize| (at(row), line.latency_ms(row).unwrap_or(f64::NAN));
        latencies.series.push(Series {
            titles: answered.iter().map(title).collect(),
            ..Series::new(name, colour, Mark::Dot, answered.iter().map(latency).collect())
        });
    }
    latencies.series.retain(|series| !series.points.is_empty());
    points.series.retain(|series| !series.points.is_empty());
    let thinned = match line.every {
        1 => String::new(),
        every => format!(", one frame of {every}"),
    };
    let waits = rows().any(|row| line.backlog_bytes[row] > 0);
    let mut html = format!("<h3>{} over time (seed {seed}{thinned})</h3>", escape(controller));
    let mut plots = vec![rates, points, latencies];
    if waits {
        let mut backlog =
            Plot::new(over_time(), Axis::linear("bytes waiting before the link").covering(&[0.0]));
        backlog.size.1 = 150.0;
        let waiting = rows().map(|row| (seconds(row), line.backlog_bytes[row] as f64)).collect();
        backlog.series.push(Series::new("", Colour::VIOLET, Mark::Area, waiting));
        plots.push(backlog);
    }
    let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    for mut plot in plots {
        plot.margin = 14.0 + 6.6 * longest as f64;
        let _ = write!(html, "<figure>{}</figure>", plot.svg());
    }
    html
}

/// Ends of frames that are told apart, each with its colour.
type End = (&'static str, Colour, fn(&Timeline, usize) -> bool);
const ENDS: [End; 4] = [
    ("network in time", Colour::BLUE, |line, row| {
        line.arm[row].is_some_and(AnswerArm::is_remote) && !line.missed[row]
    }),
    ("on the device", Colour::GREY, |line, row| {
        line.arm[row].is_some_and(|arm| !arm.is_remote()) && !line.missed[row]
    }),
    ("missed", Colour::RED, |line, row| line.missed[row]),
    ("no answer", Colour::INK, |line, row| line.arm[row].is_none() && !line.missed[row]),
];

/// Names of the points, the one whose frames are smallest first.
fn by_size(line: &Timeline) -> Vec<String> {
    let mut sizes = vec![(0u64, 0u64); line.points.len()];
    for (point, &bytes) in line.point.iter().zip(&line.bytes) {
        if let Some(point) = *point {
            sizes[point].0 += u64::from(bytes);
            sizes[point].1 += 1;
        }
    }
    let mean = |at: &usize| sizes[*at].0 as f64 / sizes[*at].1.max(1) as f64;
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    order.sort_by(|a, b| mean(a).total_cmp(&mean(b)));
    order.into_iter().map(|at| line.points[at].clone()).collect()
}

fn title(line: &Timeline, row: usize) -> String {
    let point = line.point[row].map_or("nothing", |point| &line.points[point]);
    let mut text = format!("frame {}", line.frame[row]);
    if line.camera.iter().any(|&camera| camera > 0) {
        let _ = write!(text, " of camera {}", line.camera[row]);
    }
    let _ = write!(text, ": {point}, {} B, {}", line.bytes[row], line.reasons[line.reason[row]]);
    if let Some(ms) = line.latency_ms(row) {
        let _ = write!(text, ", {ms:.1} ms");
    }
    text
}

fn provenance(comparison: &Comparison, standings: &[Standing]) -> String {
    let mut seeds: Vec<u64> = standings.iter().flat_map(|it| it.seeds.clone()).collect();
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
