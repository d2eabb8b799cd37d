//! The numbers of every shipped scenario, so that none changes unnoticed.
//!
//! After a change that is meant, `UPDATE_SNAPSHOTS=1 cargo test -p isthmus-simulator --test snapshots`
//! writes them anew; the difference belongs into the commit. Virtual time makes them the same for any
//! number of threads.

use std::env;
use std::fs;
use std::path::Path;
use std::process::Command;

use isthmus_simulator::scenario::BUILT_IN;

/// Scenarios that take long, each for so long here.
const SHORTENED: [(&str, &str); 2] = [("fleet", "2s"), ("ten-minutes", "1m")];

/// The lines of a scenario as CSV.
fn lines(name: &str, transport: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simulator"));
    command.args(["run", name, "--format", "csv", "--transport", transport]);
    if let Some((_, duration)) = SHORTENED.iter().find(|(shortened, _)| *shortened == name) {
        command.args(["--duration", duration]);
    }
    let output = command.output().expect("the program starts");
    assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn compare(name: &str, lines: &str) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots");
    let file = folder.join(format!("{name}.csv"));
    if env::var_os("UPDATE_SNAPSHOTS").is_some() {
        fs::write(&file, lines).expect("written");
        return;
    }
    let known = fs::read_to_string(&file).unwrap_or_default();
    assert_eq!(
        lines, known,
        "{name} differs from its snapshot; if that is meant, run this test with UPDATE_SNAPSHOTS=1"
    );
}

#[test]
fn every_shipped_scenario_comes_to_the_numbers_of_its_snapshot() {
    for (name, _) in BUILT_IN {
        compare(name, &lines(name, "ideal"));
    }
}

#[test]
fn scenarios_over_quic_come_to_the_numbers_of_their_snapshots() {
    for name in ["outage", "heat", "bluetooth"] {
        compare(&format!("{name}.quic"), &lines(name, "quic"));
    }
}

#[test]
fn every_snapshot_is_of_a_scenario() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/snapshots");
    let mut count = 0;
    for entry in fs::read_dir(folder).expect("the folder") {
        let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
        let name = name.trim_end_matches(".csv").trim_end_matches(".quic").to_owned();
        assert!(BUILT_IN.iter().any(|(built_in, _)| *built_in == name), "{name}");
        count += 1;
    }
    assert_eq!(count, BUILT_IN.len() + 3);
}
