//! Files that are there only once they are whole.

use std::fs::Permissions;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

/// A file written under another name in its folder, which takes its own when it is
/// [finished](WholeFile::finish); otherwise it is gone, and what was there stays.
#[derive(Debug)]
pub struct WholeFile {
    temporary: NamedTempFile,
    file: PathBuf,
}

impl WholeFile {
    /// An empty one. It fails where the folder is missing or cannot be written to.
    pub fn create(file: &Path) -> io::Result<WholeFile> {
        let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty());
        let mut builder = tempfile::Builder::new();
        builder.prefix(".isthmus-").suffix(".part");
        builder.permissions(Permissions::from_mode(0o666));
        let temporary = builder.tempfile_in(folder.unwrap_or(Path::new(".")))?;
        Ok(WholeFile { temporary, file: file.to_owned() })
    }

    /// Puts it in its place.
    pub fn finish(self) -> io::Result<()> {
        self.temporary.as_file().sync_all()?;
        self.temporary.persist(&self.file).map_err(|error| error.error)?;
        Ok(())
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.temporary.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.temporary.flush()
    }
}
