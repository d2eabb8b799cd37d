//! What the way through `Engine` adds to an ONNX Runtime's own time.

use super::Measurement;
use super::lab::Lab;

#[cfg(not(feature = "ort"))]
pub(super) fn engine_over_onnxruntime(_: &Lab) -> anyhow::Result<Measurement> {
    Ok(Measurement::skipped("this program was built without ONNX Runtime: feature `ort`"))
}

#[cfg(feature = "ort")]
pub(super) fn engine_over_onnxruntime(lab: &Lab) -> anyhow::Result<Measurement> {
    use std::sync::Arc;

    use anyhow::Context;
    use direct::Direct;
    use isthmus_models::{EngineKind, Head, Tail, TailItem};

    let installed = match EngineKind::Ort.open(&[]) {
        Ok(installed) => installed,
        Err(missing) => return Ok(Measurement::skipped(missing.to_string())),
    };
    let bundle = lab.bundle();
    let manifest = bundle.manifest();
    let split = manifest.splits.first().context("the bundle has no split")?;
    let width = split.widths.last().context("the bundle's split has no width")?;
    let at = split.widths.len() as u8 - 1;
    let head = Head::load(Arc::clone(bundle), &*installed)?;
    let tail = Tail::load(Arc::clone(bundle), &*installed)?;

    let input = vec![0.1; manifest.input.shape().iter().product()];
    let latents = head.run(0, at, &input)?.latents;
    let mut own_head = vec![Direct::new(bundle, &width.head, &manifest.input.shape(), &input)?];
    let mut own_tail = Vec::new();
    let [shape] = split.features.as_slice() else {
        return Ok(Measurement::skipped("of trunks that take one tensor alone"));
    };
    let mut features = latents.clone();
    if let Some(adapter) = &width.adapter {
        own_tail.push(Direct::new(bundle, adapter, &split.latent_shape(), &latents)?);
        features = vec![0.1; shape.iter().product()];
    }
    for decoder in &manifest.decoders {
        let trunk = decoder.trunk.get(&split.name).context("a decoder without a trunk")?;
        own_tail.push(Direct::new(bundle, trunk, &[&[1], &shape[..]].concat(), &features)?);
    }

    let (head_ratio, head_detail) =
        direct::compare(&mut own_head, || head.run(0, at, &input).map(drop))?;
    let item = TailItem { split: 0, width: at, latents: &latents };
    let (tail_ratio, tail_detail) = direct::compare(&mut own_tail, || tail.run(&[item]).map(drop))?;
    let detail = format!(
        "the worse of head and tail at {}, one picture, one thread: head {head_detail}, tail \
         {tail_detail}; medians of {}, turn by turn with the same graphs in sessions of their own",
        width.name,
        direct::RUNS,
    );
    Ok(Measurement::of(f64::max(head_ratio, tail_ratio), detail))
}

#[cfg(feature = "ort")]
mod direct {
    use std::time::Instant;

    use isthmus_models::Bundle;
    use ort::session::builder::GraphOptimizationLevel;
    use ort::session::{Session, SessionInputValue};
    use ort::value::Tensor;

    use crate::link::statistics::median;

    /// Timed runs of each way, turn by turn, after some that are not.
    pub(super) const RUNS: usize = 300;
    const WARM_UP: usize = 20;

    /// A graph in a session that is run as it is, on one input.
    pub(super) struct Direct {
        session: Session,
        input: Tensor<f32>,
    }

    impl Direct {
        pub(super) fn new(
            bundle: &Bundle,
            file: &str,
            shape: &[usize],
            input: &[f32],
        ) -> anyhow::Result<Direct> {
            let session = session(&bundle.read(file)?);
            // The error keeps the builder, which is not to be sent between threads.
            let session = session.map_err(|error| anyhow::anyhow!("{file}: {error}"))?;
            Ok(Direct { session, input: Tensor::from_array((shape.to_vec(), input.to_vec()))? })
        }

        fn run(&mut self) -> anyhow::Result<()> {
            self.session.run([SessionInputValue::from(&self.input)])?;
            Ok(())
        }
    }

    fn session(onnx: &[u8]) -> Result<Session, String> {
        let builder = Session::builder().map_err(|error| error.to_string())?;
        let builder = builder
            .with_optimization_level(GraphOptimizationLevel::All)
            .map_err(|error| error.to_string())?;
        let mut builder = builder.with_intra_threads(1).map_err(|error| error.to_string())?;
        builder.commit_from_memory(onnx).map_err(|error| error.to_string())
    }

    /// Time of `ours` over that of the graphs one after the other, and both in words.
    pub(super) fn compare<E: std::error::Error + Send + Sync + 'static>(
        own: &mut [Direct],
        mut ours: impl FnMut() -> Result<(), E>,
    ) -> anyhow::Result<(f64, String)> {
        let (mut our_times, mut own_times) = (Vec::new(), Vec::new());
        for run in 0..WARM_UP + RUNS {
            let start = Instant::now();
            ours()?;
            let middle = Instant::now();
            own.iter_mut().try_for_each(Direct::run)?;
            let end = Instant::now();
            if run >= WARM_UP {
                our_times.push((middle - start).as_secs_f64() * 1e3);
                own_times.push((end - middle).as_secs_f64() * 1e3);
            }
        }
        let (ours, own) = (median(&our_times), median(&own_times));
        Ok((ours / own, format!("{ours:.3} ms over {own:.3} ms")))
    }
}
