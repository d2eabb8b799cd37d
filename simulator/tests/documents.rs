//! What the pages say is held against what was measured: figures, model cards, links and the
//! README's length.
//!
//! A figure in a page is followed by a comment that no reader sees and that names its source:
//!
//! ```text
//! right on 95.3%<!--photos:full_top1--> of them          models/figures/photos.json
//! at least 95%<!--photos:full_top1.target-->             the same entry's target
//! 93.0%<!--photos:s16/w100/c16/b4.accuracy-->            the bundle's manifest
//! 92.3%<!--photos:image/webp/192/q20.accuracy-->         the bundle's record of outcomes
//! ```
//!
//! The number has to be the source's at the digits that are shown. `%` and `points` show a ratio
//! times 100, `kB`, `MB` and `MMAC` are decimal. `models/figures/update.py` writes the files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use sha2::{Digest, Sha256};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All pages, with their paths from the repository's root. Folders of builds hold none.
fn pages() -> Vec<(PathBuf, String)> {
    fn collect(folder: &Path, pages: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.is_dir() {
                if !name.starts_with('.') && !["target", "build", "shared"].contains(&&*name) {
                    collect(&path, pages);
                }
            } else if name.ends_with(".md") {
                pages.push(path);
            }
        }
    }
    let mut paths = Vec::new();
    collect(&root(), &mut paths);
    paths.sort();
    let of_root = |path: PathBuf| {
        let text = read(&path);
        (path.strip_prefix(root()).expect("below the root").to_owned(), text)
    };
    paths.into_iter().map(of_root).collect()
}

/// A number as a page shows it.
#[derive(Debug, PartialEq)]
struct Shown<'a> {
    value: f64,
    decimals: usize,
    unit: &'a str,
}

/// Units that change the scale of a number, and those that only end it.
const UNITS: [&str; 14] = [
    "%", "points", "point", "kB", "MB", "MMAC", "ms", "µs", "s", "bytes", "B", "frames", "times",
    "×",
];

impl<'a> Shown<'a> {
    /// The number at the end of `text`.
    fn before(text: &'a str) -> Option<Shown<'a>> {
        let text = text.trim_end_matches('*');
        let unit = UNITS.into_iter().find(|unit| text.ends_with(unit)).unwrap_or("");
        let text = text[..text.len() - unit.len()].trim_end();
        let is_of_number = |c: char| c.is_ascii_digit() || c == '.' || c == ',';
        let start = text
            .rfind(|c| !is_of_number(c))
            .map_or(0, |at| at + text[at..].chars().next().map_or(0, char::len_utf8));
        let digits = text[start..].replace(',', "");
        let size: f64 = digits.parse().ok()?;
        let is_negative = text[..start].ends_with(['-', '−']);
        Some(Shown {
            value: if is_negative { -size } else { size },
            decimals: digits.split_once('.').map_or(0, |(_, decimals)| decimals.len()),
            unit,
        })
    }

    /// Whether it is `figure` at the digits shown.
    fn is_of(&self, figure: &Figure) -> bool {
        let is_ratio = !["%", "points"].contains(&&*figure.unit);
        let scale = match self.unit {
            "%" | "points" | "point" if is_ratio => 100.0,
            "kB" => 1e-3,
            "MB" | "MMAC" => 1e-6,
            _ => 1.0,
        };
        let half = 0.5 * 10f64.powi(-i32::try_from(self.decimals).expect("few digits"));
        (figure.value * scale - self.value).abs() <= half * (1.0 + 1e-9)
    }
}

struct Figure {
    value: f64,
    unit: String,
}

/// A comment that names the source of the number before it.
struct Marker<'a> {
    line: usize,
    before: &'a str,
    bundle: &'a str,
    name: &'a str,
}

/// Comments of one word with a colon in it; all others are remarks.
fn markers(page: &str) -> Vec<Marker<'_>> {
    let mut found = Vec::new();
    for (number, line) in page.lines().enumerate() {
        let mut from = 0;
        while let Some(start) = line[from..].find("<!--").map(|at| from + at) {
            let Some(length) = line[start..].find("-->") else { break };
            let source = &line[start + 4..start + length];
            if let Some((bundle, name)) = source.split_once(':')
                && !source.contains(char::is_whitespace)
            {
                found.push(Marker { line: number + 1, before: &line[from..start], bundle, name });
            }
            from = start + length + 3;
        }
    }
    found
}

