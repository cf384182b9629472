//! The locked log: the log's thread stays inside an immediate transaction until it is told what to append, or that nothing comes.

use crate::{
    cluster::{Change, Head},
    store::{
        CALL_TIMEOUT, LockedLog, StoreError, Tail,
        sqlite::{SqliteError, log, worker::Worker},
    },
};
use async_trait::async_trait;
use proto::time::UnixTime;
use rusqlite::{Connection, TransactionBehavior};
use std::sync::{
    Arc,
    mpsc::{Receiver, Sender, channel},
};
use tokio::sync::oneshot;

type Answer<T> = oneshot::Sender<Result<T, SqliteError>>;

struct Append {
    change: Change,
    done: Answer<()>,
}

pub(crate) struct SqliteLock {
    tail: Tail,
    now: UnixTime,
    append: Sender<Append>,
    location: Arc<str>,
}

impl SqliteLock {
    /// `None`: there is no cluster.
    pub(crate) async fn take(
        worker: &Worker,
        location: &Arc<str>,
        known: Head,
    ) -> Result<Option<Self>, StoreError> {
        let (append, appended) = channel();
        let (opened, is_opened) = oneshot::channel();
        worker.post(move |connection| {
            if !opened.is_closed() {
                hold(connection, known, opened, &appended);
            }
        })?;
        let opened = worker.wait(is_opened).await?;
        Ok(opened.map(|(tail, now)| Self { tail, now, append, location: location.clone() }))
    }
}

/// Runs on the log's thread. Whoever took the lock and neither appends nor drops it loses it after a while.
fn hold(
    connection: &mut Connection,
    known: Head,
    opened: Answer<Option<(Tail, UnixTime)>>,
    appended: &Receiver<Append>,
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
    if let Ok(Append { change, done }) = appended.recv_timeout(CALL_TIMEOUT) {
        let result = log::append(&transaction, &change).and_then(|()| Ok(transaction.commit()?));
        done.send(result).ok();
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

    async fn commit(self: Box<Self>, change: &Change) -> Result<(), StoreError> {
        let lost = || StoreError::unavailable(&self.location, "the lock on its log was lost");
        let (done, is_done) = oneshot::channel();
        self.append.send(Append { change: change.clone(), done }).map_err(|_| lost())?;
        match tokio::time::timeout(CALL_TIMEOUT, is_done).await {
            Ok(Ok(result)) => result.map_err(|error| error.at(&self.location)),
            Ok(Err(_)) | Err(_) => Err(lost()),
        }
    }

    async fn unlock(self: Box<Self>) {}
}
