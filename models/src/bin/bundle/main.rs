//! The `bundle` program: inspects and checks bundles, and makes them of networks from elsewhere.

#![forbid(unsafe_code)]

mod cut;
mod cuts;
mod inspect;
mod listed;
mod plot;
mod record;

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use isthmus_models::{Bundle, EngineKind, MANIFEST, Verified, verify};

/// Looks into bundles, checks them, and makes them of ONNX networks from elsewhere.
#[derive(Parser)]
#[command(name = "bundle", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show what a bundle holds.
    Inspect(InspectArgs),
    /// Check a bundle: digests, manifest, tables, every graph, every golden. Exit code 1 if
    /// something is wrong.
    Verify(VerifyArgs),
    /// Write down what this machine computes of pictures, for `bundle replay` on another.
    Record(record::RecordArgs),
    /// Compute again what another machine recorded, and compare. Exit code 1 if the two may not
    /// work together.
    Replay(record::ReplayArgs),
    /// List the tensors at which an ONNX network can be cut.
    Cuts(cuts::CutsArgs),
    /// Cut an ONNX network, calibrate it on pictures, and write a bundle.
    Cut(Box<cut::CutArgs>),
    /// Pack a bundle into one file, the same bytes for the same bundle; `tar -xf` unpacks it.
    Export(ExportArgs),
}

/// How results are printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people.
    #[default]
    Text,
    /// For programs.
    Json,
}

#[derive(Args)]
struct InspectArgs {
    /// Folder of the bundle.
    #[arg(value_name = "DIR")]
    bundle: PathBuf,
    /// How to print it.
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Args)]
struct VerifyArgs {
    /// Folder of the bundle.
    #[arg(value_name = "DIR")]
    bundle: PathBuf,
    /// The engine to check: tract, ort or auto; ort needs the cargo feature `ort`.
    #[arg(long, value_name = "ENGINE", default_value = "tract")]
    engine: EngineKind,
}

#[derive(Args)]
struct ExportArgs {
    /// Folder of the bundle.
    #[arg(value_name = "DIR")]
    bundle: PathBuf,
    /// The file to write.
    #[arg(long, value_name = "FILE.tar.zst")]
    out: PathBuf,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Inspect(args) => inspect(&args),
        Command::Verify(args) => verify_bundle(&args),
        Command::Record(args) => record::record(&args),
        Command::Replay(args) => record::replay(&args),
        Command::Cuts(args) => cuts::list(&args),
        Command::Cut(args) => cut::cut(&args),
        Command::Export(args) => export(&args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bundle: {}", causes(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error and its causes in one line, without those that its own message includes.
fn causes(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |line, cause| match line.as_str() {
        "" => cause,
        _ if line.ends_with(&cause) => line,
        _ => format!("{line}: {cause}"),
    })
}

fn inspect(args: &InspectArgs) -> anyhow::Result<()> {
    let bundle = Bundle::open(&args.bundle)?;
    print(&match args.format {
        Format::Text => inspect::text(&bundle),
        Format::Json => inspect::json(&bundle)?,
    })
}

fn verify_bundle(args: &VerifyArgs) -> anyhow::Result<()> {
    let bundle = Arc::new(Bundle::open(&args.bundle)?);
    let engine = args.engine.open(&[])?;
    let verified = verify(&bundle, &*engine)?;
    let (name, digest, files) = (bundle.name(), bundle.digest(), bundle.manifest().files.len());
    let goldens = goldens(&verified, engine.name());
    print(&format!("{name} {digest}: {files} files intact, {goldens}\n"))
}

/// What `engine` reproduced, and of which engines' values.
fn goldens(verified: &Verified, engine: &str) -> String {
    let Verified { goldens, references, symbols, differing, logit_difference } = verified;
    if *goldens == 0 {
        return "it has no goldens to reproduce".to_owned();
    }
    let plural = if *goldens == 1 { "" } else { "s" };
    let references = match references.iter().cloned().collect::<Vec<_>>().join(", ") {
        none if none.is_empty() => "its exporter".to_owned(),
        engines => engines,
    };
    format!(
        "{goldens} golden{plural} of {references} reproduced by {engine}: {differing} of {symbols} \
         symbols rounded otherwise, outputs within {logit_difference:.1e}"
    )
}

fn export(args: &ExportArgs) -> anyhow::Result<()> {
    let bundle = Bundle::open(&args.bundle)?;
    let out = || args.out.display().to_string();
    let file = File::create_new(&args.out).with_context(out)?;
    pack(&bundle, file).with_context(out)
}

/// Writes manifest, card and listed files, in order of their names and without owner or time: the
/// archive says nothing that the bundle does not.
fn pack(bundle: &Bundle, file: File) -> anyhow::Result<()> {
    const MODEL_CARD: &str = "MODEL_CARD.md";
    const LEVEL: i32 = 9;
    let mut archive = tar::Builder::new(zstd::Encoder::new(file, LEVEL)?);
    let mut append = |name: &str, bytes: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        archive.append_data(&mut header, Path::new(bundle.name()).join(name), bytes)
    };
    for name in [MANIFEST, MODEL_CARD] {
        match std::fs::read(bundle.dir().join(name)) {
            Ok(bytes) => append(name, &bytes)?,
            Err(error) if name == MODEL_CARD && error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context(name),
        }
    }
    for name in bundle.manifest().files.keys() {
        append(name, &bundle.read(name)?)?;
    }
    archive.into_inner()?.finish()?.sync_all()?;
    Ok(())
}

/// Prints results, which whoever reads may have enough of before their end.
fn print(text: &str) -> anyhow::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("standard output")
        }
        _ => Ok(()),
    }
}

/// Reads a file of at most `limit` bytes.
fn read(path: &Path, limit: u64) -> anyhow::Result<Vec<u8>> {
    use std::io::Read;
    let named = || path.display().to_string();
    let mut bytes = Vec::new();
    File::open(path)
        .and_then(|file| file.take(limit + 1).read_to_end(&mut bytes))
        .with_context(named)?;
    ensure!(bytes.len() as u64 <= limit, "{}: longer than {limit} bytes", named());
    Ok(bytes)
}

/// Rows in columns, all but the first column to the right.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (at, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            line += &match at {
                0 => format!("{cell:<width$}"),
                _ => format!("  {cell:>width$}"),
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn numbers_stand_under_each_other() {
        let rows = [["name", "n"], ["x", "10"]].map(|row| row.map(str::to_owned).to_vec());
        assert_eq!(table(&rows), "name   n\nx     10\n");
    }
}
