//! Bundles that were cut short, altered or badly made: each is refused in words that name the
//! file, before anything of it is used.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use isthmus_fixtures::{file_entry, write_bundle};
use isthmus_models::{Bundle, MANIFEST, PointError};
use isthmus_proto::{BundleDigest, OperatingPoint};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

/// A bundle that opens; its graphs are no ONNX, which opening does not look at.
struct Maker {
    manifest: String,
    files: BTreeMap<&'static str, Vec<u8>>,
}

const MANIFEST_TOP: &str = r#"
format = 2
name = "tiny"
version = "0.1.0"

[input]
width = 8
height = 8
mean = [0.5, 0.5, 0.5]
std = [0.5, 0.5, 0.5]

[full]
file = "onnx/full.onnx"
macs = 1
parameters = 1
quality = 1

[[splits]]
name = "s8"
latent = [2, 1, 1]
channels = [1, 2]
features = [[4, 1, 1]]

[[splits.widths]]
name = "w100"
head = "onnx/head.onnx"
adapter = "onnx/adapter.onnx"
head_macs = 1
head_parameters = 1
exit_parameters = 1
exit_quality = 0.5

[[splits.widths.quantisers]]
bits = 1
scale = [1.0, 1.0]
zero_point = [0, 1]
prior_mean = [0.0, 0.0]
tables = "tables/b1.cdf"

[[decoders]]
name = "class"
task = "classification"
labels = ["no", "yes"]
trunk = { s8 = "onnx/trunk.onnx" }
outputs = [{ name = "logits", shape = [2], dtype = "f32" }]

[[points]]
split = "s8"
width = "w100"
channels = 1
bits = 1
quality = 0.75
bytes_mean = 1.5
bytes_p50 = 1
bytes_p99 = 2
"#;

impl Maker {
    fn new() -> Maker {
        let graphs = ["onnx/full.onnx", "onnx/trunk.onnx", "onnx/head.onnx", "onnx/adapter.onnx"];
        let mut files: BTreeMap<&str, Vec<u8>> =
            graphs.into_iter().map(|file| (file, file.as_bytes().to_vec())).collect();
        files.insert("tables/b1.cdf", table([32768; 4]));
        Maker { manifest: MANIFEST_TOP.to_owned(), files }
    }

    /// Replaces part of the manifest.
    fn with(mut self, old: &str, new: &str) -> Maker {
        assert_eq!(self.manifest.matches(old).count(), 1, "{old:?} is there once");
        self.manifest = self.manifest.replace(old, new);
        self
    }

    /// Writes the bundle; `[files]` follows the files as they are now.
    fn write(&self) -> TempDir {
        let dir = TempDir::new().expect("temporary folder");
        let files = self.files.iter().map(|(&name, bytes)| (name, &bytes[..]));
        write_bundle(dir.path(), &self.manifest, files);
        dir
    }
}

fn table(frequencies: [u16; 4]) -> Vec<u8> {
    frequencies.iter().flat_map(|frequency| frequency.to_le_bytes()).collect()
}

/// Why the bundle in `dir` is refused; the message must begin with the path of `file`.
fn refusal(dir: &TempDir, file: &str) -> String {
    let error = Bundle::open(dir.path()).expect_err("a bad bundle").to_string();
    let path: PathBuf = dir.path().join(file);
    let said = error.strip_prefix(&format!("{}: ", path.display()));
    said.unwrap_or_else(|| panic!("{file} is not named first in: {error}")).to_owned()
}

#[track_caller]
fn assert_says(said: &str, parts: &[&str]) {
    for part in parts {
        assert!(said.contains(part), "{part:?} is missing in: {said}");
    }
}

/// What is said of a manifest with `new` in the place of `old`.
fn refusal_of(old: &str, new: &str) -> String {
    refusal(&Maker::new().with(old, new).write(), MANIFEST)
}

#[test]
fn a_good_bundle_opens() {
    let dir = Maker::new().write();
    let bundle = Bundle::open(dir.path()).expect("good");
    let digest = Sha256::digest(fs::read(dir.path().join(MANIFEST)).expect("manifest"));
    assert_eq!(bundle.digest(), BundleDigest(digest.into()));
    assert_eq!(bundle.labels(), ["no", "yes"]);
    assert_eq!(bundle.read("onnx/head.onnx").expect("listed"), b"onnx/head.onnx");
    assert_eq!(bundle.codec(0, 0, 1).expect("codec").shape().channels, [1, 2]);
    assert!(bundle.codec(0, 0, 2).is_none());
}

