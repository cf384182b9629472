//! The log and the tables that it changes, in SQL for Postgres.

use crate::{
    cluster::{Change, ChangeId, Entity, EntityId, Founding, Head, Op, Snapshot},
    store::{
        CHANGES_KEPT, Hint, Lost, Tail, column,
        log::judge,
        number,
        postgres::{error::PgError, execute, notify, query, root::Seed},
        read_root, root_columns,
    },
};
use deadpool_postgres::{ClientWrapper, GenericClient};
use proto::{
    map::{MapVersion, Network},
    statement::{NetworkId, NodeId},
    time::UnixTime,
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_postgres::{IsolationLevel, Row, types::Json};

pub(crate) async fn found(
    client: &mut ClientWrapper,
    founding: &Founding,
    first: ChangeId,
) -> Result<bool, PgError> {
    let transaction = client.transaction().await?;
    let network = &founding.network;
    let (seed, public) = root_columns(&founding.root);
    let founded = execute(
        &transaction,
        "INSERT INTO cluster (network_id, root_seed, root_public, root_wrapped, network_name, overlay_v4, overlay_v6, epoch,
             revision, last_change, next_node_id)
         VALUES ($1, $2, $3::bytea, $3::bytea IS NOT NULL, $4, $5, $6, 1, 1, $7, 1) ON CONFLICT DO NOTHING",
        &[
            &founding.network_id.0.as_slice(),
            &Seed(seed),
            &public.as_ref().map(<[u8; 32]>::as_slice),
            &network.name,
            &network.overlay_v4.to_string(),
            &network.overlay_v6.to_string(),
            &first.0.as_slice(),
        ],
    )
    .await?;
    if founded == 0 {
        return Ok(false);
    }
    execute(
        &transaction,
        "INSERT INTO changes (revision, epoch, id, at_unix_s, actor, ops)
         VALUES (1, 1, $1, extract(epoch FROM clock_timestamp())::bigint, 'recovery', '[]')",
        &[&first.0.as_slice()],
    )
    .await?;
    transaction.commit().await?;
    Ok(true)
}

/// `None`: there is no cluster.
pub(crate) async fn snapshot(client: &mut ClientWrapper) -> Result<Option<Snapshot>, PgError> {
    let transaction =
        client.build_transaction().isolation_level(IsolationLevel::RepeatableRead).read_only(true);
    let transaction = transaction.start().await?;
    let cluster = query(
        &transaction,
        "SELECT epoch, revision, last_change, network_id, root_seed, network_name, overlay_v4, overlay_v6, next_node_id,
             root_wrapped, root_public
         FROM cluster",
        &[],
    );
    let Some(row) = cluster.await?.pop() else { return Ok(None) };
    let snapshot = Snapshot {
        founding: read_founding(&row)?,
        head: read_head(&row)?,
        next_node_id: NodeId(number(row.try_get(8)?)),
        nodes: contents(&transaction, "SELECT content FROM nodes ORDER BY id").await?,
        setup_keys: contents(&transaction, "SELECT content FROM setup_keys ORDER BY id").await?,
        removals: contents(&transaction, "SELECT content FROM removals ORDER BY node_key").await?,
        recovery: contents(&transaction, "SELECT content FROM recovery").await?.pop(),
    };
    transaction.commit().await?;
    snapshot.check().map(Some).map_err(PgError::unreadable)
}

/// Columns 3 to 7, 9 and 10.
fn read_founding(row: &Row) -> Result<Founding, PgError> {
    let root = read_root(row.try_get(4)?, row.try_get(9)?, row.try_get(10)?);
    let prefix = |text: &str| text.parse().map_err(PgError::unreadable);
    Ok(Founding {
        network_id: NetworkId(fixed(row, 3)?),
        root: root.map_err(PgError::unreadable)?,
        network: Network {
            name: row.try_get(5)?,
            overlay_v4: prefix(row.try_get(6)?)?,
            overlay_v6: prefix(row.try_get(7)?)?,
        },
    })
}

