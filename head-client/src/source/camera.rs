//! Cameras: what to ask one for, which of its frames to take, and what to do while it is away.
//!
//! What a kernel does is behind [`Driver`] and [`Stream`]; all else is here, and is tried with a
//! driver that is made up.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use isthmus_models::Picture;

use super::{NoPicture, SourceFrame};

/// Asked for where nothing is said: plenty for most bundles, and every camera has it.
const USUAL_SIZE: Size = (640, 480);
/// A camera that gives nothing for so long is taken to be gone.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Pause before the first attempt to find a lost camera again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// Width and height (pixels).
pub type Size = (u32, u32);

/// A camera, and how its frames shall come.
#[derive(Clone, Debug, PartialEq)]
pub struct CameraSpec {
    /// Its device file.
    pub path: PathBuf,
    /// Size of the frames; by default 640 × 480 or what comes next to it.
    pub size: Option<Size>,
    /// By default YUYV where it comes in that size, which costs no decoding, and else MJPEG.
    pub format: Option<CameraFormat>,
    /// Frames a second; by default the camera's own choice.
    pub rate: Option<f64>,
}

/// A format of frames that is understood here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum CameraFormat {
    /// Packed 4:2:2.
    Yuyv,
    /// A JPEG a frame.
    Mjpeg,
}

/// Text that names no camera.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a camera looks like /dev/video0 or v4l2:/dev/video0?size=640x480&format=yuyv, where format is \
     yuyv or mjpeg; {0}"
)]
pub struct CameraSpecError(String);

/// Why a camera gives no frames.
#[derive(Debug, thiserror::Error)]
pub enum CameraError {
    /// There is no such device.
    #[error("{}: there is no such camera; `head-client cameras` lists those there are", .0.display())]
    Missing(PathBuf),
    /// The user may not open it.
    #[error(
        "{}: no permission; add the user to the group that owns it (`sudo usermod --append --groups \
         video USER`) and log in again",
        .0.display()
    )]
    Permission(PathBuf),
    /// Another program has it.
    #[error("{path}: in use by another program; `fuser {path}` tells by which", path = .0.display())]
    Busy(PathBuf),
    /// Not a device that captures video.
    #[error("{}: no camera; `head-client cameras` lists those there are", .0.display())]
    NoCamera(PathBuf),
    /// It does not offer what is asked for.
    #[error("{}: it does not offer {wanted}; it offers {}", path.display(), Offers(offers))]
    Unsupported {
        /// The device.
        path: PathBuf,
        /// What was asked for.
        wanted: String,
        /// What there is.
        offers: Vec<Offer>,
    },
    /// Anything else that the system says.
    #[error("{}: {source}", path.display())]
    Failed {
        /// The device.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
}

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
    /// The driver does not tell.
    Untold,
}

/// What a camera is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Mode {
    pub(super) fourcc: [u8; 4],
    pub(super) size: Size,
    pub(super) rate: Option<f64>,
}

/// What it gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Layout {
    pub(super) fourcc: [u8; 4],
    pub(super) size: Size,
    /// From one row to the next (bytes), of YUYV.
    pub(super) stride: usize,
    /// Frames a second, where the driver tells.
    pub(super) rate: Option<f64>,
}

/// A camera as its kernel shows it. Errors that a user can do something about have the kinds that
/// [`CameraError::of`] knows.
pub(super) trait Driver {
    type Stream: Stream;

    /// All formats, of whatever kind.
    fn offers(&self) -> io::Result<Vec<Offer>>;

    /// Starts the camera, as near to `mode` as it can.
    fn start(&self, mode: &Mode) -> io::Result<(Layout, Self::Stream)>;
}

/// A camera that runs. It is stopped when this is dropped.
pub(super) trait Stream {
    /// Whether a frame is there after at most this time.
    fn wait(&mut self, longest: Duration) -> io::Result<bool>;

    /// The oldest frame that is there; `None` if the driver knows it to be damaged.
    fn take(&mut self) -> io::Result<Option<Vec<u8>>>;
}

/// The frames of a camera: the newest each time, for ever.
///
/// A camera that goes away is one bad frame, after which the next is waited for until it is back.
pub(super) struct Camera<D: Driver, P> {
    driver: D,
    spec: CameraSpec,
    running: Option<(Layout, D::Stream)>,
    /// Waits before an attempt to find a lost camera again.
    pause: P,
    next_pause: Duration,
    frame: u64,
}