#[test]
fn points_have_names() {
    let bundle = Bundle::open(Maker::new().write().path()).expect("good");
    let point = OperatingPoint { split: 0, width: 0, layers: 2, bits: 1 };
    assert_eq!(bundle.parse_point("s8/w100/c2/b1"), Ok(point));
    assert_eq!(bundle.describe_point(point).to_string(), "s8/w100/c2/b1");
    assert_eq!(bundle.all_points(), [OperatingPoint { layers: 1, ..point }, point]);
    assert!(bundle.has_point(&point));
    assert_eq!(bundle.points()[0].point, OperatingPoint { layers: 1, ..point });
    assert_eq!(bundle.default_point(), bundle.points()[0].point);

    let form = bundle.parse_point("s8/w100").expect_err("half a point");
    assert_says(&form.to_string(), &["\"s8/w100\"", "\"s8/w100/c1/b1\""]);
    for (text, part) in [
        ("s4/w100/c1/b1", "split s4; expected s8"),
        ("s8/w50/c1/b1", "width w50; expected w100"),
        ("s8/w100/c3/b1", "channel count 3; expected 1, 2"),
        ("s8/w100/c1/b2", "bit depth 2; expected 1"),
    ] {
        let error = bundle.parse_point(text).expect_err(text);
        assert!(matches!(error, PointError::Unknown { .. }));
        assert_says(&error.to_string(), &[text, part]);
    }
    for unknown in [
        OperatingPoint { layers: 3, ..point },
        OperatingPoint { layers: 0, ..point },
        OperatingPoint { bits: 2, ..point },
        OperatingPoint { split: 1, ..point },
        OperatingPoint { width: 255, ..point },
    ] {
        assert!(!bundle.has_point(&unknown), "{unknown}");
        bundle.describe_point(unknown);
    }
}

#[test]
fn a_missing_file_is_named() {
    let dir = Maker::new().write();
    fs::remove_file(dir.path().join("onnx/trunk.onnx")).expect("removed");
    refusal(&dir, "onnx/trunk.onnx");

    fs::create_dir(dir.path().join("onnx/trunk.onnx")).expect("folder");
    refusal(&dir, "onnx/trunk.onnx");

    refusal(&TempDir::new().expect("empty folder"), MANIFEST);
}

#[test]
fn an_altered_byte_is_named() {
    for (file, bytes) in Maker::new().files {
        let dir = Maker::new().write();
        let mut altered = bytes.clone();
        altered[0] ^= 1;
        fs::write(dir.path().join(file), altered).expect("written");
        assert_says(&refusal(&dir, file), &["altered", "SHA-256"]);

        fs::write(dir.path().join(file), &bytes[1..]).expect("written");
        assert_says(&refusal(&dir, file), &[&format!("{} bytes", bytes.len() - 1)]);
    }
}

#[test]
fn a_file_altered_after_opening_is_not_read() {
    let dir = Maker::new().write();
    let bundle = Bundle::open(dir.path()).expect("good");
    fs::write(dir.path().join("onnx/head.onnx"), "onnx/HEAD.onnx").expect("written");
    let error = bundle.read("onnx/head.onnx").expect_err("altered").to_string();
    assert_says(&error, &["head.onnx", "altered"]);
    let error = bundle.read("MODEL_CARD.md").expect_err("unlisted").to_string();
    assert_says(&error, &["MODEL_CARD.md", "not listed"]);
}

#[test]
fn a_truncated_manifest_never_opens() {
    let dir = Maker::new().write();
    let path = dir.path().join(MANIFEST);
    let whole = fs::read(&path).expect("manifest");
    // The last byte is a line's end, without which the manifest is still whole.
    for length in (0..whole.len() - 1).step_by(7) {
        fs::write(&path, &whole[..length]).expect("written");
        refusal(&dir, MANIFEST);
    }
    fs::write(&path, [0xff, 0xfe]).expect("written");
    refusal(&dir, MANIFEST);
}

#[test]
fn unknown_keys_are_named() {
    assert_says(&refusal_of("task =", "taks = 1\ntask ="), &["taks", "line"]);
    assert_says(&refusal_of("format = 2", "format = 2\nlabels = []"), &["labels"]);
    assert_says(&refusal_of("head_macs", "head_flops"), &["head_flops"]);
    assert_says(&refusal_of("bytes_p50", "bytes_p55"), &["bytes_p55"]);
}

#[test]
fn other_formats_are_refused_before_their_keys() {
    let said = refusal_of("format = 2", "format = 3\nunheard_of = true");
    assert_says(&said, &["format", "3", "only 1 and 2"]);
    assert_says(&refusal_of("format = 2", "format = \"2\""), &["format"]);
    assert_says(&refusal_of("format = 2", ""), &["format"]);
}

