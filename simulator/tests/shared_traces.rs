//! Real traces, where they are at hand. They are not part of this repository: put them in
//! `../shared/data/traces` beside it, or name the folder above `data` in `ISTHMUS_SHARED`.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use isthmus_simulator::{Columns, Format, Trace};

fn traces() -> Option<PathBuf> {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared");
    let shared = env::var_os("ISTHMUS_SHARED").map_or_else(beside, PathBuf::from);
    Some(shared.join("data/traces")).filter(|folder| folder.join("index.csv").is_file())
}

#[test]
fn every_shared_trace_reads_and_its_mean_is_that_of_the_index() {
    let Some(folder) = traces() else {
        eprintln!(
            "SKIPPED: no shared traces; set ISTHMUS_SHARED to the folder that holds data/traces"
        );
        return;
    };
    let index = fs::read_to_string(folder.join("index.csv")).expect("index.csv");
    let mut lines = index.lines();
    let head: Vec<&str> = lines.next().expect("a head").split(',').collect();
    let column = |name| head.iter().position(|&column| column == name).expect(name);
    let [file, format, seconds, mbps] = ["file", "format", "duration_s", "mean_mbps"].map(column);
    let mut count = 0;
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        let path = folder.join(fields[file]);
        let columns = Columns {
            rate: (fields[format] == "ucc_csv").then(|| "DL_bitrate_kbps".to_owned()),
            ..Columns::default()
        };
        let trace = Trace::read(&path, &columns).expect(fields[file]);
        let number = |at: usize| fields[at].parse::<f64>().expect("a number");
        let (duration, mean) =
            (trace.duration().as_secs_f64(), trace.mean_rate().as_bps() as f64 / 1e6);
        // The index adds a mean step for the last sample, up to 5 s; of CSV files it counts rows.
        let rows = fields[format] == "ucc_csv";
        assert!(
            rows || (duration - number(seconds)).abs() <= 6.0,
            "{}: {duration} s",
            fields[file]
        );
        // The index takes the mean over samples, whatever their spacing: only of mahimahi's and
        // JSON's equal steps is it the same.
        if matches!(fields[format], "mahimahi" | "alphartc_json") {
            let off = (mean - number(mbps)).abs();
            assert!(off <= 0.01 * number(mbps) + 0.002, "{}: {mean} Mbit/s", fields[file]);
        }
        let mut text = Vec::new();
        trace.write(Format::Csv, &mut text).expect("memory takes everything");
        let text = String::from_utf8(text).expect("text");
        let again = Trace::parse(&text, &Columns::default(), &path).expect("our own");
        assert_eq!(again, trace, "{}", fields[file]);
        count += 1;
    }
    assert!(count > 0, "the index is empty");
}
