//! The program as a user meets it: usage and exit codes.

#![cfg(feature = "shell")]

mod tiny;

use std::path::Path;
use std::process::{Command, Output};

fn head_client(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_head-client"));
    // The user's own settings must not reach in.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ISTHMUS_")) {
        command.env_remove(name);
    }
    command.args(args).output().expect("the program starts")
}

fn run(args: &[&str]) -> (Option<i32>, String) {
    let fingerprint = "ab".repeat(32);
    let server = ["run", "--server", "quic://127.0.0.1:9", "--server-fingerprint", &fingerprint];
    let output = head_client(&[&server, args].concat());
    assert!(output.stdout.is_empty(), "results only");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn exit_codes_tell_failures_apart() {
    let dir = tempfile::tempdir().expect("temporary folder");
    tiny::write(dir.path());
    let bundle = dir.path().to_str().expect("a path");

    let (code, said) = run(&["--bundle", bundle]);
    assert!(code == Some(2) && said.contains("--input"), "{said}");
    let (code, said) = run(&["--bundle", bundle, "--input", "x", "--point", "s9/w1/c1/b1"]);
    assert!(code == Some(2) && said.contains("s9"), "{said}");
    let (code, said) = run(&["--bundle", "no/such/bundle", "--input", "x"]);
    assert!(code == Some(3) && said.contains("no/such/bundle"), "{said}");

    // An altered file is named.
    let table = Path::new(bundle).join("tables/b6.cdf");
    std::fs::write(&table, [0; 512]).expect("written");
    let (code, said) = run(&["--bundle", bundle, "--input", "x"]);
    assert!(code == Some(3) && said.contains("b6.cdf"), "{said}");
}

#[test]
fn a_server_without_a_known_identity_is_refused_with_both_ways_out() {
    let output =
        head_client(&["run", "--server", "quic://localhost", "--bundle", "b", "--input", "x"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("--server-fingerprint") && said.contains("--ca"), "{said}");
}

#[test]
fn unknown_keys_of_a_configuration_file_are_named_with_their_file() {
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), "sever = 'quic://localhost'\n").expect("written");
    let path = file.path().to_str().expect("a path");
    let (code, said) = run(&["--config", path]);
    assert!(code == Some(2) && said.contains(path) && said.contains("sever"), "{said}");
}

#[test]
fn help_lists_the_exit_codes() {
    let output = head_client(&["run", "--help"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("Exit codes") && said.contains("quic://"));
}
