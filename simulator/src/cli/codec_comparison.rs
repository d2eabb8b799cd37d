//! `simulator codec-comparison`: the range coder beside other coders.

use isthmus_simulator::figures::comparison;

use super::subject::Subject;

/// The options of `codec-comparison`.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    subject: Subject,
}

/// Prints the comparison as a Markdown table.
pub fn run(args: &Args) -> anyhow::Result<()> {
    print!("{}", comparison::table(&args.subject.lab()?)?);
    Ok(())
}
