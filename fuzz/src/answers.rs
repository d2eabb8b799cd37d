//! Answers of every task, as a server may send them, and the outputs that a network may give.

use isthmus_models::{Answer, BoxesSpec, DecoderSpec, Decoders, OutputSpec, Task, Wanted};
use isthmus_proto::wire;
use prost::Message;

use crate::choice;

/// Width and height of the network's input (pixels).
const INPUT: (u32, u32) = (64, 48);
/// Classes of every decoder that has classes.
const LABELS: usize = 3;

/// Whatever a server says as an answer of a task, what passes has the bundle's shapes, classes and
/// confidences, and comes over the wire again as it is; and whatever a network gives, what becomes an
/// answer passes. The first byte chooses the task.
pub fn answer(mut bytes: &[u8]) {
    let task = TASKS[usize::from(choice(&mut bytes)) % TASKS.len()];
    let decoders = Decoders::new(&[decoder(task)], INPUT).expect("a decoder that can be meant");
    if let Ok(sent) = wire::Answer::decode(bytes)
        && let Ok(answers) = decoders.from_wire(sent, Vec::new())
    {
        usable(&decoders, &answers);
    }
    let mut floats = bytes.as_chunks::<4>().0.iter().map(|word| f32::from_le_bytes(*word)).cycle();
    let outputs = decoder(task).outputs.into_iter();
    let outputs = outputs
        .map(|output| (0..output.len()).map(|_| floats.next().unwrap_or_default()).collect());
    if let Ok(answers) = decoders.answers(outputs.collect(), Some(0.25)) {
        // A classifier may say NaN, which a device refuses.
        if answers.iter().all(|it| !matches!(it, Answer::Scores(_) | Answer::Tensors(_))) {
            usable(&decoders, &answers);
        }
    }
}

pub(crate) const TASKS: [Task; 5] =
    [Task::Classification, Task::Detection, Task::Segmentation, Task::Regression, Task::Tensors];

/// A small decoder of a task.
pub(crate) fn decoder(task: Task) -> DecoderSpec {
    let labels = (0..LABELS).map(|label| label.to_string());
    let classifier = DecoderSpec::classification(labels);
    let output = |shape: &[usize]| OutputSpec::f32("it", shape.to_vec());
    let outputs = match task {
        Task::Classification => return classifier,
        Task::Detection => vec![output(&[4, 5 + LABELS])],
        Task::Segmentation => vec![output(&[LABELS, 3, 4])],
        Task::Regression => vec![output(&[3, 4])],
        Task::Tensors => vec![output(&[5]), output(&[2, 2])],
    };
    let boxes: Option<BoxesSpec> = (task == Task::Detection).then(|| {
        toml::from_str("layout = 'yolov5'\nconfidence = 0.3\niou = 0.6").expect("a layout")
    });
    let labels = match task {
        Task::Regression | Task::Tensors => Vec::new(),
        _ => classifier.labels.clone(),
    };
    DecoderSpec { task, labels, outputs, boxes, ..classifier }
}

/// What passed can be shown, and sent on.
fn usable(decoders: &Decoders, answers: &[Answer]) {
    for answer in answers {
        let confidence = decoders.confidence(0, answer);
        assert!((0.0..=1.0).contains(&confidence), "{answer:?}");
        match answer {
            Answer::Scores(scores) => assert!(scores.top.iter().all(|it| it.0 < LABELS)),
            Answer::Boxes(boxes) => {
                for it in boxes {
                    assert!(usize::from(it.class) < LABELS && it.x0 <= it.x1 && it.y0 <= it.y1);
                    assert!(it.x0 >= 0.0 && it.x1 <= INPUT.0 as f32, "{it:?}");
                    assert!(it.y0 >= 0.0 && it.y1 <= INPUT.1 as f32, "{it:?}");
                }
            }
            Answer::Classes(map) => {
                assert_eq!(map.classes.len(), map.width * map.height);
                assert!(map.classes.iter().all(|&class| usize::from(class) < LABELS));
            }
            Answer::Values(map) => assert_eq!(map.values.len(), map.width * map.height),
            Answer::Tensors(tensors) => {
                let whole = |values: &Vec<f32>, shape: &[usize]| {
                    values.len() == shape.iter().product::<usize>()
                };
                assert!(tensors.iter().all(|it| whole(&it.data, &it.shape)));
            }
        }
    }
    let wanted = Wanted { logits: true, min_confidence: None };
    let sent = decoders.to_wire(answers.to_vec(), wanted).remove(0);
    let again = decoders.from_wire(sent, Vec::new());
    assert!(again.is_ok(), "{again:?} of {answers:?}");
}
