//! Boxes worked out by hand, for every layout, and outputs that are none.

use super::*;

/// A class, its score, and x0, y0, x1, y1.
type Found = (u16, f32, [f32; 4]);

/// A network's outputs: name, shape, values.
struct Outputs<'a>(&'a [(&'a str, &'a [usize], &'a [f32])]);

impl Outputs<'_> {
    fn decoder(&self, spec: &str, input: (u32, u32), classes: u16) -> BoxesDecoder {
        let shapes: Vec<(&str, &[usize])> = self.0.iter().map(|it| (it.0, it.1)).collect();
        BoxesDecoder::new(&parse(spec), &shapes, input, classes).expect("shapes that fit")
    }

    #[track_caller]
    fn give(&self, spec: &str, input: (u32, u32), classes: u16, expected: &[Found]) {
        let data: Vec<&[f32]> = self.0.iter().map(|it| it.2).collect();
        let decoder = self.decoder(spec, input, classes);
        let found = decoder.decode(&data, None).expect("values that can be meant");
        assert_eq!(found.len(), expected.len(), "{found:?}");
        for (found, (class, score, corners)) in found.iter().zip(expected) {
            let values = [found.confidence, found.x0, found.y0, found.x1, found.y1];
            let wanted = [*score, corners[0], corners[1], corners[2], corners[3]];
            let near = values.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-3);
            assert!(found.class == *class && near, "{found:?} is not {class}, {wanted:?}");
        }
    }

    fn error(&self, spec: &str, classes: u16) -> BoxesDecodeError {
        let data: Vec<&[f32]> = self.0.iter().map(|it| it.2).collect();
        self.decoder(spec, (64, 64), classes).decode(&data, None).expect_err("nothing to be meant")
    }
}

fn parse(spec: &str) -> BoxesSpec {
    let with_confidence = match spec.contains("confidence") {
        true => spec.to_owned(),
        false => format!("confidence = 0.3\n{spec}"),
    };
    toml::from_str(&with_confidence).expect(spec)
}

fn logit(score: f32) -> f32 {
    (score / (1.0 - score)).ln()
}

#[test]
fn yolox_places_boxes_in_cells() {
    // Two columns and one row of stride 8, one cell of stride 16.
    let quarter = 0.25f32.ln();
    #[rustfmt::skip]
    let values = [
        0.5, 0.5, 0.0, quarter, 0.9, 0.1, 0.8,  // centre (4, 4), 8 × 2
        0.0, 0.0, 0.0, 0.0, 0.9, 0.2, 0.1,      // scores too little
        0.5, 0.25, 0.0, quarter, 1.0, 0.6, 0.5, // centre (8, 4), 16 × 4
    ];
    let spec = "layout = 'yolox'\nstrides = [8, 16]\niou = 0.9";
    let expected: [Found; 2] = [(1, 0.72, [0.0, 3.0, 8.0, 5.0]), (0, 0.6, [0.0, 2.0, 16.0, 6.0])];
    Outputs(&[("out", &[3, 7], &values)]).give(spec, (16, 8), 2, &expected);

    let mut logits = values;
    for row in logits.chunks_exact_mut(7) {
        row[4..].iter_mut().for_each(|score| *score = logit(score.min(0.999_999)));
    }
    let spec = format!("{spec}\nactivation = 'sigmoid'");
    Outputs(&[("out", &[3, 7], &logits)]).give(&spec, (16, 8), 2, &expected);

    let turned: Vec<f32> = (0..21).map(|at| values[at % 3 * 7 + at / 3]).collect();
    let spec = "layout = 'yolox'\nstrides = [8, 16]\niou = 0.9\nevery_class = true";
    let every = [expected[0], expected[1], (1, 0.5, [0.0, 2.0, 16.0, 6.0])];
    Outputs(&[("out", &[7, 3], &turned)]).give(spec, (16, 8), 2, &every);
}

