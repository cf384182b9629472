//! Bringing the schema up to date, one server at a time.

use crate::store::{
    CALL_TIMEOUT, Missing, StoreError,
    postgres::{
        connect::{Connected, Hosts},
        error::PgError,
        sql::query,
    },
};
use std::{future::Future, time::Duration};
use tokio::time::timeout;
use tokio_postgres::Client;

/// Any number that nobody else in the database locks: "holdfast" in ASCII.
const MIGRATION_LOCK: i64 = 0x686f_6c64_6661_7374;

/// With another server's migration before ours.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(60);

mod embedded {
    refinery::embed_migrations!("src/store/postgres/migrations");
}

/// The newest schema that this program knows.
pub(crate) fn known_version() -> u32 {
    let migrations = embedded::migrations::runner();
    migrations.get_migrations().iter().map(|m| u32::try_from(m.version()).unwrap_or(0)).max().unwrap_or(0)
}

/// The connection that it took is given on, where nothing was changed on it.
pub(crate) async fn prepare(hosts: &Hosts, missing: Missing) -> Result<Option<Connected>, StoreError> {
    let location = &hosts.location;
    let mut connected = hosts.connect_driven().await?;
    let found = within(CALL_TIMEOUT, location, is_current(&connected, location)).await?;
    match (found, missing) {
        (Schema::Current, _) => return Ok(Some(connected)),
        (Schema::None, Missing::Refuse) => {
            return Err(StoreError::NoCluster { location: location.to_owned() });
        }
        (Schema::Older { found }, Missing::Refuse) => {
            let location = location.to_owned();
            return Err(StoreError::OlderSchema { location, found, known: known_version() });
        }
        (Schema::None | Schema::Older { .. }, Missing::Create) => {}
    }
    within(MIGRATION_TIMEOUT, location, migrate(&mut connected.client, location)).await?;
    Ok(None)
}

async fn within<T>(
    limit: Duration,
    location: &str,
    work: impl Future<Output = Result<T, StoreError>>,
) -> Result<T, StoreError> {
    timeout(limit, work).await.unwrap_or_else(|_elapsed| Err(PgError::Silent.at(location)))
}

async fn migrate(client: &mut Client, location: &str) -> Result<(), StoreError> {
    // Ends with the connection. Waiting for another server's migration is bounded.
    let lock = format!("SET statement_timeout = '30s'; SELECT pg_advisory_lock({MIGRATION_LOCK})");
    client.batch_execute(&lock).await.map_err(|error| PgError::from(error).at(location))?;
    if let Schema::Current = is_current(client, location).await? {
        return Ok(());
    }
    let migrated = embedded::migrations::runner().run_async(client).await;
    migrated.map(|_| ()).map_err(|error| match cause(&error) {
        Some(error) => PgError::reason_at(error, location),
        None => StoreError::failed(location, error),
    })
}

/// What Postgres said, inside of what the migrations say of it.
fn cause(error: &refinery::Error) -> Option<&tokio_postgres::Error> {
    let first: &(dyn std::error::Error + 'static) = error;
    let mut next = Some(first);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

enum Schema {
    None,
    Older { found: u32 },
    Current,
}

/// # Errors
/// The schema is newer than this program.
async fn is_current(client: &Client, location: &str) -> Result<Schema, StoreError> {
    let known = known_version();
    match found_version(client).await.map_err(|error| error.at(location))? {
        None => Ok(Schema::None),
        Some(found) if found > known => {
            Err(StoreError::NewerSchema { location: location.to_owned(), found, known })
        }
        Some(found) if found == known => Ok(Schema::Current),
        Some(found) => Ok(Schema::Older { found }),
    }
}

pub(crate) async fn found_version(client: &Client) -> Result<Option<u32>, PgError> {
    let newest = match query(client, "SELECT max(version) FROM refinery_schema_history", &[]).await {
        Err(error) if error.is_of_missing_table() => return Ok(None),
        newest => newest?,
    };
    let newest: Option<i32> = newest.first().map(|row| row.try_get(0)).transpose()?.flatten();
    Ok(newest.and_then(|version| u32::try_from(version).ok()))
}
