//! Connections: a pool for statements, and single ones for migrations and listening. Every session of the pool has Postgres's own limits, so that a server that
//! hangs holds no lock for long.

use crate::store::{
    CALL_TIMEOUT, StoreError,
    postgres::{error::PgError, target::Target, tls},
};
use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime,
};
use futures_util::FutureExt;
use std::time::Duration;
use tokio_postgres::{AsyncMessage, Client, Connection, Socket, tls::MakeTlsConnect};
use tokio_postgres_rustls::MakeRustlsConnect;

const POOL_SIZE: usize = 8;
/// In Postgres, milliseconds: below CALL_TIMEOUT, so that it gives up first and says what it waited for.
const SESSION_LIMITS: &str = "SET statement_timeout = 4500; SET lock_timeout = 4000; \
                              SET idle_in_transaction_session_timeout = 5000";

pub(crate) type Driver = Connection<Socket, <MakeRustlsConnect as MakeTlsConnect<Socket>>::Stream>;

pub(crate) fn pool(target: &Target, location: &str) -> Result<Pool, StoreError> {
    let connector = tls::connector(&target.tls, location)?;
    let recycling = ManagerConfig { recycling_method: RecyclingMethod::Fast };
    let manager = Manager::from_config(target.config.clone(), connector, recycling);
    let limits = Hook::async_fn(|client: &mut deadpool_postgres::ClientWrapper, _| {
        async move { client.batch_execute(SESSION_LIMITS).await.map_err(HookError::Backend) }.boxed()
    });
    let pool = Pool::builder(manager)
        .max_size(POOL_SIZE)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(CALL_TIMEOUT))
        .create_timeout(Some(create_timeout(target)))
        .recycle_timeout(Some(CALL_TIMEOUT))
        .post_create(limits)
        .build();
    pool.map_err(|error| StoreError::failed(location, error))
}

pub(crate) async fn client(pool: &Pool, location: &str) -> Result<Object, StoreError> {
    pool.get().await.map_err(|error| match error {
        PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)) => {
            PgError::Sql(error).at(location)
        }
        PoolError::Timeout(_) => StoreError::unavailable(location, "it did not answer in time"),
        PoolError::Closed | PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_) => {
            StoreError::failed(location, error)
        }
    })
}

/// A connection of its own, with the driver that the caller polls.
pub(crate) async fn single(target: &Target, location: &str) -> Result<(Client, Driver), StoreError> {
    let connector: MakeRustlsConnect = tls::connector(&target.tls, location)?;
    let connecting = target.config.connect(connector);
    match tokio::time::timeout(create_timeout(target), connecting).await {
        Ok(connected) => connected.map_err(|error| PgError::Sql(error).at(location)),
        Err(_) => Err(StoreError::unavailable(location, "it did not answer in time")),
    }
}

/// One whose driver runs as a task, which ends with the client.
pub(crate) async fn single_driven(target: &Target, location: &str) -> Result<Client, StoreError> {
    let (client, mut driver) = single(target, location).await?;
    tokio::spawn(async move {
        // An error reaches whoever uses the client; notices are for nobody.
        while let Some(Ok(AsyncMessage::Notice(_) | _)) = next_message(&mut driver).await {}
    });
    Ok(client)
}

pub(crate) async fn next_message(driver: &mut Driver) -> Option<Result<AsyncMessage, tokio_postgres::Error>> {
    std::future::poll_fn(|context| driver.poll_message(context)).await
}

/// The hosts are tried one after another.
fn create_timeout(target: &Target) -> Duration {
    let each = target.config.get_connect_timeout().copied().unwrap_or(CALL_TIMEOUT);
    let hosts = u32::try_from(target.config.get_hosts().len()).unwrap_or(1);
    each * hosts + Duration::from_secs(1)
}