#[test]
fn decoded_boxes_are_read_with_and_without_objectness() {
    let v5 = [20.0, 30.0, 10.0, 20.0, 0.5, 0.7, 0.8, 60.0, 60.0, 20.0, 20.0, 0.5, 0.9, 0.1];
    let found = [(0, 0.45, [50.0, 50.0, 64.0, 64.0]), (1, 0.4, [15.0, 20.0, 25.0, 40.0])];
    Outputs(&[("out", &[2, 7], &v5)]).give("layout = 'yolov5'\niou = 0.5", (64, 64), 2, &found);

    let v8 = [20.0, 60.0, 30.0, 60.0, 10.0, 20.0, 20.0, 20.0, 0.35, 0.45, 0.4, 0.05];
    Outputs(&[("out", &[6, 2], &v8)]).give("layout = 'yolov8'\niou = 0.5", (64, 64), 2, &found);
    let rows: Vec<f32> = (0..12).map(|at| v8[at % 6 * 2 + at / 6]).collect();
    // Whichever way three places of six values lie; two of six are no three.
    Outputs(&[("out", &[2, 6], &rows)]).give("layout = 'yolov8'\niou = 0.5", (64, 64), 2, &found);
}

#[test]
fn distances_are_expectations_of_distributions() {
    // Grids of 2 × 1 and 1 × 1. Two values a side: the expectation is the second's probability.
    let even = [0.0f32; 8];
    let mut uneven = even;
    (uneven[0], uneven[1]) = (0.0, 3f32.ln()); // left: 0.75
    let far = [-40.0, 40.0, -40.0, 40.0, -40.0, 40.0, -40.0, 40.0];
    let fine: Vec<f32> = [uneven, even].concat();
    let spec = "layout = 'distribution'\nstrides = [8, 16]\nbins = 2\niou = 0.9";
    let expected = [
        (0, 0.9, [0.0, 0.0, 16.0, 8.0]),
        (1, 0.6, [0.0, 0.0, 8.0, 8.0]), // cut at the left: 4 − 6
        (0, 0.5, [8.0, 0.0, 16.0, 8.0]),
    ];
    let (first, second) = ([0.0, 0.6, 0.5, 0.0], [0.9, 0.2]);
    Outputs(&[
        ("scores 8", &[2, 2], &first),
        ("scores 16", &[1, 2], &second),
        ("boxes 8", &[2, 8], &fine),
        ("boxes 16", &[1, 8], &far),
    ])
    .give(spec, (16, 8), 2, &expected);

    let (scores, boxes) = ([&first[..], &second].concat(), [&fine[..], &far].concat());
    Outputs(&[("scores", &[3, 2], &scores), ("boxes", &[3, 8], &boxes)]).give(
        spec,
        (16, 8),
        2,
        &expected,
    );

    let both: Vec<f32> =
        (0..3).flat_map(|at| [&scores[2 * at..][..2], &boxes[8 * at..][..8]].concat()).collect();
    Outputs(&[("all", &[3, 10], &both)]).give(spec, (16, 8), 2, &expected);

    // Half a cell further up and to the left.
    let corner = [(1, 0.6, [0.0, 0.0, 4.0, 4.0]), (0, 0.5, [4.0, 0.0, 12.0, 4.0])];
    let spec = format!("{spec}\noffset = 0.0\nconfidence = 0.3");
    let none = [0.0; 2];
    Outputs(&[
        ("scores 8", &[2, 2], &first),
        ("scores 16", &[1, 2], &none),
        ("boxes 8", &[2, 8], &fine),
        ("boxes 16", &[1, 8], &far),
    ])
    .give(&spec, (16, 8), 2, &corner);
}

