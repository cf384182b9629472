//! What an agent keeps on disk, in one directory that only its owner may enter (0700):
//!
//! ```text
//! agent.lock             held while an agent runs; contains its process id
//! agent.sock             the local socket
//! agent.log              of a daemon started by `up`; with .1, the one before it
//! node.key               the node's private key, 0600; never overwritten
//! settings.json          what `up` and `set` were told
//! state.json             boot number, and what the core keeps: membership, servers, endpoints that worked; with .damaged, one that could not be read
//! map.cache              the map; with .previous, the one before it
//! ```

mod files;
mod key;
mod state;

pub(crate) use files::Kept;
pub(crate) use key::KeyError;
pub(crate) use state::State;
use state::StateError;

use crate::platform;
use proto::key::NodeSecret;
use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

const LOCK_RETRIES: u32 = 20;
const LOCK_RETRY_DELAY: Duration = Duration::from_millis(10);

/// A state directory that this process holds alone.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    /// Closing it releases the directory.
    _lock: File,
}

/// The directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    #[error("another agent{} already uses the state directory {}; stop it with `agent down`, or give this one another --state-dir", process(.pid), .path.display())]
    InUse { path: PathBuf, pid: Option<u32> },
    #[error("cannot use the state directory {}: {source}", .path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the directory {} holds other things and is open to other users; give another --state-dir, or close this one with `chmod 700` if it is for the agent alone", .0.display())]
    Foreign(PathBuf),
    #[error("{} was written by a newer agent (format {format}); run that one, or move the file away: then this node must enrol again", .path.display())]
    Newer { path: PathBuf, format: u32 },
}

