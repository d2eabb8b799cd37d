//! Every figure that the project claims, measured when it is asked for.
//!
//! A figure is one entry of [`FIGURES`] and one function that takes a [`Lab`] and gives a
//! [`Measurement`]. Where several figures come from one run, the run is kept in the lab, so that
//! each is still a function of its own. Nothing is looked up: ratios are taken side by side in
//! the same run, and counts come from the real client and the real server.

mod accuracy;
mod codec;
mod compress;
mod controllers;
mod decisions;
mod drops;
mod export;
mod footprint;
mod head;
mod lab;
mod ort;
mod overhead;
mod own_work;
mod parity;
mod simulation;
mod slimmable;

pub mod comparison;
pub mod rate_accuracy;

use std::io::Write;
use std::path::PathBuf;

use anyhow::{bail, ensure};
use serde::Serialize;

pub use lab::Lab;

/// One claim.
pub struct Figure {
    /// Its name, for the command line.
    pub name: &'static str,
    /// Its unit.
    pub unit: &'static str,
    /// What is claimed, where it does not hang on another measurement; nothing of some.
    pub target: Option<f64>,
    /// Which side of the target is good.
    pub better: Better,
    measure: fn(&Lab) -> anyhow::Result<Measurement>,
}

/// Which side of its target a value has to be on; the target itself is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// At most the target.
    Lower,
    /// At least the target.
    Higher,
}

/// What was measured of a figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// The value; `None` where it cannot be measured with what there is.
    pub value: Option<f64>,
    /// The target, where it hangs on what was measured.
    pub target: Option<f64>,
    /// How the value came about, or why there is none.
    pub detail: String,
    /// Whether a condition beside the target is broken; `detail` says which.
    pub broken: bool,
}

impl Measurement {
    fn of(value: f64, detail: impl Into<String>) -> Self {
        Measurement { value: Some(value), target: None, detail: detail.into(), broken: false }
    }

    fn skipped(reason: impl Into<String>) -> Self {
        Measurement { value: None, target: None, detail: reason.into(), broken: false }
    }

    fn against(self, target: f64) -> Self {
        Measurement { target: Some(target), ..self }
    }
}

use Better::{Higher, Lower};

