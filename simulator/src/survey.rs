//! Measures a real path to a server, with probes over a client's own connection.
//!
//! A [`Survey`] says when to send how much, and keeps what came of it; [`measure`] carries that out.
//! Two workloads are measured, one after the other. The *light* one is a small probe ten times a
//! second: what a path does that nobody fills. The *heavy* one keeps as much on the way as fills the
//! path and [`STANDING`] of its queue, in probes of [`TRAIN`] each, back to back: what it carries.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use isthmus_head_client::config::ServerUrl;
use isthmus_head_client::tls::Trust;
use isthmus_head_client::{ConnectError, Heard, Histogram, Prober};
use isthmus_proto::{Bitrate, Timestamp};

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
/// Back to which the rate is taken that the heavy workload goes by.
const MEMORY: Duration = Duration::from_secs(1);
/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Quantiles that are told.
const QUANTILES: [f64; 3] = [0.1, 0.5, 0.9];
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

/// One workload: when to send how much, and what came of it. It reads no clock.
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
fn spread(windows: &mut [f64], width: f64, from: f64, until: f64, amount: f64) {
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

    /// The rate that this share of windows does not exceed; 0 without windows.
    pub fn rate(&self, quantile: f64) -> Bitrate {
        let mut rates = self.rates.clone();
        rates.sort();
        let place = (quantile * rates.len() as f64).ceil() as usize;
        rates.get(place.saturating_sub(1)).copied().unwrap_or(Bitrate::from_bps(0))
    }

    /// The round trip that this share of echoed probes does not exceed.
    pub fn round_trip(&self, quantile: f64) -> Option<Duration> {
        self.round_trips.quantile(quantile).map(Duration::from_micros)
    }
}

/// A link's file of what was measured, for `simulator link` and scenarios. It names the trace by
/// `trace`, and tells in comments what both workloads came to.
pub fn link_file(server: &ServerUrl, trace: &Path, light: &Measured, heavy: &Measured) -> String {
    let ms = |span: Duration| span.as_secs_f64() * 1e3;
    let mut text = String::from(
        "#         probes  no echo    lost  p10 ms   p50 ms   p90 ms p10 kbit/s       p50       p90\n",
    );
    for (name, measured) in [("light", light), ("heavy", heavy)] {
        let Measured { sent, timed_out, lost, .. } = measured;
        let _ = write!(text, "# {name:<6} {sent:>8} {timed_out:>8} {lost:>7}");
        for quantile in QUANTILES {
            let span = measured.round_trip(quantile);
            let span = span.map_or_else(|| "-".into(), |span| format!("{:.1}", ms(span)));
            let _ = write!(text, " {span:>8}");
        }
        for quantile in QUANTILES {
            let kbits = measured.rate(quantile).as_bps() as f64 / 1e3;
            let _ = write!(text, " {kbits:>9.0}");
        }
        text.push('\n');
    }
    let quoted = |text: &str| toml::Value::from(text).to_string();
    // Half of a round trip that nothing else held up.
    let delay = ms(light.round_trip(0.5).unwrap_or_default()) / 2.0;
    let trace = quoted(&trace.to_string_lossy());
    let downlink = heavy.rate(0.9).as_bps() as f64 / 1e3;
    let _ = write!(
        text,
        "description = {}\n\
         source = \"Uplink and delay: recorded. Downlink: assumed as fast as the uplink at its best.\"\n\n\
         [uplink]\nrate = {{ trace = {trace} }}\ndelay_ms = {delay:.1}\n\n\
         [downlink]\nrate = {{ kbits = {downlink:.0} }}\ndelay_ms = {delay:.1}\n",
        quoted(&format!("the path to {server}")),
    );
    text
}

