//! Where the cluster is kept: one trait, two databases. The log of changes is the truth, and its one order comes from one locked row. Beside it,
//! with the database's own clock: leases of servers, presence, and a mailbox of signals between servers.
//!
//! A store decides nothing about the cluster. Every call has a deadline and can be dropped at any await; what it had begun is then undone.

#[cfg(test)]
mod contract;
mod error;
mod live;
mod log;
mod postgres;
mod sqlite;
#[cfg(test)]
pub(crate) mod testing;
mod url;

pub use error::StoreError;
pub use live::{
    Attendance, Degraded, HealthReport, HostRole, HostState, Incarnation, Job, JobLock, JobRow, LastSeen,
    LeaseAnswer, LiveServer, SeenSession, ServerReport, ServerRow, SessionRow,
};
pub(crate) use live::{readable_report, readable_urls};
pub use log::{Lost, Tail};
pub(crate) use postgres::read_hint;
pub use postgres::{PostgresStore, Target};
pub use sqlite::SqliteStore;
pub use url::{DatabaseUrl, InvalidDatabaseUrl};

use crate::{
    cluster::{Change, ChangeId, Founding, Head, Snapshot, StoredRoot, WrappedRoot},
    metrics::QUERY_SECONDS,
};
use async_trait::async_trait;
use proto::{
    root::{RootKey, RootSecret},
    session::ServerId,
    statement::NodeId,
    time::UnixTime,
};
use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::broadcast;

/// No call takes longer: what has not answered by then counts as away.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(5);
/// But a large cluster as a whole, in or out. Where a part of it may be told from silence, silence is given up after [`CALL_TIMEOUT`].
pub(crate) const WHOLE_TIMEOUT: Duration = Duration::from_secs(300);
/// Changes of the log that are kept for followers that fell behind.
pub(crate) const CHANGES_KEPT: u64 = 10_000;
/// Signals that wait for one server at most; what comes on top is dropped.
pub(crate) const SIGNALS_KEPT: i64 = 10_000;
/// A signal that was not taken by then is of no use any more.
pub(crate) const SIGNAL_LIFETIME: Duration = Duration::from_secs(10);

/// Whether a database without a cluster gets one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// Make it: what `server run` does.
    Create,
    /// Refuse: a command on a mistyped URL must not make a second cluster. A command does one thing at a time and hears no hints.
    Refuse,
}

/// Opens the database. Where it may be created, its schema is brought up to date.
///
/// # Errors
/// [`StoreError`]: unreachable, of another schema than this program's, or without a cluster where that is refused.
pub async fn open(url: &DatabaseUrl, missing: Missing) -> Result<Arc<dyn Store>, StoreError> {
    match url {
        DatabaseUrl::Sqlite(path) => Ok(Arc::new(SqliteStore::open(path, missing).await?)),
        DatabaseUrl::Postgres(target) => Ok(Arc::new(PostgresStore::open(target, missing).await?)),
    }
}

/// What to do with a cluster that a database has already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occupied {
    Refuse,
    /// It is gone then.
    Replace,
}

/// Whether a root that was overwritten is gone from the database's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Erased {
    /// It was gone.
    Before,
    Now,
    /// A reader stands in the way: later.
    HeldUp,
    /// The database's role may not do it.
    NotAllowed,
}

/// What came of an import.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Imported {
    Done,
    /// There is a cluster already.
    Occupied,
    /// Servers hold leases on the one that was to be replaced.
    InUse {
        servers: u64,
    },
}

