//! Small data sets, good and bad.

use std::fs;

use tempfile::TempDir;

use super::*;

/// A folder with these files.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let dir = TempDir::new().expect("temporary folder");
    for (name, text) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("folder");
        fs::write(path, text).expect("file");
    }
    dir
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

const IMAGES: &str = r#"{"id": 7, "file_name": "a.jpg", "width": 100, "height": 50},
    {"id": 9, "file_name": "./more/b.jpg", "width": 20, "height": 20}"#;
const CATEGORIES: &str = r#"{"id": 3, "name": "Car"}, {"id": 1, "name": "motorbike"},
    {"id": 0, "name": "objects", "supercategory": "none"}"#;
const ANNOTATIONS: &str = r#"
    {"id": 1, "image_id": 7, "category_id": 1, "bbox": [10, 20.5, 30, 20], "iscrowd": 0},
    {"id": 2, "image_id": 7, "category_id": 3, "bbox": [-0.5, 0, 100, 50], "iscrowd": 1,
     "segmentation": {"counts": "abc", "size": [1, 2]}, "area": 9}"#;

fn coco(images: &str, categories: &str, annotations: &str) -> Result<(Truth, TempDir), TruthError> {
    let json = format!(
        r#"{{"images": [{images}], "categories": [{categories}], "annotations": [{annotations}],
            "info": {{"year": 2024}}}}"#
    );
    let dir = folder(&[("truth.json", &json), ("p/a.jpg", ""), ("p/more/b.jpg", "")]);
    let truth = Truth::coco(&dir.path().join("truth.json"), &dir.path().join("p"))?;
    Ok((truth, dir))
}

#[test]
fn cocos_boxes_are_found_by_their_pictures() {
    let (truth, dir) = coco(IMAGES, CATEGORIES, ANNOTATIONS).expect("good");
    let (first, second) = (dir.path().join("p/a.jpg"), dir.path().join("p/more/b.jpg"));
    assert_eq!(truth.names(), ["Car", "motorbike", "objects"]);
    assert_eq!(truth.pictures().collect::<Vec<_>>(), [&first, &second]);
    let boxes = truth.boxes(&first, 100, 50).expect("known");
    let small = TrueBox { class: 1, x0: 10.0, y0: 20.5, x1: 40.0, y1: 40.5, crowd: false };
    let crowd = TrueBox { class: 0, x0: -0.5, y0: 0.0, x1: 99.5, y1: 50.0, crowd: true };
    assert_eq!(boxes, [small, crowd]);
    assert_eq!(truth.boxes(&second, 20, 20).expect("known"), []);

    let turned = truth.boxes(&first, 50, 100).expect_err("another size").to_string();
    assert!(turned.ends_with("a.jpg: has 50 × 100 pixels, and its boxes are for 100 × 50"));
    let unknown = truth.boxes(Path::new("c.jpg"), 1, 1).expect_err("unknown").to_string();
    assert_eq!(unknown, "c.jpg: nothing is known of this picture");
}

#[test]
fn categories_take_the_labels_of_a_bundle() {
    let (truth, dir) = coco(IMAGES, CATEGORIES, ANNOTATIONS).expect("good");
    let labels = names(&["person", "motorcycle", "car"]);
    let renamed = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(from, to)| ((*from).to_owned(), (*to).to_owned())).collect()
    };
    let first = dir.path().join("p/a.jpg");
    let classes = |truth: &Truth| {
        let boxes = truth.boxes(&first, 100, 50).expect("known");
        boxes.iter().map(|truth| truth.class).collect::<Vec<_>>()
    };
    let both = truth.clone().with_labels(&labels, &renamed(&[("motorbike", "motorcycle")]));
    let both = both.expect("labels for all that have boxes");
    assert_eq!((both.names(), classes(&both)), (labels.as_slice(), vec![1, 2]));
    assert_eq!([0, 1, 2].map(|class| both.covers(class)), [false, true, true]);
    let one = truth.clone().with_labels(&labels, &renamed(&[("motorbike", "")]));
    let one = one.expect("left out");
    assert_eq!((classes(&one), one.covers(1)), (vec![2], false));

    for (pairs, said) in [
        (&[][..], "category \"motorbike\" has no label; there are person, motorcycle, car. Give"),
        (&[("bike", "car")], "there is no category \"bike\" to give a label; there are Car, motor"),
        (&[("motorbike", "bike")], "there is no label \"bike\"; there are person, motorcycle, car"),
    ] {
        let error = truth.clone().with_labels(&labels, &renamed(pairs)).expect_err(said);
        assert!(error.to_string().starts_with(said), "{error}");
    }
}