fn process(pid: &Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

/// Makes the directory if it is missing, and closes it to others. A directory that others use is left as it is.
pub(crate) fn prepare(path: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::Io { path: path.to_owned(), source };
    if is_foreign(path).map_err(failed)? {
        return Err(OpenError::Foreign(path.to_owned()));
    }
    platform::create_private_dir(path).map_err(failed)
}

fn is_foreign(path: &Path) -> io::Result<bool> {
    match fs::read_dir(path) {
        Ok(mut entries) => {
            // The key alone may be of a backup.
            let ours = platform::is_own_file(&path.join("agent.lock"))?
                || platform::is_own_file(&path.join("node.key"))?;
            Ok(!ours && entries.next().is_some() && platform::is_open_to_others(path)?)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

impl StateDir {
    /// Makes the directory if it is missing, and takes it for this process.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Io { path: path.to_owned(), source };
        prepare(path)?;
        let mut lock = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path.join("agent.lock"))
            .map_err(failed)?;
        match lock_patiently(&lock) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let pid = fs::read_to_string(path.join("agent.lock"))
                    .ok()
                    .and_then(|text| text.trim().parse().ok());
                return Err(OpenError::InUse { path: path.to_owned(), pid });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
        lock.set_len(0).and_then(|()| writeln!(lock, "{}", std::process::id())).map_err(failed)?;
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The node's key; made if there is none.
    pub(crate) fn key(&self) -> Result<NodeSecret, KeyError> {
        key::load_or_generate(&self.path)
    }

    pub(crate) fn map_cache(&self) -> Kept {
        Kept::new(self.path.join("map.cache"))
    }

    pub(crate) fn state(&self) -> Kept {
        Kept::new(self.path.join("state.json"))
    }

    pub(crate) fn settings(&self) -> Kept {
        Kept::new(settings_path(&self.path))
    }

    /// What was saved last, if it can be used, and its file. What would be overwritten and lost is a newer program's state,
    /// which is refused, and a damaged one, which is put aside.
    pub(crate) fn load_state(&self) -> Result<(Kept, Option<State>), OpenError> {
        let mut file = self.state();
        let newest = file.newest(State::decode);
        if let Some(Err(StateError::Newer(format))) = newest {
            return Err(OpenError::Newer { path: self.path.join("state.json"), format });
        }
        let state = file.load(State::decode);
        if let Some(Err(StateError::Damaged(_))) = newest {
            file.put_aside().map_err(|source| OpenError::Io { path: self.path.clone(), source })?;
        }
        Ok((file, state))
    }
}

/// Commands look at the lock for a moment, with [`wait_released`]: that is no other agent.
fn lock_patiently(lock: &File) -> Result<(), TryLockError> {
    for _ in 0..LOCK_RETRIES {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => std::thread::sleep(LOCK_RETRY_DELAY),
            locked => return locked,
        }
    }
    lock.try_lock()
}

pub(crate) fn socket_path(directory: &Path) -> PathBuf {
    directory.join("agent.sock")
}

pub(crate) fn log_path(directory: &Path) -> PathBuf {
    directory.join("agent.log")
}

fn settings_path(directory: &Path) -> PathBuf {
    directory.join("settings.json")
}

/// Whether an agent was enrolled here, as far as files tell.
pub(crate) fn was_enrolled(directory: &Path) -> bool {
    let mut file = Kept::new(directory.join("state.json"));
    // Of a newer program's state the daemon says more.
    let is_newer = matches!(file.newest(State::decode), Some(Err(StateError::Newer(_))));
    is_newer || file.load(State::decode).is_some_and(|state| state.core.is_enrolled())
}

/// The kept settings of an agent that may or may not run.
pub(crate) fn kept_settings(directory: &Path) -> crate::config::Options {
    let decode = |bytes: &[u8]| serde_json::from_slice(bytes).map_err(|error| error.to_string());
    Kept::new(settings_path(directory)).load(decode).unwrap_or_default()
}

/// Waits until no process holds the directory. `false`: one still does.
pub(crate) async fn wait_released(directory: &Path, timeout: Duration) -> bool {
    let give_up_at = Instant::now() + timeout;
    loop {
        // No lock file, no agent. The lock taken here is released at once.
        let held = match File::open(directory.join("agent.lock")) {
            Ok(lock) => matches!(lock.try_lock(), Err(TryLockError::WouldBlock)),
            Err(_) => false,
        };
        if !held || Instant::now() >= give_up_at {
            return !held;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_agent_on_one_directory_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let first = StateDir::open(directory.path()).unwrap();
        let error = StateDir::open(directory.path()).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, OpenError::InUse { .. }));
        assert!(text.contains(&std::process::id().to_string()), "{text}");
        assert!(text.contains(&directory.path().display().to_string()), "{text}");
        drop(first);
        assert!(StateDir::open(directory.path()).is_ok());
    }

    #[test]
    fn a_glance_at_the_lock_stops_no_agent() {
        let directory = tempfile::tempdir().unwrap();
        drop(StateDir::open(directory.path()).unwrap());
        let glance = File::open(directory.path().join("agent.lock")).unwrap();
        glance.try_lock().unwrap();
        std::thread::scope(|scope| {
            let opened = scope.spawn(|| StateDir::open(directory.path()));
            drop(glance);
            assert!(opened.join().unwrap().is_ok());
        });
    }

    #[cfg(unix)]
    #[test]
    fn a_directory_that_others_use_is_refused_and_left_as_it_is() {
        use std::os::unix::fs::PermissionsExt;
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("open");
        let mode = || fs::metadata(&directory).unwrap().permissions().mode() & 0o777;
        let open_up = || fs::set_permissions(&directory, fs::Permissions::from_mode(0o755)).unwrap();
        fs::create_dir(&directory).unwrap();
        open_up();
        fs::write(directory.join("of-others"), "").unwrap();
        assert!(matches!(StateDir::open(&directory), Err(OpenError::Foreign(_))));
        assert_eq!(mode(), 0o755);
        fs::remove_file(directory.join("of-others")).unwrap();
        drop(StateDir::open(&directory).unwrap());
        assert_eq!(mode(), 0o700);
        open_up();
        assert!(StateDir::open(&directory).is_ok());
        assert_eq!(mode(), 0o700);
    }

    #[test]
    fn a_newer_state_is_refused_and_a_damaged_one_put_aside() {
        let directory = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(directory.path()).unwrap();
        let path = directory.path().join("state.json");
        let newer = br#"{"format":2,"else":1}"#;
        fs::write(&path, newer).unwrap();
        assert!(matches!(state_dir.load_state(), Err(OpenError::Newer { format: 2, .. })));
        assert_eq!(fs::read(&path).unwrap(), newer);
        fs::write(&path, "damaged").unwrap();
        let (mut file, state) = state_dir.load_state().unwrap();
        assert!(state.is_none());
        file.save(b"new").unwrap();
        assert_eq!(fs::read(directory.path().join("state.json.damaged")).unwrap(), b"damaged");
    }

    #[tokio::test]
    async fn a_directory_is_released_with_its_agent() {
        let directory = tempfile::tempdir().unwrap();
        let held = StateDir::open(directory.path()).unwrap();
        assert!(!wait_released(directory.path(), Duration::ZERO).await);
        drop(held);
        assert!(wait_released(directory.path(), Duration::ZERO).await);
    }
}
