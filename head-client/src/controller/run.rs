//! What a device can run for a frame: a head, an image codec or the full network.

use std::fmt;

use isthmus_models::ImageSpec;
use isthmus_proto::OperatingPoint;

/// A head to run, and the depth to quantise its latents to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeadRun {
    /// Position of the split in the bundle.
    pub split: u8,
    /// Position of the width within the split.
    pub width: u8,
    /// Quantiser depth to code with.
    pub bits: u8,
    /// Layers to code: the most that may be sent.
    pub layers: u8,
}

impl HeadRun {
    /// The operating point that sends the first `layers` layers of this run.
    pub fn point(self, layers: u8) -> OperatingPoint {
        let HeadRun { split, width, bits, .. } = self;
        OperatingPoint { split, width, layers, bits }
    }
}

/// The run whose every layer is sent at this point.
impl From<OperatingPoint> for HeadRun {
    fn from(point: OperatingPoint) -> Self {
        let OperatingPoint { split, width, layers, bits } = point;
        HeadRun { split, width, bits, layers }
    }
}

/// A picture to compress for the full network on the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageRun {
    /// How to compress it.
    pub image: ImageSpec,
    /// Position of the split, and of the width within it, of the head whose exit is the fallback;
    /// `None` runs no head, and leaves a frame without an answer when the network has none.
    pub exit: Option<(u8, u8)>,
}

/// What is run on the device for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Run {
    /// A head, for its features.
    Head(HeadRun),
    /// An image codec.
    Image(ImageRun),
    /// The full network: its answer is the frame's, and nothing is sent.
    Local,
}

impl Run {
    /// Positions of split and width of the head that is run, if one is.
    pub fn head(self) -> Option<(u8, u8)> {
        match self {
            Run::Head(run) => Some((run.split, run.width)),
            Run::Image(run) => run.exit,
            Run::Local => None,
        }
    }

    /// The work of the device, by which runs of equal duration are recognised.
    pub fn load(self) -> Load {
        match self {
            Run::Head(HeadRun { split, width, .. }) => Load::Head(split, width),
            Run::Image(run) => Load::Image(run),
            Run::Local => Load::Local,
        }
    }
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Run::Head(run) => write!(f, "operating point {}", run.point(run.layers)),
            Run::Image(ImageRun { image, .. }) => write!(f, "picture {image}"),
            Run::Local => f.write_str("the network on the device"),
        }
    }
}

/// The run whose every layer is sent at this point.
impl From<OperatingPoint> for Run {
    fn from(point: OperatingPoint) -> Self {
        Run::Head(point.into())
    }
}

/// The work of the device for a run. Runs with the same load take equally long: how much of a head's
/// output is coded makes no difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Load {
    /// A head by split and width, and a coder.
    Head(u8, u8),
    /// An image codec, and perhaps a head.
    Image(ImageRun),
    /// The full network.
    Local,
}
