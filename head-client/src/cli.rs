//! The command line of the `head-client` program, from which its manual pages are made as well.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use isthmus_models::{EngineKind, OrtProvider};
use isthmus_telemetry::log::LogFormat;

use crate::config::Options;

const EXIT_CODES: &str = "\
Exit codes:
  0  done (single bad pictures are reported, not an error)
  1  unexpected failure
  2  usage or configuration
  3  bundle missing, altered or unusable
  4  server cannot be reached, or does not speak the protocol; without --require-server it is looked
     for all the time, and this and the next two tell at the end that there was never a connection
  5  server is not the expected one
  6  server does not serve the bundle
  7  input cannot be read: no camera, no permission, no pictures, or what reads it failed
  8  --engine cannot be used: not built in, or its library is missing or of another architecture
  9  results cannot be written: disk full, no permission
 10  metrics cannot be offered: the port is taken, or not allowed
 11  the head does not come back from a frame";

/// Runs a network's head on this device, sends its coded features to a tail-server and prints the
/// answers.
#[derive(Parser)]
#[command(name = "head-client", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// What to log, to standard error: a level, or modules with a level each
    /// (warn,isthmus_head_client=debug).
    #[arg(long, value_name = "FILTER", default_value = "warn", env = "ISTHMUS_LOG", global = true)]
    pub log: String,
    /// How to log.
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "text",
        env = "ISTHMUS_LOG_FORMAT",
        global = true
    )]
    pub log_format: LogFormat,
}

/// What the program does.
#[derive(Subcommand)]
#[expect(clippy::large_enum_variant, reason = "there is one in the program's life")]
pub enum Command {
    /// Answer the frames of an input.
    #[command(after_help = EXIT_CODES)]
    Run(RunArgs),
    /// Measure how long a bundle's heads take on this machine.
    #[command(after_help = EXIT_CODES)]
    Profile(ProfileArgs),
    /// List the cameras of this machine, with their formats and sizes. YUYV and MJPEG can be used.
    #[command(after_help = EXIT_CODES)]
    Cameras,
}

/// The arguments of `run`.
#[derive(Args)]
pub struct RunArgs {
    /// TOML file with any of these options, named with underscores.
    #[arg(long, value_name = "FILE", env = "ISTHMUS_CONFIG")]
    pub config: Option<PathBuf>,
    /// Show the run and the log on the terminal as it goes; of the results, only the summary is
    /// printed
    #[cfg(feature = "tui")]
    #[arg(long, env = "ISTHMUS_TUI")]
    pub tui: bool,
    /// The options.
    #[command(flatten)]
    pub options: Options,
}

impl RunArgs {
    /// Whether the run is to be shown on the terminal.
    pub fn is_shown(&self) -> bool {
        #[cfg(feature = "tui")]
        let shown = self.tui;
        #[cfg(not(feature = "tui"))]
        let shown = false;
        shown
    }
}

/// The arguments of `profile`.
#[derive(Args)]
pub struct ProfileArgs {
    /// Folder of the bundle.
    #[arg(long, value_name = "DIR", env = "ISTHMUS_BUNDLE")]
    pub bundle: PathBuf,
    /// Engine that runs the heads: tract, ort or auto
    #[arg(long, value_name = "NAME", env = "ISTHMUS_ENGINE", default_value = "tract")]
    pub engine: EngineKind,
    /// Execution providers of ONNX Runtime, in order of preference: cpu, xnnpack, cuda, tensorrt
    /// [default: cpu]
    #[arg(long, value_name = "LIST", value_delimiter = ',', env = "ISTHMUS_ORT_PROVIDERS")]
    pub ort_providers: Vec<OrtProvider>,
    /// Repetitions per measurement
    #[arg(long, value_name = "N", env = "ISTHMUS_RUNS", default_value_t = 50,
          value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// File to write the profile to, instead of standard output
    #[arg(long, value_name = "FILE", env = "ISTHMUS_OUT")]
    pub out: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// Options of `command` that no variable of their name sets.
    fn without_variable(command: &clap::Command) -> Vec<String> {
        let own = command.get_arguments().filter_map(|option| {
            let long = option.get_long().filter(|long| !["help", "version"].contains(long))?;
            let variable = format!("ISTHMUS_{}", long.to_uppercase().replace('-', "_"));
            let env = option.get_env().and_then(|env| env.to_str());
            (env != Some(&variable)).then(|| long.to_owned())
        });
        own.chain(command.get_subcommands().flat_map(without_variable)).collect()
    }

    #[test]
    fn every_option_has_its_variable_and_its_line_in_the_shipped_file() {
        assert_eq!(without_variable(&Cli::command()), [""; 0]);
        let shipped = include_str!("../../configs/client.toml");
        let command = Options::augment_args(clap::Command::new("options"));
        for option in command.get_arguments() {
            let key = option.get_id().as_str();
            let has_key =
                |line: &str| line.trim_start_matches("# ").starts_with(&format!("{key} = "));
            assert!(shipped.lines().any(has_key), "{key}");
        }
    }
}
