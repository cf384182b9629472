//! A server's data directory: its id, random and kept, by which agents and other servers know it again; and which runs of its process were the last.
//! A run whose directory is theirs, on the same start of the machine, knows that they are over, since it holds the
//! directory's lock. One that finds itself copied, or the machine restarted, knows nothing of the kind. The directory is 0700, its files 0600.

use crate::store::Incarnation;
use anyhow::{Context, bail};
use proto::session::ServerId;
use std::{
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

const ID_FILE: &str = "server-id";
const RUN_FILE: &str = "last-run";
/// A run that ended before it had a lease left the one of a run before it: so the last few are kept.
const RUNS_KEPT: usize = 16;

/// What a server keeps in its data directory.
#[derive(Debug)]
pub(crate) struct ServerFiles {
    pub(crate) id: ServerId,
    pub(crate) incarnation: Incarnation,
    /// The runs before this one of which it is certain that they are over.
    pub(crate) predecessors: Vec<Incarnation>,
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
        let id = match fs::read_to_string(&path) {
            Ok(text) => match text.trim().parse() {
                Ok(id) => id,
                Err(error) => {
                    bail!("{}: {error}; restore the file, or remove it for a new id", path.display())
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let id = new_id()?;
                write_new(data_dir, &path, &format!("{id}\n"))
                    .with_context(|| format!("cannot write {}", path.display()))?;
                id
            }
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display()))?,
        };
        let lock = lock(data_dir, &path)?;
        let incarnation = Incarnation::generate().context("no random source")?;
        let predecessors = begin_run(data_dir, incarnation, &place(&lock))
            .with_context(|| format!("cannot write {}", data_dir.join(RUN_FILE).display()))?;
        Ok(Self { id, incarnation, predecessors, _lock: lock })
    }
}

/// Writes down that `incarnation` runs at `place`, and returns who ran there before.
fn begin_run(data_dir: &Path, incarnation: Incarnation, place: &str) -> io::Result<Vec<Incarnation>> {
    let path = data_dir.join(RUN_FILE);
    // What cannot be read tells nothing; it is replaced.
    let runs = fs::read_to_string(&path).unwrap_or_default();
    let here = |line: &&str| line.split_once(' ').is_some_and(|(_, at)| !place.is_empty() && at == place);
    let runs: Vec<&str> = runs.lines().rev().filter(here).take(RUNS_KEPT).collect();
    let run_of = |line: &&str| line.split_once(' ')?.0.parse().ok();
    let predecessors = runs.iter().filter_map(run_of).collect();
    let kept: String = runs.iter().rev().map(|line| format!("{line}\n")).collect();
    write_new(data_dir, &path, &format!("{kept}{incarnation} {place}\n"))?;
    Ok(predecessors)
}

/// The start of the machine, and the file itself: a copy of it is another. Empty where that cannot be told.
#[cfg(target_os = "linux")]
fn place(id_file: &fs::File) -> String {
    use std::os::unix::fs::MetadataExt;
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id");
    match (boot, id_file.metadata()) {
        (Ok(boot), Ok(file)) => format!("{} {}:{}", boot.trim(), file.dev(), file.ino()),
        (Err(_), _) | (_, Err(_)) => String::new(),
    }
}

#[cfg(not(target_os = "linux"))]
fn place(_id_file: &fs::File) -> String {
    String::new()
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

pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
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

    #[cfg(target_os = "linux")]
    #[test]
    fn a_run_knows_its_predecessors_unless_the_directory_was_copied() {
        let dir = tempfile::tempdir().unwrap();
        let first = ServerFiles::open(dir.path()).unwrap();
        assert_eq!(first.predecessors, []);
        let copy = tempfile::tempdir().unwrap();
        for file in [ID_FILE, RUN_FILE] {
            fs::copy(dir.path().join(file), copy.path().join(file)).unwrap();
        }
        let copied = ServerFiles::open(copy.path()).unwrap();
        assert_eq!((copied.id, copied.predecessors), (first.id, vec![]), "the first one may still run");
        let mut runs = vec![first.incarnation];
        drop(first);
        for _ in 0..2 * RUNS_KEPT {
            let next = ServerFiles::open(dir.path()).unwrap();
            let last: Vec<Incarnation> = runs.iter().rev().take(RUNS_KEPT).copied().collect();
            assert_eq!(next.predecessors, last);
            assert!(!runs.contains(&next.incarnation));
            runs.push(next.incarnation);
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
