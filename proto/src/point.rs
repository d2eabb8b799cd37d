//! Names of what is run, sent and answered.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A captured picture, numbered by its session from 0.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct FrameId(pub u64);

impl fmt::Display for FrameId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What of a bundle is run and sent: where the network is cut, how wide the encoder is, how many
/// layers of latent channels are sent, and how deep they are quantised.
///
/// `split` and `width` are positions in the bundle manifest's lists; a bundle turns them into
/// names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OperatingPoint {
    /// Position of the split, 0 to 15.
    pub split: u8,
    /// Position of the encoder width within the split, 0 to 15.
    pub width: u8,
    /// Layers sent, from 1 to [`OperatingPoint::MAX_LAYERS`].
    pub layers: u8,
    /// Quantiser depth, 1 to 8.
    pub bits: u8,
}

impl OperatingPoint {
    /// Most layers a packet may have.
    pub const MAX_LAYERS: u8 = 16;
}

impl fmt::Display for OperatingPoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let OperatingPoint { split, width, layers, bits } = self;
        write!(f, "#{split}/{width}/l{layers}/b{bits}")
    }
}

/// How a compressed picture is coded; the numbers are the packet's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum ImageFormat {
    /// JPEG, baseline or progressive.
    Jpeg = 0,
    /// WebP, lossy, in its simple form: one chunk of pixels, nothing around it.
    Webp = 1,
    /// AVIF's still frame of AV1, without the boxes that a file has around it.
    Avif = 2,
}

impl ImageFormat {
    /// All of them.
    pub const ALL: [ImageFormat; 3] = [ImageFormat::Jpeg, ImageFormat::Webp, ImageFormat::Avif];

    /// Its name: `jpeg`, `webp` or `avif`.
    pub const fn name(self) -> &'static str {
        match self {
            ImageFormat::Jpeg => "jpeg",
            ImageFormat::Webp => "webp",
            ImageFormat::Avif => "avif",
        }
    }
}

/// A text that names no format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a picture is sent as jpeg, webp or avif, not {0:?}")]
pub struct ImageFormatError(String);

impl FromStr for ImageFormat {
    type Err = ImageFormatError;

    fn from_str(text: &str) -> Result<Self, ImageFormatError> {
        let named = |format: &ImageFormat| format.name() == text;
        ImageFormat::ALL.into_iter().find(named).ok_or_else(|| ImageFormatError(text.to_owned()))
    }
}

/// What a packet carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Coded features of this operating point.
    Features(OperatingPoint),
    /// A compressed picture.
    Image(ImageFormat),
}

impl Content {
    /// The way to answer a frame that sends this.
    pub const fn arm(self) -> Arm {
        match self {
            Content::Features(point) => Arm::Split(point),
            Content::Image(_) => Arm::Image,
        }
    }
}

/// One way to answer a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arm {
    /// The early exit on the device.
    Exit,
    /// Features of this operating point to the server.
    Split(OperatingPoint),
    /// A compressed picture to the server.
    Image,
    /// The whole network on the device.
    Local,
}

impl Arm {
    /// The arm's name without its operating point.
    pub const fn name(&self) -> &'static str {
        match self {
            Arm::Exit => "exit",
            Arm::Split(_) => "split",
            Arm::Image => "image",
            Arm::Local => "local",
        }
    }
}

/// SHA-256 of a bundle's manifest, which fixes every file of the bundle.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BundleDigest(pub [u8; 32]);

/// A text or byte string that is no digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a bundle digest is 32 bytes, written as 64 hexadecimal digits")]
pub struct DigestError;

impl fmt::Display for BundleDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BundleDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BundleDigest({self})")
    }
}

impl FromStr for BundleDigest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        if text.len() != 64 || !text.is_ascii() {
            return Err(DigestError);
        }
        let mut digest = [0; 32];
        for (byte, at) in digest.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| DigestError)?;
        }
        Ok(BundleDigest(digest))
    }
}

impl TryFrom<&[u8]> for BundleDigest {
    type Error = DigestError;

    fn try_from(bytes: &[u8]) -> Result<Self, DigestError> {
        bytes.try_into().map(BundleDigest).map_err(|_| DigestError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_survive_text_and_refuse_anything_else() {
        let digest = BundleDigest(std::array::from_fn(|i| i as u8 * 7));
        assert_eq!(digest.to_string().parse(), Ok(digest));
        for bad in ["", "00", &"g".repeat(64), &"é".repeat(32)] {
            assert_eq!(bad.parse::<BundleDigest>(), Err(DigestError));
        }
    }
}
