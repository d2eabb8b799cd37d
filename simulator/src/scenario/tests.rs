use std::fs;
use std::path::Path;

use super::*;
use crate::world::{DeviceSpec, synthetic};

pub(crate) const SMALL: &str = "description = 'x'\nrecord = 'record.csv.zst'\ndevice = 'device.toml'\n\
    link = 'lte-driving'\ncameras = 2\nframes_per_second = 10\ndeadline_ms = 150\nseconds = 20\n\
    seeds = [1, 2]\n[[controllers]]\nkind = 'fixed'\npoint = 's16/w100/c16/b6'\n\
    [[controllers]]\nkind = 'greedy'\n[[controllers]]\nkind = 'mpc'\n";

const DEVICE: &str = "description = 'x'\nsource = 'made up'\n\
    heads = { 's16/w50' = 10, 's16/w100' = 20 }\npreprocess_ms = 1\nencode_ms = 1\n\
    image_ms_per_megapixel = { jpeg = 100, webp = 400 }\np95_over_p50 = 1.1\n";

pub(crate) fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let packed = zstd::encode_all(synthetic::csv(600, 1).as_bytes(), 3).expect("memory");
    fs::write(folder.path().join("record.csv.zst"), packed).expect("written");
    fs::write(folder.path().join("device.toml"), DEVICE).expect("written");
    folder
}

pub(crate) fn prepare(folder: &Path, text: &str) -> Result<Prepared, ScenarioError> {
    let file = folder.join("scenario.toml");
    fs::write(&file, text).expect("written");
    Scenario::read(&file)?.prepare(&file)
}

#[test]
fn every_shipped_scenario_is_valid_but_for_its_bundle() {
    let scenarios = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/scenarios");
    let folder = folder();
    let mut count = 0;
    for entry in fs::read_dir(scenarios).expect("the folder") {
        let file = entry.expect("an entry").path();
        let mut scenario = Scenario::read(&file).expect("valid");
        let name = file.file_stem().and_then(|name| name.to_str()).expect("a name");
        assert!(BUILT_IN.iter().any(|(built_in, _)| *built_in == name), "{name} is not built in");
        // The bundle is trained elsewhere; a record and a device with named times stand in.
        (scenario.bundle, scenario.record) = (None, Some("record.csv.zst".into()));
        DeviceSpec::find(&scenario.device).expect("built in");
        scenario.device = "device.toml".into();
        let prepared = scenario.prepare(&folder.path().join("x.toml"));
        prepared.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        count += 1;
    }
    assert_eq!(count, BUILT_IN.len());
}

#[test]
fn the_same_scenario_gives_the_same_bytes_twenty_times() {
    let folder = folder();
    let run = || {
        let prepared = prepare(folder.path(), SMALL).expect("valid");
        let mut runs = 0;
        let lines = prepared.run(|_| runs += 1).expect("runs");
        assert_eq!(runs, prepared.runs());
        let json: Vec<String> =
            lines.iter().map(|line| serde_json::to_string(line).expect("plain")).collect();
        (table(&lines), csv(&lines), json)
    };
    let first = run();
    assert_eq!(first.1.lines().count(), 5, "four lines under a head: {}", first.1);
    (1..20).for_each(|_| assert_eq!(run(), first));
    let other = SMALL.replace("seeds = [1, 2]", "seeds = [1, 3]");
    let other = prepare(folder.path(), &other).expect("valid").run(|_| {}).expect("runs");
    assert_ne!(csv(&other), first.1);
}

#[test]
fn controllers_are_chosen_by_name_and_none_is_called_like_another() {
    let folder = folder();
    let twice = format!("{SMALL}[[controllers]]\nkind = 'mpc'\nhorizon = 2\n");
    let mut prepared = prepare(folder.path(), &twice).expect("valid");
    let names = |prepared: &Prepared| -> Vec<String> {
        prepared.controllers().iter().map(|it| it.name().to_owned()).collect()
    };
    let fixed = "fixed s16/w100/c16/b6";
    assert_eq!(names(&prepared), [fixed, "greedy", "mpc", "mpc (2)"]);
    let error = prepared.keep(&["best".into()]).expect_err("unknown").to_string();
    assert!(error.starts_with("unknown controller best; the scenario compares fixed "), "{error}");
    prepared.keep(&["fixed".into(), "mpc (2)".into()]).expect("known");
    assert_eq!(names(&prepared), [fixed, "mpc (2)"]);
}

#[test]
fn controllers_of_a_kind_are_numbered_by_their_whole_name() {
    let folder = folder();
    let spares = "objective = 'bytes'\nquality_floor = 0.5\n";
    let mpc = "[[controllers]]\nkind = 'mpc'\n";
    let head = &SMALL[..SMALL.find("[[controllers]]").expect("controllers")];
    let text = format!("{head}{mpc}{spares}{mpc}{mpc}{mpc}{spares}");
    let prepared = prepare(folder.path(), &text).expect("valid");
    let names: Vec<&str> = prepared.controllers().iter().map(NamedController::name).collect();
    assert_eq!(names, ["mpc bytes", "mpc", "mpc (2)", "mpc bytes (2)"]);
    assert!(prepared.controllers().iter().all(|it| it.role() == Role::Adaptive));
}

