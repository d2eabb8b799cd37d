//! Every figure that the project claims, measured when it is asked for.
//!
//! A figure is one entry of [`FIGURES`] and one function that takes a [`Lab`] and gives a
//! [`Measurement`]. Where several figures come from one run, the run is kept in the lab, so that
//! each is still a function of its own. Nothing is looked up: ratios are taken side by side in
//! the same run, and counts come from the real client and the real server.

mod accuracy;
mod box_parity;
mod charged;
mod codec;
pub mod comparison;
mod compress;
mod controllers;
mod decisions;
mod detection;
mod drops;
mod experiment;
mod export;
mod figure;
mod filter;
mod footprint;
mod found;
mod head;
mod lab;
mod ort;
mod overhead;
mod own_work;
mod parity;
pub mod rate_accuracy;
pub mod recorder;
mod sent;
mod simulation;
mod slimmable;
mod table;
#[cfg(test)]
mod tests;
mod traces;

use std::io::Write;

use anyhow::{bail, ensure};

pub use figure::{Better, Figure, Measurement};
pub use lab::{Lab, TruthFile};
pub use table::FIGURES;

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// An aligned table that says whether each target is met.
    Text,
    /// One JSON object per line.
    Json,
}

/// The figures of these names, or all without any, in the order of [`FIGURES`].
pub fn select(names: &[String]) -> anyhow::Result<Vec<&'static Figure>> {
    for name in names {
        if !FIGURES.iter().any(|figure| figure.name == name) {
            let known: Vec<&str> = FIGURES.iter().map(|figure| figure.name).collect();
            bail!("unknown figure {name:?}; expected one of {}", known.join(", "));
        }
    }
    let asked = |figure: &&Figure| names.is_empty() || names.iter().any(|it| it == figure.name);
    Ok(FIGURES.iter().filter(asked).collect())
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
        writeln!(out, "{}", figure::row(["figure", "value", "unit", "target", "met", "detail"]))?;
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
