//! Bundles by name, found from any folder.

use std::env;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use isthmus_models::MANIFEST;

/// Where the repository keeps its bundles.
const REPOSITORY: &str = "models/bundles";

/// A name that is no bundle's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown bundle {name}; expected a bundle's folder or one of: {known}")]
pub struct UnknownBundle {
    name: String,
    known: String,
}

/// The folder of a bundle: `name` itself, or the bundle of that name in `models/bundles` in the current
/// folder or above it, in `$ISTHMUS_MODEL_REPOSITORY`, or in the repository that this program was
/// built from.
pub fn find(name: &Path) -> Result<PathBuf, UnknownBundle> {
    find_near(name, Path::new(""))
}

/// The same, with names that count from `folder` first.
pub fn find_near(name: &Path, folder: &Path) -> Result<PathBuf, UnknownBundle> {
    let repositories = repositories(folder);
    let places = repositories.iter().map(|repository| repository.join(name));
    let mut places = [folder.join(name)].into_iter().chain(places);
    places.find(|place| place.join(MANIFEST).is_file()).ok_or_else(|| UnknownBundle {
        name: name.display().to_string(),
        known: known(&repositories),
    })
}

/// Folders that may hold bundles, those that are nearest first.
fn repositories(folder: &Path) -> Vec<PathBuf> {
    let mut repositories = vec![PathBuf::from(REPOSITORY)];
    let folders = [folder.canonicalize().ok(), env::current_dir().ok()];
    let above = folders.iter().flatten().flat_map(|folder| folder.ancestors());
    repositories.extend(above.map(|above| above.join(REPOSITORY)));
    repositories.extend(env::var_os("ISTHMUS_MODEL_REPOSITORY").map(PathBuf::from));
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
    repositories.extend(sources.map(|sources| sources.join(REPOSITORY)));
    repositories.retain(|repository| repository.is_dir());
    repositories
}

/// The names of the bundles in the nearest repository.
fn known(repositories: &[PathBuf]) -> String {
    let Some(repository) = repositories.first() else { return format!("none in {REPOSITORY}") };
    let entries = repository.read_dir().into_iter().flatten().flatten();
    let bundles = entries.filter(|entry| entry.path().join(MANIFEST).is_file());
    let mut names: Vec<String> =
        bundles.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    let mut known = names.join(", ");
    // Writing to a string cannot fail.
    let _ = write!(known, " ({})", repository.display());
    known
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_bundle_is_found_near_a_folder_above_it_and_in_the_sources() {
        let place = tempfile::tempdir().expect("a folder");
        let bundle = place.path().join("models/bundles/mine");
        let deep = place.path().join("a/b");
        for folder in [&bundle, &deep] {
            fs::create_dir_all(folder).expect("made");
        }
        fs::write(bundle.join(MANIFEST), "").expect("written");
        let found = find_near(Path::new("mine"), &deep).expect("above");
        assert_eq!(found, bundle.canonicalize().expect("a folder"));
        let found = find_near(Path::new("../../models/bundles/mine"), &deep).expect("a path");
        assert!(found.join(MANIFEST).is_file());
        let street = find_near(Path::new("street"), Path::new("/")).expect("built from there");
        assert!(!street.to_string_lossy().contains(".."), "{}", street.display());
    }

    #[test]
    fn an_unknown_name_lists_the_known_ones() {
        let error = find(Path::new("stret")).expect_err("a typo").to_string();
        assert!(error.starts_with("unknown bundle stret; expected"), "{error}");
        assert!(error.contains("photos, road, signs, street"), "{error}");
    }
}
