//! The embedded database: one file, which several servers of one machine may share. Three connections, each on a thread of its own: the log (durable), what lives
//! beside it (leases, presence, signals), and reads. The reader also watches `PRAGMA data_version`, which tells of commits by other connections.

mod holders;
mod import;
mod jobs;
mod live;
mod locked;
mod log;
mod root;
mod schema;
mod worker;

use crate::{
    cluster::{ChangeId, Founding, Head, Snapshot, StoredRoot},
    store::{
        Attendance, Erased, Hint, Imported, Incarnation, Job, JobLock, JobRow, LeaseAnswer, LiveServer,
        LockedLog, Missing, Occupied, SeenSession, ServerRow, SessionRow, Store, StoreError, StoreStatus,
        Tail, WHOLE_TIMEOUT,
    },
};
use async_trait::async_trait;
use proto::{session::ServerId, statement::NodeId};
use rusqlite::Connection;
use schema::Durability;
use std::{collections::BTreeMap, path::Path, sync::Arc, time::Duration};
use tokio::sync::broadcast;
use worker::{Chore, Worker};

const WATCH_INTERVAL: Duration = Duration::from_millis(25);
const HINTS_KEPT: usize = 256;

/// A cluster in a SQLite file.
pub struct SqliteStore {
    location: Arc<str>,
    log: Worker,
    live: Worker,
    reads: Worker,
    hints: broadcast::Sender<Hint>,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum SqliteError {
    #[error(transparent)]
    Sql(#[from] rusqlite::Error),
    #[error("{0}")]
    Unreadable(String),
    #[error("moved to {0}")]
    Moved(String),
}

impl SqliteError {
    fn unreadable(error: impl ToString) -> Self {
        Self::Unreadable(error.to_string())
    }

    fn at(self, location: &str) -> StoreError {
        use rusqlite::ErrorCode::{
            CannotOpen, DatabaseBusy, DatabaseLocked, DiskFull, PermissionDenied, ReadOnly, SystemIoFailure,
        };
        match &self {
            Self::Unreadable(reason) => StoreError::corrupt(location, reason),
            Self::Moved(to) => StoreError::Moved { location: location.to_owned(), to: to.clone() },
            Self::Sql(error) => match error.sqlite_error_code() {
                Some(
                    CannotOpen | DatabaseBusy | DatabaseLocked | DiskFull | PermissionDenied | ReadOnly
                    | SystemIoFailure,
                ) => StoreError::unavailable(location, error),
                _ => StoreError::failed(location, error),
            },
        }
    }
}

impl SqliteStore {
    /// # Errors
    /// [`StoreError`]: see [`crate::store::open`].
    pub async fn open(path: &Path, missing: Missing) -> Result<Self, StoreError> {
        let path = path.to_owned();
        let location: Arc<str> = format!("sqlite:{}", path.display()).into();
        let ended = StoreError::unavailable(&location, "opening it was interrupted");
        let opened = tokio::task::spawn_blocking(move || Self::open_blocking(&path, location, missing)).await;
        opened.unwrap_or(Err(ended))
    }

    fn open_blocking(path: &Path, location: Arc<str>, missing: Missing) -> Result<Self, StoreError> {
        schema::prepare(path, &location, missing)?;
        let connect =
            |durability| schema::connect(path, durability).map_err(|error: SqliteError| error.at(&location));
        let (hints, _) = broadcast::channel(HINTS_KEPT);
        let watch = Chore { interval: WATCH_INTERVAL, run: watch_commits(hints.clone()) };
        let start =
            |name, durability, chore| Worker::start(name, location.clone(), connect(durability)?, chore);
        let store = Self {
            log: start("log", Durability::PowerLoss, None)?,
            live: start("live", Durability::Crash, None)?,
            reads: start("reads", Durability::PowerLoss, Some(watch))?,
            hints,
            location: location.clone(),
        };
        Ok(store)
    }

    fn no_cluster(&self) -> StoreError {
        StoreError::NoCluster { location: self.location.to_string() }
    }
}

/// The number changes when another connection, of this process or another, has committed. What it was is not told.
fn watch_commits(hints: broadcast::Sender<Hint>) -> Box<dyn FnMut(&Connection) + Send> {
    let mut seen: Option<i64> = None;
    Box::new(move |connection| {
        // A file that cannot be read is noticed, and told, by whoever calls.
        let version = connection.pragma_query_value(None, "data_version", |row| row.get(0)).ok();
        if version.is_some() && version != seen {
            seen = version;
            // Nobody may be listening yet.
            hints.send(Hint::Anything).ok();
        }
    })
}

#[async_trait]
impl Store for SqliteStore {
    fn location(&self) -> &str {
        &self.location
    }

    async fn found(&self, founding: &Founding, first: ChangeId) -> Result<bool, StoreError> {
        let founding = founding.clone();
        self.log.call(move |connection| log::found(connection, &founding, first)).await
    }

    async fn snapshot_and_time(&self) -> Result<(Snapshot, u64), StoreError> {
        let read = |connection: &mut Connection| Ok((log::snapshot(connection)?, live::now_ms(connection)?));
        let (snapshot, now_ms) = self.reads.call_within(WHOLE_TIMEOUT, read).await?;
        Ok((snapshot.ok_or_else(|| self.no_cluster())?, now_ms))
    }

    async fn tail(&self, known: Head) -> Result<Tail, StoreError> {
        let tail = self.reads.call(move |connection| log::tail(connection, known)).await?;
        tail.ok_or_else(|| self.no_cluster())
    }

    async fn put_root(&self, was: &StoredRoot, root: &StoredRoot) -> Result<bool, StoreError> {
        let (was, root) = (was.clone(), root.clone());
        self.log.call(move |connection| root::put(connection, &was, &root)).await
    }

    async fn erase_former_root(&self) -> Result<Erased, StoreError> {
        self.log.call(root::erase_former).await
    }

    async fn import(&self, snapshot: &Snapshot, occupied: Occupied) -> Result<Imported, StoreError> {
        let snapshot = snapshot.clone();
        let import = move |connection: &mut Connection| import::import(connection, &snapshot, occupied);
        self.log.call_within(WHOLE_TIMEOUT, import).await
    }

    async fn moved_to(&self) -> Result<Option<String>, StoreError> {
        self.reads.call(|connection| log::moved_to(connection)).await
    }

    async fn set_moved(&self, to: Option<&str>) -> Result<bool, StoreError> {
        let to = to.map(str::to_owned);
        self.log.call(move |connection| import::set_moved(connection, to.as_deref())).await
    }

    async fn lock(&self, known: Head) -> Result<Box<dyn LockedLog>, StoreError> {
        let locked = locked::SqliteLock::take(&self.log, &self.location, known).await?;
        locked.map(|locked| Box::new(locked) as Box<dyn LockedLog>).ok_or_else(|| self.no_cluster())
    }

    async fn now_ms(&self) -> Result<u64, StoreError> {
        self.reads.call(|connection| live::now_ms(connection)).await
    }

    async fn renew_lease(&self, server: &ServerRow, ttl: Duration) -> Result<LeaseAnswer, StoreError> {
        let server = server.clone();
        self.live.call(move |connection| live::renew_lease(connection, &server, ttl)).await
    }

    async fn inherit_lease(&self, server: &ServerRow, from: Incarnation) -> Result<(), StoreError> {
        let (id, to) = (server.id, server.incarnation);
        self.live.call(move |connection| live::inherit_lease(connection, id, from, to)).await
    }

    async fn release_lease(&self, server: &ServerRow) -> Result<(), StoreError> {
        let (id, incarnation) = (server.id, server.incarnation);
        self.live.call(move |connection| live::release_lease(connection, id, incarnation)).await
    }

    async fn live_servers(&self) -> Result<Vec<LiveServer>, StoreError> {
        self.reads.call(|connection| live::live_servers(connection)).await
    }

    async fn put_sessions(&self, rows: &[SessionRow]) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let rows = rows.to_vec();
        self.live.call(move |connection| live::put_sessions(connection, &rows)).await
    }

    async fn sessions(&self, after: u64) -> Result<(Vec<SeenSession>, u64), StoreError> {
        self.reads.call(move |connection| live::sessions(connection, after)).await
    }

    async fn attendance(&self, nodes: &[NodeId]) -> Result<Attendance, StoreError> {
        let nodes = nodes.to_vec();
        let read = move |connection: &mut Connection| jobs::attendance(&*connection.transaction()?, &nodes);
        self.reads.call(read).await
    }

    async fn begin_job(
        &self,
        job: Job,
        server: &ServerRow,
        ttl: Duration,
        every: Duration,
    ) -> Result<Option<JobLock>, StoreError> {
        let holder = (server.id, server.incarnation);
        self.live.call(move |connection| jobs::begin(connection, job, holder, (ttl, every))).await
    }

    async fn end_job(&self, lock: JobLock) -> Result<(), StoreError> {
        self.live.call(move |connection| jobs::end(connection, lock)).await
    }

    async fn jobs(&self) -> Result<Vec<JobRow>, StoreError> {
        self.reads.call(|connection| jobs::list(connection)).await
    }

    async fn renew_holders(&self, nodes: &[NodeId], ttl: Duration) -> Result<(), StoreError> {
        let nodes = nodes.to_vec();
        self.live.call(move |connection| holders::renew(connection, &nodes, ttl)).await
    }

    async fn release_holder(&self, node: NodeId) -> Result<(), StoreError> {
        self.live.call(move |connection| holders::release(connection, node)).await
    }

    async fn holder_leases(&self, nodes: &[NodeId]) -> Result<BTreeMap<NodeId, Duration>, StoreError> {
        let nodes = nodes.to_vec();
        self.reads.call(move |connection| holders::remaining(connection, &nodes)).await
    }

    async fn send_signals(&self, signals: &[(ServerId, Vec<u8>)]) -> Result<(), StoreError> {
        if signals.is_empty() {
            return Ok(());
        }
        let signals = signals.to_vec();
        self.live.call(move |connection| live::send_signals(connection, &signals)).await
    }

    async fn take_signals(&self, me: ServerId) -> Result<Vec<Vec<u8>>, StoreError> {
        if !self.reads.call(move |connection| live::has_signals(connection, me)).await? {
            return Ok(Vec::new());
        }
        self.live.call(move |connection| live::take_signals(connection, me)).await
    }

    fn wake(&self) -> broadcast::Receiver<Hint> {
        self.hints.subscribe()
    }

    async fn status(&self) -> Result<StoreStatus, StoreError> {
        let read = |connection: &mut Connection| {
            Ok((log::read_head(connection)?, schema::found_version(connection)?))
        };
        let (head, schema) = self.reads.call(read).await?;
        Ok(StoreStatus {
            kind: "sqlite",
            version: rusqlite::version().to_owned(),
            location: self.location.to_string(),
            head: head.ok_or_else(|| self.no_cluster())?,
            schema: schema.unwrap_or(0),
        })
    }
}
