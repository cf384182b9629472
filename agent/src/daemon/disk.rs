//! Writes what is to be kept, on a thread of its own: a sync may take as long as it likes. Of each file one version waits, the newest: a disk that stalls
//! costs no memory.

use crate::{
    config::Options,
    state_dir::{Kept, OpenError, State, StateDir},
};
use agent_core::cache::{self, Cached};
use proto::root::Fingerprint;
use std::{
    io,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};
use tokio::sync::{oneshot, watch};

/// The files, as they were loaded.
pub(super) struct Files {
    pub(super) map: Kept,
    pub(super) state: Kept,
    pub(super) settings: Kept,
}

/// What was in them.
pub(super) struct Contents {
    pub(super) map: Option<Cached>,
    pub(super) state: State,
    pub(super) settings: Options,
}

impl Files {
    pub(super) fn load(state_dir: &StateDir) -> Result<(Self, Contents), OpenError> {
        let (state_file, state) = state_dir.load_state()?;
        let mut files =
            Self { map: state_dir.map_cache(), state: state_file, settings: state_dir.settings() };
        let contents = Contents {
            map: files.map.load(cache::decode),
            state: state.unwrap_or_else(State::fresh),
            settings: files.settings.load(|bytes| serde_json::from_slice(bytes)).unwrap_or_default(),
        };
        Ok((files, contents))
    }
}

/// Dropping it ends the thread when everything is written, and does not wait for that.
pub(super) struct Disk {
    slots: Arc<Slots>,
    /// Says nothing, and goes with the thread.
    running: oneshot::Receiver<()>,
    kept_root: watch::Receiver<Option<Fingerprint>>,
}

#[derive(Default)]
struct Slots {
    pending: Mutex<Pending>,
    changed: Condvar,
}

/// What waits. They are written in this order.
#[derive(Default)]
struct Pending {
    /// `Some(None)`: to be removed.
    map: Option<Option<Vec<u8>>>,
    state: Option<State>,
    settings: Option<Options>,
    /// Nothing comes after this.
    end: bool,
}

impl Disk {
    /// `root`: the newest of the state that was loaded from these files.
    pub(super) fn start(files: Files, root: Option<Fingerprint>) -> io::Result<Self> {
        let slots: Arc<Slots> = Arc::default();
        let (ended, running) = oneshot::channel();
        let (kept, kept_root) = watch::channel(root);
        let writer = Writer { files, kept, told: false };
        let inbox = Arc::clone(&slots);
        thread::Builder::new().name("disk".into()).spawn(move || {
            writer.run(&inbox);
            drop::<oneshot::Sender<()>>(ended);
        })?;
        Ok(Self { slots, running, kept_root })
    }

    /// The newest root of the state that is on disk.
    pub(super) fn kept_root(&self) -> Option<Fingerprint> {
        *self.kept_root.borrow()
    }

    /// Waits until there may be another; for ever where nothing is written any more.
    pub(super) async fn root_kept(&mut self) -> Option<Fingerprint> {
        if self.kept_root.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
        *self.kept_root.borrow_and_update()
    }

    pub(super) fn save_map(&self, encoded: Vec<u8>) {
        self.slots.change(|pending| pending.map = Some(Some(encoded)));
    }

    pub(super) fn remove_map(&self) {
        self.slots.change(|pending| pending.map = Some(None));
    }

    pub(super) fn save_state(&self, state: State) {
        self.slots.change(|pending| pending.state = Some(state));
    }

    pub(super) fn save_settings(&self, settings: Options) {
        self.slots.change(|pending| pending.settings = Some(settings));
    }

    /// Writes the rest. `false`: that takes longer.
    pub(super) async fn finish(mut self, timeout: Duration) -> bool {
        self.slots.change(|pending| pending.end = true);
        tokio::time::timeout(timeout, &mut self.running).await.is_ok()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.slots.change(|pending| pending.end = true);
    }
}

impl Slots {
    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut Pending)) {
        change(&mut self.lock());
        self.changed.notify_one();
    }

    /// Waits until there is something to write, or the end.
    fn take(&self) -> Pending {
        let pending = self.changed.wait_while(self.lock(), |pending| pending.is_empty() && !pending.end);
        let mut pending = pending.unwrap_or_else(PoisonError::into_inner);
        let end = pending.end;
        std::mem::replace(&mut *pending, Pending { end, ..Pending::default() })
    }
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.map.is_none() && self.state.is_none() && self.settings.is_none()
    }
}

