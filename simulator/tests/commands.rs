//! Every command as a program: what it prints, writes and answers, from any folder.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

/// Runs the program in `folder`, which is not the repository's; it has to succeed.
fn simulator(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simulator"));
    let output = command.args(args).current_dir(folder).output().expect("the program starts");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// A short scenario over a link whose trace lies beside it, in a folder below.
fn scenario(folder: &Path) {
    let below = folder.join("below");
    fs::create_dir(&below).expect("made");
    fs::write(below.join("rate.csv"), "time_s,rate_mbps\n0,1\n5,2\n9,1\n").expect("written");
    let link = "description = 'mine'\nsource = 'made up'\n\
        [uplink]\nrate = { trace = 'rate.csv' }\ndelay = '20ms'\n\
        [downlink]\nrate = { kbits = 1000 }\ndelay = '20ms'\n";
    fs::write(below.join("link.toml"), link).expect("written");
    let scenario = "description = 'a moment'\nbundle = 'street'\ndevice = 'pi4'\n\
        link = 'link.toml'\nframes_per_second = 10\ndeadline = '300ms'\nduration = '3s'\n\
        seeds = [1, 2]\n[[controllers]]\nkind = 'mpc'\n[[controllers]]\nkind = 'greedy'\n";
    fs::write(below.join("short.toml"), scenario).expect("written");
}

#[test]
fn the_demo_runs_anywhere_and_leaves_a_page() {
    let folder = folder();
    let args = ["demo", "--duration", "1s", "--rate", "5", "--report", "page.html"];
    let output = simulator(folder.path(), &args);
    let said = text(&output);
    for part in ["mpc ", "fixed s16/", "upload jpeg/", "report: page.html"] {
        assert!(said.contains(part), "{part}: {said}");
    }
    let first = said.lines().next().expect("a line");
    assert!(first.starts_with("bundle /") && first.contains("models/bundles/street"), "{first}");
    assert!(!first.contains(".."), "{first}");
    let page = fs::read_to_string(folder.path().join("page.html")).expect("written");
    assert!(page.starts_with("<!doctype html>") && page.matches("<svg").count() >= 3);

    let json = [&args[..], &["--controller", "fixed", "--deadline", "250", "--format", "json"]];
    let output = simulator(folder.path(), &json.concat());
    let lines: Vec<Value> =
        text(&output).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let summaries: Vec<&Value> = lines.iter().filter(|line| !line["summary"].is_null()).collect();
    assert_eq!(summaries.len(), 2, "the fixed point and the upload");
    assert!(summaries.iter().all(|line| line["summary"]["frames"] == 5), "{summaries:?}");
}

#[test]
fn a_scenario_s_files_are_found_from_any_folder() {
    let folder = folder();
    scenario(folder.path());
    let args = ["run", "below/short.toml", "--format", "csv"];
    let first = text(&simulator(folder.path(), &args));
    assert_eq!(first.lines().count(), 4, "two controllers and the oracle: {first}");
    let inside = folder.path().join("below");
    let args = ["run", "short.toml", "--format", "csv"];
    assert_eq!(text(&simulator(&inside, &args)), first);
    let args = ["run", "outage", "--controllers", "greedy", "--seed", "1", "--duration", "3s"];
    let said = text(&simulator(folder.path(), &args));
    assert!(said.starts_with("Driving through an outage") && said.contains("\ngreedy "), "{said}");
}

#[test]
fn results_become_a_page_and_tables() {
    let folder = folder();
    scenario(folder.path());
    simulator(folder.path(), &["run", "below/short.toml", "-o", "results.json"]);
    let args = ["report", "results.json", "-o", "page.html", "--csv", "tables"];
    let said = text(&simulator(folder.path(), &args));
    assert!(said.starts_with("a moment\n") && said.ends_with("report: page.html\n"), "{said}");
    let page = fs::read_to_string(folder.path().join("page.html")).expect("written");
    assert!(page.contains("<code>simulator run below/short.toml</code>"), "the command");
    let rows = |name: &str| {
        let file = folder.path().join("tables").join(name);
        csv::Reader::from_path(file).expect("written").records().filter(Result::is_ok).count()
    };
    assert_eq!(rows("runs.csv"), 2 * 3);
    assert_eq!(rows("timelines.csv"), 2 * 2 * 30);
    assert!(rows("ends.csv") >= 4);
}

#[test]
fn a_sweep_keeps_what_is_there_and_shards_add_up() {
    let folder = folder();
    scenario(folder.path());
    let sweep = |more: &[&str]| {
        let args = [&["sweep", "below/short.toml", "-o", "out", "--jobs", "2"], more].concat();
        text(&simulator(folder.path(), &args))
    };
    assert_eq!(sweep(&["--shard", "1/2"]), "3 runs, 0 were there; results in out\n");
    assert_eq!(sweep(&[]), "3 runs, 3 were there; results in out\n");
    assert_eq!(sweep(&[]), "0 runs, 6 were there; results in out\n");
    let said = text(&simulator(folder.path(), &["report", "out"]));
    assert!(said.contains("\nmpc ") && said.contains("\noracle "), "{said}");
}

#[test]
fn a_trace_is_converted_there_and_back() {
    let folder = folder();
    let trace = "time_s,rate_mbps\n0,1\n1.5,1\n2,8\n";
    fs::write(folder.path().join("a.csv"), trace).expect("written");
    let output = simulator(folder.path(), &["convert", "a.csv", "--to", "json", "-o", "b.json"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.stdout.is_empty() && said.starts_with("2.000 s, "), "{said}");
    let args = ["convert", "b.json", "--to", "csv", "--scale", "2"];
    let back = text(&simulator(folder.path(), &args));
    assert_eq!(back, "time_s,rate_mbps\n0,2\n1.5,2\n2,16\n");
}

#[test]
fn what_is_built_in_is_listed() {
    let folder = folder();
    let list = |args: &[&str]| text(&simulator(folder.path(), &[&["list"], args].concat()));
    for (kind, key, name) in [
        ("links", "link", "lte-driving"),
        ("devices", "device", "pi4"),
        ("scenarios", "scenario", "one-camera"),
    ] {
        assert!(list(&[kind]).lines().any(|line| line == name), "{kind}");
        let lines = list(&[kind, "--format", "json"]);
        let lines: Vec<Value> =
            lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert!(lines.iter().any(|line| line[key] == name), "{kind}");
    }
    assert_eq!(list(&[]), list(&["links"]));
}

#[test]
fn every_command_has_its_help() {
    let folder = folder();
    let help = text(&simulator(folder.path(), &["--help"]));
    assert!(help.contains("s16/w100/c16/b6"), "{help}");
    let commands = help.split("Commands:").nth(1).and_then(|rest| rest.split("Options:").next());
    let names = commands.expect("commands").lines().filter(|line| line.starts_with("  "));
    let mut count = 0;
    let names = names.filter_map(|line| line.split_whitespace().next());
    for name in names.filter(|name| *name != "help") {
        let help = text(&simulator(folder.path(), &[name, "--help"]));
        assert!(help.contains("Usage: "), "{name}");
        count += 1;
    }
    assert!(count >= 13, "{count}");
}
