use super::Better::{Higher, Lower};
use super::figure::number;
use super::*;

fn figure(better: Better) -> Figure {
    let measure = |_: &Lab| Ok(Measurement::of(0.5, "made up"));
    Figure { name: "part_of_it", unit: "fraction", target: Some(0.5), better, measure }
}

#[test]
fn names_are_unique_and_an_unknown_one_lists_the_known() {
    let mut names: Vec<&str> = FIGURES.iter().map(|figure| figure.name).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), FIGURES.len());

    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    let error = select(&names(&["parity_top2"])).err().expect("unknown").to_string();
    assert!(error.contains("parity_top2") && error.contains("parity_top1"), "{error}");
    let selected = select(&names(&["codec_over_entropy", "parity_top1"])).expect("known");
    let selected: Vec<&str> = selected.iter().map(|figure| figure.name).collect();
    assert_eq!(selected, ["parity_top1", "codec_over_entropy"]);
}

#[test]
fn the_target_itself_is_met_and_a_broken_condition_never_is() {
    let at = |value| Measurement::of(value, "");
    assert_eq!(figure(Lower).is_met(&at(0.5)), Some(true));
    assert_eq!(figure(Lower).is_met(&at(0.51)), Some(false));
    assert_eq!(figure(Higher).is_met(&at(0.51)), Some(true));
    assert_eq!(figure(Higher).is_met(&at(0.51).against(0.6)), Some(false));
    assert_eq!(figure(Lower).is_met(&Measurement { broken: true, ..at(0.1) }), Some(false));
    assert_eq!(figure(Lower).is_met(&Measurement::skipped("no pictures")), None);
    let without = Figure { target: None, ..figure(Lower) };
    assert_eq!(without.is_met(&at(0.5)), None);
}

#[test]
fn what_was_not_measured_is_null() {
    let line = figure(Lower).json(&Measurement::skipped("no pictures")).expect("JSON");
    assert_eq!(
        line,
        r#"{"name":"part_of_it","value":null,"unit":"fraction","target":0.5,"better":"lower","detail":"no pictures"}"#
    );
}

#[test]
fn numbers_keep_their_digits() {
    let printed = [0.0, 21_345_678.9, 1.0123, 0.91, 1.2e-6].map(number);
    assert_eq!(printed, ["0", "21345679", "1.0123", "0.9100", "1.20e-6"]);
}