impl<D: Driver, P: FnMut(Duration)> Camera<D, P> {
    /// Starts a camera.
    pub(super) fn open(driver: D, spec: CameraSpec, pause: P) -> Result<Self, CameraError> {
        let running = Some(start(&driver, &spec)?);
        Ok(Camera { driver, spec, running, pause, next_pause: FIRST_PAUSE, frame: 0 })
    }

    /// Tries until the camera is there.
    fn find_again(&mut self) -> (Layout, D::Stream) {
        let mut attempt = 0u64;
        loop {
            attempt += 1;
            (self.pause)(self.next_pause);
            self.next_pause = LONGEST_PAUSE.min(2 * self.next_pause);
            match start(&self.driver, &self.spec) {
                Ok(running) => {
                    tracing::warn!(attempt, "the camera is back");
                    return running;
                }
                Err(error) => tracing::info!(attempt, "no camera yet: {error}"),
            }
        }
    }
}

impl<D: Driver, P: FnMut(Duration)> Iterator for Camera<D, P> {
    type Item = SourceFrame;

    fn next(&mut self) -> Option<SourceFrame> {
        let mut running = self.running.take().unwrap_or_else(|| self.find_again());
        let picture = match next_picture(&running.0, &mut running.1) {
            Ok(picture) => {
                self.running = Some(running);
                self.next_pause = FIRST_PAUSE;
                picture
            }
            Err(error) => {
                let gone = format!("{}: the camera is gone: {error}", self.spec.path.display());
                tracing::warn!("{gone}; waiting for it to come back");
                Err(NoPicture::Bad(gone))
            }
        };
        let source = format!("camera:{}", self.frame);
        self.frame += 1;
        Some(SourceFrame { source, truth: None, picture })
    }
}

/// The next frame; an error if there will be none any more.
fn next_picture(
    layout: &Layout,
    stream: &mut impl Stream,
) -> io::Result<Result<Picture, NoPicture>> {
    if !stream.wait(LONGEST_WAIT)? {
        let seconds = LONGEST_WAIT.as_secs();
        return Err(io::Error::new(io::ErrorKind::TimedOut, format!("no frame for {seconds} s")));
    }
    let bytes = stream.take()?;
    // Decoding took longer than a frame lasts: only the last is worth it.
    if stream.wait(Duration::ZERO)? {
        return Ok(Err(NoPicture::Superseded));
    }
    let Some(bytes) = bytes else {
        return Ok(Err(NoPicture::Bad("the driver says that this frame is damaged".into())));
    };
    let (width, height) = layout.size;
    let picture = match CameraFormat::of(layout.fourcc) {
        Some(CameraFormat::Mjpeg) => Picture::decode(&bytes),
        _ => Picture::yuyv(width, height, layout.stride, bytes),
    };
    Ok(picture.map_err(|error| NoPicture::Bad(error.to_string())))
}

/// Starts what `spec` asks for.
fn start<D: Driver>(driver: &D, spec: &CameraSpec) -> Result<(Layout, D::Stream), CameraError> {
    let failed = |error| CameraError::of(&spec.path, error);
    let offers = driver.offers().map_err(failed)?;
    let Some(mode) = choose(spec, &offers) else { return Err(spec.unsupported(offers)) };
    let (layout, stream) = driver.start(&mode).map_err(failed)?;
    let size_is_wrong = spec.size.is_some_and(|size| size != layout.size);
    if layout.fourcc != mode.fourcc || size_is_wrong {
        return Err(spec.unsupported(offers));
    }
    if let Some(asked) = mode.rate
        && layout.rate.is_none_or(|rate| (rate - asked).abs() > asked / 20.0)
    {
        let given =
            layout.rate.map_or("at its own rate".into(), |rate| format!("{rate:.1} a second"));
        tracing::warn!(
            "{}: {asked} frames a second asked for; it gives them {given}",
            spec.path.display()
        );
    }
    Ok((layout, stream))
}

/// What to ask for; `None` if the camera has nothing that is asked for and understood.
fn choose(spec: &CameraSpec, offers: &[Offer]) -> Option<Mode> {
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
            Sizes::Untold => Some(wish),
        }
    }
}

impl CameraFormat {
    /// The format of a four-character code.
    fn of(fourcc: [u8; 4]) -> Option<CameraFormat> {
        match &fourcc {
            b"YUYV" => Some(CameraFormat::Yuyv),
            b"MJPG" | b"JPEG" => Some(CameraFormat::Mjpeg),
            _ => None,
        }
    }
}

