//! The terminal that a run is drawn on, taken for as long as the run lasts.

use std::io::{self, IsTerminal, Stdout};
use std::panic;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use isthmus_telemetry::log;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{EnterAlternateScreen, LeaveAlternateScreen};
use rustix::termios::{
    LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr,
};

use super::view::{LOG_LINES, Live};

/// Least time between two drawings: an eye sees no more.
const REDRAW: Duration = Duration::from_millis(80);

/// Why a run cannot be shown.
#[derive(Debug, thiserror::Error)]
pub enum ScreenError {
    /// Standard output goes elsewhere.
    #[error(
        "standard output is no terminal, which a run is shown on; without it results go to a file or \
         a pipe"
    )]
    NoTerminal,
    /// The terminal failed.
    #[error("the terminal: {0}")]
    Io(#[from] io::Error),
}

/// A terminal that shows a run, on standard output. While there is one, the log's lines are shown
/// in it and kept; afterwards, whether the run ended, failed or panicked, the terminal is as it was
/// and the lines are on standard error.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
    drawn: Option<Instant>,
    // Dropped last: its lines belong on the terminal as it was.
    log: log::Held,
}

/// Whether there is a terminal to show a run on.
pub fn check_terminal() -> Result<(), ScreenError> {
    match io::stdout().is_terminal() {
        true => Ok(()),
        false => Err(ScreenError::NoTerminal),
    }
}

impl Screen {
    /// Takes the terminal. There is at most one at a time.
    pub fn open() -> Result<Screen, ScreenError> {
        check_terminal()?;
        let mut out = io::stdout();
        give_back_on_panic();
        let log = log::Held::start();
        *taken() = Some(Taken { by: thread::current().id(), before: quiet_keyboard()? });
        let opened = execute!(out, EnterAlternateScreen, Hide)
            .and_then(|()| Terminal::new(CrosstermBackend::new(out)));
        match opened {
            Ok(terminal) => Ok(Screen { terminal, drawn: None, log }),
            Err(error) => {
                give_back();
                Err(error.into())
            }
        }
    }

    /// Draws `live`, unless that was done a moment ago.
    pub fn show(&mut self, live: &Live) -> io::Result<()> {
        let now = Instant::now();
        if self.drawn.is_none_or(|drawn| now.saturating_duration_since(drawn) >= REDRAW) {
            let log = self.log.latest(LOG_LINES);
            self.terminal.draw(|frame| live.draw(frame, &log))?;
            self.drawn = Some(now);
        }
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        give_back();
    }
}

/// Who has the terminal, and how its keyboard was before.
struct Taken {
    by: ThreadId,
    before: Termios,
}

fn taken() -> MutexGuard<'static, Option<Taken>> {
    static TAKEN: Mutex<Option<Taken>> = Mutex::new(None);
    TAKEN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Leaves the terminal as it was, if it is taken.
fn give_back() {
    if let Some(Taken { before, .. }) = taken().take() {
        // There is nobody left to report a failure to.
        let _ = execute!(io::stdout(), LeaveAlternateScreen, Show);
        restore_keyboard(&before);
    }
}

/// Has a panic of the thread that shows give the terminal back before it says anything, and that of
/// another, which may leave the run going, say it in the log.
fn give_back_on_panic() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panicked| {
            let shows = taken().as_ref().map(|taken| taken.by == thread::current().id());
            match shows {
                Some(false) => log::write_line(&panicked.to_string()),
                Some(true) => {
                    give_back();
                    before(panicked);
                }
                None => before(panicked),
            }
        }));
    });
}

/// Has keys neither echo, nor suspend or abort the program, all of which would leave a torn picture;
/// Ctrl-C still interrupts it. What was typed before is dropped.
fn quiet_keyboard() -> io::Result<Termios> {
    let before = tcgetattr(io::stdout())?;
    let mut quiet = before.clone();
    quiet.local_modes -= LocalModes::ECHO | LocalModes::ICANON;
    for key in [SpecialCodeIndex::VSUSP, SpecialCodeIndex::VQUIT] {
        // No key does it.
        quiet.special_codes[key] = 0;
    }
    tcsetattr(io::stdout(), OptionalActions::Flush, &quiet)?;
    Ok(before)
}

fn restore_keyboard(before: &Termios) {
    let _ = tcsetattr(io::stdout(), OptionalActions::Flush, before);
}
