//! The log and the tables that it changes, in SQL for Postgres.

use crate::{
    cluster::{
        Change, ChangeId, Entity, EntityId, Founding, Head, Holdings, Node, Op, Recovery, Removed, Roots,
        Settings, SetupKey, SetupKeyId, Snapshot,
    },
    store::{
        CALL_TIMEOUT, CHANGES_KEPT, Hint, Lost, Tail, column,
        log::judge,
        number,
        postgres::{
            error::PgError,
            live,
            root::Seed,
            sql::{BEGIN_SNAPSHOT, SqlType, execute, in_one_flight, notify, query},
        },
        read_root, root_columns,
    },
};
use futures_util::TryStreamExt;
use proto::{
    key::PublicKey,
    map::{MapVersion, Network},
    statement::{NetworkId, NodeId},
    time::UnixTime,
};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::{collections::BTreeSet, pin::pin};
use tokio::{sync::watch, time::timeout};
use tokio_postgres::{
    Client, GenericClient, Row,
    types::{Json, ToSql, Type},
};

/// One statement: of two servers that found at once, one makes both rows.
pub(crate) async fn found(client: &Client, founding: &Founding, first: ChangeId) -> Result<bool, PgError> {
    let network = &founding.network;
    let (seed, public) = root_columns(&founding.root);
    let (id, first) = (founding.network_id.0.as_slice(), first.0.as_slice());
    let (v4, v6) = (network.overlay_v4.to_string(), network.overlay_v6.to_string());
    let (seed, public) = (Seed(seed), public.as_ref().map(<[u8; 32]>::as_slice));
    let founded = execute(
        client,
        "WITH founded AS (
             INSERT INTO cluster (network_id, root_seed, root_public, root_wrapped, network_name, overlay_v4, overlay_v6, epoch,
                 revision, last_change, next_node_id)
             VALUES ($1, $2, $3::bytea, $3::bytea IS NOT NULL, $4, $5, $6, 1, 1, $7, 1) ON CONFLICT DO NOTHING
             RETURNING last_change)
         INSERT INTO changes (revision, epoch, id, at_unix_s, actor, ops)
         SELECT 1, 1, last_change, extract(epoch FROM clock_timestamp())::bigint, 'recovery', '[]' FROM founded",
        &[&id, &seed, &public, &network.name, &v4, &v6, &first],
    );
    Ok(founded.await? > 0)
}

/// The whole state, and the database's clock in milliseconds. However large it is: what is awaited is that something comes. `None`: there is no cluster.
pub(crate) async fn snapshot(client: &Client) -> Result<Option<(Snapshot, u64)>, PgError> {
    let (came, mut coming) = watch::channel(());
    let silence = async { while timeout(CALL_TIMEOUT, coming.changed()).await.is_ok() {} };
    tokio::select! {
        read = read_snapshot(client, &came) => read,
        () = silence => Err(PgError::Silent),
    }
}

