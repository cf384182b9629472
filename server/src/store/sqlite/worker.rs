//! A thread that owns one connection to the file, so that nothing of SQLite blocks the async runtime. Jobs run one after another; between
//! them, a worker that was given a chore does it at its interval.

use crate::store::{CALL_TIMEOUT, StoreError, observed, sqlite::SqliteError};
use rusqlite::Connection;
use std::{
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce(&mut Connection) + Send>;

/// What a worker does beside its jobs.
pub(crate) struct Chore {
    pub(crate) interval: Duration,
    pub(crate) run: Box<dyn FnMut(&Connection) + Send>,
}

/// Dropped, it waits for its thread: who closes the last connection leaves the whole database in one file.
pub(crate) struct Worker {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
    location: Arc<str>,
}

impl Worker {
    pub(crate) fn start(
        name: &str,
        location: Arc<str>,
        connection: Connection,
        chore: Option<Chore>,
    ) -> Result<Self, StoreError> {
        let (jobs, queue) = channel();
        let thread = std::thread::Builder::new().name(format!("sqlite-{name}"));
        let started = thread.spawn(move || run(connection, &queue, chore));
        let thread = started.map_err(|error| StoreError::unavailable(&location, error))?;
        Ok(Self { jobs: Some(jobs), thread: Some(thread), location })
    }

    /// Runs `job` on the thread. Whether it ran is unknown after a timeout.
    pub(crate) async fn call<T: Send + 'static>(
        &self,
        job: impl FnOnce(&mut Connection) -> Result<T, SqliteError> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.call_within(CALL_TIMEOUT, job).await
    }

    /// As [`Self::call`], for what may take longer.
    pub(crate) async fn call_within<T: Send + 'static>(
        &self,
        limit: Duration,
        job: impl FnOnce(&mut Connection) -> Result<T, SqliteError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.post(move |connection| {
            // Nobody waits any more: not worth beginning.
            if !answer.is_closed() {
                answer.send(job(connection)).ok();
            }
        })?;
        observed(self.wait_within(limit, answered)).await
    }

    /// Queues `job`, which says by itself what came of it.
    pub(crate) fn post(&self, job: impl FnOnce(&mut Connection) + Send + 'static) -> Result<(), StoreError> {
        let sent = self.jobs.as_ref().map(|jobs| jobs.send(Box::new(job)));
        match sent {
            Some(Ok(())) => Ok(()),
            Some(Err(_)) | None => Err(StoreError::unavailable(&self.location, "its thread has ended")),
        }
    }

    pub(crate) async fn wait<T>(
        &self,
        answered: oneshot::Receiver<Result<T, SqliteError>>,
    ) -> Result<T, StoreError> {
        self.wait_within(CALL_TIMEOUT, answered).await
    }

    async fn wait_within<T>(
        &self,
        limit: Duration,
        answered: oneshot::Receiver<Result<T, SqliteError>>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(limit, answered).await {
            Ok(Ok(result)) => result.map_err(|error| error.at(&self.location)),
            Ok(Err(_)) => Err(StoreError::unavailable(&self.location, "its thread has ended")),
            Err(_) => Err(StoreError::unavailable(&self.location, "it did not answer in time")),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs.take();
        if let Some(thread) = self.thread.take() {
            // A panic there was told by the panic itself.
            thread.join().ok();
        }
    }
}

fn run(mut connection: Connection, queue: &Receiver<Job>, mut chore: Option<Chore>) {
    let mut chore_at = Instant::now();
    loop {
        let job = match &mut chore {
            None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(chore) => {
                if chore_at <= Instant::now() {
                    (chore.run)(&connection);
                    chore_at = Instant::now() + chore.interval;
                }
                queue.recv_timeout(chore_at.saturating_duration_since(Instant::now()))
            }
        };
        match job {
            Ok(job) => job(&mut connection),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}
