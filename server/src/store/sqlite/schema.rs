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
const OPENING_TIMEOUT: Duration = Duration::from_secs(30);

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
    if !path.exists() && missing == Missing::Refuse {
        return Err(StoreError::NoCluster { location: location.to_owned() });
    }
    // From before the first connection: making a file a WAL database does not wait for others who do.
    let _lock = opening_lock(path, location)?;
    open_private(path).map_err(|error| StoreError::unavailable(location, error))?;
    let at = |error: SqliteError| error.at(location);
    let mut connection = connect(path, Durability::PowerLoss).map_err(at)?;
    let known = known_version();
    match (found_version(&connection).map_err(at)?, missing) {
        (Some(found), _) if found > known => {
            Err(StoreError::NewerSchema { location: location.to_owned(), found, known })
        }
        (Some(found), _) if found == known => Ok(()),
        (Some(found), Missing::Refuse) => {
            Err(StoreError::OlderSchema { location: location.to_owned(), found, known })
        }
        (None, Missing::Refuse) => Err(StoreError::NoCluster { location: location.to_owned() }),
        (Some(_) | None, Missing::Create) => {
            let migrated = embedded::migrations::runner().run(&mut connection);
            migrated.map(|_| ()).map_err(|error| StoreError::failed(location, error))
        }
    }
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

/// One opener at a time: two first starts at once would both find no tables. Held until the file is dropped.
fn opening_lock(path: &Path, location: &str) -> Result<File, StoreError> {
    let failed = |error: std::io::Error| StoreError::unavailable(location, error);
    let mut name = path.as_os_str().to_owned();
    name.push("-lock");
    let file = open_private(Path::new(&name)).map_err(failed)?;
    let deadline = Instant::now() + OPENING_TIMEOUT;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10));
            }
            Err(TryLockError::WouldBlock) => {
                return Err(StoreError::unavailable(location, "another server is still opening it"));
            }
        }
    }
}
