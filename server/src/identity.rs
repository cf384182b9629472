//! A server's data directory: for now its id, random and kept, by which agents and other servers know it again. The directory is 0700, the
//! file 0600.

use anyhow::{Context, bail};
use proto::session::ServerId;
use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

const ID_FILE: &str = "server-id";

/// What a server keeps in its data directory.
#[derive(Debug)]
pub(crate) struct ServerFiles {
    pub(crate) id: ServerId,
    /// Locked while the server runs: two servers with one id would take each other's agents for their own.
    _lock: fs::File,
}

impl ServerFiles {
    /// Opens the directory, or makes it.
    ///
    /// # Errors
    /// It cannot be used, or holds a file that is not what it should be; that is never overwritten.
    pub(crate) fn open(data_dir: &Path) -> anyhow::Result<Self> {
        make_dir(data_dir)
            .with_context(|| format!("cannot make the data directory {}", data_dir.display()))?;
        let path = data_dir.join(ID_FILE);
        match fs::read_to_string(&path) {
            Ok(text) => match text.trim().parse() {
                Ok(id) => Ok(Self { id, _lock: lock(data_dir, &path)? }),
                Err(error) => {
                    bail!("{}: {error}; restore the file, or remove it for a new id", path.display())
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let id = new_id()?;
                write_new(data_dir, &path, &format!("{id}\n"))
                    .with_context(|| format!("cannot write {}", path.display()))?;
                Ok(Self { id, _lock: lock(data_dir, &path)? })
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }
}

fn lock(data_dir: &Path, path: &Path) -> anyhow::Result<fs::File> {
    let file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            bail!("another server runs on {}; give each its own --data-dir", data_dir.display())
        }
        Err(fs::TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("cannot lock {}", path.display()))
        }
    }
}

fn new_id() -> anyhow::Result<ServerId> {
    let mut id = [0; 16];
    getrandom::fill(&mut id).context("no random source")?;
    Ok(ServerId(id))
}

fn make_dir(path: &Path) -> io::Result<()> {
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)
}

/// Whole or not at all: a crash in between leaves no half a file under the name.
fn write_new(dir: &Path, path: &Path, text: &str) -> io::Result<()> {
    let temporary: PathBuf = path.with_extension("new");
    let mut options = fs::OpenOptions::new();
    options.write(true).create(true).truncate(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    #[cfg(unix)]
    fs::File::open(dir)?.sync_all()?;
    #[cfg(not(unix))]
    let _ = dir;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_kept_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let data_dir = dir.path().join("data");
        let first = ServerFiles::open(&data_dir).unwrap().id;
        assert_eq!(ServerFiles::open(&data_dir).unwrap().id, first);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
            assert_eq!((mode(&data_dir), mode(&data_dir.join(ID_FILE))), (0o700, 0o600));
        }
    }

    #[test]
    fn a_second_server_on_the_same_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let _running = ServerFiles::open(dir.path()).unwrap();
        let error = ServerFiles::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("--data-dir"), "{error}");
    }

    #[test]
    fn a_corrupt_id_is_refused_and_left_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(ID_FILE);
        fs::write(&path, "nonsense").unwrap();
        let error = ServerFiles::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(ID_FILE), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "nonsense");
    }
}