#[test]
fn pairs_of_scores_and_boxes_are_corners_centres_or_offsets() {
    let scores = [0.4, 0.6, 0.9, 0.1];
    let corners = [-0.25, 0.25, 0.5, 1.5, 0.0, 0.0, 1.0, 1.0];
    let found = [(0, 0.6, [0.0, 8.0, 32.0, 32.0])];
    let outputs = [("scores", &[2, 2][..], &scores[..]), ("boxes", &[2, 4], &corners)];
    let spec = "layout = 'ssd'\nboxes = 'corners'\nbackground = 'first'\niou = 0.5";
    Outputs(&outputs).give(spec, (64, 32), 1, &found);

    let last = "layout = 'ssd'\nboxes = 'corners'\nbackground = 'last'\niou = 0.5";
    let other = [(0, 0.9, [0.0, 0.0, 64.0, 32.0]), (0, 0.4, [0.0, 8.0, 32.0, 32.0])];
    Outputs(&outputs).give(last, (64, 32), 1, &other);

    let centres = [16.0, 8.0, 8.0, 4.0, 0.0, 0.0, 1.0, 1.0];
    let logits = [0.0, 3f32.ln(), 3f32.ln(), 0.0];
    let spec = "layout = 'ssd'\nboxes = 'centres'\nnormalised = false\nbackground = 'first'\n\
                activation = 'softmax'\niou = 0.5";
    Outputs(&[("s", &[2, 2], &logits), ("b", &[2, 4], &centres)]).give(
        spec,
        (64, 32),
        1,
        &[(0, 0.75, [12.0, 6.0, 20.0, 10.0])],
    );
}

#[test]
fn offsets_are_from_priors() {
    // One cell of 40 pixels, whose part in the input is all of it, and 2 × 1 cells with two
    // priors each. The offset 5 · 0.1 moves by half a prior, 5 · ln 2 · 0.2 doubles it.
    let double = 5.0 * 2f32.ln();
    let nothing = [0.0; 4];
    let boxes =
        [[5.0, 0.0, double, 0.0], nothing, nothing, nothing, [0.0, 0.0, 0.0, double]].concat();
    let scores = [0.9, 0.1, 0.8, 0.1, 0.7];
    let outputs = [("scores", &[5, 1][..], &scores[..]), ("boxes", &[5, 4], &boxes)];
    let spec = "layout = 'ssd'\nboxes = 'offsets'\niou = 0.9\n\
                [[priors]]\nstride = 40\nsizes = [[10.0, 20.0]]\n\
                [[priors]]\ngrid = [2, 1]\nsizes = [[4.0, 4.0], [8.0, 80.0]]";
    let expected = [
        (0, 0.9, [15.0, 10.0, 35.0, 30.0]), // centre (20 + 5, 20)
        (0, 0.8, [6.0, 0.0, 14.0, 40.0]),
        (0, 0.7, [26.0, 0.0, 34.0, 40.0]),
    ];
    Outputs(&outputs).give(spec, (40, 40), 1, &expected);

    // The same from a tensor.
    #[rustfmt::skip]
    let priors = [
        0.5, 0.5, 0.25, 0.5, 0.25, 0.5, 0.1, 0.1, 0.25, 0.5, 0.2, 2.0,
        0.75, 0.5, 0.1, 0.1, 0.75, 0.5, 0.2, 2.0,
    ];
    let spec = "layout = 'ssd'\nboxes = 'offsets'\niou = 0.9";
    let outputs = [outputs[0], outputs[1], ("priors", &[5, 4], &priors)];
    Outputs(&outputs).give(spec, (40, 40), 1, &expected);

    // A clipped prior is half as high as the offset wants it.
    let spec = "layout = 'ssd'\nboxes = 'offsets'\niou = 0.9\nclip_priors = true\n\
                [[priors]]\nstride = 40\nsizes = [[10.0, 80.0]]";
    let (score, offset) = ([0.5], [0.0, 0.0, 0.0, -double]);
    Outputs(&[("s", &[1, 1], &score), ("b", &[1, 4], &offset)]).give(
        spec,
        (40, 40),
        1,
        &[(0, 0.5, [15.0, 10.0, 25.0, 30.0])],
    );
}

