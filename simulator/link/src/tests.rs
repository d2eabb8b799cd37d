//! The laws that every link obeys.

use std::time::Duration;

use isthmus_proto::{Bitrate, DataSize, Timestamp};
use proptest::prelude::*;

use super::*;

fn at(micros: u64) -> Timestamp {
    Timestamp::from_micros(micros)
}

fn bytes(bytes: u64) -> DataSize {
    DataSize::from_bytes(bytes)
}

fn constant(bps: u64, delay_ms: u64, queue: u64) -> LinkConfig {
    LinkConfig::constant(Bitrate::from_bps(bps), Duration::from_millis(delay_ms), bytes(queue))
}

fn link(bps: u64, delay_ms: u64, queue: u64) -> Link<u64> {
    Link::new(constant(bps, delay_ms, queue), 1)
}

const DISCIPLINES: [Discipline; 4] = [
    Discipline::DropTail,
    Discipline::DropHead,
    Discipline::CoDel { target: Duration::from_millis(5), interval: Duration::from_millis(100) },
    Discipline::Pie { target: Duration::from_millis(15) },
];

/// Offers packets of 1,000 bytes every `gap` µs until `end`; what arrived, with its arrival.
fn offer(link: &mut Link<u64>, gap: u64, end: u64) -> Vec<(u64, Timestamp)> {
    let mut arrived = Vec::new();
    for number in 0..end / gap {
        drain(link, number * gap, &mut arrived);
        link.handle_packet(at(number * gap), bytes(1_000), number);
    }
    drain(link, end, &mut arrived);
    arrived
}

/// Drives a link by its own timer, as a shell does.
fn drain(link: &mut Link<u64>, until: u64, arrived: &mut Vec<(u64, Timestamp)>) {
    while let Some(next) = link.poll_timeout().filter(|&next| next <= at(until)) {
        while let Some(packet) = link.poll_delivered(next) {
            arrived.push((packet.content, next));
        }
    }
}

#[test]
fn an_idle_link_takes_size_over_rate_and_then_the_delay() {
    for (size, bps, expected) in [(1_250, 1_000_000, 10_000), (1, 3_000_000, 3), (0, 1, 0)] {
        let mut link = link(bps, 20, 10_000);
        link.handle_packet(at(7), bytes(size), 0);
        assert_eq!(link.poll_timeout(), Some(at(7 + expected + 20_000)));
    }
}

#[test]
fn what_is_left_of_a_packet_goes_on_at_the_new_rate_and_what_has_left_arrives() {
    let mut link = link(1_000_000, 20, 10_000);
    (0..3).for_each(|number| link.handle_packet(at(0), bytes(1_250), number));
    // The first left at 10 ms; half of the second has.
    link.reconfigure(at(15_000), constant(2_000_000, 40, 10_000));
    let mut arrived = Vec::new();
    drain(&mut link, 100_000, &mut arrived);
    assert_eq!(arrived, [(0, at(30_000)), (1, at(57_500)), (2, at(62_500))]);
}

#[test]
fn an_outage_that_ends_lets_go_what_it_held() {
    let mut link = link(1_000_000, 20, 10_000);
    (0..2).for_each(|number| link.handle_packet(at(0), bytes(1_250), number));
    link.reconfigure(at(4_000), constant(0, 20, 10_000));
    assert_eq!(link.poll_timeout(), None);
    link.reconfigure(at(50_000), constant(0, 20, 10_000));
    link.reconfigure(at(104_000), constant(1_000_000, 20, 10_000));
    let mut arrived = Vec::new();
    drain(&mut link, 200_000, &mut arrived);
    assert_eq!(arrived, [(0, at(130_000)), (1, at(140_000))]);
}

#[test]
fn below_capacity_nothing_is_lost_and_no_queue_stands() {
    for discipline in DISCIPLINES {
        let mut config = constant(1_000_000, 500, 3_000);
        config.queue.discipline = discipline;
        let mut link = Link::new(config, 1);
        for tick in 0..2_000 {
            let now = at(tick * 10_000);
            assert_eq!(link.queued(now), bytes(0), "a propagating packet is no queue");
            link.handle_packet(now, bytes(1_000), tick);
            while link.poll_delivered(now).is_some() {}
        }
        assert_eq!(link.counters().dropped, Tally::default(), "{discipline:?}");
    }
}

