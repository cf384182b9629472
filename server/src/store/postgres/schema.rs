//! Bringing the schema up to date, one server at a time.

use crate::store::{
    Missing, StoreError,
    postgres::{connect, error::PgError, target::Target},
};
use tokio_postgres::Client;

/// Any number that nobody else in the database locks: "holdfast" in ASCII.
const MIGRATION_LOCK: i64 = 0x686f_6c64_6661_7374;

mod embedded {
    refinery::embed_migrations!("src/store/postgres/migrations");
}

/// The newest schema that this program knows.
pub(crate) fn known_version() -> u32 {
    let migrations = embedded::migrations::runner();
    migrations.get_migrations().iter().map(|m| u32::try_from(m.version()).unwrap_or(0)).max().unwrap_or(0)
}

pub(crate) async fn prepare(target: &Target, location: &str, missing: Missing) -> Result<(), StoreError> {
    let mut client = connect::single_driven(target, location).await?;
    match (is_current(&client, location).await?, missing) {
        (Schema::Current, _) => return Ok(()),
        (Schema::None, Missing::Refuse) => {
            return Err(StoreError::NoCluster { location: location.to_owned() });
        }
        (Schema::Older { found }, Missing::Refuse) => {
            let location = location.to_owned();
            return Err(StoreError::OlderSchema { location, found, known: known_version() });
        }
        (Schema::None | Schema::Older { .. }, Missing::Create) => {}
    }
    // Ends with the connection. Waiting for another server's migration is bounded.
    let lock = format!("SET statement_timeout = '30s'; SELECT pg_advisory_lock({MIGRATION_LOCK})");
    client.batch_execute(&lock).await.map_err(|error| PgError::Sql(error).at(location))?;
    if let Schema::Current = is_current(&client, location).await? {
        return Ok(());
    }
    let migrated = embedded::migrations::runner().run_async(&mut client).await;
    migrated.map(|_| ()).map_err(|error| StoreError::failed(location, error))
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
    let table = "SELECT to_regclass('refinery_schema_history') IS NOT NULL";
    if !client.query_one(table, &[]).await?.try_get::<_, bool>(0)? {
        return Ok(None);
    }
    let newest = client.query_one("SELECT max(version) FROM refinery_schema_history", &[]).await?;
    Ok(newest.try_get::<_, Option<i32>>(0)?.and_then(|version| u32::try_from(version).ok()))
}