#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// For messages: where it is, without password.
    fn location(&self) -> &str;

    /// Makes the cluster unless there is one; of two at once one wins. Returns whether it was this one.
    async fn found(&self, founding: &Founding, first: ChangeId) -> Result<bool, StoreError>;

    /// The whole state, as of one moment.
    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        Ok(self.snapshot_and_time().await?.0)
    }

    /// As [`Store::snapshot`], with the database's clock, milliseconds since 1970.
    async fn snapshot_and_time(&self) -> Result<(Snapshot, u64), StoreError>;

    /// What the log has after `known`.
    async fn tail(&self, known: Head) -> Result<Tail, StoreError>;

    /// Keeps the root in another form: wrapped, or in the clear. Unless `was` is no longer how it is kept; returns whether it was done.
    /// [`Store::erase_former_root`] is to follow.
    async fn put_root(&self, was: &StoredRoot, root: &StoredRoot) -> Result<bool, StoreError>;

    /// Has what the present root overwrote erased from the database's file as well, where it is not known to be. May be called at any time, by any number.
    async fn erase_former_root(&self) -> Result<Erased, StoreError>;

    /// Puts a whole cluster in, all of it or nothing. The snapshot must have been checked.
    async fn import(&self, snapshot: &Snapshot, occupied: Occupied) -> Result<Imported, StoreError>;

    /// Where the cluster was migrated to, if it was.
    async fn moved_to(&self) -> Result<Option<String>, StoreError>;

    /// Notes that the cluster goes to another database, or takes the note back. From then on, and behind every change begun before, the log cannot be locked:
    /// [`StoreError::Moved`]. Returns false, and does nothing, where it went to yet another one.
    async fn set_moved(&self, to: Option<&str>) -> Result<bool, StoreError>;

    /// Locks the log, so that the next change is the caller's.
    async fn lock(&self, known: Head) -> Result<Box<dyn LockedLog>, StoreError>;

    /// The database's clock, milliseconds since 1970.
    async fn now_ms(&self) -> Result<u64, StoreError>;

    /// Says that a server lives, for `ttl` from now by the database's clock; unless another incarnation of its id does.
    async fn renew_lease(&self, server: &ServerRow, ttl: Duration) -> Result<LeaseAnswer, StoreError>;

    /// Makes the lease of `from`, whose process is over, that of `server`; where `from` holds none, nothing.
    async fn inherit_lease(&self, server: &ServerRow, from: Incarnation) -> Result<(), StoreError>;

    /// Ends the lease, where it is this incarnation's.
    async fn release_lease(&self, server: &ServerRow) -> Result<(), StoreError>;

    /// The servers that hold a lease, by name.
    async fn live_servers(&self) -> Result<Vec<LiveServer>, StoreError>;

    /// Writes presence of nodes that there are, batched. A row changes if its number is newer than the stored one; if it is the same server's and says
    /// something else; or if it says online, and the stored row does not or its server holds no lease.
    async fn put_sessions(&self, rows: &[SessionRow]) -> Result<(), StoreError>;

    /// The sessions that changed after `sequence` (0: all of them), and the sequence to ask for next. A lease that lapses changes no row:
    /// compare with [`Store::live_servers`].
    async fn sessions(&self, after: u64) -> Result<(Vec<SeenSession>, u64), StoreError>;

    /// When these nodes were last there.
    async fn attendance(&self, nodes: &[NodeId]) -> Result<Attendance, StoreError>;

    /// Takes the job for `ttl`, where it is due and nobody else holds it. It is due when it last ended `every` ago.
    async fn begin_job(
        &self,
        job: Job,
        server: &ServerRow,
        ttl: Duration,
        every: Duration,
    ) -> Result<Option<JobLock>, StoreError>;

    /// The job was done, where it is still the lock's.
    async fn end_job(&self, lock: JobLock) -> Result<(), StoreError>;

    /// The jobs that were ever begun, by name.
    async fn jobs(&self) -> Result<Vec<JobRow>, StoreError>;

    /// Says that these nodes, which hold what is claimed exclusively, live for `ttl` from now by the database's clock.
    async fn renew_holders(&self, nodes: &[NodeId], ttl: Duration) -> Result<(), StoreError>;

    /// The node lives no more, as it says itself: what it holds is free.
    async fn release_holder(&self, node: NodeId) -> Result<(), StoreError>;

    /// For how long those of them live that are known to.
    async fn holder_leases(&self, nodes: &[NodeId]) -> Result<BTreeMap<NodeId, Duration>, StoreError>;

    /// Leaves payloads for other servers, for ten seconds.
    async fn send_signals(&self, signals: &[(ServerId, Vec<u8>)]) -> Result<(), StoreError>;

    /// Takes what was left for `me`, oldest first.
    async fn take_signals(&self, me: ServerId) -> Result<Vec<Vec<u8>>, StoreError>;

    /// Hints that something changed. They may come for nothing, and one may be missed: poll as well. A receiver that lagged looks at everything.
    fn wake(&self) -> broadcast::Receiver<Hint>;

    /// Whether hints of other servers arrive at once. Where they do not, polling finds what they would have told.
    fn is_hearing(&self) -> bool {
        true
    }

    /// Connections in use, and how many there may be; `None`: there is no pool.
    fn connections(&self) -> Option<(usize, usize)> {
        None
    }

    /// The host that is used just now, where the database has hosts.
    fn host(&self) -> Option<String> {
        None
    }

    /// Asks every host what it is.
    async fn hosts(&self) -> Vec<HostState> {
        Vec::new()
    }

    async fn status(&self) -> Result<StoreStatus, StoreError>;
}