#[test]
fn format_1_is_read_as_a_network_that_classifies() {
    let mut maker = Maker::new();
    let old = [
        ("format = 2", "format = 1\ntask = \"classification\"\nlabels = [\"no\", \"yes\"]"),
        ("quality = 1", "accuracy = 1"),
        ("features = [[4, 1, 1]]", "features = [4, 1, 1]\ntrunk = \"onnx/trunk.onnx\""),
        ("exit_quality", "exit_accuracy"),
        ("quality = 0.75", "accuracy = 0.75"),
    ];
    let new = Bundle::open(maker.write().path()).expect("format 2");
    let decoders = maker.manifest.find("[[decoders]]").expect("decoders");
    let points = maker.manifest.find("[[points]]").expect("points");
    maker.manifest.replace_range(decoders..points, "");
    for (new, old) in old {
        assert!(maker.manifest.contains(new), "{new}");
        maker.manifest = maker.manifest.replacen(new, old, 1);
    }
    let dir = maker.write();
    let bundle = Bundle::open(dir.path()).expect("format 1");
    let (old, new) = (bundle.manifest(), new.manifest());
    assert_eq!((&old.decoders, &old.splits, &old.full), (&new.decoders, &new.splits, &new.full));
    maker.manifest = maker.manifest.replace("\"classification\"", "\"detection\"");
    assert_says(
        &refusal(&maker.write(), MANIFEST),
        &["task: \"detection\" is not a task of format 1"],
    );
}

#[test]
fn values_that_cannot_be_meant_are_named() {
    for (old, new, key) in [
        ("name = \"tiny\"", "name = \"../tiny\"", "name: "),
        ("\"classification\"", "\"segmentation\"", "decoders[0].outputs[0].shape: "),
        ("\"classification\"", "\"regression\"", "decoders[0].labels: "),
        ("\"classification\"", "\"haiku\"", "haiku"),
        ("\"no\", \"yes\"", "", "decoders[0].labels: "),
        ("\"no\", \"yes\"", "\"no\", \"no\"", "decoders[0].labels: \"no\""),
        (
            "shape = [2]",
            "shape = [3]",
            "decoders[0].outputs[0].shape: must be [2], one value a label",
        ),
        ("shape = [2]", "shape = [0]", "decoders[0].outputs[0].shape: "),
        ("dtype = \"f32\"", "dtype = \"f16\"", "decoders[0].outputs[0].dtype: "),
        ("{ s8 = ", "{ s9 = ", "decoders[0].trunk: names no file for split \"s8\""),
        ("\"onnx/trunk.onnx\" }", "\"onnx/trunk.onnx\", s9 = \"x\" }", "there is no split \"s9\""),
        ("[input]", "[input]\nfit = \"squeeze\"", "squeeze"),
        ("width = 8", "width = 0", "input.width: "),
        ("height = 8", "height = 100000", "input.height: "),
        ("std = [0.5, 0.5", "std = [0.5, 0.0", "input.std: "),
        ("mean = [0.5, 0.5", "mean = [0.5, nan", "input.mean: "),
        ("quality = 1\n", "quality = 92.1\n", "full.quality: "),
        ("latent = [2, 1, 1]", "latent = [3, 1, 1]", "splits[0].channels: "),
        ("latent = [2, 1, 1]", "latent = [2, 0, 1]", "splits[0].latent: "),
        ("features = [[4, 1, 1]]", "features = []", "splits[0].features: "),
        ("features = [[4, 1, 1]]", "features = [[4, 0]]", "splits[0].features[0]: "),
        ("features = [[4, 1, 1]]", "features = [[99999999, 99999999]]", "splits[0].features[0]: "),
        ("channels = [1, 2]", "channels = [2, 1]", "splits[0].channels: "),
        ("channels = [1, 2]", "channels = [0, 2]", "splits[0].channels: "),
        ("\"w100\"\nhead", "\"a/b\"\nhead", "splits[0].widths[0].name: "),
        ("exit_quality = 0.5", "exit_quality = -0.5", "splits[0].widths[0].exit_quality: "),
        ("exit_quality = 0.5", "exit_quality = 0.5\nexit = false", "splits[0].widths[0].exit: "),
        ("adapter = \"onnx/adapter.onnx\"\n", "", "splits[0].widths[0].adapter: "),
        ("scale = [1.0, 1.0]", "scale = [1.0]", "splits[0].widths[0].quantisers[0]: "),
        ("scale = [1.0, 1.0]", "scale = [1.0, -1.0]", "quantisers[0]: channel 1: scale"),
        ("zero_point = [0, 1]", "zero_point = [0, 2]", "quantisers[0]: channel 1: zero_point"),
        ("prior_mean = [0.0, 0.0]", "prior_mean = [inf, 0.0]", "channel 0: prior_mean"),
        ("bits = 1\nscale", "bits = 9\nscale", "bits"),
        ("split = \"s8\"", "split = \"s9\"", "points[0].split: "),
        ("width = \"w100\"", "width = \"w10\"", "points[0].width: "),
        ("channels = 1\n", "channels = 3\n", "points[0].channels: "),
        ("bits = 1\nquality", "bits = 2\nquality", "points[0].bits: "),
        ("quality = 0.75", "quality = nan", "points[0].quality: "),
        ("bytes_p99 = 2", "bytes_p99 = -2", "points[0].bytes_p99: "),
        ("macs = 1\nparameters", "macs = -1\nparameters", "macs"),
    ] {
        assert_says(&refusal_of(old, new), &[key]);
    }
}

