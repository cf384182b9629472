//! Postgres: any number of servers, on any machines. Writes lock the cluster's one row; notifications tell the others. The pool and the listening connection
//! find a new primary by themselves where the URL names several hosts.

pub(crate) mod connect;
mod error;
mod listen;
mod live;
mod locked;
mod log;
mod root;
mod schema;
mod target;
mod tls;

pub use target::Target;

use crate::{
    cluster::{ChangeId, Founding, Head, Snapshot, StoredRoot},
    store::{
        CALL_TIMEOUT, Hint, LiveServer, LockedLog, Missing, SeenSession, ServerRow, SessionRow, Store,
        StoreError, StoreStatus, Tail,
    },
};
use async_trait::async_trait;
use deadpool_postgres::{GenericClient, Object, Pool};
use error::PgError;
use proto::session::ServerId;
use std::time::Duration;
use tokio::{sync::broadcast, task::AbortHandle};
use tokio_postgres::{Row, types::ToSql};

const HINTS_KEPT: usize = 1024;
/// With another server's migration before ours.
const PREPARE_TIMEOUT: Duration = Duration::from_secs(60);

/// A cluster in Postgres.
pub struct PostgresStore {
    pool: Pool,
    location: String,
    hints: broadcast::Sender<Hint>,
    listener: AbortHandle,
}

impl PostgresStore {
    /// # Errors
    /// [`StoreError`]: see [`crate::store::open`].
    pub async fn open(target: &Target, missing: Missing) -> Result<Self, StoreError> {
        let location = target.to_string();
        let prepared = tokio::time::timeout(PREPARE_TIMEOUT, schema::prepare(target, &location, missing));
        prepared
            .await
            .map_err(|_| StoreError::unavailable(&location, "its schema could not be read in time"))??;
        let pool = connect::pool(target, &location)?;
        let (hints, _) = broadcast::channel(HINTS_KEPT);
        let listener =
            tokio::spawn(listen::run(target.clone(), location.clone(), hints.clone())).abort_handle();
        Ok(Self { pool, location, hints, listener })
    }

    async fn client(&self) -> Result<Object, StoreError> {
        connect::client(&self.pool, &self.location).await
    }

    /// Waits for what runs on `client`, within the deadline. A connection that did not answer is closed.
    async fn within<T>(
        &self,
        mut client: Object,
        run: impl AsyncFnOnce(&mut Object) -> Result<T, PgError>,
    ) -> Result<T, StoreError> {
        match tokio::time::timeout(CALL_TIMEOUT, run(&mut client)).await {
            Ok(result) => result.map_err(|error| error.at(&self.location)),
            Err(_) => {
                drop(Object::take(client));
                Err(StoreError::unavailable(&self.location, "it did not answer in time"))
            }
        }
    }

    fn no_cluster(&self) -> StoreError {
        StoreError::NoCluster { location: self.location.clone() }
    }
}

impl Drop for PostgresStore {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

pub(crate) async fn query(
    client: &impl GenericClient,
    sql: &str,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<Vec<Row>, PgError> {
    let statement = client.prepare_cached(sql).await?;
    Ok(client.query(&statement, parameters).await?)
}

pub(crate) async fn execute(
    client: &impl GenericClient,
    sql: &str,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<u64, PgError> {
    let statement = client.prepare_cached(sql).await?;
    Ok(client.execute(&statement, parameters).await?)
}

pub(crate) async fn notify(client: &impl GenericClient, hint: Hint) -> Result<(), PgError> {
    let parameters: [&(dyn ToSql + Sync); 2] = [&listen::CHANNEL, &listen::payload(hint)];
    query(client, "SELECT pg_notify($1, $2)", &parameters).await.map(|_| ())
}

#[async_trait]
impl Store for PostgresStore {
    fn location(&self) -> &str {
        &self.location
    }

    async fn found(&self, founding: &Founding, first: ChangeId) -> Result<bool, StoreError> {
        let client = self.client().await?;
        self.within(client, async |client| log::found(client, founding, first).await).await
    }

    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let client = self.client().await?;
        let snapshot = self.within(client, async |client| log::snapshot(client).await).await?;
        snapshot.ok_or_else(|| self.no_cluster())
    }

    async fn tail(&self, known: Head) -> Result<Tail, StoreError> {
        let client = self.client().await?;
        let tail = self.within(client, async |client| log::tail(&*client, known).await).await?;
        tail.ok_or_else(|| self.no_cluster())
    }

    async fn put_root(&self, was: &StoredRoot, root: &StoredRoot) -> Result<bool, StoreError> {
        let client = self.client().await?;
        self.within(client, async |client| root::put(client, was, root).await).await
    }

    async fn lock(&self, known: Head) -> Result<Box<dyn LockedLog>, StoreError> {
        let client = self.client().await?;
        let locked = locked::PostgresLock::take(client, self.location.clone(), known).await?;
        locked.map(|locked| Box::new(locked) as Box<dyn LockedLog>).ok_or_else(|| self.no_cluster())
    }

    async fn renew_lease(&self, server: &ServerRow, ttl: Duration) -> Result<(), StoreError> {
        let client = self.client().await?;
        self.within(client, async |client| live::renew_lease(client, server, ttl).await).await
    }

    async fn release_lease(&self, server: ServerId) -> Result<(), StoreError> {
        let client = self.client().await?;
        self.within(client, async |client| live::release_lease(client, server).await).await
    }

    async fn live_servers(&self) -> Result<Vec<LiveServer>, StoreError> {
        let client = self.client().await?;
        self.within(client, async |client| live::live_servers(&*client).await).await
    }

    async fn put_sessions(&self, rows: &[SessionRow]) -> Result<(), StoreError> {
        if rows.is_empty() {
            return Ok(());
        }
        let client = self.client().await?;
        self.within(client, async |client| live::put_sessions(client, rows).await).await
    }

    async fn sessions(&self, after: u64) -> Result<(Vec<SeenSession>, u64), StoreError> {
        let client = self.client().await?;
        self.within(client, async |client| live::sessions(&*client, after).await).await
    }

    async fn send_signals(&self, signals: &[(ServerId, Vec<u8>)]) -> Result<(), StoreError> {
        if signals.is_empty() {
            return Ok(());
        }
        let client = self.client().await?;
        self.within(client, async |client| live::send_signals(client, signals).await).await
    }

    async fn take_signals(&self, me: ServerId) -> Result<Vec<Vec<u8>>, StoreError> {
        let client = self.client().await?;
        self.within(client, async |client| live::take_signals(client, me).await).await
    }

    fn wake(&self) -> broadcast::Receiver<Hint> {
        self.hints.subscribe()
    }

    async fn status(&self) -> Result<StoreStatus, StoreError> {
        let client = self.client().await?;
        let (head, schema, version) = self.within(client, async |client| status(client).await).await?;
        Ok(StoreStatus {
            kind: "postgres",
            version,
            location: self.location.clone(),
            head: head.ok_or_else(|| self.no_cluster())?,
            schema: schema.unwrap_or(0),
        })
    }
}

async fn status(client: &Object) -> Result<(Option<Head>, Option<u32>, String), PgError> {
    let head = log::head(client).await?;
    let schema = schema::found_version(client).await?;
    let version = client.query_one("SELECT current_setting('server_version')", &[]).await?.try_get(0)?;
    Ok((head, schema, version))
}