/// Measures one workload over a connection of its own, for `duration`, in windows of `window`;
/// `progress` is told again and again how much time has passed.
pub async fn measure(
    server: ServerUrl,
    trust: &Trust,
    workload: Workload,
    duration: Duration,
    window: Duration,
    mut progress: impl FnMut(Duration),
) -> Result<Measured, ConnectError> {
    let mut prober = Prober::connect(server, trust, CONNECT_TIMEOUT).await?;
    let zero = Instant::now();
    let now = || Timestamp::from_micros(zero.elapsed().as_micros() as u64);
    let mut survey = Survey::new(workload, now(), duration);
    let mut up = true;
    loop {
        for number in survey.expire(now()) {
            prober.cancel(number);
        }
        if survey.is_over(now()) {
            break;
        }
        // Without a connection a light probe is lost, and a heavy one would be at once, and the next.
        while (up || workload == Workload::Light)
            && let Some(Probe { number, padding }) = survey.poll_send(now())
        {
            prober.send(number, padding, 2 * TIMEOUT);
        }
        progress(zero.elapsed());
        let due = zero + Duration::from_micros(survey.poll_timeout().as_micros());
        let heard = tokio::time::timeout_at(due.into(), prober.next()).await;
        match heard {
            Err(_) => {}
            Ok(Heard::Echo { probe, receive_span }) => {
                survey.on_echo(now(), probe, receive_span);
            }
            Ok(Heard::Lost { probe, reason }) => {
                tracing::debug!(probe, reason, "no echo");
                survey.on_lost(probe);
            }
            Ok(Heard::Up) => up = true,
            Ok(Heard::Down) => {
                up = false;
                survey.on_down();
            }
        }
    }
    prober.close().await;
    Ok(survey.finish(window))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::PathSpec;
    use crate::trace::{Columns, Format};

    fn ms(millis: u64) -> Timestamp {
        Timestamp::from_micros(1_000 * millis)
    }

    /// Plays a workload over a path that carries `bytes_per_ms(now)` and takes `delay` (ms) both
    /// ways together.
    fn play(
        workload: Workload,
        seconds: u64,
        delay: u64,
        bytes_per_ms: impl Fn(u64) -> f64,
    ) -> Measured {
        let mut survey = Survey::new(workload, ms(0), Duration::from_secs(seconds));
        let mut queue: std::collections::VecDeque<(u64, f64)> = Default::default();
        let mut echoes: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        let mut now = 0;
        while !survey.is_over(ms(now)) {
            survey.expire(ms(now));
            for number in echoes.remove(&now).unwrap_or_default() {
                survey.on_echo(ms(now), number, Duration::ZERO);
            }
            while let Some(Probe { number, padding }) = survey.poll_send(ms(now)) {
                queue.push_back((number, padding as f64));
            }
            let mut room = bytes_per_ms(now);
            while let Some((number, left)) = queue.front_mut() {
                let passes = room.min(*left);
                (room, *left) = (room - passes, *left - passes);
                if *left > 0.0 {
                    break;
                }
                echoes.entry(now + delay.max(1)).or_default().push(*number);
                queue.pop_front();
            }
            now += 1;
        }
        survey.finish(Duration::from_secs(1))
    }

    #[test]
    fn a_heavy_workload_sees_what_the_path_carries_and_holds_its_queue_short() {
        for (bytes_per_ms, delay) in [(20.0, 100), (250.0, 50), (2_000.0, 20)] {
            let measured = play(Workload::Heavy, 20, delay, |_| bytes_per_ms);
            assert_eq!(measured.rates.len(), 20);
            let expected = bytes_per_ms * 8e3 * 1.05;
            for quantile in QUANTILES {
                let rate = measured.rate(quantile).as_bps() as f64;
                assert!((0.97..1.03).contains(&(rate / expected)), "{rate} of {expected}");
            }
            let round_trip = measured.round_trip(0.9).expect("echoes");
            let most = Duration::from_millis(delay) + 2 * STANDING + Duration::from_millis(300);
            assert!(round_trip < most, "{round_trip:?} at {bytes_per_ms}");
        }
    }

    #[test]
    fn an_outage_is_seen_where_it_was() {
        // From 8 to 11 s; the first 2 s warm up.
        let rate = |now| if (8_000..11_000).contains(&now) { 0.0 } else { 250.0 };
        let measured = play(Workload::Heavy, 12, 40, rate);
        let kbits: Vec<u64> = measured.rates.iter().map(|rate| rate.as_bps() / 1_000).collect();
        assert!(kbits[7] < 100 && kbits[8] < 100, "{kbits:?}");
        assert!(kbits[4] > 2_000 && kbits[10] > 2_000, "{kbits:?}");
        assert_eq!(measured.timed_out, 0);
    }

    #[test]
    fn what_never_comes_back_is_given_up_and_counted() {
        let measured = play(Workload::Light, 2, 0, |now| if now < 1_000 { 1e6 } else { 0.0 });
        assert_eq!((measured.sent, measured.timed_out, measured.lost), (20, 10, 0));
        let mut survey = Survey::new(Workload::Heavy, ms(0), Duration::from_secs(1));
        while survey.poll_send(ms(0)).is_some() {}
        survey.on_lost(0);
        survey.on_down();
        survey.on_echo(ms(1), 1, Duration::ZERO);
        assert_eq!(survey.finish(Duration::from_secs(1)).lost, 2);
    }

    #[test]
    fn arrivals_are_spread_over_their_windows_and_none_is_invented() {
        let mut windows = [0.0; 3];
        spread(&mut windows, 10.0, 5.0, 25.0, 8.0);
        assert_eq!(windows, [2.0, 4.0, 2.0]);
        spread(&mut windows, 10.0, -10.0, 10.0, 2.0);
        spread(&mut windows, 10.0, 25.0, 45.0, 4.0);
        spread(&mut windows, 10.0, 15.0, 15.0, 1.0);
        spread(&mut windows, 10.0, -5.0, -5.0, 9.0);
        spread(&mut windows, 10.0, 31.0, 32.0, 9.0);
        assert_eq!(windows, [3.0, 5.0, 3.0]);
    }

    #[test]
    fn the_link_s_file_and_its_trace_are_ready_for_use() {
        let light = play(Workload::Light, 3, 40, |_| 1e6);
        let heavy = play(Workload::Heavy, 10, 40, |now| if now < 7_000 { 250.0 } else { 125.0 });
        let folder = tempfile::tempdir().expect("a folder");
        let [trace, link] = ["trace.csv", "link.toml"].map(|name| folder.path().join(name));
        let recorded = heavy.to_trace().expect("windows");
        let mut bytes = Vec::new();
        recorded.write(Format::Csv, &mut bytes).expect("memory");
        std::fs::write(&trace, bytes).expect("written");
        assert_eq!(Trace::read(&trace, &Columns::default()).expect("a trace"), recorded);
        let server = "quic://192.0.2.7:4433".parse().expect("a URL");
        let text = link_file(&server, Path::new("trace.csv"), &light, &heavy);
        std::fs::write(&link, &text).expect("written");
        let (spec, place) = PathSpec::find(&link.to_string_lossy()).expect("a link");
        spec.to_config(&place, 1).unwrap_or_else(|error| panic!("{error}\n{text}"));
        assert_eq!((spec.uplink.delay_ms, spec.downlink.delay_ms), (20.0, 20.0), "{text}");
    }
}
