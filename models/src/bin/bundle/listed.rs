//! The cuts of a network as they are listed.

use isthmus_models::Cut;
use serde::Serialize;

use crate::table;

/// One cut, as it is listed.
#[derive(Serialize)]
pub(crate) struct Listed {
    /// Several with commas between them.
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

impl Listed {
    /// A cut, and the median times (ms) of its head and tail, if they were measured.
    pub(crate) fn new(cut: &Cut, times: Option<[f64; 2]>) -> Listed {
        Listed {
            tensor: cut.name(),
            op: cut.op.clone(),
            shape: cut.shape,
            bytes: cut.values(),
            head_macs: cut.head_macs,
            tail_macs: cut.tail_macs,
            head_parameters: cut.head_parameters,
            head_ms: times.map(|[head, _]| head),
            tail_ms: times.map(|[_, tail]| tail),
        }
    }
}

/// The list for people, of a network of `macs` multiply-accumulates.
pub(crate) fn text(cuts: &[Listed], macs: u64) -> String {
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
