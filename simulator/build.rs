//! Tells the program which commit it was built from.

use std::env;
use std::path::Path;
use std::process::Command;

/// What the program is made of, from this folder.
const SOURCES: [&str; 12] = [
    "build.rs",
    "src",
    "Cargo.toml",
    "camera",
    "link",
    "../proto/src",
    "../models/src",
    "../head-client/src",
    "../tail-server/src",
    "../configs",
    "../Cargo.toml",
    "../Cargo.lock",
];

fn main() {
    println!("cargo::rerun-if-env-changed=ISTHMUS_COMMIT");
    for source in SOURCES.iter().filter(|source| Path::new(source).exists()) {
        println!("cargo::rerun-if-changed={source}");
    }
    let given = env::var("ISTHMUS_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = given.or_else(commit).unwrap_or_else(|| "unknown".into());
    println!("cargo::rustc-env=ISTHMUS_COMMIT={commit}");
}

/// The commit of the sources, if they are a repository's; with `+` if they differ from it.
fn commit() -> Option<String> {
    // A copy within somebody else's repository has no commit of its own.
    git(&["ls-files", "--error-unmatch", "build.rs"])?;
    // It moves with every commit.
    let log = git(&["rev-parse", "--git-path", "logs/HEAD"])?;
    if Path::new(&log).exists() {
        println!("cargo::rerun-if-changed={log}");
    }
    let commit = git(&["rev-parse", "HEAD"])?;
    let changes = git(&[&["status", "--porcelain", "--"][..], &SOURCES].concat())?;
    Some(if changes.is_empty() { commit } else { commit + "+" })
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("--no-optional-locks").args(args).output().ok()?;
    let text = output.status.success().then(|| String::from_utf8(output.stdout))?.ok()?;
    Some(text.trim().to_owned())
}