/// All that is known of one bundle: measured figures, its manifest and its record of outcomes.
struct Known {
    file: Value,
    manifest: toml::Table,
    digest: String,
    /// Of each recorded point, pictures answered rightly and mean bytes.
    record: BTreeMap<String, (f64, f64)>,
}

impl Known {
    fn of(file: &Path) -> Known {
        let name = file.file_stem().expect("a name");
        let bundle = root().join("models/bundles").join(name);
        let manifest = read(&bundle.join("manifest.toml"));
        let digest = Sha256::digest(&manifest).iter().map(|byte| format!("{byte:02x}")).collect();
        Known {
            file: serde_json::from_str(&read(file)).expect("JSON"),
            manifest: manifest.parse().expect("TOML"),
            digest,
            record: recorded(&bundle.join("outcomes.csv.zst")),
        }
    }

    fn all() -> BTreeMap<String, Known> {
        let folder = fs::read_dir(root().join("models/figures")).expect("figures");
        let paths = folder.map(|entry| entry.expect("an entry").path());
        let files = paths.filter(|path| path.extension().is_some_and(|end| end == "json"));
        let name = |path: &Path| path.file_stem().expect("a name").to_string_lossy().into_owned();
        files.map(|path| (name(&path), Known::of(&path))).collect()
    }

    fn find(&self, name: &str) -> Option<Figure> {
        let figures = &self.file["figures"];
        if let Some(entry) = figures.get(name) {
            return Figure::of(entry, "value");
        }
        if let Some(name) = name.strip_suffix(".target") {
            return Figure::of(figures.get(name)?, "target");
        }
        let (subject, quantity) = name.rsplit_once('.')?;
        let value = self.of_manifest(subject, quantity).or_else(|| {
            let (accuracy, bytes) = self.record.get(subject.trim_start_matches("record/"))?;
            match quantity {
                "accuracy" => Some(*accuracy),
                "bytes" => Some(*bytes),
                _ => None,
            }
        })?;
        Some(Figure { value, unit: String::new() })
    }

    fn of_manifest(&self, subject: &str, quantity: &str) -> Option<f64> {
        if subject == "full" {
            return number(&self.manifest["full"], quantity);
        }
        let names: Vec<&str> = subject.split('/').collect();
        match names[..] {
            [split, width] => number(self.width(split, width)?, quantity),
            [split, width, channels, bits] => {
                let of_point = |point: &&toml::Value| {
                    point["split"].as_str() == Some(split)
                        && point["width"].as_str() == Some(width)
                        && channels == format!("c{}", point["channels"])
                        && bits == format!("b{}", point["bits"])
                };
                let point = self.manifest["points"].as_array()?.iter().find(of_point)?;
                let key = match quantity {
                    "bytes" => "bytes_mean",
                    "p50" => "bytes_p50",
                    "p99" => "bytes_p99",
                    quantity => quantity,
                };
                number(point, key)
            }
            _ => None,
        }
    }

    fn width(&self, split: &str, width: &str) -> Option<&toml::Value> {
        let named = |name: &str| {
            let name = name.to_owned();
            move |value: &&toml::Value| value["name"].as_str() == Some(&name)
        };
        let split = self.manifest["splits"].as_array()?.iter().find(named(split))?;
        split["widths"].as_array()?.iter().find(named(width))
    }
}

impl Figure {
    fn of(entry: &Value, key: &str) -> Option<Figure> {
        let unit = entry["unit"].as_str().unwrap_or_default().to_owned();
        Some(Figure { value: entry[key].as_f64()?, unit })
    }
}

/// A number of the manifest; `mmac` is one of MACs in millions.
fn number(table: &toml::Value, key: &str) -> Option<f64> {
    if key == "mmac" {
        return number(table, "head_macs").or_else(|| number(table, "macs")).map(|macs| macs / 1e6);
    }
    let value = table.get(key)?;
    value.as_float().or_else(|| value.as_integer().map(|integer| integer as f64))
}