/// All figures, in the order in which they are measured.
#[rustfmt::skip]
pub const FIGURES: &[Figure] = &[
    Figure { name: "parity_top1", unit: "share", target: Some(1.0), better: Higher, measure: parity::top1 },
    Figure { name: "parity_logit_max", unit: "logit", target: Some(1e-4), better: Lower, measure: parity::logit_max },
    Figure { name: "export_symbol_mismatch", unit: "share", target: Some(1e-3), better: Lower, measure: export::symbol_mismatch },
    Figure { name: "export_top1", unit: "share", target: Some(0.999), better: Higher, measure: export::top1 },
    Figure { name: "overhead_quic_p50", unit: "ratio", target: Some(overhead::P50), better: Lower, measure: overhead::quic_p50 },
    Figure { name: "overhead_quic_p99", unit: "ratio", target: Some(overhead::P99), better: Lower, measure: overhead::quic_p99 },
    Figure { name: "overhead_grpc_p50", unit: "ratio", target: Some(overhead::P50), better: Lower, measure: overhead::grpc_p50 },
    Figure { name: "codec_symbols_per_second", unit: "symbols/s", target: Some(20e6), better: Higher, measure: codec::symbols_per_second },
    Figure { name: "codec_over_entropy", unit: "ratio", target: Some(1.02), better: Lower, measure: codec::over_entropy },
    Figure { name: "context_gain", unit: "share", target: Some(0.10), better: Higher, measure: codec::context_gain },
    Figure { name: "coded_over_conditional_entropy", unit: "ratio", target: Some(1.01), better: Lower, measure: codec::over_conditional_entropy },
    Figure { name: "head_macs", unit: "MACs", target: Some(45e6), better: Lower, measure: head::macs },
    Figure { name: "head_parameters", unit: "count", target: Some(60e3), better: Lower, measure: head::parameters },
    Figure { name: "head_time_over_onnxruntime", unit: "ratio", target: Some(1.6), better: Lower, measure: head::time_over_onnxruntime },
    Figure { name: "engine_over_onnxruntime", unit: "ratio", target: Some(1.05), better: Lower, measure: ort::engine_over_onnxruntime },
    Figure { name: "client_own_work_ms", unit: "ms", target: Some(1.0), better: Lower, measure: own_work::client_own_work_ms },
    Figure { name: "jpeg_ms_per_megapixel", unit: "ms", target: None, better: Lower, measure: compress::jpeg_ms_per_megapixel },
    Figure { name: "webp_ms_per_megapixel", unit: "ms", target: None, better: Lower, measure: compress::webp_ms_per_megapixel },
    Figure { name: "avif_ms_per_megapixel", unit: "ms", target: None, better: Lower, measure: compress::avif_ms_per_megapixel },
    Figure { name: "switch_p99_ms", unit: "ms", target: Some(1.0), better: Lower, measure: head::switch_p99_ms },
    Figure { name: "points_resident_bytes", unit: "bytes", target: Some(10e6), better: Lower, measure: head::points_resident_bytes },
    Figure { name: "exit_top1", unit: "share", target: None, better: Higher, measure: head::exit_top1 },
    Figure { name: "slimmable_penalty", unit: "points", target: Some(1.0), better: Lower, measure: slimmable::penalty },
    Figure { name: "full_top1", unit: "share", target: Some(0.95), better: Higher, measure: accuracy::full_top1 },
    Figure { name: "best_point_top1", unit: "share", target: Some(0.90), better: Higher, measure: accuracy::best_point_top1 },
    Figure { name: "best_point_bytes", unit: "bytes", target: Some(lab::BEST_POINT_BYTES), better: Lower, measure: accuracy::best_point_bytes },
    Figure { name: "client_binary_bytes", unit: "bytes", target: Some(30e6), better: Lower, measure: footprint::binary_bytes },
    Figure { name: "client_resident_bytes", unit: "bytes", target: Some(120e6), better: Lower, measure: footprint::resident_bytes },
    Figure { name: "bytes_at_drop_0.6", unit: "bytes", target: Some(900.0), better: Lower, measure: |lab| drops::bytes_at(lab, 0.6) },
    Figure { name: "bytes_at_drop_1", unit: "bytes", target: Some(600.0), better: Lower, measure: |lab| drops::bytes_at(lab, 1.0) },
    Figure { name: "bytes_at_drop_3", unit: "bytes", target: Some(250.0), better: Lower, measure: |lab| drops::bytes_at(lab, 3.0) },
    Figure { name: "codec_ratio_at_drop_0.6", unit: "ratio", target: Some(1.0 / 6.0), better: Lower, measure: |lab| drops::ratio_at(lab, 0.6) },
    Figure { name: "codec_ratio_at_drop_1", unit: "ratio", target: Some(1.0 / 6.0), better: Lower, measure: |lab| drops::ratio_at(lab, 1.0) },
    Figure { name: "codec_ratio_at_drop_3", unit: "ratio", target: Some(1.0 / 6.0), better: Lower, measure: |lab| drops::ratio_at(lab, 3.0) },
    Figure { name: "bd_rate_webp", unit: "%", target: None, better: Lower, measure: drops::bd_rate_webp },
    Figure { name: "oracle_ratio", unit: "ratio", target: Some(0.99), better: Higher, measure: controllers::oracle_ratio },
    Figure { name: "over_best_fixed", unit: "share", target: Some(-0.005), better: Higher, measure: controllers::over_best_fixed },
    Figure { name: "over_greedy", unit: "share", target: Some(0.0), better: Higher, measure: controllers::over_greedy },
    Figure { name: "gap_closed", unit: "ratio", target: Some(0.7), better: Higher, measure: controllers::gap_closed },
    Figure { name: "miss_rate", unit: "share", target: Some(0.02), better: Lower, measure: controllers::miss_rate },
    Figure { name: "bluetooth_miss_rate", unit: "share", target: Some(0.01), better: Lower, measure: controllers::bluetooth_miss_rate },
    Figure { name: "bluetooth_oracle_ratio", unit: "ratio", target: Some(0.95), better: Higher, measure: controllers::bluetooth_oracle_ratio },
    Figure { name: "recovery_frames", unit: "frames", target: Some(2.0), better: Lower, measure: decisions::recovery_frames },
    Figure { name: "virtual_speed_fixed", unit: "ratio", target: Some(20e3), better: Higher, measure: decisions::virtual_speed_fixed },
    Figure { name: "virtual_speed_mpc", unit: "ratio", target: Some(2e3), better: Higher, measure: decisions::virtual_speed_mpc },
    Figure { name: "virtual_speed_quic", unit: "ratio", target: Some(50.0), better: Higher, measure: simulation::virtual_speed_quic },
    Figure { name: "real_time_fidelity_p50", unit: "share", target: Some(0.03), better: Lower, measure: simulation::real_time_fidelity_p50 },
    Figure { name: "real_time_fidelity_p95", unit: "share", target: Some(0.05), better: Lower, measure: simulation::real_time_fidelity_p95 },
    Figure { name: "fleet_seconds", unit: "s", target: Some(120.0), better: Lower, measure: simulation::fleet_seconds },
    Figure { name: "decide_us", unit: "µs", target: Some(50.0), better: Lower, measure: decisions::decide_us },
];

