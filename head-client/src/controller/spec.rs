//! Which controllers there are, by name and by settings: a new one is added here, and only here.

use std::sync::Arc;

use serde::Deserialize;

use super::decision::Controller;
use super::fixed::Fixed;
use super::greedy::Greedy;
use super::ladder::Ladder;
use super::linucb::LinUcb;
use super::mpc::{Mpc, MpcConfig};
use super::run::Run;

/// A controller by name.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[cfg_attr(feature = "shell", derive(clap::ValueEnum))]
#[serde(rename_all = "lowercase")]
pub enum ControllerKind {
    /// The same point for every frame.
    #[default]
    Fixed,
    /// The most accurate point that fits the smoothed throughput.
    Greedy,
    /// A plan over the next frames, by predicted transfer times.
    Mpc,
    /// A contextual bandit that corrects the prediction.
    #[cfg_attr(feature = "shell", value(name = "linucb"))]
    LinUcb,
}

impl ControllerKind {
    /// The name by which users choose it.
    pub fn name(self) -> &'static str {
        match self {
            ControllerKind::Fixed => "fixed",
            ControllerKind::Greedy => "greedy",
            ControllerKind::Mpc => "mpc",
            ControllerKind::LinUcb => "linucb",
        }
    }

    /// This controller with its settings: `run` is for [`ControllerKind::Fixed`] alone, and `config`
    /// for [`ControllerKind::Mpc`] alone.
    pub fn with(self, run: impl Into<Run>, config: MpcConfig) -> ControllerSpec {
        match self {
            ControllerKind::Fixed => ControllerSpec::Fixed(Fixed::new(run)),
            ControllerKind::Greedy => ControllerSpec::Greedy,
            ControllerKind::Mpc => ControllerSpec::Mpc(config),
            ControllerKind::LinUcb => ControllerSpec::LinUcb,
        }
    }
}

/// A controller with its settings, from which any number of it can be built.
///
/// ```
/// use std::convert::Infallible;
/// use std::sync::Arc;
///
/// use isthmus_head_client::{ControllerSpec, Fixed, Ladder};
/// use isthmus_proto::OperatingPoint;
///
/// let point = OperatingPoint { split: 0, width: 0, layers: 4, bits: 6 };
/// let spec = ControllerSpec::Fixed(Fixed::new(point));
/// assert_eq!(spec.name(), "fixed");
/// // The fixed controller needs no ladder, so none is made.
/// let ladder = || -> Result<Arc<Ladder>, Infallible> { unreachable!() };
/// let controller = spec.build(ladder)?;
/// # Ok::<(), Infallible>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ControllerSpec {
    /// The same run for every frame.
    Fixed(Fixed),
    /// The most accurate point that fits the smoothed throughput.
    Greedy,
    /// A plan over the next frames, by predicted transfer times.
    Mpc(MpcConfig),
    /// A contextual bandit that corrects the prediction.
    LinUcb,
}

impl ControllerSpec {
    /// Its name, without its settings.
    pub fn name(&self) -> &'static str {
        self.kind().name()
    }

    /// Which controller it is.
    pub fn kind(&self) -> ControllerKind {
        match self {
            ControllerSpec::Fixed(_) => ControllerKind::Fixed,
            ControllerSpec::Greedy => ControllerKind::Greedy,
            ControllerSpec::Mpc(_) => ControllerKind::Mpc,
            ControllerSpec::LinUcb => ControllerKind::LinUcb,
        }
    }

    /// A controller without any knowledge of the network. `ladder` is asked only for one that chooses
    /// from a ladder.
    pub fn build<E>(
        &self,
        ladder: impl FnOnce() -> Result<Arc<Ladder>, E>,
    ) -> Result<Box<dyn Controller>, E> {
        Ok(match *self {
            ControllerSpec::Fixed(fixed) => Box::new(fixed),
            ControllerSpec::Greedy => Box::new(Greedy::new(ladder()?)),
            ControllerSpec::Mpc(config) => Box::new(Mpc::new(config, ladder()?)),
            ControllerSpec::LinUcb => Box::new(LinUcb::new(ladder()?)),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::run::HeadRun;
    use super::*;

    #[test]
    fn names_and_settings_agree() {
        let run = Run::Head(HeadRun { split: 0, width: 0, bits: 6, layers: 1 });
        for kind in [
            ControllerKind::Fixed,
            ControllerKind::Greedy,
            ControllerKind::Mpc,
            ControllerKind::LinUcb,
        ] {
            let spec = kind.with(run, MpcConfig::default());
            assert_eq!((spec.kind(), spec.name()), (kind, kind.name()));
            let built = spec.build(|| Err("no ladder"));
            assert_eq!(built.is_ok(), kind == ControllerKind::Fixed, "{kind:?}");
        }
    }
}
