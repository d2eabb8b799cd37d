//! Cameras: their frames, the newest each time, and what to do while one is away.
//!
//! The kernel's side is behind [`Driver`] and [`Stream`]; everything else is here, and is tested with a
//! fake driver.

mod address;
mod error;
mod policy;

use std::io;
use std::time::Duration;

use isthmus_models::Picture;

pub use self::address::{CameraFormat, CameraSpec, CameraSpecError, Size};
pub use self::error::CameraError;
pub(super) use self::policy::Mode;
use self::policy::choose;
pub use self::policy::{Offer, Sizes};
use super::{NoPicture, SourceFrame};

/// A camera that gives nothing for so long is taken to be gone.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// Pause before the first attempt to find a lost camera again; each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(8);

/// The frames that a camera gives.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Layout {
    pub(super) fourcc: [u8; 4],
    pub(super) size: Size,
    /// From one row to the next (bytes), of YUYV.
    pub(super) stride: usize,
    /// Frames per second, where the driver knows.
    pub(super) rate: Option<f64>,
}

/// A camera as its kernel presents it. Errors that a user can do something about have the kinds that
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

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::VecDeque;
    use std::rc::Rc;

    use isthmus_models::{ImageEncoder, ImageSpec, InputSpec};
    use isthmus_proto::ImageFormat;

    use super::policy::tests::{spec, webcam};
    use super::*;

    /// What the fake camera does next.
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

    /// White, then black.
    fn frame(luma: u8) -> Event {
        Event::Frame(Some(vec![luma, 128, luma, 128]))
    }

    fn level(frame: &SourceFrame) -> Result<u8, &NoPicture> {
        frame.picture.as_ref().map(|picture| picture.rgb()[0])
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
    fn the_newest_of_the_frames_that_wait_wins_and_the_others_are_reported() {
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
        let input = InputSpec::new(8, 8);
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
