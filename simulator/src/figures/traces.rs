//! Recorded traces in a folder, each with its duration, for experiments on them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::trace::{Columns, Trace};

/// A list of traces that a folder may hold; without it, everything in the folder that reads as a trace
/// is one.
const INDEX: &str = "index.csv";

/// The rate in the traces of 5G by Raca and others (2020), which have several; traces of a downlink
/// are taken as an uplink.
const DOWNLINK_COLUMN: &str = "DL_bitrate_kbps";

/// A recorded trace.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct RecordedTrace {
    /// The first folder of its path.
    pub(super) group: String,
    pub(super) file: PathBuf,
    pub(super) seconds: f64,
    /// The column of its rate, where it has several.
    pub(super) rate_column: Option<String>,
}

/// A row of the index; other columns are of no interest here.
#[derive(Deserialize)]
struct Row {
    file: PathBuf,
}

/// The traces in `folder` and below, by absolute paths: those that its index lists, in its order, or
/// else all, in order of their paths.
pub(super) fn find(folder: &Path) -> anyhow::Result<Vec<RecordedTrace>> {
    let named = || folder.display().to_string();
    let folder = fs::canonicalize(folder).with_context(named)?;
    let index = folder.join(INDEX);
    let mut traces = Vec::new();
    if index.is_file() {
        for file in listed(&index).with_context(|| index.display().to_string())? {
            traces.push(RecordedTrace::read(&folder, &file)?);
        }
    } else {
        let mut files = Vec::new();
        collect(&folder, &mut files)?;
        files.sort();
        for file in files {
            let file = file.strip_prefix(&folder).unwrap_or(&file);
            match RecordedTrace::read(&folder, file) {
                Ok(trace) => traces.push(trace),
                Err(error) => eprintln!("simulator: {error:#}; it is left out"),
            }
        }
    }
    ensure!(!traces.is_empty(), "{}: no trace is there", folder.display());
    Ok(traces)
}

/// The files that an index lists.
fn listed(index: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for row in csv::Reader::from_path(index)?.deserialize() {
        let Row { file } = row?;
        files.push(file);
    }
    Ok(files)
}

/// Every file below `folder`, but for hidden ones and documents.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let named = || folder.display().to_string();
    for entry in fs::read_dir(folder).with_context(named)? {
        let path = entry.with_context(named)?.path();
        let is_hidden = path.file_name().is_some_and(|it| it.to_string_lossy().starts_with('.'));
        let is_document = path.extension().is_some_and(|it| it == "md");
        if path.is_dir() && !is_hidden {
            collect(&path, files)?;
        } else if !is_hidden && !is_document {
            files.push(path);
        }
    }
    Ok(())
}

impl RecordedTrace {
    /// Reads `file`, whose path counts from `folder`.
    fn read(folder: &Path, file: &Path) -> anyhow::Result<RecordedTrace> {
        let full = folder.join(file);
        let read = |rate: Option<String>| {
            let trace = Trace::read(&full, &Columns { rate, ..Columns::default() });
            trace.map(|trace| trace.duration().as_secs_f64())
        };
        let by_column = || {
            let column = Some(DOWNLINK_COLUMN.to_owned());
            read(column.clone()).map(|seconds| (seconds, column))
        };
        // Where the rate's column has to be named, it may be one that is known.
        let (seconds, rate_column) = match read(None) {
            Ok(seconds) => (seconds, None),
            Err(error) => by_column().map_err(|_| error)?,
        };
        let group = file.parent().and_then(|parent| parent.iter().next());
        let group = group.map_or_else(String::new, |group| group.to_string_lossy().into_owned());
        Ok(RecordedTrace { group, file: full, seconds, rate_column })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, text) in files {
            let file = folder.path().join(name);
            fs::create_dir_all(file.parent().expect("a folder")).expect("made");
            fs::write(file, text).expect("written");
        }
        folder
    }

    #[test]
    fn traces_are_found_in_all_folders_and_tell_their_durations() {
        let folder = folder(&[
            ("b/deep/er.log", "0 1\n70.5 1\n"),
            ("a/of 5G.csv", "Timestamp,DL_bitrate_kbps,UL_bitrate_kbps\n0,5,1\n9,5,1\n"),
            ("a/noise.txt", "no trace at all\n"),
            ("README.md", "0 1\n3 1\n"),
            ("top", "10\n2000\n"),
        ]);
        let traces = find(folder.path()).expect("traces");
        let found: Vec<_> = traces.iter().map(|it| (it.group.as_str(), it.seconds)).collect();
        assert_eq!(found, [("a", 9.0), ("b", 70.5), ("", 2.0)]);
        assert_eq!(traces[0].rate_column.as_deref(), Some(DOWNLINK_COLUMN));
    }

    #[test]
    fn an_index_selects_and_orders_them() {
        let folder = folder(&[
            ("a/1", "0 1\n1 1\n"),
            ("a/2", "0 1\n2 1\n"),
            ("b/3", "0 1\n3 1\n"),
            (INDEX, "file,licence\nb/3,\"free, of course\"\na/1,free\n"),
        ]);
        let seconds = |folder: &Path| -> Vec<f64> {
            find(folder).expect("traces").iter().map(|trace| trace.seconds).collect()
        };
        assert_eq!(seconds(folder.path()), [3.0, 1.0]);
        fs::write(folder.path().join(INDEX), "file\na/9\n").expect("written");
        let error = format!("{:#}", find(folder.path()).expect_err("missing"));
        assert!(error.contains("a/9"), "{error}");
        fs::write(folder.path().join(INDEX), "name\na/1\n").expect("written");
        let error = format!("{:#}", find(folder.path()).expect_err("no such column"));
        assert!(error.contains("file"), "{error}");
    }

    #[test]
    fn a_folder_without_traces_is_named() {
        let folder = folder(&[]);
        let error = find(folder.path()).expect_err("empty").to_string();
        assert!(error.contains("no trace is there"), "{error}");
    }
}
