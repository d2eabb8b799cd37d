//! Video4Linux2: the kernel's side of [`camera`](super::camera), and nothing else.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use linuxvideo::format::{FrameSizes, PixFormat, PixelFormat};
use linuxvideo::stream::ReadStream;
use linuxvideo::{BufType, Device, Fract};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};

use super::camera::{CameraError, Driver, Layout, Mode, Offer, Sizes, Stream};

/// A device file.
pub(super) struct V4l2(pub(super) PathBuf);

/// A camera, or a device that may be one and the error that hides it.
#[derive(Debug)]
pub struct FoundCamera {
    /// Its device file.
    pub path: PathBuf,
    /// What it calls itself; empty if it does not.
    pub name: String,
    /// Its formats.
    pub offers: Result<Vec<Offer>, CameraError>,
}

/// The devices of this machine that capture video, in order of their numbers.
pub fn find_cameras() -> io::Result<Vec<FoundCamera>> {
    let mut devices = Vec::new();
    for entry in fs::read_dir("/dev")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("video")?.parse::<u32>().ok());
        devices.extend(number);
    }
    devices.sort_unstable();
    let camera = |number| {
        let path = PathBuf::from(format!("/dev/video{number}"));
        let name = fs::read(format!("/sys/class/video4linux/video{number}/name"));
        let name = String::from_utf8_lossy(&name.unwrap_or_default()).trim().to_owned();
        let offers = V4l2(path.clone()).offers().map_err(|error| CameraError::of(&path, error));
        // One camera has several devices; only those that give pictures offer a format.
        let captures = !matches!(&offers, Ok(offers) if offers.is_empty());
        captures.then_some(FoundCamera { path, name, offers })
    };
    Ok(devices.into_iter().filter_map(camera).collect())
}

impl Driver for V4l2 {
    type Stream = Capture;

    fn offers(&self) -> io::Result<Vec<Offer>> {
        offers(&self.0).map_err(plain)
    }

    fn start(&self, mode: &Mode) -> io::Result<(Layout, Capture)> {
        start(&self.0, mode).map_err(plain)
    }
}

fn offers(path: &Path) -> io::Result<Vec<Offer>> {
    let device = open(path)?;
    let formats = device.formats(BufType::VIDEO_CAPTURE).collect::<io::Result<Vec<_>>>()?;
    let offer = |format: PixelFormat| Offer {
        fourcc: format.as_fourcc(),
        sizes: device.frame_sizes(format).map_or(Sizes::Unlisted, sizes),
    };
    Ok(formats.iter().map(|format| offer(format.pixel_format())).collect())
}

fn start(path: &Path, mode: &Mode) -> io::Result<(Layout, Capture)> {
    let (width, height) = mode.size;
    let asked = PixFormat::new(width, height, PixelFormat::from_fourcc(mode.fourcc));
    let device = open(path)?.video_capture(asked)?;
    // In thousandths; rates are checked to be at least one.
    let interval = mode.rate.map(|rate| Fract::new(1000, (rate * 1e3).round().max(1.0) as u32));
    // A camera that has one rate says that the call is none of its own.
    let given = interval.and_then(|interval| device.set_frame_interval(interval).ok());
    let format = device.format();
    let layout = Layout {
        fourcc: format.pixel_format().as_fourcc(),
        size: (format.width(), format.height()),
        stride: format.bytes_per_line() as usize,
        rate: given.map(|it| f64::from(it.denominator()) / f64::from(it.numerator())),
    };
    Ok((layout, Capture(device.into_stream()?)))
}

/// An error with the kind that stands for its meaning.
fn plain(error: io::Error) -> io::Error {
    let kind = match Errno::from_io_error(&error) {
        Some(Errno::NODEV | Errno::NXIO) => io::ErrorKind::NotFound,
        Some(Errno::NOTTY) => io::ErrorKind::Unsupported,
        _ => return error,
    };
    io::Error::new(kind, error)
}

/// Frames in memory that is shared with the kernel.
pub(super) struct Capture(ReadStream);

impl Stream for Capture {
    fn wait(&mut self, longest: Duration) -> io::Result<bool> {
        let longest = Timespec {
            tv_sec: longest.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: longest.subsec_nanos().into(),
        };
        let mut polled = [PollFd::new(&self.0, PollFlags::IN)];
        retry_on_intr(|| poll(&mut polled, Some(&longest)))?;
        let events = polled[0].revents();
        match events.intersects(PollFlags::ERR | PollFlags::HUP) {
            true => Err(Errno::NODEV.into()),
            false => Ok(events.contains(PollFlags::IN)),
        }
    }

    fn take(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.0.dequeue(|frame| Ok((!frame.is_error()).then(|| frame.to_vec())))
    }
}

/// Opens a device, if it is one of characters: the calls of this kind mean other things to others.
fn open(path: &Path) -> io::Result<Device> {
    use std::os::unix::fs::FileTypeExt;
    match fs::metadata(path)?.file_type().is_char_device() {
        true => Device::open(path),
        false => Err(Errno::NOTTY.into()),
    }
}

fn sizes(sizes: FrameSizes) -> Sizes {
    match sizes {
        FrameSizes::Discrete(sizes) => {
            Sizes::Listed(sizes.iter().map(|size| (size.width(), size.height())).collect())
        }
        FrameSizes::Stepwise(range) | FrameSizes::Continuous(range) => Sizes::Range {
            least: (range.min_width(), range.min_height()),
            greatest: (range.max_width(), range.max_height()),
            step: (range.step_width(), range.step_height()),
        },
    }
}
