//! The root in another form. SQLite leaves what it overwrites in free pages and in its write-ahead log, unless told not to.

use crate::{
    cluster::StoredRoot,
    store::{Erased, root_columns, sqlite::SqliteError},
};
use rusqlite::{Connection, OptionalExtension, params};

/// Inside a transaction.
pub(crate) fn set(connection: &Connection, root: &StoredRoot) -> Result<(), SqliteError> {
    connection.pragma_update(None, "secure_delete", true)?;
    let (seed, public) = root_columns(root);
    connection.execute(
        "UPDATE cluster SET root_seed = ?1, root_public = ?2, root_wrapped = ?2 IS NOT NULL,
             root_overwritten = root_overwritten + 1",
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
        "UPDATE cluster SET root_seed = ?1, root_public = ?2, root_wrapped = ?2 IS NOT NULL,
             root_overwritten = root_overwritten + 1
         WHERE root_seed = ?3 AND moved_to IS NULL",
        params![seed, public, was],
    )?;
    Ok(put > 0)
}

/// What was overwritten in the file is in the write-ahead log until that begins anew.
pub(crate) fn erase_former(connection: &mut Connection) -> Result<Erased, SqliteError> {
    let sql = "SELECT root_overwritten FROM cluster WHERE root_erased < root_overwritten";
    let overwritten = connection.query_row(sql, [], |row| row.get::<_, i64>(0)).optional()?;
    let Some(overwritten) = overwritten else { return Ok(Erased::Before) };
    let is_held_up: bool = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0))?;
    if is_held_up {
        return Ok(Erased::HeldUp);
    }
    connection.execute("UPDATE cluster SET root_erased = max(root_erased, ?1)", [overwritten])?;
    Ok(Erased::Now)
}