#[test]
fn detr_keeps_boxes_that_overlap() {
    let boxes = [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5];
    let logits = [0.0, 0.0, 8f32.ln(), 4f32.ln(), 0.0, 0.0];
    let outputs = [("logits", &[2, 3][..], &logits[..]), ("boxes", &[2, 4], &boxes)];
    let place = [16.0, 16.0, 48.0, 48.0];
    Outputs(&outputs).give("layout = 'detr'", (64, 64), 2, &[(0, 4.0 / 6.0, place)]);
    let scores = [(2, 8.0 / 9.0, place), (0, 0.8, place)];
    let half = [(0, 0.5, place), (1, 0.5, place), (1, 0.5, place), (2, 0.5, place)];
    let all: Vec<Found> = scores.into_iter().chain(half).collect();
    Outputs(&outputs).give("layout = 'detr'\nactivation = 'sigmoid'", (64, 64), 3, &all);
}

#[test]
fn fastestdet_weighs_objectness_and_class() {
    // Channels of 1 × 2 cells.
    let t = 0.5f32.atanh();
    #[rustfmt::skip]
    let values = [
        0.9, 0.5,                // objectness
        t, -t, t, 0.0,           // offsets
        0.0, logit(0.25), logit(0.75), 0.0, // sizes
        0.2, 0.0, 0.8, 0.1,      // classes
    ];
    let score = 0.9f32.powf(0.6) * 0.8f32.powf(0.4);
    // Centre ((0 + 0.5) · 32, 0.5 · 32), half as wide and three quarters as high as the input.
    let expected = [(1, score, [0.0, 4.0, 32.0, 28.0])];
    let outputs = Outputs(&[("out", &[7, 1, 2], &values)]);
    outputs.give("layout = 'fastestdet'\niou = 0.5", (64, 32), 2, &expected);
    let low = "layout = 'fastestdet'\niou = 0.5\nconfidence = 0.25";
    let weak = 0.5f32.powf(0.6) * 0.1f32.powf(0.4);
    let both = [expected[0], (1, weak, [8.0, 0.0, 24.0, 8.0])];
    outputs.give(low, (64, 32), 2, &both);
}

#[test]
fn centernet_keeps_peaks() {
    #[rustfmt::skip]
    let heat = [
        0.9, 0.8, 0.1,
        0.1, 0.1, 0.1,
        0.1, 0.1, 0.7, // its neighbours are lower
        0.1, 0.1, 0.1,
        0.1, 0.5, 0.1,
        0.1, 0.1, 0.6, // touches 0.5
    ];
    let mut size = [1.0; 18];
    size[0] = 3.0;
    let mut offset = [0.5; 18];
    offset[9 + 8] = 0.25;
    let outputs = [
        ("heat", &[2, 3, 3][..], &heat[..]),
        ("size", &[2, 3, 3], &size),
        ("offset", &[2, 3, 3], &offset),
    ];
    let expected = [
        (0, 0.9, [0.0, 0.0, 8.0, 4.0]), // centre (2, 2), 12 × 4
        (0, 0.7, [8.0, 7.0, 12.0, 11.0]),
        (1, 0.6, [8.0, 7.0, 12.0, 11.0]),
    ];
    Outputs(&outputs).give("layout = 'centernet'", (12, 12), 2, &expected);
}