#[test]
fn above_capacity_it_delivers_its_rate_and_drops_the_rest() {
    for discipline in DISCIPLINES {
        let mut config = constant(1_000_000, 10, 5_000);
        config.queue.discipline = discipline;
        let mut link = Link::new(config, 1);
        let arrived = offer(&mut link, 4_000, 4_000_000).len();
        // 4 s at 125 packets/s.
        assert!((490..=500).contains(&arrived), "{discipline:?}: {arrived}");
        assert!(link.counters().dropped.packets > 490, "{discipline:?}");
    }
}

#[test]
fn at_rate_zero_nothing_leaves() {
    let mut link = link(0, 10, 1_500);
    link.handle_packet(at(0), bytes(1_000), 0);
    link.handle_packet(at(1), bytes(1_000), 1);
    assert_eq!(link.poll_timeout(), None);
    assert_eq!(link.poll_delivered(at(u64::MAX)), None);
    let one = Tally { packets: 1, bytes: 1_000 };
    let offered = Tally { packets: 2, bytes: 2_000 };
    assert_eq!(link.counters(), LinkCounters { offered, dropped: one, ..LinkCounters::default() });
    assert_eq!(link.poll_dropped(), Some(1));
}

#[test]
fn a_queue_in_packets_counts_packets() {
    let mut config = constant(1_000_000, 0, 0);
    config.queue.capacity = Capacity::Packets(3);
    let mut link = Link::new(config, 1);
    (0..5).for_each(|number| link.handle_packet(at(0), bytes(1 + number * 999), number));
    assert_eq!(link.counters().dropped.packets, 2);
}

#[test]
fn drop_tail_keeps_the_oldest_and_drop_head_the_newest() {
    for (discipline, expected) in
        [(Discipline::DropTail, vec![0, 1, 2]), (Discipline::DropHead, vec![0, 6, 7])]
    {
        let mut config = constant(1_000_000, 0, 3_000);
        config.queue.discipline = discipline;
        let mut link = Link::new(config, 1);
        (0..8).for_each(|number| link.handle_packet(at(0), bytes(1_000), number));
        let mut arrived = Vec::new();
        drain(&mut link, 1_000_000, &mut arrived);
        assert_eq!(arrived.iter().map(|&(number, _)| number).collect::<Vec<_>>(), expected);
    }
}

/// The mean sojourn (ms) of what arrives in the second half of 20 s of 25% overload.
fn standing_delay(discipline: Discipline) -> f64 {
    let mut config = constant(8_000_000, 0, 1_000_000);
    config.queue.discipline = discipline;
    let arrived = offer(&mut Link::new(config, 1), 800, 20_000_000);
    let half = &arrived[arrived.len() / 2..];
    let sojourn = |&(number, arrival): &(u64, Timestamp)| arrival.as_micros() - number * 800;
    half.iter().map(sojourn).sum::<u64>() as f64 / half.len() as f64 / 1e3
}

#[test]
fn active_queue_management_holds_the_delay_that_drop_tail_lets_grow() {
    let tail = standing_delay(DISCIPLINES[0]);
    let [codel, pie] = [DISCIPLINES[2], DISCIPLINES[3]].map(standing_delay);
    assert!(tail > 900.0, "{tail}");
    assert!(pie < 30.0, "{pie}");
    // CoDel's drop rate grows with the square root of time against a flow that does not react.
    assert!(codel < 500.0, "{codel}");
}

