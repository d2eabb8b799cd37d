//! Cutting a model from elsewhere.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use clap::Args;
use isthmus_models::{
    Cut, Engine, Import, MAX_FILE_BYTES, Parts, Photo, TensorView, Timing, Tract, WholeModel,
    find_photos,
};
use serde::Serialize;

use crate::{Format, inspect, plot, print, read, table};

/// Largest list of labels or classes that is read (bytes).
const MAX_LIST_BYTES: u64 = 16 << 20;

#[derive(Args)]
pub(crate) struct CutsArgs {
    /// ONNX file of a classifier: one picture [N, 3, H, W], one row of logits.
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,
    /// Size of the picture where the model leaves it free.
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = parse_size)]
    size: Option<[u32; 2]>,
    /// Leave out the times, which take most of the time.
    #[arg(long)]
    no_times: bool,
    /// Runs behind each time.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Draw bytes and head multiply-accumulates along the depth into this SVG file.
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// How to print the list.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Args)]
pub(crate) struct CutArgs {
    /// ONNX file of a classifier: one picture [N, 3, H, W], one row of logits.
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,
    /// The tensor to cut at, one of those that `bundle cuts` lists.
    #[arg(long, value_name = "TENSOR")]
    at: String,
    /// Folder of pictures to calibrate with: CLASS/*.jpg, or just pictures.
    #[arg(long, value_name = "DIR")]
    calibrate: PathBuf,
    /// Folder of pictures, CLASS/*.jpg, to measure accuracy and bytes on. Without it every second
    /// picture to calibrate with is set aside for that.
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
    /// Text file with the name of each output, one a line; without it they are numbered.
    #[arg(long, value_name = "FILE")]
    labels: Option<PathBuf>,
    /// TOML file of lines `name = output`: the bundle knows these classes alone.
    #[arg(long, value_name = "FILE", conflicts_with = "labels")]
    classes: Option<PathBuf>,
    /// Subtracted from each of red, green and blue, of 0 to 1; one number for all or three.
    #[arg(long, value_name = "R,G,B", default_value = "0.485,0.456,0.406", value_parser = parse_triple)]
    mean: [f32; 3],
    /// Divides each of them.
    #[arg(long, value_name = "R,G,B", default_value = "0.229,0.224,0.225", value_parser = parse_triple)]
    std: [f32; 3],
    /// Size of the picture where the model leaves it free.
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = parse_size)]
    size: Option<[u32; 2]>,
    /// Quantiser depths, 1 to 8.
    #[arg(long, value_name = "BITS", value_delimiter = ',', default_value = "8,6,4")]
    bits: Vec<u8>,
    /// Channel counts that may be sent, besides all; quarters of them if not given.
    #[arg(long, value_name = "COUNTS", value_delimiter = ',')]
    channels: Vec<u16>,
}

/// One cut, as it is listed.
#[derive(Serialize)]
pub(crate) struct Listed {
    pub(crate) tensor: String,
    pub(crate) op: String,
    /// `[C, h, w]`.
    pub(crate) shape: [usize; 3],
    /// At 8 bits, without entropy coding.
    pub(crate) bytes: usize,
    pub(crate) head_macs: u64,
    pub(crate) tail_macs: u64,
    pub(crate) head_parameters: u64,
    /// Median (ms), if measured.
    head_ms: Option<f64>,
    tail_ms: Option<f64>,
}

pub(crate) fn list(args: &CutsArgs) -> anyhow::Result<()> {
    let model = open(&args.model, args.size)?;
    let mut cuts = Vec::new();
    for cut in model.cuts() {
        let times = match args.no_times {
            true => None,
            false => Some(time(&model, cut, args.runs)?),
        };
        cuts.push(Listed {
            tensor: cut.tensor.clone(),
            op: cut.op.clone(),
            shape: cut.shape,
            bytes: cut.values(),
            head_macs: cut.head_macs,
            tail_macs: cut.tail_macs,
            head_parameters: cut.head_parameters,
            head_ms: times.map(|[head, _]| head),
            tail_ms: times.map(|[_, tail]| tail),
        });
    }
    if let Some(file) = &args.plot {
        std::fs::write(file, plot::svg(&cuts)).with_context(|| file.display().to_string())?;
    }
    print(&match args.format {
        Format::Json => serde_json::to_string_pretty(&cuts)? + "\n",
        Format::Text => text(&cuts, model.macs()),
    })
}

