//! The fuzz targets' bodies on what a generator draws, for where there is no fuzzer: random bytes,
//! and seeds that were altered, cut and joined.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use isthmus_fuzz::{TARGETS, seeds};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

#[test]
fn the_committed_seeds_are_those_that_the_command_writes() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    let entries = |path: &Path| -> Vec<_> {
        let entries = fs::read_dir(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
        entries.map(|entry| entry.expect("an entry").path()).collect()
    };
    let name = |path: &Path| path.file_name().expect("a name").to_string_lossy().into_owned();
    let mut committed = BTreeMap::new();
    for folder in entries(&root) {
        for file in entries(&folder) {
            committed.insert((name(&folder), name(&file)), fs::read(&file).expect("a file"));
        }
    }
    let written: BTreeMap<_, _> =
        seeds::all().into_iter().map(|it| ((it.target.to_owned(), it.name), it.bytes)).collect();
    assert!(committed == written, "run: cargo run --release -p isthmus-fuzz --example seeds");
    for (file, bytes) in committed {
        assert!(bytes.len() < 1_000, "{file:?} has {} bytes", bytes.len());
    }
}

#[test]
fn every_target_has_seeds_and_takes_them() {
    for (target, body) in TARGETS {
        let seeds = seeds_of(target);
        assert!(!seeds.is_empty(), "{target}");
        seeds.iter().for_each(|bytes| body(bytes));
    }
}

#[test]
fn answers() {
    holds("answer", 40_000);
}

#[test]
fn coded_layers() {
    holds("context", 10_000);
}

#[test]
fn frames() {
    holds("frame", 40_000);
}

#[test]
fn control_messages() {
    holds("framer", 40_000);
}

#[test]
fn what_a_server_says() {
    holds("reply", 40_000);
}

#[test]
fn what_devices_do_to_a_server() {
    holds("server", 100_000);
}

fn seeds_of(target: &str) -> Vec<Vec<u8>> {
    seeds::all().into_iter().filter(|it| it.target == target).map(|it| it.bytes).collect()
}

/// Runs a target's body on so many inputs of each kind.
fn holds(target: &str, cases: u32) {
    let (_, body) = TARGETS.into_iter().find(|(name, _)| *name == target).expect("a target");
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let seeds = seeds_of(target);
    let altered = (
        prop::collection::vec((prop::sample::select(seeds), any::<prop::sample::Index>()), 1..3),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    );
    let altered = altered.prop_map(|(parts, edits)| {
        let mut bytes: Vec<u8> = Vec::new();
        for (seed, end) in parts {
            // As often whole as cut.
            let end = end.index(2 * seed.len()).min(seed.len());
            bytes.extend(&seed[..end]);
        }
        for (at, byte) in edits {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        bytes
    });
    let random = prop::collection::vec(any::<u8>(), 0..400);
    let inputs = prop_oneof![altered, random];
    let run = TestRunner::new(config).run(&inputs, |bytes| {
        body(&bytes);
        Ok(())
    });
    run.unwrap_or_else(|failure| panic!("{target}: {failure}"));
}