#[test]
fn codel_s_drops_follow_the_inverse_square_root() {
    let mut config = constant(8_000_000, 0, 10_000_000);
    config.queue.discipline = DISCIPLINES[2];
    let mut link = Link::new(config, 1);
    // A queue of 2 s stands from the start; the first drop comes an interval after the first
    // packet above target, the next after interval ÷ √n.
    (0..2_000).for_each(|number| link.handle_packet(at(0), bytes(1_000), number));
    let mut drops = Vec::new();
    while let Some(next) = link.poll_timeout().filter(|&next| next < at(600_000)) {
        while link.poll_delivered(next).is_some() {}
        while link.poll_dropped().is_some() {
            drops.push(next.as_micros() / 1_000);
        }
    }
    let expected = [105, 205, 276, 334, 384, 429, 470, 507, 543, 576];
    assert_eq!(drops.len(), expected.len(), "{drops:?}");
    assert!(drops.iter().zip(expected).all(|(&drop, at)| drop.abs_diff(at) <= 2), "{drops:?}");
}

#[test]
fn packets_overtake_only_where_they_may() {
    let run = |reordering| {
        let mut config = constant(80_000_000, 50, 1_000_000);
        config.delay.jitter = Jitter::Uniform(Duration::from_millis(20));
        config.delay.reordering = reordering;
        let arrived = offer(&mut Link::new(config, 3), 1_000, 1_000_000);
        assert!(arrived.windows(2).all(|two| two[0].1 <= two[1].1), "told in order of arrival");
        arrived.windows(2).filter(|two| two[0].0 > two[1].0).count()
    };
    assert_eq!(run(false), 0);
    assert!(run(true) > 100);
}

#[test]
fn duplicates_and_damage_are_told() {
    let mut config = constant(80_000_000, 5, 1_000_000);
    (config.duplication, config.corruption) = (0.25, 0.5);
    let mut link = Link::new(config, 3);
    let arrived = offer(&mut link, 1_000, 2_000_000).len() as u64;
    let LinkCounters { offered, duplicated, delivered, corrupted, .. } = link.counters();
    assert_eq!((offered.packets, delivered.packets), (2_000, arrived));
    assert!((450..550).contains(&duplicated.packets), "{duplicated:?}");
    assert!((1_150..1_350).contains(&corrupted.packets), "{corrupted:?}");
}

#[test]
fn after_an_outage_what_waited_leaves() {
    let mut config = constant(8_000_000, 0, 5_000);
    config.outages = vec![Outage { start: at(2_000), length: Duration::from_millis(100) }];
    let mut link = Link::new(config, 1);
    let arrived = offer(&mut link, 1_000, 200_000);
    assert_eq!(&arrived[..2], [(0, at(1_000)), (1, at(2_000))]);
    assert_eq!(arrived[2], (2, at(103_000)));
    assert_eq!(link.counters().dropped.packets, 96);
}

fn disciplines() -> impl Strategy<Value = Discipline> {
    (0..DISCIPLINES.len()).prop_map(|at| DISCIPLINES[at])
}

/// Any link that is not dead.
fn links() -> impl Strategy<Value = LinkConfig> {
    let queue = (disciplines(), 2_000u64..30_000, any::<bool>());
    let delay = (0u64..80, 0u64..30, -0.9f64..0.9, any::<bool>());
    let faults = (0.0f64..0.3, 0.0f64..0.3, 0.0f64..0.3);
    (20_000u64..5_000_000, queue, delay, faults, 0u64..1_000).prop_map(
        |(
            bps,
            (discipline, size, in_packets),
            (base, jitter, correlation, reordering),
            faults,
            outage,
        )| {
            let (duplication, corruption, loss) = faults;
            let ms = Duration::from_millis;
            LinkConfig {
                rate: Rate::Constant(Bitrate::from_bps(bps)),
                outages: vec![Outage { start: at(outage * 1_000), length: ms(300) }],
                queue: QueueConfig {
                    capacity: match in_packets {
                        true => Capacity::Packets(size as usize / 1_000),
                        false => Capacity::Bytes(bytes(size)),
                    },
                    discipline,
                },
                delay: Delay {
                    base: ms(base),
                    jitter: Jitter::Normal(ms(jitter)),
                    correlation,
                    reordering,
                },
                loss: Loss::GilbertElliott {
                    to_bad: loss,
                    to_good: 0.3,
                    good_loss: 0.0,
                    bad_loss: 0.8,
                },
                duplication,
                corruption,
            }
        },
    )
}

