//! A run on the terminal, where that is built in (feature `tui`).

#[cfg(feature = "tui")]
mod built_in {
    use std::io;
    use std::time::{Duration, Instant};

    use isthmus_head_client::FrameReport;
    use isthmus_head_client::live::{self, Live, Screen, ScreenError, Seen};

    /// A run on the terminal.
    pub(crate) struct View {
        screen: Screen,
        live: Live,
        began: Instant,
    }

    impl View {
        /// Whether there is a terminal for it.
        pub(crate) fn check() -> Result<(), ScreenError> {
            live::check_terminal()
        }

        pub(crate) fn open(title: String, deadline: Duration) -> Result<View, ScreenError> {
            let live = Live::new(title, deadline);
            Ok(View { screen: Screen::open()?, live, began: Instant::now() })
        }

        pub(crate) fn frame(&mut self, report: &FrameReport) -> io::Result<()> {
            self.live.record(Seen::of_report(report, self.began.elapsed()));
            self.screen.show(&self.live)
        }

        /// Draws what has changed beside frames: the log.
        pub(crate) fn redraw(&mut self) -> io::Result<()> {
            self.screen.show(&self.live)
        }

        /// Gives the terminal back; the number of frames that were shown.
        pub(crate) fn close(self) -> u64 {
            self.live.frames()
        }
    }
}

#[cfg(not(feature = "tui"))]
mod built_in {
    use std::convert::Infallible;
    use std::io;
    use std::time::Duration;

    use isthmus_head_client::FrameReport;

    /// There is none.
    pub(crate) enum View {}

    impl View {
        pub(crate) fn check() -> Result<(), Infallible> {
            Ok(())
        }

        pub(crate) fn open(_: String, _: Duration) -> io::Result<View> {
            Err(io::ErrorKind::Unsupported.into())
        }

        pub(crate) fn frame(&mut self, _: &FrameReport) -> io::Result<()> {
            match *self {}
        }

        pub(crate) fn redraw(&mut self) -> io::Result<()> {
            match *self {}
        }

        pub(crate) fn close(self) -> u64 {
            match self {}
        }
    }
}

pub(crate) use built_in::View;
