//! All graphs of a bundle on one machine, to compute what a device and a server would.

use std::sync::Arc;

use isthmus_proto::{CodecError, FeatureCodec, OperatingPoint};

use crate::bundle::Bundle;
use crate::engine::Engine;
use crate::golden::Golden;
use crate::head::Head;
use crate::picture::Picture;
use crate::prepared::{LoadError, RunError};
use crate::preprocess::Preprocessor;
use crate::tail::{Full, Tail, TailItem};

/// The device's part, the server's, and the network in one piece.
pub(crate) struct Network {
    pub(crate) bundle: Arc<Bundle>,
    /// Name of the engine that runs them.
    engine: &'static str,
    pub(crate) head: Head,
    pub(crate) tail: Tail,
    pub(crate) full: Full,
}

impl Network {
    pub(crate) fn load(bundle: Arc<Bundle>, engine: &dyn Engine) -> Result<Network, LoadError> {
        Ok(Network {
            head: Head::load(Arc::clone(&bundle), engine)?,
            tail: Tail::load(Arc::clone(&bundle), engine)?,
            full: Full::load(Arc::clone(&bundle), engine)?,
            engine: engine.name(),
            bundle,
        })
    }

    /// A picture's path through the network cut at `point` and, if `full`, in one piece.
    pub(crate) fn golden<E: From<RunError> + From<CodecError>>(
        &self,
        point: OperatingPoint,
        picture: Picture,
        full: bool,
    ) -> Result<Golden, E> {
        let OperatingPoint { split, width, layers, .. } = point;
        let mut input = Vec::new();
        Preprocessor::new(&self.bundle.manifest().input).run(&picture, &mut input);
        let output = self.head.run(split, width, &input)?;
        let codec = self.codec(point)?;
        let symbols = codec.quantise(&output.latents, layers.into())?;
        let coded = codec.encode(&symbols)?;
        let mut sent = Vec::new();
        codec.dequantise(&symbols, &mut sent)?;
        let item = TailItem { split, width, latents: &sent };
        let whole: &[&[f32]] = if full { &[&input] } else { &[] };
        let full_outputs = self.full.run(whole)?.pop().unwrap_or_default();
        let starts = [0].iter().chain(&coded.layer_ends);
        let layers = coded.layer_ends.iter().zip(starts).map(|(end, start)| (end - start) as u32);
        Ok(Golden {
            engine: Some(self.engine.to_owned()),
            point: self.bundle.describe_point(point),
            outputs: self.tail.run(&[item])?.pop().unwrap_or_default(),
            full_outputs,
            layer_bytes: layers.collect(),
            stream: coded.stream,
            exit: output.exit,
            latents: output.latents,
            picture,
            input,
            symbols,
        })
    }

    /// The codec of a point.
    pub(crate) fn codec(&self, point: OperatingPoint) -> Result<&FeatureCodec, RunError> {
        let OperatingPoint { split, width, bits, .. } = point;
        self.bundle.codec(split, width, bits).ok_or(RunError::Point { split, width })
    }
}
