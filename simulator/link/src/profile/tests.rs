use std::fs;
use std::path::Path;
use std::time::Duration;

use isthmus_proto::Timestamp;

use super::*;
use crate::{Discipline, Jitter, LinkConfig, Outage};

fn link(text: &str) -> Result<LinkConfig, String> {
    let spec: LinkSpec = toml::from_str(text).map_err(|error| error.to_string())?;
    spec.to_config("uplink", Path::new(""), 1).map_err(|error| error.to_string())
}

#[test]
fn every_built_in_link_is_valid_and_says_its_source() {
    for (name, _) in BUILT_IN {
        let (spec, folder) = PathSpec::find(name).expect(name);
        assert!(!spec.source.is_empty() && !spec.description.is_empty(), "{name}");
        spec.to_config(&folder, 1).expect(name);
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs/links");
    let files = fs::read_dir(folder).expect("the folder").count();
    assert_eq!(files, BUILT_IN.len(), "every file is built in");
}

#[test]
fn a_drawn_rate_hangs_from_the_seed() {
    let (spec, folder) = PathSpec::find("lte-driving").expect("built in");
    let config = |seed| spec.to_config(&folder, seed).expect("valid");
    assert_eq!(config(1), config(1));
    assert_ne!(config(1).uplink.rate, config(2).uplink.rate);
}

#[test]
fn everything_can_be_said() {
    let config = link(
        "rate = { kbits = 100 }\ndelay_ms = 20\n\
         jitter = { normal_ms = 3, correlation = 0.5, reordering = true }\n\
         loss = { to_bad = 0.1, to_good = 0.5 }\nduplication = 0.1\ncorruption = 0.2\n\
         queue = { packets = 7, discipline = 'codel', interval_ms = 50 }\n\
         outages = [{ start_s = 1, length_s = 0.5 }]",
    )
    .expect("valid");
    let ms = Duration::from_millis;
    assert_eq!(config.delay.jitter, Jitter::Normal(ms(3)));
    assert_eq!(config.queue.discipline, Discipline::CoDel { target: ms(5), interval: ms(50) });
    assert_eq!(
        config.outages,
        [Outage { start: Timestamp::from_micros(1_000_000), length: ms(500) }]
    );
}

#[test]
fn what_cannot_be_meant_is_named() {
    for (text, expected) in [
        ("rate = {}", "uplink.rate: exactly one"),
        ("rate = { kbits = 1, trace = 'x' }", "uplink.rate: exactly one"),
        ("rate = { kbits = -1 }", "uplink.rate.kbits: -1"),
        ("rate = { kbits = nan }", "uplink.rate.kbits: NaN"),
        ("rate = { kbits = 1, scale = 2 }", "uplink.rate.scale: is only for a trace"),
        ("rate = { kbits = 1, drawn_s = 2 }", "uplink.rate.drawn_s: is only"),
        ("rate = { trace = 'none.csv' }", "none.csv: "),
        ("rate = { trace = 'none.csv', scale = 0 }", "none.csv: "),
        ("rate = { markov = [] }", "uplink.rate.markov: at least one"),
        ("rate = { markov = [{ kbits = 1, seconds = 0 }] }", "uplink.rate.markov[0].seconds"),
        ("rate = { markov = [{ kbits = 1, seconds = 1, moves = [] }] }", "markov[0].moves"),
        ("rate = { kbits = 1, tempo = 3 }", "unknown field `tempo`"),
        ("rate = { kbits = 1 }\ndelay_ms = -1", "uplink.delay_ms: -1"),
        ("rate = { kbits = 1 }\ndelai_ms = 1", "unknown field `delai_ms`"),
        ("rate = { kbits = 1 }\nloss = { uniform = 2 }", "uplink.loss.uniform: 2"),
        ("rate = { kbits = 1 }\nloss = { to_bad = 0.1 }", "uplink.loss: either"),
        ("rate = { kbits = 1 }\njitter = { correlation = 2 }", "uplink.jitter.correlation"),
        (
            "rate = { kbits = 1 }\njitter = { normal_ms = 1, uniform_ms = 1 }",
            "uplink.jitter: uniform_ms",
        ),
        ("rate = { kbits = 1 }\nqueue = { bytes = 0 }", "uplink.queue: either"),
        ("rate = { kbits = 1 }\nqueue = { discipline = 'red' }", "unknown variant `red`"),
        ("rate = { kbits = 1 }\noutages = [{ start_s = 1, length_s = -1 }]", "outages[0].length_s"),
    ] {
        let error = link(text).expect_err(text);
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn an_unknown_name_lists_the_known_ones() {
    let error = PathSpec::find("wfi").expect_err("a typo").to_string();
    assert!(error.contains("lte-driving") && error.contains("wfi"), "{error}");
}
