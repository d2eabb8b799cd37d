//! The program as a user meets it.

use std::io::Read;
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
