//! The program as a user meets it.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn camera(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simulator"));
    command.arg("camera").args(args);
    command
}

#[test]
fn equal_seeds_stream_equal_frames() {
    let stream = |seed| {
        let output = camera(&["--stream", "y4m", "--count", "2", "--seed", seed])
            .output()
            .expect("the program starts");
        assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
        output.stdout
    };
    let bytes = stream("5");
    let frame = 320 * 240 * 3;
    assert!((2 * frame..2 * frame + 200).contains(&bytes.len()), "{}", bytes.len());
    assert_eq!(bytes, stream("5"));
    assert_ne!(bytes, stream("6"));
}

#[test]
fn a_stream_ends_quietly_when_nobody_reads_any_more() {
    let mut child = camera(&["--stream", "mjpeg"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut some = [0; 1000];
    child.stdout.take().expect("piped").read_exact(&mut some).expect("frames");
    assert_eq!(some[..2], [0xff, 0xd8]);
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
}

#[test]
fn a_rate_that_no_camera_has_is_refused() {
    for rate in ["0", "nan", "1e9"] {
        let output = camera(&["--stream", "y4m", "--rate", rate]).output().expect("it starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("1..=240"), "{said}");
    }
}

/// A scenario of a moment, on `device`.
fn scenario(folder: &Path, device: &str) -> PathBuf {
    let bundle = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/bundles/street");
    let file = folder.join(format!("{device}.toml"));
    let text = format!(
        "description = 'a moment'\nbundle = {bundle:?}\ndevice = '{device}'\nlink = 'wifi'\n\
         frames_per_second = 10\ndeadline_ms = 300\nseconds = 1\nseeds = [1]\noracle = false\n\
         [[controllers]]\nkind = 'fixed'\npoint = 's16/w100/c16/b6'\n"
    );
    fs::write(&file, text).expect("written");
    file
}

#[test]
fn every_device_simulates_a_scenario() {
    let folder = tempfile::tempdir().expect("a folder");
    let devices = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/devices");
    for device in fs::read_dir(devices).expect("the folder") {
        let device = device.expect("an entry").path().with_extension("");
        let device = device.file_name().and_then(|name| name.to_str()).expect("a name");
        let mut command = Command::new(env!("CARGO_BIN_EXE_simulator"));
        let output = command.arg("run").arg(scenario(folder.path(), device)).output();
        let output = output.expect("the program starts");
        assert!(output.status.success(), "{device}: {output:?}");
    }
}

#[test]
fn a_run_is_shown_on_terminals_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(env!("CARGO_BIN_EXE_simulator"));
    let output = command.arg("run").arg(scenario(folder.path(), "pi4")).arg("--tui").output();
    let output = output.expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("--tui: standard output is no terminal"));
    assert!(output.stdout.is_empty(), "{output:?}");
}

#[test]
fn a_path_that_cannot_be_measured_is_named_and_leaves_no_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("trace.csv");
    let fingerprint = "00".repeat(32);
    let measure = |name: &str, options: &[&str], file: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_simulator"));
        command.args([name, "--duration", "1s"]).args(options).arg("-o").arg(file);
        let output = command.output().expect("the program starts");
        assert!(!output.status.success() && output.stdout.is_empty(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let record = |options: &[&str], file: &Path| measure("measure-path", options, file);
    let server = ["--server", "quic://localhost:1", "--server-fingerprint", &fingerprint];
    assert!(record(&server[..2], &file).contains("--server-fingerprint"));
    let wrong = [&server[..], &["--window", "2"]].concat();
    assert!(record(&wrong, &file).contains("--window must not be longer"));
    let wrong = [&server[..], &["--window", "0"]].concat();
    let said = record(&wrong, &file);
    assert!(said.contains("--window <DURATION>': 0 is not more than 0"), "{said}");
    // Its name of before.
    assert!(measure("record", &server[..2], &file).contains("--server-fingerprint"));
    let nowhere = folder.path().join("none/trace.csv");
    assert!(record(&server, &nowhere).contains("none/trace.csv"));
    let unknown = ["--server", "quic://host.invalid", "--server-fingerprint", &fingerprint];
    assert!(record(&unknown, &file).contains("quic://host.invalid:4433: no address"));
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 0);
}

mod link {
    use super::*;
    use std::io::{BufRead, BufReader};

    fn link(args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_simulator"));
        command.args(["link", "--link", "wifi"]).args(args);
        command
    }

    #[test]
    fn a_command_runs_over_the_link_and_its_exit_code_is_the_answer() {
        let shell = r#"echo "$SIMULATOR_UDP_1 $SIMULATOR_TCP_1"; exit 7"#;
        let proxies = ["--udp", "0=127.0.0.1:9", "--tcp", "0=127.0.0.1:9"];
        let output = link(&proxies).args(["--", "sh", "-c", shell]).output().expect("it starts");
        assert_eq!(output.status.code(), Some(7), "{output:?}");
        let said = String::from_utf8_lossy(&output.stdout);
        assert_eq!(said.matches("127.0.0.1:").count(), 2, "{said}");
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("ready") && told.contains("delivered"), "{told}");
    }

    #[test]
    fn a_signal_ends_command_and_link() {
        let mut child =
            link(&["--udp", "0=127.0.0.1:9", "--", "sh", "-c", "echo up; exec sleep 60"])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("it starts");
        let mut line = String::new();
        let out = child.stdout.take().expect("piped");
        BufReader::new(out).read_line(&mut line).expect("COMMAND runs");
        let id = child.id().to_string();
        Command::new("kill").args(["-TERM", &id]).status().expect("kill runs");
        let output = child.wait_with_output().expect("it ends");
        assert_eq!(output.status.code(), Some(128 + 15), "{output:?}");
    }

    #[test]
    fn what_is_wrong_is_named_with_what_is_expected() {
        for (args, said) in [
            (vec!["--udp", "5000"], "\"5000\" is not LISTEN=UPSTREAM"),
            (vec![], "--udp"),
            (vec!["--udp", "0=127.0.0.1:9", "--", "no-such-program"], "no-such-program"),
            (vec!["--link", "nowhere", "--udp", "0=127.0.0.1:9"], "nowhere"),
        ] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_simulator"));
            command.arg("link");
            if !args.contains(&"--link") {
                command.args(["--link", "wifi"]);
            }
            let output = command.args(&args).output().expect("it starts");
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && told.contains(said), "{told}");
        }
    }
}
