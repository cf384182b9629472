//! The log and the tables that it changes, in SQL for SQLite.

use crate::{
    cluster::{Change, ChangeId, Entity, EntityId, Founding, Head, Op, Snapshot},
    store::{
        CHANGES_KEPT, Lost, Tail, column,
        log::judge,
        number, read_root,
        sqlite::{SqliteError, import::insert_cluster},
    },
};
use proto::{
    map::{MapVersion, Network},
    statement::{NetworkId, NodeId},
    time::UnixTime,
};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, TransactionBehavior, params};
use serde::de::DeserializeOwned;

pub(crate) fn found(
    connection: &mut Connection,
    founding: &Founding,
    first: ChangeId,
) -> Result<bool, SqliteError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if read_head(&transaction)?.is_some() {
        return Ok(false);
    }
    let head = Head { version: MapVersion { epoch: 1, revision: 1 }, id: first };
    insert_cluster(&transaction, founding, head, NodeId(1))?;
    transaction.commit()?;
    Ok(true)
}

/// `None`: there is no cluster.
pub(crate) fn snapshot(connection: &mut Connection) -> Result<Option<Snapshot>, SqliteError> {
    let transaction = connection.transaction()?;
    let Some(head) = read_head(&transaction)? else { return Ok(None) };
    let (founding, next_node_id) = transaction.query_row(
        "SELECT network_id, root_seed, network_name, overlay_v4, overlay_v6, next_node_id, root_wrapped,
             root_public
         FROM cluster",
        [],
        |row| Ok((read_founding(row), row.get(5)?)),
    )?;
    let snapshot = Snapshot {
        founding: founding?,
        head,
        next_node_id: NodeId(number(next_node_id)),
        nodes: contents(&transaction, "SELECT content FROM nodes ORDER BY id")?,
        setup_keys: contents(&transaction, "SELECT content FROM setup_keys ORDER BY id")?,
        removals: contents(&transaction, "SELECT content FROM removals ORDER BY node_key")?,
        recovery: contents(&transaction, "SELECT content FROM recovery")?.pop(),
        settings: contents(&transaction, "SELECT content FROM settings")?.pop(),
        roots: contents(&transaction, "SELECT content FROM roots")?.pop(),
        holdings: contents(&transaction, "SELECT content FROM holdings")?.pop(),
    };
    snapshot.check().map(Some).map_err(SqliteError::unreadable)
}

fn read_founding(row: &Row<'_>) -> Result<Founding, SqliteError> {
    let root = read_root(row.get(1)?, row.get(6)?, row.get::<_, Option<Vec<u8>>>(7)?.as_deref());
    let prefix = |text: String| text.parse().map_err(SqliteError::unreadable);
    Ok(Founding {
        network_id: NetworkId(row.get(0)?),
        root: root.map_err(SqliteError::unreadable)?,
        network: Network {
            name: row.get(2)?,
            overlay_v4: prefix(row.get(3)?)?,
            overlay_v6: prefix(row.get(4)?)?,
        },
    })
}

fn contents<T: DeserializeOwned>(transaction: &Transaction<'_>, sql: &str) -> Result<Vec<T>, SqliteError> {
    let mut statement = transaction.prepare(sql)?;
    let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
    rows.map(|text| serde_json::from_str(&text?).map_err(SqliteError::unreadable)).collect()
}

pub(crate) fn tail(connection: &mut Connection, known: Head) -> Result<Option<Tail>, SqliteError> {
    read_tail(&connection.transaction()?, known)
}

