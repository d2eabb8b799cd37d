use std::collections::BTreeMap;
use std::sync::Mutex;

use super::*;
use crate::scenario::tests::{SMALL, folder};

fn subjects(folder: &Path, text: &str) -> Vec<Subject> {
    let file = folder.join("small.toml");
    fs::write(&file, text).expect("written");
    vec![Subject::read(&file, &Selection::default(), "it".into()).expect("valid")]
}

fn sweep(subjects: &[Subject], shard: &str, threads: usize, out: &Path) -> (Tally, Vec<String>) {
    let complaints = Mutex::new(Vec::new());
    let complain = |error: &ResultsError| {
        complaints.lock().expect("whole").push(error.to_string());
    };
    let shard = shard.parse().expect("a shard");
    let tally = run(subjects, shard, threads, out, |_, _| {}, complain).expect("runs");
    (tally, complaints.into_inner().expect("whole"))
}

fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(folder).expect("the folder");
    let files = entries.map(|entry| entry.expect("an entry").path());
    let content = |file: PathBuf| {
        let name = file.file_name().map(PathBuf::from).expect("a name");
        (name, fs::read(&file).expect("read"))
    };
    files.map(content).collect()
}

#[test]
fn shards_and_threads_change_no_byte_and_nothing_is_run_twice() {
    let folder = folder();
    let subjects = subjects(folder.path(), SMALL);
    let [whole, parts] = ["whole", "parts"].map(|name| folder.path().join(name));
    assert_eq!(sweep(&subjects, "1/1", 1, &whole).0, Tally { run: 8, kept: 0 });
    for (shard, cells) in [("1/3", 3), ("3/3", 2), ("2/3", 3)] {
        assert_eq!(size(&subjects, shard.parse().expect("a shard")), cells);
        assert_eq!(sweep(&subjects, shard, 2, &parts).0, Tally { run: cells, kept: 0 });
    }
    assert_eq!(contents(&parts), contents(&whole));
    assert_eq!(sweep(&subjects, "1/1", 2, &parts).0, Tally { run: 0, kept: 8 });
}

#[test]
fn a_file_that_is_damaged_or_of_another_scenario_is_run_again() {
    let folder = folder();
    let out = folder.path().join("out");
    let first = subjects(folder.path(), SMALL);
    sweep(&first, "1/1", 2, &out);
    let before = contents(&out);
    let [cut, changed] = ["small.mpc.1.json", "small.greedy.2.json"].map(|name| out.join(name));
    let text = fs::read_to_string(&cut).expect("read");
    fs::write(&cut, &text[..text.len() / 2]).expect("written");
    let text = fs::read_to_string(&changed).expect("read");
    fs::write(&changed, text.replacen("\"missed\":", "\"missed\":1", 1)).expect("written");
    let (tally, mut complaints) = sweep(&first, "1/1", 1, &out);
    complaints.sort();
    assert_eq!(tally, Tally { run: 2, kept: 6 });
    assert_eq!(complaints.len(), 2);
    for (complaint, file) in complaints.iter().zip([&changed, &cut]) {
        assert!(complaint.starts_with(&format!("{}: damaged", file.display())), "{complaint}");
    }
    assert_eq!(contents(&out), before);

    let other = subjects(folder.path(), &SMALL.replace("seconds = 20", "seconds = 21"));
    assert_eq!(sweep(&other, "1/1", 2, &out).0, Tally { run: 8, kept: 0 });
}

#[test]
fn a_shard_is_a_part_of_a_whole() {
    for text in ["", "1", "0/2", "3/2", "a/b", "1/0", "-1/2"] {
        assert!(text.parse::<Shard>().is_err(), "{text}");
    }
    assert_eq!("2/3".parse(), Ok(Shard { part: 2, of: 3 }));
}
