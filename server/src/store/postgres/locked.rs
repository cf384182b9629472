//! The locked log: a connection of the pool inside a transaction that holds the cluster's row.

use crate::{
    cluster::{Change, Head},
    store::{
        CALL_TIMEOUT, LockedLog, StoreError, Tail,
        postgres::{error::PgError, log},
    },
};
use async_trait::async_trait;
use deadpool_postgres::Object;
use proto::time::UnixTime;

pub(crate) struct PostgresLock {
    tail: Tail,
    now: UnixTime,
    connection: InTransaction,
    location: String,
}

/// Unless the transaction was ended in order, the connection is closed, which rolls back, and does not return to the pool.
struct InTransaction(Option<Object>);

impl Drop for InTransaction {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            drop(Object::take(object));
        }
    }
}

impl PostgresLock {
    /// `None`: there is no cluster.
    pub(crate) async fn take(
        object: Object,
        location: String,
        known: Head,
    ) -> Result<Option<Self>, StoreError> {
        let connection = InTransaction(Some(object));
        let opened = match &connection.0 {
            Some(object) => tokio::time::timeout(CALL_TIMEOUT, open(object, known)).await,
            None => return Ok(None),
        };
        match opened {
            Ok(Ok(Some((tail, now)))) => Ok(Some(Self { tail, now, connection, location })),
            Ok(Ok(None)) => Ok(None),
            Ok(Err(error)) => Err(error.at(&location)),
            Err(_) => Err(StoreError::unavailable(&location, "it did not answer in time")),
        }
    }

    async fn end(&mut self, statement: &str) -> Result<(), PgError> {
        if let Some(object) = &self.connection.0 {
            object.batch_execute(statement).await?;
        }
        // In order: back to the pool.
        self.connection.0.take();
        Ok(())
    }

    async fn append(&mut self, change: &Change) -> Result<(), PgError> {
        if let Some(object) = &self.connection.0 {
            log::append(object, change).await?;
        }
        self.end("COMMIT").await
    }
}

async fn open(object: &Object, known: Head) -> Result<Option<(Tail, UnixTime)>, PgError> {
    object.batch_execute("BEGIN").await?;
    let Some(now) = log::lock(object).await? else { return Ok(None) };
    Ok(log::tail(object, known).await?.map(|tail| (tail, now)))
}

#[async_trait]
impl LockedLog for PostgresLock {
    fn tail(&self) -> &Tail {
        &self.tail
    }

    fn now(&self) -> UnixTime {
        self.now
    }

    async fn commit(mut self: Box<Self>, change: &Change) -> Result<(), StoreError> {
        match tokio::time::timeout(CALL_TIMEOUT, self.append(change)).await {
            Ok(result) => result.map_err(|error| error.at(&self.location)),
            Err(_) => Err(StoreError::unavailable(&self.location, "it did not answer in time")),
        }
    }

    async fn unlock(mut self: Box<Self>) {
        // Where this fails the connection is closed, which unlocks as well.
        tokio::time::timeout(CALL_TIMEOUT, self.end("ROLLBACK")).await.ok();
    }
}