/// `None`: there is no cluster.
pub(crate) fn read_tail(transaction: &Transaction<'_>, known: Head) -> Result<Option<Tail>, SqliteError> {
    let Some(head) = read_head(transaction)? else { return Ok(None) };
    if head == known {
        return Ok(Some(Tail::Changes(Vec::new())));
    }
    let after = column(known.version.revision);
    let held = transaction
        .query_row("SELECT id FROM changes WHERE revision = ?1", [after], |row| row.get(0).map(ChangeId))
        .optional()?;
    let oldest =
        transaction.query_row("SELECT min(revision) FROM changes", [], |row| row.get(0).map(number))?;
    if let Some(lost) = judge(known, head, oldest, held == Some(known.id)) {
        return Ok(Some(Tail::Lost(lost)));
    }
    let mut statement = transaction.prepare_cached(
        "SELECT revision, epoch, id, at_unix_s, actor, ops FROM changes WHERE revision > ?1 ORDER BY revision",
    )?;
    let mut rows = statement.query([after])?;
    let mut changes = Vec::new();
    while let Some(row) = rows.next()? {
        match read_change(row) {
            Ok(change) => changes.push(change),
            // Written by a newer program: the tables say the same in a form that is read with less strictness.
            Err(SqliteError::Unreadable(_)) => return Ok(Some(Tail::Lost(Lost::Pruned))),
            Err(error @ (SqliteError::Sql(_) | SqliteError::Moved(_))) => return Err(error),
        }
    }
    Ok(Some(Tail::Changes(changes)))
}

fn read_change(row: &Row<'_>) -> Result<Change, SqliteError> {
    let version = MapVersion { revision: number(row.get(0)?), epoch: number(row.get(1)?) };
    Ok(Change {
        head: Head { version, id: ChangeId(row.get(2)?) },
        at: UnixTime(number(row.get(3)?)),
        actor: row.get::<_, String>(4)?.parse().map_err(SqliteError::unreadable)?,
        ops: serde_json::from_str(&row.get::<_, String>(5)?).map_err(SqliteError::unreadable)?,
    })
}

pub(crate) fn read_head(connection: &Connection) -> Result<Option<Head>, SqliteError> {
    let head = connection.query_row("SELECT epoch, revision, last_change FROM cluster", [], |row| {
        let version = MapVersion { epoch: number(row.get(0)?), revision: number(row.get(1)?) };
        Ok(Head { version, id: ChangeId(row.get(2)?) })
    });
    Ok(head.optional()?)
}

/// # Errors
/// [`SqliteError::Moved`]: nothing may be written.
pub(crate) fn check_not_moved(connection: &Connection) -> Result<(), SqliteError> {
    match moved_to(connection)? {
        Some(to) => Err(SqliteError::Moved(to)),
        None => Ok(()),
    }
}

pub(crate) fn moved_to(connection: &Connection) -> Result<Option<String>, SqliteError> {
    let moved = connection.query_row("SELECT moved_to FROM cluster", [], |row| row.get(0));
    Ok(moved.optional()?.flatten())
}

pub(crate) fn now(connection: &Connection) -> Result<UnixTime, SqliteError> {
    Ok(connection.query_row("SELECT unixepoch()", [], |row| row.get(0).map(number).map(UnixTime))?)
}

/// Deletes come first: what goes makes room for what comes.
pub(crate) fn append(transaction: &Transaction<'_>, change: &Change) -> Result<(), SqliteError> {
    for op in &change.ops {
        if let Op::Delete(id) = op {
            delete(transaction, *id)?;
        }
    }
    for op in &change.ops {
        if let Op::Put(entity) = op {
            put(transaction, entity)?;
        }
    }
    let MapVersion { epoch, revision } = change.head.version;
    transaction.execute(
        "UPDATE cluster SET epoch = ?1, revision = ?2, last_change = ?3",
        params![column(epoch), column(revision), change.head.id.0],
    )?;
    let ops = serde_json::to_string(&change.ops).map_err(SqliteError::unreadable)?;
    transaction.execute(
        "INSERT INTO changes (revision, epoch, id, at_unix_s, actor, ops) VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        params![
            column(revision),
            column(epoch),
            change.head.id.0,
            column(change.at.0),
            change.actor.to_string(),
            ops
        ],
    )?;
    if let Some(pruned) = revision.checked_sub(CHANGES_KEPT) {
        transaction.execute("DELETE FROM changes WHERE revision <= ?1", [column(pruned)])?;
    }
    Ok(())
}