impl CameraSpec {
    /// The camera that an input names; `None` if it names something else.
    ///
    /// Whatever begins with `v4l2:`, `/dev/video` or `/dev/v4l/` is a camera, whether it is there
    /// or not.
    pub fn parse(input: &Path) -> Option<Result<CameraSpec, CameraSpecError>> {
        // A device's path is plain text.
        let text = input.to_str()?;
        let spec =
            |path: &str| CameraSpec { path: path.into(), size: None, format: None, rate: None };
        match text.strip_prefix("v4l2:") {
            Some(text) => {
                let (path, options) = text.split_once('?').unwrap_or((text, ""));
                Some(spec(path).with(options).map_err(CameraSpecError))
            }
            None => {
                let device = text.starts_with("/dev/video") || text.starts_with("/dev/v4l/");
                device.then(|| Ok(spec(text)))
            }
        }
    }

    fn with(mut self, options: &str) -> Result<CameraSpec, String> {
        if self.path.as_os_str().is_empty() {
            return Err("no device is named".into());
        }
        for option in options.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("size", size)) => {
                    let sides = size.split_once('x').and_then(|(width, height)| {
                        Some((width.parse().ok()?, height.parse().ok()?))
                    });
                    self.size = sides.filter(|&(width, height)| width > 0 && height > 0);
                    if self.size.is_none() {
                        return Err(format!("{size:?} is no size"));
                    }
                }
                Some(("format", "yuyv")) => self.format = Some(CameraFormat::Yuyv),
                Some(("format", "mjpeg")) => self.format = Some(CameraFormat::Mjpeg),
                _ => return Err(format!("{option:?} is not understood")),
            }
        }
        Ok(self)
    }

    fn unsupported(&self, offers: Vec<Offer>) -> CameraError {
        let format = self.format.map_or("yuyv or mjpeg".into(), |format| format.to_string());
        let size = self.size.map(|(width, height)| format!(" in {width}x{height}"));
        let wanted = format + &size.unwrap_or_default();
        CameraError::Unsupported { path: self.path.clone(), wanted, offers }
    }
}

impl CameraError {
    /// What the system's `source` means for the camera at `path`.
    pub(super) fn of(path: &Path, source: io::Error) -> CameraError {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => CameraError::Missing(path),
            io::ErrorKind::PermissionDenied => CameraError::Permission(path),
            io::ErrorKind::ResourceBusy => CameraError::Busy(path),
            io::ErrorKind::Unsupported => CameraError::NoCamera(path),
            _ => CameraError::Failed { path, source },
        }
    }
}

impl fmt::Display for CameraFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CameraFormat::Yuyv => "yuyv",
            CameraFormat::Mjpeg => "mjpeg",
        })
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
            Sizes::Untold => Ok(()),
        }
    }
}

/// Offers in one line.
struct Offers<'a>(&'a [Offer]);

