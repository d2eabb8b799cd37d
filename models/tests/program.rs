//! The `bundle` program as a program: what each subcommand prints and with which code it exits.

#![cfg(feature = "shell")]

mod graphs;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image::{Rgb, RgbImage};
use tempfile::TempDir;

use self::graphs::{encode, inverted_residual, value_info};

/// What was printed, by a run that ended as it should.
struct Printed {
    out: String,
    err: String,
}

/// Runs the program in `folder`; it must exit with `code`. A panic is never as it should be.
#[track_caller]
fn bundle(folder: &Path, code: i32, arguments: &[&str]) -> Printed {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bundle"));
    let Output { status, stdout, stderr } =
        command.args(arguments).current_dir(folder).output().expect("the program starts");
    let (out, err) = (String::from_utf8(stdout), String::from_utf8(stderr));
    let (out, err) = (out.expect("UTF-8"), err.expect("UTF-8"));
    assert!(!err.contains("panicked"), "bundle {arguments:?}: {err}");
    assert_eq!(status.code(), Some(code), "bundle {arguments:?}: {out}{err}");
    Printed { out, err }
}

/// One line on standard error that has all of `parts`, and nothing on standard output.
#[track_caller]
fn refusal(folder: &Path, arguments: &[&str], parts: &[&str]) {
    let Printed { out, err } = bundle(folder, 1, arguments);
    assert_eq!(out, "", "bundle {arguments:?}");
    assert!(err.starts_with("bundle: ") && err.lines().count() == 1, "{err}");
    for part in parts {
        assert!(err.contains(part), "bundle {arguments:?}: no {part:?} in {err}");
    }
}

/// A folder with the network `net.onnx` and pictures of two classes.
fn workspace() -> TempDir {
    let dir = TempDir::new().expect("temporary folder");
    fs::write(dir.path().join("net.onnx"), encode(inverted_residual(2))).expect("a network");
    for (class, number) in [("dark", 0u8), ("dark", 1), ("light", 0), ("light", 1)] {
        let folder = dir.path().join("pictures").join(class);
        fs::create_dir_all(&folder).expect("folder");
        let base = if class == "dark" { 20 } else { 150 };
        let picture = RgbImage::from_fn(40, 32, |x, y| {
            let [x, y] = [x, y].map(|at| at as u8);
            Rgb([base + 2 * x % 60, base + 3 * y % 60, base + number * 9 + (x ^ y) % 30])
        });
        picture.save(folder.join(format!("{number}.png"))).expect("picture");
    }
    fs::write(dir.path().join("classes.toml"), "dark = 0\nlight = 1\n").expect("classes");
    dir
}

/// The same, and the network cut behind its residual block as `own`.
fn cut_workspace() -> TempDir {
    let dir = workspace();
    let net = residual_sum();
    let Printed { out, err } = bundle(
        dir.path(),
        0,
        &["cut", "net.onnx", "--at", &net, "--calibrate", "pictures", "--measure", "pictures"]
            .into_iter()
            .chain(["--classes", "classes.toml", "--out", "own", "--bits", "8,4"])
            .collect::<Vec<_>>(),
    );
    assert!(err.contains("bundle: calibrated on 4 pictures\n"), "{err}");
    assert!(err.contains("bundle: measured on 4 pictures of known class\n"), "{err}");
    assert!(out.contains("split s2: latents 16 × 16 × 16"), "{out}");
    assert!(out.contains("s2/w100/c16/b8"), "{out}");
    dir
}

/// The tensor behind the residual block.
fn residual_sum() -> String {
    let graph = inverted_residual(2);
    let sum = graph.node.iter().find(|node| node.op_type == "Add").expect("a sum");
    sum.output[0].clone()
}

fn shipped(name: &str) -> String {
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "bundles", name].iter().collect();
    path.to_str().expect("UTF-8").to_owned()
}