pub(crate) fn put(transaction: &Transaction<'_>, entity: &Entity) -> Result<(), SqliteError> {
    match entity {
        Entity::Node(node) => {
            transaction.execute(
                "INSERT INTO nodes (id, node_key, name, address_v4, address_v6, content) VALUES (?1, ?2, ?3, ?4, ?5, ?6)
                 ON CONFLICT (id) DO UPDATE SET node_key = excluded.node_key, name = excluded.name,
                     address_v4 = excluded.address_v4, address_v6 = excluded.address_v6, content = excluded.content",
                params![
                    column(node.id.0),
                    node.key.to_string(),
                    node.name,
                    node.address_v4.to_string(),
                    node.address_v6.to_string(),
                    json(node)?
                ],
            )?;
            raise_next_node_id(transaction, node.id.0.saturating_add(1))?;
        }
        Entity::SetupKey(key) => {
            transaction.execute(
                "INSERT INTO setup_keys (id, hash, content) VALUES (?1, ?2, ?3)
                 ON CONFLICT (id) DO UPDATE SET hash = excluded.hash, content = excluded.content",
                params![column(key.id.0), key.hash, json(key)?],
            )?;
        }
        Entity::Removal(removed) => {
            transaction.execute(
                "INSERT INTO removals (node_key, content) VALUES (?1, ?2)
                 ON CONFLICT (node_key) DO UPDATE SET content = excluded.content",
                params![removed.key.to_string(), json(removed)?],
            )?;
        }
        Entity::Recovery(recovery) => {
            put_only_row(transaction, "recovery", recovery)?;
            raise_next_node_id(transaction, recovery.next_node_id.0)?;
        }
        Entity::Settings(settings) => put_only_row(transaction, "settings", settings)?,
        Entity::Roots(roots) => put_only_row(transaction, "roots", roots)?,
        Entity::Holdings(holdings) => put_only_row(transaction, "holdings", holdings)?,
    }
    Ok(())
}

fn raise_next_node_id(transaction: &Transaction<'_>, next: u64) -> Result<(), SqliteError> {
    let raise = "UPDATE cluster SET next_node_id = max(next_node_id, ?1)";
    transaction.execute(raise, [column(next)])?;
    Ok(())
}

fn put_only_row(
    transaction: &Transaction<'_>,
    table: &str,
    entity: &impl serde::Serialize,
) -> Result<(), SqliteError> {
    let put = format!(
        "INSERT INTO {table} (only_row, content) VALUES (1, ?1)
         ON CONFLICT (only_row) DO UPDATE SET content = excluded.content"
    );
    transaction.execute(&put, [json(entity)?])?;
    Ok(())
}

fn delete(transaction: &Transaction<'_>, id: EntityId) -> Result<(), SqliteError> {
    match id {
        EntityId::Node(id) => {
            transaction.execute("DELETE FROM nodes WHERE id = ?1", [column(id.0)])?;
            transaction.execute("DELETE FROM sessions WHERE node_id = ?1", [column(id.0)])?;
            transaction.execute("DELETE FROM holder_leases WHERE node_id = ?1", [column(id.0)])?;
        }
        EntityId::SetupKey(id) => {
            transaction.execute("DELETE FROM setup_keys WHERE id = ?1", [column(id.0)])?;
        }
        EntityId::Removal(key) => {
            transaction.execute("DELETE FROM removals WHERE node_key = ?1", [key.to_string()])?;
        }
    }
    Ok(())
}

fn json(entity: &impl serde::Serialize) -> Result<String, SqliteError> {
    serde_json::to_string(entity).map_err(SqliteError::unreadable)
}
