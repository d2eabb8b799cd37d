//! Results as tables, for a spreadsheet or a data frame.

use std::fs;
use std::path::Path;

use super::{Cell, Comparison, Outcome, ResultsError, SimulatedRun, Timeline};
use crate::csv_table::CsvTable;
use crate::scenario::COLUMNS;

/// What every row begins with.
const KEY: [&str; 3] = ["scenario", "controller", "seed"];
const ENDS: [&str; 3] = ["of", "cause", "frames"];
const TIMELINES: [&str; 14] = [
    "camera",
    "frame",
    "captured_ms",
    "ended_ms",
    "capacity_kbits",
    "estimate_kbits",
    "round_trip_ms",
    "backlog_bytes",
    "point",
    "bytes",
    "reason",
    "arm",
    "quality",
    "missed",
];

/// Writes `runs.csv` (a line for each controller and seed), `ends.csv` (how frames ended, and which
/// missed) and `timelines.csv` into `folder`, which is made if it is not there.
pub fn write(comparisons: &[Comparison], folder: &Path) -> Result<(), ResultsError> {
    let mut runs = CsvTable::new(&[&KEY[..], &COLUMNS].concat());
    let mut ends = CsvTable::new(&[&KEY[..], &ENDS].concat());
    let mut timelines = CsvTable::new(&[&KEY[..], &TIMELINES].concat());
    for comparison in comparisons {
        for cell in comparison.cells() {
            let Cell { controller, seed, .. } = cell;
            let key = [comparison.scenario.name.clone(), controller.clone(), seed.to_string()];
            runs.row(key.iter().cloned().chain(comparison.line(cell).fields()));
            if let Outcome::Run(run) = &cell.outcome {
                write_ends(&mut ends, &key, run);
                for row in 0..run.timeline.len() {
                    timelines.row(key.iter().cloned().chain(frame(&run.timeline, row)));
                }
            }
        }
    }
    let failed = |file: &Path| {
        let file = file.to_owned();
        move |cause| ResultsError::Io { file, cause }
    };
    fs::create_dir_all(folder).map_err(failed(folder))?;
    for (name, table) in [("runs.csv", runs), ("ends.csv", ends), ("timelines.csv", timelines)] {
        let file = folder.join(name);
        fs::write(&file, table.into_text()).map_err(failed(&file))?;
    }
    Ok(())
}

fn write_ends(ends: &mut CsvTable, key: &[String; KEY.len()], run: &SimulatedRun) {
    for (of, causes) in [("all", &run.result.reasons), ("missed", &run.misses)] {
        for (cause, frames) in causes {
            let fields = [of.to_owned(), cause.clone(), frames.to_string()];
            ends.row(key.iter().cloned().chain(fields));
        }
    }
}

/// A frame's fields by [`TIMELINES`].
fn frame(of: &Timeline, row: usize) -> [String; TIMELINES.len()] {
    let or_empty = |value: Option<f64>| value.map_or_else(String::new, |value| value.to_string());
    [
        of.camera[row].to_string(),
        of.frame[row].to_string(),
        of.captured_ms[row].to_string(),
        of.ended_ms[row].to_string(),
        of.capacity_kbits[row].to_string(),
        or_empty(of.estimate_kbits[row]),
        or_empty(of.round_trip_ms[row]),
        of.backlog_bytes[row].to_string(),
        of.point[row].map_or_else(String::new, |point| of.points[point].clone()),
        of.bytes[row].to_string(),
        of.reasons[of.reason[row]].clone(),
        of.arm[row].map_or_else(String::new, |arm| arm.name().to_owned()),
        of.quality[row].to_string(),
        of.missed[row].to_string(),
    ]
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
    }
}
