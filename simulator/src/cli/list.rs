//! `simulator list`: what is built in.

use std::io::{self, Write};

use clap::ValueEnum;
use isthmus_simulator::world::{DeviceSpec, device};
use isthmus_simulator::{PathSpec, profile, scenario};
use serde_json::json;

use super::Format;

/// The options of `list`.
#[derive(clap::Args)]
pub struct Args {
    /// What to list.
    #[arg(value_enum, default_value_t = Kind::Links)]
    kind: Kind,
    /// How to print the list.
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Kind {
    Links,
    Devices,
    Scenarios,
}

/// Prints the list.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match args.kind {
        Kind::Links => links(args.format, &mut out),
        Kind::Devices => devices(args.format, &mut out),
        Kind::Scenarios => scenarios(args.format, &mut out),
    }
}

fn links(format: Format, out: &mut impl Write) -> anyhow::Result<()> {
    for (name, _) in profile::BUILT_IN {
        let (PathSpec { description, source, .. }, config) = built_in_link(name)?;
        let (up, down) = (config.uplink.to_string(), config.downlink.to_string());
        match format {
            Format::Text => {
                writeln!(out, "{name}\n    {description}\n    up {up}; down {down}\n    {source}")?;
            }
            Format::Json => {
                let line = json!({
                    "link": name, "description": description, "source": source,
                    "uplink": up, "downlink": down,
                });
                writeln!(out, "{line}")?;
            }
        }
    }
    Ok(())
}

fn built_in_link(name: &str) -> anyhow::Result<(PathSpec, isthmus_simulator::PathConfig)> {
    let (spec, folder) = PathSpec::find(name)?;
    let config = spec.to_config(&folder, 1)?;
    Ok((spec, config))
}

fn devices(format: Format, out: &mut impl Write) -> anyhow::Result<()> {
    for (name, _) in device::BUILT_IN {
        let DeviceSpec { description, source, .. } = DeviceSpec::find(name)?;
        match format {
            Format::Text => writeln!(out, "{name}\n    {description}\n    {source}")?,
            Format::Json => writeln!(
                out,
                "{}",
                json!({ "device": name, "description": description, "source": source })
            )?,
        }
    }
    Ok(())
}

fn scenarios(format: Format, out: &mut impl Write) -> anyhow::Result<()> {
    for (name, text) in scenario::BUILT_IN {
        let scenario = scenario::Scenario::parse(text, name.as_ref())?;
        match format {
            Format::Text => writeln!(out, "{name}\n    {}", scenario.description)?,
            Format::Json => writeln!(
                out,
                "{}",
                json!({ "scenario": name, "description": scenario.description })
            )?,
        }
    }
    Ok(())
}
