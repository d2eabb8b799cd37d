//! The Python export against Rust, on the values that the exporter left in the bundle.

use anyhow::{Context, ensure};
use isthmus_models::{Golden, Preprocessor, TailItem, likeliest};
use isthmus_tail_server::model::Model;

use super::Measurement;
use super::accuracy::NO_CLASSES;
use super::lab::Lab;

pub(super) fn symbol_mismatch(lab: &Lab) -> anyhow::Result<Measurement> {
    let export = lab.once(Export::measure)?;
    let Export { goldens, symbols, differing, from_pictures, furthest, .. } = *export;
    if goldens == 0 {
        return Ok(Measurement::skipped("the bundle has no goldens"));
    }
    let fraction = |count: u64| count as f64 / symbols as f64;
    let broken = furthest > 1;
    let verdict = if broken { "FAILURE: symbols" } else { "symbols" };
    let detail = format!(
        "{differing} of {symbols} {verdict} differ over {goldens} goldens, by at most {furthest}, \
         heads in tract against ONNX Runtime on the exporter's inputs; {:.2e} with Rust's own \
         preprocessing of the pictures",
        fraction(from_pictures),
    );
    Ok(Measurement { broken, ..Measurement::of(fraction(differing), detail) })
}

pub(super) fn top1(lab: &Lab) -> anyhow::Result<Measurement> {
    if !lab.classifies() {
        return Ok(Measurement::skipped(NO_CLASSES));
    }
    let export = lab.once(Export::measure)?;
    let Export { goldens, same, same_from_pictures, .. } = *export;
    if goldens == 0 {
        return Ok(Measurement::skipped("the bundle has no goldens"));
    }
    let detail = format!(
        "the same class as the exporter's on {same} of {goldens} goldens from its inputs, on \
         {same_from_pictures} with Rust's own preprocessing of the pictures"
    );
    Ok(Measurement::of(same as f64 / goldens as f64, detail))
}

/// The goldens, compared.
#[derive(Default)]
struct Export {
    goldens: u64,
    symbols: u64,
    /// Symbols that differ from the exporter's on its preprocessed inputs.
    differing: u64,
    /// Symbols that differ when Rust preprocesses, too.
    from_pictures: u64,
    /// Greatest distance between two symbols on the exporter's inputs.
    furthest: u8,
    /// Goldens whose likeliest class is the exporter's, from its inputs.
    same: u64,
    /// Those where it is when Rust preprocesses, too.
    same_from_pictures: u64,
}

impl Export {
    fn measure(lab: &Lab) -> anyhow::Result<Export> {
        let (bundle, head, model) = (lab.bundle(), lab.head()?, lab.model()?);
        let preprocessor = Preprocessor::new(&bundle.manifest().input);
        let mut export = Export::default();
        for file in bundle.golden_files() {
            let golden = Golden::parse(&bundle.read(file)?, bundle.manifest())
                .with_context(|| file.to_owned())?;
            let point = bundle.parse_point(&golden.point.to_string())?;
            let (split, width) = (point.split, point.width);
            let codec =
                bundle.codec(split, width, point.bits).context("a point without a codec")?;
            let symbols_of = |input: &[f32]| -> anyhow::Result<Vec<u8>> {
                let latents = head.run(split, width, input)?.latents;
                let symbols = codec.quantise(&latents, point.layers.into())?;
                ensure!(symbols.len() == golden.symbols.len(), "{file}: symbols of another shape");
                Ok(symbols)
            };
            let same_class = |symbols: &[u8]| -> anyhow::Result<bool> {
                let mut latents = Vec::new();
                codec.dequantise(symbols, &mut latents)?;
                let item = TailItem { split, width, latents: &latents };
                let best =
                    |outputs: &[Vec<f32>]| outputs.first().and_then(|logits| likeliest(logits));
                Ok(best(&model.infer(&[item])?.remove(0)) == best(&golden.outputs))
            };
            let ours = symbols_of(&golden.input)?;
            let distances = ours.iter().zip(&golden.symbols).map(|(a, b)| a.abs_diff(*b));
            export.furthest = distances.fold(export.furthest, u8::max);
            export.differing += differing(&ours, &golden.symbols);
            export.symbols += ours.len() as u64;
            export.same += u64::from(same_class(&ours)?);

            let mut input = Vec::new();
            preprocessor.run(&golden.picture, &mut input);
            let ours = symbols_of(&input)?;
            export.from_pictures += differing(&ours, &golden.symbols);
            export.same_from_pictures += u64::from(same_class(&ours)?);
            export.goldens += 1;
        }
        Ok(export)
    }
}

fn differing(ours: &[u8], theirs: &[u8]) -> u64 {
    ours.iter().zip(theirs).filter(|(a, b)| a != b).count() as u64
}
