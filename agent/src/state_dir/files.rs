//! Files that survive a crash at any moment: written beside, synced, renamed; and the good version before it is kept.

use crate::platform;
use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// A file and the good version before it.
#[derive(Debug)]
pub(crate) struct Kept {
    newest: PathBuf,
    previous: PathBuf,
    /// Whether `newest` is known to be good, so that it may take the place of `previous`.
    newest_is_good: bool,
}

impl Kept {
    pub(super) fn new(newest: PathBuf) -> Self {
        let mut previous = newest.clone().into_os_string();
        previous.push(".previous");
        Self { newest, previous: previous.into(), newest_is_good: false }
    }

    /// The newest version that `decode` takes. A version that it refuses stays where it is, and is logged.
    pub(crate) fn load<T, E: std::fmt::Display>(
        &mut self,
        decode: impl Fn(&[u8]) -> Result<T, E>,
    ) -> Option<T> {
        let newest = read(&self.newest, &decode);
        self.newest_is_good = newest.is_some();
        newest.or_else(|| read(&self.previous, &decode))
    }

    /// What `decode` says of the newest version, if there is one that can be read.
    pub(super) fn newest<T, E>(&self, decode: impl Fn(&[u8]) -> Result<T, E>) -> Option<Result<T, E>> {
        fs::read(&self.newest).ok().map(|content| decode(&content))
    }

    /// Gives the newest version another name, under which it is neither loaded nor overwritten by what is saved.
    pub(super) fn put_aside(&mut self) -> io::Result<()> {
        let mut damaged = self.newest.clone().into_os_string();
        damaged.push(".damaged");
        self.newest_is_good = false;
        fs::rename(&self.newest, damaged)
    }

    /// At every moment of a crash one of the two versions is whole.
    pub(crate) fn save(&mut self, content: &[u8]) -> io::Result<()> {
        let temporary = write_temporary(&self.newest, content)?;
        if self.newest_is_good {
            self.keep_newest_as_previous()?;
        }
        self.newest_is_good = false;
        fs::rename(temporary, &self.newest)?;
        self.newest_is_good = true;
        sync_directory(&self.newest)
    }

    /// By a second name, so that the newest is never missing.
    fn keep_newest_as_previous(&self) -> io::Result<()> {
        let link = self.previous.with_extension("link");
        remove_if_there(&link)?;
        fs::hard_link(&self.newest, &link)?;
        fs::rename(&link, &self.previous)
    }

    pub(crate) fn remove(&mut self) -> io::Result<()> {
        self.newest_is_good = false;
        remove_if_there(&self.newest)?;
        remove_if_there(&self.previous)
    }
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn read<T, E: std::fmt::Display>(path: &Path, decode: impl Fn(&[u8]) -> Result<T, E>) -> Option<T> {
    let content = match fs::read(path) {
        Ok(content) => content,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "a file of the state directory cannot be read");
            return None;
        }
    };
    let decoded = decode(&content);
    let warn =
        |error| tracing::warn!(path = %path.display(), %error, "a file of the state directory is not usable");
    decoded.map_err(warn).ok()
}

/// A synced file beside `path`, readable by the owner only.
pub(super) fn write_temporary(path: &Path, content: &[u8]) -> io::Result<PathBuf> {
    let mut temporary = path.to_owned().into_os_string();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let mut file = platform::create_private_file(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    Ok(temporary)
}

/// A rename is durable once its directory is synced; systems that cannot open directories do it by themselves.
pub(super) fn sync_directory(of: &Path) -> io::Result<()> {
    match of.parent().map(File::open) {
        Some(Ok(directory)) => directory.sync_all(),
        Some(Err(_)) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(bytes: &[u8]) -> Result<u32, String> {
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        text.parse().map_err(|_| format!("{text:?} is no number"))
    }

    fn reopened(kept: &Kept) -> Kept {
        Kept::new(kept.newest.clone())
    }

    #[test]
    fn the_previous_version_serves_where_the_newest_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let mut kept = Kept::new(directory.path().join("file"));
        assert_eq!(kept.load(number), None);
        kept.save(b"1").unwrap();
        kept.save(b"2").unwrap();
        assert_eq!(reopened(&kept).load(number), Some(2));
        for damage in [&b""[..], b"garbage", b"\xff\xff"] {
            fs::write(&kept.newest, damage).unwrap();
            assert_eq!(reopened(&kept).load(number), Some(1), "{damage:?}");
        }
    }

    #[test]
    fn a_damaged_newest_never_takes_the_place_of_the_good_previous() {
        let directory = tempfile::tempdir().unwrap();
        let mut kept = Kept::new(directory.path().join("file"));
        kept.save(b"1").unwrap();
        kept.save(b"2").unwrap();
        fs::write(&kept.newest, b"garbage").unwrap();
        let mut kept = reopened(&kept);
        assert_eq!(kept.load(number), Some(1));
        kept.save(b"3").unwrap();
        assert_eq!(fs::read(&kept.previous).unwrap(), b"1");
        assert_eq!(fs::read(&kept.newest).unwrap(), b"3");
    }

    #[test]
    fn what_is_removed_is_gone_with_its_previous_version() {
        let directory = tempfile::tempdir().unwrap();
        let mut kept = Kept::new(directory.path().join("file"));
        kept.save(b"1").unwrap();
        kept.save(b"2").unwrap();
        kept.remove().unwrap();
        kept.remove().unwrap();
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }
}