/// The log while nobody else can append to it. Dropped, it is unlocked and nothing was changed.
#[async_trait]
pub trait LockedLog: Send {
    /// What the log had after the head that [`Store::lock`] was asked with.
    fn tail(&self) -> &Tail;

    /// The database's clock.
    fn now(&self) -> UnixTime;

    /// Whether the job is still the lock's; if so it is for `ttl` more, and nobody can take it before this is over.
    async fn keep_job(&mut self, lock: JobLock, ttl: Duration) -> Result<bool, StoreError>;

    /// As [`Store::attendance`]; nobody comes or goes before this is over.
    async fn attendance(&mut self, nodes: &[NodeId]) -> Result<Attendance, StoreError>;

    /// Unless `from` is known to live, `to` lives for `ttl`, and `from` cannot come back to life before this is over; returns whether it is so.
    async fn take_over(
        &mut self,
        from: Option<NodeId>,
        to: NodeId,
        ttl: Duration,
    ) -> Result<bool, StoreError>;

    /// Keeps another root from the change on that is committed next. [`Store::erase_former_root`] is to follow.
    async fn put_root(&mut self, root: &StoredRoot) -> Result<(), StoreError>;

    /// Appends, durably, and unlocks. After an error it is unknown whether the change is in the log.
    async fn commit(self: Box<Self>, change: &Change) -> Result<(), StoreError>;

    /// Unlocks without a change.
    async fn unlock(self: Box<Self>);
}

/// What may have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    Log,
    Presence,
    /// Signals for this server.
    Signals(ServerId),
    Leases,
    Anything,
}

/// What `server status` shows of the database. Nothing secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreStatus {
    /// `sqlite` or `postgres`
    pub kind: &'static str,
    /// Of the database program.
    pub version: String,
    /// Where it is, without password.
    pub location: String,
    pub head: Head,
    pub schema: u32,
}

/// The columns of a root: its seed or what that was wrapped into, and the public half of a wrapped one.
pub(crate) fn root_columns(root: &StoredRoot) -> (&[u8], Option<[u8; 32]>) {
    match root {
        StoredRoot::Plain(secret) => (secret.expose(), None),
        StoredRoot::Wrapped(WrappedRoot { public, sealed }) => (sealed, Some(public.to_bytes())),
    }
}

/// The reverse of [`root_columns`].
///
/// # Errors
/// What cannot be read.
pub(crate) fn read_root(
    stored: Vec<u8>,
    is_wrapped: bool,
    public: Option<&[u8]>,
) -> Result<StoredRoot, String> {
    if !is_wrapped {
        let seed = zeroize::Zeroizing::new(stored);
        let seed = seed.as_slice().try_into().map_err(|_| format!("a root of {} bytes", seed.len()))?;
        return Ok(StoredRoot::Plain(RootSecret::from_seed(seed)));
    }
    let public = public.ok_or("a wrapped root without its public half")?;
    let public = RootKey::from_bytes(public).map_err(|error| error.to_string())?;
    Ok(StoredRoot::Wrapped(WrappedRoot { public, sealed: stored }))
}

/// Takes the time of a call.
pub(crate) async fn observed<T>(call: impl Future<Output = T>) -> T {
    let begun_at = Instant::now();
    let answer = call.await;
    metrics::histogram!(QUERY_SECONDS).record(begun_at.elapsed().as_secs_f64());
    answer
}

/// Numbers of agents go up to u64::MAX, columns to i64::MAX. The last ones compare as equal; nobody counts as far.
pub(crate) fn column(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// The reverse of [`column`].
pub(crate) fn number(column: i64) -> u64 {
    u64::try_from(column).unwrap_or(0)
}
