//! A whole cluster at once, into the tables; and the note that it went elsewhere.

use crate::{
    cluster::{Entity, Founding, Head, Snapshot},
    store::{
        Imported, Occupied, column, number, root_columns,
        sqlite::{SqliteError, log},
    },
};
use proto::{map::MapVersion, statement::NodeId};
use rusqlite::{Connection, Transaction, TransactionBehavior, params};

/// The cluster's row.
pub(crate) fn insert_cluster(
    transaction: &Transaction<'_>,
    founding: &Founding,
    head: Head,
    next: NodeId,
) -> Result<(), SqliteError> {
    let (network, MapVersion { epoch, revision }) = (&founding.network, head.version);
    let (seed, public) = root_columns(&founding.root);
    transaction.execute(
        "INSERT INTO cluster (only_row, network_id, root_seed, root_public, root_wrapped, network_name, overlay_v4, overlay_v6,
             epoch, revision, last_change, next_node_id) VALUES (1, ?1, ?2, ?3, ?3 IS NOT NULL, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        params![
            founding.network_id.0,
            seed,
            public,
            network.name,
            network.overlay_v4.to_string(),
            network.overlay_v6.to_string(),
            column(epoch),
            column(revision),
            head.id.0,
            column(next.0)
        ],
    )?;
    transaction.execute(
        "INSERT INTO changes (revision, epoch, id, at_unix_s, actor, ops) VALUES (?1, ?2, ?3, unixepoch(), 'recovery', '[]')",
        params![column(revision), column(epoch), head.id.0],
    )?;
    Ok(())
}

pub(crate) fn import(
    connection: &mut Connection,
    snapshot: &Snapshot,
    occupied: Occupied,
) -> Result<Imported, SqliteError> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    if log::read_head(&transaction)?.is_some() {
        if occupied == Occupied::Refuse {
            return Ok(Imported::Occupied);
        }
        let held =
            "SELECT count(*) FROM servers WHERE lease_until_ms > CAST(unixepoch('subsec') * 1000 AS INTEGER)";
        let held = number(transaction.query_row(held, [], |row| row.get(0))?);
        if held > 0 {
            return Ok(Imported::InUse { servers: held });
        }
    }
    for table in [
        "cluster",
        "nodes",
        "setup_keys",
        "removals",
        "recovery",
        "settings",
        "roots",
        "holdings",
        "holder_leases",
        "changes",
        "servers",
        "sessions",
        "signals",
    ] {
        transaction.execute(&format!("DELETE FROM {table}"), [])?;
    }
    insert_cluster(&transaction, &snapshot.founding, snapshot.head, snapshot.next_node_id)?;
    let nodes = snapshot.nodes.iter().map(|node| Entity::Node(Box::new(node.clone())));
    let keys = snapshot.setup_keys.iter().map(|key| Entity::SetupKey(Box::new(key.clone())));
    let removals = snapshot.removals.iter().map(|removed| Entity::Removal(Box::new(removed.clone())));
    let recovery = snapshot.recovery.iter().map(|recovery| Entity::Recovery(Box::new(recovery.clone())));
    let settings = snapshot.settings.iter().map(|settings| Entity::Settings(Box::new(*settings)));
    let roots = snapshot.roots.iter().map(|roots| Entity::Roots(Box::new(roots.clone())));
    let holdings = snapshot.holdings.iter().map(|holdings| Entity::Holdings(Box::new(holdings.clone())));
    let single = recovery.chain(settings).chain(roots).chain(holdings);
    for entity in nodes.chain(keys).chain(removals).chain(single) {
        log::put(&transaction, &entity)?;
    }
    transaction.commit()?;
    Ok(Imported::Done)
}

pub(crate) fn set_moved(connection: &Connection, to: Option<&str>) -> Result<bool, SqliteError> {
    let set = "UPDATE cluster SET moved_to = ?1 WHERE ?1 IS NULL OR moved_to IS NULL OR moved_to = ?1";
    Ok(connection.execute(set, [to])? > 0)
}
