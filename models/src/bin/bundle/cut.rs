//! `bundle cut`: a bundle made of a network from elsewhere.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::{Args, ValueEnum};
use isthmus_models::{
    BoxesSpec, ChannelOrder, Engine, EngineKind, Fit, Import, ImportEngines, Layout,
    MAX_FILE_BYTES, ModelOptions, ModelOutput, OtherHead, Photo, PlainTract, Probabilities, Rotate,
    Task, Tract, Truth, WholeModel, find_photos,
};

use crate::{inspect, print, read};

/// Largest list of labels or classes that is read (bytes).
const MAX_LIST_BYTES: u64 = 16 << 20;

#[derive(Args)]
pub(crate) struct CutArgs {
    /// ONNX file of a network that takes one picture, [N, 3, H, W].
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,
    /// The tensor to cut at, or several with commas between them, as `bundle cuts` lists them.
    #[arg(long, value_name = "TENSORS", value_delimiter = ',', required = true)]
    at: Vec<String>,
    /// A further head for the same trunk: a name such as w50, and an ONNX file that has the tensors
    /// to cut at, or gives them as its outputs. May be said several times.
    #[arg(long = "head", value_name = "NAME=FILE", value_parser = parse_head)]
    heads: Vec<(String, PathBuf)>,
    /// Folder of pictures to calibrate with: CLASS/*.jpg, or just pictures.
    #[arg(long, value_name = "DIR")]
    calibrate: PathBuf,
    /// Folder of pictures to measure quality and bytes on: CLASS/*.jpg for a classifier. Without it
    /// every second picture to calibrate with is set aside for that.
    #[arg(long, value_name = "DIR")]
    measure: Option<PathBuf>,
    /// Take only this many pictures of each folder, spread evenly over it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Folder of the bundle to write.
    #[arg(long, value_name = "BUNDLE")]
    out: PathBuf,
    /// The bundle's name; the folder's if not given.
    #[arg(long)]
    name: Option<String>,
    /// Version of the weights.
    #[arg(long, default_value = "1")]
    weights_version: String,
    /// What the network answers. The outputs come as they are, as tensors, where no other task is said
    /// and they are no row of logits.
    #[arg(long, value_enum)]
    task: Option<TaskArg>,
    /// TOML file that says how a detector's outputs become boxes: [decoders.boxes] of a manifest, which
    /// BUNDLE.md describes.
    #[arg(long, value_name = "FILE.toml")]
    boxes: Option<PathBuf>,
    /// COCO JSON file of the boxes that are really in the pictures to measure on. Without it answers are
    /// held against the whole network's.
    #[arg(long, value_name = "FILE.json", requires = "measure")]
    truth: Option<PathBuf>,
    /// Labels for categories of --truth that the bundle calls otherwise, such as motorbike=motorcycle;
    /// person= leaves a category out.
    #[arg(
        long,
        alias = "rename",
        value_name = "CATEGORY=LABEL,…",
        value_delimiter = ',',
        value_parser = parse_pair,
        requires = "truth"
    )]
    relabel: Vec<(String, String)>,
    /// How a picture of another shape is brought to the network's: its middle is kept, or all of it,
    /// with bars or stretched. Detectors have bars if not given, others crop.
    #[arg(long, value_enum)]
    fit: Option<FitArg>,
    /// The order of the network's channels, and of --mean and --std.
    #[arg(long, value_enum, default_value_t)]
    order: OrderArg,
    /// Red, green and blue of the bars, 0 to 255.
    #[arg(long, value_name = "R,G,B", default_value = "114", value_parser = parse_bytes)]
    fill: [u8; 3],
    /// Text file with the name of each class, one a line; without it they are numbered, but of a
    /// detector needed.
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// TOML file of lines `name = output`: a classifier's bundle knows these classes alone.
    #[arg(long, value_name = "FILE", conflicts_with = "labels")]
    classes: Option<PathBuf>,
    /// Subtracted from each of red, green and blue, of 0 to 1; one number for all or three.
    #[arg(long, value_name = "R,G,B", default_value = "0.485,0.456,0.406", value_parser = parse_triple)]
    mean: [f32; 3],
    /// Divides each of them.
    #[arg(long, value_name = "R,G,B", default_value = "0.229,0.224,0.225", value_parser = parse_triple)]
    std: [f32; 3],
    #[command(flatten)]
    reading: ReadingArgs,
    /// Quantiser depths, 1 to 8.
    #[arg(long, value_name = "BITS", value_delimiter = ',', default_value = "8,6,4")]
    bits: Vec<u8>,
    /// Channel counts that may be sent, besides all; quarters of them if not given.
    #[arg(long, value_name = "COUNTS", value_delimiter = ',')]
    channels: Vec<u16>,
    /// Send sums of channels that do not vary together in place of the channels: where it takes fewer
    /// bytes at the same error of the outputs if not given.
    #[arg(long, value_enum, default_value_t)]
    rotate: RotateArg,
    /// The engine that computes the reference values for `bundle verify`.
    #[arg(long, value_enum, default_value_t)]
    reference: Reference,
}

