//! `bundle cuts`: where a network can be cut, and what each cut costs.

use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use isthmus_models::{Cut, Engine, Mix, Parts, TensorView, Timing, Tract, WholeModel};

use crate::cut::{ReadingArgs, open};
use crate::listed::{self, Listed};
use crate::{Format, plot, print};

#[derive(Args)]
pub(crate) struct CutsArgs {
    /// ONNX file of a network that takes one picture, [N, 3, H, W].
    #[arg(value_name = "MODEL.onnx")]
    model: PathBuf,
    #[command(flatten)]
    reading: ReadingArgs,
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

pub(crate) fn list(args: &CutsArgs) -> anyhow::Result<()> {
    let model = open(&args.model, &args.reading)?;
    let mut cuts = Vec::new();
    for cut in model.cuts() {
        let times = match args.no_times {
            true => None,
            false => Some(time(&model, cut, args.runs)?),
        };
        cuts.push(Listed::new(cut, times));
    }
    if let Some(file) = &args.plot {
        std::fs::write(file, plot::svg(&cuts)).with_context(|| file.display().to_string())?;
    }
    print(&match args.format {
        Format::Json => serde_json::to_string_pretty(&cuts)? + "\n",
        Format::Text => listed::text(&cuts, model.macs()),
    })
}

/// Median time (ms) of the head and of the tail, for one picture.
fn time(model: &WholeModel, cut: &Cut, runs: u32) -> anyhow::Result<[f64; 2]> {
    let Parts { head, trunk, .. } = model.cut(cut, &Mix::Order((0..cut.shape[0]).collect()));
    let [width, height] = model.size().map(|side| side as usize);
    let part = |onnx: &[u8], name: &str, shapes: &[[usize; 4]]| -> anyhow::Result<f64> {
        let graph = Tract.load(onnx, &format!("the {name} of {}", cut.name()))?;
        let values = shapes.iter().map(|shape| vec![0.5; shape.iter().product()]);
        let values: Vec<Vec<f32>> = values.collect();
        let inputs = shapes.iter().zip(&values).map(|(shape, data)| TensorView { shape, data });
        let inputs: Vec<TensorView<'_>> = inputs.collect();
        let timing = Timing::measure(runs, || graph.run(&inputs))?;
        Ok((1e3 * timing.p50_ms).round() / 1e3)
    };
    let features = cut.features().into_iter().map(|[c, h, w]| [1, c, h, w]);
    let features: Vec<[usize; 4]> = features.collect();
    Ok([part(&head, "head", &[[1, 3, height, width]])?, part(&trunk, "tail", &features)?])
}
