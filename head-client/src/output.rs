//! What the program prints, and the pictures that it writes.

use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::{self, JoinHandle};

use anyhow::Context;
use isthmus_head_client::config::Format;
use isthmus_head_client::drawn::{self, DrawError};
use isthmus_head_client::{FrameReport, Pace, Summary, text};
use isthmus_models::Bundle;
use serde::Serialize;

use crate::view::View;

/// Writes results to standard output, which may be closed before they end, and frames only if no view
/// shows them.
pub(crate) struct Printer {
    format: Format,
    lines: Lines,
    shown: io::Result<()>,
    view: Option<View>,
    pictures: Pictures,
    drawn: Result<(), DrawError>,
}

/// Which pictures of the answers are written, and where.
pub(crate) struct Pictures {
    pub(crate) bundle: Arc<Bundle>,
    pub(crate) annotate: Option<PathBuf>,
    pub(crate) maps: Option<PathBuf>,
}

impl Pictures {
    fn write(&self, report: &FrameReport) -> Result<(), DrawError> {
        if let Some(folder) = &self.annotate {
            drawn::annotate(report, self.bundle.labels(), folder)?;
        }
        match &self.maps {
            Some(folder) => {
                let decoders = self.bundle.decoders().specs();
                drawn::write_maps(report, decoders.map(|spec| spec.name.as_str()), folder)
            }
            None => Ok(()),
        }
    }
}

impl Printer {
    pub(crate) fn new(
        format: Format,
        view: Option<View>,
        pictures: Pictures,
        pace: Pace,
    ) -> io::Result<Self> {
        let lines = Lines::start(io::stdout(), pace)?;
        Ok(Printer { format, lines, shown: Ok(()), view, pictures, drawn: Ok(()) })
    }

    pub(crate) fn start(&mut self) {
        if self.format == Format::Text && self.view.is_none() {
            self.line(text::header());
        }
    }

    pub(crate) fn frame(&mut self, report: &FrameReport) -> ControlFlow<()> {
        match (&mut self.view, self.format) {
            (Some(view), _) => self.shown = view.frame(report),
            (None, Format::Text) => self.line(text::frame(report)),
            (None, Format::Json) => self.json(report),
        }
        self.drawn = self.pictures.write(report);
        match self.lines.go_on() && self.shown.is_ok() && self.drawn.is_ok() {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    }

    /// Draws what has changed beside frames: the log.
    pub(crate) fn redraw(&mut self) {
        if let Some(view) = &mut self.view
            && self.shown.is_ok()
        {
            self.shown = view.redraw();
        }
    }

    pub(crate) fn summary(&mut self, summary: &Summary) {
        if let Some(view) = self.view.take() {
            let frames = view.close();
            eprintln!(
                "head-client: {frames} frames were shown and not printed; without --tui each has its line"
            );
        }
        #[derive(Serialize)]
        struct Line<'a> {
            summary: &'a Summary,
        }
        match self.format {
            Format::Text => self.line(text::summary(summary)),
            Format::Json => self.json(&Line { summary }),
        }
    }

    /// Waits until all is written. The first error, unless it is only that nobody reads any more.
    pub(crate) fn finish(self) -> anyhow::Result<()> {
        self.drawn?;
        let written = self.shown.and(self.lines.finish());
        written.or_else(quiet_if_broken).context("standard output")
    }

    fn json(&mut self, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(line) => self.line(line),
            Err(error) => self.shown = Err(error.into()),
        }
    }

    fn line(&mut self, line: String) {
        self.lines.say(line);
    }
}

/// Lines that wait for whoever reads.
const WAITING: usize = 4_096;

/// Writes lines on a thread of its own, so that a reader that stalls stops nothing else.
struct Lines {
    sender: SyncSender<String>,
    /// Ends with the first line that cannot be written.
    thread: JoinHandle<io::Result<()>>,
    pace: Pace,
    /// Lines that found no room.
    lost: u64,
}

impl Lines {
    fn start(to: impl Write + Send + 'static, pace: Pace) -> io::Result<Self> {
        let (sender, lines) = sync_channel::<String>(WAITING);
        let write = move || {
            let mut to = BufWriter::new(to);
            // Flushed line by line: whoever reads may act on it.
            lines.into_iter().try_for_each(|line| writeln!(to, "{line}").and_then(|()| to.flush()))
        };
        let thread = thread::Builder::new().name("output".into()).spawn(write)?;
        Ok(Lines { sender, thread, pace, lost: 0 })
    }

    /// Has a line written. Where a camera does not wait, a line without room is lost and counted.
    fn say(&mut self, line: String) {
        match self.pace {
            Pace::Live => {
                if let Err(TrySendError::Full(_)) = self.sender.try_send(line) {
                    self.lost += 1;
                }
            }
            // Fails when a line before could not be written, which `finish` tells.
            Pace::EveryFrame => drop(self.sender.send(line)),
        }
    }

    /// Whether lines can still be written.
    fn go_on(&self) -> bool {
        !self.thread.is_finished()
    }

    fn finish(self) -> io::Result<()> {
        let Lines { sender, thread, lost, .. } = self;
        drop(sender);
        let written = thread.join().unwrap_or_else(|_| Err(io::Error::other("its thread failed")));
        if lost > 0 {
            eprintln!("head-client: {lost} lines are missing: standard output was read too slowly");
        }
        written
    }
}

pub(crate) fn quiet_if_broken(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(()),
        _ => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    /// Writes when it is let.
    struct Slow(Receiver<()>, Sender<Vec<u8>>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv();
            let _ = self.1.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_stalls_costs_lines_and_no_time() {
        let ((go, wait), (written, read)) = (channel(), channel());
        let mut lines = Lines::start(Slow(wait, written), Pace::Live).expect("a thread");
        (0..WAITING + 10).for_each(|number| lines.say(number.to_string()));
        // One may be in the writer's hands already.
        assert!((9..=10).contains(&lines.lost), "{}", lines.lost);
        assert!(lines.go_on());
        drop(go);
        lines.finish().expect("all that waited");
        let all: Vec<u8> = read.into_iter().flatten().collect();
        assert!(all.starts_with(b"0\n1\n2\n"));
    }

    #[test]
    fn a_line_that_cannot_be_written_ends_the_run() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::StorageFull.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut lines = Lines::start(Full, Pace::EveryFrame).expect("a thread");
        lines.say("one".into());
        while lines.go_on() {
            thread::sleep(Duration::from_millis(1));
        }
        lines.say("two".into());
        assert_eq!(lines.finish().map_err(|error| error.kind()), Err(io::ErrorKind::StorageFull));
    }
}