/// What an ONNX file does not say of itself.
#[derive(Args)]
pub(crate) struct ReadingArgs {
    /// Size of the picture where the model leaves it free.
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = parse_size)]
    size: Option<[u32; 2]>,
    /// Take these tensors for the outputs, in place of the file's; what is behind them is left out.
    #[arg(long, value_name = "TENSORS", value_delimiter = ',')]
    outputs: Vec<String>,
    /// Where the tensors have their channels; what the operators say if not given.
    #[arg(long, value_enum)]
    layout: Option<LayoutArg>,
}

/// What a network answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum TaskArg {
    /// One of several classes.
    Classification,
    /// Boxes; needs --boxes and --labels.
    Detection,
    /// A class for every place.
    Segmentation,
    /// A value for every place.
    Regression,
    /// The outputs as they come.
    Tensors,
}

impl TaskArg {
    fn task(self) -> Task {
        match self {
            TaskArg::Classification => Task::Classification,
            TaskArg::Detection => Task::Detection,
            TaskArg::Segmentation => Task::Segmentation,
            TaskArg::Regression => Task::Regression,
            TaskArg::Tensors => Task::Tensors,
        }
    }
}

/// How a picture is brought to the network's shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FitArg {
    /// Its middle is kept.
    Crop,
    /// All of it, with bars.
    Letterbox,
    /// All of it, in another shape.
    Stretch,
}

/// The order of a network's channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum OrderArg {
    /// Red first.
    #[default]
    Rgb,
    /// Blue first.
    Bgr,
}

/// Whether sums of channels are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum RotateArg {
    /// Where it takes fewer bytes.
    #[default]
    Auto,
    /// In any case.
    Yes,
    /// In no case.
    No,
}

impl RotateArg {
    fn asked(self) -> Rotate {
        match self {
            RotateArg::Auto => Rotate::Auto,
            RotateArg::Yes => Rotate::Yes,
            RotateArg::No => Rotate::No,
        }
    }
}

/// Where a tensor has its channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum LayoutArg {
    /// Second: [N, C, h, w].
    First,
    /// Last: [N, h, w, C], or tokens, [N, places, C].
    Last,
}

/// An engine that is not the one that will run the bundle.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Reference {
    /// tract without optimisation: every node of the graph by itself, slowly.
    #[default]
    TractPlain,
    /// An installed ONNX Runtime; needs the cargo feature `ort`.
    Ort,
}

impl Reference {
    fn open(self) -> anyhow::Result<Box<dyn Engine>> {
        match self {
            Reference::TractPlain => Ok(Box::new(PlainTract)),
            Reference::Ort => Ok(EngineKind::Ort.open(&[])?),
        }
    }
}