#[test]
fn suppressed_boxes_are_read_by_their_columns() {
    let rows = [8.0, 8.0, 16.0, 24.0, 0.9, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0];
    let expected = [(1, 0.9, [8.0, 8.0, 16.0, 24.0])];
    Outputs(&[("out", &[2, 6], &rows)]).give("layout = 'corners'", (64, 64), 2, &expected);

    let named = [0.0, 1.0, 0.9, 0.125, 0.125, 0.25, 0.375];
    let columns = "['unused', 'class', 'score', 'y0', 'x0', 'y1', 'x1']";
    let spec = format!("layout = 'corners'\ncolumns = {columns}\nnormalised = true");
    let turned = [(1, 0.9, [8.0, 8.0, 24.0, 16.0])];
    Outputs(&[("out", &[1, 7], &named)]).give(&spec, (64, 64), 2, &turned);

    // As torchvision gives them, classes before scores and counted from 1.
    let spec = "layout = 'corners'\nfirst_class = 1\ntensors = ['boxes', 'scores', 'labels']";
    let (boxes, labels, scores) =
        ([8.0, 8.0, 16.0, 24.0, 1.0, 1.0, 2.0, 2.0], [2.0, 1.0], [0.9, 0.2]);
    let outputs = [
        ("boxes", &[2, 4][..], &boxes[..]),
        ("labels", &[2], &labels),
        ("count", &[1], &[2.0]),
        ("scores", &[2], &scores),
    ];
    Outputs(&outputs).give(spec, (64, 64), 2, &expected);
    let class = Outputs(&outputs)
        .error("layout = 'corners'\nfirst_class = 3\ntensors = ['boxes', 'scores', 'labels']", 2);
    let said = "labels: place 0 has class 2; 3 to 4 in whole numbers have labels";
    assert_eq!(class.to_string(), said);
}

#[test]
fn overlapping_boxes_of_a_class_give_one() {
    let rows = [
        [20.0, 20.0, 20.0, 20.0, 0.6, 0.0],
        [22.0, 20.0, 20.0, 20.0, 0.9, 0.0], // IoU 18 / 22
        [21.0, 20.0, 20.0, 20.0, 0.0, 0.7],
    ]
    .concat();
    let outputs = Outputs(&[("out", &[3, 6], &rows)]);
    let (better, other) = ((0, 0.9, [12.0, 10.0, 32.0, 30.0]), (1, 0.7, [11.0, 10.0, 31.0, 30.0]));
    let weaker = (0, 0.6, [10.0, 10.0, 30.0, 30.0]);
    outputs.give("layout = 'yolov8'\niou = 0.8", (64, 64), 2, &[better, other]);
    outputs.give("layout = 'yolov8'\niou = 0.82", (64, 64), 2, &[better, other, weaker]);
    outputs.give("layout = 'yolov8'\niou = 0.8\nagnostic = true", (64, 64), 2, &[better]);
    outputs.give("layout = 'yolov8'\niou = 0.9\nlimit = 2", (64, 64), 2, &[better, other]);
    outputs.give("layout = 'yolov8'\niou = 0.9\ncandidates = 1", (64, 64), 2, &[better]);
}

#[test]
fn equals_come_in_order_of_class_and_place() {
    let rows: Vec<f32> = (0..40)
        .flat_map(|at| {
            let score = [(0.5, 0.0), (0.0, 0.5)][at % 2];
            [8.0 * at as f32 + 4.0, 4.0, 8.0, 8.0, score.0, score.1]
        })
        .collect();
    let outputs = Outputs(&[("out", &[40, 6], &rows)]);
    let decoder = outputs.decoder("layout = 'yolov8'\niou = 0.5\ncandidates = 30", (320, 8), 2);
    let found = decoder.decode(&[&rows], None).expect("finite");
    let order: Vec<(u16, f32)> = found.iter().map(|it| (it.class, it.x0)).collect();
    let zeros = (0..20).map(|at| (0, 16.0 * at as f32));
    let ones = (0..10).map(|at| (1, 16.0 * at as f32 + 8.0));
    assert_eq!(order, zeros.chain(ones).collect::<Vec<_>>());
}

