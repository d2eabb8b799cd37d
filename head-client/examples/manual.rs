//! Writes the program's manual pages and shell completions to a folder, for packages:
//! `cargo run --release -p isthmus-head-client --example manual -- DIR`.

use std::path::PathBuf;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;
use isthmus_head_client::cli::Cli;

fn main() -> anyhow::Result<()> {
    let dir = PathBuf::from(std::env::args_os().nth(1).context("which folder?")?);
    std::fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
    clap_mangen::generate_to(Cli::command(), &dir)?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        clap_complete::generate_to(shell, &mut Cli::command(), "head-client", &dir)?;
    }
    Ok(())
}
