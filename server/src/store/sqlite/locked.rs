//! The locked log: the log's thread stays inside an immediate transaction until it is told what to append, or that nothing comes.

use crate::{
    cluster::{Change, Head, StoredRoot},
    store::{
        Attendance, CALL_TIMEOUT, JobLock, LockedLog, StoreError, Tail,
        sqlite::{SqliteError, holders, jobs, log, root, worker::Worker},
    },
};
use async_trait::async_trait;
use proto::{statement::NodeId, time::UnixTime};
use rusqlite::{Connection, Transaction, TransactionBehavior};
use std::{
    sync::{
        Arc,
        mpsc::{Receiver, Sender, channel},
    },
    time::Duration,
};
use tokio::sync::oneshot;

type Answer<T> = oneshot::Sender<Result<T, SqliteError>>;

/// What is done inside the transaction.
enum Step {
    Ask(Box<dyn FnOnce(&Transaction<'_>) + Send>),
    Append { change: Change, done: Answer<()> },
}

pub(crate) struct SqliteLock {
    tail: Tail,
    now: UnixTime,
    steps: Sender<Step>,
    location: Arc<str>,
}

impl SqliteLock {
    /// `None`: there is no cluster.
    pub(crate) async fn take(
        worker: &Worker,
        location: &Arc<str>,
        known: Head,
    ) -> Result<Option<Self>, StoreError> {
        let (steps, taken) = channel();
        let (opened, is_opened) = oneshot::channel();
        worker.post(move |connection| {
            if !opened.is_closed() {
                hold(connection, known, opened, &taken);
            }
        })?;
        let opened = worker.wait(is_opened).await?;
        Ok(opened.map(|(tail, now)| Self { tail, now, steps, location: location.clone() }))
    }

    fn lost(&self) -> StoreError {
        StoreError::unavailable(&self.location, "the lock on its log was lost")
    }

    async fn answered<T>(&self, answer: oneshot::Receiver<Result<T, SqliteError>>) -> Result<T, StoreError> {
        match tokio::time::timeout(CALL_TIMEOUT, answer).await {
            Ok(Ok(result)) => result.map_err(|error| error.at(&self.location)),
            Ok(Err(_)) | Err(_) => Err(self.lost()),
        }
    }

    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&Transaction<'_>) -> Result<T, SqliteError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let (done, is_done) = oneshot::channel();
        let step = Step::Ask(Box::new(move |transaction| {
            // Whoever asked may have gone.
            done.send(question(transaction)).ok();
        }));
        self.steps.send(step).map_err(|_| self.lost())?;
        self.answered(is_done).await
    }
}

/// Runs on the log's thread. Whoever took the lock and neither appends nor drops it loses it after a while.
fn hold(
    connection: &mut Connection,
    known: Head,
    opened: Answer<Option<(Tail, UnixTime)>>,
    steps: &Receiver<Step>,
) {
    let begun = connection.transaction_with_behavior(TransactionBehavior::Immediate);
    let transaction = match begun {
        Ok(transaction) => transaction,
        Err(error) => {
            opened.send(Err(error.into())).ok();
            return;
        }
    };
    let look = || match log::read_tail(&transaction, known)? {
        Some(tail) => {
            log::check_not_moved(&transaction)?;
            Ok(Some((tail, log::now(&transaction)?)))
        }
        None => Ok(None),
    };
    if opened.send(look()).is_err() {
        return;
    }
    while let Ok(step) = steps.recv_timeout(CALL_TIMEOUT) {
        match step {
            Step::Ask(question) => question(&transaction),
            Step::Append { change, done } => {
                let result = log::append(&transaction, &change).and_then(|()| Ok(transaction.commit()?));
                done.send(result).ok();
                return;
            }
        }
    }
}

#[async_trait]
impl LockedLog for SqliteLock {
    fn tail(&self) -> &Tail {
        &self.tail
    }

    fn now(&self) -> UnixTime {
        self.now
    }

    async fn keep_job(&mut self, lock: JobLock, ttl: Duration) -> Result<bool, StoreError> {
        self.ask(move |transaction| jobs::keep(transaction, lock, ttl)).await
    }

    async fn attendance(&mut self, nodes: &[NodeId]) -> Result<Attendance, StoreError> {
        let nodes = nodes.to_vec();
        self.ask(move |transaction| jobs::attendance(transaction, &nodes)).await
    }

    async fn take_over(
        &mut self,
        from: Option<NodeId>,
        to: NodeId,
        ttl: Duration,
    ) -> Result<bool, StoreError> {
        self.ask(move |transaction| holders::take_over(transaction, (from, to), ttl)).await
    }

    async fn put_root(&mut self, root: &StoredRoot) -> Result<(), StoreError> {
        let root = root.clone();
        self.ask(move |transaction| root::set(transaction, &root)).await
    }

    async fn commit(self: Box<Self>, change: &Change) -> Result<(), StoreError> {
        let (done, is_done) = oneshot::channel();
        let step = Step::Append { change: change.clone(), done };
        self.steps.send(step).map_err(|_| self.lost())?;
        self.answered(is_done).await
    }

    async fn unlock(self: Box<Self>) {}
}
