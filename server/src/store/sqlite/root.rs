//! The root in another form. SQLite leaves what it overwrites in free pages and in its write-ahead log, unless told not to.

use crate::{
    cluster::StoredRoot,
    store::{root_columns, sqlite::SqliteError},
};
use rusqlite::{Connection, params};

/// Inside a transaction.
pub(crate) fn set(connection: &Connection, root: &StoredRoot) -> Result<(), SqliteError> {
    connection.pragma_update(None, "secure_delete", true)?;
    let (seed, public) = root_columns(root);
    connection.execute(
        "UPDATE cluster SET root_seed = ?1, root_public = ?2, root_wrapped = ?2 IS NOT NULL",
        params![seed, public],
    )?;
    Ok(())
}

pub(crate) fn put(
    connection: &mut Connection,
    was: &StoredRoot,
    root: &StoredRoot,
) -> Result<bool, SqliteError> {
    connection.pragma_update(None, "secure_delete", true)?;
    let ((was, _), (seed, public)) = (root_columns(was), root_columns(root));
    let put = connection.execute(
        "UPDATE cluster SET root_seed = ?1, root_public = ?2, root_wrapped = ?2 IS NOT NULL
         WHERE root_seed = ?3 AND moved_to IS NULL",
        params![seed, public, was],
    )?;
    // Where a reader holds it up, the next checkpoint does it.
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    Ok(put > 0)
}