pub(crate) fn cut(args: &CutArgs) -> anyhow::Result<()> {
    let reference = args.reference.open()?;
    let mut model = open(&args.model, &args.reading)?;
    let (task, boxes) = task(args, &mut model).with_context(|| args.model.display().to_string())?;
    let file_name = |path: &Path| {
        path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned()
    };
    let labels = labels(args, task, &mut model)?;
    let heads = args.heads.iter().map(|(name, file)| {
        Ok(OtherHead { name: name.clone(), model: open(file, &args.reading)? })
    });
    let heads = heads.collect::<anyhow::Result<Vec<_>>>()?;
    let limit = args.limit.map(|limit| limit as usize);
    let calibration = find_photos(&args.calibrate, &labels)?;
    let (calibration, measuring) = match &args.measure {
        Some(folder) => (spread(calibration, limit), spread(find_photos(folder, &labels)?, limit)),
        None => alternate(spread(calibration, limit.map(|limit| limit.saturating_mul(2)))),
    };
    let truth = match (&args.truth, &args.measure) {
        (Some(file), Some(folder)) => {
            let renamed: BTreeMap<String, String> = args.relabel.iter().cloned().collect();
            Some(Truth::coco(file, folder)?.with_labels(&labels, &renamed)?)
        }
        _ => None,
    };
    let letterbox = if task == Task::Detection { FitArg::Letterbox } else { FitArg::Crop };
    let import = Import {
        name: args.name.clone().unwrap_or_else(|| file_name(&args.out)),
        version: args.weights_version.clone(),
        origin: file_name(&args.model),
        task,
        labels,
        boxes,
        truth,
        fit: match args.fit.unwrap_or(letterbox) {
            FitArg::Crop => Fit::Crop,
            FitArg::Letterbox => Fit::Letterbox,
            FitArg::Stretch => Fit::Stretch,
        },
        order: match args.order {
            OrderArg::Rgb => ChannelOrder::Rgb,
            OrderArg::Bgr => ChannelOrder::Bgr,
        },
        fill: args.fill,
        mean: args.mean,
        std: args.std,
        bits: args.bits.clone(),
        channels: args.channels.clone(),
        rotate: args.rotate.asked(),
        heads,
        calibration,
        measuring,
    };
    let log = &mut |line: String| eprintln!("bundle: {line}");
    let engines = ImportEngines { engine: &Tract, reference: &*reference };
    let bundle = import.write(&model, &args.at, engines, &args.out, log)?;
    print(&inspect::text(&bundle))
}

/// What the network answers: what was said, or what its outputs look like.
fn task(args: &CutArgs, model: &mut WholeModel) -> anyhow::Result<(Task, Option<BoxesSpec>)> {
    let row = match model.outputs() {
        [ModelOutput { shape, .. }] => shape.iter().skip(1).all(|&side| side == 1),
        _ => false,
    };
    let task = match (args.task, &args.boxes) {
        (Some(task), _) => task.task(),
        (None, Some(_)) => Task::Detection,
        (None, None) if row => Task::Classification,
        (None, None) => {
            eprintln!("bundle: no task is said: the outputs are answered as they come");
            Task::Tensors
        }
    };
    if task == Task::Classification
        && let Some(made) = model.classify()?
    {
        eprintln!("bundle: {}", told(made));
    }
    let boxes = match (task, &args.boxes) {
        (Task::Detection, Some(file)) => {
            let text = String::from_utf8(read(file, MAX_LIST_BYTES)?);
            let text = text.with_context(|| file.display().to_string())?;
            Some(toml::from_str(&text).with_context(|| file.display().to_string())?)
        }
        (Task::Detection, None) => bail!("a detection needs --boxes: how its outputs become boxes"),
        (_, Some(_)) => bail!("--boxes is for a detection"),
        _ => None,
    };
    Ok((task, boxes))
}