fn recorded(file: &Path) -> BTreeMap<String, (f64, f64)> {
    let packed = fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let text = String::from_utf8(zstd::decode_all(&*packed).expect("zstd")).expect("text");
    let mut sums: BTreeMap<String, (f64, f64, f64)> = BTreeMap::new();
    for line in text.lines().skip(1) {
        let cells: Vec<&str> = line.split(',').collect();
        let sum = sums.entry(cells[2].to_owned()).or_default();
        sum.0 += 1.0;
        sum.1 += cells[4].parse::<f64>().expect("0 or 1");
        sum.2 += cells[3].parse::<f64>().expect("bytes");
    }
    sums.into_iter().map(|(point, (n, right, bytes))| (point, (right / n, bytes / n))).collect()
}

/// What is wrong with the marked numbers of a page.
fn faults(page: &str, known: &BTreeMap<String, Known>) -> Vec<String> {
    let fault = |marker: &Marker<'_>| {
        let Some(bundle) = known.get(marker.bundle) else {
            return Some(format!("models/figures has no {}.json", marker.bundle));
        };
        let Some(figure) = bundle.find(marker.name) else {
            return Some(format!("unknown figure {}:{}", marker.bundle, marker.name));
        };
        match Shown::before(marker.before) {
            None => Some(format!("no number before {}:{}", marker.bundle, marker.name)),
            Some(shown) if shown.is_of(&figure) => None,
            Some(shown) => Some(format!(
                "{}{} is not {}:{}, which is {}",
                shown.value, shown.unit, marker.bundle, marker.name, figure.value
            )),
        }
    };
    let in_line = |marker: Marker<'_>| Some(format!("line {}: {}", marker.line, fault(&marker)?));
    markers(page).into_iter().filter_map(in_line).collect()
}

