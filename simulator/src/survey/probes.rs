//! When to send which probe, and what the echoes say: no clock, no socket.

use std::collections::BTreeMap;
use std::time::Duration;

use isthmus_head_client::Histogram;
use isthmus_proto::{Bitrate, Timestamp};

use crate::link::statistics;
use crate::trace::{PiecesError, Trace};
use crate::world::{HEADERS, PAYLOAD};

/// Padding of a light probe (bytes): it fits a packet, and hardly takes any time to send.
const LIGHT_PADDING: usize = 64;
/// Time between light probes.
const LIGHT_INTERVAL: Duration = Duration::from_millis(100);
/// What the heavy workload keeps in the path's queue, at the rate that it sees.
pub const STANDING: Duration = Duration::from_millis(200);
/// How long a heavy probe takes to pass, about.
pub const TRAIN: Duration = Duration::from_millis(50);
/// Least padding of a heavy probe: what fits a packet (bytes).
const LEAST_TRAIN: usize = 1_100;
/// Largest padding of a heavy probe (bytes): frames of this size are accepted by every server.
const LARGEST_TRAIN: usize = 64 << 10;
/// Most that the heavy workload keeps on the way (bytes).
const MOST_OPEN: usize = 4 << 20;
/// How long the heavy workload takes to fill the path, before it is measured.
const WARM_UP: Duration = Duration::from_secs(2);
/// How far back the rate is averaged that the heavy workload follows.
const MEMORY: Duration = Duration::from_secs(1);
/// After so long without an echo a probe is given up.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// What a path is measured with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Workload {
    /// Small probes, rarely.
    Light,
    /// As much as the path carries.
    Heavy,
}

/// One workload: it says when to send how much, and keeps what is heard of it.
#[derive(Debug)]
pub struct Survey {
    workload: Workload,
    began: Timestamp,
    measured_from: Timestamp,
    ends: Timestamp,
    next_number: u64,
    /// When the next light probe is due.
    next_light: Timestamp,
    open: BTreeMap<u64, Open>,
    open_bytes: usize,
    echoes: Vec<Echo>,
    round_trips: Histogram,
    least_round_trip: Option<Duration>,
    /// Probes without an echo.
    timed_out: u64,
    lost: u64,
}

#[derive(Clone, Copy, Debug)]
struct Open {
    sent: Timestamp,
    bytes: usize,
}

/// Bytes that arrived between two instants, as far as is known.
#[derive(Clone, Copy, Debug)]
struct Echo {
    sent: Timestamp,
    at: Timestamp,
    bytes: usize,
}

/// What a workload came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Measured {
    /// Probes sent.
    pub sent: u64,
    /// Given up for want of an echo.
    pub timed_out: u64,
    /// Lost with the connection, or refused.
    pub lost: u64,
    /// From sending a probe to its echo, less the time that it took to arrive (µs).
    pub round_trips: Histogram,
    /// What arrived in each window, with the headers that a simulated link charges.
    pub rates: Vec<Bitrate>,
    /// The length of a window.
    pub window: Duration,
}

/// A probe to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    /// Its number, from 0.
    pub number: u64,
    /// Its padding (bytes).
    pub padding: usize,
}

impl Survey {
    /// A workload that begins at `now` and is measured for `duration`.
    pub fn new(workload: Workload, now: Timestamp, duration: Duration) -> Self {
        let warm_up = match workload {
            Workload::Light => Duration::ZERO,
            Workload::Heavy => WARM_UP,
        };
        Survey {
            workload,
            began: now,
            measured_from: now + warm_up,
            ends: now + warm_up + duration,
            next_number: 0,
            next_light: now,
            open: BTreeMap::new(),
            open_bytes: 0,
            echoes: Vec::new(),
            round_trips: Histogram::default(),
            least_round_trip: None,
            timed_out: 0,
            lost: 0,
        }
    }

    /// The next probe to send at `now`; ask until there is none.
    pub fn poll_send(&mut self, now: Timestamp) -> Option<Probe> {
        if now >= self.ends {
            return None;
        }
        let padding = match self.workload {
            Workload::Light if now < self.next_light => return None,
            Workload::Light => {
                self.next_light = self.next_light + LIGHT_INTERVAL;
                LIGHT_PADDING
            }
            Workload::Heavy => {
                let rate = self.recent_rate(now);
                let within = |time: Duration| (rate * time.as_secs_f64()) as usize;
                let padding = within(TRAIN).clamp(LEAST_TRAIN, LARGEST_TRAIN);
                let path = self.least_round_trip.unwrap_or_default() + STANDING;
                // Two, so that one is on the way while the other's echo is.
                let most = within(path).clamp(2 * padding, MOST_OPEN);
                if self.open_bytes + padding > most {
                    return None;
                }
                padding
            }
        };
        let number = self.next_number;
        self.next_number += 1;
        self.open.insert(number, Open { sent: now, bytes: padding });
        self.open_bytes += padding;
        Some(Probe { number, padding })
    }

    /// When something is due that no echo brings.
    pub fn poll_timeout(&self) -> Timestamp {
        let oldest = self.open.values().next().map(|open| open.sent + TIMEOUT);
        let next = match self.workload {
            Workload::Light => self.next_light.min(self.ends),
            Workload::Heavy => self.ends,
        };
        oldest.map_or(next, |oldest| oldest.min(next))
    }

