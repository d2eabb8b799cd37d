//! `simulator record-outcomes`: compressed pictures in a bundle's record.

use std::path::PathBuf;
use std::sync::Arc;

use isthmus_models::{Bundle, ImageSpec, Tract};
use isthmus_simulator::bundles;
use isthmus_simulator::figures::recorder;

/// The options of `record-outcomes`.
#[derive(clap::Args)]
pub struct Args {
    /// Bundle by name (models/bundles), or a bundle's folder; its record and manifest are replaced.
    #[arg(long, value_name = "NAME|DIR")]
    bundle: PathBuf,
    /// Folder of pictures by class that contains the recorded ones.
    #[arg(long, value_name = "DIR")]
    images: PathBuf,
    /// Compression to record, such as webp/160/q35: format, longer side, quality; repeatable [default:
    /// the convex hull of accuracy over bytes of each format]
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
    let recorded = recorder::record_images(&bundle, &Tract, images, compressions, new_version)?;
    print!("{}", recorder::table(&recorded));
    Ok(())
}
