//! Writes what is to be kept, on a thread of its own: a sync may take as long as it likes. Of several versions of one file that wait, only the last is written.

use crate::{
    config::Options,
    state_dir::{Kept, State},
};
use std::{
    io,
    sync::mpsc::{self, Receiver, Sender},
    thread::{self, JoinHandle},
};

/// The files, as they were loaded.
pub(super) struct Files {
    pub(super) map: Kept,
    pub(super) state: Kept,
    pub(super) settings: Kept,
}

enum Job {
    Map(Vec<u8>),
    NoMap,
    State(Box<State>),
    Settings(Options),
}

/// Dropping it waits until everything is written.
pub(super) struct Disk {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Disk {
    pub(super) fn start(files: Files) -> io::Result<Self> {
        let (jobs, inbox) = mpsc::channel();
        let thread =
            thread::Builder::new().name("disk".into()).spawn(move || Writer::new(files).run(&inbox))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread) })
    }

    pub(super) fn save_map(&self, encoded: Vec<u8>) {
        self.give(Job::Map(encoded));
    }

    pub(super) fn remove_map(&self) {
        self.give(Job::NoMap);
    }

    pub(super) fn save_state(&self, state: State) {
        self.give(Job::State(Box::new(state)));
    }

    pub(super) fn save_settings(&self, settings: Options) {
        self.give(Job::Settings(settings));
    }

    fn give(&self, job: Job) {
        if let Some(jobs) = &self.jobs {
            // The thread ends after its sender only.
            let _ = jobs.send(job);
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic there was reported by the panic hook.
            let _ = thread.join();
        }
    }
}

struct Writer {
    files: Files,
    /// A disk that is full is told once, not at every change.
    told: bool,
}

/// The last version of each file that waits. `Some(None)`: to be removed.
#[derive(Default)]
struct Pending {
    map: Option<Option<Vec<u8>>>,
    state: Option<Box<State>>,
    settings: Option<Options>,
}

impl Pending {
    fn add(&mut self, job: Job) {
        match job {
            Job::Map(encoded) => self.map = Some(Some(encoded)),
            Job::NoMap => self.map = Some(None),
            Job::State(state) => self.state = Some(state),
            Job::Settings(settings) => self.settings = Some(settings),
        }
    }
}

impl Writer {
    fn new(files: Files) -> Self {
        Self { files, told: false }
    }

    fn run(mut self, inbox: &Receiver<Job>) {
        while let Ok(first) = inbox.recv() {
            let mut pending = Pending::default();
            pending.add(first);
            inbox.try_iter().for_each(|job| pending.add(job));
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

    fn state(&mut self, state: Option<Box<State>>) -> io::Result<()> {
        state.map_or(Ok(()), |state| self.files.state.save(&serde_json::to_vec(&state)?))
    }

    fn settings(&mut self, settings: Option<Options>) -> io::Result<()> {
        settings.map_or(Ok(()), |settings| self.files.settings.save(&serde_json::to_vec_pretty(&settings)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state_dir::StateDir;

    #[test]
    fn everything_given_is_on_disk_after_the_drop_and_the_last_version_wins() {
        let directory = tempfile::tempdir().unwrap();
        let state_dir = StateDir::open(directory.path()).unwrap();
        let files =
            || Files { map: state_dir.map_cache(), state: state_dir.state(), settings: state_dir.settings() };
        let disk = Disk::start(files()).unwrap();
        let first = State::fresh();
        let boot = first.boot;
        disk.save_state(first.clone());
        (0..100u8).for_each(|version| disk.save_map(vec![version]));
        disk.save_state(first.started());
        drop(disk);
        let mut files = files();
        assert_eq!(files.state.load(State::decode).unwrap().boot, boot + 1);
        let number = |bytes: &[u8]| bytes.first().copied().ok_or("empty");
        assert_eq!(files.map.load(number), Some(99));
    }
}
