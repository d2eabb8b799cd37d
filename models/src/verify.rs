//! A check that a bundle computes on this machine what another engine computed of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use isthmus_proto::{CodecError, FeatureCodec};

use crate::bundle::{Bundle, PointError};
use crate::classify::likeliest;
use crate::engine::Engine;
use crate::golden::{Golden, GoldenError};
use crate::head::Head;
use crate::manifest::{Manifest, Task};
use crate::prepared::{LoadError, RunError};
use crate::preprocess::Preprocessor;
use crate::tail::{Full, Tail, TailItem};

/// How far two engines may differ, because they add up in different orders: relative to the
/// greatest value of a tensor, and absolute below 1.
const TOLERANCE: f32 = 1e-3;
/// One symbol in this many may differ, by one step, where the engine and the maker's round apart.
const SYMBOLS_PER_DIFFERENCE: usize = 1000;

/// Why a bundle does not verify.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// A graph that does not load, or has other shapes than the manifest says.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// A golden that is not reproduced.
    #[error("{file}: {problem}")]
    Golden {
        /// The golden's path.
        file: String,
        /// What differs.
        problem: GoldenProblem,
    },
}

/// What is wrong with a golden, or with its values on this machine.
#[derive(Debug, thiserror::Error)]
pub enum GoldenProblem {
    /// It cannot be read.
    #[error(transparent)]
    Format(#[from] GoldenError),
    /// Its point is not the bundle's.
    #[error(transparent)]
    Point(#[from] PointError),
    /// A graph failed on it.
    #[error(transparent)]
    Run(#[from] RunError),
    /// Its symbols or stream are not what the codec can have made.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Another value than the golden's.
    #[error("{0}")]
    Differs(String),
}

/// What was verified.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verified {
    /// Goldens that were reproduced.
    pub goldens: usize,
    /// The engines that computed their values, as far as the goldens name them.
    pub references: BTreeSet<String>,
    /// Their symbols.
    pub symbols: usize,
    /// Those that this machine rounds to the neighbouring symbol.
    pub differing: usize,
    /// The furthest that a logit here is from the golden's.
    pub logit_difference: f32,
}

/// Loads and runs every graph of `bundle`, and reproduces every golden: preprocessing, latents,
/// exit, symbols, stream with every layer's end, and logits of the tail and of the whole network.
/// Digests, manifest and tables were checked when the bundle was opened.
pub fn verify(bundle: &Arc<Bundle>, engine: &dyn Engine) -> Result<Verified, VerifyError> {
    let head = Head::load(Arc::clone(bundle), engine)?;
    let tail = Tail::load(Arc::clone(bundle), engine)?;
    let full = Full::load(Arc::clone(bundle), engine)?;
    let mut verified = Verified::default();
    for name in bundle.golden_files() {
        let file = || bundle.dir().join(name).display().to_string();
        let bytes = bundle.read(name).map_err(LoadError::from)?;
        let checked = check(bundle, &head, &tail, &full, &bytes, &mut verified);
        checked.map_err(|problem| VerifyError::Golden { file: file(), problem })?;
    }
    Ok(verified)
}

fn check(
    bundle: &Bundle,
    head: &Head,
    tail: &Tail,
    full: &Full,
    bytes: &[u8],
    verified: &mut Verified,
) -> Result<(), GoldenProblem> {
    let golden = Golden::parse(bytes, bundle.manifest())?;
    let point = bundle.parse_point(&golden.point.to_string())?;
    let (split, width) = (point.split, point.width);
    let codec = bundle.codec(split, width, point.bits);
    let codec = codec.ok_or(RunError::Point { split, width })?;

    let mut input = Vec::new();
    Preprocessor::new(&bundle.manifest().input).run(&golden.picture, &mut input);
    // The same levels: what is left is the rounding of the normalisation in f32.
    close("input", &input, &golden.input, 1e-6)?;

    let output = head.run(split, width, &golden.input)?;
    close("latents", &output.latents, &golden.latents, TOLERANCE)?;
    match (&output.exit, &golden.exit) {
        (Some(ours), Some(theirs)) => close("exit", ours, theirs, TOLERANCE)?,
        (None, None) => {}
        _ => return Err(GoldenProblem::Differs("exit: the head or the golden has none".into())),
    }

    // The quantiser alone is exact; behind another engine's head it may round otherwise.
    same("symbols", &codec.quantise(&golden.latents, point.layers.into())?, &golden.symbols)?;
    let ours = codec.quantise(&output.latents, point.layers.into())?;
    let distances = ours.iter().zip(&golden.symbols).map(|(a, b)| a.abs_diff(*b));
    let (mut differing, mut furthest) = (0, 0);
    for distance in distances {
        differing += usize::from(distance > 0);
        furthest = furthest.max(distance);
    }
    if furthest > 1 || differing > golden.symbols.len().div_ceil(SYMBOLS_PER_DIFFERENCE) {
        let all = golden.symbols.len();
        let problem = format!(
            "symbols: {differing} of {all} differ from this machine's, by up to {furthest} steps"
        );
        return Err(GoldenProblem::Differs(problem));
    }
    check_stream(codec, &golden)?;

    let mut latents = Vec::new();
    codec.dequantise(&golden.symbols, &mut latents)?;
    let outputs = tail.run(&[TailItem { split, width, latents: &latents }])?;
    let full_outputs = full.run(&[&golden.input])?;
    for (what, ours, theirs) in
        [("tail", outputs, &golden.outputs), ("full network", full_outputs, &golden.full_outputs)]
    {
        let ours = ours.into_iter().next().unwrap_or_default();
        let difference = same_answers(what, bundle.manifest(), &ours, theirs)?;
        verified.logit_difference = verified.logit_difference.max(difference);
    }
    verified.goldens += 1;
    verified.references.extend(golden.engine);
    verified.symbols += golden.symbols.len();
    verified.differing += differing;
    Ok(())
}

fn check_stream(codec: &FeatureCodec, golden: &Golden) -> Result<(), GoldenProblem> {
    let coded = codec.encode(&golden.symbols)?;
    same("stream", &coded.stream, &golden.stream)?;
    let ends = golden.layer_bytes.iter().scan(0usize, |end, &bytes| {
        *end = end.saturating_add(bytes as usize);
        Some(*end)
    });
    let ends: Vec<usize> = ends.collect();
    same("layer_bytes", &coded.layer_ends, &ends)?;
    for (layers, &end) in (1..).zip(&ends) {
        let decoded = codec.decode(golden.stream.get(..end).unwrap_or_default(), layers)?;
        if !golden.symbols.starts_with(&decoded) {
            let problem = format!("stream: its first {layers} layers decode to other symbols");
            return Err(GoldenProblem::Differs(problem));
        }
    }
    Ok(())
}

fn same<T: PartialEq>(what: &str, ours: &[T], theirs: &[T]) -> Result<(), GoldenProblem> {
    if ours == theirs {
        return Ok(());
    }
    let at = ours.iter().zip(theirs).position(|(a, b)| a != b);
    let at = at.unwrap_or_else(|| ours.len().min(theirs.len()));
    let problem =
        format!("{what}: {} and {} values, differing from {at} on", ours.len(), theirs.len());
    Err(GoldenProblem::Differs(problem))
}

fn close(what: &str, ours: &[f32], theirs: &[f32], tolerance: f32) -> Result<(), GoldenProblem> {
    if ours.len() != theirs.len() {
        return same(what, ours, theirs);
    }
    let scale = theirs.iter().fold(1f32, |scale, value| scale.max(value.abs()));
    let bound = tolerance * scale;
    // A NaN on either side is no match.
    match ours.iter().zip(theirs).position(|(a, b)| (a - b).abs().is_nan() || (a - b).abs() > bound)
    {
        None => Ok(()),
        Some(at) => {
            let problem = format!("{what}: value {at} is {}, not {}", ours[at], theirs[at]);
            Err(GoldenProblem::Differs(problem))
        }
    }
}

/// Outputs that are close, and of classifiers with the same likeliest class. Gives the furthest that a
/// value is off.
fn same_answers(
    what: &str,
    manifest: &Manifest,
    ours: &[Vec<f32>],
    theirs: &[Vec<f32>],
) -> Result<f32, GoldenProblem> {
    let decoders = manifest.decoders.iter();
    let named = decoders.flat_map(|decoder| decoder.outputs.iter().map(move |it| (decoder, it)));
    let mut furthest = 0.0;
    for ((decoder, output), (ours, theirs)) in named.zip(ours.iter().zip(theirs)) {
        let what = format!("{what}: {}.{}", decoder.name, output.name);
        close(&what, ours, theirs, TOLERANCE)?;
        if decoder.task == Task::Classification && likeliest(ours) != likeliest(theirs) {
            let problem = format!("{what}: another class is the likeliest");
            return Err(GoldenProblem::Differs(problem));
        }
        furthest = ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(furthest, f32::max);
    }
    Ok(furthest)
}