/// The names of the classes that the task has.
fn labels(args: &CutArgs, task: Task, model: &mut WholeModel) -> anyhow::Result<Vec<String>> {
    let classes = match (task, model.outputs()) {
        (Task::Classification, _) => Some(model.classes()),
        (Task::Segmentation, [ModelOutput { shape, .. }]) => shape.first().copied(),
        _ => None,
    };
    match (&args.labels, &args.classes, task) {
        (Some(_), _, Task::Regression | Task::Tensors) => bail!("a {} has no labels", task.name()),
        (Some(file), ..) => read_labels(file, classes),
        (_, Some(file), Task::Classification) => {
            let chosen = read_classes(file)?;
            let outputs: Vec<usize> = chosen.values().copied().collect();
            model.select_classes(&outputs).with_context(|| file.display().to_string())?;
            Ok(chosen.into_keys().collect())
        }
        (_, Some(_), _) => bail!("--classes is for a classifier"),
        (None, None, Task::Detection) => bail!("a detection needs --labels: a name for each class"),
        _ => Ok((0..classes.unwrap_or(0)).map(|output| output.to_string()).collect()),
    }
}

pub(crate) fn open(path: &Path, args: &ReadingArgs) -> anyhow::Result<WholeModel> {
    let onnx = read(path, MAX_FILE_BYTES)?;
    let layout = args.layout.map(|layout| match layout {
        LayoutArg::First => Layout::ChannelsFirst,
        LayoutArg::Last => Layout::ChannelsLast,
    });
    let options = ModelOptions { size: args.size, outputs: args.outputs.clone(), layout };
    WholeModel::parse(&onnx, &options).with_context(|| path.display().to_string())
}

/// What became of a network's probabilities, for people.
fn told(made: Probabilities) -> &'static str {
    match made {
        Probabilities::Softmax => "the softmax at the end is cut off: answers are made of logits",
        Probabilities::YesOrNo => {
            "the logistic function at the end is cut off: its one value becomes two logits, no and yes"
        }
        Probabilities::Sigmoids => {
            "the logistic functions at the end are cut off: answers are by softmax, so that the likeliest \
             class stays, but probabilities are shares and not those of each class for itself"
        }
    }
}

/// One name for each output, if their number is known; a name that comes again gets its output's
/// number.
fn read_labels(file: &Path, outputs: Option<usize>) -> anyhow::Result<Vec<String>> {
    let text = read(file, MAX_LIST_BYTES)?;
    let named = || file.display().to_string();
    let lines = label_lines(&text).with_context(named)?;
    let outputs = outputs.unwrap_or(lines.len());
    ensure!(
        lines.len() == outputs,
        "{}: has {} lines, the network has {outputs} outputs",
        named(),
        lines.len()
    );
    let unique = |(output, line): (usize, &&str)| match lines[..output].contains(line) {
        true => format!("{line} #{output}"),
        false => (*line).to_owned(),
    };
    Ok(lines.iter().enumerate().map(unique).collect())
}

/// The lines of a file as editors leave it: behind a mark of its encoding, ended in either way, with
/// empty lines at the end.
fn label_lines(text: &[u8]) -> anyhow::Result<Vec<&str>> {
    let text = text.strip_prefix("\u{feff}".as_bytes()).unwrap_or(text);
    let mut lines = Vec::new();
    for (at, line) in text.split(|&byte| byte == b'\n').enumerate() {
        let line = std::str::from_utf8(line);
        let line = line.with_context(|| format!("line {}: not UTF-8", at + 1))?;
        lines.push(line.trim());
    }
    while lines.last().is_some_and(|line| line.is_empty()) {
        lines.pop();
    }
    Ok(lines)
}

fn read_classes(file: &Path) -> anyhow::Result<BTreeMap<String, usize>> {
    let named = || file.display().to_string();
    let text = String::from_utf8(read(file, MAX_LIST_BYTES)?).with_context(named)?;
    let classes: BTreeMap<String, usize> = toml::from_str(&text).with_context(named)?;
    ensure!(!classes.is_empty(), "{}: names no class", named());
    Ok(classes)
}

