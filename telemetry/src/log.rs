//! The log, to standard error.

use std::collections::VecDeque;
use std::error::Error;
use std::io::{self, Write};
use std::iter;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt};

/// Lines that are held at most; of more, the oldest are dropped and counted.
const MOST_HELD: usize = 1_000;

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people, coloured on a terminal.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts the log: `filter` is a level, or modules with a level each (`warn,isthmus_proto=debug`);
/// `colours` says whether lines for people have them. To be called once in a program's life; a
/// second call panics.
pub fn start(filter: &str, format: LogFormat, colours: bool) -> Result<(), ParseError> {
    // Not by span or field: that takes regular expressions, 200 kB of the device's program.
    let filter: Targets = filter.parse()?;
    let lines = fmt::layer::<Registry>().with_ansi(colours).with_writer(writer);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry().with(lines).with(filter).init();
    Ok(())
}

/// An error and its causes in one line, but for those that it names itself: a program's last words.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let chain = iter::successors(Some(error), |&error| error.source()).map(ToString::to_string);
    chain.fold(String::new(), |line, cause| match line.as_str() {
        "" => cause,
        _ if line.ends_with(&cause) => line,
        _ => format!("{line}: {cause}"),
    })
}

/// Where the log's lines go: to standard error, unless they are [`Held`].
pub fn writer() -> impl Write {
    Lines
}

/// Writes a line to where the log's go.
pub fn write_line(line: &str) {
    // There is nobody left to report to.
    let _ = Lines.write_all(format!("{line}\n").as_bytes());
}

/// While it lives, the log's lines are kept instead of written; when it is dropped, they are
/// written to standard error. For a program that draws on the terminal.
#[derive(Debug)]
pub struct Held(());

#[derive(Debug, Default)]
struct Kept {
    lines: VecDeque<String>,
    dropped: u64,
}

impl Held {
    /// From now on. There is at most one at a time.
    pub fn start() -> Held {
        *kept() = Some(Kept::default());
        Held(())
    }

    /// The latest lines, at most `count`, the oldest first.
    pub fn latest(&self, count: usize) -> Vec<String> {
        let kept = kept();
        let Some(Kept { lines, .. }) = &*kept else { return Vec::new() };
        lines.iter().skip(lines.len().saturating_sub(count)).cloned().collect()
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(Kept { lines, dropped }) = kept().take() else { return };
        let mut out = io::stderr().lock();
        // There is nobody left to report to.
        if dropped > 0 {
            let _ = writeln!(out, "({dropped} earlier lines of the log were dropped)");
        }
        for line in lines {
            let _ = writeln!(out, "{line}");
        }
    }
}

fn kept() -> MutexGuard<'static, Option<Kept>> {
    static KEPT: Mutex<Option<Kept>> = Mutex::new(None);
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Kept {
    fn push(&mut self, text: &str) {
        for line in text.lines() {
            if self.lines.len() == MOST_HELD {
                self.lines.pop_front();
                self.dropped += 1;
            }
            self.lines.push_back(line.to_owned());
        }
    }
}

/// Takes whole lines.
struct Lines;

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut *kept() {
            Some(kept) => kept.push(&String::from_utf8_lossy(bytes)),
            None => return io::stderr().write(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fmt;

    #[derive(Debug)]
    struct Failed(&'static str, Option<Box<Failed>>);

    impl fmt::Display for Failed {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Error for Failed {
        fn source(&self) -> Option<&(dyn Error + 'static)> {
            self.1.as_deref().map(|source| source as _)
        }
    }

    #[test]
    fn each_cause_is_told_once() {
        let system = Failed("no such file", None);
        let file = Failed("a.toml: no such file", Some(Box::new(system)));
        let bundle = Failed("--bundle", Some(Box::new(file)));
        assert_eq!(causes(&bundle), "--bundle: a.toml: no such file");
    }

    #[test]
    fn lines_are_held_and_the_latest_told() {
        let held = Held::start();
        write_line("one");
        write!(writer(), "two\nthree\n").expect("memory");
        assert_eq!(held.latest(2), ["two", "three"]);
        assert_eq!(held.latest(9), ["one", "two", "three"]);
        (0..MOST_HELD).for_each(|number| write_line(&number.to_string()));
        assert_eq!(held.latest(MOST_HELD + 9).len(), MOST_HELD);
        assert_eq!(kept().as_ref().map(|kept| kept.dropped), Some(3));
        // What a test held is nobody's to read.
        *kept() = None;
    }
}