#[test]
fn a_replaced_file_makes_another_bundle_of_the_same_network() {
    let dir = Maker::new().write();
    let before = Bundle::open(dir.path()).expect("good");
    let after = before.replace("onnx/full.onnx", b"another", "0.1.1").expect("listed");
    assert_ne!(after.digest(), before.digest());
    assert_eq!(after.manifest().version, "0.1.1");
    assert_eq!(after.read("onnx/full.onnx").expect("listed"), b"another");
    assert_eq!(after.points(), before.points());
    let files = fs::read_dir(dir.path().join("onnx")).expect("the folder").count();
    assert_eq!(files, 4, "nothing is left beside it");
    let error = after.replace("onnx/none.onnx", b"", "0.1.2").expect_err("unlisted").to_string();
    assert_says(&error, &["onnx/none.onnx", "not listed under [files]"]);
}

#[test]
fn tables_that_are_no_distribution_are_named() {
    for (frequencies, problem) in [
        ([32768, 32769, 32768, 32768], "channel 0: frequencies sum to 65537"),
        ([32768, 32768, 0, 32768], "channel 1: symbol 0 has frequency 0"),
    ] {
        let mut maker = Maker::new();
        maker.files.insert("tables/b1.cdf", table(frequencies));
        assert_says(&refusal(&maker.write(), "tables/b1.cdf"), &[problem]);
    }
    let mut maker = Maker::new();
    maker.files.insert("tables/b1.cdf", table([32768; 4])[..6].to_vec());
    assert_says(&refusal(&maker.write(), "tables/b1.cdf"), &["take 8 bytes, not 6"]);
}

#[test]
fn nothing_outside_the_bundle_is_read() {
    for path in
        ["../secret", "/etc/hostname", "onnx/../../secret", "a//b", "./a", "C:\\a", "a\\b", ""]
    {
        // Named by a key, and listed.
        let named = Maker::new().with("\"onnx/head.onnx\"", &format!("{path:?}"));
        assert_says(&refusal(&named.write(), MANIFEST), &["splits[0].widths[0].head: ", "inside"]);

        let dir = Maker::new().write();
        let mut manifest = fs::read_to_string(dir.path().join(MANIFEST)).expect("manifest");
        manifest += &file_entry(path, b"");
        fs::write(dir.path().join(MANIFEST), manifest).expect("written");
        assert_says(&refusal(&dir, MANIFEST), &["files.", "inside the bundle"]);
    }
}

#[test]
fn files_must_be_listed_and_bounded() {
    let mut maker = Maker::new();
    maker.files.remove("onnx/head.onnx");
    assert_says(&refusal(&maker.write(), MANIFEST), &["splits[0].widths[0].head", "[files]"]);

    let dir = Maker::new().write();
    let manifest = fs::read_to_string(dir.path().join(MANIFEST)).expect("manifest");
    let huge = manifest.replace("bytes = 8,", "bytes = 8000000000000,");
    assert_ne!(huge, manifest);
    fs::write(dir.path().join(MANIFEST), huge).expect("written");
    assert_says(&refusal(&dir, MANIFEST), &["tables/b1.cdf", "bytes", "at most"]);
}

#[cfg(feature = "tract")]
#[test]
fn a_graph_that_is_none_is_named() {
    use std::sync::Arc;
    let dir = Maker::new().write();
    let bundle = Arc::new(Bundle::open(dir.path()).expect("good"));
    let load = isthmus_models::Head::load(Arc::clone(&bundle), &isthmus_models::Tract);
    assert_says(&load.err().expect("no ONNX").to_string(), &["onnx/head.onnx"]);
    let load = isthmus_models::Tail::load(bundle, &isthmus_models::Tract);
    assert_says(&load.err().expect("no ONNX").to_string(), &["onnx/adapter.onnx"]);
}
