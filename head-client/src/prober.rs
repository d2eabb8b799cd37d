//! Probes without frames, by which a path is measured.

use std::time::Duration;

use isthmus_proto::FrameId;
use isthmus_proto::wire::Hello;

use crate::config::ServerUrl;
use crate::exchange::{Checked, Outgoing};
use crate::transport::tls::Trust;
use crate::transport::{Command, ConnectError, Dialer, Event, Link};

/// Bytes handed to the transport and not yet acknowledged: more than a fast path holds, so that the
/// path is the limit and not, as for frames, the wish to take back what is late.
const SEND_WINDOW: u64 = 8 << 20;

/// A connection to a server that carries nothing but probes. It is made as a client's is, and made
/// again when it is lost.
pub struct Prober {
    link: Link,
}

/// What a [`Prober`] hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Heard {
    /// The server has all of a probe.
    Echo {
        /// Which.
        probe: u64,
        /// First to last byte at the server.
        receive_span: Duration,
    },
    /// A probe will have no echo.
    Lost {
        /// Which.
        probe: u64,
        /// Why.
        reason: String,
    },
    /// The connection is there.
    Up,
    /// The connection is gone, with all probes that had no echo yet.
    Down,
}

impl Prober {
    /// Connects to a server, whatever it serves, and checks that it is the right one.
    pub async fn connect(
        server: ServerUrl,
        trust: &Trust,
        timeout: Duration,
    ) -> Result<Prober, ConnectError> {
        let dialer = Dialer::new(vec![server], trust, Hello::default(), timeout, None)?;
        let dialer = dialer.with_send_window(SEND_WINDOW);
        Ok(Prober { link: Link::open(dialer, true).await? })
    }

    /// Sends a probe of so much padding (bytes), whose echo is worth something for `time_left`.
    pub fn send(&self, probe: u64, padding: usize, time_left: Duration) {
        let outgoing = Outgoing::probe(FrameId(probe), padding, time_left);
        // Without a link task the connection is down, which is heard.
        let _ = self.link.commands.send(Command::Send(outgoing));
    }

    /// Sends no more of a probe, and waits for its echo no more.
    pub fn cancel(&self, probe: u64) {
        let _ = self.link.commands.send(Command::Cancel(FrameId(probe)));
    }

    /// What happens next. Cancel safe.
    pub async fn next(&mut self) -> Heard {
        loop {
            match self.link.events.recv().await {
                Some(event) => {
                    if let Some(heard) = heard(event) {
                        return heard;
                    }
                }
                // The link's task lives as long as this does, unless it panicked.
                None => std::future::pending().await,
            }
        }
    }

    /// Ends the connection, and tells the server.
    pub async fn close(self) {
        self.link.close().await;
    }
}

fn heard(event: Event) -> Option<Heard> {
    Some(match event {
        Event::Up { .. } => Heard::Up,
        Event::Down => Heard::Down,
        Event::Sent(..) | Event::Unconnected(_) => return None,
        Event::Lost(frame, reason) => Heard::Lost { probe: frame.0, reason },
        Event::Reply(frame, Checked::Echo(feedback)) => {
            let receive_span = Duration::from_micros(feedback.receive_span_us);
            Heard::Echo { probe: frame.0, receive_span }
        }
        // A probe is answered by its echo or refused.
        Event::Reply(frame, Checked::Reply { detail, .. }) => {
            Heard::Lost { probe: frame.0, reason: format!("refused: {detail}") }
        }
    })
}