#[test]
fn boxes_end_at_the_input_and_a_threshold_may_be_asked_for() {
    let rows = [
        [-4.0, 4.0, 8.0, 8.0, 0.9],   // touches the left side
        [-1.0, 63.0, 8.0, 8.0, 0.8],  // reaches in
        [10.0, 10.0, 0.0, 8.0, 0.7],  // has no width
        [10.0, 10.0, -8.0, 8.0, 0.7], // nor less than none
        [40.0, 40.0, 8.0, 8.0, 0.1],
    ]
    .concat();
    let outputs = Outputs(&[("out", &[5, 5], &rows)]);
    let decoder = outputs.decoder("layout = 'yolov8'\niou = 0.5\nevery_class = true", (64, 64), 1);
    let turned: Vec<f32> = (0..25).map(|at| rows[at % 5 * 5 + at / 5]).collect();
    let found = decoder.decode(&[&turned], None).expect("finite");
    let corners: Vec<[f32; 4]> = found.iter().map(|it| [it.x0, it.y0, it.x1, it.y1]).collect();
    assert_eq!(corners, [[0.0, 59.0, 3.0, 64.0]]);
    assert_eq!(decoder.decode(&[&turned], Some(0.05)).expect("finite").len(), 2);
    assert_eq!(decoder.decode(&[&turned], Some(0.85)).expect("finite").len(), 0);
    let threshold = decoder.decode(&[&turned], Some(f32::NAN)).expect_err("no number");
    assert!(matches!(threshold, BoxesDecodeError::Threshold(_)));
}

#[test]
fn values_that_mean_nothing_are_named() {
    let v8 = "layout = 'yolov8'\niou = 0.5";
    let good = [20.0, 60.0, 30.0, 60.0, 10.0, 20.0, 20.0, 20.0, 0.5, 0.5];
    for (at, bad, said) in [
        (3, f32::NAN, "out: NaN at [1, 1]; scores and coordinates must be finite"),
        (8, f32::INFINITY, "out: inf at [4, 0]; scores and coordinates must be finite"),
        (0, f32::NEG_INFINITY, "out: -inf at [0, 0]; scores and coordinates must be finite"),
        (9, 4.5, "out: place 1 has score 4.5 for class 0; 0 to 1 is needed"),
    ] {
        let mut values = good;
        values[at] = bad;
        let error = Outputs(&[("out", &[5, 2], &values)]).error(v8, 1).to_string();
        assert!(error.starts_with(said), "{error}");
    }
    let mut huge = good;
    (huge[0], huge[4]) = (f32::MAX, f32::MAX);
    let error = Outputs(&[("out", &[5, 2], &huge)]).error(v8, 1);
    assert_eq!(error, BoxesDecodeError::Endless { tensor: "out".into(), place: 0 });

    let decoder = Outputs(&[("out", &[5, 2], &good)]).decoder(v8, (64, 64), 1);
    let error = decoder.decode(&[&good[1..]], None).expect_err("too short").to_string();
    assert_eq!(error, "out: 9 values given where 10 are needed");
    let error = decoder.decode(&[&good, &good], None).expect_err("too many").to_string();
    assert_eq!(error, "2 outputs given where the decoder was made for 1");
}