    /// Whether all was sent and nothing is waited for.
    pub fn is_over(&self, now: Timestamp) -> bool {
        // What the heavy workload has sent too much is of no interest.
        now >= self.ends && (self.open.is_empty() || self.workload == Workload::Heavy)
    }

    /// A probe's echo is there; its first byte reached the server `receive_span` before its last.
    pub fn on_echo(&mut self, now: Timestamp, number: u64, receive_span: Duration) {
        let Some(Open { sent, bytes }) = self.take(number) else { return };
        let round_trip = now.saturating_since(sent).saturating_sub(receive_span);
        if sent >= self.measured_from {
            self.round_trips.record(round_trip.as_micros() as u64);
        }
        let least = self.least_round_trip.map_or(round_trip, |least| least.min(round_trip));
        self.least_round_trip = Some(least);
        self.echoes.push(Echo { sent, at: now, bytes });
    }

    /// A probe will have no echo.
    pub fn on_lost(&mut self, number: u64) {
        self.lost += u64::from(self.take(number).is_some());
    }

    /// The connection is gone, with all that was on the way.
    pub fn on_down(&mut self) {
        self.lost += self.open.len() as u64;
        self.open.clear();
        self.open_bytes = 0;
    }

    /// Gives up what waits too long; its numbers.
    pub fn expire(&mut self, now: Timestamp) -> Vec<u64> {
        let is_old = |open: &Open| now.saturating_since(open.sent) >= TIMEOUT;
        let old: Vec<u64> = self
            .open
            .iter()
            .take_while(|(_, open)| is_old(open))
            .map(|(&number, _)| number)
            .collect();
        for &number in &old {
            self.take(number);
            self.timed_out += 1;
        }
        old
    }

    /// What it came to, in windows of `window`; a rest shorter than one is left out.
    pub fn finish(self, window: Duration) -> Measured {
        let span = self.ends.saturating_since(self.measured_from);
        let mut bytes = vec![0.0; (span.as_micros() / window.as_micros().max(1)) as usize];
        let width = window.as_micros() as f64;
        let origin = self.measured_from.as_micros() as f64;
        let mut before = self.began;
        for echo in &self.echoes {
            // What arrived since the echo before, if it was on its way by then: evenly, for nothing
            // is known of it.
            let from = before.max(echo.sent).as_micros() as f64 - origin;
            let until = echo.at.as_micros() as f64 - origin;
            spread(&mut bytes, width, from, until, echo.bytes as f64);
            before = echo.at;
        }
        let on_wire = f64::from(PAYLOAD + HEADERS) / f64::from(PAYLOAD);
        let rate = |bytes: f64| Bitrate::from_bps((bytes * on_wire * 8e6 / width).round() as u64);
        Measured {
            sent: self.next_number,
            timed_out: self.timed_out,
            lost: self.lost,
            round_trips: self.round_trips,
            rates: bytes.into_iter().map(rate).collect(),
            window,
        }
    }

    fn take(&mut self, number: u64) -> Option<Open> {
        let open = self.open.remove(&number)?;
        self.open_bytes -= open.bytes;
        Some(open)
    }

    /// Bytes a second that arrived of late.
    fn recent_rate(&self, now: Timestamp) -> f64 {
        let span = now.saturating_since(self.began).min(MEMORY);
        let recent = self.echoes.iter().rev().take_while(|it| now.saturating_since(it.at) < MEMORY);
        let bytes: usize = recent.map(|echo| echo.bytes).sum();
        if span.is_zero() { 0.0 } else { bytes as f64 / span.as_secs_f64() }
    }
}

/// Adds `amount`, which came evenly from `from` to `until`, to windows of `width` from 0 on.
pub(super) fn spread(windows: &mut [f64], width: f64, from: f64, until: f64, amount: f64) {
    let place = |at: f64| (at / width).clamp(0.0, windows.len() as f64);
    let length = (until - from) / width;
    let (mut at, end) = (place(from), place(until));
    if length <= 0.0 {
        let window = (until >= 0.0).then(|| windows.get_mut(end as usize)).flatten();
        return window.into_iter().for_each(|window| *window += amount);
    }
    while at < end {
        let next = (at.floor() + 1.0).min(end);
        windows[at as usize] += amount * (next - at) / length;
        at = next;
    }
}

impl Measured {
    /// The rates as a trace. It fails if there is no window.
    pub fn to_trace(&self) -> Result<Trace, PiecesError> {
        Trace::new(self.rates.iter().map(|&rate| (self.window, rate)))
    }

    /// The rate that this fraction of windows does not exceed; 0 without windows.
    pub fn rate(&self, quantile: f64) -> Bitrate {
        let rates: Vec<f64> = self.rates.iter().map(|rate| rate.as_bps() as f64).collect();
        Bitrate::from_bps(statistics::quantile(&rates, quantile) as u64)
    }

    /// The round trip that this fraction of echoed probes does not exceed.
    pub fn round_trip(&self, quantile: f64) -> Option<Duration> {
        self.round_trips.quantile(quantile).map(Duration::from_micros)
    }
}