#[test]
fn quoted_figures_are_the_measured_ones() {
    let known = Known::all();
    let mut wrong = Vec::new();
    let mut marked = 0;
    for (path, page) in pages() {
        marked += markers(&page).len();
        let faults = faults(&page, &known);
        wrong.extend(faults.into_iter().map(|fault| format!("{}: {fault}", path.display())));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
    assert!(marked > 50, "only {marked} figures are marked: is the form of markers still known?");
}

#[test]
fn figures_are_of_the_bundles_that_are_here() {
    for (name, known) in Known::all() {
        let bundle = &known.file["bundle"];
        let version = known.manifest["version"].as_str();
        assert_eq!(bundle["name"].as_str(), Some(&*name));
        assert_eq!(bundle["version"].as_str(), version, "measure {name}'s figures anew");
        assert_eq!(
            bundle["digest"].as_str(),
            Some(&*known.digest),
            "measure {name}'s figures anew"
        );
        for (figure, entry) in known.file["figures"].as_object().expect("figures") {
            let text = |key: &str| entry[key].as_str().filter(|text| !text.is_empty());
            assert!(entry["value"].is_f64() || entry["value"].is_u64(), "{name}: {figure}");
            assert!(text("command").is_some(), "{name}: {figure} has no command");
            let when = text("measured");
            assert!(when.is_some(), "{name}: {figure} does not say when and with what");
        }
    }
}

/// What virtual time gives does not hang on the machine: it is measured again here.
#[test]
fn figures_of_scenarios_are_what_the_simulator_prints() {
    let mut results: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for (name, known) in Known::all() {
        for (figure, entry) in known.file["figures"].as_object().expect("figures") {
            let (Some(controller), Some(field)) =
                (entry["controller"].as_str(), entry["field"].as_str())
            else {
                continue;
            };
            let command = entry["command"].as_str().expect("a command");
            let lines = results.entry(command.to_owned()).or_insert_with(|| simulate(command));
            let line = lines.iter().find(|line| line["controller"].as_str() == Some(controller));
            let line = line.unwrap_or_else(|| panic!("{command} does not print {controller}"));
            let (now, then) = (line[field].as_f64(), entry["value"].as_f64());
            let difference = now.expect("a number") - then.expect("a number");
            assert!(difference.abs() <= 1e-6, "{name}: {figure} was {then:?} and is {now:?}");
        }
    }
    assert!(!results.is_empty());
}

fn simulate(command: &str) -> Vec<Value> {
    let mut words = command.split_whitespace();
    assert_eq!(words.next(), Some("simulator"), "{command}");
    let mut program = Command::new(env!("CARGO_BIN_EXE_simulator"));
    let output = program.args(words).current_dir(root()).output().expect("it starts");
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

/// The tables of a page: of each its header and its rows, in cells without markup or markers.
fn tables(page: &str) -> Vec<(Vec<String>, Vec<Vec<String>>)> {
    let cells = |line: &str| -> Vec<String> {
        let inside = line.trim().trim_matches('|');
        inside.split('|').map(|cell| cell.trim().replace(['`', '*'], "")).collect()
    };
    let mut tables = Vec::new();
    let mut lines = page.lines().peekable();
    while let Some(line) = lines.next() {
        if line.starts_with('|') && lines.peek().is_some_and(|next| next.starts_with("|-")) {
            lines.next();
            let mut rows = Vec::new();
            while let Some(row) = lines.next_if(|line| line.starts_with('|')) {
                rows.push(cells(row));
            }
            tables.push((cells(line), rows));
        }
    }
    tables
}

/// Columns of a model card's tables: heading, quantity, and what it is multiplied by.
type Columns<const N: usize> = [(&'static str, &'static str, f64); N];
const OF_PICTURES: Columns<2> = [("mean bytes", "bytes", 1.0), ("top-1 %", "accuracy", 100.0)];
const OF_WIDTHS: Columns<3> = [
    ("head MMAC", "mmac", 1.0),
    ("head parameters", "head_parameters", 1.0),
    ("exit top-1 %", "exit_accuracy", 100.0),
];
const OF_POINTS: Columns<4> = [
    ("top-1 %", "accuracy", 100.0),
    ("mean bytes", "bytes", 1.0),
    ("p50", "p50", 1.0),
    ("p99", "p99", 1.0),
];

#[test]
fn model_cards_list_what_their_bundles_say() {
    for (name, known) in Known::all() {
        let page = read(&root().join("models/bundles").join(&name).join("MODEL_CARD.md"));
        let version = known.manifest["version"].as_str().expect("a version");
        assert!(page.starts_with(&format!("# {name} {version}\n")), "{name}'s card: heading");
        let mut points = 0;
        for (header, rows) in tables(&page) {
            for row in &rows {
                let cell = |title: &str| {
                    header.iter().position(|cell| cell == title).map(|column| &*row[column])
                };
                let (subject, checks): (String, &[(&str, &str, f64)]) = match header.len() {
                    3 => (format!("image/{}", row[0]), &OF_PICTURES),
                    5 => (row[..2].join("/"), &OF_WIDTHS),
                    _ => {
                        points += 1;
                        (format!("{}/{}/c{}/b{}", row[0], row[1], row[2], row[3]), &OF_POINTS)
                    }
                };
                for (title, quantity, scale) in checks {
                    let told = cell(title).unwrap_or_else(|| panic!("{name}: no {title:?}"));
                    let shown = Shown::before(told).expect("a number");
                    let figure = known.find(&format!("{subject}.{quantity}"));
                    let mut figure = figure.unwrap_or_else(|| panic!("{name}: {subject} unknown"));
                    figure.value *= scale;
                    assert!(shown.is_of(&figure), "{name}: {subject} {title}: {told}");
                }
            }
        }
        assert_eq!(points, known.manifest["points"].as_array().expect("points").len(), "{name}");
    }
}

/// A page without its blocks of code.
fn prose(page: &str) -> String {
    let mut is_code = false;
    let kept = page.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence
    });
    kept.collect::<Vec<_>>().join("\n")
}

#[test]
fn the_plot_is_of_the_bundle_that_is_here() {
    let known = Known::all();
    let version = known["photos"].manifest["version"].as_str().expect("a version");
    let plot = read(&root().join("docs/img/rate-accuracy.svg"));
    assert!(
        plot.contains(&format!("bundle photos {version}")),
        "run docs/img/make.sh rate-accuracy"
    );
}