/// What to measure, and how to tell it.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// Names of figures [default: all]
    #[arg(value_name = "NAME")]
    pub names: Vec<String>,
    #[command(flatten)]
    subject: Subject,
    /// Folder of recorded traces with an index.csv, which most of the controllers' figures need.
    #[arg(long, value_name = "DIR")]
    pub traces: Option<PathBuf>,
    /// Run the controllers in every cell on all traces instead of on one of each group.
    #[arg(long, requires = "traces")]
    pub full: bool,
    /// Folder of a bundle whose networks were trained for one width, for what the others pay; may be
    /// given again.
    #[arg(long, value_name = "DIR")]
    pub dedicated: Vec<PathBuf>,
    /// How to write the results.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    pub format: Format,
}

/// What is measured on.
#[derive(Clone, Debug, clap::Args)]
pub struct Subject {
    /// Name of a bundle in models/bundles, or a bundle's folder.
    #[arg(long, value_name = "NAME|DIR", default_value = "photos")]
    pub bundle: PathBuf,
    /// Folder of pictures by class instead of the built-in camera's frames; accuracy needs it.
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// Measure accuracy on so many of the pictures [default: all]
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,
}

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// An aligned table that tells whether each target is met.
    Text,
    /// One JSON object per line.
    Json,
}

impl Options {
    /// What to measure on.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// The figures asked for, in the order of [`FIGURES`].
    pub fn select(&self) -> anyhow::Result<Vec<&'static Figure>> {
        for name in &self.names {
            if !FIGURES.iter().any(|figure| figure.name == name) {
                let known: Vec<&str> = FIGURES.iter().map(|figure| figure.name).collect();
                bail!("there is no figure {name:?}; there are {}", known.join(", "));
            }
        }
        let asked = |figure: &&Figure| {
            self.names.is_empty() || self.names.iter().any(|name| name == figure.name)
        };
        Ok(FIGURES.iter().filter(asked).collect())
    }
}