struct Writer {
    files: Files,
    kept: watch::Sender<Option<Fingerprint>>,
    /// A disk that is full is told once, not at every change.
    told: bool,
}

impl Writer {
    fn run(mut self, slots: &Slots) {
        loop {
            let pending = slots.take();
            if pending.is_empty() {
                return;
            }
            let written = [self.map(pending.map), self.state(pending.state), self.settings(pending.settings)];
            let failed = written.into_iter().find_map(Result::err);
            match failed {
                Some(error) if !self.told => {
                    tracing::error!(%error, "the state directory cannot be written: what is new will be forgotten at the next start");
                    self.told = true;
                }
                Some(_) => {}
                None => self.told = false,
            }
        }
    }

    fn map(&mut self, map: Option<Option<Vec<u8>>>) -> io::Result<()> {
        match map {
            Some(Some(encoded)) => self.files.map.save(&encoded),
            Some(None) => self.files.map.remove(),
            None => Ok(()),
        }
    }

    fn state(&mut self, state: Option<State>) -> io::Result<()> {
        let Some(state) = state else { return Ok(()) };
        self.files.state.save(&serde_json::to_vec(&state)?)?;
        self.kept.send_if_modified(|kept| std::mem::replace(kept, state.root()) != state.root());
        Ok(())
    }

    fn settings(&mut self, settings: Option<Options>) -> io::Result<()> {
        settings.map_or(Ok(()), |settings| self.files.settings.save(&serde_json::to_vec_pretty(&settings)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::root::RootSecret;

    /// More than any test takes.
    const LONG: Duration = Duration::from_secs(30);

    fn files(directory: &StateDir) -> Files {
        Files { map: directory.map_cache(), state: directory.state(), settings: directory.settings() }
    }

    #[tokio::test]
    async fn everything_given_is_on_disk_at_the_end_and_the_last_version_wins() {
        let directory = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(directory.path()).unwrap();
        let disk = Disk::start(files(&state_dir), None).unwrap();
        let first = State::fresh().started();
        disk.save_state(first.clone());
        (0..100u8).for_each(|version| disk.save_map(vec![version]));
        let second = first.started();
        disk.save_state(second.clone());
        assert!(disk.finish(LONG).await);
        let mut files = files(&state_dir);
        assert_eq!(files.state.load(State::decode).unwrap().boot, second.boot);
        let number = |bytes: &[u8]| bytes.first().copied().ok_or("empty");
        assert_eq!(files.map.load(number), Some(99));
    }

    /// The state of a member of the network with this root.
    fn member(root: &RootSecret) -> State {
        let network =
            serde_json::json!({ "id": vec![1; 16], "root": root.public().to_bytes(), "membership": [] });
        let state = serde_json::json!({ "format": 1, "boot": 1, "core": { "network": network } });
        State::decode(&serde_json::to_vec(&state).unwrap()).unwrap()
    }

    #[tokio::test]
    async fn a_root_is_kept_when_it_is_written_and_not_before() {
        let directory = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(directory.path()).unwrap();
        let mut disk = Disk::start(files(&state_dir), None).unwrap();
        let obstacle = directory.path().join("state.json.new");
        std::fs::create_dir(&obstacle).unwrap();
        let root = RootSecret::from_seed(&[1; 32]);
        disk.save_state(member(&root));
        disk.save_settings(Options::default());
        // Settings are written after the state.
        while !directory.path().join("settings.json").exists() {
            tokio::task::yield_now().await;
        }
        assert_eq!(disk.kept_root(), None);
        std::fs::remove_dir(&obstacle).unwrap();
        disk.save_state(member(&root));
        let kept = tokio::time::timeout(LONG, disk.root_kept()).await.unwrap();
        assert_eq!(kept, Some(root.public().fingerprint()));
    }

    #[cfg(unix)]
    #[tokio::test]
    async fn a_disk_that_stalls_keeps_one_version_and_delays_no_end() {
        let directory = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(directory.path()).unwrap();
        // Opening a pipe that nobody reads stalls.
        let pipe = directory.path().join("map.cache.new");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let disk = Disk::start(files(&state_dir), None).unwrap();
        disk.save_map(vec![0]);
        while disk.slots.lock().map.is_some() {
            tokio::task::yield_now().await;
        }
        (1..100u8).for_each(|version| disk.save_map(vec![version]));
        assert_eq!(disk.slots.lock().map, Some(Some(vec![99])));
        assert!(!disk.finish(Duration::from_millis(50)).await);
    }
}
