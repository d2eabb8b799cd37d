//! Durations as options take them: `300ms`, `15s`, `2m`, or a plain number of the option's unit.

use std::time::Duration;

use isthmus_simulator::link::duration::{MILLISECOND, SECOND, parse};

/// A positive duration; a plain number counts seconds.
pub fn seconds(text: &str) -> Result<Duration, String> {
    positive(text, SECOND)
}

/// A positive duration; a plain number counts milliseconds.
pub fn milliseconds(text: &str) -> Result<Duration, String> {
    positive(text, MILLISECOND)
}

/// A duration that may be zero; a plain number counts milliseconds.
pub fn milliseconds_or_zero(text: &str) -> Result<Duration, String> {
    parse(text, MILLISECOND)
}

fn positive(text: &str, unit: Duration) -> Result<Duration, String> {
    match parse(text, unit)? {
        Duration::ZERO => {
            Err(format!("{text} is not more than 0; expected one such as 300ms or 15s"))
        }
        duration => Ok(duration),
    }
}
