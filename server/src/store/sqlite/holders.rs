//! Leases of those who hold what is claimed exclusively, in SQL for SQLite.

use crate::store::{
    column, number,
    sqlite::{
        SqliteError,
        live::{NOW_MS, millis},
    },
};
use proto::statement::NodeId;
use rusqlite::{Connection, OptionalExtension, params};
use std::{collections::BTreeMap, time::Duration};

pub(crate) fn renew(connection: &mut Connection, nodes: &[NodeId], ttl: Duration) -> Result<(), SqliteError> {
    let transaction = connection.transaction()?;
    for node in nodes {
        renew_one(&transaction, *node, ttl)?;
    }
    Ok(transaction.commit()?)
}

fn renew_one(connection: &Connection, node: NodeId, ttl: Duration) -> Result<(), SqliteError> {
    let mut renew = connection.prepare_cached(&format!(
        "INSERT INTO holder_leases (node_id, until_ms) SELECT id, {NOW_MS} + ?2 FROM nodes WHERE id = ?1
         ON CONFLICT (node_id) DO UPDATE SET until_ms = excluded.until_ms"
    ))?;
    renew.execute(params![column(node.0), millis(ttl)])?;
    Ok(())
}

pub(crate) fn release(connection: &Connection, node: NodeId) -> Result<(), SqliteError> {
    connection.execute("DELETE FROM holder_leases WHERE node_id = ?1", [column(node.0)])?;
    Ok(())
}

pub(crate) fn remaining(
    connection: &Connection,
    nodes: &[NodeId],
) -> Result<BTreeMap<NodeId, Duration>, SqliteError> {
    let mut leases = BTreeMap::new();
    for node in nodes {
        if let Some(lease) = remaining_of(connection, *node)? {
            leases.insert(*node, lease);
        }
    }
    Ok(leases)
}

fn remaining_of(connection: &Connection, node: NodeId) -> Result<Option<Duration>, SqliteError> {
    let mut look = connection.prepare_cached(&format!(
        "SELECT until_ms - {NOW_MS} FROM holder_leases WHERE node_id = ?1 AND until_ms > {NOW_MS}"
    ))?;
    let left = look.query_row([column(node.0)], |row| row.get(0).map(number)).optional()?;
    Ok(left.map(Duration::from_millis))
}

/// Inside a transaction that holds the file: nobody renews before it ends.
pub(crate) fn take_over(
    connection: &Connection,
    (from, to): (Option<NodeId>, NodeId),
    ttl: Duration,
) -> Result<bool, SqliteError> {
    let is_free = match from {
        Some(from) => remaining_of(connection, from)?.is_none(),
        None => true,
    };
    if is_free {
        renew_one(connection, to, ttl)?;
    }
    Ok(is_free)
}
