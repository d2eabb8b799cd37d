use super::axis::{linear_ticks, log_ticks};
use super::*;
use proptest::prelude::*;

fn labels(ticks: ((f64, f64), Vec<(f64, String)>)) -> Vec<String> {
    ticks.1.into_iter().map(|tick| tick.1).collect()
}

#[test]
fn ticks_are_round_numbers() {
    assert_eq!(labels(linear_ticks(Some((0.0, 315.0)), 4.0)), ["0", "100", "200", "300", "400"]);
    assert_eq!(
        labels(linear_ticks(Some((0.81, 0.87)), 3.0)),
        ["0.80", "0.82", "0.84", "0.86", "0.88"]
    );
    assert_eq!(labels(linear_ticks(Some((0.0, 23_000.0)), 3.0)), ["0", "10k", "20k", "30k"]);
    assert_eq!(labels(linear_ticks(None, 4.0)).first().map(String::as_str), Some("0.0"));
    assert_eq!(labels(log_ticks(Some((130.0, 900.0)))), ["100", "200", "500", "1000"]);
    assert_eq!(
        labels(log_ticks(Some((0.03, 2_000.0)))),
        ["0.01", "0.1", "1", "10", "100", "1000", "10k"]
    );
}

proptest! {
    #[test]
    fn every_value_is_within_its_axis(least in -1e6f64..1e6, span in 0f64..1e6, count in 1f64..20.0) {
        let ((from, to), ticks) = linear_ticks(Some((least, least + span)), count);
        let slack = 1e-6 * (to - from);
        prop_assert!(from <= least + slack && least + span <= to + slack && from < to);
        prop_assert!((2..=26).contains(&ticks.len()), "{ticks:?}");
    }
}

#[test]
fn what_is_no_number_breaks_a_line() {
    let points = vec![(0.0, 1.0), (1.0, 1.0), (2.0, f64::NAN), (3.0, 1.0), (4.0, 1.0)];
    let mut plot = Plot::new(Axis::linear("s"), Axis::linear("v"));
    plot.series.push(Series::new("a", Colour::BLUE, Mark::Line, points));
    let svg = plot.svg();
    let line =
        svg.split("<path d=\"").find(|line| line.contains("stroke:var(--blue)")).expect("a line");
    let drawn = line.split('"').next().expect("a part");
    assert_eq!(drawn.matches('M').count(), 2, "{drawn}");
    assert!(!svg.contains("NaN"));
}

#[test]
fn bars_of_a_row_follow_one_another() {
    let mut plot = Plot::new(Axis::linear("ms"), Axis::names("", vec!["a".into(), "b".into()]));
    let series = |points| Series::new("", Colour::BLUE, Mark::Bar, points);
    plot.series = vec![series(vec![(3.0, 0.0), (5.0, 1.0)]), series(vec![(4.0, 0.0)])];
    let spans: Vec<_> = plot.bars().map(|bar| (bar.row, bar.start, bar.end)).collect();
    assert_eq!(spans, [(0.0, 0.0, 3.0), (1.0, 0.0, 5.0), (0.0, 3.0, 7.0)]);
}

#[test]
fn no_text_becomes_markup() {
    let mut plot = Plot::new(Axis::linear("<x>"), Axis::names("", vec!["<b>".into()]));
    let titles = vec!["<i>".to_owned()];
    let series = Series::new("<s>", Colour::RED, Mark::Dot, vec![(1.0, 0.0)]);
    plot.series.push(Series { titles, ..series });
    plot.rules.push((0.0, "<r>".into()));
    let file = plot.file();
    for text in ["<x>", "<b>", "<i>", "<s>", "<r>"] {
        assert!(!file.contains(text), "{text}");
    }
    assert!(file.contains("&lt;i&gt;"));
}
