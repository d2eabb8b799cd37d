//! `bundle record` and `bundle replay`: whether two machines compute alike.

use std::env::consts::ARCH;
use std::fs::File;
use std::io::{BufReader, BufWriter};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, ensure};
use clap::Args;
use isthmus_models::{
    Bundle, MAX_PICTURE_BYTES, RecordError, Recorder, Replayed, Tract, find_photos, replay as again,
};

use crate::cut::spread;
use crate::{print, read};

#[derive(Args)]
pub(crate) struct RecordArgs {
    /// Folder of the bundle.
    #[arg(value_name = "DIR")]
    bundle: PathBuf,
    /// Folder of pictures; the record holds copies of them.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Take only this many of them, spread evenly over the folder.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

#[derive(Args)]
pub(crate) struct ReplayArgs {
    /// Folder of the bundle.
    #[arg(value_name = "DIR")]
    bundle: PathBuf,
    /// What `bundle record` wrote.
    #[arg(value_name = "FILE")]
    record: PathBuf,
}

pub(crate) fn record(args: &RecordArgs) -> anyhow::Result<()> {
    let bundle = Arc::new(Bundle::open(&args.bundle)?);
    let photos = find_photos(&args.images, bundle.labels())?;
    let photos = spread(photos, args.limit.map(|limit| limit as usize));
    let out = || args.out.display().to_string();
    let file = File::create_new(&args.out).with_context(out)?;
    let mut recorder = Recorder::start(bundle, &Tract, BufWriter::new(file)).with_context(out)?;
    for photo in photos {
        let path = || photo.path.display().to_string();
        let bytes = read(&photo.path, MAX_PICTURE_BYTES as u64)?;
        match recorder.add(bytes) {
            Err(RecordError::Picture(problem)) => eprintln!("bundle: {}: {problem}", path()),
            added => added.with_context(path)?,
        }
    }
    let frames = recorder.finish().with_context(out)?;
    ensure!(frames > 0, "{}: none of the pictures can be read", args.images.display());
    print(&format!("{frames} frames recorded on {ARCH}\n"))
}

pub(crate) fn replay(args: &ReplayArgs) -> anyhow::Result<()> {
    let bundle = Arc::new(Bundle::open(&args.bundle)?);
    let named = || args.record.display().to_string();
    let file = BufReader::new(File::open(&args.record).with_context(named)?);
    let replayed = again(bundle, &Tract, file).with_context(named)?;
    print(&text(&replayed))?;
    ensure!(replayed.holds(), "the machines differ by more than they may");
    Ok(())
}

fn text(replayed: &Replayed) -> String {
    let Replayed { machine, frames, points, coded_alike, decoded_alike, .. } = replayed;
    let Replayed { symbols, differing, furthest, logit_difference, .. } = replayed;
    let Replayed { same_answers, full_frames, same_full_answers, .. } = replayed;
    let points = points.len();
    format!(
        "{frames} frames at {points} operating points, recorded on {machine}, replayed on {ARCH}\n\
         from the same features: symbols and bytes alike in {coded_alike} of {frames}\n\
         from the same picture: decoded alike in {decoded_alike} of {frames}, {differing} of \
         {symbols} symbols differ, by up to {furthest} steps\n\
         likeliest class: the same in {same_answers} of {frames} by the tail, in \
         {same_full_answers} of {full_frames} by the full network; outputs within \
         {logit_difference:.1e}\n"
    )
}