/// `limit` of the photos, or all, evenly spread.
pub(crate) fn spread(photos: Vec<Photo>, limit: Option<usize>) -> Vec<Photo> {
    let (all, limit) = (photos.len(), limit.unwrap_or(usize::MAX));
    if limit >= all {
        return photos;
    }
    (0..limit).map(|at| photos[at * all / limit].clone()).collect()
}

/// The first of every two photos, and the second.
fn alternate(photos: Vec<Photo>) -> (Vec<Photo>, Vec<Photo>) {
    let second = photos.iter().skip(1).step_by(2).cloned().collect();
    (photos.into_iter().step_by(2).collect(), second)
}

fn parse_pair(text: &str) -> anyhow::Result<(String, String)> {
    let (name, label) = text.split_once('=').context("must be CATEGORY=LABEL")?;
    Ok((name.into(), label.into()))
}

fn parse_bytes(text: &str) -> anyhow::Result<[u8; 3]> {
    let values = text.split(',').map(|value| Ok(value.trim().parse()?));
    match *values.collect::<anyhow::Result<Vec<u8>>>()? {
        [one] => Ok([one; 3]),
        [r, g, b] => Ok([r, g, b]),
        _ => bail!("must be one number or three"),
    }
}

fn parse_head(text: &str) -> anyhow::Result<(String, PathBuf)> {
    let (name, file) = text.split_once('=').context("must be NAME=FILE, such as w50=half.onnx")?;
    Ok((name.into(), file.into()))
}

pub(crate) fn parse_size(text: &str) -> anyhow::Result<[u32; 2]> {
    let sides = text.split_once('x').context("must be WIDTHxHEIGHT, such as 224x224")?;
    Ok([sides.0.parse()?, sides.1.parse()?])
}

fn parse_triple(text: &str) -> anyhow::Result<[f32; 3]> {
    let values = text.split(',').map(|value| Ok(value.trim().parse()?));
    let values = values.collect::<anyhow::Result<Vec<f32>>>()?;
    match *values {
        [one] => Ok([one; 3]),
        [r, g, b] => Ok([r, g, b]),
        _ => bail!("must be one number or three"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn photos(count: usize) -> Vec<Photo> {
        (0..count).map(|at| Photo { path: at.to_string().into(), class: None }).collect()
    }

    #[test]
    fn a_limit_takes_from_the_whole_folder() {
        let names = |photos: Vec<Photo>| -> Vec<String> {
            photos.iter().map(|photo| photo.path.display().to_string()).collect()
        };
        assert_eq!(names(spread(photos(10), Some(4))), ["0", "2", "5", "7"]);
        assert_eq!(spread(photos(3), Some(4)).len(), 3);
        assert_eq!(spread(photos(3), None).len(), 3);
        let (first, second) = alternate(photos(5));
        assert_eq!(
            (names(first), names(second)),
            (vec!["0".into(), "2".into(), "4".into()], vec!["1".into(), "3".into()])
        );
    }

    #[test]
    fn labels_are_read_as_editors_leave_them() {
        let lines = label_lines("\u{feff}cat\r\ndog\r\n\r\n".as_bytes()).expect("two");
        assert_eq!(lines, ["cat", "dog"]);
        assert_eq!(label_lines(b"a\n\nb").expect("three"), ["a", "", "b"]);
        let error = label_lines(b"a\ncaf\xe9\n").expect_err("Latin-1").to_string();
        assert_eq!(error, "line 2: not UTF-8");
    }

    #[test]
    fn options_of_several_numbers() {
        assert_eq!(parse_size("320x240").expect("a size"), [320, 240]);
        assert!(parse_size("320").is_err() && parse_size("axb").is_err());
        assert_eq!(parse_triple("0.5").expect("one"), [0.5; 3]);
        assert_eq!(parse_triple("1, 2,3").expect("three"), [1.0, 2.0, 3.0]);
        assert!(parse_triple("1,2").is_err() && parse_triple("").is_err());
    }
}
