//! Postgres: any number of servers, on any machines. Writes lock the cluster's one row; notifications tell the others. The pool and the listening connection
//! find a new primary by themselves where the URL names several hosts.

pub(crate) mod connect;
mod error;
mod holders;
mod import;
mod jobs;
mod listen;
mod live;
mod locked;
mod log;
mod pool;
mod root;
mod schema;
mod sql;
mod target;
#[cfg(test)]
mod tests;
mod tls;

pub(crate) use listen::hint as read_hint;
pub use target::Target;

use crate::{
    cluster::{ChangeId, Founding, Head, Snapshot, StoredRoot},
    store::{
        Attendance, CALL_TIMEOUT, Erased, Hint, HostState, Imported, Incarnation, Job, JobLock, JobRow,
        LeaseAnswer, LiveServer, LockedLog, Missing, Occupied, SeenSession, ServerRow, SessionRow, Store,
        StoreError, StoreStatus, Tail, WHOLE_TIMEOUT, observed,
    },
};
use async_trait::async_trait;
use connect::{Connected, Hosts};
use error::PgError;
use locked::PostgresLock;
use pool::{Lane, Pools};
use proto::{session::ServerId, statement::NodeId};
use sql::query;
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};
use tokio::{sync::broadcast, task::AbortHandle, time::Instant};
use tokio_postgres::Client;

const HINTS_KEPT: usize = 1024;

/// A cluster in Postgres.
pub struct PostgresStore {
    pools: Arc<Pools>,
    hints: broadcast::Sender<Hint>,
    /// Set by the listener.
    hearing: Arc<AtomicBool>,
    tasks: Vec<AbortHandle>,
}

impl PostgresStore {
    /// # Errors
    /// [`StoreError`]: see [`crate::store::open`].
    pub async fn open(target: &Target, missing: Missing) -> Result<Self, StoreError> {
        let hosts = Arc::new(Hosts::new(target)?);
        let first = schema::prepare(&hosts, missing).await?;
        let (hints, _) = broadcast::channel(HINTS_KEPT);
        let hearing = Arc::new(AtomicBool::new(false));
        let mut tasks = Vec::new();
        let pools = match missing {
            Missing::Create => {
                let listener = tokio::spawn(listen::run(hosts.clone(), hints.clone(), hearing.clone()));
                tasks.push(listener.abort_handle());
                Pools::new(hosts, target.pool_size, first)?
            }
            Missing::Refuse => Pools::with_one_lane(hosts, target.pool_size, first)?,
        };
        let pools = Arc::new(pools);
        let scouted = pools.clone();
        tasks.push(tokio::spawn(async move { scouted.scout().await }).abort_handle());
        Ok(Self { pools, hints, hearing, tasks })
    }

    /// Runs `call` on a connection; everything about it is within the deadline.
    async fn call<T>(
        &self,
        lane: Lane,
        call: impl AsyncFnOnce(&mut Connected) -> Result<T, PgError>,
    ) -> Result<T, StoreError> {
        observed(self.pools.run(lane, Instant::now() + CALL_TIMEOUT, call)).await
    }