fn sends() -> impl Strategy<Value = Vec<(u64, u64)>> {
    prop::collection::vec((0u64..20_000, 1u64..1_500), 1..200)
}

proptest! {
    #[test]
    fn every_byte_is_delivered_dropped_or_inside(
        config in links(),
        sends in sends(),
        seed in any::<u64>(),
    ) {
        let mut link = Link::new(config.clone(), seed);
        let (mut now, mut got, mut gone) = (0, 0, 0);
        for (number, (gap, size)) in sends.iter().enumerate() {
            now += gap;
            link.handle_packet(at(now), bytes(*size), number as u64);
            got += std::iter::from_fn(|| link.poll_delivered(at(now))).count() as u64;
            let queued = link.queued(at(now)).as_bytes();
            let LinkCounters { offered, duplicated, delivered, dropped, lost, .. } = link.counters();
            let ended = delivered.bytes + dropped.bytes + lost.bytes;
            prop_assert!(ended + queued <= offered.bytes + duplicated.bytes);
            if let Capacity::Bytes(most) = config.queue.capacity {
                prop_assert!(queued <= most.as_bytes());
            }
        }
        // Left alone, by its own timer, it empties.
        let mut last = at(now);
        while let Some(next) = link.poll_timeout() {
            prop_assert!(next >= last, "the timer runs forward");
            last = next;
            got += std::iter::from_fn(|| link.poll_delivered(next)).count() as u64;
        }
        gone += std::iter::from_fn(|| link.poll_dropped()).count() as u64;
        let LinkCounters { offered, duplicated, delivered, dropped, lost, .. } = link.counters();
        prop_assert_eq!(offered.bytes + duplicated.bytes, delivered.bytes + dropped.bytes + lost.bytes);
        prop_assert_eq!(got, delivered.packets);
        prop_assert_eq!(gone, dropped.packets + lost.packets);
        prop_assert_eq!(link.queued(last), bytes(0));
    }

    #[test]
    fn changing_loses_and_makes_no_byte(
        configs in prop::collection::vec(links(), 1..6),
        sends in sends(),
        stops in any::<bool>(),
        seed in any::<u64>(),
    ) {
        let mut link = Link::new(configs[0].clone(), seed);
        let mut now = 0;
        for (number, (gap, size)) in sends.iter().enumerate() {
            now += gap;
            if number % 7 == 3 {
                let mut config = configs[number % configs.len()].clone();
                if stops && number % 2 == 0 {
                    config.rate = Rate::Constant(Bitrate::from_bps(0));
                }
                link.reconfigure(at(now), config);
            }
            link.handle_packet(at(now), bytes(*size), number as u64);
        }
        link.reconfigure(at(now), constant(1_000_000, 20, 10_000));
        let mut got = 0;
        while let Some(next) = link.poll_timeout() {
            got += std::iter::from_fn(|| link.poll_delivered(next)).count() as u64;
        }
        let gone = std::iter::from_fn(|| link.poll_dropped()).count() as u64;
        let LinkCounters { dropped, lost, delivered, .. } = link.counters();
        prop_assert_eq!(link.counters().inside(), Tally::default());
        prop_assert_eq!((got, gone), (delivered.packets, dropped.packets + lost.packets));
    }

    #[test]
    fn a_seed_decides_everything_and_polling_nothing(
        config in links(),
        sends in sends(),
        seed in any::<u64>(),
    ) {
        // Once driven by its timer, once polled only when a packet comes and at the end.
        let run = |eager: bool| {
            let mut link = Link::new(config.clone(), seed);
            let (mut now, mut got) = (0, Vec::new());
            for (number, (gap, size)) in sends.iter().enumerate() {
                now += gap;
                while let Some(next) = link.poll_timeout().filter(|&next| eager && next < at(now)) {
                    got.extend(std::iter::from_fn(|| link.poll_delivered(next)));
                }
                link.handle_packet(at(now), bytes(*size), number as u64);
            }
            got.extend(std::iter::from_fn(|| link.poll_delivered(at(1 << 40))));
            (got, link.counters())
        };
        prop_assert_eq!(run(true), run(false));
    }
}