#[test]
fn shapes_that_do_not_fit_are_named() {
    let pair: &[(&str, &[usize])] = &[("scores", &[4420, 2]), ("boxes", &[4420, 4])];
    let ssd = "layout = 'ssd'\nboxes = 'corners'\niou = 0.5\n";
    for (spec, outputs, classes, said) in [
        ("layout = 'yolox'\niou = 0.5", pair, 80, "2 outputs where the layout needs 1: centre,"),
        (
            "layout = 'yolox'\niou = 0.5",
            &[("out", &[3548, 85])],
            80,
            "out: has shape [3548, 85] where [3549, 85] (4 for the box, objectness, one a class) is",
        ),
        (
            "layout = 'yolov5'\niou = 0.5",
            &[("out", &[99, 84])],
            80,
            "out: has shape [99, 84] where",
        ),
        ("layout = 'yolov8'\niou = 0.5", &[("out", &[84])], 80, "out: has shape [84] where"),
        (ssd, pair, 1, "scores: has shape [4420, 2] where [4420, 1] (scores, one a class) is"),
        (ssd, &[("boxes", &[9, 4]), ("scores", &[9, 2])], 2, "scores: has shape [9, 2] where"),
        (
            "layout = 'ssd'\nboxes = 'offsets'\niou = 0.5\npriors = [{ stride = 208, sizes = [[9, 9]] }]",
            pair,
            2,
            "boxes: has shape [4420, 4] where [4, 4] (boxes, one for each prior) is",
        ),
        (
            "layout = 'ssd'\nboxes = 'offsets'\niou = 0.5",
            pair,
            2,
            "2 outputs where the layout needs 3: scores, boxes and priors; `tensors` names",
        ),
        (
            "layout = 'distribution'\nstrides = [8, 16]\nbins = 8\niou = 0.5",
            &[("a", &[2704, 80]), ("b", &[676, 80]), ("c", &[2704, 32]), ("d", &[675, 32])],
            80,
            "d: has shape [675, 32] where [676, 32] (distances, `bins` a side) is needed",
        ),
        (
            "layout = 'distribution'\nstrides = [8, 16]\nbins = 8\niou = 0.5",
            &[("a", &[1, 1]), ("b", &[1, 1]), ("c", &[1, 1])],
            80,
            "3 outputs where the layout needs 1, 2 or 4",
        ),
        ("layout = 'fastestdet'\niou = 0.5", &[("out", &[84, 22, 22])], 80, "out: has shape"),
        (
            "layout = 'centernet'",
            &[("h", &[80, 104, 104]), ("s", &[2, 104, 104]), ("o", &[2, 104, 103])],
            80,
            "o: has shape [2, 104, 103] where [2, 104, 104] (offset of x and y) is needed",
        ),
        ("layout = 'corners'", &[("b", &[9, 4]), ("s", &[9]), ("c", &[8])], 80, "c: has shape [8]"),
        (
            "layout = 'yolov8'\niou = 0.5",
            &[("out", &[84, 0])],
            80,
            "out: has shape [84, 0] where 1",
        ),
        (
            "layout = 'yolov8'\niou = 0.5",
            &[("out", &[84, usize::MAX])],
            80,
            "out: has shape [84, 18446744073709551615] where 1 to",
        ),
        (
            "layout = 'yolov8'\niou = 0.5\ntensors = ['in']",
            &[("out", &[84, 9]), ("more", &[1])],
            80,
            "tensors: there is no output \"in\"; there are out, more",
        ),
        ("layout = 'yolov8'\niou = 0.5", &[("out", &[84, 9])], 0, "labels: needs at least one"),
    ] {
        let error = BoxesDecoder::new(&parse(spec), outputs, (416, 416), classes);
        let error = error.expect_err(spec).to_string();
        assert!(error.starts_with(said), "{spec}: {error}");
    }
    let side = BoxesDecoder::new(&parse(ssd), pair, (0, 416), 2).expect_err("no side");
    assert!(side.to_string().starts_with("input: is [0, 416]"), "{side}");
}

