//! `simulator record-outcomes`: compressed pictures in a bundle's record, and all of a detector's.

use std::path::PathBuf;
use std::sync::Arc;

use isthmus_models::{Bundle, ImageSpec, Tract};
use isthmus_simulator::bundles;
use isthmus_simulator::figures::recorder;

use super::truth;

/// The options of `record-outcomes`.
#[derive(clap::Args)]
pub struct Args {
    /// Bundle by name (models/bundles), or a bundle's folder; its record and manifest are replaced.
    #[arg(long, value_name = "NAME|DIR")]
    bundle: PathBuf,
    /// Folder of pictures that contains the recorded ones, by class or with --truth.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    #[command(flatten)]
    truth: truth::Args,
    /// Compression to record, such as webp/160/q35: format, longer side, quality; repeatable [default:
    /// the convex hull of quality over bytes of each format]
    #[arg(long = "image", value_name = "FORMAT/SIDE/qQUALITY")]
    compressions: Vec<ImageSpec>,
    /// The bundle's new version: client and server need the same one.
    #[arg(long, value_name = "VERSION")]
    new_version: String,
}

/// Records what the full network makes of the recorded frames, compressed.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let bundle = Arc::new(Bundle::open(&bundles::find(&args.bundle)?)?);
    let Args { images, compressions, new_version, .. } = args;
    let (truth, engine) = (args.truth.file()?, Tract);
    let (truth, images, version) = (truth.as_ref(), images.as_path(), new_version.as_str());
    let recorded = recorder::record_images(&bundle, &engine, images, truth, compressions, version)?;
    print!("{}", recorder::table(&recorded));
    Ok(())
}