pub(crate) fn cut(args: &CutArgs) -> anyhow::Result<()> {
    let mut model = open(&args.model, args.size)?;
    let file_name = |path: &Path| {
        path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned()
    };
    let labels = match (&args.labels, &args.classes) {
        (Some(file), _) => read_labels(file, model.classes())?,
        (_, Some(file)) => {
            let classes = read_classes(file)?;
            let outputs: Vec<usize> = classes.values().copied().collect();
            model.select_classes(&outputs).with_context(|| file.display().to_string())?;
            classes.into_keys().collect()
        }
        _ => (0..model.classes()).map(|output| output.to_string()).collect(),
    };
    let limit = args.limit.map(|limit| limit as usize);
    let calibration = find_photos(&args.calibrate, &labels)?;
    let (calibration, measuring) = match &args.measure {
        Some(folder) => (spread(calibration, limit), spread(find_photos(folder, &labels)?, limit)),
        None => alternate(spread(calibration, limit.map(|limit| limit.saturating_mul(2)))),
    };
    let import = Import {
        name: args.name.clone().unwrap_or_else(|| file_name(&args.out)),
        version: args.weights_version.clone(),
        origin: file_name(&args.model),
        labels,
        mean: args.mean,
        std: args.std,
        bits: args.bits.clone(),
        channels: args.channels.clone(),
        calibration,
        measuring,
    };
    let log = &mut |line: String| eprintln!("bundle: {line}");
    let bundle = import.write(&model, &args.at, &Tract, &args.out, log)?;
    print(&inspect::text(&bundle))
}

fn open(path: &Path, size: Option<[u32; 2]>) -> anyhow::Result<WholeModel> {
    let onnx = read(path, MAX_FILE_BYTES)?;
    WholeModel::parse(&onnx, size).with_context(|| path.display().to_string())
}

/// Median time (ms) of the head and of the tail, for one picture.
fn time(model: &WholeModel, cut: &Cut, runs: u32) -> anyhow::Result<[f64; 2]> {
    let order: Vec<usize> = (0..cut.shape[0]).collect();
    let Parts { head, trunk } = model.cut(&cut.tensor, &order)?;
    let [width, height] = model.size().map(|side| side as usize);
    let [channels, h, w] = cut.shape;
    let part = |onnx: &[u8], name: &str, shape: [usize; 4]| -> anyhow::Result<f64> {
        let graph = Tract.load(onnx, &format!("the {name} of {}", cut.tensor))?;
        let data = vec![0.5; shape.iter().product()];
        let timing =
            Timing::measure(runs, || graph.run(&[TensorView { shape: &shape, data: &data }]))?;
        Ok((1e3 * timing.p50_ms).round() / 1e3)
    };
    Ok([part(&head, "head", [1, 3, height, width])?, part(&trunk, "tail", [1, channels, h, w])?])
}

fn text(cuts: &[Listed], macs: u64) -> String {
    let header = ["tensor", "op", "shape", "bytes", "head MMAC", "tail MMAC", "head ms", "tail ms"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let ms = |ms: Option<f64>| ms.map_or("-".into(), |ms| format!("{ms:.2}"));
    for cut in cuts {
        let [c, h, w] = cut.shape;
        rows.push(vec![
            cut.tensor.clone(),
            cut.op.clone(),
            format!("{c}×{h}×{w}"),
            cut.bytes.to_string(),
            format!("{:.1}", cut.head_macs as f64 / 1e6),
            format!("{:.1}", cut.tail_macs as f64 / 1e6),
            ms(cut.head_ms),
            ms(cut.tail_ms),
        ]);
    }
    let whole = macs as f64 / 1e6;
    format!("{} cuts; the whole network takes {whole:.1} MMAC\n", cuts.len()) + &table(&rows)
}

/// One name for each output; a name that comes again gets its output's number.
fn read_labels(file: &Path, outputs: usize) -> anyhow::Result<Vec<String>> {
    let text = String::from_utf8(read(file, MAX_LIST_BYTES)?);
    let text = text.with_context(|| file.display().to_string())?;
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    ensure!(
        lines.len() == outputs,
        "{}: has {} lines, the network has {outputs} outputs",
        file.display(),
        lines.len()
    );
    let unique = |(output, line): (usize, &&str)| match lines[..output].contains(line) {
        true => format!("{line} #{output}"),
        false => (*line).to_owned(),
    };
    Ok(lines.iter().enumerate().map(unique).collect())
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

fn parse_size(text: &str) -> anyhow::Result<[u32; 2]> {
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
    fn options_of_several_numbers() {
        assert_eq!(parse_size("320x240").expect("a size"), [320, 240]);
        assert!(parse_size("320").is_err() && parse_size("axb").is_err());
        assert_eq!(parse_triple("0.5").expect("one"), [0.5; 3]);
        assert_eq!(parse_triple("1, 2,3").expect("three"), [1.0, 2.0, 3.0]);
        assert!(parse_triple("1,2").is_err() && parse_triple("").is_err());
    }
}
