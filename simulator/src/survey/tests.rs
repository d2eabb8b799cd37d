use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use isthmus_proto::Timestamp;

use super::probes::spread;
use super::*;
use crate::profile::PathSpec;
use crate::trace::{Columns, Format, Trace};

fn ms(millis: u64) -> Timestamp {
    Timestamp::from_micros(1_000 * millis)
}

/// Runs a workload over a path that carries `bytes_per_ms(now)` and takes `delay` (ms) both
/// ways together.
fn simulate(
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
        let measured = simulate(Workload::Heavy, 20, delay, |_| bytes_per_ms);
        assert_eq!(measured.rates.len(), 20);
        let expected = bytes_per_ms * 8e3 * 1.05;
        for quantile in [0.1, 0.5, 0.9] {
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
    let measured = simulate(Workload::Heavy, 12, 40, rate);
    let kbits: Vec<u64> = measured.rates.iter().map(|rate| rate.as_bps() / 1_000).collect();
    assert!(kbits[7] < 100 && kbits[8] < 100, "{kbits:?}");
    assert!(kbits[4] > 2_000 && kbits[10] > 2_000, "{kbits:?}");
    assert_eq!(measured.timed_out, 0);
}

#[test]
fn what_never_comes_back_is_given_up_and_counted() {
    let measured = simulate(Workload::Light, 2, 0, |now| if now < 1_000 { 1e6 } else { 0.0 });
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
    let light = simulate(Workload::Light, 3, 40, |_| 1e6);
    let heavy = simulate(Workload::Heavy, 10, 40, |now| if now < 7_000 { 250.0 } else { 125.0 });
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
