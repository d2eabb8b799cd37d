//! Results as tables, for a spreadsheet or a data frame.

use std::fmt::{Display, Write};
use std::fs;
use std::path::Path;

use super::{Cell, Comparison, Outcome, Played, ResultsError};
use crate::scenario::Line;

const RUNS: &str = "scenario,controller,seed,frames,on_time_accuracy,expected_accuracy,miss_rate,\
                    sent,bytes,switches,p50_ms,p95_ms\n";
const ENDS: &str = "scenario,controller,seed,of,cause,frames\n";
const TIMELINES: &str = "scenario,controller,seed,camera,frame,captured_ms,ended_ms,capacity_kbits,\
                         estimate_kbits,round_trip_ms,backlog_bytes,point,bytes,reason,arm,right,\
                         missed\n";

/// Writes `runs.csv` (a line for each controller and seed), `ends.csv` (how frames ended, and which
/// missed) and `timelines.csv` into `folder`, which is made if it is not there.
pub fn write(comparisons: &[Comparison], folder: &Path) -> Result<(), ResultsError> {
    let (mut runs, mut ends, mut timelines) =
        (RUNS.to_owned(), ENDS.to_owned(), TIMELINES.to_owned());
    for comparison in comparisons {
        for cell in comparison.cells() {
            let Cell { controller, seed, .. } = cell;
            let key = [quoted(&comparison.scenario.name), quoted(controller), seed.to_string()];
            let key = key.join(",");
            run(&mut runs, &key, &comparison.line(cell));
            if let Outcome::Run(played) = &cell.outcome {
                let causes = played.result.reasons.iter().map(|end| ("all", end));
                for (of, (cause, frames)) in
                    causes.chain(played.misses.iter().map(|end| ("missed", end)))
                {
                    line(&mut ends, format_args!("{key},{of},{},{frames}", quoted(cause)));
                }
                timeline(&mut timelines, &key, played);
            }
        }
    }
    let failed = |file: &Path| {
        let file = file.to_owned();
        move |cause| ResultsError::Io { file, cause }
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    for (name, text) in [("runs.csv", runs), ("ends.csv", ends), ("timelines.csv", timelines)] {
        let file = folder.join(name);
        fs::write(&file, text).map_err(failed(&file))?;
    }
    Ok(())
}

fn run(text: &mut String, key: &str, of: &Line) {
    let Line { frames, on_time_accuracy, expected_accuracy, miss_rate, sent, .. } = of;
    let Line { bytes, switches, p50_ms, p95_ms, .. } = of;
    line(
        text,
        format_args!(
            "{key},{frames},{on_time_accuracy},{expected_accuracy},{miss_rate},{sent},{bytes},\
             {switches},{},{}",
            or_empty(*p50_ms),
            or_empty(*p95_ms)
        ),
    );
}

fn timeline(text: &mut String, key: &str, played: &Played) {
    let of = &played.timeline;
    for row in 0..of.len() {
        let arm = of.arm[row].map_or("", |arm| arm.name());
        let point = of.point[row].map_or("", |point| &of.points[point]);
        line(
            text,
            format_args!(
                "{key},{},{},{},{},{},{},{},{},{},{},{},{arm},{},{}",
                of.camera[row],
                of.frame[row],
                of.captured_ms[row],
                of.ended_ms[row],
                of.capacity_kbits[row],
                or_empty(of.estimate_kbits[row]),
                or_empty(of.round_trip_ms[row]),
                of.backlog_bytes[row],
                quoted(point),
                of.bytes[row],
                quoted(&of.reasons[of.reason[row]]),
                of.right[row],
                of.missed[row]
            ),
        );
    }
}

fn line(text: &mut String, line: impl Display) {
    // Writing to a string cannot fail.
    let _ = writeln!(text, "{line}");
}

fn or_empty(value: Option<f64>) -> String {
    value.map_or_else(String::new, |value| value.to_string())
}

/// As RFC 4180 has it.
fn quoted(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) {
        format!("\"{}\"", text.replace('"', "\"\""))
    } else {
        text.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::scenario::tests::{SMALL, folder};
    use crate::sweep::{Selection, Subject};

    #[test]
    fn every_line_has_its_columns() {
        let folder = folder();
        let file = folder.path().join("small.toml");
        fs::write(&file, SMALL).expect("written");
        let subject = Subject::read(&file, &Selection::default(), "it".into()).expect("valid");
        let results = subject.run(|_| {}).expect("runs");
        let (all, _) = Comparison::gather(vec![(PathBuf::new(), results)]);
        let tables = folder.path().join("tables");
        write(&all, &tables).expect("written");
        // Three controllers and the oracle with two seeds; 400 frames in each run.
        for (name, lines) in [("runs.csv", 1 + 8), ("timelines.csv", 1 + 6 * 400)] {
            let text = fs::read_to_string(tables.join(name)).expect("written");
            let columns = text.lines().next().expect("a head").split(',').count();
            assert!(text.lines().all(|line| line.split(',').count() == columns), "{name}");
            assert_eq!(text.lines().count(), lines, "{name}");
        }
        let ends = fs::read_to_string(tables.join("ends.csv")).expect("written");
        let frames = |controller: &str| -> u64 {
            let lines = ends.lines().filter(|line| line.contains(&format!("{controller},1,all,")));
            lines
                .map(|line| line.rsplit(',').next().expect("a cell").parse::<u64>().expect("n"))
                .sum()
        };
        assert_eq!(frames("mpc"), 400);
        assert_eq!(quoted("a \"b\", c"), "\"a \"\"b\"\", c\"");
    }
}
