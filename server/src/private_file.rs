//! Files that are their owner's alone, and whole or not there at all: written beside their place, synced, and only then put in it.

use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

/// A file on its way. Dropped before it is put in its place, it is gone.
pub(crate) struct Pending {
    file: fs::File,
    temporary: PathBuf,
    path: PathBuf,
}

/// What to do where there is a file already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Existing {
    Keep,
    Replace,
}

impl Pending {
    /// # Errors
    /// There is one already and it is to be kept, or something that is no file; or the directory cannot be written.
    pub(crate) fn create(path: &Path, existing: Existing) -> io::Result<Self> {
        check(path, existing)?;
        let mut name = path.file_name().ok_or(io::ErrorKind::InvalidFilename)?.to_owned();
        name.push(format!(".{}.new", std::process::id()));
        let temporary = path.with_file_name(name);
        Ok(Self { file: create_new(&temporary)?, temporary, path: path.to_owned() })
    }

    /// # Errors
    /// It cannot be synced, or put in its place.
    pub(crate) fn put(mut self, existing: Existing) -> io::Result<()> {
        self.file.flush()?;
        self.file.sync_all()?;
        check(&self.path, existing)?;
        fs::rename(&self.temporary, &self.path)?;
        sync_directory(&self.path)
    }
}

impl Write for Pending {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Already in its place, as a rule.
        fs::remove_file(&self.temporary).ok();
    }
}

/// A device, a pipe or a directory is never replaced.
fn check(path: &Path, existing: Existing) -> io::Result<()> {
    match (fs::symlink_metadata(path), existing) {
        (Err(error), _) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        (Err(error), _) => Err(error),
        (Ok(found), Existing::Replace) if found.is_file() => Ok(()),
        (Ok(_), Existing::Replace) => Err(io::Error::other("it is no regular file")),
        (Ok(_), Existing::Keep) => Err(io::ErrorKind::AlreadyExists.into()),
    }
}

/// Makes a file that there is not yet.
///
/// # Errors
/// There is one, or it cannot be made.
pub(crate) fn create_new(path: &Path) -> io::Result<fs::File> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// So that the name survives a power loss too.
#[cfg(unix)]
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|directory| !directory.as_os_str().is_empty());
    fs::File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(not(unix))]
pub(crate) fn sync_directory(_path: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_whole_or_not_at_all_and_replaces_nothing_unasked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x");
        let names = || fs::read_dir(directory.path()).unwrap().count();
        let mut pending = Pending::create(&path, Existing::Keep).unwrap();
        pending.write_all(b"half").unwrap();
        assert!(!path.exists());
        drop(pending);
        assert_eq!(names(), 0, "nothing is left of it");
        for (text, existing) in [("one", Existing::Keep), ("two", Existing::Replace)] {
            let mut pending = Pending::create(&path, existing).unwrap();
            pending.write_all(text.as_bytes()).unwrap();
            pending.put(existing).unwrap();
            assert_eq!((fs::read_to_string(&path).unwrap().as_str(), names()), (text, 1));
        }
        assert!(Pending::create(&path, Existing::Keep).is_err());
        assert!(Pending::create(directory.path(), Existing::Replace).is_err());
    }
}
