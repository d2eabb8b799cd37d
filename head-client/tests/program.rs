//! The program as a user meets it: usage and exit codes.

#![cfg(feature = "shell")]

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use isthmus_fixtures::{ends, tiny};
use isthmus_models::{Bundle, Tract};
use isthmus_tail_server::model::{BundleModel, Model};
use isthmus_tail_server::{ServerConfig, TlsConfig};

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_head-client"));
    // The user's own settings must not reach in, nor a library of theirs.
    command.env("ORT_DYLIB_PATH", "no/such/library");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ISTHMUS_")) {
        command.env_remove(name);
    }
    command
}

fn head_client(args: &[&str]) -> Output {
    program().args(args).output().expect("the program starts")
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

    // A program without ONNX Runtime, or one without its library.
    let (code, said) = run(&["--bundle", bundle, "--input", "x", "--engine", "ort"]);
    assert!(code == Some(8) && said.contains("ONNX Runtime"), "{said}");

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

/// `count` grey pictures in YUV4MPEG2, without the stream's header.
fn grey_frames(count: usize) -> Vec<u8> {
    [&b"FRAME\n"[..], &[128; 64 * 64]].concat().repeat(count)
}

/// A bundle that the program's own engine runs, and a server of it.
async fn street() -> (String, isthmus_tail_server::Server) {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/bundles/street");
    let bundle = Arc::new(Bundle::open(dir.as_ref()).unwrap_or_else(|error| panic!("{error}")));
    let model: Arc<dyn Model> =
        Arc::new(BundleModel::load(bundle, Arc::new(Tract)).expect("a tail"));
    let config = ServerConfig::new("unused".into(), TlsConfig::InMemory);
    (dir.to_owned(), ends::serve(vec![model], config).await)
}

#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn the_service_manager_hears_of_start_answers_and_end_but_of_no_idle_loop() {
    use std::os::unix::net::UnixDatagram;

    let (bundle, server) = street().await;
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path().join("notify");
    let manager = UnixDatagram::bind(&path).expect("a socket");
    let hear = |patience: Duration| {
        manager.set_read_timeout(Some(patience)).expect("a timeout");
        let mut told = [0; 64];
        let length = manager.recv(&mut told).ok()?;
        Some(String::from_utf8_lossy(&told[..length]).into_owned())
    };
    let soon = Duration::from_secs(60);

    let port = server.quic_addr().expect("offered").port();
    let url = format!("quic://127.0.0.1:{port}");
    let fingerprint = server.fingerprint().to_string();
    let mut client = program()
        .env("NOTIFY_SOCKET", &path)
        .args(["run", "--server", &url, "--server-fingerprint", &fingerprint, "--bundle", &bundle])
        .args(["--input", "-", "--every-frame", "--deadline-ms", "60000", "--format", "json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut camera = client.stdin.take().expect("piped");
    camera.write_all(b"YUV4MPEG2 W64 H64 F10:1 Cmono\n").expect("written");
    camera.write_all(&grey_frames(3)).expect("written");
    assert_eq!(hear(soon).as_deref(), Some("READY=1"));
    assert_eq!(hear(soon).as_deref(), Some("WATCHDOG=1"));
    // What is told of an answer is told before it is printed.
    let mut answers = BufReader::new(client.stdout.take().expect("piped")).lines();
    assert_eq!(answers.by_ref().take(3).filter(|line| line.is_ok()).count(), 3);
    while hear(Duration::from_millis(1)).is_some() {}
    // Nothing is answered while the camera is still, so nothing feeds the watchdog.
    assert_eq!(hear(Duration::from_secs(2)), None);
    camera.write_all(&grey_frames(1)).expect("written");
    assert_eq!(hear(soon).as_deref(), Some("WATCHDOG=1"));
    drop(camera);
    assert_eq!(hear(soon).as_deref(), Some("STOPPING=1"));
    assert!(client.wait().expect("ended").success());
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_has_an_exit_code_of_its_own() {
    let (bundle, server) = street().await;
    let port = server.quic_addr().expect("offered").port();
    let fingerprint = server.fingerprint().to_string();
    let full = File::options().write(true).open("/dev/full").expect("Linux has it");
    let mut client = program()
        .args(["run", "--server", &format!("quic://127.0.0.1:{port}")])
        .args(["--server-fingerprint", &fingerprint, "--bundle", &bundle, "--input", "-"])
        .stdin(Stdio::piped())
        .stdout(full)
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut camera = client.stdin.take().expect("piped");
    camera.write_all(b"YUV4MPEG2 W64 H64 F10:1 Cmono\n").expect("written");
    camera.write_all(&grey_frames(1)).expect("written");
    drop(camera);
    let output = client.wait_with_output().expect("ended");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(9) && said.contains("standard output"), "{said}");
}
