//! The model card of an imported bundle: its origin, its cut and what was measured, for people.

use crate::cut::Cut;
use crate::manifest::{Manifest, PointSpec, Task};

/// The card in Markdown, of a network from `origin`; `calibrated` and `frames` pictures calibrated and
/// measured it, these `against_whole`: held against the whole network's answers, not the truth.
pub(super) fn text(
    origin: &str,
    calibrated: usize,
    cut: &Cut,
    manifest: &Manifest,
    frames: usize,
    against_whole: bool,
) -> String {
    let Manifest { name, version, full, .. } = manifest;
    let (tensor, Cut { op, head_macs, tail_macs, .. }) = (cut.name(), cut);
    let [before, behind] = [head_macs, tail_macs].map(|macs| *macs as f64 / 1e6);
    let mut card = format!(
        "# {name} {version}\n\n{origin}, cut at `{tensor}` ({op}): {before:.1} MMAC before it, \
         {behind:.1} MMAC behind it. Its weights are as they were; the quantiser was calibrated on \
         {calibrated} pictures. The head has no early exit.\n"
    );
    if frames == 0 {
        return card + "\nNothing was measured: no picture's class was known.\n";
    }
    let task = manifest.decoders.first().map_or(Task::Tensors, |decoder| decoder.task);
    let (quality, whole) = match (task, against_whole) {
        (Task::Classification, _) => ("right %", "is right on"),
        (Task::Detection, false) => ("F1 %", "has an F1 (at an overlap of half) of"),
        (_, false) => ("quality %", "has a quality of"),
        (_, true) => ("agreement %", "agrees with itself on"),
    };
    card += &format!(
        "\n## Measured\n\nOn {frames} pictures, with the real codec; bytes with header and \
         envelope. The full network {whole} {:.2}%.\n\n\
         | point | {quality} | mean bytes | p50 | p99 |\n|---|---|---|---|---|\n",
        100.0 * full.quality
    );
    for point in &manifest.points {
        let PointSpec { split, width, channels, bits, quality, .. } = point;
        card += &format!(
            "| {split}/{width}/c{channels}/b{bits} | {:.2} | {} | {} | {} |\n",
            100.0 * quality,
            point.bytes_mean,
            point.bytes_p50,
            point.bytes_p99
        );
    }
    card
}