#[test]
fn cuts_lists_every_cut_with_its_times() {
    let dir = workspace();
    let Printed { out, .. } = bundle(dir.path(), 0, &["cuts", "net.onnx", "--runs", "1"]);
    let mut lines = out.lines();
    let first = lines.next().expect("a line");
    assert!(first.ends_with(" MMAC") && first.contains(" cuts; the whole network takes "), "{out}");
    let cuts: usize = first.split(' ').next().expect("a number").parse().expect("a number");
    assert!(lines.next().expect("a header").starts_with("tensor "), "{out}");
    assert_eq!(lines.count(), cuts);
    assert!(out.contains(&format!("{} ", residual_sum())) && !out.contains(" -"), "{out}");

    let untimed = ["cuts", "net.onnx", "--no-times", "--plot", "cuts.svg", "--format", "json"];
    let Printed { out, .. } = bundle(dir.path(), 0, &untimed);
    let listed: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    let listed = listed.as_array().expect("a list");
    assert_eq!(listed.len(), cuts);
    assert!(listed.iter().all(|cut| cut["head_ms"].is_null() && cut["bytes"].is_u64()), "{out}");
    let plot = fs::read_to_string(dir.path().join("cuts.svg")).expect("a plot");
    assert!(plot.starts_with("<svg ") && plot.contains(&residual_sum()));
}

#[test]
fn cuts_refuses_what_it_cannot_cut() {
    let dir = workspace();
    let at = dir.path();
    refusal(at, &["cuts", "none.onnx"], &["none.onnx: No such file"]);
    fs::write(at.join("text.onnx"), "no network").expect("written");
    refusal(at, &["cuts", "text.onnx"], &["text.onnx: not an ONNX model"]);
    let mut graph = inverted_residual(2);
    graph.input[0] = value_info("image", &[0, 3, 0, 0]);
    fs::write(at.join("free.onnx"), encode(graph)).expect("written");
    refusal(at, &["cuts", "free.onnx"], &["free.onnx", "--size WIDTHxHEIGHT"]);
    bundle(at, 0, &["cuts", "free.onnx", "--no-times", "--size", "48x32"]);
    refusal(at, &["cuts", "net.onnx", "--size", "48x32"], &["cannot be run at 48x32"]);
    bundle(at, 2, &["cuts", "net.onnx", "--size", "48"]);
    bundle(at, 2, &["cuts", "net.onnx", "--runs", "0"]);
    bundle(at, 2, &["cuts"]);
    bundle(at, 2, &["saw", "net.onnx"]);
    assert!(bundle(at, 0, &["--help"]).out.contains("Usage: bundle"));
}

#[test]
fn a_cut_bundle_is_verified_against_another_engine() {
    let dir = cut_workspace();
    let Printed { out, .. } = bundle(dir.path(), 0, &["verify", "own"]);
    assert!(out.starts_with("own sha256:") || out.starts_with("own "), "{out}");
    assert!(out.contains("1 golden of tract-plain reproduced by tract: "), "{out}");
    // Two engines add up in different orders: a difference of nothing would be that of one.
    let within = out.trim_end().rsplit("outputs within ").next().expect("a number");
    let within: f32 = within.parse().expect("a number");
    assert!(within > 0.0 && within < 1e-3, "{out}");

    let card = fs::read_to_string(dir.path().join("own/MODEL_CARD.md")).expect("a card");
    assert!(card.contains("s2/w100/c16/b8"), "{card}");
}

#[test]
fn verify_names_what_is_wrong() {
    let dir = cut_workspace();
    let at = dir.path();
    refusal(at, &["verify", "none"], &["none/manifest.toml: No such file"]);
    bundle(at, 2, &["verify", "own", "--engine", "onnx"]);
    let table = at.join("own/tables/s2_w100_b4.cdf");
    let mut bytes = fs::read(&table).expect("a table");
    bytes[0] ^= 1;
    fs::write(&table, &bytes).expect("written");
    refusal(at, &["verify", "own"], &["s2_w100_b4.cdf: altered or damaged"]);
    fs::remove_file(&table).expect("removed");
    refusal(at, &["verify", "own"], &["s2_w100_b4.cdf: No such file"]);
}