impl fmt::Display for Offers<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("nothing");
        }
        let offers: Vec<String> = self.0.iter().map(Offer::to_string).collect();
        f.write_str(&offers.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::rc::Rc;

    use isthmus_models::{ImageEncoder, ImageSpec, InputSpec};
    use isthmus_proto::ImageFormat;

    use super::*;

    /// What the made-up camera does next.
    enum Event {
        /// Gives a frame after the time that it takes to come; at once if another waits behind it.
        Frame(Option<Vec<u8>>),
        /// Gives nothing for as long as is waited.
        Silence,
        /// Is pulled out.
        Unplugged,
        /// Cannot be started, for this reason.
        Refuses(io::ErrorKind),
        /// Lets the frames that came so far be looked at before more come.
        Quiet,
    }

    #[derive(Clone)]
    struct Fake {
        offers: Vec<Offer>,
        layout: Layout,
        script: Rc<RefCell<VecDeque<Event>>>,
        asked: Rc<RefCell<Vec<Mode>>>,
    }

    impl Fake {
        fn new(offers: Vec<Offer>, script: Vec<Event>) -> Fake {
            let layout = Layout { fourcc: *b"YUYV", size: (2, 1), stride: 4, rate: None };
            let (script, asked) = (Rc::new(RefCell::new(script.into())), Rc::default());
            Fake { offers, layout, script, asked }
        }

        fn next(&self) -> Option<Event> {
            self.script.borrow_mut().pop_front()
        }
    }

    impl Driver for Fake {
        type Stream = Fake;

        fn offers(&self) -> io::Result<Vec<Offer>> {
            let refuses = matches!(self.script.borrow().front(), Some(Event::Refuses(_)));
            match refuses.then(|| self.next()) {
                Some(Some(Event::Refuses(kind))) => Err(kind.into()),
                _ => Ok(self.offers.clone()),
            }
        }

        fn start(&self, mode: &Mode) -> io::Result<(Layout, Fake)> {
            self.asked.borrow_mut().push(*mode);
            Ok((self.layout, self.clone()))
        }
    }

    impl Stream for Fake {
        fn wait(&mut self, longest: Duration) -> io::Result<bool> {
            let mut script = self.script.borrow_mut();
            if !longest.is_zero() {
                while let Some(Event::Quiet) = script.front() {
                    script.pop_front();
                }
            }
            match script.front() {
                Some(Event::Frame(_)) => Ok(true),
                Some(Event::Quiet) => Ok(false),
                Some(Event::Silence) => {
                    script.pop_front();
                    Ok(false)
                }
                _ => {
                    script.pop_front();
                    Err(io::ErrorKind::NotFound.into())
                }
            }
        }

        fn take(&mut self) -> io::Result<Option<Vec<u8>>> {
            match self.next() {
                Some(Event::Frame(bytes)) => Ok(bytes),
                _ => panic!("taken where no frame was"),
            }
        }
    }

    fn listed(fourcc: &[u8; 4], sizes: &[Size]) -> Offer {
        Offer { fourcc: *fourcc, sizes: Sizes::Listed(sizes.to_vec()) }
    }

    fn webcam() -> Vec<Offer> {
        vec![
            listed(b"MJPG", &[(1920, 1080), (1280, 720), (640, 480)]),
            listed(b"YUYV", &[(640, 480), (320, 240)]),
            listed(b"H264", &[(800, 600)]),
        ]
    }

    fn spec(input: &str) -> CameraSpec {
        CameraSpec::parse(Path::new(input)).expect("a camera").expect("understood")
    }

    fn chosen(input: &str, offers: &[Offer]) -> Option<([u8; 4], Size)> {
        choose(&spec(input), offers).map(|mode| (mode.fourcc, mode.size))
    }

    /// White, then black.
    fn frame(luma: u8) -> Event {
        Event::Frame(Some(vec![luma, 128, luma, 128]))
    }

    fn level(frame: &SourceFrame) -> Result<u8, &NoPicture> {
        frame.picture.as_ref().map(|picture| picture.rgb()[0])
    }

    #[test]
    fn inputs_that_are_cameras_are_told_from_those_that_are_not() {
        for other in ["-", "pictures", "/dev/null", "v4l2.jpg", "/dev/fd/3"] {
            assert!(CameraSpec::parse(Path::new(other)).is_none(), "{other}");
        }
        let plain = spec("/dev/v4l/by-id/usb-0");
        assert_eq!((plain.size, plain.format, plain.rate), (None, None, None));
        assert_eq!(plain, spec("v4l2:/dev/v4l/by-id/usb-0"));
        let full = spec("v4l2:/dev/video9?size=1280x720&format=mjpeg");
        assert_eq!(full.path, Path::new("/dev/video9"));
        assert_eq!((full.size, full.format), (Some((1280, 720)), Some(CameraFormat::Mjpeg)));
        for bad in [
            "",
            "?size=1x1",
            "/dev/video0?size=640",
            "/dev/video0?size=0x1",
            "x?rate=5",
            "x?format=h264",
            "x?sice=1x1",
        ] {
            let input = format!("v4l2:{bad}");
            assert!(CameraSpec::parse(Path::new(&input)).is_some_and(|it| it.is_err()), "{bad}");
        }
    }

    #[test]
    fn what_needs_no_decoding_is_preferred_and_what_is_asked_for_is_kept_to() {
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
        let untold = Offer { fourcc: *b"MJPG", sizes: Sizes::Untold };
        assert_eq!(chosen("/dev/video0", &[untold]), Some((*b"MJPG", (640, 480))));
    }

    #[test]
    fn errors_say_what_to_do() {
        let open = |kind| {
            let fake = Fake::new(webcam(), vec![Event::Refuses(kind)]);
            let opened = Camera::open(fake, spec("/dev/video7"), |_| {});
            opened.err().expect("refused").to_string()
        };
        for (kind, advice) in [
            (io::ErrorKind::NotFound, "head-client cameras"),
            (io::ErrorKind::PermissionDenied, "--groups video"),
            (io::ErrorKind::ResourceBusy, "fuser /dev/video7"),
            (io::ErrorKind::Unsupported, "no camera"),
            (io::ErrorKind::OutOfMemory, "memory"),
        ] {
            let error = open(kind);
            assert!(error.starts_with("/dev/video7: ") && error.contains(advice), "{error}");
        }
        let other = Fake::new(webcam(), vec![]);
        let opened = Camera::open(other, spec("v4l2:/dev/video7?size=9x9&format=yuyv"), |_| {});
        let error = opened.err().expect("no such size").to_string();
        let offers = "yuyv in 9x9; it offers mjpeg 1920x1080 1280x720 640x480; yuyv 640x480 320x240; \
                      H264 800x600";
        assert!(error.ends_with(offers), "{error}");
    }

    #[test]
    fn a_driver_that_gives_another_format_than_asked_for_is_refused() {
        let mut fake = Fake::new(webcam(), vec![]);
        fake.layout.fourcc = *b"NV12";
        let opened = Camera::open(fake, spec("/dev/video0"), |_| {});
        assert!(matches!(opened.err(), Some(CameraError::Unsupported { .. })));
    }

    #[test]
    fn the_newest_of_the_frames_that_wait_wins_and_the_others_are_told() {
        let script =
            vec![frame(235), Event::Quiet, frame(235), frame(235), frame(16), Event::Quiet];
        let camera = Camera::open(Fake::new(webcam(), script), spec("/dev/video0"), |_| {});
        let frames: Vec<SourceFrame> = camera.expect("opens").take(4).collect();
        assert_eq!(level(&frames[0]).ok(), Some(255));
        for superseded in &frames[1..3] {
            assert!(matches!(superseded.picture, Err(NoPicture::Superseded)));
        }
        assert_eq!((level(&frames[3]).ok(), frames[3].source.as_str()), (Some(0), "camera:3"));
    }

    #[test]
    fn damaged_and_short_frames_are_bad_pictures_and_the_camera_goes_on() {
        let script = vec![
            Event::Frame(None),
            Event::Quiet,
            Event::Frame(Some(vec![0; 3])),
            Event::Quiet,
            frame(16),
            Event::Quiet,
        ];
        let camera = Camera::open(Fake::new(webcam(), script), spec("/dev/video0"), |_| {});
        let frames: Vec<SourceFrame> = camera.expect("opens").take(3).collect();
        assert!(frames[..2].iter().all(|it| matches!(it.picture, Err(NoPicture::Bad(_)))));
        assert_eq!(level(&frames[2]).ok(), Some(0));
    }

    #[test]
    fn jpegs_are_decoded() {
        let as_jpeg = ImageSpec { format: ImageFormat::Jpeg, side: 8, quality: 90 };
        let input = InputSpec { width: 8, height: 8, mean: [0.0; 3], std: [1.0; 3] };
        let white = Picture::new(8, 8, vec![255; 3 * 64]).expect("as many");
        let jpeg = ImageEncoder::new(as_jpeg, &input).encode(&white).expect("encodes");
        let mut fake = Fake::new(webcam(), vec![Event::Frame(Some(jpeg)), Event::Quiet]);
        fake.layout = Layout { fourcc: *b"MJPG", size: (8, 8), stride: 0, rate: None };
        let camera = Camera::open(fake, spec("v4l2:/dev/video0?format=mjpeg"), |_| {});
        let frame = camera.expect("opens").next().expect("a frame");
        assert_eq!(level(&frame).ok(), Some(255));
    }

    #[test]
    fn a_lost_camera_is_one_bad_frame_and_is_waited_for_ever_longer() {
        let gone = || Event::Refuses(io::ErrorKind::NotFound);
        let mut script = vec![frame(235), Event::Quiet, Event::Unplugged];
        script.extend((0..6).map(|_| gone()));
        script.extend([frame(16), Event::Quiet, Event::Silence, gone(), frame(235), Event::Quiet]);
        let fake = Fake::new(webcam(), script);
        let (asked, mut pauses) = (Rc::clone(&fake.asked), Vec::new());
        let pause = |pause: Duration| pauses.push(pause.as_millis());
        let camera =
            Camera::open(fake, CameraSpec { rate: Some(10.0), ..spec("/dev/video0") }, pause);
        let frames: Vec<SourceFrame> = camera.expect("opens").take(5).collect();
        let levels: Vec<Option<u8>> = frames.iter().map(|frame| level(frame).ok()).collect();
        assert_eq!(levels, [Some(255), None, Some(0), None, Some(255)]);
        for (frame, why) in [(&frames[1], "gone"), (&frames[3], "no frame for 5 s")] {
            let Err(NoPicture::Bad(error)) = &frame.picture else { panic!("{frame:?}") };
            assert!(error.starts_with("/dev/video0: ") && error.contains(why), "{error}");
        }
        // A frame that came makes the next search as quick as the first.
        assert_eq!(pauses, [250, 500, 1000, 2000, 4000, 8000, 8000, 250, 500]);
        let again = Mode { fourcc: *b"YUYV", size: (640, 480), rate: Some(10.0) };
        assert_eq!(*asked.borrow(), [again; 3]);
    }
}
