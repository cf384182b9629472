//! Opening the file: its mode, its pragmas, its schema.

use crate::store::{Missing, StoreError, sqlite::SqliteError};
use rusqlite::{Connection, OpenFlags, OptionalExtension};
use std::{
    fs::{File, OpenOptions, TryLockError},
    path::Path,
    time::{Duration, Instant},
};

/// SQLite's own wait for another connection's write.
const BUSY_TIMEOUT: Duration = Duration::from_secs(4);
/// How long another process may take to bring the schema up to date.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(30);

mod embedded {
    refinery::embed_migrations!("src/store/sqlite/migrations");
}

/// What a connection's commits must survive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Durability {
    PowerLoss,
    /// Enough for what is told again within seconds: leases, presence, signals.
    Crash,
}

/// The newest schema that this program knows.
pub(crate) fn known_version() -> u32 {
    let migrations = embedded::migrations::runner();
    migrations.get_migrations().iter().map(|m| u32::try_from(m.version()).unwrap_or(0)).max().unwrap_or(0)
}

/// Creates the file where that is wanted, and brings its schema up to date. Blocks.
pub(crate) fn prepare(path: &Path, location: &str, missing: Missing) -> Result<(), StoreError> {
    match (path.exists(), missing) {
        (true, _) => {}
        (false, Missing::Refuse) => return Err(StoreError::NoCluster { location: location.to_owned() }),
        (false, Missing::Create) => {
            open_private(path).map_err(|error| StoreError::unavailable(location, error))?;
        }
    }
    let at = |error: SqliteError| error.at(location);
    let mut connection = connect(path, Durability::PowerLoss).map_err(at)?;
    if is_current(&connection, location)? {
        return Ok(());
    }
    if missing == Missing::Refuse && found_version(&connection).map_err(at)?.is_none() {
        return Err(StoreError::NoCluster { location: location.to_owned() });
    }
    let _lock = migration_lock(path, location)?;
    if is_current(&connection, location)? {
        return Ok(());
    }
    let migrated = embedded::migrations::runner().run(&mut connection);
    migrated.map(|_| ()).map_err(|error| StoreError::failed(location, error))
}

pub(crate) fn connect(path: &Path, durability: Durability) -> Result<Connection, SqliteError> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(BUSY_TIMEOUT)?;
    connection.pragma_update(None, "journal_mode", "wal")?;
    let synchronous = match durability {
        Durability::PowerLoss => "full",
        Durability::Crash => "normal",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    Ok(connection)
}

/// # Errors
/// The schema is newer than this program.
fn is_current(connection: &Connection, location: &str) -> Result<bool, StoreError> {
    let known = known_version();
    match found_version(connection).map_err(|error| error.at(location))? {
        Some(found) if found > known => {
            Err(StoreError::NewerSchema { location: location.to_owned(), found, known })
        }
        found => Ok(found == Some(known)),
    }
}

pub(crate) fn found_version(connection: &Connection) -> Result<Option<u32>, SqliteError> {
    let table = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'refinery_schema_history'";
    if connection.query_row(table, [], |_| Ok(())).optional()?.is_none() {
        return Ok(None);
    }
    Ok(connection.query_row("SELECT max(version) FROM refinery_schema_history", [], |row| row.get(0))?)
}

/// The file holds the cluster's root: nobody else may read it. SQLite gives its companion files the same mode.
fn open_private(path: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options.open(path)
}

/// One process at a time: two first starts at once would both find no tables. Held until the file is dropped.
fn migration_lock(path: &Path, location: &str) -> Result<File, StoreError> {
    let failed = |error: std::io::Error| StoreError::unavailable(location, error);
    let mut name = path.as_os_str().to_owned();
    name.push("-migration");
    let file = open_private(Path::new(&name)).map_err(failed)?;
    let deadline = Instant::now() + MIGRATION_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::unavailable(location, "another server is still changing its schema"));
            }
        }
    }
}