#[test]
fn parameters_that_cannot_be_meant_are_named() {
    for (spec, said) in [
        ("layout = 'yolov8'\niou = 1.5", "iou: is 1.5; must be 0 to 1"),
        ("layout = 'yolov8'\niou = nan", "iou: is NaN"),
        ("layout = 'yolov8'", "iou: is needed"),
        ("layout = 'yolov8'\niou = 0.5\nconfidence = -1.0", "confidence: is -1"),
        ("layout = 'yolov8'\niou = 0.5\nlimit = 0", "limit: is 0; 1 to 1000"),
        ("layout = 'yolov8'\niou = 0.5\ncandidates = 100000", "candidates: is 100000; 1 to 8192"),
        ("layout = 'yolox'\niou = 0.5\nstrides = []", "strides: needs at least one"),
        ("layout = 'yolox'\niou = 0.5\nstrides = [0]", "strides: is 0; 1 to 4096"),
        ("layout = 'yolox'\niou = 0.5\nactivation = 'softmax'", "activation: must be"),
        ("layout = 'detr'\nactivation = 'none'", "activation: must be \"softmax\""),
        ("layout = 'centernet'\nstride = 0", "stride: is 0"),
        ("layout = 'distribution'\niou = 0.5\nbins = 1\nstrides = [8]", "bins: is 1; 2 to 256"),
        ("layout = 'ssd'\niou = 0.5\nboxes = 'offsets'\nvariances = [0.1, 0.0]", "variances: 0"),
        (
            "layout = 'ssd'\niou = 0.5\nboxes = 'corners'\npriors = [{ stride = 8, sizes = [] }]",
            "priors: are only for",
        ),
        (
            "layout = 'ssd'\niou = 0.5\nboxes = 'offsets'\npriors = [{ sizes = [] }]",
            "priors: need either",
        ),
        (
            "layout = 'ssd'\niou = 0.5\nboxes = 'offsets'\npriors = [{ stride = 8, sizes = [[1, inf]] }]",
            "priors.sizes: inf",
        ),
    ] {
        let error = parse(spec).check().expect_err(spec).to_string();
        assert!(error.starts_with(said), "{spec}: {error}");
    }
    let columns = parse("layout = 'corners'\ncolumns = ['x0', 'y0', 'x1', 'x1', 'score', 'class']");
    let error = BoxesDecoder::new(&columns, &[("out", &[9, 6])], (64, 64), 1).expect_err("no y1");
    assert!(error.to_string().starts_with("columns: x1 must be among them once"), "{error}");
}

#[test]
fn a_manifests_table_is_read_strictly_and_written_again() {
    for text in [
        "layout = 'yolov8'\nconfidence = 0.3",
        "layout = 'yolox'\nconfidence = 0.3\niou = 0.5\nstrides = [8, 16]\nactivation = 'sigmoid'",
        "layout = 'distribution'\nconfidence = 0.3\nstrides = [8]\nbins = 8\nevery_class = false",
        "layout = 'ssd'\nboxes = 'offsets'\nconfidence = 0.3\niou = 0.5\nbackground = 'first'\n\
         priors = [{ stride = 8, sizes = [[1, 2]] }, { grid = [3, 4], sizes = [[5.5, 6]] }]",
        "layout = 'detr'\nconfidence = 0.3",
        "layout = 'fastestdet'\nconfidence = 0.3\niou = 0.45\ntensors = ['758']",
        "layout = 'centernet'\nconfidence = 0.3\nlimit = 100",
        "layout = 'corners'\nconfidence = 0.3\ncolumns = ['x0', 'y0', 'x1', 'y1']",
    ] {
        let spec: BoxesSpec = toml::from_str(text).expect(text);
        let written = toml::to_string(&spec).expect("a table");
        assert_eq!(toml::from_str::<BoxesSpec>(&written).expect(&written), spec, "{written}");
    }
    for (text, said) in [
        ("layout = 'yolov9'\nconfidence = 0.3", "unknown variant `yolov9`"),
        ("confidence = 0.3", "missing field `layout`"),
        ("layout = 'yolov8'", "missing field `confidence`"),
        ("layout = 'yolov8'\nconfidence = 0.3\nstrides = [8]", "unknown field `strides`"),
        ("layout = 'yolov8'\nconfidence = 0.3\nlimit = -1", "invalid value: integer `-1`"),
        ("layout = 'fastestdet'\nconfidence = 0.3\nbins = 8", "unknown field `bins`"),
    ] {
        let error = toml::from_str::<BoxesSpec>(text).expect_err(text).to_string();
        assert!(error.contains(said), "{text}: {error}");
    }
}
