use std::fs;
use std::path::{Path, PathBuf};

use super::file::{END, MIDDLE, START};
use super::*;
use crate::digest::digest;
use crate::scenario::tests::{SMALL, folder, prepare};
use crate::scenario::{Line, Prepared};
use crate::world::RunResult;

/// The results of `text`, a cell for each controller and seed.
fn results(folder: &Path, text: &str) -> (Prepared, Results) {
    let prepared = prepare(folder, text).expect("valid");
    let controllers = [None].into_iter().chain(prepared.controllers().iter().map(Some));
    let cells = controllers.flat_map(|controller| {
        [1, 2].map(|seed| Cell::compute(&prepared, controller, seed).expect("runs"))
    });
    let cells = cells.collect();
    let origin = Origin::new(Path::new("small.toml"), text, &prepared);
    let results = Results::new(origin, "it".into(), cells);
    (prepared, results)
}

#[test]
fn what_is_read_is_what_was_written_and_says_what_the_run_said() {
    let folder = folder();
    let (prepared, results) = results(folder.path(), SMALL);
    let file = folder.path().join("results.json");
    results.write(&file).expect("written");
    let read = Results::read(&file).expect("whole");
    assert_eq!(read.scenario, results.scenario);
    let json: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(&file).expect("read")).expect("JSON");
    assert_eq!(json["isthmus_results"], 1);

    let (comparisons, conflicts) = Comparison::gather(vec![(file, read)]);
    assert!(conflicts.is_empty());
    let summaries = comparisons[0].summaries();
    let lines = prepared.run(|_| {}).expect("runs");
    assert_eq!(summaries.len(), lines.len());
    for (summary, line) in summaries.iter().zip(&lines) {
        let Summary { line: ours, seeds, run } = summary;
        assert_eq!((&ours.controller, ours.frames), (&line.controller, line.frames));
        assert_eq!((ours.bytes, ours.p95_ms), (line.bytes, line.p95_ms));
        assert!((ours.expected_quality - line.expected_quality).abs() < 1e-9);
        assert_eq!(seeds, &[1, 2]);
        if let Some(run) = run {
            assert_eq!(run.misses.values().sum::<u64>(), run.result.missed);
        }
    }
}

#[test]
fn a_time_line_has_every_frame_or_an_equal_part_of_each_camera() {
    let folder = folder();
    for (seconds, every) in [(20, 1), (200, 5)] {
        let text = SMALL.replace("seconds = 20", &format!("seconds = {seconds}"));
        let prepared = prepare(folder.path(), &text).expect("valid");
        let controller = &prepared.controllers()[1];
        let cell = Cell::compute(&prepared, Some(controller), 1).expect("runs");
        let Outcome::Run(run) = cell.outcome else { panic!("a run") };
        let line = &run.timeline;
        line.check().expect("columns of a length");
        assert_eq!(line.every, every);
        assert_eq!(line.len() as u64, (20u64 * seconds).div_ceil(every));
        let of = |camera| line.camera.iter().filter(|&&it| it == camera).count();
        assert!(of(0).abs_diff(of(1)) <= 1, "{} and {}", of(0), of(1));
        if every == 1 {
            let quality = line.quality.iter().copied().map(f64::from).sum::<f64>();
            let missed = line.missed.iter().filter(|&&missed| missed).count() as u64;
            let RunResult { quality_in_time, missed: of, bytes, .. } = run.result;
            assert_eq!((quality, missed), (quality_in_time, of));
            assert_eq!(line.bytes.iter().map(|&it| u64::from(it)).sum::<u64>(), bytes);
        }
    }
}

#[test]
fn a_cell_counts_once_and_one_that_differs_is_a_conflict() {
    let folder = folder();
    let (_, first) = results(folder.path(), SMALL);
    let mut other = first.clone();
    for cell in &mut other.cells {
        if let Outcome::Run(run) = &mut cell.outcome
            && (cell.controller.as_str(), cell.seed) == ("mpc", 2)
        {
            run.result.missed += 1;
        }
    }
    let files = |second: &Results| {
        vec![(PathBuf::from("a.json"), first.clone()), (PathBuf::from("b.json"), second.clone())]
    };
    let (alone, _) = Comparison::gather(vec![(PathBuf::from("a.json"), first.clone())]);
    let (twice, conflicts) = Comparison::gather(files(&first));
    assert_eq!((twice.len(), conflicts.len()), (1, 0));
    let lines = |of: &[Comparison]| -> Vec<Line> {
        of[0].summaries().into_iter().map(|summary| summary.line).collect()
    };
    assert_eq!(lines(&twice), lines(&alone));
    let (differing, conflicts) = Comparison::gather(files(&other));
    assert_eq!(lines(&differing), lines(&alone));
    let conflicts = conflicts.iter().map(Conflict::to_string).collect::<Vec<_>>();
    assert_eq!(
        conflicts,
        ["b.json: mpc with seed 2 of small differs from that in a.json, which counts"]
    );
}

#[test]
fn what_is_no_file_of_results_is_named() {
    let folder = folder();
    let (_, results) = results(folder.path(), SMALL);
    let text = results.to_text().expect("plain");
    let parse = |text: &str| Results::parse(text, Path::new("x.json")).expect_err("unusable");
    for end in [0, 10, START.len(), 100, text.len() / 2, text.len() - 1] {
        assert!(matches!(parse(&text[..end]), ResultsError::Damaged { .. }), "{end}");
    }
    for other in ["[]", "{\"isthmus_results\":2", "nothing"] {
        assert!(matches!(parse(other), ResultsError::Format { .. }), "{other}");
    }
    let content = "{\"cells\":[]}";
    let whole = format!("{START}{}{MIDDLE}{content}{END}", digest(content.as_bytes()));
    let error = parse(&whole).to_string();
    assert!(error.starts_with("x.json: missing field"), "{error}");
}
