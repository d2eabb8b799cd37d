//! Real traces, where they are at hand. They are not part of this repository: put them in
//! `../shared/data/traces` beside it, or name the folder above `data` in `ISTHMUS_SHARED`.

use std::env;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use isthmus_simulator::{Columns, Format, Trace};
use serde::Deserialize;

/// A row of the traces' index.
#[derive(Deserialize)]
struct Row {
    file: String,
    format: String,
    duration_s: f64,
    mean_mbps: f64,
}

fn traces() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let shared = env::var_os("ISTHMUS_SHARED").map_or_else(beside, PathBuf::from);
    Some(shared.join("data/traces")).filter(|folder| folder.join("index.csv").is_file())
}

#[test]
fn every_shared_trace_reads_and_its_mean_is_that_of_the_index() {
    let Some(folder) = traces() else {
        // Past the test's capture, so that it is seen.
        let _ = writeln!(
            io::stderr(),
            "SKIPPED every_shared_trace_reads_and_its_mean_is_that_of_the_index: no shared traces; \
             set ISTHMUS_SHARED to the folder that holds data/traces"
        );
        return;
    };
    let mut index = csv::Reader::from_path(folder.join("index.csv")).expect("index.csv");
    let mut count = 0;
    for row in index.deserialize() {
        let Row { file, format, duration_s, mean_mbps } = row.expect("a row");
        let path = folder.join(&file);
        let rows = format == "ucc_csv";
        let rate = rows.then(|| "DL_bitrate_kbps".to_owned());
        let trace = Trace::read(&path, &Columns { rate, ..Columns::default() }).expect(&file);
        let (duration, mean) =
            (trace.duration().as_secs_f64(), trace.mean_rate().as_bps() as f64 / 1e6);
        // The index adds a mean step for the last sample, up to 5 s; of CSV files it counts rows.
        assert!(rows || (duration - duration_s).abs() <= 6.0, "{file}: {duration} s");
        // The index takes the mean over samples, whatever their spacing: only of mahimahi's and
        // JSON's equal steps is it the same.
        if matches!(format.as_str(), "mahimahi" | "alphartc_json") {
            let off = (mean - mean_mbps).abs();
            assert!(off <= 0.01 * mean_mbps + 0.002, "{file}: {mean} Mbit/s");
        }
        let mut text = Vec::new();
        trace.write(Format::Csv, &mut text).expect("memory takes everything");
        let text = String::from_utf8(text).expect("text");
        let again = Trace::parse(&text, &Columns::default(), &path).expect("our own");
        assert_eq!(again, trace, "{file}");
        count += 1;
    }
    assert!(count > 0, "the index is empty");
}