#[test]
fn links_lead_to_files_that_are_there() {
    let mut broken = Vec::new();
    for (path, page) in pages() {
        let page = prose(&page);
        let links = page.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        let pictures = page.split("src=\"").skip(1).filter_map(|rest| rest.split('"').next());
        let pictures = pictures
            .chain(page.split("srcset=\"").skip(1).filter_map(|rest| rest.split('"').next()));
        for link in links.chain(pictures) {
            let file = link.split('#').next().unwrap_or_default();
            let is_elsewhere = link.contains("://") || file.is_empty();
            let target = root().join(path.parent().unwrap_or(Path::new(""))).join(file);
            if !is_elsewhere && !target.exists() {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

#[test]
fn the_first_page_is_short() {
    let page = read(&root().join("README.md"));
    assert!(page.lines().count() <= 150, "{} lines", page.lines().count());
    for paragraph in prose(&page).split("\n\n") {
        let is_list =
            |line: &&str| line.starts_with(|c: char| c == '|' || c == '-' || c.is_numeric());
        let words: usize = paragraph
            .lines()
            .filter(|line| !is_list(line))
            .map(|line| line.split_whitespace().count())
            .sum();
        assert!(words <= 60, "{words} words: {paragraph}");
    }
}

#[test]
fn numbers_are_read_as_pages_write_them() {
    let shown = |text| Shown::before(text).expect("a number");
    assert_eq!(shown("right on **95.3%**"), Shown { value: 95.3, decimals: 1, unit: "%" });
    assert_eq!(shown("| 1,831"), Shown { value: 1831.0, decimals: 0, unit: "" });
    assert_eq!(shown("≤ 0.26 ms"), Shown { value: 0.26, decimals: 2, unit: "ms" });
    assert_eq!(shown("−90.4%"), Shown { value: -90.4, decimals: 1, unit: "%" });
    assert_eq!(Shown::before("nothing at all"), None);
}

#[test]
fn a_wrong_an_unknown_and_a_missing_number_are_found() {
    let manifest = "[full]\naccuracy = 0.95\n[[points]]\nsplit = 's16'\nwidth = 'w100'\nchannels = 16\nbits = 4\nbytes_mean = 546.4\n";
    let file = r#"{"figures": {"full_top1": {"value": 0.9530, "unit": "ratio", "target": 0.95},
        "bd_rate": {"value": -90.4, "unit": "%"}}}"#;
    let known = Known {
        file: serde_json::from_str(file).expect("JSON"),
        manifest: manifest.parse().expect("TOML"),
        digest: String::new(),
        record: BTreeMap::from([("image/webp/192/q20".to_owned(), (0.9225, 2228.6))]),
    };
    let known = BTreeMap::from([("made".to_owned(), known)]);
    for right in [
        "95%<!--made:full_top1--> and 95.3%<!--made:full_top1--> of 95%<!--made:full_top1.target-->",
        "546 B<!--made:s16/w100/c16/b4.bytes-->, 95.0%<!--made:full.accuracy-->",
        "| 92.25%<!--made:image/webp/192/q20.accuracy--> | **2,229**<!--made:image/webp/192/q20.bytes-->",
        "−90.4%<!--made:bd_rate--> <!-- a remark: of no figure -->",
    ] {
        assert_eq!(faults(right, &known), Vec::<String>::new(), "{right}");
    }
    for (wrong, why) in [
        ("95.4%<!--made:full_top1-->", "is not made:full_top1"),
        ("96%<!--made:full_top1.target-->", "is not made:full_top1.target"),
        ("90.4%<!--made:bd_rate-->", "is not"),
        ("546 kB<!--made:s16/w100/c16/b4.bytes-->", "is not"),
        ("95%<!--made:full_top2-->", "unknown figure"),
        ("95%<!--other:full_top1-->", "models/figures has no other.json"),
        ("much<!--made:full_top1-->", "no number"),
    ] {
        let faults = faults(wrong, &known);
        assert!(faults.len() == 1 && faults[0].contains(why), "{wrong}: {faults:?}");
    }
}