#[test]
fn durations_are_written_as_people_do() {
    let folder = folder();
    let text = SMALL.replace("seconds = 20", "duration = '20s'");
    let text = text.replace("deadline_ms = 150", "deadline = '150ms'");
    let scenario = |text: &str| Scenario::parse(text, folder.path()).expect("valid");
    assert_eq!(scenario(&text), scenario(SMALL));
}

#[test]
fn a_scenario_is_built_in_or_a_file() {
    assert!(Scenario::read(Path::new("one-camera")).is_ok());
    let error = Scenario::read(Path::new("one-camra")).expect_err("a typo").to_string();
    assert!(error.contains("unknown scenario one-camra") && error.contains("gateway"), "{error}");
    let error = Scenario::read(Path::new("none.toml")).expect_err("no file").to_string();
    assert!(error.starts_with("none.toml: "), "{error}");
}

#[test]
fn a_picture_is_sent_alone_or_with_an_exit_as_its_fallback() {
    let folder = folder();
    let point = "point = 's16/w100/c16/b6'";
    let names = |to: &str| -> Vec<String> {
        let prepared = prepare(folder.path(), &SMALL.replace(point, to)).expect("valid");
        prepared.controllers().iter().map(|it| it.name().to_owned()).collect()
    };
    assert_eq!(names("point = 'image/webp/160/q35'")[0], "fixed image/webp/160/q35");
    let guarded = names("point = 'image/webp/160/q35'\nexit = 's16/w50'");
    assert_eq!(guarded[0], "fixed image/webp/160/q35 or s16/w50/exit");
    let all = names("");
    assert!(all.iter().any(|name| name == "fixed s16/w50/exit"), "{all:?}");
    assert!(all.iter().any(|name| name.starts_with("fixed image/")), "{all:?}");
}

#[test]
fn a_value_that_cannot_be_used_is_named_with_its_file() {
    let folder = folder();
    for (from, to, expected) in [
        ("cameras = 2", "cameras = 0", "scenario.toml: cameras: 0 is not within"),
        ("cameras = 2", "camera = 2", "unknown field `camera`"),
        ("seconds = 20", "seconds = nan", "scenario.toml: seconds: NaN"),
        ("seconds = 20", "seconds = -1", "scenario.toml: seconds: -1"),
        ("deadline_ms = 150", "deadline_ms = 0", "scenario.toml: deadline_ms: 0"),
        ("frames_per_second = 10", "frames_per_second = 0", "frames_per_second: 0"),
        ("seeds = [1, 2]", "seeds = []", "scenario.toml: seeds: at least one"),
        ("c16/b6", "c17/b6", "controllers[0].point: s16/w100/c17/b6 was not recorded"),
        (
            "c16/b6'",
            "c16/b6'\nexit = 's16/w50'",
            "controllers[0].exit: is only valid when point is an image",
        ),
        ("s16/w100/c16/b6", "local", "controllers[0].point: local was not recorded"),
        (
            "s16/w100/c16/b6'",
            "image/webp/160/q35'\nexit = 's16/w1'",
            "controllers[0].exit: s16/w1 was not recorded; expected one of s16/w50, s16/w100",
        ),
        ("kind = 'mpc'", "kind = 'mpc'\ntarget_miss = 2", "controllers[2].target_miss: 2"),
        ("kind = 'mpc'", "kind = 'mpc'\nspeed = 2", "unknown field `speed`"),
        ("kind = 'greedy'", "kind = 'greedy'\nhorizon = 2", "controllers[1].horizon: says nothing"),
        ("kind = 'mpc'", "kind = 'mpc'\npoint = 'local'", "controllers[2].point: says nothing"),
        ("kind = 'mpc'", "kind = 'best'", "unknown variant `best`"),
        ("cameras = 2", "cameras = 2\nown_links = true", "scenario.toml: oracle: with own_links"),
        ("cameras = 2", "cameras = 2\ntransport = 'tcp'", "unknown variant `tcp`"),
        ("lte-driving", "lte-diving", "link: unknown link lte-diving"),
        ("device.toml", "pi4", "device: the device says nothing about head s16/w"),
        ("device.toml", "pi7", "device: unknown device pi7"),
        ("record.csv.zst", "none.csv.zst", "none.csv.zst: "),
        ("record.csv.zst", "device.toml", "device.toml: cannot be unpacked"),
        ("record = 'record.csv.zst'\n", "", "bundle: exactly one of bundle and record"),
        (
            "record = 'record.csv.zst'",
            "bundle = 'none'",
            "bundle: unknown bundle none; expected a bundle's folder or one of: photos, road, signs, street",
        ),
    ] {
        assert!(SMALL.contains(from), "{from}");
        let error = prepare(folder.path(), &SMALL.replace(from, to)).err().expect(to).to_string();
        assert!(error.contains(expected), "{to}: {error}");
    }
}
