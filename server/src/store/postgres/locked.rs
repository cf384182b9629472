//! The locked log: a connection of the pool inside a transaction that holds the cluster's row. Two round trips: one that locks and catches up, one that
//! appends and commits.

use crate::{
    cluster::{Change, Head, StoredRoot},
    store::{
        Attendance, CALL_TIMEOUT, JobLock, LockedLog, StoreError, Tail,
        postgres::{
            connect::Connected,
            error::PgError,
            holders, jobs, log,
            pool::{Held, Lane, Pools},
            root, sql,
        },
    },
};
use async_trait::async_trait;
use proto::{statement::NodeId, time::UnixTime};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tokio_postgres::Client;

pub(crate) struct PostgresLock {
    tail: Tail,
    now: UnixTime,
    /// Closed when dropped, which rolls back.
    held: Held,
    pools: Arc<Pools>,
}

impl PostgresLock {
    /// `None`: there is no cluster.
    pub(crate) async fn take(pools: Arc<Pools>, known: Head) -> Result<Option<Self>, StoreError> {
        let deadline = Instant::now() + CALL_TIMEOUT;
        let (mut held, is_kept) = pools.take(Lane::Shared, deadline).await?;
        let mut opened = pools.on(&mut held, deadline, async |client| open(client, known).await).await;
        if is_kept && opened.as_ref().is_err_and(PgError::is_of_dead_connection) {
            drop(held);
            (held, _) = pools.take(Lane::Shared, deadline).await?;
            opened = pools.on(&mut held, deadline, async |client| open(client, known).await).await;
        }
        match opened {
            Ok(Some((tail, now))) => Ok(Some(Self { tail, now, held, pools })),
            Ok(None) => Ok(None),
            Err(error) => Err(error.at(&pools.hosts.location)),
        }
    }

    fn deadline() -> Instant {
        Instant::now() + CALL_TIMEOUT
    }

    /// Waits for what runs inside the transaction.
    async fn inside<T>(
        &mut self,
        call: impl AsyncFnOnce(&mut Connected) -> Result<T, PgError>,
    ) -> Result<T, StoreError> {
        let Self { held, pools, tail: _, now: _ } = self;
        pools.on(held, Self::deadline(), call).await.map_err(|error| error.at(&pools.hosts.location))
    }
}

/// Locks, and reads behind the lock.
async fn open(client: &Client, known: Head) -> Result<Option<(Tail, UnixTime)>, PgError> {
    let begun = async { Ok::<_, PgError>(client.batch_execute("BEGIN").await?) };
    // Polled in this order, so sent in this order.
    let (begun, now, tail) = tokio::join!(biased; begun, log::lock(client), log::tail(client, known));
    begun?;
    let Some(now) = now? else { return Ok(None) };
    Ok(tail?.map(|tail| (tail, now)))
}

#[async_trait]
impl LockedLog for PostgresLock {
    fn tail(&self) -> &Tail {
        &self.tail
    }

    fn now(&self) -> UnixTime {
        self.now
    }

    async fn keep_job(&mut self, lock: JobLock, ttl: Duration) -> Result<bool, StoreError> {
        self.inside(async |client| jobs::keep(&**client, lock, ttl).await).await
    }

    async fn attendance(&mut self, nodes: &[NodeId]) -> Result<Attendance, StoreError> {
        self.inside(async |client| jobs::attendance_held(&**client, nodes).await).await
    }

    async fn take_over(
        &mut self,
        from: Option<NodeId>,
        to: NodeId,
        ttl: Duration,
    ) -> Result<bool, StoreError> {
        self.inside(async |client| holders::take_over(&**client, (from, to), ttl).await).await
    }

    async fn put_root(&mut self, root: &StoredRoot) -> Result<(), StoreError> {
        self.inside(async |client| root::set(client, root).await).await
    }

    async fn commit(self: Box<Self>, change: &Change) -> Result<(), StoreError> {
        let Self { mut held, pools, tail: _, now: _ } = *self;
        let commit = async |client: &mut Connected| sql::committed(client, log::append(client, change)).await;
        let committed = pools.on(&mut held, Self::deadline(), commit).await;
        if committed.is_ok() {
            held.give_back();
        }
        committed.map_err(|error| error.at(&pools.hosts.location))
    }

    async fn unlock(self: Box<Self>) {
        let Self { mut held, pools, tail: _, now: _ } = *self;
        let rollback = async |client: &mut Connected| Ok(client.batch_execute("ROLLBACK").await?);
        // Where this fails the connection is closed, which unlocks as well.
        if pools.on(&mut held, Self::deadline(), rollback).await.is_ok() {
            held.give_back();
        }
    }
}
