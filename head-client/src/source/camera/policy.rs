//! Which format and size to ask a camera for, given what it offers.

use std::fmt;

use super::address::{CameraFormat, CameraSpec, Size};

/// Asked for by default: plenty for most bundles, and every camera has it.
const USUAL_SIZE: Size = (640, 480);

/// A format of a camera.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offer {
    /// The format's four-character code.
    pub fourcc: [u8; 4],
    /// Its sizes.
    pub sizes: Sizes,
}

/// The sizes of a format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sizes {
    /// These.
    Listed(Vec<Size>),
    /// Every `step` from `least` to `greatest`.
    Range {
        /// Smallest.
        least: Size,
        /// Largest.
        greatest: Size,
        /// Distance between sizes, at least 1.
        step: Size,
    },
    /// The driver does not list them.
    Unlisted,
}

/// What a camera is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::source) struct Mode {
    pub(in crate::source) fourcc: [u8; 4],
    pub(in crate::source) size: Size,
    pub(in crate::source) rate: Option<f64>,
}

/// What to ask for; `None` if the camera has nothing that is asked for and understood.
pub(super) fn choose(spec: &CameraSpec, offers: &[Offer]) -> Option<Mode> {
    let wish = spec.size.unwrap_or(USUAL_SIZE);
    let understood = offers.iter().filter_map(|&Offer { fourcc, ref sizes }| {
        let (format, size) = (CameraFormat::of(fourcc)?, sizes.nearest(wish)?);
        let asked = spec.format.is_none_or(|asked| asked == format)
            && spec.size.is_none_or(|asked| asked == size);
        asked.then_some((format, Mode { fourcc, size, rate: spec.rate }))
    });
    let best = understood.min_by_key(|(format, mode)| (misfit(mode.size, wish), *format));
    best.map(|(_, mode)| mode)
}

/// Orders sizes: the wish itself, the smallest that hold it, the largest others.
fn misfit(size: Size, wish: Size) -> (bool, u64) {
    let area = |size: Size| u64::from(size.0) * u64::from(size.1);
    let smaller = size.0 < wish.0 || size.1 < wish.1;
    (smaller, area(size).abs_diff(area(wish)))
}

impl Sizes {
    /// The size that suits `wish` best; `None` of none.
    fn nearest(&self, wish: Size) -> Option<Size> {
        match self {
            Sizes::Listed(sizes) => sizes.iter().copied().min_by_key(|&size| misfit(size, wish)),
            &Sizes::Range { least, greatest, step } => {
                let side = |wish: u32, least: u32, greatest: u32, step: u32| {
                    let above = wish.min(greatest).saturating_sub(least);
                    least + above / step.max(1) * step.max(1)
                };
                Some((
                    side(wish.0, least.0, greatest.0, step.0),
                    side(wish.1, least.1, greatest.1, step.1),
                ))
            }
            Sizes::Unlisted => Some(wish),
        }
    }
}

impl fmt::Display for Offer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match CameraFormat::of(self.fourcc) {
            Some(format) => write!(f, "{format}")?,
            None => write!(f, "{}", self.fourcc.escape_ascii())?,
        }
        match &self.sizes {
            Sizes::Listed(sizes) => {
                sizes.iter().try_for_each(|(width, height)| write!(f, " {width}x{height}"))
            }
            Sizes::Range { least, greatest, .. } => {
                write!(f, " {}x{} to {}x{}", least.0, least.1, greatest.0, greatest.1)
            }
            Sizes::Unlisted => Ok(()),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::path::Path;

    use super::*;

    fn listed(fourcc: &[u8; 4], sizes: &[Size]) -> Offer {
        Offer { fourcc: *fourcc, sizes: Sizes::Listed(sizes.to_vec()) }
    }

    pub(in super::super) fn webcam() -> Vec<Offer> {
        vec![
            listed(b"MJPG", &[(1920, 1080), (1280, 720), (640, 480)]),
            listed(b"YUYV", &[(640, 480), (320, 240)]),
            listed(b"H264", &[(800, 600)]),
        ]
    }

    pub(in super::super) fn spec(input: &str) -> CameraSpec {
        CameraSpec::parse(Path::new(input)).expect("a camera").expect("understood")
    }

    fn chosen(input: &str, offers: &[Offer]) -> Option<([u8; 4], Size)> {
        choose(&spec(input), offers).map(|mode| (mode.fourcc, mode.size))
    }

    #[test]
    fn formats_without_decoding_are_preferred_and_requests_are_kept_to() {
        let offers = webcam();
        assert_eq!(chosen("/dev/video0", &offers), Some((*b"YUYV", (640, 480))));
        let asked = |options: &str| chosen(&format!("v4l2:/dev/video0?{options}"), &offers);
        assert_eq!(asked("size=1280x720"), Some((*b"MJPG", (1280, 720))));
        assert_eq!(asked("format=mjpeg"), Some((*b"MJPG", (640, 480))));
        assert_eq!(asked("size=800x600"), None);
        assert_eq!(asked("size=1280x720&format=yuyv"), None);
        assert_eq!(chosen("/dev/video0", &offers[2..]), None);
    }

    #[test]
    fn without_the_usual_size_the_next_larger_one_is_taken_and_else_the_largest() {
        let nearest =
            |sizes: &[Size]| chosen("/dev/video0", &[listed(b"YUYV", sizes)]).map(|(_, size)| size);
        assert_eq!(nearest(&[(1920, 1080), (800, 600), (320, 240)]), Some((800, 600)));
        assert_eq!(nearest(&[(160, 120), (320, 240)]), Some((320, 240)));
        assert_eq!(nearest(&[]), None);
        let range = |least, greatest, step| {
            let offer = Offer { fourcc: *b"YUYV", sizes: Sizes::Range { least, greatest, step } };
            chosen("/dev/video0", &[offer]).map(|(_, size)| size)
        };
        assert_eq!(range((16, 16), (4096, 4096), (8, 8)), Some((640, 480)));
        assert_eq!(range((16, 16), (4096, 4096), (0, 0)), Some((640, 480)));
        assert_eq!(range((1000, 1000), (4096, 4096), (2, 2)), Some((1000, 1000)));
        assert_eq!(range((0, 0), (300, 200), (64, 64)), Some((256, 192)));
        let unlisted = Offer { fourcc: *b"MJPG", sizes: Sizes::Unlisted };
        assert_eq!(chosen("/dev/video0", &[unlisted]), Some((*b"MJPG", (640, 480))));
    }
}
