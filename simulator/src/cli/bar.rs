//! The progress bar of commands that take long.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar of `length` steps, with the time left and a message.
pub fn progress(length: usize) -> anyhow::Result<ProgressBar> {
    styled(length as u64, "{bar:30} {pos}/{len} {eta:>5}  {wide_msg}")
}

/// A bar of `length` steps that looks like `template`.
pub fn styled(length: u64, template: &str) -> anyhow::Result<ProgressBar> {
    let bar = ProgressBar::new(length);
    bar.set_style(ProgressStyle::with_template(template)?);
    Ok(bar)
}