/// Columns 0 to 2.
fn read_head(row: &Row) -> Result<Head, PgError> {
    let version = MapVersion { epoch: number(row.try_get(0)?), revision: number(row.try_get(1)?) };
    Ok(Head { version, id: ChangeId(fixed(row, 2)?) })
}

pub(crate) fn fixed<const N: usize>(row: &Row, index: usize) -> Result<[u8; N], PgError> {
    let bytes: &[u8] = row.try_get(index)?;
    bytes.try_into().map_err(|_| PgError::unreadable(format_args!("{} bytes instead of {N}", bytes.len())))
}

async fn contents<T: DeserializeOwned>(client: &impl GenericClient, sql: &str) -> Result<Vec<T>, PgError> {
    let rows = query(client, sql, &[]).await?;
    rows.iter().map(|row| serde_json::from_value(row.try_get(0)?).map_err(PgError::unreadable)).collect()
}

pub(crate) async fn head(client: &impl GenericClient) -> Result<Option<Head>, PgError> {
    let rows = query(client, "SELECT epoch, revision, last_change FROM cluster", &[]).await?;
    rows.first().map(read_head).transpose()
}

/// One statement, so one moment: the head, what is needed to judge, and the changes. `None`: there is no cluster.
pub(crate) async fn tail(client: &impl GenericClient, known: Head) -> Result<Option<Tail>, PgError> {
    let rows = query(
        client,
        "SELECT c.epoch, c.revision, c.last_change, (SELECT id FROM changes WHERE revision = $1),
             (SELECT min(revision) FROM changes), n.epoch, n.revision, n.id, n.at_unix_s, n.actor, n.ops
         FROM cluster c LEFT JOIN changes n ON n.revision > $1 ORDER BY n.revision",
        &[&column(known.version.revision)],
    )
    .await?;
    let Some(first) = rows.first() else { return Ok(None) };
    let head = read_head(first)?;
    let held: Option<&[u8]> = first.try_get(3)?;
    let oldest: Option<i64> = first.try_get(4)?;
    let holds_known = held == Some(known.id.0.as_slice());
    if let Some(lost) = judge(known, head, number(oldest.unwrap_or(0)), holds_known) {
        return Ok(Some(Tail::Lost(lost)));
    }
    if first.try_get::<_, Option<i64>>(5)?.is_none() {
        return Ok(Some(Tail::Changes(Vec::new())));
    }
    match rows.iter().map(read_change).collect() {
        Ok(changes) => Ok(Some(Tail::Changes(changes))),
        // Written by a newer program: the tables say the same in a form that is read with less strictness.
        Err(PgError::Unreadable(_)) => Ok(Some(Tail::Lost(Lost::Pruned))),
        Err(error @ (PgError::Sql(_) | PgError::Moved(_))) => Err(error),
    }
}

/// Columns 5 to 10.
fn read_change(row: &Row) -> Result<Change, PgError> {
    let version = MapVersion { epoch: number(row.try_get(5)?), revision: number(row.try_get(6)?) };
    Ok(Change {
        head: Head { version, id: ChangeId(fixed(row, 7)?) },
        at: UnixTime(number(row.try_get(8)?)),
        actor: row.try_get::<_, &str>(9)?.parse().map_err(PgError::unreadable)?,
        ops: serde_json::from_value(row.try_get::<_, Value>(10)?).map_err(PgError::unreadable)?,
    })
}