#[test]
fn cut_refuses_what_makes_no_bundle() {
    let dir = workspace();
    let at = dir.path();
    let sum = residual_sum();
    let cut = |at: &str, more: &[&str]| -> Vec<String> {
        let all = ["cut", "net.onnx", "--at", at, "--calibrate", "pictures", "--out", "own"];
        all.iter().chain(more).map(|&argument| argument.to_owned()).collect()
    };
    for (tensor, more, part) in [
        ("nothing", &[][..], "unknown tensor \"nothing\""),
        (&sum, &["--bits", "9"], "bits must be 1 to 8"),
        (&sum, &["--channels", "17"], "channels must be 1 to 16"),
        (&sum, &["--name", "a/b"], "name: must be"),
        (&sum, &["--labels", "net.onnx"], "net.onnx"),
        (&sum, &["--classes", "none.toml"], "none.toml: No such file"),
        (&sum, &["--measure", "none"], "none: No such file"),
    ] {
        let arguments = cut(tensor, more);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        refusal(at, &arguments, &[part]);
    }
    fs::write(at.join("classes.toml"), "dark = 0\nlight = 2\n").expect("classes");
    let arguments = cut(&sum, &["--classes", "classes.toml"]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    refusal(at, &arguments, &["classes.toml: unknown output 2; expected 0 to 1"]);
    fs::create_dir(at.join("own")).expect("in the way");
    let arguments = cut(&sum, &[]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    refusal(at, &arguments, &["own: is there already"]);
    bundle(at, 2, &["cut", "net.onnx", "--at", &sum, "--out", "own"]);
    bundle(at, 2, &cut_with(&arguments, &["--mean", "1,2"]));
    bundle(at, 2, &cut_with(&arguments, &["--labels", "a", "--classes", "b"]));
    bundle(at, 2, &cut_with(&arguments, &["--reference", "abacus"]));
    let names = fs::read_dir(at).expect("folder").map(|entry| entry.expect("entry").file_name());
    assert!(names.into_iter().all(|name| !name.to_string_lossy().contains("partial")));
}

fn cut_with<'a>(arguments: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [arguments, more].concat()
}

#[test]
fn inspect_prints_for_people_and_programs() {
    let dir = TempDir::new().expect("temporary folder");
    let street = shipped("street");
    let Printed { out, .. } = bundle(dir.path(), 0, &["inspect", &street]);
    assert!(out.starts_with("street ") && out.contains("\nfull network: "), "{out}");
    let Printed { out, .. } = bundle(dir.path(), 0, &["inspect", &street, "--format", "json"]);
    let json: serde_json::Value = serde_json::from_str(&out).expect("JSON");
    assert_eq!(json["manifest"]["name"], "street");
    refusal(dir.path(), &["inspect", "none"], &["none/manifest.toml: No such file"]);
    fs::create_dir(dir.path().join("bad")).expect("folder");
    fs::write(dir.path().join("bad/manifest.toml"), "format = 3\n").expect("written");
    refusal(dir.path(), &["inspect", "bad"], &["manifest.toml: format: this is bundle format 3"]);
}

#[test]
fn what_is_recorded_here_is_replayed_here() {
    let dir = cut_workspace();
    let at = dir.path();
    let record = ["record", "own", "--images", "pictures", "--limit", "3", "--out", "frames"];
    let Printed { out, .. } = bundle(at, 0, &record);
    assert!(out.starts_with("3 frames recorded on "), "{out}");
    let Printed { out, .. } = bundle(at, 0, &["replay", "own", "frames"]);
    assert!(out.contains("symbols and bytes alike in 3 of 3"), "{out}");
    assert!(out.contains("1 of 1 by the full network"), "{out}");

    refusal(at, &record, &["frames: File exists"]);
    refusal(at, &["replay", &shipped("street"), "frames"], &["frames: recorded of own "]);
    refusal(at, &["replay", "own", "net.onnx"], &["net.onnx: the record cannot be read"]);
    refusal(at, &["replay", "own", "none"], &["none: No such file"]);
    fs::create_dir_all(at.join("empty")).expect("folder");
    let nothing = ["record", "own", "--images", "empty", "--out", "other"];
    refusal(at, &nothing, &["empty: no picture"]);
}

#[test]
fn export_writes_the_same_bytes_for_the_same_bundle() {
    let dir = cut_workspace();
    let at = dir.path();
    for out in ["one.tar.zst", "two.tar.zst"] {
        assert_eq!(bundle(at, 0, &["export", "own", "--out", out]).out, "");
    }
    let [one, two] = ["one.tar.zst", "two.tar.zst"].map(|file| fs::read(at.join(file)));
    let (one, two) = (one.expect("written"), two.expect("written"));
    assert_eq!(one, two);
    let mut archive = tar::Archive::new(zstd::Decoder::new(&one[..]).expect("zstd"));
    let names = archive.entries().expect("an archive").map(|entry| {
        entry.expect("an entry").path().expect("a path").to_string_lossy().into_owned()
    });
    let names: Vec<String> = names.collect();
    assert_eq!(names[..2], ["own/manifest.toml", "own/MODEL_CARD.md"]);
    assert!(names.contains(&"own/goldens/000.safetensors".into()), "{names:?}");
    refusal(at, &["export", "own", "--out", "one.tar.zst"], &["one.tar.zst: File exists"]);
    refusal(at, &["export", "none", "--out", "three.tar.zst"], &["none/manifest.toml"]);
}