/// Measures `figures` one after the other and writes each to `out` as soon as it is known. A figure
/// that fails does not keep the others from being measured, but makes the whole fail in the end.
pub fn print(
    figures: &[&Figure],
    lab: &Lab,
    format: Format,
    out: &mut impl Write,
) -> anyhow::Result<()> {
    if format == Format::Text {
        writeln!(out, "{}", row(["figure", "value", "unit", "target", "met", "detail"]))?;
    }
    let mut failed = 0;
    for figure in figures {
        let measurement = (figure.measure)(lab).unwrap_or_else(|error| {
            failed += 1;
            Measurement::skipped(format!("failed: {error:#}"))
        });
        if measurement.value.is_none() {
            eprintln!("simulator: {}: {}", figure.name, measurement.detail);
        }
        match format {
            Format::Text => writeln!(out, "{}", figure.text(&measurement))?,
            Format::Json => writeln!(out, "{}", figure.json(&measurement)?)?,
        }
        out.flush()?;
    }
    ensure!(failed == 0, "{failed} of {} figures could not be measured", figures.len());
    Ok(())
}

impl Figure {
    fn target_of(&self, measurement: &Measurement) -> Option<f64> {
        measurement.target.or(self.target)
    }

    fn is_met(&self, measurement: &Measurement) -> Option<bool> {
        let target = self.target_of(measurement)?;
        let value = measurement.value?;
        let reached = match self.better {
            Lower => value <= target,
            Higher => value >= target,
        };
        Some(reached && !measurement.broken)
    }

    fn text(&self, measurement: &Measurement) -> String {
        let met = match self.is_met(measurement) {
            None => "-",
            Some(true) => "yes",
            Some(false) => "NO",
        };
        let sign = match self.better {
            Lower => "≤",
            Higher => "≥",
        };
        let value = measurement.value.map_or("-".into(), number);
        let target = self.target_of(measurement);
        let target = target.map_or("-".into(), |target| format!("{sign} {}", number(target)));
        row([self.name, &value, self.unit, &target, met, &measurement.detail])
    }

    fn json(&self, measurement: &Measurement) -> serde_json::Result<String> {
        #[derive(Serialize)]
        struct Line<'a> {
            name: &'a str,
            value: Option<f64>,
            unit: &'a str,
            target: Option<f64>,
            better: Better,
            detail: &'a str,
        }
        serde_json::to_string(&Line {
            name: self.name,
            value: measurement.value,
            unit: self.unit,
            target: self.target_of(measurement),
            better: self.better,
            detail: &measurement.detail,
        })
    }
}

fn row([name, value, unit, target, met, detail]: [&str; 6]) -> String {
    format!("{name:<30} {value:>11} {unit:<9} {target:>12}  {met:<4} {detail}")
}

/// About four digits, whatever the size.
fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        large if large >= 1e3 => format!("{value:.0}"),
        small if small < 1e-2 => format!("{value:.2e}"),
        _ => format!("{value:.4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(better: Better) -> Figure {
        let measure = |_: &Lab| Ok(Measurement::of(0.5, "made up"));
        Figure { name: "share_of_it", unit: "share", target: Some(0.5), better, measure }
    }

    #[test]
    fn names_are_unique_and_unknown_ones_are_told_the_known() {
        let mut names: Vec<&str> = FIGURES.iter().map(|figure| figure.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FIGURES.len());

        let subject = Subject { bundle: "b".into(), images: None, limit: None };
        let mut options = Options {
            names: vec!["parity_top2".into()],
            subject,
            traces: None,
            full: false,
            dedicated: Vec::new(),
            format: Format::Json,
        };
        let error = options.select().err().expect("unknown").to_string();
        assert!(error.contains("parity_top2") && error.contains("parity_top1"), "{error}");
        options.names = vec!["codec_over_entropy".into(), "parity_top1".into()];
        let selected: Vec<&str> =
            options.select().expect("known").iter().map(|figure| figure.name).collect();
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
            r#"{"name":"share_of_it","value":null,"unit":"share","target":0.5,"better":"lower","detail":"no pictures"}"#
        );
    }

    #[test]
    fn numbers_keep_their_digits() {
        let told = [0.0, 21_345_678.9, 1.0123, 0.91, 1.2e-6].map(number);
        assert_eq!(told, ["0", "21345679", "1.0123", "0.9100", "1.20e-6"]);
    }
}
