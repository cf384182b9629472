//! What an agent keeps on disk, in one directory that only its owner may enter (0700):
//!
//! ```text
//! agent.lock             held while an agent runs; contains its process id
//! agent.sock             the local socket
//! agent.log              of a daemon started by `up`
//! node.key               the node's private key, 0600; never overwritten
//! settings.json          what `up` and `set` were told
//! state.json             boot number, and what the core keeps: membership, servers, endpoints that worked
//! map.cache              the map; with .previous, the one before it
//! ```

mod files;
mod key;
mod state;

pub(crate) use files::Kept;
pub(crate) use key::KeyError;
pub(crate) use state::State;

use crate::platform;
use proto::key::NodeSecret;
use std::{
    fs::{self, File, TryLockError},
    io::{self, Write},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

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
}

fn process(pid: &Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

impl StateDir {
    /// Makes the directory if it is missing, and takes it for this process.
    pub(crate) fn open(path: &Path) -> Result<Self, OpenError> {
        let failed = |source| OpenError::Io { path: path.to_owned(), source };
        platform::create_private_dir(path).map_err(failed)?;
        let mut lock = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(path.join("agent.lock"))
            .map_err(failed)?;
        match lock.try_lock() {
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
    let state = Kept::new(directory.join("state.json")).load(State::decode);
    state.is_some_and(|state| state.core.is_enrolled())
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

    #[tokio::test]
    async fn a_directory_is_released_with_its_agent() {
        let directory = tempfile::tempdir().unwrap();
        let held = StateDir::open(directory.path()).unwrap();
        assert!(!wait_released(directory.path(), Duration::ZERO).await);
        drop(held);
        assert!(wait_released(directory.path(), Duration::ZERO).await);
    }
}
