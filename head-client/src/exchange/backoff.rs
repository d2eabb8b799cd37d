//! The pauses between attempts to connect.

use std::time::Duration;

/// First pause before connecting again; it doubles with every failure.
pub const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Longest pause before connecting again.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Spaces attempts to connect, so that a server that is down is neither flooded nor missed for long
/// once it is back.
///
/// ```
/// use std::time::Duration;
/// use isthmus_head_client::exchange::Backoff;
///
/// let mut backoff = Backoff::default();
/// assert_eq!(backoff.next_pause(), Duration::from_millis(100));
/// assert_eq!(backoff.next_pause(), Duration::from_millis(200));
/// backoff.handle_welcome();
/// assert_eq!(backoff.next_pause(), Duration::from_millis(100));
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    pause: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Backoff { pause: FIRST_PAUSE }
    }
}

impl Backoff {
    /// How long to wait before the next attempt, after a connection was lost or an attempt failed.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(LONGEST_PAUSE);
        pause
    }

    /// The server welcomed the device: the next pause is the first again. A handshake of the
    /// transport alone does not count.
    pub fn handle_welcome(&mut self) {
        *self = Backoff::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_start_anew_after_a_welcome() {
        let mut backoff = Backoff::default();
        let mut pauses = || backoff.next_pause().as_millis();
        let all: Vec<_> = (0..7).map(|_| pauses()).collect();
        assert_eq!(all, [100, 200, 400, 800, 1_600, 2_000, 2_000]);
        backoff.handle_welcome();
        assert_eq!(backoff.next_pause(), FIRST_PAUSE);
    }
}