async fn read_snapshot(
    client: &Client,
    came: &watch::Sender<()>,
) -> Result<Option<(Snapshot, u64)>, PgError> {
    let cluster = query(
        client,
        "SELECT epoch, revision, last_change, network_id, root_seed, network_name, overlay_v4, overlay_v6, next_node_id,
             root_wrapped, root_public
         FROM cluster",
        &[],
    );
    let tables = async {
        tokio::try_join!(
            cluster,
            contents(client, came, "SELECT content FROM nodes ORDER BY id"),
            contents(client, came, "SELECT content FROM setup_keys ORDER BY id"),
            contents(client, came, "SELECT content FROM removals ORDER BY node_key"),
            contents(client, came, "SELECT content FROM recovery"),
            contents(client, came, "SELECT content FROM settings"),
            contents(client, came, "SELECT content FROM roots"),
            contents(client, came, "SELECT content FROM holdings"),
            live::now_ms(client),
        )
    };
    let (cluster, nodes, setup_keys, removals, mut recovery, mut settings, mut roots, mut holdings, now_ms) =
        in_one_flight(client, BEGIN_SNAPSHOT, tables).await?;
    let Some(row) = cluster.first() else { return Ok(None) };
    let snapshot = Snapshot {
        founding: read_founding(row)?,
        head: read_head(row)?,
        next_node_id: NodeId(number(row.try_get(8)?)),
        nodes,
        setup_keys,
        removals,
        recovery: recovery.pop(),
        settings: settings.pop(),
        roots: roots.pop(),
        holdings: holdings.pop(),
    };
    snapshot.check().map(|snapshot| Some((snapshot, now_ms))).map_err(PgError::unreadable)
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

async fn contents<T: DeserializeOwned>(
    client: &Client,
    came: &watch::Sender<()>,
    sql: &str,
) -> Result<Vec<T>, PgError> {
    let rows = client.query_typed_raw(sql, std::iter::empty::<(bool, Type)>()).await?;
    let (mut rows, mut contents) = (pin!(rows), Vec::new());
    while let Some(row) = rows.try_next().await? {
        came.send_replace(());
        contents.push(serde_json::from_value(row.try_get(0)?).map_err(PgError::unreadable)?);
    }
    Ok(contents)
}

pub(crate) async fn head(client: &(impl GenericClient + Sync)) -> Result<Option<Head>, PgError> {
    let rows = query(client, "SELECT epoch, revision, last_change FROM cluster", &[]).await?;
    rows.first().map(read_head).transpose()
}

/// One statement, so one moment: the head, what is needed to judge, and the changes. `None`: there is no cluster.
pub(crate) async fn tail(client: &(impl GenericClient + Sync), known: Head) -> Result<Option<Tail>, PgError> {
    let seen = column(known.version.revision);
    let rows = query(
        client,
        "SELECT c.epoch, c.revision, c.last_change, (SELECT id FROM changes WHERE revision = $1),
             (SELECT min(revision) FROM changes), n.epoch, n.revision, n.id, n.at_unix_s, n.actor, n.ops
         FROM cluster c LEFT JOIN changes n ON n.revision > $1 ORDER BY n.revision",
        &[&seen],
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
        Err(error) => Err(error),
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

pub(crate) async fn moved_to(client: &(impl GenericClient + Sync)) -> Result<Option<String>, PgError> {
    let rows = query(client, "SELECT moved_to FROM cluster", &[]).await?;
    rows.first().map_or(Ok(None), |row| Ok(row.try_get(0)?))
}

/// Locks the cluster's row until the transaction ends; tells the time. `None`: there is no cluster.
///
/// # Errors
/// [`PgError::Moved`]: nothing may be written.
pub(crate) async fn lock(client: &(impl GenericClient + Sync)) -> Result<Option<UnixTime>, PgError> {
    let sql = "SELECT extract(epoch FROM clock_timestamp())::bigint, moved_to FROM cluster FOR UPDATE";
    let rows = query(client, sql, &[]).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    match row.try_get(1)? {
        Some(to) => Err(PgError::Moved(to)),
        None => Ok(Some(UnixTime(number(row.try_get(0)?)))),
    }
}

/// Sends everything when it is first polled, as one flight must. Deletes come first: what goes makes room for what comes.
pub(crate) async fn append(client: &Client, change: &Change) -> Result<(), PgError> {
    let MapVersion { epoch, revision } = change.head.version;
    let (id, actor, ops) = (change.head.id.0.as_slice(), change.actor.to_string(), Json(&change.ops));
    let head = "UPDATE cluster SET epoch = $1, revision = $2, last_change = $3";
    let entry =
        "INSERT INTO changes (revision, epoch, id, at_unix_s, actor, ops) VALUES ($1, $2, $3, $4, $5, $6)";
    let (revision_column, epoch_column, at) = (column(revision), column(epoch), column(change.at.0));
    let pruned = revision.checked_sub(CHANGES_KEPT).map(column);
    let prune = async {
        match &pruned {
            Some(pruned) => execute(client, "DELETE FROM changes WHERE revision <= $1", &[pruned]).await,
            None => Ok(0),
        }
    };
    tokio::try_join!(
        biased;
        delete(client, change),
        put(client, change),
        execute(client, head, &[&epoch_column, &revision_column, &id]),
        execute(client, entry, &[&revision_column, &epoch_column, &id, &at, &actor, &ops]),
        prune,
        notify(client, Hint::Log),
    )?;
    Ok(())
}

/// One statement per table, however many rows: a statement that has nothing to do is not sent.
async fn each<T: SqlType + ToSql + Sync>(client: &Client, sql: &str, keys: Vec<T>) -> Result<u64, PgError>
where
    Vec<T>: SqlType + ToSql,
{
    match keys.is_empty() {
        true => Ok(0),
        false => execute(client, sql, &[&keys]).await,
    }
}

async fn delete(client: &Client, change: &Change) -> Result<(), PgError> {
    let (mut nodes, mut setup_keys, mut removals) = (Vec::new(), Vec::new(), Vec::new());
    for op in &change.ops {
        match op {
            Op::Delete(EntityId::Node(id)) => nodes.push(column(id.0)),
            Op::Delete(EntityId::SetupKey(id)) => setup_keys.push(column(id.0)),
            Op::Delete(EntityId::Removal(key)) => removals.push(key.to_string()),
            Op::Put(_) => {}
        }
    }
    tokio::try_join!(
        biased;
        each(client, "DELETE FROM nodes WHERE id = ANY ($1)", nodes.clone()),
        each(client, "DELETE FROM sessions WHERE node_id = ANY ($1)", nodes.clone()),
        each(client, "DELETE FROM holder_leases WHERE node_id = ANY ($1)", nodes),
        each(client, "DELETE FROM setup_keys WHERE id = ANY ($1)", setup_keys),
        each(client, "DELETE FROM removals WHERE node_key = ANY ($1)", removals),
    )?;
    Ok(())
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Seen {
    Node(NodeId),
    SetupKey(SetupKeyId),
    Removal(PublicKey),
}

async fn put(client: &Client, change: &Change) -> Result<(), PgError> {
    let (mut nodes, mut setup_keys, mut removals) = (Vec::new(), Vec::new(), Vec::new());
    let (mut recovery, mut settings, mut roots, mut holdings) = (None, None, None, None);
    // One statement cannot change a row twice; of several puts of an entity the last one counts.
    let mut seen = BTreeSet::new();
    for op in change.ops.iter().rev() {
        let Op::Put(entity) = op else { continue };
        match entity {
            Entity::Node(node) if seen.insert(Seen::Node(node.id)) => nodes.push(&**node),
            Entity::SetupKey(key) if seen.insert(Seen::SetupKey(key.id)) => setup_keys.push(&**key),
            Entity::Removal(removed) if seen.insert(Seen::Removal(removed.key)) => removals.push(&**removed),
            Entity::Recovery(one) => recovery = recovery.or(Some(&**one)),
            Entity::Settings(one) => settings = settings.or(Some(&**one)),
            Entity::Roots(one) => roots = roots.or(Some(&**one)),
            Entity::Holdings(one) => holdings = holdings.or(Some(&**one)),
            Entity::Node(_) | Entity::SetupKey(_) | Entity::Removal(_) => {}
        }
    }
    nodes.reverse();
    tokio::try_join!(
        biased;
        put_nodes(client, &nodes),
        put_setup_keys(client, &setup_keys),
        put_removals(client, &removals),
        put_recovery(client, recovery),
        put_settings(client, settings),
        put_roots(client, roots),
        put_holdings(client, holdings),
    )?;
    Ok(())
}

pub(crate) async fn put_nodes(client: &Client, nodes: &[&Node]) -> Result<(), PgError> {
    let Some(last) = nodes.iter().map(|node| node.id.0).max() else { return Ok(()) };
    let ids: Vec<i64> = nodes.iter().map(|node| column(node.id.0)).collect();
    let keys: Vec<String> = nodes.iter().map(|node| node.key.to_string()).collect();
    let names: Vec<&str> = nodes.iter().map(|node| node.name.as_str()).collect();
    let v4: Vec<String> = nodes.iter().map(|node| node.address_v4.to_string()).collect();
    let v6: Vec<String> = nodes.iter().map(|node| node.address_v6.to_string()).collect();
    let contents: Vec<Json<&Node>> = nodes.iter().map(|node| Json(*node)).collect();
    let rows = "INSERT INTO nodes (id, node_key, name, address_v4, address_v6, content)
         SELECT * FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[], $5::text[], $6::jsonb[])
         ON CONFLICT (id) DO UPDATE SET node_key = excluded.node_key, name = excluded.name,
             address_v4 = excluded.address_v4, address_v6 = excluded.address_v6, content = excluded.content";
    let next = "UPDATE cluster SET next_node_id = greatest(next_node_id, $1)";
    let next_id = column(last.saturating_add(1));
    tokio::try_join!(
        biased;
        execute(client, rows, &[&ids, &keys, &names, &v4, &v6, &contents]),
        execute(client, next, &[&next_id]),
    )?;
    Ok(())
}

pub(crate) async fn put_setup_keys(client: &Client, keys: &[&SetupKey]) -> Result<(), PgError> {
    if keys.is_empty() {
        return Ok(());
    }
    let ids: Vec<i64> = keys.iter().map(|key| column(key.id.0)).collect();
    let hashes: Vec<&[u8]> = keys.iter().map(|key| key.hash.as_slice()).collect();
    let contents: Vec<Json<&SetupKey>> = keys.iter().map(|key| Json(*key)).collect();
    let rows = "INSERT INTO setup_keys (id, hash, content)
         SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::jsonb[])
         ON CONFLICT (id) DO UPDATE SET hash = excluded.hash, content = excluded.content";
    execute(client, rows, &[&ids, &hashes, &contents]).await.map(|_| ())
}

pub(crate) async fn put_removals(client: &Client, removals: &[&Removed]) -> Result<(), PgError> {
    if removals.is_empty() {
        return Ok(());
    }
    let keys: Vec<String> = removals.iter().map(|removed| removed.key.to_string()).collect();
    let contents: Vec<Json<&Removed>> = removals.iter().map(|removed| Json(*removed)).collect();
    let rows = "INSERT INTO removals (node_key, content) SELECT * FROM unnest($1::text[], $2::jsonb[])
         ON CONFLICT (node_key) DO UPDATE SET content = excluded.content";
    execute(client, rows, &[&keys, &contents]).await.map(|_| ())
}

pub(crate) async fn put_recovery(client: &Client, recovery: Option<&Recovery>) -> Result<(), PgError> {
    let Some(recovery) = recovery else { return Ok(()) };
    let (content, next_id) = (Json(recovery), column(recovery.next_node_id.0));
    let row = "INSERT INTO recovery (content) VALUES ($1) ON CONFLICT (only_row) DO UPDATE SET content = excluded.content";
    let next = "UPDATE cluster SET next_node_id = greatest(next_node_id, $1)";
    tokio::try_join!(biased; execute(client, row, &[&content]), execute(client, next, &[&next_id]))?;
    Ok(())
}

pub(crate) async fn put_settings(client: &Client, settings: Option<&Settings>) -> Result<(), PgError> {
    let Some(settings) = settings else { return Ok(()) };
    let row = "INSERT INTO settings (content) VALUES ($1) ON CONFLICT (only_row) DO UPDATE SET content = excluded.content";
    execute(client, row, &[&Json(settings)]).await.map(|_| ())
}

pub(crate) async fn put_roots(client: &Client, roots: Option<&Roots>) -> Result<(), PgError> {
    let Some(roots) = roots else { return Ok(()) };
    let row = "INSERT INTO roots (content) VALUES ($1) ON CONFLICT (only_row) DO UPDATE SET content = excluded.content";
    execute(client, row, &[&Json(roots)]).await.map(|_| ())
}

pub(crate) async fn put_holdings(client: &Client, holdings: Option<&Holdings>) -> Result<(), PgError> {
    let Some(holdings) = holdings else { return Ok(()) };
    let row = "INSERT INTO holdings (content) VALUES ($1) ON CONFLICT (only_row) DO UPDATE SET content = excluded.content";
    execute(client, row, &[&Json(holdings)]).await.map(|_| ())
}
