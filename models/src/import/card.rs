//! The model card of an imported bundle: its origin, its cut and what was measured, for people.

use crate::cut::Cut;
use crate::manifest::{Manifest, PointSpec};

/// The card in Markdown, of a network from `origin`; `calibrated` and `frames` pictures calibrated and
/// measured it.
pub(super) fn text(
    origin: &str,
    calibrated: usize,
    cut: &Cut,
    manifest: &Manifest,
    frames: usize,
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
    card += &format!(
        "\n## Measured\n\nOn {frames} pictures, with the real codec; bytes with header and \
         envelope. The full network is right on {:.2}%.\n\n\
         | point | right % | mean bytes | p50 | p99 |\n|---|---|---|---|---|\n",
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