    fn no_cluster(&self) -> StoreError {
        StoreError::NoCluster { location: self.location().to_owned() }
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

#[async_trait]
impl Store for PostgresStore {
    fn location(&self) -> &str {
        &self.pools.hosts.location
    }

    async fn found(&self, founding: &Founding, first: ChangeId) -> Result<bool, StoreError> {
        self.call(Lane::Shared, async |client| log::found(client, founding, first).await).await
    }

    async fn snapshot_and_time(&self) -> Result<(Snapshot, u64), StoreError> {
        let read = async |client: &mut Connected| log::snapshot(client).await;
        let read = observed(self.pools.run(Lane::Reserved, Instant::now() + WHOLE_TIMEOUT, read)).await?;
        read.ok_or_else(|| self.no_cluster())
    }

    async fn tail(&self, known: Head) -> Result<Tail, StoreError> {
        let tail = self.call(Lane::Reserved, async |client| log::tail(&**client, known).await).await?;
        tail.ok_or_else(|| self.no_cluster())
    }

    async fn put_root(&self, was: &StoredRoot, root: &StoredRoot) -> Result<bool, StoreError> {
        self.call(Lane::Shared, async |client| root::put(client, was, root).await).await
    }

    async fn erase_former_root(&self) -> Result<Erased, StoreError> {
        self.call(Lane::Shared, async |client| root::erase_former(client).await).await
    }

    async fn import(&self, snapshot: &Snapshot, occupied: Occupied) -> Result<Imported, StoreError> {
        let import = async |client: &mut Connected| import::import(client, snapshot, occupied).await;
        observed(self.pools.run(Lane::Shared, Instant::now() + WHOLE_TIMEOUT, import)).await
    }

    async fn moved_to(&self) -> Result<Option<String>, StoreError> {
        self.call(Lane::Shared, async |client| log::moved_to(&**client).await).await
    }

    async fn set_moved(&self, to: Option<&str>) -> Result<bool, StoreError> {
        self.call(Lane::Shared, async |client| import::set_moved(client, to).await).await
    }

    async fn lock(&self, known: Head) -> Result<Box<dyn LockedLog>, StoreError> {
        let locked = observed(PostgresLock::take(self.pools.clone(), known)).await?;
        locked.map(|locked| Box::new(locked) as Box<dyn LockedLog>).ok_or_else(|| self.no_cluster())
    }

    async fn now_ms(&self) -> Result<u64, StoreError> {
        self.call(Lane::Shared, async |client| live::now_ms(&**client).await).await
    }

    async fn renew_lease(&self, server: &ServerRow, ttl: Duration) -> Result<LeaseAnswer, StoreError> {
        self.call(Lane::Reserved, async |client| live::renew_lease(client, server, ttl).await).await
    }

    async fn inherit_lease(&self, server: &ServerRow, from: Incarnation) -> Result<(), StoreError> {
        self.call(Lane::Shared, async |client| live::inherit_lease(&**client, server, from).await).await
    }

    async fn release_lease(&self, server: &ServerRow) -> Result<(), StoreError> {
        self.call(Lane::Shared, async |client| live::release_lease(client, server).await).await
    }

    async fn live_servers(&self) -> Result<Vec<LiveServer>, StoreError> {
        self.call(Lane::Reserved, async |client| live::live_servers(&**client).await).await
    }

    async fn put_sessions(&self, rows: &[SessionRow]) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        self.call(Lane::Shared, async |client| live::put_sessions(client, rows).await).await
    }

    async fn sessions(&self, after: u64) -> Result<(Vec<SeenSession>, u64), StoreError> {
        self.call(Lane::Shared, async |client| live::sessions(&**client, after).await).await
    }

    async fn attendance(&self, nodes: &[NodeId]) -> Result<Attendance, StoreError> {
        self.call(Lane::Shared, async |client| jobs::attendance(&**client, nodes).await).await
    }

    async fn begin_job(
        &self,
        job: Job,
        server: &ServerRow,
        ttl: Duration,
        every: Duration,
    ) -> Result<Option<JobLock>, StoreError> {
        self.call(Lane::Shared, async |client| jobs::begin(&**client, job, server, (ttl, every)).await).await
    }

    async fn end_job(&self, lock: JobLock) -> Result<(), StoreError> {
        self.call(Lane::Shared, async |client| jobs::end(&**client, lock).await).await
    }

    async fn jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        self.call(Lane::Shared, async |client| jobs::list(&**client).await).await
    }

    async fn renew_holders(&self, nodes: &[NodeId], ttl: Duration) -> Result<(), StoreError> {
        self.call(Lane::Reserved, async |client| holders::renew(&**client, nodes, ttl).await).await
    }

    async fn release_holder(&self, node: NodeId) -> Result<(), StoreError> {
        self.call(Lane::Shared, async |client| holders::release(&**client, node).await).await
    }

    async fn holder_leases(&self, nodes: &[NodeId]) -> Result<BTreeMap<NodeId, Duration>, StoreError> {
        self.call(Lane::Shared, async |client| holders::remaining(&**client, nodes).await).await
    }

    async fn send_signals(&self, signals: &[(ServerId, Vec<u8>)]) -> Result<(), StoreError> {
        if signals.is_empty() {
            return Ok(());
        }
        self.call(Lane::Shared, async |client| live::send_signals(client, signals).await).await
    }

    async fn take_signals(&self, me: ServerId) -> Result<Vec<Vec<u8>>, StoreError> {
        self.call(Lane::Shared, async |client| live::take_signals(client, me).await).await
    }

    fn wake(&self) -> broadcast::Receiver<Hint> {
        self.hints.subscribe()
    }

    fn is_hearing(&self) -> bool {
        self.hearing.load(Relaxed)
    }

    fn connections(&self) -> Option<(usize, usize)> {
        Some(self.pools.usage())
    }

    fn host(&self) -> Option<String> {
        self.pools.hosts.current()
    }

    async fn hosts(&self) -> Vec<HostState> {
        self.pools.hosts.probe().await
    }

    async fn status(&self) -> Result<StoreStatus, StoreError> {
        let (head, schema, version) = self.call(Lane::Shared, async |client| status(client).await).await?;
        Ok(StoreStatus {
            kind: "postgres",
            version,
            location: self.location().to_owned(),
            head: head.ok_or_else(|| self.no_cluster())?,
            schema: schema.unwrap_or(0),
        })
    }
}

async fn status(client: &Client) -> Result<(Option<Head>, Option<u32>, String), PgError> {
    let version = query(client, "SELECT current_setting('server_version')", &[]);
    let (head, schema, version) =
        tokio::try_join!(log::head(client), schema::found_version(client), version)?;
    let version = version.first().map(|row| row.try_get(0)).transpose()?.unwrap_or_default();
    Ok((head, schema, version))
}
