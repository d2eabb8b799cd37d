//! `bundle inspect`: the contents of a bundle.

use isthmus_models::{Bundle, DecoderSpec, InputSpec, Manifest};
use serde::Serialize;

use crate::table;

/// Manifest and digest as one JSON object.
pub(crate) fn json(bundle: &Bundle) -> anyhow::Result<String> {
    #[derive(Serialize)]
    struct Inspection<'a> {
        digest: String,
        manifest: &'a Manifest,
    }
    let digest = bundle.digest().to_string();
    let inspection = Inspection { digest, manifest: bundle.manifest() };
    Ok(serde_json::to_string_pretty(&inspection)? + "\n")
}

pub(crate) fn text(bundle: &Bundle) -> String {
    let Manifest { name, version, input, full, splits, decoders, points, files, .. } =
        bundle.manifest();
    let InputSpec { width, height, .. } = input;
    let mut text =
        format!("{name} {version}, pictures of {width} × {height}\n{}\n\n", bundle.digest());
    for DecoderSpec { name, task, labels, outputs, .. } in decoders {
        let shapes: Vec<String> =
            outputs.iter().map(|output| format!("{} {:?}", output.name, output.shape)).collect();
        let shapes = shapes.join(", ");
        let task = task.name();
        text += &match labels.len() {
            0 => format!("decoder {name}: {task} from {shapes}\n"),
            classes => format!("decoder {name}: {task}, {classes} classes, from {shapes}\n"),
        };
    }
    text += &format!(
        "full network: {} MMAC, {} parameters, quality {}\n",
        mega(full.macs),
        full.parameters,
        percent(full.quality)
    );
    for split in splits {
        let [c, h, w] = split.latent;
        text += &format!(
            "\nsplit {}: latents {c} × {h} × {w}, of which {} channels may be sent\n",
            split.name,
            split.channels.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
        );
        let mut rows =
            vec![row(&["width", "MMAC", "parameters", "exit's", "exit's quality", "bits"])];
        for width in &split.widths {
            let bits: Vec<String> = width.quantisers.iter().map(|q| q.bits.to_string()).collect();
            let (parameters, quality) = match width.exit {
                true => (width.exit_parameters.to_string(), percent(width.exit_quality)),
                false => ("none".into(), "-".into()),
            };
            let (macs, own) = (mega(width.head_macs), width.head_parameters.to_string());
            rows.push(vec![width.name.clone(), macs, own, parameters, quality, bits.join(",")]);
        }
        text += &table(&rows);
    }
    text.push('\n');
    if points.is_empty() {
        text += "no point was measured\n";
    } else {
        let mut rows = vec![row(&["point", "quality", "bytes", "p50", "p99"])];
        for point in points {
            let name =
                format!("{}/{}/c{}/b{}", point.split, point.width, point.channels, point.bits);
            let bytes = [point.bytes_mean, point.bytes_p50, point.bytes_p99];
            let sizes = bytes.map(|bytes| format!("{bytes:.0}"));
            rows.push([vec![name, percent(point.quality)], sizes.to_vec()].concat());
        }
        text += &table(&rows);
    }
    text.push('\n');
    let mut rows = vec![row(&["file", "bytes"])];
    rows.extend(files.iter().map(|(name, file)| vec![name.clone(), file.bytes.to_string()]));
    let sum: u64 = files.values().map(|file| file.bytes).sum();
    rows.push(vec!["all".into(), sum.to_string()]);
    text + &table(&rows)
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

fn mega(count: u64) -> String {
    format!("{:.1}", count as f64 / 1e6)
}

fn percent(fraction: f64) -> String {
    format!("{:.2}%", 100.0 * fraction)
}
