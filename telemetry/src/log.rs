//! The log, to standard error.

use std::error::Error;
use std::io::{self, IsTerminal};
use std::iter;

use tracing_subscriber::filter::{ParseError, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt};

/// How the log is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people, coloured on a terminal.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Starts the log: `filter` is a level, or modules with a level each (`warn,isthmus_proto=debug`).
/// To be called once in a program's life; a second call panics.
pub fn start(filter: &str, format: LogFormat) -> Result<(), ParseError> {
    // Not by span or field: that takes regular expressions, 200 kB of the device's program.
    let filter: Targets = filter.parse()?;
    let lines =
        fmt::layer::<Registry>().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr);
    let lines = match format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().boxed(),
    };
    tracing_subscriber::registry().with(lines).with(filter).init();
    Ok(())
}

/// An error and its causes in one line, but for those that it tells itself: a program's last words.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    let chain = iter::successors(Some(error), |&error| error.source()).map(ToString::to_string);
    chain.fold(String::new(), |line, cause| match line.as_str() {
        "" => cause,
        _ if line.ends_with(&cause) => line,
        _ => format!("{line}: {cause}"),
    })
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
}