/// Locks the cluster's row until the transaction ends; tells the time. `None`: there is no cluster.
///
/// # Errors
/// [`PgError::Moved`]: nothing may be written.
pub(crate) async fn lock(client: &impl GenericClient) -> Result<Option<UnixTime>, PgError> {
    let sql = "SELECT extract(epoch FROM clock_timestamp())::bigint, moved_to FROM cluster FOR UPDATE";
    let rows = query(client, sql, &[]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    match row.try_get(1)? {
        Some(to) => Err(PgError::Moved(to)),
        None => Ok(Some(UnixTime(number(row.try_get(0)?)))),
    }
}

/// Deletes come first: what goes makes room for what comes.
pub(crate) async fn append(client: &impl GenericClient, change: &Change) -> Result<(), PgError> {
    for op in &change.ops {
        if let Op::Delete(id) = op {
            delete(client, *id).await?;
        }
    }
    for op in &change.ops {
        if let Op::Put(entity) = op {
            put(client, entity).await?;
        }
    }
    let MapVersion { epoch, revision } = change.head.version;
    execute(
        client,
        "UPDATE cluster SET epoch = $1, revision = $2, last_change = $3",
        &[&column(epoch), &column(revision), &change.head.id.0.as_slice()],
    )
    .await?;
    execute(
        client,
        "INSERT INTO changes (revision, epoch, id, at_unix_s, actor, ops) VALUES ($1, $2, $3, $4, $5, $6)",
        &[
            &column(revision),
            &column(epoch),
            &change.head.id.0.as_slice(),
            &column(change.at.0),
            &change.actor.to_string(),
            &Json(&change.ops),
        ],
    )
    .await?;
    if let Some(pruned) = revision.checked_sub(CHANGES_KEPT) {
        execute(client, "DELETE FROM changes WHERE revision <= $1", &[&column(pruned)]).await?;
    }
    notify(client, Hint::Log).await
}

async fn put(client: &impl GenericClient, entity: &Entity) -> Result<(), PgError> {
    match entity {
        Entity::Node(node) => {
            execute(
                client,
                "INSERT INTO nodes (id, node_key, name, address_v4, address_v6, content) VALUES ($1, $2, $3, $4, $5, $6)
                 ON CONFLICT (id) DO UPDATE SET node_key = excluded.node_key, name = excluded.name,
                     address_v4 = excluded.address_v4, address_v6 = excluded.address_v6, content = excluded.content",
                &[
                    &column(node.id.0),
                    &node.key.to_string(),
                    &node.name,
                    &node.address_v4.to_string(),
                    &node.address_v6.to_string(),
                    &Json(node),
                ],
            )
            .await?;
            let next = "UPDATE cluster SET next_node_id = greatest(next_node_id, $1)";
            execute(client, next, &[&column(node.id.0.saturating_add(1))]).await?;
        }
        Entity::SetupKey(key) => {
            execute(
                client,
                "INSERT INTO setup_keys (id, hash, content) VALUES ($1, $2, $3)
                 ON CONFLICT (id) DO UPDATE SET hash = excluded.hash, content = excluded.content",
                &[&column(key.id.0), &key.hash.as_slice(), &Json(key)],
            )
            .await?;
        }
        Entity::Removal(removed) => {
            execute(
                client,
                "INSERT INTO removals (node_key, content) VALUES ($1, $2)
                 ON CONFLICT (node_key) DO UPDATE SET content = excluded.content",
                &[&removed.key.to_string(), &Json(removed)],
            )
            .await?;
        }
        Entity::Recovery(recovery) => {
            execute(
                client,
                "INSERT INTO recovery (content) VALUES ($1) ON CONFLICT (only_row) DO UPDATE SET content = excluded.content",
                &[&Json(recovery)],
            )
            .await?;
            let next = "UPDATE cluster SET next_node_id = greatest(next_node_id, $1)";
            execute(client, next, &[&column(recovery.next_node_id.0)]).await?;
        }
    }
    Ok(())
}

async fn delete(client: &impl GenericClient, id: EntityId) -> Result<(), PgError> {
    match id {
        EntityId::Node(id) => {
            execute(client, "DELETE FROM nodes WHERE id = $1", &[&column(id.0)]).await?;
            execute(client, "DELETE FROM sessions WHERE node_id = $1", &[&column(id.0)]).await?;
        }
        EntityId::SetupKey(id) => {
            execute(client, "DELETE FROM setup_keys WHERE id = $1", &[&column(id.0)]).await?;
        }
        EntityId::Removal(key) => {
            execute(client, "DELETE FROM removals WHERE node_key = $1", &[&key.to_string()]).await?;
        }
    }
    Ok(())
}