#[test]
fn bad_entries_of_coco_are_named() {
    let image = |name: &str, id: u8| {
        format!(r#"{{"id": {id}, "file_name": "{name}", "width": 9, "height": 9}}"#)
    };
    let boxed = |bbox: &str| format!(r#"{{"image_id": 7, "category_id": 3, "bbox": [{bbox}]}}"#);
    let other = r#"{"image_id": 7, "category_id": 2, "bbox": [0, 0, 1, 1]}"#;
    let stray = r#"{"image_id": 8, "category_id": 3, "bbox": [0, 0, 1, 1]}"#;
    let twice = r#"{"id": 1, "name": "car"}, {"id": 2, "name": "car"}"#;
    let same = r#"{"id": 1, "name": "car"}, {"id": 1, "name": "bus"}"#;
    for (images, categories, annotations, said) in [
        (image("c.jpg", 1), CATEGORIES, String::new(), "images[0]: "),
        (image("../p/a.jpg", 1), CATEGORIES, String::new(), "images[0]: file_name \"../p/a.jpg\""),
        (image("/etc/passwd", 1), CATEGORIES, String::new(), "images[0]: file_name \"/etc/pass"),
        (image("", 1), CATEGORIES, String::new(), "images[0]: file_name \"\" does not stay"),
        (
            format!("{},{}", image("a.jpg", 1), image("./a.jpg", 2)),
            CATEGORIES,
            String::new(),
            "images[1]: \"./a.jpg\" is there twice",
        ),
        (
            format!("{},{}", image("a.jpg", 1), image("more/b.jpg", 1)),
            CATEGORIES,
            String::new(),
            "images[1]: id 1 is there twice",
        ),
        (IMAGES.replace("100", "0"), CATEGORIES, String::new(), "images[0]: \"a.jpg\" has 0 × 50"),
        (IMAGES.into(), twice, String::new(), "categories[1]: \"car\" is there twice"),
        (IMAGES.into(), same, String::new(), "categories[1]: id 1 is there twice"),
        (IMAGES.into(), CATEGORIES, other.into(), "annotations[0]: there is no category with id 2"),
        (IMAGES.into(), CATEGORIES, stray.into(), "annotations[0]: there is no image with id 8"),
        (
            IMAGES.into(),
            CATEGORIES,
            format!("{ANNOTATIONS},{}", boxed("90, 0, 12, 9")),
            "annotations[2]: bbox [90.0, 0.0, 12.0, 9.0] reaches beyond its picture of 100 × 50",
        ),
        (IMAGES.into(), CATEGORIES, boxed("-2, 0, 9, 9"), "annotations[0]: bbox [-2.0, 0.0, 9.0,"),
        (IMAGES.into(), CATEGORIES, boxed("2, 0, -1, 9"), "annotations[0]: bbox [2.0, 0.0, -1.0,"),
        (
            IMAGES.into(),
            CATEGORIES,
            boxed("2, 0, 5, 0"),
            "annotations[0]: bbox [2.0, 0.0, 5.0, 0.0] has",
        ),
        (IMAGES.into(), CATEGORIES, boxed("2, 0, 5"), "invalid length 3"),
        (IMAGES.into(), CATEGORIES, boxed("1e999, 0, 5, 5"), "number out of range"),
        (
            image("a.jpg", 1).replace("9}", "-9}"),
            CATEGORIES,
            String::new(),
            "invalid value: integer `-9`",
        ),
    ] {
        let error = coco(&images, categories, &annotations).expect_err(said).to_string();
        let (_, tail) = error.split_once("truth.json: ").expect("the file comes first");
        assert!(tail.starts_with(said), "{said}: {error}");
    }
    let dir = folder(&[("truth.json", "{\"images\": []}")]);
    let error = Truth::coco(&dir.path().join("truth.json"), dir.path()).expect_err("half");
    assert!(error.to_string().contains("missing field `categories`"), "{error}");
    assert!(matches!(Truth::coco(dir.path(), dir.path()), Err(TruthError::Io { .. })));
}

#[test]
fn yolos_boxes_lie_beside_their_pictures_or_in_labels() {
    let dir = folder(&[
        ("one/a.txt", "1 0.5 0.5 0.5 1\n"),
        ("two/labels/b.txt", "\u{feff}0 .25 0.5 0.5 0.5\r\n\r\n0 0.25 0.5 0.5 0.5\r\n"),
        ("images/val/c.txt", ""),
        ("labels/val/c.txt", "0 0.5 0.5 1 1"),
        ("labels/val/d.txt", "0 0.5 0.5 1 1"),
    ]);
    let path = |name: &str| dir.path().join(name);
    let pictures = ["one/a.jpg", "two/b.png", "images/val/c.jpg", "images/val/d.jpg", "one/e.jpg"];
    let pictures = pictures.map(path);
    let truth = Truth::yolo(&pictures, &names(&["car", "bus"])).expect("good");
    let boxes = |at: usize| truth.boxes(&pictures[at], 100, 50).expect("known");
    let found = TrueBox { class: 1, x0: 25.0, y0: 0.0, x1: 75.0, y1: 50.0, crowd: false };
    assert_eq!(boxes(0), [found]);
    let found = TrueBox { class: 0, x0: 0.0, y0: 12.5, x1: 50.0, y1: 37.5, crowd: false };
    assert_eq!(boxes(1), [found], "a line that is there twice counts once");
    assert_eq!(boxes(2), [], "the file beside the picture comes first");
    assert_eq!(boxes(3).len(), 1);
    assert_eq!(boxes(4), []);
    assert!(truth.covers(1) && !truth.covers(2));

    let nowhere = Truth::yolo(&pictures[4..], &names(&["car"])).expect_err("no file").to_string();
    assert!(nowhere.starts_with("none of the 1 pictures has its boxes in"), "{nowhere}");
}

#[test]
fn bad_lines_are_named() {
    for (text, said) in [
        ("0 0.5 0.5 0.5\n", "1: expected `class cx cy width height`, found 4 fields"),
        ("0 0.5 0.5 0.5 0.5 0.9\n", "1: expected `class cx cy width height`, found 6 fields"),
        ("0 0.5 0.5 0.5 0.5\n2 0.5 0.5 0.5 0.5", "2: class: expected 0 to 1, found \"2\""),
        ("-1 0.5 0.5 0.5 0.5", "1: class: expected 0 to 1, found \"-1\""),
        ("0.0 0.5 0.5 0.5 0.5", "1: class: expected 0 to 1, found \"0.0\""),
        ("0 x 0.5 0.5 0.5", "1: cx: expected 0 to 1, found \"x\""),
        ("0 0.5 nan 0.5 0.5", "1: cy: expected 0 to 1, found \"nan\""),
        ("0 0.5 0.5 1.5 0.5", "1: width: expected 0 to 1, found \"1.5\""),
        ("0 0.5 0.5 0.5 -0.5", "1: height: expected 0 to 1, found \"-0.5\""),
        ("0 0.5 0.5 0.5 0", "1: the box has no area"),
        ("\n\n0 0.9 0.5 0.5 0.5", "3: the box from 0.65, 0.25 to 1.15, 0.75 reaches beyond"),
    ] {
        let dir = folder(&[("a.txt", text)]);
        let picture = dir.path().join("a.jpg");
        let error = Truth::yolo(&[picture], &names(&["car", "bus"])).expect_err(text).to_string();
        let (_, tail) = error.split_once("a.txt:").expect("the file comes first");
        assert!(tail.starts_with(said), "{text}: {error}");
    }
    let dir = folder(&[
        ("classes.txt", "car\nbus stop \n\n"),
        ("bad.txt", "car\n\nbus"),
        ("twice.txt", "a\na"),
    ]);
    fs::write(dir.path().join("binary.txt"), b"car\n\xff").expect("file");
    let read = |name: &str| Truth::class_names(&dir.path().join(name));
    assert_eq!(read("classes.txt").expect("good"), ["car", "bus stop"]);
    for (name, said) in [
        ("bad.txt", "bad.txt:2: a name is needed"),
        ("twice.txt", "twice.txt:2: \"a\" is there twice"),
        ("binary.txt", "binary.txt:2: is no UTF-8"),
    ] {
        let error = read(name).expect_err(name).to_string();
        assert!(error.ends_with(said), "{error}");
    }
}
